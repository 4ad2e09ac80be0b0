//! Where the running kernel keeps what programs read of connections.

/// Where the kernel keeps what programs read of connections: offsets in its structures, in bytes.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TcpLayout {
    /// Of `sock.__sk_common.skc_daddr`.
    pub remote_offset: u32,
    /// Of `skc_v6_daddr`.
    pub remote6_offset: u32,
    /// Of `skc_dport`, in network byte order.
    pub remote_port_offset: u32,
    /// Of `skc_num`.
    pub local_port_offset: u32,
    /// Of `skc_family`.
    pub family_offset: u32,
    /// Of `skc_state`.
    pub state_offset: u32,
    /// Of `skc_net`.
    pub net_offset: u32,
    /// Of `net.ns.inum`.
    pub netns_offset: u32,
    /// Of `sock.sk_protocol`.
    pub protocol_offset: u32,
    /// Of `sock.sk_err`.
    pub error_offset: u32,
    /// Of `tcp_sock.segs_out`, segments that were sent.
    pub sent_offset: u32,
    /// Of `tcp_sock.copied_seq`, up to where what was received has been read.
    pub copied_offset: u32,
    /// Of `tcp_sock.srtt_us`, eighths of microseconds.
    pub rtt_offset: u32,
    /// Of the value in `tcp_sock.rtt_min`.
    pub min_rtt_offset: u32,
    /// Of `tcp_skb_cb.tcp_gso_segs` in a `sk_buff`.
    pub segments_offset: u32,
    /// Of the system call's number in `pt_regs`.
    pub syscall_offset: u32,
    /// Of `task_struct.files`.
    pub files_offset: u32,
    /// Of `files_struct.fdt`.
    pub table_offset: u32,
    /// Of `fdtable.fd`.
    pub descriptors_offset: u32,
    /// Of `file.private_data`.
    pub private_offset: u32,
    /// Of `socket.sk`.
    pub sock_offset: u32,
    /// Numbers of `accept`, and of `accept4` in the upper half.
    pub accept_calls: u32,
    /// The first port that the kernel gives to those who ask for none.
    pub first_ephemeral: u32,
    /// The last one.
    pub last_ephemeral: u32,
    /// Nanoseconds of the kernel's ticks.
    pub tick_ns: u32,
    /// In how many ticks a round-trip time is read once: a power of two.
    pub rtt_ticks: u32,
    /// Turns of either direction that are sampled in a tenth of a second, on each CPU, at most.
    pub samples: u32,
    /// Likewise: connections of either direction, and segments sent again and resets together.
    pub connections: u32,
}

/// Words of a [`TcpLayout`].
pub const TCP_LAYOUT_WORDS: usize = 28;

const _: () = assert!(size_of::<TcpLayout>() == TCP_LAYOUT_WORDS * 4);

impl TcpLayout {
    /// Of programs that are not loaded.
    pub const NONE: Self = Self {
        remote_offset: 0,
        remote6_offset: 0,
        remote_port_offset: 0,
        local_port_offset: 0,
        family_offset: 0,
        state_offset: 0,
        net_offset: 0,
        netns_offset: 0,
        protocol_offset: 0,
        error_offset: 0,
        sent_offset: 0,
        copied_offset: 0,
        rtt_offset: 0,
        min_rtt_offset: 0,
        segments_offset: 0,
        syscall_offset: 0,
        files_offset: 0,
        table_offset: 0,
        descriptors_offset: 0,
        private_offset: 0,
        sock_offset: 0,
        accept_calls: 0,
        first_ephemeral: 0,
        last_ephemeral: 0,
        tick_ns: 0,
        rtt_ticks: 0,
        samples: 0,
        connections: 0,
    };

    /// All of it, in order.
    pub const fn words(&self) -> [u32; TCP_LAYOUT_WORDS] {
        [
            self.remote_offset,
            self.remote6_offset,
            self.remote_port_offset,
            self.local_port_offset,
            self.family_offset,
            self.state_offset,
            self.net_offset,
            self.netns_offset,
            self.protocol_offset,
            self.error_offset,
            self.sent_offset,
            self.copied_offset,
            self.rtt_offset,
            self.min_rtt_offset,
            self.segments_offset,
            self.syscall_offset,
            self.files_offset,
            self.table_offset,
            self.descriptors_offset,
            self.private_offset,
            self.sock_offset,
            self.accept_calls,
            self.first_ephemeral,
            self.last_ephemeral,
            self.tick_ns,
            self.rtt_ticks,
            self.samples,
            self.connections,
        ]
    }
}
