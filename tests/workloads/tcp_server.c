/*
 * tcp_server ADDRESS PORT ACCEPT_MS ANSWER_MS
 * tcp_server ADDRESS PORT drain
 *
 * Listens until stdin ends. The kernel chooses the port if that is 0.
 *
 * The first form lets connections wait for ACCEPT_MS, in which it is in hesitate(), takes all that there
 * are, in accept_client(), and answers each request ANSWER_MS after it has read the whole of it, one after
 * the other, in answer_request(). The second form accepts at once, reads and forgets what comes, and closes
 * when the other end has; connections that the other end keeps open it keeps too. What waits at the end is
 * accepted before.
 *
 *   listening port=P
 *   ready pid=P threads=
 *
 * and at the end, in the first form as tcp.h says,
 *
 *   accept ...   from when the client saw the connection, as its first request says, to after accept()
 *   answer ...   from when the request was read to before the answer was sent
 *
 * or in the second form `accept count=C`.
 *
 * cc -O2 -g -fomit-frame-pointer -fno-optimize-sibling-calls -pthread tcp_server.c -o tcp_server
 */
#include "tcp.h"

#include <poll.h>
#include <sys/epoll.h>

static struct latencies accepts = NO_LATENCIES, answers = NO_LATENCIES;
static uint64_t accept_ns, answer_ns;
static int listener;
static uint64_t drained;

struct connection {
	int fd;
	uint64_t accepted_ns;
};

static SEEN int accept_client(void)
{
	return accept4(listener, NULL, NULL, SOCK_CLOEXEC);
}

static SEEN void hesitate(uint64_t ns)
{
	if (ns)
		sleep_ns(ns);
}

static SEEN void answer_request(int fd, const struct message *answer)
{
	size_t length = sizeof(*answer) + answer->body_bytes;
	struct message *bytes = (struct message *)calloc(1, length);

	if (!bytes)
		fail("calloc");
	*bytes = *answer;
	send_all(fd, bytes, length);
	free(bytes);
}

/* 0 if the client has gone. */
static SEEN int serve_request(const struct connection *connection, int is_first)
{
	int fd = connection->fd;
	struct message request, answer;
	uint64_t received_ns;

	if (!receive_all(fd, &request, sizeof(request)))
		return 0;
	if (is_first)
		add_latency(&accepts, connection->accepted_ns - request.connected_ns);
	if (request.kind == STREAM) {
		stream(fd, request.body_ms);
		return 0;
	}
	if (!receive_body(fd, request.body_bytes))
		return 0;
	received_ns = monotonic_ns();
	hesitate(answer_ns);
	memset(&answer, 0, sizeof(answer));
	answer.body_bytes = request.answer_bytes;
	add_latency(&answers, monotonic_ns() - received_ns);
	answer_request(fd, &answer);
	return 1;
}

static SEEN void *connection_thread(void *argument)
{
	struct connection *connection = (struct connection *)argument;
	int is_first = 1;

	send_at_once(connection->fd);
	while (serve_request(connection, is_first))
		is_first = 0;
	close(connection->fd);
	free(connection);
	return NULL;
}

static void start_connection(int fd)
{
	struct connection *connection = (struct connection *)malloc(sizeof(*connection));
	pthread_attr_t attributes;
	pthread_t thread;

	if (!connection)
		fail("malloc");
	connection->accepted_ns = monotonic_ns();
	connection->fd = fd;
	pthread_attr_init(&attributes);
	pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
	pthread_attr_setstacksize(&attributes, 256 << 10);
	errno = pthread_create(&thread, &attributes, connection_thread, connection);
	if (errno)
		fail("pthread_create");
}

static SEEN void *answering_thread(void *argument)
{
	struct pollfd ready = { listener, POLLIN, 0 };

	for (;;) {
		int fd;

		if (poll(&ready, 1, -1) < 0)
			fail("poll");
		hesitate(accept_ns);
		while ((fd = accept_client()) >= 0)
			start_connection(fd);
		if (errno != EAGAIN)
			fail("accept");
	}
	return argument;
}

/* Takes all connections that there are, and watches them. */
static void take_clients(int epoll)
{
	struct epoll_event event;

	memset(&event, 0, sizeof(event));
	event.events = EPOLLIN;
	while ((event.data.fd = accept_client()) >= 0) {
		drained++;
		if (epoll_ctl(epoll, EPOLL_CTL_ADD, event.data.fd, &event))
			fail("epoll_ctl");
	}
}

/* Until stdin ends: then there is none that it has not accepted. */
static SEEN void drain(void)
{
	int epoll = epoll_create1(EPOLL_CLOEXEC), is_over = 0;
	static char buffer[64 << 10];
	struct epoll_event event;

	memset(&event, 0, sizeof(event));
	event.events = EPOLLIN;
	event.data.fd = listener;
	if (epoll < 0 || epoll_ctl(epoll, EPOLL_CTL_ADD, listener, &event))
		fail("epoll");
	event.data.fd = STDIN_FILENO;
	if (epoll_ctl(epoll, EPOLL_CTL_ADD, STDIN_FILENO, &event))
		fail("stdin is no pipe");
	while (!is_over) {
		if (epoll_wait(epoll, &event, 1, -1) != 1)
			continue;
		if (event.data.fd == listener)
			take_clients(epoll);
		else if (event.data.fd == STDIN_FILENO)
			is_over = read(STDIN_FILENO, buffer, sizeof(buffer)) <= 0;
		else if (recv(event.data.fd, buffer, sizeof(buffer), 0) <= 0)
			close(event.data.fd);
	}
	take_clients(epoll);
}

static void start_listening(const char *text, const char *port)
{
	union address address = parse_address(text, (uint16_t)atoi(port));
	socklen_t length = address_length(&address);

	listener = socket(address.any.sa_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
	if (listener < 0 || bind(listener, &address.any, length) || listen(listener, 4096))
		fail(text);
	if (getsockname(listener, &address.any, &length))
		fail("getsockname");
	printf("listening port=%u\n", ntohs(address.v4.sin_port));
}

int main(int argc, char **argv)
{
	int is_draining = argc == 4 && strcmp(argv[3], "drain") == 0;
	pthread_t thread;
	char byte;

	if (argc != 5 && !is_draining) {
		fprintf(stderr, "usage: tcp_server ADDRESS PORT (ACCEPT_MS ANSWER_MS | drain)\n");
		return 64;
	}
	if (!is_draining) {
		accept_ns = (uint64_t)(atof(argv[3]) * MS);
		answer_ns = (uint64_t)(atof(argv[4]) * MS);
	}
	raise_file_limit();
	start_listening(argv[1], argv[2]);
	printf("ready pid=%d threads=\n", (int)getpid());
	fflush(stdout);
	if (is_draining) {
		drain();
		printf("accept count=%llu\n", (unsigned long long)drained);
	} else {
		errno = pthread_create(&thread, NULL, answering_thread, NULL);
		if (errno)
			fail("pthread_create");
		while (read(STDIN_FILENO, &byte, 1) == 1)
			;
		print_latencies("accept", &accepts);
		print_latencies("answer", &answers);
	}
	fflush(stdout);
	_exit(0);
}
