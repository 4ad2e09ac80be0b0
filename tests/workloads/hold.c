/*
 * hold: keeps any program that is started with LD_PRELOAD=hold.so just before its main.
 *
 * By then the program and the libraries that it is linked with lie in its memory. It stays there
 * until it is killed, and computes for a millisecond ten times a second.
 *
 * cc -O2 -g -fomit-frame-pointer -fPIC -shared hold.c -o hold
 */
#include <stdint.h>
#include <time.h>

static volatile uint64_t sink;

__attribute__((noipa)) void hold_burn(void)
{
	for (int i = 0; i < 1000000; i++)
		sink += i;
}

__attribute__((constructor)) static void hold(void)
{
	struct timespec pause = { 0, 99000000 };

	for (;;) {
		hold_burn();
		nanosleep(&pause, NULL);
	}
}
