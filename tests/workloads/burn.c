/*
 * burn SECONDS THREADS: known answer for CPU profiles.
 *
 * Each thread spends exactly three quarters of its CPU time in hot_path() and
 * one quarter in cold_path(): both run the same loop, whose speed is that of a
 * chain of dependent multiplications (so alignment does not matter), and each
 * round gives hot_path() three times the iterations of cold_path(). A round
 * takes some hundred microseconds, of random length, so that rounds cannot
 * fall into step with a sampling clock and any span of time has both shares.
 *
 * At the end it prints what getrusage(2) says it used: "cpu_ns N".
 *
 * cc -O2 -g -fno-omit-frame-pointer -mno-omit-leaf-frame-pointer -pthread burn.c -o burn
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <time.h>

#define MAX_THREADS 256

/* Compilers leave the frame out of a leaf function that needs no stack, even when told
 * to keep frame pointers; its caller would then be missing from the stacks. */
#define KEEP_FRAME() __asm__ volatile("" : : "r"(__builtin_frame_address(0)))

static uint64_t deadline_ns;
static volatile uint64_t sink;

static uint64_t monotonic_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

/* 75 % */
__attribute__((noinline)) uint64_t hot_path(uint64_t x, uint64_t iterations)
{
	KEEP_FRAME();
	for (uint64_t i = 0; i < iterations; i++)
		x = x * 6364136223846793005u + 1442695040888963407u;
	return x;
}

/* 25 % */
__attribute__((noinline)) uint64_t cold_path(uint64_t x, uint64_t iterations)
{
	KEEP_FRAME();
	for (uint64_t i = 0; i < iterations; i++)
		x = x * 6364136223846793005u + 1442695040888963407u;
	return x;
}

/* The barrier keeps the compiler from turning the last call into a jump, which would
 * hide this function from the stacks. */
__attribute__((noinline)) uint64_t one_round(uint64_t x)
{
	uint64_t iterations = 40000 + (x >> 48);

	x = hot_path(x, 3 * iterations);
	x = cold_path(x, iterations);
	__asm__ volatile("" : "+r"(x));
	return x;
}

static void *burn(void *seed)
{
	uint64_t x = (uint64_t)(uintptr_t)seed;

	while (monotonic_ns() < deadline_ns)
		x = one_round(x);
	sink = x;
	return NULL;
}

int main(int argc, char **argv)
{
	pthread_t threads[MAX_THREADS];
	struct rusage usage;
	double seconds;
	int count;

	if (argc != 3) {
		fprintf(stderr, "usage: burn SECONDS THREADS\n");
		return 64;
	}
	seconds = atof(argv[1]);
	count = atoi(argv[2]);
	if (seconds <= 0 || count < 1 || count > MAX_THREADS) {
		fprintf(stderr, "burn: SECONDS must be positive and THREADS between 1 and %d\n",
			MAX_THREADS);
		return 64;
	}
	deadline_ns = monotonic_ns() + (uint64_t)(seconds * 1e9);

	for (int i = 0; i < count; i++) {
		if (pthread_create(&threads[i], NULL, burn, (void *)(uintptr_t)(i + 1)) != 0) {
			perror("burn: pthread_create");
			return 71;
		}
	}
	for (int i = 0; i < count; i++)
		pthread_join(threads[i], NULL);

	getrusage(RUSAGE_SELF, &usage);
	printf("cpu_ns %lld\n",
	       (long long)(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) * 1000000000 +
		       (long long)(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) * 1000);
	return 0;
}
