/*
 * deep DEPTH SECONDS [user|kernel] [THREADS]: a stack of a known depth without frame pointers.
 *
 * The stack of the main thread has exactly DEPTH frames (7 to 604), each of a function of its
 * own: leaf, frame_001, frame_002, ... , main, two of libc, _start. It is built and taken down
 * again some ten thousand times a second, so that samples find prologues and epilogues too; nearly all
 * of the time goes to the leaf function. That is leaf_user, which computes, or with `kernel`
 * leaf_kernel, which reads from /dev/zero by a system call of its own. Frames have different
 * sizes and save different registers; each 50th has a size known only at run time (which is
 * where gcc uses rbp as a frame pointer, between callers that use it for something else).
 *
 * With THREADS there are as many threads with such a stack, below start_thread, and the main
 * thread waits. Prints "READY" when it begins.
 *
 * cc -O2 -g -fomit-frame-pointer -fno-optimize-sibling-calls -fno-inline -pthread deep.c -o deep
 */
#define _GNU_SOURCE
#include <alloca.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>

/* leaf, main, two of libc, _start */
#define OTHER_FRAMES 5
#define MAX_FRAMES 599
#define MAX_THREADS 64

typedef uint64_t function(uint64_t);
static function *const chain[];

static function *leaf;
static int frames;
static int zero_fd;
static uint64_t deadline_ns;
static volatile uint64_t sink;
static volatile uint64_t alloca_size = 100;

__attribute__((noipa)) uint64_t leaf_user(uint64_t x)
{
	for (int i = 0; i < 60000; i++)
		x = x * 6364136223846793005u + 1442695040888963407u;
	return x;
}

/* The system call is made here rather than by libc, so that this is the leaf. */
static inline __attribute__((always_inline)) long read_zeros(void *buffer, long size)
{
#if defined(__x86_64__)
	long result;

	__asm__ volatile("syscall"
			 : "=a"(result)
			 : "0"(SYS_read), "D"(zero_fd), "S"(buffer), "d"(size)
			 : "rcx", "r11", "memory");
	return result;
#elif defined(__aarch64__)
	register long x8 __asm__("x8") = SYS_read;
	register long x0 __asm__("x0") = zero_fd;
	register void *x1 __asm__("x1") = buffer;
	register long x2 __asm__("x2") = size;

	__asm__ volatile("svc 0" : "+r"(x0) : "r"(x8), "r"(x1), "r"(x2) : "memory");
	return x0;
#endif
}

__attribute__((noipa)) uint64_t leaf_kernel(uint64_t x)
{
	static char zeros[16384];

	for (int i = 0; i < 100; i++)
		x += read_zeros(zeros, sizeof(zeros));
	return x;
}

/* Values that live across the call, one for each register that a callee has to save. */
#define KEEP(value) __asm__ volatile("" : "+r"(value))

/* The index is a literal of three digits; the one in front keeps it from being octal. */
#define FRAME(h, t, u)                                                                  \
	__attribute__((noipa)) uint64_t frame_##h##t##u(uint64_t x)                     \
	{                                                                               \
		enum { N = 1##h##t##u - 1000 };                                         \
		volatile char room[1 + (N * 37 % 61) * 8];                              \
		uint64_t a = x + 1, b = x + 2, c = x + 3, d = x + 4, e = x + 5, f;      \
		room[0] = (char)x;                                                      \
		if (N % 50 == 7)                                                        \
			*(volatile char *)alloca(alloca_size) = (char)x;                \
		KEEP(a);                                                                \
		if (N % 6 > 0)                                                          \
			KEEP(b);                                                        \
		if (N % 6 > 1)                                                          \
			KEEP(c);                                                        \
		if (N % 6 > 2)                                                          \
			KEEP(d);                                                        \
		if (N % 6 > 3)                                                          \
			KEEP(e);                                                        \
		f = N == 1 ? leaf(x) : chain[N - 1](x);                                 \
		return a + (N % 6 > 0 ? b : 0) + (N % 6 > 1 ? c : 0) +                  \
		       (N % 6 > 2 ? d : 0) + (N % 6 > 3 ? e : 0) + f + (uint64_t)room[0]; \
	}
#define ONES(h, t)                                                                       \
	FRAME(h, t, 1) FRAME(h, t, 2) FRAME(h, t, 3) FRAME(h, t, 4) FRAME(h, t, 5)       \
	FRAME(h, t, 6) FRAME(h, t, 7) FRAME(h, t, 8) FRAME(h, t, 9)
#define TENS(h, t) FRAME(h, t, 0) ONES(h, t)
#define NINETY(h)                                                                        \
	TENS(h, 1) TENS(h, 2) TENS(h, 3) TENS(h, 4) TENS(h, 5) TENS(h, 6) TENS(h, 7)     \
	TENS(h, 8) TENS(h, 9)
#define HUNDRED(h) TENS(h, 0) NINETY(h)

ONES(0, 0)
NINETY(0)
HUNDRED(1)
HUNDRED(2)
HUNDRED(3)
HUNDRED(4)
HUNDRED(5)

#undef FRAME
#define FRAME(h, t, u) frame_##h##t##u,
static function *const chain[MAX_FRAMES + 1] = {
	NULL, ONES(0, 0) NINETY(0) HUNDRED(1) HUNDRED(2) HUNDRED(3) HUNDRED(4) HUNDRED(5)
};

static uint64_t monotonic_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static void *thread(void *seed)
{
	uint64_t x = (uint64_t)(uintptr_t)seed;

	while (monotonic_ns() < deadline_ns)
		x = chain[frames](x);
	sink = x;
	return NULL;
}

int main(int argc, char **argv)
{
	pthread_t threads[MAX_THREADS];
	uint64_t x = 1;
	int count;

	frames = argc < 3 ? 0 : atoi(argv[1]) - OTHER_FRAMES;
	count = argc < 5 ? 0 : atoi(argv[4]);
	if (frames < 2 || frames > MAX_FRAMES || count < 0 || count > MAX_THREADS) {
		fprintf(stderr, "usage: deep DEPTH SECONDS [user|kernel] [THREADS]\n");
		return 64;
	}
	leaf = argc > 3 && strcmp(argv[3], "kernel") == 0 ? leaf_kernel : leaf_user;
	zero_fd = open("/dev/zero", O_RDONLY);
	if (zero_fd < 0) {
		perror("deep: /dev/zero");
		return 71;
	}
	puts("READY");
	fflush(stdout);
	deadline_ns = monotonic_ns() + (uint64_t)(atof(argv[2]) * 1e9);

	for (int i = 0; i < count; i++) {
		if (pthread_create(&threads[i], NULL, thread, (void *)(uintptr_t)(i + 1)) != 0) {
			perror("deep: pthread_create");
			return 71;
		}
	}
	for (int i = 0; i < count; i++)
		pthread_join(threads[i], NULL);
	while (count == 0 && monotonic_ns() < deadline_ns)
		x = chain[frames](x);
	sink = x;
	return 0;
}
