// goroutines SECONDS: a Go program, whose code has frame pointers but no .eh_frame.
//
// Two goroutines compute in goLeaf < goMiddle < goOuter < main.main.func1 < runtime.goexit, with
// a wrapper before the last in some versions of Go. Each goroutine's stack is memory of its own,
// at whose end a walk has to stop. Prints "READY" when it begins.
//
// go build goroutines.go
package main

import (
	"fmt"
	"os"
	"strconv"
	"sync"
	"time"
)

//go:noinline
func goLeaf(x uint64) uint64 {
	// A function without variables on the stack has no frame, and a walk along frame
	// pointers then misses its caller.
	var room [8]uint64
	room[x%8] = x
	for i := 0; i < 60000; i++ {
		x = x*6364136223846793005 + 1442695040888963407
	}
	return x + room[7]
}

//go:noinline
func goMiddle(x uint64) uint64 {
	var room [40]uint64
	room[x%40] = goLeaf(x)
	return room[7] + room[x%40]
}

//go:noinline
func goOuter(x uint64) uint64 {
	return goMiddle(x) + 1
}

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: goroutines SECONDS")
		os.Exit(64)
	}
	seconds, _ := strconv.ParseFloat(os.Args[1], 64)
	deadline := time.Now().Add(time.Duration(seconds * 1e9))
	fmt.Println("READY")
	var all sync.WaitGroup
	for i := 0; i < 2; i++ {
		all.Add(1)
		go func(x uint64) {
			defer all.Done()
			for time.Now().Before(deadline) {
				x = goOuter(x)
			}
		}(uint64(i))
	}
	all.Wait()
}
