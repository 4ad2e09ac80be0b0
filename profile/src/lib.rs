//! pprof as a value: build, encode, decode, validate, merge, top, flame, diff, fold.
//!
//! Agent, collector and command line look at profiles only through this crate, so a
//! function has the same name and the same numbers wherever it is shown. Nothing here
//! does I/O, and nothing panics, whatever the bytes: profiles come from other people's
//! programs and from the network.
//!
//! The way of a profile through the modules:
//!
//! - [`kind`] names what everflame measures and with which sample types;
//! - [`builder`] makes a profile, [`encode`] writes it;
//! - [`decode`] reads one within limits (which [`wire`] estimates) and has [`validate`]
//!   check it;
//! - [`merge`] sums profiles into one;
//! - [`select`] picks the sample type to look at;
//! - [`top`], [`flame`], [`diff`], [`fold`], [`locks`](mod@locks), [`leaks`](mod@leaks),
//!   [`io`](mod@io) and [`net`](mod@net) answer questions about it.
//!
//! Sums saturate instead of overflowing, here and everywhere else in this crate.
#![forbid(unsafe_code)]

pub mod block;
pub mod builder;
pub mod decode;
pub mod diff;
pub mod encode;
pub mod flame;
pub mod fold;
mod frames;
mod ids;
pub mod io;
pub mod kind;
pub mod leaks;
mod lengths;
mod lock_site;
pub mod locks;
pub mod merge;
pub mod net;
pub mod select;
pub mod subtract;
mod tables;
pub mod tcp;
pub mod top;
pub mod validate;
pub mod wire;

pub use everflame_proto::pprof;

pub use self::builder::{
    FunctionId, FunctionInfo, LabelValue, LocationId, MappingId, MappingInfo, ProfileBuilder,
};
pub use self::decode::{DecodeError, DecodeLimits, decode};
pub use self::diff::{Delta, DiffError, DiffTable, FunctionDiff, diff};
pub use self::encode::encode_gz;
pub use self::flame::{FlameNode, FlameTree, flame};
pub use self::fold::fold;
pub use self::frames::Stacks;
pub use self::io::{IoBucket, IoReport, IoStack, IoTotals, io};
pub use self::kind::{Kind, UnknownKind};
pub use self::leaks::{HeldStack, LeakReport, leaks};
pub use self::lengths::Latency;
pub use self::locks::{HolderTotals, LockReport, LockTotals, WaiterTotals, locks};
pub use self::merge::{MergeError, Merger};
pub use self::net::{
    AcceptTotals, ConnectFailures, ConnectTotals, NetReport, NetStack, NetTotals, RequestTotals,
    RoundTrips, net,
};
pub use self::select::{SelectError, remove_labelled, retain_labelled, sample_type_index};
pub use self::subtract::subtract;
pub use self::top::{FunctionTotals, TopTable, top};
pub use self::validate::{ValidateError, validate};
