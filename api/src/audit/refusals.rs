//! How many refused calls get an entry. Whoever has no token can call as often as they like, and must not be able to fill
//! a disk, nor make those who have one wait behind entries about themselves: what is beyond the bound is counted, and the
//! next entry, of whatever kind, says how many that were.

use std::time::{Duration, Instant};

/// Entries about refused calls in one [`WINDOW`].
const MOST: u32 = 10;
const WINDOW: Duration = Duration::from_secs(1);

#[derive(Debug, Default)]
pub(super) struct Refusals {
    /// The window's begin, and entries in it.
    window: Option<(Instant, u32)>,
    left_out: u64,
}

impl Refusals {
    /// True if one more may be written; else it is counted.
    pub(super) fn take(&mut self, now: Instant) -> bool {
        let (begin, taken) = match self.window {
            Some((begin, taken)) if now.saturating_duration_since(begin) < WINDOW => (begin, taken),
            _ => (now, 0),
        };
        if taken >= MOST {
            self.left_out = self.left_out.saturating_add(1);
            return false;
        }
        self.window = Some((begin, taken + 1));
        true
    }

    /// Refused calls that no entry speaks of yet.
    pub(super) fn left_out(&self) -> u64 {
        self.left_out
    }

    /// An entry has told of so many.
    pub(super) fn told(&mut self, count: u64) {
        self.left_out = self.left_out.saturating_sub(count);
    }
}
