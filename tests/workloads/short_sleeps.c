/*
 * short_sleeps SECONDS: four threads that sleep for half a millisecond at a time, in short_sleep().
 *
 * Says what waits.h says. The sleeps are short for a profiler but long for the scheduler: a thread
 * that wakes an idle CPU is charged for CPU time from when it is in the queue, some microseconds
 * before it runs, as the kernel then saves itself a look at the clock.
 *
 * cc -O2 -g -fomit-frame-pointer -fno-optimize-sibling-calls -pthread short_sleeps.c -o short_sleeps
 */
#include "waits.h"

#define THREADS 4

static SEEN void short_sleep(void)
{
	sleep_ns(MS / 2);
}

static SEEN void short_sleeper(struct party *self)
{
	while (monotonic_ns() < self->span.start_ns + duration_ns)
		short_sleep();
}

int main(int argc, char **argv)
{
	static const char *const names[THREADS] = { "short_0", "short_1", "short_2", "short_3" };
	struct party parties[THREADS];

	if (argc != 2) {
		fprintf(stderr, "usage: short_sleeps SECONDS\n");
		return 64;
	}
	duration_ns = seconds_to_ns(argv[1]);
	memset(parties, 0, sizeof(parties));
	for (int i = 0; i < THREADS; i++) {
		parties[i].name = names[i];
		parties[i].work = short_sleeper;
	}
	run_parties(parties, THREADS);
	return 0;
}
