/*
 * plugin: a shared library for dlopen.c, whose chain of calls is known.
 *
 * plugin_VARIANT_entry calls plugin_VARIANT_middle calls plugin_VARIANT_leaf, which computes.
 * Variants lie differently in their files and use stack differently, so that one that is
 * loaded where another was before is unwound wrongly with the other's table.
 *
 * cc -O2 -g -fomit-frame-pointer -fno-optimize-sibling-calls -fPIC -shared plugin.c -o plugin
 */
#include <stdint.h>

/* Other variants are compiled with -DVARIANT=N. */
#ifndef VARIANT
#define VARIANT 0
#endif

#define PASTE(a, b, c) a##b##c
#define NAME_OF(variant, part) PASTE(plugin_, variant, part)
#define NAME(part) NAME_OF(VARIANT, part)

#define ROOM (16 + 104 * VARIANT)

/* What shifts the code against that of other variants. */
__attribute__((noipa, used)) uint64_t NAME(_padding)(uint64_t x)
{
	__asm__ volatile(".skip %c0, 0x90" : : "i"(16 + 64 * VARIANT));
	return x;
}

__attribute__((noipa)) uint64_t NAME(_leaf)(uint64_t x, uint64_t iterations)
{
	for (uint64_t i = 0; i < iterations; i++)
		x = x * 6364136223846793005u + 1442695040888963407u;
	return x;
}

__attribute__((noipa)) uint64_t NAME(_middle)(uint64_t x, uint64_t iterations)
{
	volatile uint64_t room[ROOM / 8];

	room[0] = x;
	x = NAME(_leaf)(x, iterations);
	return x + room[0];
}

__attribute__((noipa)) uint64_t NAME(_entry)(uint64_t x, uint64_t iterations)
{
	volatile uint64_t room[(3 * ROOM) / 8];
	uint64_t y = x + 1;

	__asm__ volatile("" : "+r"(y));
	room[0] = x;
	x = NAME(_middle)(x, iterations);
	return x + y + room[0];
}
