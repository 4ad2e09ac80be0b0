/*
 * unmap_stack WHAT SECONDS: stacks that cannot be walked to their end.
 *
 *   caller     burn runs on a page of its own, whose caller's stack has been unmapped
 *   outer      the process unmaps the part of its stack that holds its outer frames
 *   flicker    another thread takes the outer frames away and gives them back, all the time
 *   cycle      a frame whose caller, as its frame description has it, is itself
 *   wild       the stack pointer points nowhere at all while it computes
 *
 * Whoever walks these stacks has to stop, and to say why; the leaf (burn, cycle or wild) is known
 * all the same. Prints "READY" when it begins. x86_64 only.
 *
 * cc -O2 -g -fomit-frame-pointer -fno-optimize-sibling-calls -pthread unmap_stack.c -o unmap_stack
 */
#define _GNU_SOURCE
#include <alloca.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define PAGE 4096ul

static uint64_t deadline_ns;
static volatile uint64_t sink;

static uint64_t monotonic_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

/* Never returns: there may be nothing left to return to. */
__attribute__((noipa)) void burn(void)
{
	uint64_t x = 1;

	while (monotonic_ns() < deadline_ns)
		for (int i = 0; i < 1000000; i++)
			x = x * 6364136223846793005u + 1442695040888963407u;
	sink = x;
	_exit(0);
}

/* Calls a function on another stack, and says so to whoever unwinds. */
void call_on_stack(void *top, void (*function)(void));
__asm__(".text\n"
	".globl call_on_stack\n"
	".type call_on_stack, @function\n"
	"call_on_stack:\n"
	".cfi_startproc\n"
	"	push %rbp\n"
	".cfi_def_cfa_offset 16\n"
	".cfi_offset rbp, -16\n"
	"	mov %rsp, %rbp\n"
	".cfi_def_cfa_register rbp\n"
	"	mov %rdi, %rsp\n"
	"	call *%rsi\n"
	"	ud2\n"
	".cfi_endproc\n"
	".size call_on_stack, . - call_on_stack\n");

/* The address that it returns to is its own, and its frame does not move. */
void cycle(uint64_t iterations);
__asm__(".globl cycle\n"
	".type cycle, @function\n"
	"cycle:\n"
	".cfi_startproc\n"
	"	push %rbp\n"
	"	lea 1f(%rip), %rax\n"
	"	push %rax\n"
	"	mov %rsp, %rbp\n"
	".cfi_def_cfa rbp, 8\n"
	"1:	dec %rdi\n"
	"	jnz 1b\n"
	"	pop %rax\n"
	"	pop %rbp\n"
	"	ret\n"
	".cfi_endproc\n"
	".size cycle, . - cycle\n");

/* Computes with a stack pointer that is none. No signal may come meanwhile. */
void wild(uint64_t iterations, uint64_t stack);
__asm__(".globl wild\n"
	".type wild, @function\n"
	"wild:\n"
	".cfi_startproc\n"
	"	mov %rsp, %rax\n"
	"	mov %rsi, %rsp\n"
	"1:	dec %rdi\n"
	"	jnz 1b\n"
	"	mov %rax, %rsp\n"
	"	ret\n"
	".cfi_endproc\n"
	".size wild, . - wild\n");

static uintptr_t page_of(const void *address)
{
	return (uintptr_t)address & ~(PAGE - 1);
}

/* The end of the mapping that is called [stack]. */
static uintptr_t stack_end(void)
{
	unsigned long begin, end = 0;
	char line[512];
	FILE *maps = fopen("/proc/self/maps", "r");

	while (maps != NULL && fgets(line, sizeof(line), maps) != NULL)
		if (strstr(line, "[stack]") != NULL)
			sscanf(line, "%lx-%lx", &begin, &end);
	return end;
}

static uintptr_t outer_begin, outer_size;

static void *flicker(void *unused)
{
	while (monotonic_ns() < deadline_ns) {
		mprotect((void *)outer_begin, outer_size, PROT_NONE);
		mprotect((void *)outer_begin, outer_size, PROT_READ | PROT_WRITE);
	}
	return unused;
}

/* Goes down by some pages, then takes away what is above. */
__attribute__((noipa)) void without_outer(int flickering)
{
	char *room = alloca(16 * PAGE);
	pthread_t thread;

	memset(room, 0, 16 * PAGE);
	outer_begin = page_of(room) + 8 * PAGE;
	outer_size = stack_end() - outer_begin;
	if (flickering)
		pthread_create(&thread, NULL, flicker, NULL);
	else
		munmap((void *)outer_begin, outer_size);
	burn();
}

static char *own_stack;

__attribute__((noipa)) void without_caller(void)
{
	uintptr_t end = stack_end();

	/* All of the process's stack, as far as it has grown and a little more. */
	munmap((void *)(end - 64 * PAGE), 64 * PAGE);
	burn();
}

int main(int argc, char **argv)
{
	static const uint64_t nowhere[] = { 0, 8, 0x7fffffffffff, 0xdeadbeef000, 0xffffffff80000000,
					    0x8000000000000000, ~0ull };
	const char *what = argc == 3 ? argv[1] : "";

	if (argc != 3) {
		fprintf(stderr, "usage: unmap_stack caller|outer|flicker|cycle|wild SECONDS\n");
		return 64;
	}
	deadline_ns = monotonic_ns() + (uint64_t)(atof(argv[2]) * 1e9);
	puts("READY");
	fflush(stdout);
	if (strcmp(what, "caller") == 0) {
		own_stack = mmap(NULL, 16 * PAGE, PROT_READ | PROT_WRITE,
				 MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		call_on_stack(own_stack + 16 * PAGE, without_caller);
	}
	if (strcmp(what, "outer") == 0 || strcmp(what, "flicker") == 0)
		without_outer(what[0] == 'f');
	while (strcmp(what, "cycle") == 0 && monotonic_ns() < deadline_ns)
		cycle(1000000);
	for (unsigned i = 0; strcmp(what, "wild") == 0 && monotonic_ns() < deadline_ns; i++)
		wild(1000000, nowhere[i % (sizeof(nowhere) / sizeof(nowhere[0]))]);
	return 0;
}
