/* The kernel finds the counter of attached probes by its place in the library's file: it has to lie in
 * a writable mapping of it. And the period is what the environment says: argument. */
#include "loaded.h"

int main(int argc, char **argv) {
    CHECK(argc == 2);
    uintptr_t counter = (uintptr_t)of_library("everflame_alloc_semaphore");
    FILE *maps = fopen("/proc/self/maps", "r");
    CHECK(maps);
    char line[4096];
    int found = 0;
    while (fgets(line, sizeof line, maps)) {
        unsigned long from, to;
        char rights[5];
        CHECK(sscanf(line, "%lx-%lx %4s", &from, &to, rights) == 3);
        if (counter < from || counter >= to) continue;
        CHECK(rights[0] == 'r' && rights[1] == 'w');
        CHECK(strstr(line, "libeverflame_alloc.so"));
        found = 1;
    }
    fclose(maps);
    CHECK(found);
    CHECK(number("everflame_alloc_period") == strtoull(argv[1], NULL, 10));
    CHECK(samples() == 0);
    printf("ok\n");
    return 0;
}
