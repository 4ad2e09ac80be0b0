/*
 * brief [MILLISECONDS]: a process that is gone before anybody can look at it.
 *
 * It spends 50 ms (or MILLISECONDS) of CPU time, all but its start-up in
 * brief_work(), and exits. Run in a row it shows whether a profiler names
 * short-lived processes and resolves their frames.
 *
 * cc -O2 -g -fno-omit-frame-pointer -mno-omit-leaf-frame-pointer brief.c -o brief
 */
#define _GNU_SOURCE
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

/* Compilers leave the frame out of a leaf function that needs no stack, even when told
 * to keep frame pointers; its caller would then be missing from the stacks. */
#define KEEP_FRAME() __asm__ volatile("" : : "r"(__builtin_frame_address(0)))

static volatile uint64_t sink;

static uint64_t cpu_ns(void)
{
	struct timespec used;

	clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &used);
	return (uint64_t)used.tv_sec * 1000000000u + (uint64_t)used.tv_nsec;
}

/* About half a millisecond a call, so that asking for the time costs nothing. */
__attribute__((noinline)) uint64_t brief_work(uint64_t x)
{
	KEEP_FRAME();
	for (uint64_t i = 0; i < 300000; i++)
		x = x * 6364136223846793005u + 1442695040888963407u;
	return x;
}

int main(int argc, char **argv)
{
	uint64_t budget_ns = 50000000;
	uint64_t x = 1;

	if (argc > 2 || (argc == 2 && atoi(argv[1]) < 1)) {
		fprintf(stderr, "usage: brief [MILLISECONDS]\n");
		return 64;
	}
	if (argc == 2)
		budget_ns = (uint64_t)atoi(argv[1]) * 1000000;

	while (cpu_ns() < budget_ns)
		x = brief_work(x);
	sink = x;
	return 0;
}
