//! Why a stack ends where it does.

/// Why a stack ends where it does. A truncated stack is a value, not an error.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Stop {
    /// The walk reached the outermost frame: a rule says so, or its saved frame pointer or
    /// return address is 0.
    End = 0,
    /// There is no stack of this side: a kernel thread has no user stack, code that runs in
    /// user mode has no kernel stack.
    Absent = 1,
    /// More frames than fit; the leaf side was kept.
    DepthLimit = 2,
    /// The stack could not be read: memory that is paged out or not mapped.
    Unreadable = 3,
    /// The caller's frame would not lie above the present one: no frame pointer, or a stack
    /// that was overwritten.
    BrokenChain = 4,
    /// The walker of the kernel failed.
    Failed = 5,
    /// Code of another word size than the kernel's (32-bit programs), which is not walked.
    Compat = 6,
    /// The rules of a file that the process maps are not loaded.
    NoTable = 7,
    /// The rule needs more than the walker has: an unusual expression, or a register that
    /// only the leaf still had.
    BadRule = 8,
    /// Code that its file says nothing about, such as hand-written assembly.
    NoInfo = 9,
    /// The address lies in no executable memory.
    Unmapped = 10,
    /// Code was mapped a moment before, and the walk did not know yet: what it found beyond
    /// that code may be wrong, and was cut off.
    Stale = 11,
}

impl Stop {
    /// All reasons, in the order of their numbers.
    pub const ALL: [Self; 12] = [
        Self::End,
        Self::Absent,
        Self::DepthLimit,
        Self::Unreadable,
        Self::BrokenChain,
        Self::Failed,
        Self::Compat,
        Self::NoTable,
        Self::BadRule,
        Self::NoInfo,
        Self::Unmapped,
        Self::Stale,
    ];

    /// The reason with this number; unknown numbers read as [`Stop::Failed`].
    pub const fn from_u8(stop: u8) -> Self {
        if (stop as usize) < Self::ALL.len() { Self::ALL[stop as usize] } else { Self::Failed }
    }

    /// The name used in metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::End => "end",
            Self::Absent => "absent",
            Self::DepthLimit => "depth_limit",
            Self::Unreadable => "unreadable",
            Self::BrokenChain => "broken_chain",
            Self::Failed => "failed",
            Self::Compat => "compat",
            Self::NoTable => "no_table",
            Self::BadRule => "bad_rule",
            Self::NoInfo => "no_info",
            Self::Unmapped => "unmapped",
            Self::Stale => "stale",
        }
    }

    /// Whether frames are missing at the root of the stack.
    pub const fn is_truncated(self) -> bool {
        !matches!(self, Self::End | Self::Absent)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_positions() {
        for (number, stop) in Stop::ALL.into_iter().enumerate() {
            assert_eq!(stop as usize, number);
            assert_eq!(Stop::from_u8(stop as u8), stop);
        }
        assert_eq!(Stop::from_u8(200), Stop::Failed);
    }
}
