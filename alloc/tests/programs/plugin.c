/* A library that makes objects for whoever loads it. */
#include <stdlib.h>

void *plugin_make(size_t size) { return malloc(size); }
