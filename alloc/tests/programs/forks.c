/* Forks again and again while its threads allocate; each child allocates, frees what its parent
 * allocated, and starts a thread. */
#include "loaded.h"
#include <pthread.h>
#include <sys/wait.h>

#define OBJECTS 2000

static _Atomic int done;

static void *work(void *unused) {
    (void)unused;
    char *objects[OBJECTS] = {0};
    unsigned at = 0;
    while (!done) {
        at = (at + 7919) % OBJECTS;
        if (objects[at]) CHECK(objects[at][0] == (char)at);
        free(objects[at]);
        objects[at] = malloc(at + 1);
        CHECK(objects[at]);
        objects[at][0] = (char)at;
    }
    for (int i = 0; i < OBJECTS; i++) free(objects[i]);
    return NULL;
}

static void *brief(void *unused) {
    (void)unused;
    for (int i = 0; i < 20000; i++) free(malloc(i % 3000));
    return NULL;
}

int main(void) {
    attach(1);
    pthread_t threads[3], in_child;
    for (int i = 0; i < 3; i++) CHECK(pthread_create(&threads[i], NULL, work, NULL) == 0);
    char *objects[OBJECTS];
    for (int i = 0; i < OBJECTS; i++) CHECK((objects[i] = malloc(500)));
    for (int turn = 0; turn < 30; turn++) {
        pid_t child = fork();
        CHECK(child >= 0);
        if (child == 0) {
            uint64_t samples_before = samples(), live_before = live();
            for (int i = 0; i < OBJECTS; i++) {
                free(objects[i]);
                CHECK((objects[i] = malloc(i)));
            }
            for (int i = 0; i < OBJECTS; i++) free(objects[i]);
            CHECK(samples() > samples_before && live() < live_before);
            CHECK(pthread_create(&in_child, NULL, brief, NULL) == 0);
            CHECK(pthread_join(in_child, NULL) == 0);
            _exit(0);
        }
        int status;
        CHECK(waitpid(child, &status, 0) == child);
        CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    }
    done = 1;
    for (int i = 0; i < 3; i++) CHECK(pthread_join(threads[i], NULL) == 0);
    for (int i = 0; i < OBJECTS; i++) free(objects[i]);
    CHECK(live() < 100);
    printf("ok\n");
    return 0;
}
