/*
 * cxx_mutex KIND HOLD SECONDS: slow_holder.c with the locks of C++.
 *
 * KIND is `mutex` (std::mutex) or `shared_mutex` (std::shared_mutex, which the holder and two of
 * the threads take for writing, two for reading); HOLD is `busy` or `sleep`. The lock that is used
 * is `the_mutex` or `the_shared_mutex`.
 *
 * g++ -std=c++17 -O2 -g -fomit-frame-pointer -fno-optimize-sibling-calls -pthread cxx_mutex.cpp -o cxx_mutex
 */
#include "contention.h"

#include <mutex>
#include <shared_mutex>

std::mutex the_mutex;
std::shared_mutex the_shared_mutex;
static bool shared;

HIDDEN void acquire(bool reads)
{
	if (!shared)
		the_mutex.lock();
	else if (reads)
		the_shared_mutex.lock_shared();
	else
		the_shared_mutex.lock();
}

HIDDEN void release(bool reads)
{
	if (!shared)
		the_mutex.unlock();
	else if (reads)
		the_shared_mutex.unlock_shared();
	else
		the_shared_mutex.unlock();
}

SEEN void slow_holder()
{
	uint64_t asked_ns = monotonic_ns();
	acquire(false);
	uint64_t got_ns = monotonic_ns();
	hold_slowly();
	uint64_t released_ns = monotonic_ns();
	release(false);
	note_lock(asked_ns, got_ns, released_ns);
}

SEEN void holder_outer()
{
	slow_holder();
}

SEEN void request_path(bool reads)
{
	uint64_t asked_ns = monotonic_ns();
	acquire(reads);
	uint64_t got_ns = monotonic_ns();
	busy_for(MS / 10);
	uint64_t released_ns = monotonic_ns();
	release(reads);
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

int main(int argc, char **argv)
{
	shared = argc == 4 && strcmp(argv[1], "shared_mutex") == 0;
	if (argc != 4 || (!shared && strcmp(argv[1], "mutex") != 0)) {
		fprintf(stderr, "usage: cxx_mutex mutex|shared_mutex busy|sleep SECONDS\n");
		return 64;
	}
	set_hold(argv[2]);
	duration_ns = seconds_to_ns(argv[3]);
	run_contention(holder, request);
	if (shared)
		print_lock("shared_mutex", &the_shared_mutex, sizeof(the_shared_mutex));
	else
		print_lock("mutex", &the_mutex, sizeof(the_mutex));
	return 0;
}
