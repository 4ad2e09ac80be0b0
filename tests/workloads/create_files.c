/*
 * create_files DIR PROCESSES SECONDS: processes that want the same kernel lock.
 *
 * Each creates files in DIR and removes them again, in create_and_remove(): both need the
 * directory's inode rwsem for writing, and with more processes than CPUs those that do not get it
 * sleep. Each tenth round reads the directory, which holds two thousand files, in list(), with
 * that rwsem held for reading. Beside the lines of waits.h, one for each process:
 *
 *   files name=N tid=T operations=O ns=S      creations and removals, and the time in them
 *   total operations=O
 *
 * cc -O2 -g -fomit-frame-pointer -fno-optimize-sibling-calls -pthread create_files.c -o create_files
 */
#include "waits.h"

#include <dirent.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <signal.h>
#include <sys/wait.h>

#define MAX_PROCESSES 64
#define FILES 2000

struct result {
	struct span span;
	struct wait_site site;
};

static struct result *results;
static int directory;

static void make_name(char *name, size_t size, int process, int number)
{
	snprintf(name, size, "everflame-%d-%d", process, number);
}

static SEEN void create_and_remove(const char *name)
{
	int fd = openat(directory, name, O_CREAT | O_EXCL | O_WRONLY | O_CLOEXEC, 0600);

	if (fd < 0)
		fail(name);
	close(fd);
	if (unlinkat(directory, name, 0))
		fail(name);
}

static SEEN void list(const char *path)
{
	DIR *entries = opendir(path);

	if (!entries)
		fail(path);
	while (readdir(entries))
		;
	closedir(entries);
}

static void work(const char *path, int process, struct result *result)
{
	char name[64];

	make_name(name, sizeof(name), process, 0);
	for (int round = 0; monotonic_ns() < result->span.start_ns + duration_ns; round++) {
		uint64_t since_ns = monotonic_ns();

		create_and_remove(name);
		result->site.count += 2;
		result->site.ns += monotonic_ns() - since_ns;
		if (round % 10 == 0)
			list(path);
	}
}

/* Files that stay, so that the directory takes some time to read; or takes them away. */
static void make_files(int make)
{
	char name[64];

	for (int number = 1; number <= FILES; number++) {
		make_name(name, sizeof(name), 0, number);
		if (!make)
			unlinkat(directory, name, 0);
		else
			close(openat(directory, name, O_CREAT | O_WRONLY | O_CLOEXEC, 0600));
	}
}

int main(int argc, char **argv)
{
	pid_t pids[MAX_PROCESSES];
	unsigned long long operations = 0;
	int processes = argc == 4 ? atoi(argv[2]) : 0;

	if (processes < 1 || processes > MAX_PROCESSES) {
		fprintf(stderr, "usage: create_files DIR PROCESSES SECONDS\n");
		return 64;
	}
	duration_ns = seconds_to_ns(argv[3]);
	directory = open(argv[1], O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (directory < 0)
		fail(argv[1]);
	results = (struct result *)mmap(NULL, MAX_PROCESSES * sizeof(*results),
					PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (results == MAP_FAILED)
		fail("mmap");
	make_files(1);
	make_start_gate();
	for (int i = 0; i < processes; i++) {
		pids[i] = fork();
		if (pids[i] < 0)
			fail("fork");
		if (pids[i] == 0) {
			prctl(PR_SET_PDEATHSIG, SIGKILL);
			close(start_gate[1]);
			wait_for_start();
			span_begin(&results[i].span);
			work(argv[1], i, &results[i]);
			span_end(&results[i].span);
			_exit(0);
		}
	}
	printf("ready pid=%d threads=", (int)getpid());
	for (int i = 0; i < processes; i++)
		printf("%sprocess_%d:%d", i ? "," : "", i, (int)pids[i]);
	printf("\n");
	start_on_stdin();
	for (int i = 0; i < processes; i++) {
		int status = 0;

		if (waitpid(pids[i], &status, 0) != pids[i] || status != 0)
			return 1;
	}
	make_files(0);
	for (int i = 0; i < processes; i++) {
		char name[32];

		snprintf(name, sizeof(name), "process_%d", i);
		print_thread(name, pids[i], &results[i].span);
		printf("files name=%s tid=%d operations=%llu ns=%llu\n", name, (int)pids[i],
		       (unsigned long long)results[i].site.count,
		       (unsigned long long)results[i].site.ns);
		operations += results[i].site.count;
	}
	printf("total operations=%llu\n", operations);
	return 0;
}
