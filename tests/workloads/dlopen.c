/*
 * dlopen TIMES LIBRARY...: libraries that come and go.
 *
 * Loads the libraries (plugin.c) in turn, calls plugin_VARIANT_entry, which computes for some
 * milliseconds, and unloads it, TIMES times in all. The VARIANT is the digit in a library's
 * name after the last "plugin_". As each is unloaded before the next one is loaded, they come to lie at
 * the same addresses. Prints "READY" when it begins and "DONE" when it ends, and waits then
 * until its standard input ends.
 *
 * cc -O2 -g -fomit-frame-pointer -fno-optimize-sibling-calls dlopen.c -o dlopen
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef uint64_t entry(uint64_t x, uint64_t iterations);

static volatile uint64_t sink;

__attribute__((noipa)) uint64_t call_plugin(const char *path)
{
	char name[] = "plugin_0_entry";
	const char *variant = path;
	void *library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
	entry *function;
	uint64_t x;

	for (const char *at = path; (at = strstr(at, "plugin_")) != NULL; at++)
		variant = at;
	name[strlen("plugin_")] = variant[strlen("plugin_")];
	function = library == NULL ? NULL : (entry *)dlsym(library, name);
	if (function == NULL) {
		fprintf(stderr, "dlopen: %s\n", dlerror());
		exit(70);
	}
	x = function(1, 5000000);
	dlclose(library);
	return x;
}

int main(int argc, char **argv)
{
	uint64_t x = 0;

	if (argc < 3) {
		fprintf(stderr, "usage: dlopen TIMES LIBRARY...\n");
		return 64;
	}
	puts("READY");
	fflush(stdout);
	for (int i = 0; i < atoi(argv[1]); i++)
		x += call_plugin(argv[2 + i % (argc - 2)]);
	sink = x;
	puts("DONE");
	fflush(stdout);
	while (getchar() != EOF)
		;
	return 0;
}
