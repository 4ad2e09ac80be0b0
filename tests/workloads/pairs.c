/*
 * pairs COUNT: for each line on stdin, which names a function, allocates 64 bytes by it and frees them, COUNT
 * times, and prints how long a pair took:
 *
 *   pair function=malloc ns=8.7
 *
 * Functions: malloc, calloc, realloc, aligned_alloc, posix_memalign. A line that names none of these ends it.
 *
 * cc -O2 -g -fno-builtin pairs.c -o pairs
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static double now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec * 1e9 + now.tv_nsec;
}

static void *by_malloc(void)
{
	return malloc(64);
}

static void *by_calloc(void)
{
	return calloc(4, 16);
}

static void *by_realloc(void)
{
	return realloc(malloc(16), 64);
}

static void *by_aligned_alloc(void)
{
	return aligned_alloc(64, 64);
}

static void *by_posix_memalign(void)
{
	void *object;

	return posix_memalign(&object, 64, 64) ? NULL : object;
}

static const struct {
	const char *name;
	void *(*allocate)(void);
} functions[] = {
	{ "malloc", by_malloc },
	{ "calloc", by_calloc },
	{ "realloc", by_realloc },
	{ "aligned_alloc", by_aligned_alloc },
	{ "posix_memalign", by_posix_memalign },
};

int main(int argc, char **argv)
{
	long count = argc == 2 ? atol(argv[1]) : 0;
	char line[64];

	if (count <= 0) {
		fprintf(stderr, "usage: pairs COUNT\n");
		return 64;
	}
	printf("ready\n");
	fflush(stdout);
	while (fgets(line, sizeof line, stdin)) {
		size_t i = 0;

		line[strcspn(line, "\n")] = 0;
		while (i < sizeof functions / sizeof *functions && strcmp(functions[i].name, line))
			i++;
		if (i == sizeof functions / sizeof *functions)
			break;

		double begin = now_ns();

		for (long n = 0; n < count; n++)
			free(functions[i].allocate());
		printf("pair function=%s ns=%.1f\n", line, (now_ns() - begin) / count);
		fflush(stdout);
	}
	return 0;
}
