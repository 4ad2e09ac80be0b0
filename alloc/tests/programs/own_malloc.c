/* Has an allocator of its own, as programs that are linked with one statically do. */
#include "loaded.h"

static char arena[64 << 20] __attribute__((aligned(16)));
static size_t used, calls;

void *malloc(size_t size) {
    calls++;
    size_t at = __atomic_fetch_add(&used, (size + 31) & ~(size_t)15, __ATOMIC_RELAXED);
    if (at + size + 32 > sizeof arena) return NULL;
    *(size_t *)(arena + at) = size;
    return arena + at + 16;
}
void free(void *object) {
    CHECK(!object || ((char *)object >= arena && (char *)object < arena + sizeof arena));
}
void *calloc(size_t count, size_t size) { return malloc(count * size); }
void *realloc(void *object, size_t size) {
    void *new = malloc(size);
    if (new && object) {
        size_t before = ((size_t *)object)[-2];
        memcpy(new, object, before < size ? before : size);
    }
    return new;
}

int main(void) {
    attach(1);
    for (int i = 0; i < 1000; i++) {
        char *text = strdup("by the C library, with our malloc");
        CHECK(text >= arena && text < arena + sizeof arena);
        free(text);
    }
    CHECK(calls >= 1000);
    CHECK(samples() == 0);
    printf("ok\n");
    return 0;
}
