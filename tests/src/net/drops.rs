//! Packets that get lost on purpose.
//!
//! They are dropped by nftables where they come in, not where they go out: who sends would be told of that at
//! once, and TCP counts such a packet as not sent. Kernels without `netem` can do it, too.

use std::process::Command;

use super::{Namespace, run};

/// Which packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Packets {
    /// The first ones of a connection.
    Syn,
    /// The answers to these.
    SynAck,
    /// All the others.
    Established,
}

/// Until it goes out of scope, some of the packets that come into a namespace are lost.
#[derive(Debug)]
pub struct Drops<'a> {
    namespace: &'a Namespace,
}

impl<'a> Drops<'a> {
    /// Loses one in `of` of these packets, the first one among them. There can only be one such rule in a
    /// namespace.
    ///
    /// # Errors
    /// What nftables says if it can not be used with this kernel.
    pub fn one_in(of: u32, packets: Packets, namespace: &'a Namespace) -> Result<Self, String> {
        let flags = match packets {
            Packets::Syn => "(syn | ack) == syn",
            Packets::SynAck => "(syn | ack) == (syn | ack)",
            Packets::Established => "syn == 0",
        };
        let rules = format!(
            "add table inet drops; \
             add chain inet drops input {{ type filter hook input priority 0; policy accept; }}; \
             add rule inet drops input tcp flags & {flags} \
             numgen inc mod {of} 0 counter drop"
        );
        let mut nft = namespace.command("nft");
        let output = nft.arg(rules).output().map_err(|error| error.to_string())?;
        if output.status.success() {
            Ok(Self { namespace })
        } else {
            Err(String::from_utf8_lossy(&output.stderr).into_owned())
        }
    }

    /// How many it has lost. One packet may have many segments.
    pub fn count(&self) -> u64 {
        let output = run(self.nft().args(["list", "table", "inet", "drops"]));
        let text = String::from_utf8(output.stdout).expect("nft writes text");
        let mut words = text.split_whitespace().skip_while(|word| *word != "packets");
        let count = words.nth(1).and_then(|count| count.parse().ok());
        count.unwrap_or_else(|| panic!("no counter in:\n{text}"))
    }

    fn nft(&self) -> Command {
        self.namespace.command("nft")
    }
}

impl Drop for Drops<'_> {
    fn drop(&mut self) {
        let _ = self.nft().args(["delete", "table", "inet", "drops"]).output();
    }
}
