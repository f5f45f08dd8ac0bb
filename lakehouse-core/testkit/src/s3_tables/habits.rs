//! How the service misbehaves while it is up. What the network does to it is the fault proxy's part.

use std::time::Duration;

/// Each count says for how many of the next calls something holds; zero, as at the start, is good behaviour.
#[derive(Clone, Debug, Default)]
pub struct Habits {
    /// Native calls answered with 429.
    pub throttled: usize,
    /// Updates of a metadata location answered with 500 at once, and carried out (token compared) after `late_by`.
    pub late_updates: usize,
    pub late_by: Duration,
    /// Reads of a table's pointer, native or REST, that show an earlier state.
    pub stale_reads: usize,
    /// How many swaps ago that state was current, 16 at most.
    pub stale_by: usize,
}

impl Habits {
    pub(super) fn throttles(&mut self) -> bool {
        take(&mut self.throttled)
    }

    pub(super) fn delays(&mut self) -> Option<Duration> {
        take(&mut self.late_updates).then_some(self.late_by)
    }

    /// How many swaps behind the next read is.
    pub(super) fn behind(&mut self) -> usize {
        if take(&mut self.stale_reads) { self.stale_by } else { 0 }
    }
}

fn take(count: &mut usize) -> bool {
    let any = *count > 0;
    *count = count.saturating_sub(1);
    any
}
