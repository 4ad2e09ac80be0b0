/* How long a malloc and its free take, beside 64 MiB of objects that are alive: prints ns per pair.
 * Arguments: 1 to switch sampling on, pairs, size of the objects; or size 0 for objects of 16 to 1040 bytes
 * that are freed in another order, 10000 of them at a time. */
#include "loaded.h"
#include <time.h>

#define HELD 65536
#define SLOTS 10000

static double now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec * 1e9 + time.tv_nsec;
}

static void *held[HELD], *slots[SLOTS];

int main(int argc, char **argv) {
    CHECK(argc == 4);
    if (atoi(argv[1])) attach(1);
    long pairs = atol(argv[2]);
    size_t size = strtoull(argv[3], NULL, 10);
    for (int i = 0; i < HELD; i++) CHECK((held[i] = malloc(1000)));
    for (int i = 0; i < SLOTS; i++) slots[i] = malloc(500);
    void *volatile object;
    uint64_t random = 1;
    double from = now();
    if (size) {
        for (long i = 0; i < pairs; i++) {
            object = malloc(size);
            free(object);
        }
    } else {
        for (long i = 0; i < pairs; i++) {
            random = random * 6364136223846793005u + 1442695040888963407u;
            void **slot = &slots[(random >> 32) % SLOTS];
            free(*slot);
            *slot = malloc(16 + (random >> 20) % 1024);
        }
    }
    printf("%.3f\n", (now() - from) / pairs);
    return 0;
}
