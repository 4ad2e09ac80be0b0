//! As allocate.c, in Rust: waits for a line on stdin, allocates, says what, and ends after another.
//!
//!   make_boxes     64 MiB in boxes of 64 bytes
//!   make_vectors   256 MiB in vectors with room for 16 KiB
//!   make_zeroed    64 MiB in vectors of 4 KiB zeros
//!   make_grown     vectors that grow by 4 KiB up to 64 KiB, without more room than that, 64 times
//!   make_aligned   32 MiB in boxes of 1 KiB that are aligned to 256 bytes

use std::hint::black_box;
use std::io::{BufRead, Write};

const KIB: usize = 1 << 10;
const MIB: usize = 1 << 20;

#[repr(align(256))]
struct Aligned([u8; KIB]);

fn say(function: &str, bytes: usize, objects: usize) {
    println!("allocated function={function} bytes={bytes} objects={objects} live_bytes=0");
}

#[inline(never)]
#[unsafe(no_mangle)]
fn make_boxes() {
    let objects = 64 * MIB / 64;
    for _ in 0..objects {
        black_box(Box::new([1u8; 64]));
    }
    say("make_boxes", objects * 64, objects);
}

#[inline(never)]
#[unsafe(no_mangle)]
fn make_vectors() {
    let objects = 256 * MIB / (16 * KIB);
    for _ in 0..objects {
        black_box(Vec::<u8>::with_capacity(16 * KIB));
    }
    say("make_vectors", objects * 16 * KIB, objects);
}

#[inline(never)]
#[unsafe(no_mangle)]
fn make_zeroed() {
    let objects = 64 * MIB / (4 * KIB);
    for _ in 0..objects {
        black_box(vec![0u8; 4 * KIB]);
    }
    say("make_zeroed", objects * 4 * KIB, objects);
}

#[inline(never)]
#[unsafe(no_mangle)]
fn make_grown() {
    let (mut bytes, mut objects) = (0, 0);
    for _ in 0..64 {
        let mut vector = Vec::<u8>::new();
        for size in (4 * KIB..=64 * KIB).step_by(4 * KIB) {
            vector.reserve_exact(size - vector.len());
            vector.resize(size, 1);
            bytes += size;
            objects += 1;
        }
        black_box(&vector);
    }
    say("make_grown", bytes, objects);
}

#[inline(never)]
#[unsafe(no_mangle)]
fn make_aligned() {
    let objects = 32 * MIB / KIB;
    for _ in 0..objects {
        let object = Box::new(Aligned([1; KIB]));
        black_box(&object.0);
    }
    say("make_aligned", objects * KIB, objects);
}

#[inline(never)]
#[unsafe(no_mangle)]
fn outer() {
    make_boxes();
    make_vectors();
    make_zeroed();
    make_grown();
    make_aligned();
}

pub fn main() {
    let mut line = String::new();
    println!("ready");
    std::io::stdin().lock().read_line(&mut line).expect("a line");
    outer();
    println!("done");
    std::io::stdout().flush().expect("output");
    std::io::stdin().lock().read_line(&mut line).expect("a line");
}
