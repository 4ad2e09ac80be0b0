/*
 * tcp_client connect HOW ADDRESS PORT THREADS COUNT
 *
 * COUNT connections, by THREADS threads as fast as they can, which are closed when they are there. HOW is
 *   blocking     connect() waits
 *   nonblocking  it does not; the thread waits in poll()
 *   impatient    gives up after the first SYN that is sent again has got no answer either (TCP_SYNCNT)
 *   abort        does not wait, and closes the socket after 100 ms, if the connection is not there by then
 *   reset        as blocking, but is closed by a reset
 *   spread       as blocking, to ADDRESS of IPv4 and those that follow it, to each once
 *
 * tcp_client request SHAPE ADDRESS PORT THREADS ROUNDS REQUESTS
 *
 * ROUNDS times THREADS connections, which all threads make at the same time, and REQUESTS requests on each,
 * one after the other. SHAPE is
 *   single     one write, one answer
 *   parts      a header, 5 ms later a body, one answer
 *   pipelined  three requests in as many writes, then three answers
 *   stream     one request, REQUESTS milliseconds long: both ends send every millisecond
 *   bulk       256 KiB there and back
 *
 * tcp_client hold ADDRESS PORT COUNT BEFORE AFTER
 *
 * COUNT connections, and BEFORE requests on each before it is ready, all of whose answers are acknowledged at
 * once; AFTER requests on each when it is told to begin. They are closed when stdin ends.
 *
 * tcp_client again ADDRESS PORT OTHER_PORT ROUNDS REQUESTS
 *
 * The same socket connects to the one port and to the other in turn, ROUNDS times each, and makes REQUESTS
 * requests to each, of which only those to OTHER_PORT are told of.
 *
 * All connect in connect_to_server() and send in send_request(). They start as waits.h says, and print what
 * tcp.h says:
 *
 *   connect ...      of those connections that are there now
 *   ECONNREFUSED ... and so on, of those that failed; `aborted` is one of these
 *   request ...      from before the last write to after the first read. Of requests in `bulk` it says nothing
 *                    about those that were not sent as a whole by then.
 *
 * cc -O2 -g -fomit-frame-pointer -fno-optimize-sibling-calls -pthread tcp_client.c -o tcp_client
 */
#include "tcp.h"

#include <poll.h>

#define PAUSE_NS (5 * MS)
#define ABORT_AFTER_MS 100
#define IN_PIPELINE 3
#define BULK_BYTES (256u << 10)
#define MAX_THREADS 256
#define MAX_ERRORS 134
#define ABORTED 0

enum how { BLOCKING, NONBLOCKING, IMPATIENT, ABORT, RESET, SPREAD, HOWS };
static const char *const how_names[HOWS] = {
	"blocking", "nonblocking", "impatient", "abort", "reset", "spread",
};
enum shape { SINGLE, PARTS, PIPELINED, STREAMING, BULK, SHAPES };
static const char *const shape_names[SHAPES] = {
	"single", "parts", "pipelined", "stream", "bulk",
};

static struct latencies connects = NO_LATENCIES, requests = NO_LATENCIES;
static struct latencies failures[MAX_ERRORS];
static union address server;
static enum how how;
static enum shape shape;
static long rounds, requests_each, connections_left;
static pthread_barrier_t next_round;

static SEEN int connect_to_server(int fd, const union address *address)
{
	return connect(fd, &address->any, address_length(address));
}

static SEEN void send_request(int fd, const void *bytes, size_t length)
{
	send_all(fd, bytes, length);
}

/* The error that a connection which was waited for has ended with, or ABORTED, or -1 for none. */
static int wait_for_connection(int fd)
{
	struct pollfd ready = { fd, POLLOUT, 0 };
	int count = poll(&ready, 1, how == ABORT ? ABORT_AFTER_MS : -1), error = 0;
	socklen_t length = sizeof(error);

	if (count < 0)
		fail("poll");
	if (count == 0)
		return ABORTED;
	if (getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &length))
		fail("SO_ERROR");
	return error ? error : -1;
}

static int open_socket(void)
{
	int is_waiting = how == NONBLOCKING || how == ABORT, one = 1;
	int fd = socket(server.any.sa_family,
			SOCK_STREAM | SOCK_CLOEXEC | (is_waiting ? SOCK_NONBLOCK : 0), 0);

	if (fd < 0)
		fail("socket");
	if (how == IMPATIENT && setsockopt(fd, IPPROTO_TCP, TCP_SYNCNT, &one, sizeof(one)))
		fail("TCP_SYNCNT");
	return fd;
}

