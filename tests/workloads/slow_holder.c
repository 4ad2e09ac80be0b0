/*
 * slow_holder KIND HOLD SECONDS: a lock whose holder is known.
 *
 * slow_holder(), called by holder_outer(), keeps `the_lock` for 20 ms at a time, in which it
 * computes (HOLD `busy`) or sleeps (`sleep`), and leaves it alone for 5 ms. Four threads want it in
 * request_path(), keep it for 0.1 ms, and sleep for 1 ms. KIND is
 *
 *   mutex      a pthread mutex; adaptive_mutex, one that spins first; pi_mutex, one that inherits
 *              priorities (FUTEX_LOCK_PI)
 *   rwlock     a pthread rwlock; the holder writes, as two of the threads do, two read
 *   sem        a semaphore of one
 *   futex2     a word of its own, by the system calls futex_wait and futex_wake; where the kernel
 *              has none, the program prints "futex2 unsupported"
 *   condvar    instead of all that, four idle workers wait for work on a condition variable, in
 *              wait_for_work(); `dispatcher` gives one of them something to do every 200 ms
 *
 * It prints what contention.h says; for condvar instead
 *
 *   pool mutex=0x... condvar=0x... jobs=N
 *   wait thread=N tid=T function=wait_for_work count=C ns=S
 *
 * cc -O2 -g -fomit-frame-pointer -fno-optimize-sibling-calls -pthread slow_holder.c -o slow_holder
 */
#include "contention.h"

#include <semaphore.h>
#include <sys/syscall.h>

#ifndef SYS_futex_wake
#define SYS_futex_wake 454
#define SYS_futex_wait 455
#endif
/* FUTEX2_SIZE_U32 | FUTEX2_PRIVATE */
#define PRIVATE_U32 (2u | 128u)

enum kind { MUTEX, ADAPTIVE_MUTEX, PI_MUTEX, RWLOCK, SEM, FUTEX2, CONDVAR, KINDS };
static const char *const kinds[KINDS] = { "mutex", "adaptive_mutex", "pi_mutex", "rwlock",
					  "sem",   "futex2",         "condvar" };

union any_lock {
	pthread_mutex_t mutex;
	pthread_rwlock_t rwlock;
	sem_t sem;
	/* 0 free, 1 taken, 2 taken and waited for */
	uint32_t word;
	struct {
		pthread_mutex_t mutex;
		pthread_cond_t cond;
	} pool;
};

union any_lock the_lock;
static enum kind kind;
static const size_t sizes[KINDS] = { sizeof(pthread_mutex_t), sizeof(pthread_mutex_t),
				     sizeof(pthread_mutex_t), sizeof(pthread_rwlock_t),
				     sizeof(sem_t), sizeof(uint32_t),
				     sizeof(the_lock.pool) };

HIDDEN void acquire_word(void)
{
	uint32_t seen = 0;

	if (__atomic_compare_exchange_n(&the_lock.word, &seen, 1, 0, __ATOMIC_ACQUIRE,
					__ATOMIC_RELAXED))
		return;
	while (__atomic_exchange_n(&the_lock.word, 2, __ATOMIC_ACQUIRE) != 0)
		syscall(SYS_futex_wait, &the_lock.word, 2, ~0u, PRIVATE_U32, NULL, CLOCK_MONOTONIC);
}

HIDDEN void release_word(void)
{
	if (__atomic_exchange_n(&the_lock.word, 0, __ATOMIC_RELEASE) == 2)
		syscall(SYS_futex_wake, &the_lock.word, ~0u, 1, PRIVATE_U32);
}

HIDDEN void acquire(int reads)
{
	if (kind == RWLOCK && reads)
		pthread_rwlock_rdlock(&the_lock.rwlock);
	else if (kind == RWLOCK)
		pthread_rwlock_wrlock(&the_lock.rwlock);
	else if (kind == SEM)
		sem_wait(&the_lock.sem);
	else if (kind == FUTEX2)
		acquire_word();
	else
		pthread_mutex_lock(&the_lock.mutex);
}

HIDDEN void release(void)
{
	if (kind == RWLOCK)
		pthread_rwlock_unlock(&the_lock.rwlock);
	else if (kind == SEM)
		sem_post(&the_lock.sem);
	else if (kind == FUTEX2)
		release_word();
	else
		pthread_mutex_unlock(&the_lock.mutex);
}

SEEN void slow_holder(void)
{
	uint64_t asked_ns = monotonic_ns(), got_ns, released_ns;

	acquire(0);
	got_ns = monotonic_ns();
	hold_slowly();
	released_ns = monotonic_ns();
	release();
	note_lock(asked_ns, got_ns, released_ns);
}

SEEN void holder_outer(void)
{
	slow_holder();
}

