//! From the ids of mappings, locations and functions to their positions.
//!
//! Nearly every writer of pprof numbers them 1, 2, 3 ..., and then no table is needed;
//! but the format allows any ids, and hostile profiles use them.

use std::collections::HashMap;

/// Where the entry with a given id is in its list.
#[derive(Debug)]
pub(crate) enum IdIndex {
    /// Entry `i` has id `i + 1`.
    Dense(usize),
    /// Anything else.
    Sparse(HashMap<u64, usize, foldhash::fast::RandomState>),
}

impl IdIndex {
    /// Indexes a list by its ids. Of entries with the same id the first one counts.
    pub(crate) fn new(ids: impl ExactSizeIterator<Item = u64> + Clone) -> Self {
        let len = ids.len();
        if ids.clone().zip(1u64..).all(|(id, expected)| id == expected) {
            return Self::Dense(len);
        }
        let mut positions = HashMap::default();
        for (position, id) in ids.enumerate() {
            positions.entry(id).or_insert(position);
        }
        Self::Sparse(positions)
    }

    /// The position of the entry with this id. Id 0 is nobody's.
    pub(crate) fn get(&self, id: u64) -> Option<usize> {
        let before = id.checked_sub(1)?;
        match self {
            Self::Dense(len) => usize::try_from(before).ok().filter(|position| position < len),
            Self::Sparse(positions) => positions.get(&id).copied(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dense_ids_need_no_table() {
        let index = IdIndex::new([1, 2, 3].into_iter());
        assert!(matches!(index, IdIndex::Dense(3)));
        assert_eq!(
            [0, 1, 3, 4, u64::MAX].map(|id| index.get(id)),
            [None, Some(0), Some(2), None, None]
        );
    }

    #[test]
    fn sparse_ids_are_found_and_zero_is_nobody() {
        let index = IdIndex::new([7, 0, u64::MAX, 7].into_iter());
        assert_eq!([0, 7, u64::MAX, 1].map(|id| index.get(id)), [None, Some(0), Some(2), None]);
    }
}
