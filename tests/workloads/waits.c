/*
 * waits SECONDS FILE [busy]: five threads with known waits, and two that compute.
 *
 *   sleeper            sleeps for 50 ms, again and again, in wait_in_sleep()
 *   reader             reads from a pipe, in wait_in_pipe(), that another process feeds every 20 ms
 *   direct             reads FILE past the page cache, in wait_in_direct_read()
 *   mutex_a, mutex_b   keep a mutex for 5 and 3 ms, one of which they compute and the others sleep
 *                      in hold_mutex(); they wait for it in wait_in_mutex() and sleep for 1 ms in
 *                      between, in leave_mutex()
 *
 *
 * and with "busy"
 *
 *   busy               computes all the time, in compute()
 *   half_busy          computes for 20 ms, sleeps for 20 ms in rest(), and so on
 *
 * FILE is created if it does not exist. Where it cannot be read past the page cache the program
 * prints "direct unsupported", and nothing else about that thread. Beside the lines of waits.h:
 *
 *   feeder pid=P
 *   mutex address=0x...
 *   wait thread=N tid=T function=F count=C ns=S     the time from before each call to after it
 *
 * cc -O2 -g -fomit-frame-pointer -fno-optimize-sibling-calls -pthread waits.c -o waits
 */
#include "waits.h"

#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>

#define FILE_SIZE (16u << 20)
#define READ_SIZE (64u << 10)

pthread_mutex_t shared_mutex = PTHREAD_MUTEX_INITIALIZER;

static int pipe_ends[2];
static int direct_fd;
static char *direct_buffer;
static int direct_is_unsupported;

enum { SLEEP, PIPE, DIRECT, LOCK, HOLD, LEAVE, REST, SITES };
enum { SLEEPER, READER, DIRECT_READER, MUTEX_A, MUTEX_B, BUSY, HALF_BUSY, THREADS };
static struct wait_site sites[THREADS][SITES];

static inline void add(struct wait_site *site, const char *function, uint64_t since_ns)
{
	site->function = function;
	site->count++;
	site->ns += monotonic_ns() - since_ns;
}

static SEEN void wait_in_sleep(void)
{
	sleep_ns(50 * MS);
}

static SEEN void wait_in_pipe(void)
{
	char byte;

	if (read(pipe_ends[0], &byte, 1) != 1)
		fail("the feeder is gone");
}

static SEEN void wait_in_direct_read(uint64_t offset)
{
	if (pread(direct_fd, direct_buffer, READ_SIZE, (off_t)offset) < 0) {
		if (errno != EINVAL)
			fail("pread");
		direct_is_unsupported = 1;
	}
}

static SEEN void wait_in_mutex(void)
{
	pthread_mutex_lock(&shared_mutex);
}

static SEEN void hold_mutex(uint64_t ns)
{
	busy_for(MS);
	sleep_ns(ns - MS);
}

static SEEN void leave_mutex(void)
{
	sleep_ns(MS);
}

static SEEN void compute(uint64_t ns)
{
	busy_for(ns);
}

static SEEN void rest(void)
{
	sleep_ns(20 * MS);
}

static inline int is_over(const struct party *self)
{
	return monotonic_ns() >= self->span.start_ns + duration_ns;
}

static SEEN void sleeper(struct party *self)
{
	while (!is_over(self)) {
		uint64_t since_ns = monotonic_ns();

		wait_in_sleep();
		add(&sites[SLEEPER][SLEEP], "wait_in_sleep", since_ns);
	}
}

static SEEN void reader(struct party *self)
{
	while (!is_over(self)) {
		uint64_t since_ns = monotonic_ns();

		wait_in_pipe();
		add(&sites[READER][PIPE], "wait_in_pipe", since_ns);
	}
}

static SEEN void direct(struct party *self)
{
	uint64_t random = 1;

	while (!is_over(self) && !direct_is_unsupported) {
		uint64_t since_ns = monotonic_ns();

		random = random * 6364136223846793005u + 1442695040888963407u;
		wait_in_direct_read((random >> 33) % (FILE_SIZE / READ_SIZE) * READ_SIZE);
		add(&sites[DIRECT_READER][DIRECT], "wait_in_direct_read", since_ns);
	}
	self->silent = direct_is_unsupported;
}

