//! The kinds of profile that everflame takes.
//!
//! Names, sample types and their order are what dashboards and scripts rely on: add to
//! them, never rename. Where Go's runtime has a profile of the same kind its sample
//! types are used, so that every pprof tool knows what they are.

use std::fmt;
use std::str::FromStr;

use serde::{Serialize, Serializer};

/// What a profile measures.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// Stacks that were running on a CPU.
    Cpu,
    /// Stacks that were waiting, and for what.
    OffCpu,
    /// Stacks that waited for a lock, and those that held it.
    Lock,
    /// Stacks that allocated memory.
    Alloc,
    /// Stacks that caused block I/O.
    Block,
    /// Stacks that waited for TCP peers.
    Tcp,
}

impl Kind {
    /// All kinds, in the order in which they are shown.
    pub const ALL: [Self; 6] =
        [Self::Cpu, Self::OffCpu, Self::Lock, Self::Alloc, Self::Block, Self::Tcp];

    /// The name in flags, labels and messages.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            Self::OffCpu => "offcpu",
            Self::Lock => "lock",
            Self::Alloc => "alloc",
            Self::Block => "block",
            Self::Tcp => "tcp",
        }
    }

    /// (type, unit) of each value of a sample, in order.
    pub const fn sample_types(self) -> &'static [(&'static str, &'static str)] {
        match self {
            Self::Cpu => &[("samples", "count"), ("cpu", "nanoseconds")],
            Self::OffCpu => &[("waits", "count"), ("delay", "nanoseconds")],
            Self::Lock => &[("contentions", "count"), ("delay", "nanoseconds")],
            Self::Alloc => &[
                ("alloc_objects", "count"),
                ("alloc_space", "bytes"),
                ("inuse_objects", "count"),
                ("inuse_space", "bytes"),
            ],
            Self::Block => &[
                ("ops", "count"),
                ("bytes", "bytes"),
                ("queue_latency", "nanoseconds"),
                ("device_latency", "nanoseconds"),
            ],
            Self::Tcp => &[("events", "count"), ("latency", "nanoseconds")],
        }
    }

    /// The sample type shown when nobody asks for another.
    pub const fn default_sample_type(self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            Self::OffCpu | Self::Lock => "delay",
            Self::Alloc => "alloc_space",
            Self::Block => "device_latency",
            Self::Tcp => "latency",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl Serialize for Kind {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

/// A name that is no kind's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown profile kind `{name}`; the kinds are cpu, offcpu, lock, alloc, block and tcp")]
pub struct UnknownKind {
    /// What was given.
    pub name: String,
}

impl FromStr for Kind {
    type Err = UnknownKind;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        Self::ALL
            .into_iter()
            .find(|kind| kind.name() == name)
            .ok_or_else(|| UnknownKind { name: name.to_owned() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_parse_back() {
        for kind in Kind::ALL {
            assert_eq!(kind.name().parse(), Ok(kind));
        }
        assert_eq!("CPU".parse::<Kind>(), Err(UnknownKind { name: "CPU".to_owned() }));
    }

    #[test]
    fn unknown_kind_lists_all_kinds() {
        let message = UnknownKind { name: "heap".to_owned() }.to_string();
        for kind in Kind::ALL {
            assert!(message.contains(kind.name()), "{message}");
        }
    }

    #[test]
    fn default_sample_type_is_one_of_the_sample_types() {
        for kind in Kind::ALL {
            let default = kind.default_sample_type();
            assert!(kind.sample_types().iter().any(|(name, _)| *name == default), "{kind}");
        }
    }
}
