/* Allocates objects of one size, frees every second one, then the others. Prints the samples, the live
 * samples after each of the three steps, and the bytes that the samples stand for.
 * Arguments: size, number of objects, 1 to switch sampling on. */
#include "events.h"

int main(int argc, char **argv) {
    CHECK(argc == 4);
    size_t size = strtoull(argv[1], NULL, 10), count = strtoull(argv[2], NULL, 10);
    void **objects = malloc(count * sizeof *objects);
    CHECK(objects);
    printf("%s", ""); /* the buffer of stdout */
    if (atoi(argv[3])) attach(1);
    for (size_t i = 0; i < count; i++) CHECK((objects[i] = malloc(size)));
    uint64_t samples_all = samples(), live_all = live();
    for (size_t i = 0; i < count; i += 2) free(objects[i]);
    uint64_t live_half = live();
    for (size_t i = 1; i < count; i += 2) free(objects[i]);
    uint64_t live_none = live();
    if (atoi(argv[3])) attach(-1);
    CHECK(event_allocated == samples());
    printf("%lu %lu %lu %lu %lu %.0f\n", (unsigned long)samples_all, (unsigned long)live_all,
           (unsigned long)live_half, (unsigned long)live_none, (unsigned long)dropped(), event_bytes);
    return 0;
}
