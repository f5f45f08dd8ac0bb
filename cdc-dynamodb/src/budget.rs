//! The read capacity that the copies of a pipeline may take (D7): a pace for pages, in consistent read capacity units.
//!
//! What a page costs is known when it is there. So a page's cost is reserved by what the last ones cost, and corrected
//! afterwards; pages are as large as a second's units at most, so that a small budget is taken in small steps. Where the
//! table throttles all the same, the pace is halved, and comes back step by step.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

/// Units of the largest page: 1 MB at 4 KB a unit.
const LARGEST_PAGE: f64 = 256.0;
/// The slowest pace that throttling leads to, as a part of the budget.
const SLOWEST: f64 = 1.0 / 64.0;
/// What a second without throttling brings back.
const FASTER: f64 = 0.1;
/// Readers that are throttled at the same time are throttled once.
const ONCE: Duration = Duration::from_secs(1);
/// Units of an item, at least.
const SMALLEST_ITEM: f64 = 1.0 / 512.0;

/// Without a limit it costs nothing.
#[derive(Debug, Default)]
pub(crate) struct Budget {
    paced: Option<Mutex<Paced>>,
}

#[derive(Debug)]
struct Paced {
    /// Units a second, as configured, and the part of it that is taken now.
    units: f64,
    part: f64,
    slowed: Option<Instant>,
    /// When what is reserved has been paid for.
    paid: Instant,
    /// Units of one item, about, and of a page.
    item: f64,
    page: f64,
}

/// Leave for one page.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Turn {
    reserved: f64,
    /// Items of the page, at most.
    pub(crate) limit: Option<i32>,
}

impl Budget {
    pub(crate) fn new(units_per_second: Option<u32>) -> Self {
        Self { paced: units_per_second.map(|units| Mutex::new(Paced::new(units, Instant::now()))) }
    }

    fn paced(&self) -> Option<MutexGuard<'_, Paced>> {
        self.paced.as_ref().map(|paced| paced.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Waits until a page may be read.
    pub(crate) async fn turn(&self) -> Turn {
        let Some((turn, at)) = self.paced().map(|mut paced| paced.turn(Instant::now())) else {
            return Turn::default();
        };
        sleep_until(at).await;
        turn
    }

    /// The page is there: `units` is what it cost, by the service's own count.
    pub(crate) fn spent(&self, turn: Turn, units: Option<f64>, items: usize) {
        if let Some(mut paced) = self.paced() {
            paced.spent(turn, units, items);
        }
    }

    /// The table gave less than the budget allows.
    pub(crate) fn throttled(&self, turn: Turn) {
        if let Some(mut paced) = self.paced() {
            paced.throttled(turn, Instant::now());
        }
    }
}

impl Paced {
    fn new(units: u32, now: Instant) -> Self {
        let units = f64::from(units.max(1));
        // Until it is known what items cost: one of up to 4 KB costs a unit.
        Self { units, part: 1.0, slowed: None, paid: now, item: 1.0, page: units.min(LARGEST_PAGE) }
    }

    /// Leave for a page, and from when on.
    fn turn(&mut self, now: Instant) -> (Turn, Instant) {
        let at = self.paid.max(now);
        let turn = Turn { reserved: self.page, limit: Some(self.limit()) };
        self.paid = at + self.lasts(turn.reserved);
        (turn, at)
    }

    fn spent(&mut self, turn: Turn, units: Option<f64>, items: usize) {
        let units = units.unwrap_or(turn.reserved);
        match units > turn.reserved {
            true => self.paid += self.lasts(units - turn.reserved),
            false => self.paid -= self.lasts(turn.reserved - units),
        }
        if items > 0 {
            #[expect(clippy::cast_precision_loss, reason = "items of one page")]
            let item = units / items as f64;
            (self.item, self.page) = (item.max(SMALLEST_ITEM), units);
        }
        self.part = (self.part * (1.0 + FASTER * self.lasts(units).as_secs_f64().min(1.0))).min(1.0);
    }

    fn throttled(&mut self, turn: Turn, now: Instant) {
        self.paid -= self.lasts(turn.reserved);
        if self.slowed.is_none_or(|before| now.saturating_duration_since(before) >= ONCE) {
            self.part = (self.part / 2.0).max(SLOWEST);
            self.slowed = Some(now);
        }
    }

    /// For how long so many units are enough.
    fn lasts(&self, units: f64) -> Duration {
        Duration::from_secs_f64(units / (self.units * self.part))
    }

    fn limit(&self) -> i32 {
        let items = (self.units * self.part).min(LARGEST_PAGE) / self.item;
        #[expect(clippy::cast_possible_truncation, reason = "a page has at most 131,072 of the smallest items")]
        let items = items as i32;
        items.max(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Units a second that four readers take, by a clock of the test's own, of items that cost so much each, from a table
    /// that gives no more than `most` a second.
    fn taken(budget: u32, seconds: u64, item: f64, most: f64) -> f64 {
        let mut paced = Paced::new(budget, Instant::now());
        let begin = paced.paid;
        let mut readers = [begin; 4];
        let (mut taken, mut second, mut within) = (0.0, 0, 0.0);
        loop {
            let reader = readers.iter_mut().min().unwrap();
            let (turn, at) = paced.turn(*reader);
            if at - begin >= Duration::from_secs(seconds) {
                return taken / seconds as f64;
            }
            if (at - begin).as_secs() != second {
                (second, within) = ((at - begin).as_secs(), 0.0);
            }
            let page = (f64::from(turn.limit.unwrap()) * item).min(LARGEST_PAGE).ceil();
            if within + page > most {
                paced.throttled(turn, at);
                *reader = at + Duration::from_millis(50);
                continue;
            }
            (taken, within) = (taken + page, within + page);
            paced.spent(turn, Some(page), (page / item) as usize);
            *reader = at + Duration::from_millis(5);
        }
    }

    #[test]
    fn the_limit_is_kept_within_a_tenth() {
        for (budget, item) in [(10, 1.0), (100, 1.0), (100, 0.1), (1_000, 0.1), (3_000, 0.02), (50, 100.0)] {
            let rate = taken(budget, 300, item, f64::MAX);
            assert!((0.9..=1.1).contains(&(rate / f64::from(budget))), "{budget}, items of {item}: {rate}");
        }
    }

    #[test]
    fn a_table_that_gives_less_is_not_pressed_for_more() {
        let rate = taken(1_000, 300, 0.1, 300.0);
        assert!((100.0..=300.0).contains(&rate), "{rate}");
    }

    #[tokio::test]
    async fn without_a_limit_pages_are_as_they_come() {
        let budget = Budget::new(None);
        let turn = budget.turn().await;
        assert_eq!(turn.limit, None);
        budget.spent(turn, Some(256.0), 1_000);
        budget.throttled(turn);
    }
}
