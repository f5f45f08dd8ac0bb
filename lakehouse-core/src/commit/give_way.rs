//! The writer lets maintenance go first, once: a rewrite that has lost several rounds against a writer that never pauses
//! asks for it (protocol F4). Within one process only; nothing relies on it, the swap alone decides.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::schema::TableName;

/// How long a commit waits at most: maintenance may have been killed in mid-attempt.
const LONGEST: Duration = Duration::from_secs(5);
const POLL: Duration = Duration::from_millis(10);

/// Tables on which maintenance has asked to go first. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct GiveWay(Arc<Mutex<HashSet<TableName>>>);

/// Maintenance goes first for as long as this stands.
pub(super) struct Asked<'a> {
    tables: &'a GiveWay,
    table: TableName,
}

impl GiveWay {
    pub(super) fn ask(&self, table: &TableName) -> Asked<'_> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(table.clone());
        Asked { tables: self, table: table.clone() }
    }

    pub(super) async fn wait(&self, table: &TableName) {
        let until = Instant::now() + LONGEST;
        while self.is_asked(table) && Instant::now() < until {
            sleep(POLL).await;
        }
    }

    fn is_asked(&self, table: &TableName) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).contains(table)
    }
}

impl Drop for Asked<'_> {
    fn drop(&mut self) {
        self.tables.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.table);
    }
}
