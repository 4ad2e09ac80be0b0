/*
 * odd_frames WHAT SECONDS: functions whose frames are described in unusual ways.
 *
 *   realign    burn < realigned < main: locals aligned to 64 bytes, so that the caller's frame is
 *              found through a saved pointer (a DWARF expression)
 *   alloca     burn < variable < main: a frame whose size changes in a loop
 *   pushes     burn < pushing < main: arguments on the stack, pushed between calls
 *   noreturn   burn < never_returns < ends_with_call < main: the last instruction of
 *              ends_with_call is a call, so its return address lies in the next function,
 *              whose frame is another
 *   vdso       the vDSO < clock_gettime < asks_the_time < main
 *
 * Prints "READY" when it begins.
 *
 * cc -O2 -g -fomit-frame-pointer -fno-optimize-sibling-calls -falign-functions=1 -mforce-drap -fno-toplevel-reorder -fno-reorder-functions odd_frames.c -o odd_frames
 */
#define _GNU_SOURCE
#include <alloca.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static uint64_t deadline_ns;
static volatile uint64_t sink;

static uint64_t monotonic_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

__attribute__((noipa)) uint64_t burn(uint64_t x)
{
	for (int i = 0; i < 60000; i++)
		x = x * 6364136223846793005u + 1442695040888963407u;
	return x;
}

__attribute__((noipa)) uint64_t realigned(uint64_t x)
{
	_Alignas(64) volatile char room[128];

	room[x & 127] = (char)x;
	return burn(x) + (uint64_t)room[0];
}

__attribute__((noipa)) uint64_t variable(uint64_t x)
{
	uint64_t sum = 0;

	for (uint64_t size = 16; size < 4096; size *= 3) {
		volatile char *room = alloca(size + (x & 63));

		room[0] = (char)x;
		sum += burn(x) + (uint64_t)room[0];
	}
	return sum;
}

__attribute__((noipa)) uint64_t takes_ten(uint64_t a, uint64_t b, uint64_t c, uint64_t d, uint64_t e,
					  uint64_t f, uint64_t g, uint64_t h, uint64_t i, uint64_t j)
{
	return a + b + c + d + e + f + g + h + i + j;
}

__attribute__((noipa)) uint64_t pushing(uint64_t x)
{
	return takes_ten(x, 1, 2, 3, 4, 5, 6, burn(x), burn(x + 1), burn(x + 2));
}

__attribute__((noipa, noreturn)) void never_returns(uint64_t x)
{
	while (monotonic_ns() < deadline_ns)
		x = burn(x);
	sink = x;
	exit(0);
}

__attribute__((noipa)) void ends_with_call(uint64_t x)
{
	volatile uint64_t room[25];

	room[0] = x;
	never_returns(room[0]);
}

/* Follows ends_with_call without a gap; must never be seen. */
__attribute__((noipa)) uint64_t next_function(uint64_t x)
{
	return x + 1;
}

__attribute__((noipa)) uint64_t asks_the_time(uint64_t x)
{
	volatile uint64_t room[9];

	for (int i = 0; i < 1000; i++)
		room[i % 9] = monotonic_ns();
	return x + room[0];
}

int main(int argc, char **argv)
{
	static const struct {
		const char *name;
		uint64_t (*function)(uint64_t);
	} all[] = {
		{ "realign", realigned }, { "alloca", variable },	{ "pushes", pushing },
		{ "vdso", asks_the_time }, { "nothing", next_function },
	};
	uint64_t x = 1;

	if (argc != 3) {
		fprintf(stderr, "usage: odd_frames realign|alloca|pushes|noreturn|vdso SECONDS\n");
		return 64;
	}
	deadline_ns = monotonic_ns() + (uint64_t)(atof(argv[2]) * 1e9);
	puts("READY");
	fflush(stdout);
	if (strcmp(argv[1], "noreturn") == 0)
		ends_with_call(x);
	for (unsigned i = 0; i < sizeof(all) / sizeof(all[0]); i++) {
		while (strcmp(argv[1], all[i].name) == 0 && monotonic_ns() < deadline_ns)
			x = all[i].function(x);
	}
	sink = x;
	return 0;
}
