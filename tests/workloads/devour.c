/*
 * devour MIB SECONDS: waits a second, gets MIB MiB in first_course(), waits SECONDS, and then gets more
 * and more in second_course(), until somebody ends it.
 *
 * cc -O2 -g -fomit-frame-pointer -fno-optimize-sibling-calls devour.c -o devour
 */
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#define SEEN __attribute__((noipa))
#define MIB ((size_t)1 << 20)
#define PAGE 4096

static SEEN void touch(size_t bytes)
{
	char *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (memory == MAP_FAILED) {
		perror("devour: mmap");
		exit(71);
	}
	for (size_t at = 0; at < bytes; at += PAGE)
		memory[at] = 1;
}

static SEEN void first_course(size_t mib)
{
	for (size_t got = 0; got < mib; got++)
		touch(MIB);
}

static SEEN void second_course(void)
{
	for (;;)
		touch(MIB);
}

int main(int argc, char **argv)
{
	if (argc != 3) {
		fprintf(stderr, "usage: devour MIB SECONDS\n");
		return 64;
	}
	sleep(1);
	first_course(strtoul(argv[1], NULL, 10));
	sleep((unsigned)strtoul(argv[2], NULL, 10));
	second_course();
}
