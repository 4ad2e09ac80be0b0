/*
 * grow FILE: gets memory in known places.
 *
 *   touch_pages     writes to 500 MiB of fresh memory, one page after the other
 *   read_into       has the kernel read 256 MiB into fresh memory
 *   populate        maps 128 MiB that are there at once (MAP_POPULATE)
 *   touch_huge      writes to 64 MiB of memory in huge pages, where the machine has them
 *   read_mapping    reads 96 MiB of a mapping of FILE, whose pages are in the page cache
 *   touch_shared    writes to 32 MiB of shared memory
 *   give_back       touches 4 MiB and gives them back, 50 times: counted here as what it got
 *
 * all called by outer(), each in its turn. For each one prints
 *
 *   grew function=F bytes=N
 *
 * cc -O2 -g -fomit-frame-pointer -fno-optimize-sibling-calls grow.c -o grow
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define SEEN __attribute__((noipa))
#define MIB ((size_t)1 << 20)
#define PAGE 4096

static volatile char sink;

static void fail(const char *what)
{
	perror(what);
	exit(71);
}

static char *map(size_t bytes, int flags, int fd)
{
	char *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, flags, fd, 0);

	if (memory == MAP_FAILED)
		fail("grow: mmap");
	return memory;
}

static char *fresh(size_t bytes)
{
	char *memory = map(bytes, MAP_PRIVATE | MAP_ANONYMOUS, -1);

	madvise(memory, bytes, MADV_NOHUGEPAGE);
	return memory;
}

static void say(const char *function, size_t bytes)
{
	printf("grew function=%s bytes=%zu\n", function, bytes);
	fflush(stdout);
}

static SEEN void touch_pages(void)
{
	size_t bytes = 500 * MIB;
	char *memory = fresh(bytes);

	for (size_t at = 0; at < bytes; at += PAGE)
		memory[at] = 1;
	say("touch_pages", bytes);
}

static SEEN void read_into(void)
{
	size_t bytes = 256 * MIB, got = 0;
	char *memory = fresh(bytes);
	int fd = open("/dev/zero", O_RDONLY | O_CLOEXEC);

	if (fd < 0)
		fail("grow: /dev/zero");
	while (got < bytes) {
		ssize_t more = read(fd, memory + got, bytes - got < MIB ? bytes - got : MIB);

		if (more <= 0)
			fail("grow: read");
		got += (size_t)more;
	}
	close(fd);
	say("read_into", bytes);
}

static SEEN void populate(void)
{
	size_t bytes = 128 * MIB;

	sink = *map(bytes, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1);
	say("populate", bytes);
}

static SEEN void touch_huge(void)
{
	size_t bytes = 64 * MIB, align = 2 * MIB;
	char *memory = map(bytes + align, MAP_PRIVATE | MAP_ANONYMOUS, -1);

	memory += align - (uintptr_t)memory % align;
	madvise(memory, bytes, MADV_HUGEPAGE);
	for (size_t at = 0; at < bytes; at += PAGE)
		memory[at] = 1;
	say("touch_huge", bytes);
}

static SEEN void read_mapping(const char *path)
{
	size_t bytes = 96 * MIB;
	int fd = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	char *block = malloc(MIB), *memory;

	if (fd < 0 || block == NULL)
		fail(path);
	memset(block, 1, MIB);
	for (size_t at = 0; at < bytes; at += MIB)
		if (write(fd, block, MIB) != (ssize_t)MIB)
			fail(path);
	free(block);
	memory = map(bytes, MAP_SHARED, fd);
	for (size_t at = 0; at < bytes; at += PAGE)
		sink = memory[at];
	close(fd);
	say("read_mapping", bytes);
}

static SEEN void touch_shared(void)
{
	size_t bytes = 32 * MIB;
	char *memory = map(bytes, MAP_SHARED | MAP_ANONYMOUS, -1);

	for (size_t at = 0; at < bytes; at += PAGE)
		memory[at] = 1;
	say("touch_shared", bytes);
}

static SEEN void give_back(void)
{
	size_t bytes = 4 * MIB;

	for (int round = 0; round < 50; round++) {
		char *memory = fresh(bytes);

		for (size_t at = 0; at < bytes; at += PAGE)
			memory[at] = 1;
		munmap(memory, bytes);
	}
	say("give_back", 50 * bytes);
}

static SEEN void outer(const char *path)
{
	touch_pages();
	read_into();
	populate();
	touch_huge();
	read_mapping(path);
	touch_shared();
	give_back();
}

int main(int argc, char **argv)
{
	if (argc != 2) {
		fprintf(stderr, "usage: grow FILE\n");
		return 64;
	}
	outer(argv[1]);
	return 0;
}
