/*
 * pingpong HOW SECONDS [one-cpu]: as many short waits as there can be.
 *
 * Two threads pass a turn to each other, over two pipes (HOW `pipe`) or by a futex (`futex`), in
 * pass_pipe() or pass_futex(); with `one-cpu` on the first CPU that they may use, where each turn
 * is two context switches. Beside the lines of waits.h:
 *
 *   pingpong round_trips=N wall_ns=W
 *
 * cc -O2 -g -fomit-frame-pointer -fno-optimize-sibling-calls -pthread pingpong.c -o pingpong
 */
#include "waits.h"

#include <linux/futex.h>
#include <sched.h>
#include <sys/syscall.h>

static int to_pong[2], to_ping[2];
static uint32_t turn;
static int by_futex;
static uint64_t round_trips;

/* Waits for a byte and passes it on; at the end of the pipe, 0. */
static SEEN int pass_pipe(int from, int to)
{
	char byte;

	return read(from, &byte, 1) == 1 && write(to, &byte, 1) == 1;
}

#define OVER 2

/* Waits for its own turn, and makes it the other's; when all is over, 0. */
static SEEN int pass_futex(uint32_t own_turn)
{
	uint32_t now, expected = own_turn;

	while ((now = __atomic_load_n(&turn, __ATOMIC_ACQUIRE)) == !own_turn)
		syscall(SYS_futex, &turn, FUTEX_WAIT_PRIVATE, now, NULL, NULL, 0);
	if (now == OVER || !__atomic_compare_exchange_n(&turn, &expected, !own_turn, 0,
							__ATOMIC_RELEASE, __ATOMIC_RELAXED))
		return 0;
	syscall(SYS_futex, &turn, FUTEX_WAKE_PRIVATE, 1, NULL, NULL, 0);
	return 1;
}

static SEEN void ping(struct party *self)
{
	uint64_t end_ns = self->span.start_ns + duration_ns;

	if (!by_futex && write(to_pong[1], "x", 1) != 1)
		fail("write");
	while (monotonic_ns() < end_ns) {
		if (!(by_futex ? pass_futex(0) : pass_pipe(to_ping[0], to_pong[1])))
			break;
		round_trips++;
	}
	if (by_futex) {
		__atomic_store_n(&turn, OVER, __ATOMIC_SEQ_CST);
		syscall(SYS_futex, &turn, FUTEX_WAKE_PRIVATE, 1, NULL, NULL, 0);
	} else {
		close(to_pong[1]);
	}
}

static SEEN void pong(struct party *self)
{
	(void)self;
	while (by_futex ? pass_futex(1) : pass_pipe(to_pong[0], to_ping[1]))
		;
}

static void use_one_cpu(void)
{
	cpu_set_t allowed, one;
	int cpu = 0;

	if (sched_getaffinity(0, sizeof(allowed), &allowed))
		fail("sched_getaffinity");
	while (!CPU_ISSET(cpu, &allowed))
		cpu++;
	CPU_ZERO(&one);
	CPU_SET(cpu, &one);
	if (sched_setaffinity(0, sizeof(one), &one))
		fail("sched_setaffinity");
}

int main(int argc, char **argv)
{
	struct party parties[2];
	int one_cpu = argc == 4 && strcmp(argv[3], "one-cpu") == 0;

	if (argc != 3 + one_cpu || (strcmp(argv[1], "pipe") && strcmp(argv[1], "futex"))) {
		fprintf(stderr, "usage: pingpong pipe|futex SECONDS [one-cpu]\n");
		return 64;
	}
	by_futex = strcmp(argv[1], "futex") == 0;
	duration_ns = seconds_to_ns(argv[2]);
	if (one_cpu)
		use_one_cpu();
	if (pipe(to_pong) || pipe(to_ping))
		fail("pipe");
	memset(parties, 0, sizeof(parties));
	parties[0].name = "ping";
	parties[0].work = ping;
	parties[1].name = "pong";
	parties[1].work = pong;
	run_parties(parties, 2);
	printf("pingpong round_trips=%llu wall_ns=%llu\n", (unsigned long long)round_trips,
	       (unsigned long long)(parties[0].span.end_ns - parties[0].span.start_ns));
	return 0;
}
