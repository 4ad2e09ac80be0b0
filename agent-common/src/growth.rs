//! Growth of memory: which pages a process has got.
//!
//! The kernel counts the pages of each process by what they are made of, and says so at each change
//! (tracepoint `kmem:rss_stat`), however they came: by a fault of the program or of the kernel
//! itself, one page at a time or a huge one, or many at once. Its counters take changes of each CPU
//! in by batches of 32 pages or more; what a program sees is such a batch, once it is taken in. So
//! most changes are over at once, and a batch is charged to the code that has completed it.
//!
//! Of the batches, samples are taken as of waits: each process counts down the bytes that it grows
//! by ([`count_down`](crate::wait::count_down)).

use crate::wait::Thinning;

/// What memory is made of: the index of the kernel's counter (include/linux/mm_types_task.h).
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Backing {
    /// `MM_FILEPAGES`: pages of files, shared with the page cache.
    File = 0,
    /// `MM_ANONPAGES`: memory of the process alone.
    Anonymous = 1,
    /// `MM_SHMEMPAGES`: shared memory, and files of tmpfs.
    Shared = 3,
}

impl Backing {
    /// The one with this index.
    pub const fn from_index(index: u64) -> Option<Self> {
        match index {
            0 => Some(Self::File),
            1 => Some(Self::Anonymous),
            3 => Some(Self::Shared),
            _ => None,
        }
    }

    /// What it is called in profiles.
    pub const fn name(self) -> &'static str {
        match self {
            Self::File => "file",
            Self::Anonymous => "anonymous",
            Self::Shared => "shared",
        }
    }
}

/// What is kept of a process; a map value.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Growth {
    /// The kernel's address of its memory: another one after exec.
    pub memory: u64,
    /// Pages, by the kernel's index, when it was last looked.
    pub pages: [u64; 4],
    /// Growth until the next sample, in bytes; 0 before the first.
    pub left: u64,
}

const _: () = assert!(size_of::<Growth>() == 48);

/// What a CPU has seen last; a map value. Of most changes it is enough to look here: all but one in 32
/// or more leave the kernel's counters as they were.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GrowthSeen {
    /// The kernel's address of a process's memory. After the process has ended, another may have it.
    pub memory: u64,
    /// Pages, by the kernel's index; [`Self::UNSEEN`] where it was not looked yet.
    pub pages: [u64; 4],
    /// Times that the program was entered.
    pub runs: u64,
    /// Keeps samples below a rate.
    pub thinning: Thinning,
    /// The process.
    pub pid: u32,
    /// Zero.
    pub unused: u32,
}

const _: () = assert!(size_of::<GrowthSeen>() == 80);

impl GrowthSeen {
    /// Rates of samples are looked at in intervals of this length: long enough for a process to
    /// begin with some fifty megabytes at full resolution.
    pub const INTERVAL_NS: u64 = 1_000_000_000;

    /// A process has not as many pages.
    pub const UNSEEN: u64 = u64::MAX;

    /// Whether that is all that there is to see.
    #[inline(always)]
    pub fn knows(&self, memory: u64, pid: u32, at: usize, pages: u64) -> bool {
        self.memory == memory && self.pages[at & 3] == pages && self.pid == pid
    }

    /// Notes what there is to see.
    #[inline(always)]
    pub fn note(&mut self, memory: u64, pid: u32, at: usize, pages: u64) {
        if self.memory != memory || self.pid != pid {
            (self.memory, self.pid) = (memory, pid);
            self.pages = [Self::UNSEEN; 4];
        }
        self.pages[at & 3] = pages;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_another_process_has_seen_is_not_known() {
        let mut seen = GrowthSeen::default();
        seen.note(0xffff, 1, 1, 64);
        assert!(seen.knows(0xffff, 1, 1, 64));
        assert!(!seen.knows(0xffff, 1, 1, 96), "a batch");
        assert!(!seen.knows(0xffff, 1, 0, 0), "another counter");
        assert!(!seen.knows(0xffff, 2, 1, 64), "the memory of a process that has ended");
        assert!(!seen.knows(0xeeee, 1, 1, 64), "after exec");
        seen.note(0xffff, 1, 0, 32);
        assert!(seen.knows(0xffff, 1, 1, 64) && seen.knows(0xffff, 1, 0, 32));
        seen.note(0xffff, 2, 0, 32);
        assert!(!seen.knows(0xffff, 2, 1, 64));
    }

    #[test]
    fn backings_have_the_index_of_the_kernel() {
        for backing in [Backing::File, Backing::Anonymous, Backing::Shared] {
            assert_eq!(Backing::from_index(backing as u64), Some(backing));
        }
        // Swapped out, which is no growth.
        assert_eq!(Backing::from_index(2), None);
        assert_eq!(Backing::from_index(4), None);
    }
}
