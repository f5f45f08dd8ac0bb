//! When a table is looked at again: one that nothing has happened to can wait, and one that fails again and again must
//! (`maintenance.md` M-14). Pure; the clock is the caller's.

use std::time::Duration;

use tokio::time::Instant;

/// Failures in a row before a table is left alone for a while.
const FAILURES: u32 = 3;
/// For how long at first; it doubles.
const FIRST_REST: Duration = Duration::from_secs(600);
/// The longest rest.
const LONGEST_REST: Duration = Duration::from_secs(6 * 3_600);
/// A table that has not moved is looked at so often, or sooner: age alone may make something due.
const IDLE: Duration = Duration::from_secs(600);
/// Between two looks for files that nothing needs: all files of the table are listed.
const CLEANING: Duration = Duration::from_secs(3_600);

/// What is remembered of one table.
#[derive(Clone, Debug, Default)]
pub(super) struct Pace {
    failures: u32,
    rests_until: Option<Instant>,
    /// The metadata on which nothing was to be done, and when that was seen.
    idle: Option<(String, Instant)>,
    cleaned: Option<Instant>,
}

impl Pace {
    /// It is this table's turn; behind `quiet_after` one that has not moved has become quiet.
    pub(super) fn is_due(&self, metadata_location: &str, quiet_after: Duration, now: Instant) -> bool {
        let rests = self.rests_until.is_some_and(|until| now < until);
        let again = IDLE.min(quiet_after);
        let idle = self.idle.as_ref().is_some_and(|(seen, at)| seen == metadata_location && now - *at < again);
        !rests && !idle
    }

    /// Its files are to be listed.
    pub(super) fn is_cleaning_due(&self, now: Instant) -> bool {
        self.cleaned.is_none_or(|at| now - at >= CLEANING)
    }

    pub(super) fn cleaned(&mut self, now: Instant) {
        self.cleaned = Some(now);
    }

    /// A look that went well; `idle` names the metadata, if nothing was to be done on it.
    pub(super) fn went_well(&mut self, idle: Option<String>, now: Instant) {
        (self.failures, self.rests_until) = (0, None);
        self.idle = idle.map(|location| (location, now));
    }

    /// Returns how long the table is left alone, if it is.
    pub(super) fn failed(&mut self, now: Instant) -> Option<Duration> {
        self.failures += 1;
        let more = self.failures.checked_sub(FAILURES)?;
        let rest = FIRST_REST.saturating_mul(2u32.saturating_pow(more)).min(LONGEST_REST);
        self.rests_until = Some(now + rest);
        Some(rest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn after_three_failures_a_table_rests_longer_and_longer_until_one_look_goes_well() {
        let begin = Instant::now();
        let mut pace = Pace::default();
        assert_eq!(pace.failed(begin), None);
        assert_eq!(pace.failed(begin), None);
        assert!(pace.is_due("m1", IDLE, begin));
        assert_eq!(pace.failed(begin), Some(FIRST_REST));
        assert!(!pace.is_due("m1", IDLE, begin) && pace.is_due("m1", IDLE, begin + FIRST_REST));
        assert_eq!(pace.failed(begin), Some(FIRST_REST * 2));
        for _ in 0..40 {
            pace.failed(begin);
        }
        assert_eq!(pace.failed(begin), Some(LONGEST_REST));
        pace.went_well(None, begin);
        assert!(pace.is_due("m1", IDLE, begin));
        assert_eq!(pace.failed(begin), None);
    }

    #[test]
    fn a_table_on_which_nothing_is_to_be_done_is_looked_at_when_it_moves_or_ages() {
        let begin = Instant::now();
        let mut pace = Pace::default();
        pace.went_well(Some("m1".to_owned()), begin);
        assert!(!pace.is_due("m1", IDLE, begin));
        assert!(pace.is_due("m2", IDLE, begin));
        assert!(pace.is_due("m1", 2 * IDLE, begin + IDLE));
        let soon = Duration::from_secs(20);
        assert!(!pace.is_due("m1", soon, begin + soon / 2) && pace.is_due("m1", soon, begin + soon));
        assert!(pace.is_cleaning_due(begin));
        pace.cleaned(begin);
        assert!(!pace.is_cleaning_due(begin) && pace.is_cleaning_due(begin + CLEANING));
    }
}
