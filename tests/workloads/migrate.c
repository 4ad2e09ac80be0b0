/*
 * migrate SECONDS MEAN_US TID...: moves threads from CPU to CPU, all the time.
 *
 * Each MEAN_US microseconds, give or take half of it, each thread may run on one CPU only, a
 * random one of those that this program may use: also in mid-wait. At the end each may use all of
 * them again. Threads that are gone are left alone; with none left it ends. Starts as waits.h says.
 * At the end:
 *
 *   migrate moves=N elsewhere=N gone=N
 *
 * where `elsewhere` counts moves to another CPU than the one before.
 *
 * cc -O2 -g -fomit-frame-pointer migrate.c -o migrate
 */
#include "waits.h"

#include <sched.h>

#define MAX_THREADS 256

int main(int argc, char **argv)
{
	int cpus[CPU_SETSIZE], last[MAX_THREADS], count = 0, alive = argc - 3;
	pid_t tids[MAX_THREADS];
	unsigned long long moves = 0, elsewhere = 0, gone = 0;
	uint64_t mean_ns, end_ns, random = 1;
	cpu_set_t allowed;

	if (argc < 4 || alive > MAX_THREADS) {
		fprintf(stderr, "usage: migrate SECONDS MEAN_US TID...\n");
		return 64;
	}
	duration_ns = seconds_to_ns(argv[1]);
	mean_ns = (uint64_t)(atof(argv[2]) * 1000);
	for (int i = 0; i < alive; i++) {
		tids[i] = atoi(argv[3 + i]);
		last[i] = -1;
	}
	if (sched_getaffinity(0, sizeof(allowed), &allowed))
		fail("sched_getaffinity");
	for (int cpu = 0; cpu < CPU_SETSIZE; cpu++)
		if (CPU_ISSET(cpu, &allowed))
			cpus[count++] = cpu;
	make_start_gate();
	printf("ready pid=%d threads=\n", (int)getpid());
	start_on_stdin();
	end_ns = monotonic_ns() + duration_ns;
	while (monotonic_ns() < end_ns && alive > 0) {
		for (int i = 0; i < alive; i++) {
			cpu_set_t one;
			int cpu;

			random = random * 6364136223846793005u + 1442695040888963407u;
			cpu = cpus[(random >> 33) % (unsigned)count];
			CPU_ZERO(&one);
			CPU_SET(cpu, &one);
			if (sched_setaffinity(tids[i], sizeof(one), &one) == 0) {
				moves++;
				elsewhere += last[i] >= 0 && last[i] != cpu;
				last[i] = cpu;
			} else if (errno == ESRCH) {
				gone++;
				alive--;
				tids[i] = tids[alive];
				last[i] = last[alive];
				i--;
			} else {
				fail("sched_setaffinity");
			}
		}
		random = random * 6364136223846793005u + 1442695040888963407u;
		sleep_ns(mean_ns / 2 + (random >> 33) % (mean_ns + 1));
	}
	for (int i = 0; i < alive; i++)
		sched_setaffinity(tids[i], sizeof(allowed), &allowed);
	printf("migrate moves=%llu elsewhere=%llu gone=%llu\n", moves, elsewhere, gone);
	return 0;
}
