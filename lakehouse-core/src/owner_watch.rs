//! Who owns maintenance, asked again while a worker runs: a job of the service may be switched on, or off, at any time.
//!
//! A worker that starts refuses such a table (protocol D, `MAINTENANCE_OWNER`). One that is at work says so and goes on, as
//! nothing is wrong yet: a job's first commit makes it begin anew, and that is a start.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use tracing::{debug, warn};

use crate::catalog::Catalog;
use crate::error::{Problem, Reaction};
use crate::schema::TableName;

/// The tables of a pipeline, the one that was looked at longest ago first.
#[derive(Debug)]
pub struct OwnerWatch {
    /// Between two looks at one table.
    interval: Duration,
    tables: VecDeque<(Instant, TableName)>,
}

impl OwnerWatch {
    pub fn every(interval: Duration) -> Self {
        Self { interval, tables: VecDeque::new() }
    }

    /// A table whose owner has just been found right.
    pub fn add(&mut self, table: TableName, now: Instant) {
        self.tables.push_back((now, table));
    }

    /// Looks at one table, if it is one's turn: whoever calls waits for one request at most. Says what it finds, and
    /// returns it.
    pub async fn look(&mut self, catalog: &dyn Catalog, now: Instant) -> Option<Problem> {
        let table = self.next(now)?;
        let problem = catalog.check_owner(&table).await.err()?;
        let Problem { code, message, remedy, .. } = &problem;
        match problem.reaction {
            // No answer is no news; the next look comes.
            Reaction::Retry => debug!(%table, code, message, "the owner of maintenance cannot be asked"),
            _ => warn!(%table, code, message, remedy, "maintenance_owner_drift"),
        }
        Some(problem)
    }

    fn next(&mut self, now: Instant) -> Option<TableName> {
        let due = |(looked, _): &(Instant, TableName)| now.duration_since(*looked) >= self.interval;
        let (_, table) = self.tables.pop_front_if(|entry| due(entry))?;
        self.tables.push_back((now, table.clone()));
        Some(table)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const INTERVAL: Duration = Duration::from_secs(600);

    #[test]
    fn each_table_has_its_turn_once_an_interval_and_a_call_takes_one() {
        let (a, b) = (TableName::new("ns", "a"), TableName::new("ns", "b"));
        let (begin, second) = (Instant::now(), Duration::from_secs(1));
        let mut watch = OwnerWatch::every(INTERVAL);
        assert_eq!(watch.next(begin + INTERVAL), None);
        watch.add(a.clone(), begin);
        watch.add(b.clone(), begin);
        assert_eq!(watch.next(begin + INTERVAL - second), None);
        let late = begin + INTERVAL;
        assert_eq!([watch.next(late), watch.next(late), watch.next(late)], [Some(a.clone()), Some(b), None]);
        assert_eq!(watch.next(late + INTERVAL), Some(a));
    }
}
