/*
 * syscalls SECONDS: time spent in the kernel on a process's behalf.
 *
 * It fills a buffer from /dev/urandom and then sleeps as long as that took: about
 * half a CPU, nearly all of it in the kernel's random number generator. It sleeps
 * so that a demo leaves room for other processes on a small host.
 *
 * cc -O2 -g -fno-omit-frame-pointer -mno-omit-leaf-frame-pointer syscalls.c -o syscalls
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

static char buffer[1 << 20];

static uint64_t monotonic_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static void rest(uint64_t ns)
{
	struct timespec span = { (time_t)(ns / 1000000000u), (long)(ns % 1000000000u) };

	nanosleep(&span, NULL);
}

int main(int argc, char **argv)
{
	uint64_t deadline_ns, start_ns;
	int fd;

	if (argc != 2 || atof(argv[1]) <= 0) {
		fprintf(stderr, "usage: syscalls SECONDS\n");
		return 64;
	}
	fd = open("/dev/urandom", O_RDONLY | O_CLOEXEC);
	if (fd < 0) {
		perror("syscalls: /dev/urandom");
		return 71;
	}
	deadline_ns = monotonic_ns() + (uint64_t)(atof(argv[1]) * 1e9);
	while ((start_ns = monotonic_ns()) < deadline_ns) {
		if (read(fd, buffer, sizeof(buffer)) < 0) {
			perror("syscalls: read");
			return 74;
		}
		rest(monotonic_ns() - start_ns);
	}
	return 0;
}
