//! Networks of a test's own: namespaces, links between them, packets that get lost, and what the kernel itself
//! says about TCP within.
//!
//! Nothing of it is seen outside of the namespaces, and all of it goes when it goes out of scope.

mod drops;
mod link;
mod namespace;
mod sockets;

use std::hash::{BuildHasher as _, RandomState};
use std::process::{Command, Output};

pub use drops::{Drops, Packets};
pub use link::{End, Link};
pub use namespace::Namespace;
pub use sockets::{Connection, connections};

/// A number that no other test has.
fn random() -> u64 {
    RandomState::new().hash_one(std::process::id())
}

/// Runs a program that is to succeed.
fn run(command: &mut Command) -> Output {
    let output = command.output().unwrap_or_else(|error| {
        panic!("cannot run {command:?} (`cargo xtask setup --tests` installs it): {error}")
    });
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {errors}");
    output
}
