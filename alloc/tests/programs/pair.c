/* How long a malloc and its free take: prints ns per pair. Arguments: 1 to switch sampling on, pairs,
 * size. */
#include "loaded.h"
#include <time.h>

static double now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec * 1e9 + time.tv_nsec;
}

int main(int argc, char **argv) {
    CHECK(argc == 4);
    if (atoi(argv[1])) attach(1); /* fails without the library */
    long pairs = atol(argv[2]);
    size_t size = strtoull(argv[3], NULL, 10);
    void *volatile object;
    double from = now();
    for (long i = 0; i < pairs; i++) {
        object = malloc(size);
        free(object);
    }
    printf("%.3f\n", (now() - from) / pairs);
    return 0;
}
