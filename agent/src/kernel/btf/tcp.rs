//! Where the running kernel keeps what the programs read of TCP connections.

use everflame_agent_common::tcp::TcpLayout;

use super::{Btf, BtfError, Kind, read_kernel_types};

/// Which of the programs fit the running kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TcpHooks {
    /// It tells of what is sent on sockets (`sock_send_length`, Linux 6.3).
    pub has_send_length: bool,
    /// It says of segments that are sent again whether that failed (Linux 6.17).
    pub retransmit_has_result: bool,
    /// How many arguments its function has that accepts connections, if it has one.
    pub accept_arguments: Option<usize>,
    /// Where the end of that function cannot be seen, all ends of system calls may be.
    pub sees_calls: bool,
}

/// Asks the running kernel. How many samples are taken, and what is no offset, is left to the caller.
///
/// # Errors
/// When it does not show its types, or they are not as expected.
pub fn tcp_layout() -> Result<(TcpLayout, TcpHooks), BtfError> {
    let bytes = read_kernel_types()?;
    let btf = Btf::parse(&bytes)?;
    let offset = |of, member, name| btf.offset(of, member).ok_or(BtfError::Missing { name });
    let sum = |a: u32, b: u32, name| a.checked_add(b).ok_or(BtfError::Missing { name });
    // At the beginning of a `sock`, and of a request for a connection.
    let common = |member, name| offset("sock_common", member, name);
    let netns = sum(
        offset("net", "ns", "net.ns")?,
        offset("ns_common", "inum", "ns_common.inum")?,
        "net.ns.inum",
    )?;
    let min_rtt = sum(
        offset("tcp_sock", "rtt_min", "tcp_sock.rtt_min")?,
        offset("minmax_sample", "v", "minmax_sample.v")?,
        "tcp_sock.rtt_min.s",
    )?;
    let segments = sum(
        offset("sk_buff", "cb", "sk_buff.cb")?,
        offset("tcp_skb_cb", "tcp_gso_segs", "tcp_skb_cb.tcp_gso_segs")?,
        "tcp_skb_cb.tcp_gso_segs",
    )?;
    let syscall = if cfg!(target_arch = "aarch64") {
        offset("pt_regs", "syscallno", "pt_regs.syscallno")?
    } else {
        offset("pt_regs", "orig_ax", "pt_regs.orig_ax")?
    };
    let layout = TcpLayout {
        remote_offset: common("skc_daddr", "sock_common.skc_daddr")?,
        remote6_offset: common("skc_v6_daddr", "sock_common.skc_v6_daddr")?,
        remote_port_offset: common("skc_dport", "sock_common.skc_dport")?,
        local_port_offset: common("skc_num", "sock_common.skc_num")?,
        family_offset: common("skc_family", "sock_common.skc_family")?,
        state_offset: common("skc_state", "sock_common.skc_state")?,
        net_offset: common("skc_net", "sock_common.skc_net")?,
        netns_offset: netns,
        protocol_offset: offset("sock", "sk_protocol", "sock.sk_protocol")?,
        error_offset: offset("sock", "sk_err", "sock.sk_err")?,
        sent_offset: offset("tcp_sock", "segs_out", "tcp_sock.segs_out")?,
        copied_offset: offset("tcp_sock", "copied_seq", "tcp_sock.copied_seq")?,
        rtt_offset: offset("tcp_sock", "srtt_us", "tcp_sock.srtt_us")?,
        min_rtt_offset: min_rtt,
        segments_offset: segments,
        syscall_offset: syscall,
        files_offset: offset("task_struct", "files", "task_struct.files")?,
        table_offset: offset("files_struct", "fdt", "files_struct.fdt")?,
        descriptors_offset: offset("fdtable", "fd", "fdtable.fd")?,
        private_offset: offset("file", "private_data", "file.private_data")?,
        sock_offset: offset("socket", "sk", "socket.sk")?,
        accept_calls: accept_calls(),
        first_ephemeral: 0,
        last_ephemeral: 0,
        tick_ns: 0,
        rtt_ticks: 0,
        samples: 0,
        connections: 0,
    };
    let hooks = TcpHooks {
        has_send_length: btf.tracepoint("sock_send_length").is_some(),
        retransmit_has_result: btf.tracepoint("tcp_retransmit_skb").is_some_and(|a| a.len() > 2),
        accept_arguments: btf.function_arguments("inet_csk_accept"),
        sees_calls: false,
    };
    Ok((layout, hooks))
}

/// See [`TcpLayout::accept_calls`].
fn accept_calls() -> u32 {
    let number = |call: libc::c_long| u32::try_from(call).unwrap_or(0) & 0xffff;
    number(libc::SYS_accept) | number(libc::SYS_accept4) << 16
}

impl Btf<'_> {
    /// How many arguments a function of the kernel has; `None` if there is none of that name.
    fn function_arguments(&self, name: &str) -> Option<usize> {
        let function = self.find(name, Kind::Function)?;
        let prototype = self.type_by_id(function.size_or_type)?;
        prototype.is(Kind::Prototype).then(|| prototype.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn running_kernel_says_where_things_are() {
        let (layout, hooks) = tcp_layout().unwrap();
        // The two ports are side by side, and behind the addresses.
        assert_eq!(layout.remote_port_offset.abs_diff(layout.local_port_offset), 2);
        assert!(layout.remote_port_offset > layout.remote_offset);
        assert_ne!(layout.rtt_offset, layout.min_rtt_offset);
        assert!(matches!(hooks.accept_arguments, Some(2 | 4)), "{hooks:?}");
    }
}
