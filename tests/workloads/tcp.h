/*
 * What workloads that talk over TCP share: messages, sockets, and how they tell what they measured.
 *
 * They print lines as waits.h says. What took time is told as
 *
 *   WORD count=C median_ns=M p90_ns=P total_ns=T
 *
 * of all that were measured, in nanoseconds of CLOCK_MONOTONIC, which both ends share. ADDRESS is one of
 * IPv4 or of IPv6.
 */
#ifndef TCP_H
#define TCP_H

#include "waits.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/resource.h>
#include <sys/socket.h>

enum message_kind {
	/* Wants an answer. */
	REQUEST,
	/* Wants messages all the time, for body_ms milliseconds. */
	STREAM,
};

/* What a request begins with, and all of an answer's first bytes. */
struct message {
	uint32_t kind;
	/* That follow. */
	uint32_t body_bytes;
	/* That the answer is to have behind its message. */
	uint32_t answer_bytes;
	uint32_t body_ms;
	/* When connect() had returned: as good as when the connection was there. */
	uint64_t connected_ns;
};

union address {
	struct sockaddr any;
	struct sockaddr_in v4;
	struct sockaddr_in6 v6;
};

static inline socklen_t address_length(const union address *address)
{
	return address->any.sa_family == AF_INET ? sizeof(address->v4) : sizeof(address->v6);
}

static inline union address parse_address(const char *text, uint16_t port)
{
	union address address;

	memset(&address, 0, sizeof(address));
	if (inet_pton(AF_INET, text, &address.v4.sin_addr) == 1) {
		address.v4.sin_family = AF_INET;
		address.v4.sin_port = htons(port);
	} else if (inet_pton(AF_INET6, text, &address.v6.sin6_addr) == 1) {
		address.v6.sin6_family = AF_INET6;
		address.v6.sin6_port = htons(port);
	} else {
		fprintf(stderr, "not an address: %s\n", text);
		exit(64);
	}
	return address;
}

/* Reads exactly so many bytes. 0 if the other end has closed, or reset. */
static inline int receive_all(int fd, void *bytes, size_t length)
{
	for (size_t at = 0; at < length;) {
		ssize_t got = recv(fd, (char *)bytes + at, length - at, 0);

		if (got == 0 || (got < 0 && errno == ECONNRESET))
			return 0;
		if (got < 0)
			fail("recv");
		at += (size_t)got;
	}
	return 1;
}

/* Reads so many bytes and forgets them. */
static inline int receive_body(int fd, size_t length)
{
	static __thread char buffer[64 << 10];

	while (length) {
		size_t part = length < sizeof(buffer) ? length : sizeof(buffer);

		if (!receive_all(fd, buffer, part))
			return 0;
		length -= part;
	}
	return 1;
}

/* Within the caller, whose name is to be on the stack. */
HIDDEN void send_all(int fd, const void *bytes, size_t length)
{
	for (size_t at = 0; at < length;) {
		ssize_t sent = send(fd, (const char *)bytes + at, length - at, MSG_NOSIGNAL);

		if (sent < 0)
			fail("send");
		at += (size_t)sent;
	}
}

static inline void send_at_once(int fd)
{
	int yes = 1;

	if (setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof(yes)))
		fail("TCP_NODELAY");
}

/* Reads what comes until the other end has sent all. */
static SEEN void *drain_thread(void *argument)
{
	int fd = (int)(intptr_t)argument;
	char bytes[4096];

	while (recv(fd, bytes, sizeof(bytes), 0) > 0)
		;
	return NULL;
}

/* A message of 16 bytes every millisecond, whatever the other end does, which does so too. */
static SEEN void stream(int fd, uint32_t for_ms)
{
	uint64_t start_ns = monotonic_ns();
	pthread_t drain;
	char bytes[16] = "streaming";

	errno = pthread_create(&drain, NULL, drain_thread, (void *)(intptr_t)fd);
	if (errno)
		fail("pthread_create");
	for (uint32_t i = 1; i <= for_ms; i++) {
		uint64_t due_ns = start_ns + i * MS, now_ns = monotonic_ns();

		send_all(fd, bytes, sizeof(bytes));
		if (now_ns < due_ns)
			sleep_ns(due_ns - now_ns);
	}
	shutdown(fd, SHUT_WR);
	pthread_join(drain, NULL);
}

/* As many files as the kernel permits. */
static inline void raise_file_limit(void)
{
	struct rlimit limit = { 1 << 20, 1 << 20 };

	if (setrlimit(RLIMIT_NOFILE, &limit)) {
		getrlimit(RLIMIT_NOFILE, &limit);
		limit.rlim_cur = limit.rlim_max;
		setrlimit(RLIMIT_NOFILE, &limit);
	}
}

/* What several threads have measured. */
struct latencies {
	pthread_mutex_t lock;
	uint64_t *ns;
	size_t count, room;
};

#define NO_LATENCIES { PTHREAD_MUTEX_INITIALIZER, NULL, 0, 0 }

static inline void add_latency(struct latencies *all, uint64_t ns)
{
	pthread_mutex_lock(&all->lock);
	if (all->count == all->room) {
		all->room = all->room ? 2 * all->room : 1024;
		all->ns = (uint64_t *)realloc(all->ns, all->room * sizeof(uint64_t));
		if (!all->ns)
			fail("realloc");
	}
	all->ns[all->count++] = ns;
	pthread_mutex_unlock(&all->lock);
}

static inline int compare_ns(const void *left, const void *right)
{
	uint64_t a = *(const uint64_t *)left, b = *(const uint64_t *)right;

	return (a > b) - (a < b);
}

static inline void print_latencies(const char *word, struct latencies *all)
{
	uint64_t total_ns = 0;

	qsort(all->ns, all->count, sizeof(uint64_t), compare_ns);
	for (size_t i = 0; i < all->count; i++)
		total_ns += all->ns[i];
	printf("%s count=%zu median_ns=%llu p90_ns=%llu total_ns=%llu\n", word, all->count,
	       all->count ? (unsigned long long)all->ns[all->count / 2] : 0ull,
	       all->count ? (unsigned long long)all->ns[all->count * 9 / 10] : 0ull,
	       (unsigned long long)total_ns);
}

#endif