/* When the connection of a new socket is there; 0 if it is not to be. */
static uint64_t make_connection(int fd, const union address *address)
{
	uint64_t since_ns = monotonic_ns(), now_ns;
	int error = connect_to_server(fd, address) ? errno : -1;

	if (error == EINPROGRESS)
		error = wait_for_connection(fd);
	now_ns = monotonic_ns();
	if (error >= 0 && error < MAX_ERRORS) {
		add_latency(&failures[error], now_ns - since_ns);
		return 0;
	}
	add_latency(&connects, now_ns - since_ns);
	return now_ns;
}

static SEEN void connect_once(uint32_t at)
{
	struct linger reset = { 1, 0 };
	union address address = server;
	int fd = open_socket();

	if (how == SPREAD)
		address.v4.sin_addr.s_addr = htonl(ntohl(address.v4.sin_addr.s_addr) + at);
	make_connection(fd, &address);
	if (how == RESET && setsockopt(fd, SOL_SOCKET, SO_LINGER, &reset, sizeof(reset)))
		fail("SO_LINGER");
	close(fd);
}

static SEEN void *connecting_thread(void *argument)
{
	long left;

	wait_for_start();
	while ((left = __atomic_fetch_sub(&connections_left, 1, __ATOMIC_SEQ_CST)) > 0)
		connect_once((uint32_t)left - 1);
	return argument;
}

static void receive_answer(int fd)
{
	struct message answer;

	if (!receive_all(fd, &answer, sizeof(answer)) || !receive_body(fd, answer.body_bytes))
		fail("the server is gone");
}

static void stream_to_server(int fd, uint64_t connected_ns)
{
	struct message request = { STREAM, 0, 0, (uint32_t)requests_each, connected_ns };

	send_request(fd, &request, sizeof(request));
	stream(fd, request.body_ms);
}

/* A request of a form, up to its last answer; nobody is told how long it took if it is not counted. */
static SEEN void make_request(int fd, uint64_t connected_ns, int is_counted)
{
	static const char header_and_body[sizeof(struct message) + BULK_BYTES];
	struct message request = { REQUEST, 0, 0, 0, connected_ns };
	int writes = shape == PIPELINED ? IN_PIPELINE : 1;
	uint64_t since_ns = 0;
	struct message answer;

	if (shape == PARTS)
		request.body_bytes = sizeof(request);
	if (shape == BULK)
		request.body_bytes = request.answer_bytes = BULK_BYTES;
	for (int i = 0; i < writes; i++) {
		since_ns = monotonic_ns();
		send_request(fd, &request, sizeof(request));
	}
	if (request.body_bytes) {
		if (shape == PARTS)
			sleep_ns(PAUSE_NS);
		since_ns = monotonic_ns();
		send_request(fd, header_and_body, request.body_bytes);
	}
	if (!receive_all(fd, &answer, sizeof(answer)))
		fail("the server is gone");
	if (is_counted)
		add_latency(&requests, monotonic_ns() - since_ns);
	if (!receive_body(fd, answer.body_bytes))
		fail("the server is gone");
	for (int i = 1; i < writes; i++)
		receive_answer(fd);
}

static SEEN void *requesting_thread(void *argument)
{
	wait_for_start();
	for (long round = 0; round < rounds; round++) {
		uint64_t connected_ns;
		int fd = open_socket();

		send_at_once(fd);
		pthread_barrier_wait(&next_round);
		connected_ns = make_connection(fd, &server);
		if (connected_ns && shape == STREAMING)
			stream_to_server(fd, connected_ns);
		else if (connected_ns)
			for (long i = 0; i < requests_each; i++)
				make_request(fd, connected_ns, 1);
		close(fd);
	}
	return argument;
}

static void run_threads(void *(*work)(void *), long count)
{
	pthread_t threads[MAX_THREADS];

	if (count < 1 || count > MAX_THREADS) {
		fprintf(stderr, "tcp_client: so many threads are not possible: %ld\n", count);
		exit(64);
	}
	make_start_gate();
	pthread_barrier_init(&next_round, NULL, (unsigned)count);
	for (long i = 0; i < count; i++) {
		errno = pthread_create(&threads[i], NULL, work, NULL);
		if (errno)
			fail("pthread_create");
	}
	printf("ready pid=%d threads=\n", (int)getpid());
	start_on_stdin();
	for (long i = 0; i < count; i++)
		pthread_join(threads[i], NULL);
}

