//! How many reads of rows go on at a time: so many in all, and of one caller one less, so that nobody keeps all others out.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use lakehouse_core::error::Problem;
use lakehouse_core::schema::TableName;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;

use crate::failure::Failure;

pub(super) struct Scans {
    all: Arc<Semaphore>,
    most_of_one: usize,
    held: Held,
}

/// The right to read rows, for as long as it is held.
pub(super) struct ScanPermit {
    caller: Arc<str>,
    held: Held,
    _one: OwnedSemaphorePermit,
}

/// Permits by caller; who has none is not in it.
#[derive(Clone, Default)]
struct Held(Arc<Mutex<HashMap<Arc<str>, usize>>>);

impl Held {
    fn counts(&self) -> MutexGuard<'_, HashMap<Arc<str>, usize>> {
        // A count is changed in one step: nothing is half done in it.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Scans {
    pub(super) fn new(most: usize) -> Self {
        let most_of_one = most.saturating_sub(1).max(1);
        Self { all: Arc::new(Semaphore::new(most)), most_of_one, held: Held::default() }
    }

    /// `None` where the caller, or all callers together, have as many as they may.
    pub(super) fn permit(&self, caller: &Arc<str>) -> Option<ScanPermit> {
        let mut counts = self.held.counts();
        let own = counts.get(caller).copied().unwrap_or(0);
        if own == self.most_of_one {
            return None;
        }
        let one = Arc::clone(&self.all).try_acquire_owned().ok()?;
        counts.insert(Arc::clone(caller), own + 1);
        Some(ScanPermit { caller: Arc::clone(caller), held: self.held.clone(), _one: one })
    }
}

impl ScanPermit {
    /// Reads a table in a thread of its own, which is told by what it is given when nobody waits for the answer any more.
    pub(super) async fn read<T: Send + 'static>(
        self,
        table: TableName,
        read: impl FnOnce(&dyn Fn() -> Result<(), Problem>) -> Result<T, Failure> + Send + 'static,
    ) -> Result<T, Failure> {
        let interrupted = move |why: &str| Problem::retry("INTERRUPTED", table.to_string(), why);
        let stop = CancellationToken::new();
        let _stopped = stop.clone().drop_guard();
        let check = {
            let interrupted = interrupted.clone();
            move || match stop.is_cancelled() {
                true => Err(interrupted("nobody waits for the answer any more")),
                false => Ok(()),
            }
        };
        let reading = tokio::task::spawn_blocking(move || {
            let _permit = self;
            read(&check)
        });
        reading.await.unwrap_or_else(|_| Err(interrupted("reading was interrupted").into()))
    }
}

impl Drop for ScanPermit {
    fn drop(&mut self) {
        let mut counts = self.held.counts();
        match counts.get_mut(&self.caller) {
            Some(own) if *own > 1 => *own -= 1,
            _ => drop(counts.remove(&self.caller)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_caller_leaves_one_for_the_others() {
        let (scans, [ann, bob, eve]) = (Scans::new(3), ["ann", "bob", "eve"].map(Arc::<str>::from));
        let first = scans.permit(&ann).unwrap();
        let second = scans.permit(&ann).unwrap();
        assert!(scans.permit(&ann).is_none());
        let third = scans.permit(&bob).unwrap();
        assert!(scans.permit(&bob).is_none() && scans.permit(&eve).is_none(), "all are taken");
        drop((first, third));
        assert!(scans.permit(&eve).is_some() && scans.permit(&ann).is_some());
        drop(second);
        assert!(scans.held.counts().is_empty());
        let (only, one) = (Scans::new(1), Arc::from("ann"));
        let held = only.permit(&one);
        assert!(held.is_some() && only.permit(&one).is_none());
    }
}
