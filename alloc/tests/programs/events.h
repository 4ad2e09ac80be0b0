/* Takes the place of the two functions that a profiler traps: a program's own symbols come before a
 * library's (with -rdynamic). Keeps the set of live objects as a profiler would, and checks that what it is
 * told makes sense. */
#include "loaded.h"

#define EVENT_SLOTS (1 << 20)

/* volatile: malloc is declared "leaf", so compilers think that it does not change a file's variables. */
static volatile uint64_t event_live[EVENT_SLOTS]; /* addresses, 0 where there is none */
static volatile uint64_t event_sizes[EVENT_SLOTS];
static volatile uint64_t event_allocated, event_freed, event_restored, event_untracked;
static volatile double event_bytes; /* only of programs with one thread */
static char event_lock;

static volatile uint64_t *event_slot(uint64_t address) {
    uint64_t at = (address * 0x9e3779b97f4a7c15u) >> 44;
    while (event_live[at] != 0 && event_live[at] != address) at = (at + 1) % EVENT_SLOTS;
    return &event_live[at];
}

static void event_begin(void) {
    while (__atomic_test_and_set(&event_lock, __ATOMIC_ACQUIRE)) {}
}
static void event_end(void) { __atomic_clear(&event_lock, __ATOMIC_RELEASE); }

/* 1 - exp(-x) without libm. */
static double sampled_share(double x) {
    if (x > 30) return 1;
    double term = 1, sum = 0;
    int halvings = 0;
    while (x > 0.01) x /= 2, halvings++;
    for (int i = 1; i < 8; i++) term *= -x / i, sum -= term;
    while (halvings--) sum = sum * (2 - sum);
    return sum;
}

void everflame_alloc_sampled(void *address, size_t size, uint64_t period, uint64_t flags) {
    event_begin();
    CHECK(address && period && flags <= 3);
    if (flags & 1) {
        volatile uint64_t *slot = event_slot((uint64_t)address);
        CHECK(*slot == 0); /* the end of the one before it must have been reported */
        *slot = (uint64_t)address;
        event_sizes[slot - event_live] = size;
    } else {
        event_untracked++;
    }
    if (flags & 2) {
        event_restored++;
    } else {
        event_allocated++;
        event_bytes += size / sampled_share((double)size / period);
    }
    event_end();
}

void everflame_free_sampled(void *address) {
    event_begin();
    volatile uint64_t *slot = event_slot((uint64_t)address);
    CHECK(*slot == (uint64_t)address);
    /* Moves up what follows, so that searches still end at an empty slot. */
    uint64_t hole = slot - event_live, at = hole;
    for (;;) {
        at = (at + 1) % EVENT_SLOTS;
        if (!event_live[at]) break;
        uint64_t home = (event_live[at] * 0x9e3779b97f4a7c15u) >> 44;
        if (((at - home) % EVENT_SLOTS) >= ((at - hole) % EVENT_SLOTS)) {
            event_live[hole] = event_live[at];
            event_sizes[hole] = event_sizes[at];
            hole = at;
        }
    }
    event_live[hole] = 0;
    event_freed++;
    event_end();
}

static inline uint64_t events_live(void) {
    uint64_t count = 0;
    for (int i = 0; i < EVENT_SLOTS; i++) count += event_live[i] != 0;
    return count;
}
