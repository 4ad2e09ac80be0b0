/* A library to preload after the other one, for programs that know nothing of it: switches sampling on,
 * and on standard error says at the end whether there were samples. */
#include "loaded.h"

static int told = 2;

__attribute__((constructor)) static void begin(void) {
    if (getenv("ATTACH_SAYS")) told = dup(2); /* some programs close theirs before they end */
    attach(1);
}

__attribute__((destructor)) static void end(void) {
    char text[64];
    int length = snprintf(text, sizeof text, "sampled %s\n", samples() ? "some" : "none");
    if (getenv("ATTACH_SAYS")) (void)!write(told, text, length);
}
