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

#[cfg(test)]
mod tests {
    use super::*;

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
