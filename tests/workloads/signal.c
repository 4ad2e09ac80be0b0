/*
 * signal WHAT SECONDS [alternate]: signal handlers that compute.
 *
 *   fault    the handler interrupts faulting() at its very first instruction, so that the
 *            instruction in front of it belongs to another function with another frame:
 *            burn < handler < the trampoline < faulting < raiser < main
 *   timer    a timer interrupts interrupted() and what it calls wherever they are, 200 times
 *            a second: burn < handler < the trampoline < interrupted < raiser < main
 *
 * With `alternate` the handler runs on a stack of its own. The interrupted function has no
 * frame pointer, nor has any other. Prints "READY" when it begins. x86_64 only.
 *
 * cc -O2 -g -fomit-frame-pointer -fno-optimize-sibling-calls signal.c -o signal
 */
#define _GNU_SOURCE
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/time.h>
#include <time.h>
#include <ucontext.h>

static uint64_t deadline_ns;
static uint64_t valid;
static volatile uint64_t sink;

static uint64_t monotonic_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

__attribute__((noipa)) uint64_t burn(uint64_t x, uint64_t iterations)
{
	for (uint64_t i = 0; i < iterations; i++)
		x = x * 6364136223846793005u + 1442695040888963407u;
	return x;
}

static void handler(int number, siginfo_t *info, void *context)
{
	ucontext_t *interrupted = context;
	volatile uint64_t room[77];

	(void)info;
	room[0] = burn(1, 2000000);
	sink = room[0];
	/* The load is repeated, now from an address that is there. */
	if (number == SIGSEGV)
		interrupted->uc_mcontext.gregs[REG_RDI] = (greg_t)(uintptr_t)&valid;
}

/* Two functions without a gap. The frame of the first is large where it ends. */
uint64_t faulting(const uint64_t *address);
__asm__(".text\n"
	".type before_faulting, @function\n"
	"before_faulting:\n"
	".cfi_startproc\n"
	"	sub $400, %rsp\n"
	".cfi_adjust_cfa_offset 400\n"
	"	ud2\n"
	".cfi_endproc\n"
	".size before_faulting, . - before_faulting\n"
	".globl faulting\n"
	".type faulting, @function\n"
	"faulting:\n"
	".cfi_startproc\n"
	"	mov (%rdi), %rax\n"
	"	ret\n"
	".cfi_endproc\n"
	".size faulting, . - faulting\n");

__attribute__((noipa)) uint64_t interrupted(uint64_t x)
{
	volatile uint64_t room[33];

	for (room[0] = 0; room[0] < 1000; room[0]++)
		x = burn(x, room[0] & 7);
	return x;
}

__attribute__((noipa)) uint64_t raiser(uint64_t x, int fault)
{
	volatile uint64_t room[19];

	room[0] = x;
	x = fault ? faulting(NULL) : interrupted(x);
	return x + room[0];
}

int main(int argc, char **argv)
{
	static char alternate[65536];
	struct itimerval interval = { { 0, 5000 }, { 0, 5000 } };
	stack_t stack = { .ss_sp = alternate, .ss_size = sizeof(alternate) };
	struct sigaction action = { .sa_sigaction = handler, .sa_flags = SA_SIGINFO };
	uint64_t x = 1;
	int fault;

	if (argc < 3) {
		fprintf(stderr, "usage: signal fault|timer SECONDS [alternate]\n");
		return 64;
	}
	fault = strcmp(argv[1], "fault") == 0;
	deadline_ns = monotonic_ns() + (uint64_t)(atof(argv[2]) * 1e9);
	if (argc > 3) {
		action.sa_flags |= SA_ONSTACK;
		sigaltstack(&stack, NULL);
	}
	sigaction(fault ? SIGSEGV : SIGALRM, &action, NULL);
	if (!fault)
		setitimer(ITIMER_REAL, &interval, NULL);
	puts("READY");
	fflush(stdout);
	while (monotonic_ns() < deadline_ns)
		x = raiser(x, fault);
	sink = x;
	/* No handler in the middle of exit. */
	setitimer(ITIMER_REAL, &(struct itimerval){ 0 }, NULL);
	return 0;
}
