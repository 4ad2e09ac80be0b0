/* Loads a library, has it make objects, unloads it, and frees them. Argument: the library. */
#include "events.h"

#define OBJECTS 5000

int main(int argc, char **argv) {
    CHECK(argc == 2);
    attach(1);
    uint64_t before = live();
    void *plugin = dlopen(argv[1], RTLD_NOW | RTLD_LOCAL);
    CHECK(plugin);
    void *(*make)(size_t);
    *(void **)&make = dlsym(plugin, "plugin_make");
    CHECK(make);
    void *objects[OBJECTS];
    for (int i = 0; i < OBJECTS; i++) CHECK((objects[i] = make(1000)));
    uint64_t held = live() - before;
    CHECK(dlclose(plugin) == 0);
    for (int i = 0; i < OBJECTS; i++) free(objects[i]);
    CHECK(held > OBJECTS / 2);
    CHECK(live() < before + 100);
    CHECK(events_live() == live());
    printf("ok\n");
    return 0;
}
