//! Settings that the agent writes into the programs' read-only data before it loads them.

/// Settings of all programs; a global named `CONFIG` in the BPF object.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Config {
    /// What one CPU sample stands for, in nanoseconds: 10⁹ / rate in Hz.
    pub cpu_period_ns: u64,
    /// Sample this process only; 0 samples all.
    pub target_pid: u32,
    /// The reader polls; it is woken only when this many bytes wait in the ring buffer.
    pub wakeup_bytes: u32,
}

const _: () = assert!(size_of::<Config>() == 16);

impl Config {
    /// The bytes that the loader puts in place of the programs' global, in the byte order
    /// of the host.
    pub fn to_bytes(self) -> [u8; 16] {
        let mut bytes = [0; 16];
        bytes[0..8].copy_from_slice(&self.cpu_period_ns.to_ne_bytes());
        bytes[8..12].copy_from_slice(&self.target_pid.to_ne_bytes());
        bytes[12..16].copy_from_slice(&self.wakeup_bytes.to_ne_bytes());
        bytes
    }
}
