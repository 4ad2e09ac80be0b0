//! What the BPF programs and the agent agree on.
//!
//! Both sides of the ring buffer compile this crate, so a record or a counter has one
//! definition. Everything that crosses the boundary is `repr(C)`, made of integers only,
//! padded by hand, and its size is checked at compile time: the kernel hands us bytes,
//! and any bit pattern must be a valid value.
//!
//! The crate also holds the pure part of unwinding ([`unwind`]), which is generic over
//! how memory is read: through BPF helpers in the kernel, through slices in tests.
#![no_std]
#![forbid(unsafe_code)]

#[cfg(test)]
extern crate std;

pub mod allocation;
pub mod block;
pub mod config;
pub mod cpu_time;
pub mod event;
pub mod growth;
pub mod limits;
pub mod live;
pub mod lock;
pub mod share;
pub mod stats;
pub mod tcp;
pub mod unwind;
pub mod wait;
