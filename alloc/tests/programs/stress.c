/* Threads allocate, resize and free in all ways there are, each other's objects too, and look whether
 * what they wrote is still there. Arguments: threads, rounds. */
#include "events.h"
#include <errno.h>
#include <malloc.h>
#include <pthread.h>

#define SHARED 512

struct object {
    unsigned char *data;
    size_t size;
};

static struct object *_Atomic shared[SHARED];
static long rounds;

static uint64_t next(uint64_t *state) {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    return *state;
}

static unsigned char pattern(const unsigned char *data, size_t i) {
    return (unsigned char)(((uintptr_t)data >> 4) + i);
}

static void fill(unsigned char *data, size_t size) {
    for (size_t i = 0; i < size; i++) data[i] = pattern(data, i);
}

static void check(const unsigned char *before, const unsigned char *data, size_t size) {
    for (size_t i = 0; i < size; i++) CHECK(data[i] == pattern(before, i));
}

static void allocate(struct object *object, uint64_t *state) {
    uint64_t r = next(state);
    size_t size = r % 100 == 0 ? next(state) % 300000 : next(state) % 700;
    size_t alignment = (size_t)16 << (r >> 32) % 9;
    unsigned char *data = NULL;
    void *out = NULL;
    switch ((r >> 8) % 8) {
    case 0:
        data = calloc(size / 8 + 1, 8);
        size = (size / 8 + 1) * 8;
        for (size_t i = 0; i < size; i++) CHECK(data[i] == 0);
        break;
    case 1:
        data = memalign(alignment, size);
        CHECK((uintptr_t)data % alignment == 0);
        break;
    case 2:
        CHECK(posix_memalign(&out, alignment, size) == 0);
        data = out;
        CHECK((uintptr_t)data % alignment == 0);
        break;
    case 3:
        data = aligned_alloc(alignment, size / alignment * alignment);
        size = size / alignment * alignment;
        CHECK((uintptr_t)data % alignment == 0);
        break;
    case 4:
        data = reallocarray(NULL, size + 1, 1);
        break;
    default:
        data = malloc(size);
    }
    CHECK(data || size == 0);
    fill(data, size);
    object->data = data;
    object->size = size;
}

static void resize(struct object *object, uint64_t *state) {
    size_t size = next(state) % (object->size * 2 + 1) + 1;
    unsigned char *before = object->data;
    size_t kept = size < object->size ? size : object->size;
    unsigned char *data = next(state) % 2 ? realloc(before, size) : reallocarray(before, 1, size);
    CHECK(data);
    check(before, data, kept);
    fill(data, size);
    object->data = data;
    object->size = size;
}

static void *work(void *argument) {
    uint64_t state = (uint64_t)argument * 0x9e3779b97f4a7c15u + 1;
    for (long i = 0; i < rounds; i++) {
        struct object *object = malloc(sizeof *object);
        CHECK(object);
        allocate(object, &state);
        if (next(&state) % 3 == 0) resize(object, &state);
        object = __atomic_exchange_n(&shared[next(&state) % SHARED], object, __ATOMIC_ACQ_REL);
        if (object) {
            check(object->data, object->data, object->size);
            free(object->data);
            free(object);
        }
        if (i % 1000 == 0) {
            /* What cannot be had: the old object stays. */
            unsigned char *data = malloc(3000);
            fill(data, 3000);
            size_t volatile huge = PTRDIFF_MAX;
            CHECK(!realloc(data, huge) && errno == ENOMEM);
            CHECK(!reallocarray(data, huge, 4) && errno == ENOMEM);
            CHECK(!malloc(huge) && !calloc(huge, huge));
            check(data, data, 3000);
            free(data);
            free(NULL);
        }
    }
    return NULL;
}

int main(int argc, char **argv) {
    CHECK(argc == 3);
    int threads = atoi(argv[1]);
    rounds = atol(argv[2]);
    attach(1);
    pthread_t thread[64];
    CHECK(threads <= 64);
    for (long i = 0; i < threads; i++) {
        /* Some come while nobody listens, and there are frees meanwhile. */
        CHECK(pthread_create(&thread[i], NULL, work, (void *)(i + 1)) == 0);
        attach(-1);
        usleep(1000);
        attach(1);
    }
    for (int i = 0; i < threads; i++) CHECK(pthread_join(thread[i], NULL) == 0);
    attach(-1);
    for (int i = 0; i < SHARED; i++) {
        struct object *object = shared[i];
        if (!object) continue;
        check(object->data, object->data, object->size);
        free(object->data);
        free(object);
    }
    CHECK(event_allocated == samples());
    CHECK(event_untracked == dropped());
    CHECK(events_live() == live());
    CHECK(event_allocated > 0 && event_restored > 0);
    /* What the C library keeps of threads that have ended. */
    CHECK(live() <= 4 * (uint64_t)threads);
    printf("ok\n");
    return 0;
}
