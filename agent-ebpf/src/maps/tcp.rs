//! What the programs that follow TCP connections need. Samples are built where those of requests to disks are.

use aya_ebpf::{
    macros::map,
    maps::{HashMap, PerCpuArray},
};
use everflame_agent_common::{
    limits::{MARKS, MAX_CONNECTIONS, MAX_LISTENERS},
    share::Share,
    tcp::Connection,
};

use crate::marks::Marks;

/// Connections, by the kernel's address of the socket. The agent sets the real size.
#[map]
pub static CONNECTIONS: HashMap<u64, Connection> = HashMap::with_max_entries(MAX_CONNECTIONS, 0);

/// Those of which it matters what is received.
#[map]
pub static TCP_MARKS: Marks = Marks::with_max_entries(MARKS, 0);

/// Where somebody listened when the agent began: the network namespace in the upper half, the port in the lower.
#[map]
pub static LISTENERS: HashMap<u64, u32> = HashMap::with_max_entries(MAX_LISTENERS, 0);

/// Which are sampled, of each sort.
#[map]
pub static TCP_SHARES: PerCpuArray<Share> = PerCpuArray::with_max_entries(5, 0);
