//! Choosing a share of events so that few are sampled when there are many.
//!
//! Of each block of 2^n events one is chosen at random, which stands for all of the block: sums are exact but
//! for the block that goes on, and nothing that recurs in the same order is preferred.

/// Chooses a share of the events on a CPU; a map value.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Share {
    /// When the interval began.
    pub since_ns: u64,
    /// Events left of the block.
    pub left: u32,
    /// How many there are left when it is time for the chosen one.
    pub chosen: u32,
    /// Events of the block.
    pub size: u32,
    /// Events chosen in the interval.
    pub samples: u32,
    /// Blocks have 2 to the power of this events.
    pub shift: u32,
    /// Always 0.
    pub padding: u32,
}

const _: () = assert!(size_of::<Share>() == 32);

impl Share {
    /// Rates are looked at in intervals of this length.
    pub const INTERVAL_NS: u64 = 100_000_000;

    /// Blocks do not become longer than 2 to the power of this.
    pub const MAX_SHIFT: u32 = 16;

    /// Notes the time: for each interval with few chosen events, or none, blocks become shorter. `most` is the
    /// number of events to be chosen in an interval.
    #[inline(always)]
    pub fn advance(&mut self, now_ns: u64, most: u32) {
        let since_ns = now_ns.wrapping_sub(self.since_ns);
        if since_ns > Self::INTERVAL_NS {
            let busy = u64::from(self.samples > most / 4);
            let quiet = since_ns / Self::INTERVAL_NS - busy;
            self.shift -= if quiet < u64::from(self.shift) { quiet as u32 } else { self.shift };
            self.since_ns = now_ns;
            self.samples = 0;
        }
    }

    /// Takes one event in, and says how many it stands for; 0 if it is not chosen. `random` gives any
    /// number; it is asked once for a block.
    #[inline(always)]
    pub fn choose(&mut self, most: u32, random: impl FnOnce() -> u32) -> u32 {
        // More are left than there were, if another run came in between.
        if self.left == 0 || self.left > self.size {
            self.size = 1 << (self.shift & 31);
            self.left = self.size;
            self.chosen = if self.size == 1 { 1 } else { 1 + (random() & (self.size - 1)) };
        }
        let is_chosen = self.left == self.chosen;
        self.left -= 1;
        if !is_chosen {
            return 0;
        }
        self.samples += 1;
        if self.samples > most && self.shift < Self::MAX_SHIFT {
            self.shift += 1;
            self.samples = 0;
        }
        self.size
    }

    /// Whether events are left out.
    #[inline(always)]
    pub const fn is_partial(&self) -> bool {
        self.shift != 0
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use std::vec::Vec;

    use super::*;

    fn random(state: &mut u32) -> u32 {
        *state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        *state >> 8
    }

    #[test]
    fn all_are_chosen_while_there_are_few() {
        let mut share = Share::default();
        for at in 0..1000 {
            share.advance(at * 10_000_000, 20);
            assert_eq!(share.choose(20, || at as u32), 1);
        }
    }

    /// Each event is a microsecond after the one before.
    fn chosen(events: u64, most: u32) -> Vec<(u64, u32)> {
        let (mut share, mut state) = (Share::default(), 1);
        let each = |at: u64| {
            share.advance(at * 1000, most);
            let size = share.choose(most, || random(&mut state));
            (size > 0).then_some((at, size))
        };
        (0..events).filter_map(each).collect()
    }

    #[test]
    fn sums_are_exact_but_for_a_block() {
        let chosen = chosen(1_000_000, 50);
        let sum: u64 = chosen.iter().map(|(_, size)| u64::from(*size)).sum();
        let largest = chosen.iter().map(|(_, size)| u64::from(*size)).max().unwrap();
        assert!(sum.abs_diff(1_000_000) <= largest, "{sum}");
        // Until blocks are long enough, and in 10 intervals, in each of which they may have become too short.
        let most = 51 * (Share::MAX_SHIFT as usize + 10 * 2);
        assert!(chosen.len() <= most, "{}", chosen.len());
    }

    #[test]
    fn what_recurs_is_not_preferred() {
        let of_odd: u64 = chosen(1_000_000, 200)
            .iter()
            .filter(|(at, _)| at % 2 == 1)
            .map(|(_, size)| u64::from(*size))
            .sum();
        assert!(of_odd.abs_diff(500_000) < 30_000, "{of_odd}");
    }

    #[test]
    fn blocks_become_shorter_when_it_is_quiet() {
        let mut share = Share { shift: 10, since_ns: 1, ..Share::default() };
        share.advance(1 + 3 * Share::INTERVAL_NS + 1, 20);
        assert_eq!(share.shift, 7);
        share.advance(10_000_000_000, 20);
        assert_eq!(share.shift, 0);
    }
}
