/*
 * What workloads with known waits share: clocks, threads that begin together, and how they tell
 * the truth about themselves.
 *
 * Such a program prints "ready pid=P threads=NAME:TID,NAME:TID" once its threads exist. They wait
 * in wait_for_start() until there is a line on stdin, or its end; there each one's span begins. At
 * the end it prints lines of a word and key=value pairs, of which all have one of these for each
 * thread or process that matters:
 *
 *   thread name=N tid=T wall_ns=W cpu_ns=C start_ns=S end_ns=E run_delay_ns=R voluntary=V
 *          involuntary=I
 *
 * wall_ns = end_ns - start_ns, by CLOCK_MONOTONIC; cpu_ns is CLOCK_THREAD_CPUTIME_ID and
 * run_delay_ns the time on a run queue as the kernel has it (/proc/thread-self/schedstat), over
 * that span; voluntary and involuntary are context switches. Written to be compiled as C and as C++.
 */
#ifndef WAITS_H
#define WAITS_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

/* A function that is to be seen in stacks, as it is written. */
#define SEEN __attribute__((noipa)) /* implies noinline */
/* Helpers that are not. */
#define HIDDEN static inline __attribute__((always_inline))

#define MS 1000000ull

/* How often something waited, and how long altogether: from before the call to after it. */
struct wait_site {
	const char *function;
	uint64_t count, ns;
};

struct span {
	uint64_t start_ns, end_ns, cpu_ns, run_delay_ns;
	long voluntary, involuntary;
};

/* A thread that takes part. */
struct party {
	const char *name;
	void (*work)(struct party *self);
	pid_t tid;
	struct span span;
	/* Nothing to tell. */
	int silent;
};

/* How long each thread goes on, from the beginning of its span. */
static uint64_t duration_ns __attribute__((unused));

HIDDEN uint64_t clock_ns(clockid_t clock)
{
	struct timespec now;

	clock_gettime(clock, &now);
	return (uint64_t)now.tv_sec * 1000000000ull + (uint64_t)now.tv_nsec;
}

HIDDEN uint64_t monotonic_ns(void)
{
	return clock_ns(CLOCK_MONOTONIC);
}

HIDDEN void sleep_ns(uint64_t ns)
{
	struct timespec time;

	time.tv_sec = (time_t)(ns / 1000000000u);
	time.tv_nsec = (long)(ns % 1000000000u);
	nanosleep(&time, NULL);
}

/* Keeps a CPU busy for this long by the clock on the wall. */
static SEEN __attribute__((unused)) void busy_for(uint64_t ns)
{
	uint64_t end_ns = monotonic_ns() + ns;

	while (monotonic_ns() < end_ns)
		;
}

static inline void fail(const char *what)
{
	perror(what);
	exit(1);
}

static inline uint64_t run_delay_ns(void)
{
	unsigned long long cpu_ns, delay_ns = 0;
	FILE *file = fopen("/proc/thread-self/schedstat", "r");

	if (file) {
		if (fscanf(file, "%llu %llu", &cpu_ns, &delay_ns) != 2)
			delay_ns = 0;
		fclose(file);
	}
	return delay_ns;
}

/* What takes time itself is outside of the two clocks. */
static inline void span_begin(struct span *span)
{
	struct rusage usage;

	getrusage(RUSAGE_THREAD, &usage);
	span->voluntary = usage.ru_nvcsw;
	span->involuntary = usage.ru_nivcsw;
	span->run_delay_ns = run_delay_ns();
	span->cpu_ns = clock_ns(CLOCK_THREAD_CPUTIME_ID);
	span->start_ns = monotonic_ns();
}

static inline void span_end(struct span *span)
{
	struct rusage usage;

	span->end_ns = monotonic_ns();
	span->cpu_ns = clock_ns(CLOCK_THREAD_CPUTIME_ID) - span->cpu_ns;
	span->run_delay_ns = run_delay_ns() - span->run_delay_ns;
	getrusage(RUSAGE_THREAD, &usage);
	span->voluntary = usage.ru_nvcsw - span->voluntary;
	span->involuntary = usage.ru_nivcsw - span->involuntary;
}

static inline void print_thread(const char *name, pid_t tid, const struct span *span)
{
	printf("thread name=%s tid=%d wall_ns=%llu cpu_ns=%llu start_ns=%llu end_ns=%llu "
	       "run_delay_ns=%llu voluntary=%ld involuntary=%ld\n",
	       name, (int)tid, (unsigned long long)(span->end_ns - span->start_ns),
	       (unsigned long long)span->cpu_ns, (unsigned long long)span->start_ns,
	       (unsigned long long)span->end_ns, (unsigned long long)span->run_delay_ns,
	       span->voluntary, span->involuntary);
}

static inline void print_site(const char *thread, pid_t tid, const struct wait_site *site)
{
	printf("wait thread=%s tid=%d function=%s count=%llu ns=%llu\n", thread, (int)tid,
	       site->function, (unsigned long long)site->count, (unsigned long long)site->ns);
}

static inline uint64_t seconds_to_ns(const char *seconds)
{
	double value = atof(seconds);

	if (!(value > 0 && value < 1e6)) {
		fprintf(stderr, "not a number of seconds: %s\n", seconds);
		exit(64);
	}
	return (uint64_t)(value * 1e9);
}

/* Nobody writes to it; it ends when all are to begin. Not a lock, which would be seen as one. */
static int start_gate[2];
static int arrived;

/* Forked processes wait at it too, if it is made before them and they close their start_gate[1]. */
static inline void make_start_gate(void)
{
	if (start_gate[1] == 0 && pipe(start_gate))
		fail("pipe");
}

static SEEN void wait_for_start(void)
{
	char byte;

	while (read(start_gate[0], &byte, 1) < 0 && errno == EINTR)
		;
}

/* Waits for a line on stdin, or its end, and lets everybody begin. */
static inline void start_on_stdin(void)
{
	char byte;

	fflush(stdout);
	while (read(STDIN_FILENO, &byte, 1) == 1 && byte != '\n')
		;
	close(start_gate[1]);
}

static SEEN void *party_thread(void *argument)
{
	struct party *self = (struct party *)argument;

	self->tid = gettid();
	pthread_setname_np(pthread_self(), self->name);
	__atomic_add_fetch(&arrived, 1, __ATOMIC_SEQ_CST);
	wait_for_start();
	span_begin(&self->span);
	self->work(self);
	span_end(&self->span);
	return NULL;
}

#define MAX_PARTIES 64

/* Runs them all from the start on stdin to their ends, and prints their spans. */
static inline void run_parties(struct party *parties, int count)
{
	pthread_t threads[MAX_PARTIES];

	make_start_gate();
	for (int i = 0; i < count; i++) {
		errno = pthread_create(&threads[i], NULL, party_thread, &parties[i]);
		if (errno)
			fail("pthread_create");
	}
	while (__atomic_load_n(&arrived, __ATOMIC_SEQ_CST) < count)
		sleep_ns(MS);
	printf("ready pid=%d threads=", (int)getpid());
	for (int i = 0; i < count; i++)
		printf("%s%s:%d", i ? "," : "", parties[i].name, (int)parties[i].tid);
	printf("\n");
	start_on_stdin();
	for (int i = 0; i < count; i++)
		pthread_join(threads[i], NULL);
	for (int i = 0; i < count; i++)
		if (!parties[i].silent)
			print_thread(parties[i].name, parties[i].tid, &parties[i].span);
}

#endif
