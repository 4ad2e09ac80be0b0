/* realloc of objects that are sampled, which with a period of one byte are all. */
#include "events.h"

#define HUGE_SIZE ((size_t volatile){PTRDIFF_MAX})

int main(void) {
    attach(1);
    char *object = malloc(100000);
    uint64_t allocated = event_allocated, freed = event_freed;
    CHECK(allocated >= 1 && live() == events_live());

    /* Fails: as if nothing had happened, but for an end and a return. */
    CHECK(!realloc(object, HUGE_SIZE));
    CHECK(event_allocated == allocated && event_restored == 1 && event_freed == freed + 1);
    CHECK(event_sizes[event_slot((uint64_t)object) - event_live] == 100000);
    CHECK(live() == events_live());

    /* Grows: the old one ends, the new one begins, wherever it is. */
    object = realloc(object, 5000000);
    CHECK(object && event_allocated == allocated + 1 && event_freed == freed + 2);
    CHECK(event_sizes[event_slot((uint64_t)object) - event_live] == 5000000);

    /* Shrinks in place. */
    object = realloc(object, 50000);
    CHECK(object && event_allocated == allocated + 2 && event_freed == freed + 3);

    /* Freed while nobody listens: it is told all the same. */
    attach(-1);
    free(object);
    CHECK(event_freed == freed + 4 && live() == events_live());
    object = realloc(NULL, 70000);
    CHECK(object && event_allocated == allocated + 2);
    attach(1);
    object = realloc(object, 80000);
    CHECK(object && event_allocated == allocated + 3 && event_freed == freed + 4);
    free(object);
    CHECK(event_freed == freed + 5 && live() == events_live());
    printf("ok\n");
    return 0;
}
