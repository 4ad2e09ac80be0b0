/*
 * delayed_link NETNS OTHER_NETNS MICROSECONDS: a link between two network namespaces, given as paths, that is
 * as long as one likes.
 *
 * Makes a device called `delayed` in both of them. What is sent to the one comes out of the other after so
 * many microseconds, in order, whatever its size. Ends when stdin does.
 *
 *   ready pid=P threads=
 *
 * cc -O2 -g -fomit-frame-pointer -fno-optimize-sibling-calls -pthread delayed_link.c -o delayed_link
 */
#include "waits.h"

#include <linux/if.h>
#include <linux/if_tun.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>

#define MAX_PACKET 2048
/* More are lost, as on any link. */
#define MAX_QUEUED 4096

struct packet {
	uint64_t due_ns;
	size_t length;
	char bytes[MAX_PACKET];
};

/* One way. The reader owns what is from `end` on, the writer what is before. */
struct way {
	int from, to;
	pthread_mutex_t lock;
	pthread_cond_t is_filled;
	uint64_t begin, end;
	struct packet queue[MAX_QUEUED];
};

static struct way there, back;
static uint64_t delay_ns;

static int open_device(const char *netns)
{
	int namespace = open(netns, O_RDONLY | O_CLOEXEC), fd;
	struct ifreq request;

	if (namespace < 0 || setns(namespace, CLONE_NEWNET))
		fail(netns);
	close(namespace);
	fd = open("/dev/net/tun", O_RDWR | O_CLOEXEC);
	if (fd < 0)
		fail("/dev/net/tun");
	memset(&request, 0, sizeof(request));
	request.ifr_flags = IFF_TUN | IFF_NO_PI;
	strcpy(request.ifr_name, "delayed");
	if (ioctl(fd, TUNSETIFF, &request))
		fail("TUNSETIFF");
	return fd;
}

static SEEN void *take_packets(void *argument)
{
	struct way *way = (struct way *)argument;

	for (;;) {
		struct packet *packet = &way->queue[way->end % MAX_QUEUED];
		ssize_t length;

		length = read(way->from, packet->bytes, MAX_PACKET);
		if (length < 0 && errno == EIO) {
			/* The device is not up yet. */
			sleep_ns(MS);
			continue;
		}
		if (length <= 0)
			fail("read");
		packet->due_ns = monotonic_ns() + delay_ns;
		packet->length = (size_t)length;
		pthread_mutex_lock(&way->lock);
		if (way->end - way->begin < MAX_QUEUED - 1)
			way->end++;
		pthread_cond_signal(&way->is_filled);
		pthread_mutex_unlock(&way->lock);
	}
	return NULL;
}

static SEEN void *deliver_packets(void *argument)
{
	struct way *way = (struct way *)argument;

	for (;;) {
		struct packet *packet;
		struct timespec due;

		pthread_mutex_lock(&way->lock);
		while (way->begin == way->end)
			pthread_cond_wait(&way->is_filled, &way->lock);
		packet = &way->queue[way->begin % MAX_QUEUED];
		pthread_mutex_unlock(&way->lock);
		due.tv_sec = (time_t)(packet->due_ns / 1000000000u);
		due.tv_nsec = (long)(packet->due_ns % 1000000000u);
		clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &due, NULL);
		/* A device that is not up loses what it is given. */
		if (write(way->to, packet->bytes, packet->length) < 0 && errno != EIO)
			fail("write");
		pthread_mutex_lock(&way->lock);
		way->begin++;
		pthread_mutex_unlock(&way->lock);
	}
	return NULL;
}

static void start_way(struct way *way, int from, int to)
{
	pthread_t thread;

	way->from = from;
	way->to = to;
	pthread_mutex_init(&way->lock, NULL);
	pthread_cond_init(&way->is_filled, NULL);
	errno = pthread_create(&thread, NULL, take_packets, way);
	if (!errno)
		errno = pthread_create(&thread, NULL, deliver_packets, way);
	if (errno)
		fail("pthread_create");
}

int main(int argc, char **argv)
{
	char byte;
	int one, other;

	if (argc != 4 || atol(argv[3]) < 0) {
		fprintf(stderr, "usage: delayed_link NETNS OTHER_NETNS MICROSECONDS\n");
		return 64;
	}
	delay_ns = (uint64_t)atol(argv[3]) * 1000;
	/* Threads inherit it. */
	prctl(PR_SET_TIMERSLACK, 1000);
	one = open_device(argv[1]);
	other = open_device(argv[2]);
	start_way(&there, one, other);
	start_way(&back, other, one);
	printf("ready pid=%d threads=\n", (int)getpid());
	fflush(stdout);
	while (read(STDIN_FILENO, &byte, 1) == 1)
		;
	return 0;
}
