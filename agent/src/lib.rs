//! The everflame agent: samples a host with eBPF, symbolises what it saw, and delivers pprof
//! profiles to a collector.
//!
//! The modules are the stages that data flows through, in this order:
//!
//! | module | what it does |
//! | --- | --- |
//! | [`collect`] | takes samples and process records out of the kernel, in order of time |
//! | [`unwind`] | gives BPF what it needs to walk stacks without frame pointers |
//! | [`process`] | knows which processes there are and what lies in their memory |
//! | [`identity`] | says who a process is: service, version, container, unit |
//! | [`live`] | remembers which sampled objects processes hold |
//! | [`starts`] | puts the beginning of requests and connections together with what becomes of them |
//! | [`aggregate`] | adds up equal stacks of a window |
//! | [`history`] | remembers what processes have grown by, for when memory runs out |
//! | [`symbolize`] | turns addresses into functions and lines |
//! | [`wait`] | says what a thread waited for |
//! | [`profile`] | builds pprof profiles |
//! | [`export`] | spools and delivers them |
//!
//! [`pipeline`] joins them to an agent, [`session`] to a recording; [`unwind_info`] shows what
//! [`unwind`] knows of a file. Queues between threads
//! are bounded, and what a stage drops it counts in [`metrics`].

pub mod aggregate;
pub mod allocators;
pub mod capabilities;
pub mod cli;
pub mod collect;
mod contention;
pub mod disks;
pub mod export;
pub mod health;
pub mod history;
pub mod http;
pub mod identity;
mod joins;
pub mod kernel;
pub mod lifecycle;
pub mod live;
pub mod metrics;
pub mod object;
pub mod pipeline;
pub mod process;
pub mod profile;
pub mod profiler;
mod publish;
pub mod rotation;
pub mod self_profile;
pub mod session;
pub mod size;
pub mod starts;
pub mod symbolize;
pub mod target;
pub mod unwind;
pub mod unwind_info;
mod urgent;
pub mod wait;
pub mod windows;
