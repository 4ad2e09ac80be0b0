/*
 * http_service PORT
 *
 * A small HTTP service: each connection has a thread. A request for /orders parses, renders and stores, one for
 * /log parses, renders and logs; both keep a copy of what came in. It prints `listening port=P` (the kernel chooses the
 * port if PORT is 0) and runs until it is killed.
 *
 * What it computes for a request are seven steps that take as long each, parse_request() the first, and render_page(), which takes
 * twice as long.
 *
 * Its second build (-DNEXT) differs in three ways: render_page() takes 30 % longer, update_store() holds its lock
 * three times as long, and copy_headers() allocates once more for each request.
 *
 * cc -O2 -g -fomit-frame-pointer -fno-optimize-sibling-calls -pthread http_service.c -o http_service
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <malloc.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#ifdef NEXT
#define RENDER_PERCENT 130
#define STORE_US 900
#else
#define RENDER_PERCENT 100
#define STORE_US 300
#endif

#define LOG_US 300
#define ROUNDS 40000
#define BODY_BYTES (128 << 10)
#define SEEN __attribute__((noipa))

static pthread_mutex_t store_lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_mutex_t log_lock = PTHREAD_MUTEX_INITIALIZER;

static void sleep_us(long us)
{
	struct timespec time = { 0, us * 1000 };

	nanosleep(&time, NULL);
}

#define STEP(name, rounds)                                                                         \
	static SEEN uint64_t name(uint64_t seed)                                                   \
	{                                                                                          \
		volatile uint64_t hash = seed;                                                     \
                                                                                                   \
		for (int i = 0; i < (rounds); i++)                                                 \
			hash = hash * 31 + i;                                                      \
		return hash;                                                                       \
	}

STEP(parse_request, ROUNDS)
STEP(find_route, ROUNDS)
STEP(load_session, ROUNDS)
STEP(check_rights, ROUNDS)
STEP(query_stock, ROUNDS)
STEP(sort_rows, ROUNDS)
STEP(compress_page, ROUNDS)
STEP(render_page, 2 * ROUNDS / 100 * RENDER_PERCENT)

static SEEN uint64_t make_page(const char *request)
{
	uint64_t page = query_stock(check_rights(load_session(find_route(parse_request(request[0])))));

	return compress_page(render_page(sort_rows(page)));
}

/* Fresh pages each time, as it is above the threshold from which on memory goes back to the kernel. */
static SEEN void read_body(void)
{
	volatile char *body = malloc(BODY_BYTES);

	for (int i = 0; body && i < BODY_BYTES; i += 4096)
		body[i] = 1;
	free((void *)body);
}

#ifdef NEXT
static SEEN void copy_headers(void)
{
	volatile char *headers = malloc(BODY_BYTES);

	for (int i = 0; headers && i < BODY_BYTES; i += 4096)
		headers[i] = 1;
	free((void *)headers);
}
#endif

static SEEN void update_store(void)
{
	pthread_mutex_lock(&store_lock);
	sleep_us(STORE_US);
	pthread_mutex_unlock(&store_lock);
}

static SEEN void write_log(void)
{
	pthread_mutex_lock(&log_lock);
	sleep_us(LOG_US);
	pthread_mutex_unlock(&log_lock);
}

static SEEN void answer(int fd, const char *request)
{
	static const char page[] = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

	if (!make_page(request))
		return;
	read_body();
#ifdef NEXT
	copy_headers();
#endif
	if (strncmp(request, "GET /orders", 11) == 0)
		update_store();
	else
		write_log();
	if (write(fd, page, sizeof(page) - 1) < 0)
		perror("write");
}

static void *serve(void *argument)
{
	int fd = (int)(intptr_t)argument;
	char request[4096];
	size_t length = 0;

	for (;;) {
		ssize_t got = read(fd, request + length, sizeof(request) - 1 - length);

		if (got <= 0)
			break;
		length += got;
		request[length] = 0;
		if (!strstr(request, "\r\n\r\n"))
			continue;
		answer(fd, request);
		length = 0;
	}
	close(fd);
	return NULL;
}

int main(int argc, char **argv)
{
	struct sockaddr_in address = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	socklen_t length = sizeof(address);
	int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

	mallopt(M_MMAP_THRESHOLD, BODY_BYTES / 2);
	address.sin_port = htons(argc > 1 ? atoi(argv[1]) : 0);
	if (bind(listener, (struct sockaddr *)&address, length) || listen(listener, 64) ||
	    getsockname(listener, (struct sockaddr *)&address, &length)) {
		perror("http_service");
		return 1;
	}
	printf("listening port=%d\n", ntohs(address.sin_port));
	fflush(stdout);
	for (;;) {
		pthread_t thread;
		int one = 1, fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC);

		if (fd < 0)
			continue;
		setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
		if (pthread_create(&thread, NULL, serve, (void *)(intptr_t)fd))
			close(fd);
		else
			pthread_detach(thread);
	}
}