static SEEN void share_mutex(struct party *self, struct wait_site *own, uint64_t hold_ns)
{
	while (!is_over(self)) {
		uint64_t since_ns = monotonic_ns();

		wait_in_mutex();
		add(&own[LOCK], "wait_in_mutex", since_ns);
		since_ns = monotonic_ns();
		hold_mutex(hold_ns);
		add(&own[HOLD], "hold_mutex", since_ns);
		pthread_mutex_unlock(&shared_mutex);
		since_ns = monotonic_ns();
		leave_mutex();
		add(&own[LEAVE], "leave_mutex", since_ns);
	}
}

static SEEN void mutex_a(struct party *self)
{
	share_mutex(self, sites[MUTEX_A], 5 * MS);
}

static SEEN void mutex_b(struct party *self)
{
	share_mutex(self, sites[MUTEX_B], 3 * MS);
}

static SEEN void busy(struct party *self)
{
	while (!is_over(self))
		compute(20 * MS);
}

static SEEN void half_busy(struct party *self)
{
	while (!is_over(self)) {
		uint64_t since_ns;

		compute(20 * MS);
		since_ns = monotonic_ns();
		rest();
		add(&sites[HALF_BUSY][REST], "rest", since_ns);
	}
}

/* Feeds the pipe every 20 ms, not later for being late once, until nobody reads it. */
static void feed(void)
{
	struct timespec next;

	prctl(PR_SET_NAME, "feeder");
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	wait_for_start();
	clock_gettime(CLOCK_MONOTONIC, &next);
	for (;;) {
		next.tv_nsec += 20 * MS;
		if (next.tv_nsec >= 1000000000) {
			next.tv_nsec -= 1000000000;
			next.tv_sec++;
		}
		clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &next, NULL);
		if (write(pipe_ends[1], "x", 1) != 1)
			_exit(0);
	}
}

static pid_t start_feeder(void)
{
	pid_t pid;

	make_start_gate();
	if (pipe(pipe_ends))
		fail("pipe");
	pid = fork();
	if (pid < 0)
		fail("fork");
	if (pid == 0) {
		close(pipe_ends[0]);
		close(start_gate[1]);
		feed();
	}
	close(pipe_ends[1]);
	return pid;
}

/* A file that others have made is only read. */
static void open_direct(const char *path)
{
	int fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);

	errno = posix_memalign((void **)&direct_buffer, 4096, READ_SIZE);
	if (errno)
		fail("posix_memalign");
	memset(direct_buffer, 1, READ_SIZE);
	if (fd >= 0) {
		for (unsigned written = 0; written < FILE_SIZE; written += READ_SIZE)
			if (write(fd, direct_buffer, READ_SIZE) != READ_SIZE)
				fail(path);
		if (fsync(fd))
			fail(path);
		close(fd);
	}
	direct_fd = open(path, O_RDONLY | O_DIRECT | O_CLOEXEC);
	if (direct_fd < 0 && errno == EINVAL)
		direct_is_unsupported = 1;
	else if (direct_fd < 0)
		fail(path);
}

int main(int argc, char **argv)
{
	struct party parties[THREADS];
	void (*const work[THREADS])(struct party *) = {
		sleeper, reader, direct, mutex_a, mutex_b, busy, half_busy,
	};
	const char *const names[THREADS] = {
		"sleeper", "reader", "direct", "mutex_a", "mutex_b", "busy", "half_busy",
	};
	int is_busy = argc == 4 && strcmp(argv[3], "busy") == 0;
	int count = is_busy ? THREADS : BUSY;
	pid_t feeder;

	if (argc != 3 && !is_busy) {
		fprintf(stderr, "usage: waits SECONDS FILE [busy]\n");
		return 64;
	}
	duration_ns = seconds_to_ns(argv[1]);
	open_direct(argv[2]);
	feeder = start_feeder();
	printf("feeder pid=%d\n", (int)feeder);
	printf("mutex address=0x%llx\n", (unsigned long long)(uintptr_t)&shared_mutex);
	memset(parties, 0, sizeof(parties));
	for (int i = 0; i < count; i++) {
		parties[i].name = names[i];
		parties[i].work = work[i];
	}
	run_parties(parties, count);
	kill(feeder, SIGKILL);
	waitpid(feeder, NULL, 0);
	for (int i = 0; i < count; i++)
		for (int site = 0; site < SITES; site++)
			if (sites[i][site].count && !parties[i].silent)
				print_site(names[i], parties[i].tid, &sites[i][site]);
	if (direct_is_unsupported)
		printf("direct unsupported\n");
	return 0;
}
