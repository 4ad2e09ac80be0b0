//! Allocates known amounts in known places with Rust's system allocator; see `allocate.c`.
//!
//! make_big: 512 MiB in vectors of 64 KiB, each dropped at once. make_small: 64 MiB in boxes of 64 bytes, every
//! other one dropped at once, the others at the end of the program. leak_here: 64 MiB in boxes of 4 KiB.

use std::hint::black_box;
use std::io::{Write as _, stdin, stdout};

fn say(text: &str) {
    println!("{text}");
    stdout().flush().unwrap();
}

fn wait_for_line() {
    stdin().read_line(&mut String::new()).unwrap();
}

#[inline(never)]
fn make_big() {
    for _ in 0..8192 {
        drop(black_box(Vec::<u8>::with_capacity(64 << 10)));
    }
    say("allocated function=make_big bytes=536870912 objects=8192 live_bytes=0");
}

#[inline(never)]
fn make_small(kept: &mut Vec<Box<[u8; 64]>>) {
    for number in 0..1 << 20 {
        let object = black_box(Box::new([0u8; 64]));
        if number % 2 == 0 {
            kept.push(object);
        }
    }
    say("allocated function=make_small bytes=67108864 objects=1048576 live_bytes=33554432");
}

#[inline(never)]
fn leak_here() {
    for _ in 0..16 << 10 {
        black_box(Box::leak(Box::new([0u8; 4 << 10])));
    }
    say("allocated function=leak_here bytes=67108864 objects=16384 live_bytes=67108864");
}

fn main() {
    // Before anybody looks.
    let mut kept = Vec::with_capacity(1 << 19);
    say("ready");
    wait_for_line();
    make_big();
    make_small(&mut kept);
    leak_here();
    say("done");
    wait_for_line();
    black_box(&kept);
}
