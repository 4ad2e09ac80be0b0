/*
 * work MEGA_ITERATIONS THREADS: a fixed amount of work, for measuring slowdown.
 *
 * Each thread runs MEGA_ITERATIONS million steps of a chain of dependent
 * multiplications, all in fixed_work(). It touches no memory and makes no system
 * call on the way, so what differs between two runs is what others did to it.
 * Prints how long that took on the wall clock: "elapsed_ns N".
 *
 * cc -O2 -g -fno-omit-frame-pointer -mno-omit-leaf-frame-pointer -pthread work.c -o work
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#define MAX_THREADS 256

/* Compilers leave the frame out of a leaf function that needs no stack, even when told
 * to keep frame pointers; its caller would then be missing from the stacks. */
#define KEEP_FRAME() __asm__ volatile("" : : "r"(__builtin_frame_address(0)))

static uint64_t iterations;
static volatile uint64_t sink;

static uint64_t monotonic_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

__attribute__((noinline)) uint64_t fixed_work(uint64_t x)
{
	KEEP_FRAME();
	for (uint64_t i = 0; i < iterations; i++)
		x = x * 6364136223846793005u + 1442695040888963407u;
	return x;
}

static void *run(void *seed)
{
	sink = fixed_work((uint64_t)(uintptr_t)seed);
	return NULL;
}

int main(int argc, char **argv)
{
	pthread_t threads[MAX_THREADS];
	uint64_t start_ns;
	int count;

	if (argc != 3) {
		fprintf(stderr, "usage: work MEGA_ITERATIONS THREADS\n");
		return 64;
	}
	iterations = strtoull(argv[1], NULL, 10) * 1000000;
	count = atoi(argv[2]);
	if (iterations == 0 || count < 1 || count > MAX_THREADS) {
		fprintf(stderr,
			"work: MEGA_ITERATIONS must be positive and THREADS between 1 and %d\n",
			MAX_THREADS);
		return 64;
	}

	start_ns = monotonic_ns();
	for (int i = 0; i < count; i++) {
		if (pthread_create(&threads[i], NULL, run, (void *)(uintptr_t)(i + 1)) != 0) {
			perror("work: pthread_create");
			return 71;
		}
	}
	for (int i = 0; i < count; i++)
		pthread_join(threads[i], NULL);
	printf("elapsed_ns %llu\n", (unsigned long long)(monotonic_ns() - start_ns));
	return 0;
}
