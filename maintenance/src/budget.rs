//! How many bytes compaction may read in an hour, so that a rewrite of a large table leaves the machine to the writer
//! (`maintenance.md` M-14).

use std::time::{Duration, Instant};

use crate::plan::Reason;

const HOUR: Duration = Duration::from_secs(3_600);

/// Fills up with time, to one hour's worth at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Budget {
    pub bytes_per_hour: Option<u64>,
    left: u64,
    since: Instant,
}

impl Budget {
    /// `None`: without a bound.
    pub fn per_hour(bytes_per_hour: Option<u64>) -> Self {
        Self { bytes_per_hour, left: bytes_per_hour.unwrap_or(0), since: Instant::now() }
    }

    /// Takes bytes from what is left. A group that is larger than an hour's worth goes when the hour is whole.
    pub fn take(&mut self, bytes: u64) -> bool {
        self.take_at(bytes, Instant::now())
    }

    fn take_at(&mut self, bytes: u64, now: Instant) -> bool {
        let Some(whole) = self.bytes_per_hour else { return true };
        let passed = now.duration_since(self.since).min(HOUR);
        let filled = u128::from(whole) * passed.as_millis() / HOUR.as_millis();
        let left = self.left.saturating_add(u64::try_from(filled).unwrap_or(u64::MAX)).min(whole);
        (self.left, self.since) = (left, now);
        let goes = bytes <= left || left == whole;
        if goes {
            self.left = left.saturating_sub(bytes);
        }
        goes
    }
}

/// What compaction of some tables may read.
#[derive(Clone, Copy, Debug)]
pub struct Budgets {
    pub all: Budget,
    /// Of it, for readers' sake alone.
    pub read_cost: Budget,
}

impl Budgets {
    /// Without a bound.
    pub fn unbounded() -> Self {
        Self { all: Budget::per_hour(None), read_cost: Budget::per_hour(None) }
    }

    /// Takes what a rewrite for this reason reads.
    pub fn take(&mut self, reason: Reason, bytes: u64) -> bool {
        (reason != Reason::ReadCost || self.read_cost.take(bytes)) && self.all.take(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_budget_fills_up_with_time_and_a_large_group_waits_for_a_whole_hour() {
        let begin = Instant::now();
        let mut budget = Budget { bytes_per_hour: Some(100), left: 100, since: begin };
        assert!(budget.take_at(60, begin));
        assert!(!budget.take_at(60, begin));
        assert!(budget.take_at(60, begin + HOUR / 2), "40 + 50");
        assert!(!budget.take_at(500, begin + HOUR / 2));
        assert!(budget.take_at(500, begin + HOUR * 2));
        assert!(!budget.take_at(1, begin + HOUR * 2));
        assert!(Budget::per_hour(None).take(u64::MAX));
    }

    #[test]
    fn what_is_done_for_readers_has_a_bound_of_its_own() {
        let mut budgets = Budgets { read_cost: Budget::per_hour(Some(100)), ..Budgets::unbounded() };
        assert!(budgets.take(Reason::ReadCost, 90) && !budgets.take(Reason::ReadCost, 90));
        assert!(budgets.take(Reason::DeletedRows, 90));
        let mut budgets = Budgets { all: Budget::per_hour(Some(100)), ..Budgets::unbounded() };
        assert!(budgets.take(Reason::SmallFiles, 90) && !budgets.take(Reason::ReadCost, 90));
    }
}
