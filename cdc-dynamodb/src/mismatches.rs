//! Values that were not of their column's type, counted by table and attribute (D53): in the log, once for each column and
//! again each time that there are twice as many, and in a file of the local state, where `status` finds them.
//!
//! For people, not for rules: what a crash makes be read again counts again, and with the local state the counts go.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use tracing::{debug, warn};

/// Counts by attribute, by table.
pub type Counts = BTreeMap<String, BTreeMap<String, u64>>;

/// The counts of one pipeline.
#[derive(Clone, Debug)]
pub(crate) struct Mismatches(Arc<Mutex<Counted>>);

#[derive(Debug)]
struct Counted {
    file: PathBuf,
    counts: Counts,
    /// What the log has said, in this incarnation.
    told: Counts,
}

/// What a pipeline's worker on this machine has counted; empty where there is no file, or none that can be read.
pub fn mismatches(local_state: &Path) -> Counts {
    fs::read(file(local_state)).ok().and_then(|text| serde_json::from_slice(&text).ok()).unwrap_or_default()
}

fn file(local_state: &Path) -> PathBuf {
    local_state.join("mismatches.json")
}

impl Mismatches {
    pub(crate) fn open(local_state: &Path) -> Self {
        let (file, counts) = (file(local_state), mismatches(local_state));
        Self(Arc::new(Mutex::new(Counted { file, counts, told: Counts::new() })))
    }

    /// Takes in values that came since the last call.
    pub(crate) fn add<'a>(&self, table: &str, new: impl Iterator<Item = (&'a str, u64)>) {
        let mut new = new.filter(|(_, count)| *count > 0).peekable();
        if new.peek().is_none() {
            return;
        }
        let mut counted = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Counted { counts, told, .. } = &mut *counted;
        let counts = counts.entry(table.to_owned()).or_default();
        let told = told.entry(table.to_owned()).or_default();
        for (attribute, more) in new {
            let count = counts.entry(attribute.to_owned()).or_default();
            *count += more;
            let told = told.entry(attribute.to_owned()).or_default();
            if *count >= *told * 2 {
                *told = *count;
                warn!(table, attribute, count, "values are not of their column's type and stand in _rest");
            }
        }
        // Failing costs a number in `status`, so it is no error.
        if let Err(error) = counted.write() {
            debug!(%error, "the counts of mismatches cannot be written");
        }
    }
}

impl Counted {
    fn write(&self) -> io::Result<()> {
        let draft = self.file.with_extension("json.draft");
        fs::create_dir_all(self.file.parent().expect("a file in a folder"))?;
        fs::write(&draft, serde_json::to_vec(&self.counts)?)?;
        fs::rename(draft, &self.file)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_go_on_over_incarnations() {
        let folder = tempfile::tempdir().unwrap();
        let state = folder.path().join("app");
        assert!(mismatches(&state).is_empty());
        let first = Mismatches::open(&state);
        first.add("t", [("a", 0), ("b", 2)].into_iter());
        first.add("t", [("a", 1), ("b", 1)].into_iter());
        first.add("u", [("a", 0)].into_iter());
        Mismatches::open(&state).add("t", [("b", 4)].into_iter());
        let counted = BTreeMap::from([("a".to_owned(), 1), ("b".to_owned(), 7)]);
        assert_eq!(mismatches(&state), Counts::from([("t".to_owned(), counted)]));
        fs::write(file(&state), "{").unwrap();
        assert!(mismatches(&state).is_empty());
    }
}
