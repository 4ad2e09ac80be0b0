/*
 * As allocate.c, by C++'s operators new: waits for a line on stdin, allocates, says what, and ends after another.
 *
 *   make_array     256 MiB in arrays of 10 KiB (new char[])
 *   make_object    64 MiB in objects of 64 bytes (new)
 *   make_strings   strings of 1000 characters, each with room for one more: 64 MiB
 *   make_aligned   64 MiB in objects of 4 KiB that are aligned to 128 bytes
 */
#include <cstddef>
#include <cstdio>
#include <string>

#define SEEN extern "C" __attribute__((noipa))

static const size_t KIB = 1024, MIB = KIB * KIB;

struct Object {
	char content[64];
};

struct alignas(128) Aligned {
	char content[4096];
};

/* What the compiler cannot see through, so that it keeps allocations. */
static void use(void *object)
{
	__asm__ volatile("" : : "r"(object) : "memory");
}

static void say(const char *function, size_t bytes, size_t objects)
{
	std::printf("allocated function=%s bytes=%zu objects=%zu live_bytes=0\n", function, bytes,
		    objects);
	std::fflush(stdout);
}

SEEN void make_array()
{
	size_t objects = 256 * MIB / (10 * KIB);

	for (size_t i = 0; i < objects; i++) {
		char *array = new char[10 * KIB];

		use(array);
		delete[] array;
	}
	say("make_array", objects * 10 * KIB, objects);
}

SEEN void make_object()
{
	size_t objects = 64 * MIB / sizeof(Object);

	for (size_t i = 0; i < objects; i++) {
		Object *object = new Object;

		use(object);
		delete object;
	}
	say("make_object", objects * sizeof(Object), objects);
}

SEEN void make_strings()
{
	size_t objects = 64 * MIB / 1001;

	for (size_t i = 0; i < objects; i++) {
		std::string string(1000, 'x');

		use(&string[0]);
	}
	say("make_strings", objects * 1001, objects);
}

SEEN void make_aligned()
{
	size_t objects = 64 * MIB / sizeof(Aligned);

	for (size_t i = 0; i < objects; i++) {
		Aligned *object = new Aligned;

		use(object);
		delete object;
	}
	say("make_aligned", objects * sizeof(Aligned), objects);
}

SEEN void outer()
{
	make_array();
	make_object();
	make_strings();
	make_aligned();
}

static void wait_for_line()
{
	int c;

	do
		c = std::getchar();
	while (c != EOF && c != '\n');
}

int main()
{
	std::printf("ready\n");
	std::fflush(stdout);
	wait_for_line();
	outer();
	std::printf("done\n");
	std::fflush(stdout);
	wait_for_line();
	return 0;
}
