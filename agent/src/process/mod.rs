//! Which processes there are, and what lies where in their memory.
//!
//! Fed by the collector in order of time; answers for each sample which process it belongs
//! to and which file each address comes from.

mod allocator;
mod data;
mod jit;
mod mappings;
mod objects;
mod running;
mod seed;
mod suspicion;
mod table;

pub use allocator::allocator;
pub use data::DataPlace;
pub use mappings::{Backing, Insertion, MappedMemory, Mapping, Mappings};
pub use objects::{ObjectCache, ObjectStats, kernel_build_id};
pub use seed::{
    SeededProcess, cpu_ticks, executable_ranges, has_other_threads, running_pids, seed,
};
pub use table::{Generation, Process, ProcessTable};
