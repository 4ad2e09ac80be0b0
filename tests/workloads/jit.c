/*
 * jit SECONDS: code that exists in no file, announced the way runtimes do.
 *
 * It writes a small loop into anonymous executable memory, names it "jitted_loop" in
 * /tmp/perf-PID.map, and calls it for SECONDS. x86_64 only.
 *
 * cc -O2 -g -fno-omit-frame-pointer -mno-omit-leaf-frame-pointer jit.c -o jit
 */
#define _GNU_SOURCE
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

/* push rbp; mov rbp, rsp; mov rax, rdi; 1: dec rax; jnz 1b; pop rbp; ret */
static const unsigned char loop[] = {
	0x55, 0x48, 0x89, 0xe5, 0x48, 0x89, 0xf8, 0x48, 0xff, 0xc8, 0x75, 0xfb, 0x5d, 0xc3,
};

static double now(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec + now.tv_nsec / 1e9;
}

int main(int argc, char **argv)
{
	char path[64];
	double deadline;
	uint64_t (*code)(uint64_t);
	void *memory;
	FILE *map;

	if (argc != 2) {
		fprintf(stderr, "usage: jit SECONDS\n");
		return 64;
	}
	memory = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (memory == MAP_FAILED) {
		perror("jit: mmap");
		return 71;
	}
	memcpy(memory, loop, sizeof(loop));
	if (mprotect(memory, 4096, PROT_READ | PROT_EXEC) != 0) {
		perror("jit: mprotect");
		return 71;
	}
	snprintf(path, sizeof(path), "/tmp/perf-%d.map", getpid());
	map = fopen(path, "w");
	if (map == NULL) {
		perror("jit: fopen");
		return 73;
	}
	fprintf(map, "%lx %zx jitted_loop\n", (unsigned long)memory, sizeof(loop));
	fclose(map);

	code = (uint64_t (*)(uint64_t))memory;
	deadline = now() + atof(argv[1]);
	while (now() < deadline)
		code(100000);
	return 0;
}
