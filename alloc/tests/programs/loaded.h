/* What the programs of these tests share: how they switch sampling on, as a profiler's uprobe would,
 * and read the library's numbers. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define CHECK(condition)                                                                    \
    do {                                                                                    \
        if (!(condition)) {                                                                 \
            fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #condition);                 \
            _exit(1);                                                                       \
        }                                                                                   \
    } while (0)

static inline void *of_library(const char *name) {
    void *address = dlsym(RTLD_DEFAULT, name);
    if (!address) {
        fprintf(stderr, "%s: is libeverflame_alloc.so loaded?\n", name);
        _exit(1);
    }
    return address;
}

static inline void attach(int by) {
    __atomic_fetch_add((uint16_t *)of_library("everflame_alloc_semaphore"), by, __ATOMIC_SEQ_CST);
}

static inline uint64_t number(const char *name) {
    return __atomic_load_n((uint64_t *)of_library(name), __ATOMIC_SEQ_CST);
}

static inline uint64_t live(void) { return number("everflame_alloc_live"); }
static inline uint64_t samples(void) { return number("everflame_alloc_samples"); }
static inline uint64_t dropped(void) { return number("everflame_alloc_dropped"); }
