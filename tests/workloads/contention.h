/*
 * One lock that slow_holder() keeps for 20 ms at a time, and four threads that want it: what
 * happened, as the program itself saw it.
 *
 * A program says what its lock is in acquire() and release(), which are to be inlined into
 * slow_holder() and request_path(), and names both in run_contention(). Beside the lines of
 * waits.h it prints
 *
 *   lock kind=K address=0x... size=B wait_ns=W hold_ns=H slow_ns=S
 *   locker thread=N tid=T function=F acquisitions=A wait_ns=W max_wait_ns=M hold_ns=H slow_ns=S
 *
 * the second for each thread. wait_ns is the time in acquire(), hold_ns that from its end to the
 * beginning of release(), slow_ns the part of wait_ns in which slow_holder() held the lock. The
 * lock's own are those of the request threads, but for hold_ns, which is slow_holder()'s.
 */
#ifndef CONTENTION_H
#define CONTENTION_H

#include "waits.h"

#define REQUESTS 4
#define LOCKERS (1 + REQUESTS)
#define HOLD_NS (20 * MS)
#define MAX_INTERVALS (1u << 18)

struct interval {
	uint64_t from_ns, to_ns;
};

/* What a thread did with the lock. The first is the slow holder. */
struct locker {
	const char *function;
	uint64_t acquisitions, wait_ns, max_wait_ns, hold_ns;
	struct interval *waits, *holds;
};

static struct locker lockers[LOCKERS];
static struct party lock_parties[LOCKERS];
static int holder_sleeps;

/* The calling thread's. */
static __thread struct locker *own;

/* From asking to having, and to just before giving back: that wakes others. */
static inline void note_lock(uint64_t asked_ns, uint64_t got_ns, uint64_t released_ns)
{
	uint64_t index = own->acquisitions++;

	if (index >= MAX_INTERVALS) {
		fprintf(stderr, "more than %u acquisitions\n", MAX_INTERVALS);
		exit(1);
	}
	own->wait_ns += got_ns - asked_ns;
	own->hold_ns += released_ns - got_ns;
	if (got_ns - asked_ns > own->max_wait_ns)
		own->max_wait_ns = got_ns - asked_ns;
	own->waits[index].from_ns = asked_ns;
	own->waits[index].to_ns = got_ns;
	own->holds[index].from_ns = got_ns;
	own->holds[index].to_ns = released_ns;
}

/* How long slow_holder() keeps what it has. */
static inline void hold_slowly(void)
{
	if (holder_sleeps)
		sleep_ns(HOLD_NS);
	else
		busy_for(HOLD_NS);
}

/* Outside of the lock. */
static SEEN void between_requests(void)
{
	sleep_ns(MS);
}

static SEEN void between_holds(void)
{
	sleep_ns(5 * MS);
}

static inline int is_over(const struct party *self)
{
	return monotonic_ns() >= self->span.start_ns + duration_ns;
}

/* Both are sorted, and none of one list overlaps another of it. */
static inline uint64_t overlap_ns(const struct locker *waiter, const struct locker *holder)
{
	uint64_t sum_ns = 0, hold = 0;

	for (uint64_t wait = 0; wait < waiter->acquisitions; wait++) {
		const struct interval *waited = &waiter->waits[wait];

		while (hold < holder->acquisitions && holder->holds[hold].to_ns <= waited->from_ns)
			hold++;
		for (uint64_t next = hold; next < holder->acquisitions; next++) {
			const struct interval *held = &holder->holds[next];
			uint64_t from_ns = held->from_ns, to_ns = held->to_ns;

			if (from_ns >= waited->to_ns)
				break;
			from_ns = from_ns > waited->from_ns ? from_ns : waited->from_ns;
			to_ns = to_ns < waited->to_ns ? to_ns : waited->to_ns;
			sum_ns += to_ns - from_ns;
		}
	}
	return sum_ns;
}

static inline void print_lock(const char *kind, const volatile void *lock, size_t size)
{
	uint64_t wait_ns = 0, slow_ns = 0, slow[LOCKERS] = { 0 };

	for (int i = 1; i < LOCKERS; i++) {
		slow[i] = overlap_ns(&lockers[i], &lockers[0]);
		wait_ns += lockers[i].wait_ns;
		slow_ns += slow[i];
	}
	printf("lock kind=%s address=0x%llx size=%llu wait_ns=%llu hold_ns=%llu slow_ns=%llu\n",
	       kind, (unsigned long long)(uintptr_t)lock, (unsigned long long)size,
	       (unsigned long long)wait_ns, (unsigned long long)lockers[0].hold_ns,
	       (unsigned long long)slow_ns);
	for (int i = 0; i < LOCKERS; i++)
		printf("locker thread=%s tid=%d function=%s acquisitions=%llu wait_ns=%llu "
		       "max_wait_ns=%llu hold_ns=%llu slow_ns=%llu\n",
		       lock_parties[i].name, (int)lock_parties[i].tid, lockers[i].function,
		       (unsigned long long)lockers[i].acquisitions,
		       (unsigned long long)lockers[i].wait_ns,
		       (unsigned long long)lockers[i].max_wait_ns,
		       (unsigned long long)lockers[i].hold_ns, (unsigned long long)slow[i]);
}

/* Runs the holder and the requests to their ends. */
static inline void run_contention(void (*holder)(struct party *), void (*request)(struct party *))
{
	static const char *const names[LOCKERS] = { "holder", "request_0", "request_1",
						    "request_2", "request_3" };

	for (int i = 0; i < LOCKERS; i++) {
		size_t size = MAX_INTERVALS * sizeof(struct interval);

		lockers[i].function = i ? "request_path" : "slow_holder";
		lockers[i].waits = (struct interval *)malloc(size);
		lockers[i].holds = (struct interval *)malloc(size);
		if (!lockers[i].waits || !lockers[i].holds)
			fail("malloc");
		lock_parties[i].name = names[i];
		lock_parties[i].work = i ? request : holder;
	}
	run_parties(lock_parties, LOCKERS);
}

/* `busy` or `sleep` */
static inline void set_hold(const char *hold)
{
	holder_sleeps = strcmp(hold, "sleep") == 0;
	if (!holder_sleeps && strcmp(hold, "busy") != 0) {
		fprintf(stderr, "the holder is `busy` or does `sleep`, not `%s`\n", hold);
		exit(64);
	}
}

#endif
