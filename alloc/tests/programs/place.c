/* The kernel finds the counter of attached probes by its place in the library's file: it has to lie in
 * a writable mapping of it, and no other mapping may have that place. The functions it
 * traps begin with a nop of one byte. And the period is what the environment says: argument. */
#include "loaded.h"

int main(int argc, char **argv) {
    CHECK(argc == 2);
    uintptr_t counter = (uintptr_t)of_library("everflame_alloc_semaphore");
    unsigned long from, to, offset, place = 0;
    char line[4096], rights[5];
    /* Twice: first to find the place in the file, then how often that is mapped. */
    int mapped = 0;
    for (int turn = 0; turn < 2; turn++) {
        FILE *maps = fopen("/proc/self/maps", "r");
        CHECK(maps);
        while (fgets(line, sizeof line, maps)) {
            CHECK(sscanf(line, "%lx-%lx %4s %lx", &from, &to, rights, &offset) == 4);
            if (!strstr(line, "libeverflame_alloc.so")) continue;
            if (turn == 0 && counter >= from && counter < to) {
                CHECK(rights[0] == 'r' && rights[1] == 'w');
                place = counter - from + offset;
            }
            if (turn == 1) mapped += place >= offset && place < offset + (to - from);
        }
        fclose(maps);
        CHECK(place);
    }
    CHECK(mapped == 1);
    CHECK(number("everflame_alloc_period") == strtoull(argv[1], NULL, 10));
    CHECK(samples() == 0);
#ifdef __x86_64__
    /* Not the nop of five bytes, which Linux 6.18 makes a call that children of fork die of. */
    CHECK(*(unsigned char *)of_library("everflame_alloc_sampled") == 0x90);
    CHECK(*(unsigned char *)of_library("everflame_free_sampled") == 0x90);
#endif
    printf("ok\n");
    return 0;
}
