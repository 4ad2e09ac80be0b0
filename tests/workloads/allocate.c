/*
 * allocate: allocates known amounts in known places.
 *
 *   make_big       1 GiB in pieces of 64 KiB, each freed at once
 *   make_small     256 MiB in pieces of 48 bytes, every other one freed at once, the rest at the end
 *   leak_here      64 MiB in pieces of 4 KiB, never freed
 *   make_cleared   128 MiB in pieces of 1 KiB by calloc, freed at once
 *   make_grown     by realloc: 64 times from nothing to 1 MiB in steps of 64 KiB, freed at the end of each
 *   make_aligned   64 MiB in pieces of 8 KiB by posix_memalign and aligned_alloc in turn, freed at once
 *
 * all called by outer(), each in its turn. Waits for a line on stdin, does all that, says so, waits for
 * another line, and ends. Nothing that it allocates is touched, so it needs little memory but for small pieces.
 *
 * For each function prints
 *
 *   allocated function=F bytes=N objects=N live_bytes=N
 *
 * where live_bytes is what is still there when it waits for the second line.
 *
 * cc -O2 -g -fomit-frame-pointer -fno-optimize-sibling-calls -fno-builtin allocate.c -o allocate
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#define SEEN __attribute__((noipa))
#define KIB ((size_t)1 << 10)
#define MIB ((size_t)1 << 20)

static void *leaked;

static void *checked(void *object)
{
	if (!object) {
		fprintf(stderr, "allocate: out of memory\n");
		exit(71);
	}
	return object;
}

static void say(const char *function, size_t bytes, size_t objects, size_t live)
{
	printf("allocated function=%s bytes=%zu objects=%zu live_bytes=%zu\n", function, bytes,
	       objects, live);
	fflush(stdout);
}

static void wait_for_line(void)
{
	int c;

	do
		c = getchar();
	while (c != EOF && c != '\n');
}

/* Objects keep each other alive by their first word. */
static void keep(void **list, void *object)
{
	*(void **)object = *list;
	*list = object;
}

static void free_all(void **list)
{
	while (*list) {
		void *object = *list;

		*list = *(void **)object;
		free(object);
	}
}

SEEN void make_big(void)
{
	size_t objects = 1024 * MIB / (64 * KIB);

	for (size_t i = 0; i < objects; i++)
		free(checked(malloc(64 * KIB)));
	say("make_big", objects * 64 * KIB, objects, 0);
}

SEEN void make_small(void)
{
	size_t objects = 256 * MIB / 48;
	void *kept = NULL;

	for (size_t i = 0; i < objects; i++) {
		void *object = checked(malloc(48));

		if (i % 2)
			free(object);
		else
			keep(&kept, object);
	}
	free_all(&kept);
	say("make_small", objects * 48, objects, 0);
}

SEEN void leak_here(void)
{
	size_t objects = 64 * MIB / (4 * KIB);

	for (size_t i = 0; i < objects; i++)
		keep(&leaked, checked(malloc(4 * KIB)));
	say("leak_here", objects * 4 * KIB, objects, objects * 4 * KIB);
}

SEEN void make_cleared(void)
{
	size_t objects = 128 * MIB / KIB;

	for (size_t i = 0; i < objects; i++)
		free(checked(calloc(32, KIB / 32)));
	say("make_cleared", objects * KIB, objects, 0);
}

SEEN void make_grown(void)
{
	size_t bytes = 0, objects = 0;

	for (int round = 0; round < 64; round++) {
		void *object = NULL;

		for (size_t size = 64 * KIB; size <= MIB; size += 64 * KIB) {
			object = checked(realloc(object, size));
			bytes += size;
			objects++;
		}
		free(object);
	}
	say("make_grown", bytes, objects, 0);
}

SEEN void make_aligned(void)
{
	size_t objects = 64 * MIB / (8 * KIB);

	for (size_t i = 0; i < objects; i++) {
		void *object = NULL;

		if (i % 2)
			object = aligned_alloc(64, 8 * KIB);
		else if (posix_memalign(&object, 64, 8 * KIB))
			object = NULL;
		free(checked(object));
	}
	say("make_aligned", objects * 8 * KIB, objects, 0);
}

SEEN void outer(void)
{
	make_big();
	make_small();
	leak_here();
	make_cleared();
	make_grown();
	make_aligned();
}

int main(void)
{
	/* The stream's own buffers are there before it begins. */
	printf("ready\n");
	fflush(stdout);
	wait_for_line();
	outer();
	printf("done\n");
	fflush(stdout);
	wait_for_line();
	return leaked == NULL;
}