/* Acknowledges what has been received, which is otherwise done up to 40 ms later, if nothing is sent before. */
static void acknowledge(int fd)
{
	int yes = 1;

	if (setsockopt(fd, IPPROTO_TCP, TCP_QUICKACK, &yes, sizeof(yes)))
		fail("TCP_QUICKACK");
}

static void hold(long count, long before, long after)
{
	int *fds = (int *)calloc((size_t)count, sizeof(int));
	uint64_t *connected_ns = (uint64_t *)calloc((size_t)count, sizeof(uint64_t));
	char byte;

	if (!fds || !connected_ns)
		fail("calloc");
	raise_file_limit();
	for (long i = 0; i < count; i++) {
		fds[i] = open_socket();
		send_at_once(fds[i]);
		connected_ns[i] = make_connection(fds[i], &server);
	}
	for (long i = 0; i < count; i++)
		for (long request = 0; request < before; request++) {
			make_request(fds[i], connected_ns[i], 0);
			acknowledge(fds[i]);
		}
	make_start_gate();
	printf("ready pid=%d threads=\n", (int)getpid());
	start_on_stdin();
	for (long i = 0; i < count; i++)
		for (long request = 0; request < after; request++)
			make_request(fds[i], connected_ns[i], 1);
	while (read(STDIN_FILENO, &byte, 1) == 1)
		;
}

/* Takes a socket's connection from it, so that it can be used for another one. */
static void disconnect(int fd)
{
	struct sockaddr none;

	memset(&none, 0, sizeof(none));
	none.sa_family = AF_UNSPEC;
	if (connect(fd, &none, sizeof(none)))
		fail("AF_UNSPEC");
}

static void connect_again(uint16_t other_port)
{
	union address other = server;
	int fd = open_socket();

	other.v4.sin_port = htons(other_port);
	make_start_gate();
	printf("ready pid=%d threads=\n", (int)getpid());
	start_on_stdin();
	send_at_once(fd);
	for (long turn = 0; turn < 2 * rounds; turn++) {
		int is_other = turn % 2;
		uint64_t connected_ns = make_connection(fd, is_other ? &other : &server);

		if (!connected_ns)
			fail("connect");
		for (long i = 0; i < requests_each; i++)
			make_request(fd, connected_ns, is_other);
		disconnect(fd);
	}
	close(fd);
}

static int index_of(const char *name, const char *const *names, int count)
{
	for (int i = 0; i < count; i++)
		if (strcmp(names[i], name) == 0)
			return i;
	fprintf(stderr, "tcp_client: no such way: %s\n", name);
	exit(64);
}

static void run(int argc, char **argv)
{
	const char *mode = argc > 1 ? argv[1] : "";

	if (argc == 7 && strcmp(mode, "connect") == 0) {
		how = (enum how)index_of(argv[2], how_names, HOWS);
		server = parse_address(argv[3], (uint16_t)atoi(argv[4]));
		connections_left = atol(argv[6]);
		run_threads(connecting_thread, atol(argv[5]));
	} else if (argc == 8 && strcmp(mode, "request") == 0) {
		shape = (enum shape)index_of(argv[2], shape_names, SHAPES);
		server = parse_address(argv[3], (uint16_t)atoi(argv[4]));
		rounds = atol(argv[6]);
		requests_each = atol(argv[7]);
		run_threads(requesting_thread, atol(argv[5]));
	} else if (argc == 7 && strcmp(mode, "hold") == 0) {
		server = parse_address(argv[2], (uint16_t)atoi(argv[3]));
		hold(atol(argv[4]), atol(argv[5]), atol(argv[6]));
	} else if (argc == 7 && strcmp(mode, "again") == 0) {
		server = parse_address(argv[2], (uint16_t)atoi(argv[3]));
		rounds = atol(argv[5]);
		requests_each = atol(argv[6]);
		connect_again((uint16_t)atoi(argv[4]));
	} else {
		fprintf(stderr, "usage: tcp_client (connect | request | hold | again) ...\n");
		exit(64);
	}
}

int main(int argc, char **argv)
{
	run(argc, argv);
	print_latencies("connect", &connects);
	for (int error = 0; error < MAX_ERRORS; error++)
		if (failures[error].count)
			print_latencies(error == ABORTED ? "aborted" : strerrorname_np(error),
					&failures[error]);
	print_latencies("request", &requests);
	return 0;
}
