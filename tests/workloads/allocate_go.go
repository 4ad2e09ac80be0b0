// As allocate.c, in Go: waits for a line on stdin, allocates, says what, and ends after another.
//
// main.makeBig allocates 256 MiB in slices of 64 KiB, main.makeSmall 64 MiB in objects of 64 bytes. These are sizes
// that Go's allocator has, so nothing is rounded.
package main

import (
	"bufio"
	"fmt"
	"os"
)

const mib = 1 << 20

type small struct {
	next    *small
	content [56]byte
}

var (
	big  []byte
	last *small
)

func say(function string, bytes, objects int) {
	fmt.Printf("allocated function=%s bytes=%d objects=%d live_bytes=0\n", function, bytes, objects)
}

//go:noinline
func makeBig() {
	objects := 256 * mib / (64 << 10)
	for i := 0; i < objects; i++ {
		big = make([]byte, 64<<10)
	}
	say("main.makeBig", objects*(64<<10), objects)
}

//go:noinline
func makeSmall() {
	objects := 64 * mib / 64
	for i := 0; i < objects; i++ {
		last = &small{}
	}
	say("main.makeSmall", objects*64, objects)
}

func main() {
	input := bufio.NewReader(os.Stdin)
	fmt.Println("ready")
	input.ReadString('\n')
	makeBig()
	makeSmall()
	fmt.Println("done")
	input.ReadString('\n')
}
