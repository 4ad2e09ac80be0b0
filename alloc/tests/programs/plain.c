/* Allocates. */
#include <stdio.h>
#include <stdlib.h>

int main(void) {
    for (int i = 0; i < 1000; i++) free(malloc(i * 100));
    puts("ok");
    return 0;
}