SEEN void request_path(int reads)
{
	uint64_t asked_ns = monotonic_ns(), got_ns, released_ns;

	acquire(reads);
	got_ns = monotonic_ns();
	busy_for(MS / 10);
	released_ns = monotonic_ns();
	release();
	note_lock(asked_ns, got_ns, released_ns);
}

static SEEN void holder(struct party *self)
{
	own = &lockers[self - lock_parties];
	while (!is_over(self)) {
		holder_outer();
		between_holds();
	}
}

static SEEN void request(struct party *self)
{
	long index = self - lock_parties;

	own = &lockers[index];
	while (!is_over(self)) {
		request_path(index % 2);
		between_requests();
	}
}

/* The idle pool. */
static int jobs_waiting;
static int jobs_given;
static int is_closed;
static struct wait_site idle[LOCKERS];

/* Whether there is something to do. */
static SEEN int wait_for_work(void)
{
	int found;

	pthread_mutex_lock(&the_lock.pool.mutex);
	while (!jobs_waiting && !is_closed)
		pthread_cond_wait(&the_lock.pool.cond, &the_lock.pool.mutex);
	found = jobs_waiting > 0;
	jobs_waiting -= found;
	pthread_mutex_unlock(&the_lock.pool.mutex);
	return found;
}

static SEEN void worker(struct party *self)
{
	struct wait_site *site = &idle[self - lock_parties];
	int found;

	site->function = "wait_for_work";
	do {
		uint64_t since_ns = monotonic_ns();

		found = wait_for_work();
		site->count++;
		site->ns += monotonic_ns() - since_ns;
		if (found)
			busy_for(MS);
	} while (found);
}

static SEEN void dispatcher(struct party *self)
{
	while (!is_over(self)) {
		sleep_ns(200 * MS);
		pthread_mutex_lock(&the_lock.pool.mutex);
		jobs_waiting++;
		jobs_given++;
		pthread_cond_signal(&the_lock.pool.cond);
		pthread_mutex_unlock(&the_lock.pool.mutex);
	}
	pthread_mutex_lock(&the_lock.pool.mutex);
	is_closed = 1;
	pthread_cond_broadcast(&the_lock.pool.cond);
	pthread_mutex_unlock(&the_lock.pool.mutex);
}

static void run_pool(void)
{
	static const char *const names[LOCKERS] = { "dispatcher", "worker_0", "worker_1",
						    "worker_2", "worker_3" };

	for (int i = 0; i < LOCKERS; i++) {
		lock_parties[i].name = names[i];
		lock_parties[i].work = i ? worker : dispatcher;
	}
	run_parties(lock_parties, LOCKERS);
	printf("pool mutex=0x%llx condvar=0x%llx jobs=%d\n",
	       (unsigned long long)(uintptr_t)&the_lock.pool.mutex,
	       (unsigned long long)(uintptr_t)&the_lock.pool.cond, jobs_given);
	for (int i = 1; i < LOCKERS; i++)
		print_site(names[i], lock_parties[i].tid, &idle[i]);
}

static void make_lock(void)
{
	pthread_mutexattr_t attributes;

	pthread_mutexattr_init(&attributes);
	if (kind == ADAPTIVE_MUTEX)
		pthread_mutexattr_settype(&attributes, PTHREAD_MUTEX_ADAPTIVE_NP);
	if (kind == PI_MUTEX)
		pthread_mutexattr_setprotocol(&attributes, PTHREAD_PRIO_INHERIT);
	if (kind == RWLOCK)
		pthread_rwlock_init(&the_lock.rwlock, NULL);
	else if (kind == SEM)
		sem_init(&the_lock.sem, 0, 1);
	else if (kind != FUTEX2)
		pthread_mutex_init(&the_lock.mutex, &attributes);
	if (kind == CONDVAR)
		pthread_cond_init(&the_lock.pool.cond, NULL);
}

int main(int argc, char **argv)
{
	while (argc == 4 && kind < KINDS && strcmp(argv[1], kinds[kind]) != 0)
		kind++;
	if (argc != 4 || kind == KINDS) {
		fprintf(stderr, "usage: slow_holder KIND busy|sleep SECONDS\n");
		return 64;
	}
	set_hold(argv[2]);
	duration_ns = seconds_to_ns(argv[3]);
	if (kind == FUTEX2 && syscall(SYS_futex_wake, &the_lock.word, ~0u, 1, PRIVATE_U32) < 0) {
		printf("futex2 unsupported\n");
		return 0;
	}
	make_lock();
	if (kind == CONDVAR) {
		run_pool();
		return 0;
	}
	run_contention(holder, request);
	print_lock(kinds[kind], &the_lock, sizes[kind]);
	return 0;
}
