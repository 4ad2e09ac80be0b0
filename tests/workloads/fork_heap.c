/*
 * fork_heap: a process and its child that hold copies of the same objects.
 *
 *   before_fork    64 MiB in pieces of 4 KiB; the child frees every other one, the parent none
 *   in_child       32 MiB in pieces of 4 KiB, by the child, which keeps them
 *
 * Waits for a line on stdin, does all that, says what each function has allocated, waits for another line,
 * and ends. live_bytes is what is there in the process that has called the function.
 *
 * cc -O2 -g -fomit-frame-pointer -fno-optimize-sibling-calls -fno-builtin fork_heap.c -o fork_heap
 */
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

#define SEEN __attribute__((noipa))
#define MIB ((size_t)1 << 20)
#define PIECE ((size_t)4 << 10)
#define PIECES (64 * MIB / PIECE)

static void *held[PIECES];
static void *of_child[PIECES / 2];

static void wait_for_line(void)
{
	int c;

	do
		c = getchar();
	while (c != EOF && c != '\n');
}

SEEN static void before_fork(void)
{
	for (size_t i = 0; i < PIECES; i++)
		held[i] = malloc(PIECE);
}

SEEN static void in_child(void)
{
	for (size_t i = 0; i < PIECES / 2; i++)
		of_child[i] = malloc(PIECE);
}

int main(void)
{
	int done[2], end[2];
	char byte = 0;

	printf("ready\n");
	fflush(stdout);
	wait_for_line();
	before_fork();
	if (pipe(done) || pipe(end))
		return 71;
	pid_t child = fork();
	if (child < 0)
		return 71;
	if (child == 0) {
		close(end[1]);
		for (size_t i = 0; i < PIECES; i += 2)
			free(held[i]);
		in_child();
		if (write(done[1], &byte, 1) != 1)
			_exit(74);
		/* Returns when the parent ends. */
		_exit(read(end[0], &byte, 1) != 0);
	}
	if (read(done[0], &byte, 1) != 1)
		return 74;
	printf("allocated function=before_fork bytes=%zu objects=%zu live_bytes=%zu\n",
	       PIECES * PIECE, PIECES, PIECES * PIECE);
	printf("allocated function=in_child bytes=%zu objects=%zu live_bytes=%zu\n",
	       PIECES / 2 * PIECE, PIECES / 2, PIECES / 2 * PIECE);
	printf("done\n");
	fflush(stdout);
	wait_for_line();
	close(end[1]);
	waitpid(child, NULL, 0);
	return 0;
}
