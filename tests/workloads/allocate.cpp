// Allocates known amounts in known places with C++'s operator new; see allocate.c.
//
// make_big: 512 MiB in arrays of 64 KiB, each deleted at once. make_small: 64 MiB in objects of 64 bytes, every
// other one deleted at once, the others never. leak_here: 64 MiB in arrays of 4 KiB.
#include <cstddef>
#include <iostream>
#include <string>

namespace {

struct Small {
    Small *next;
    char rest[56];
};

Small *kept;

template <typename T> T *used(T *object)
{
    asm volatile("" : "+r"(object) : : "memory");
    return object;
}

} // namespace

__attribute__((noipa)) void make_big()
{
    for (int i = 0; i < 8192; i++)
        delete[] used(new char[64 << 10]);
    std::cout << "allocated function=make_big bytes=536870912 objects=8192 live_bytes=0" << std::endl;
}

__attribute__((noipa)) void make_small()
{
    for (int i = 0; i < 1 << 20; i++) {
        auto *object = used(new Small{});
        if (i % 2) {
            delete object;
        } else {
            object->next = kept;
            kept = object;
        }
    }
    std::cout << "allocated function=make_small bytes=67108864 objects=1048576 live_bytes=33554432" << std::endl;
}

__attribute__((noipa)) void leak_here()
{
    for (int i = 0; i < 16 << 10; i++)
        used(new char[4 << 10]);
    std::cout << "allocated function=leak_here bytes=67108864 objects=16384 live_bytes=67108864" << std::endl;
}

int main()
{
    std::string line;
    std::cout << "ready" << std::endl;
    std::getline(std::cin, line);
    make_big();
    make_small();
    leak_here();
    std::cout << "done" << std::endl;
    std::getline(std::cin, line);
    return used(kept) == nullptr;
}
