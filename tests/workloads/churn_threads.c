/*
 * churn_threads THREADS SECONDS: threads that are soon gone.
 *
 * Spreads THREADS threads evenly over SECONDS, each of which sleeps for 0.2 ms and waits for 0.2 ms
 * on a futex of its own that nobody wakes, in brief_waits(). At most 64 live at a time. Starts as
 * waits.h says, without named threads. At the end:
 *
 *   churn created=N joined=N wall_ns=W
 *
 * cc -O2 -g -fomit-frame-pointer -fno-optimize-sibling-calls -pthread churn_threads.c -o churn_threads
 */
#include "waits.h"

#include <linux/futex.h>
#include <sys/syscall.h>

#define MAX_ALIVE 64
#define BRIEF_NS 200000

static SEEN void brief_waits(void)
{
	uint32_t word = 1;
	struct timespec timeout = { 0, BRIEF_NS };

	sleep_ns(BRIEF_NS);
	syscall(SYS_futex, &word, FUTEX_WAIT_PRIVATE, 1, &timeout, NULL, 0);
}

static SEEN void *brief_thread(void *argument)
{
	brief_waits();
	return argument;
}

int main(int argc, char **argv)
{
	pthread_t alive[MAX_ALIVE];
	long threads = argc == 3 ? atol(argv[1]) : 0, created = 0, joined = 0;
	uint64_t start_ns;

	if (threads < 1) {
		fprintf(stderr, "usage: churn_threads THREADS SECONDS\n");
		return 64;
	}
	duration_ns = seconds_to_ns(argv[2]);
	make_start_gate();
	printf("ready pid=%d threads=\n", (int)getpid());
	start_on_stdin();
	start_ns = monotonic_ns();
	while (joined < threads) {
		uint64_t due_ns = start_ns + (uint64_t)((double)created / threads * duration_ns);
		uint64_t now_ns = monotonic_ns();
		int is_due = created < threads && now_ns >= due_ns;

		if (is_due && created - joined < MAX_ALIVE) {
			errno = pthread_create(&alive[created % MAX_ALIVE], NULL, brief_thread,
					       NULL);
			if (errno)
				fail("pthread_create");
			created++;
		} else if (joined < created) {
			pthread_join(alive[joined++ % MAX_ALIVE], NULL);
		} else {
			sleep_ns(due_ns - now_ns);
		}
	}
	printf("churn created=%ld joined=%ld wall_ns=%llu\n", created, joined,
	       (unsigned long long)(monotonic_ns() - start_ns));
	return 0;
}
