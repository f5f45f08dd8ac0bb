//! What one check has found, told in a bounded number of words.

use std::fmt;

use serde::Serialize;

/// Findings that are told one by one; of further ones only the number.
const TOLD: usize = 10;

/// What is checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CheckName {
    /// Metadata text as other engines want it (files W8, W9, W12).
    Metadata,
    /// The ranges of change snapshots join: `from(n) == to(n−1)`.
    Chain,
    /// The table's position is that of its newest change, and no row is behind it.
    Position,
    /// No path is live twice in a snapshot.
    LivePaths,
    /// The counts in snapshot summaries are those of the manifests.
    Counters,
    /// The digest of each commit is that of the rows that it added.
    Digest,
    /// No key stands twice.
    Keys,
    /// Every referenced object is there, with its size.
    Files,
    /// Parquet files are readable and as every engine reads them (files W5, W6, W10, W11).
    Parquet,
    /// Position deletes apply as they are meant (files W1 to W4, W13, W14).
    Deletes,
    /// Bounds in manifests are true (files W4).
    Bounds,
    /// The cut names what is there (protocol C).
    Cut,
}

impl CheckName {
    /// The word in the report.
    pub fn as_str(self) -> &'static str {
        match self {
            CheckName::Metadata => "metadata",
            CheckName::Chain => "chain",
            CheckName::Position => "position",
            CheckName::LivePaths => "live_paths",
            CheckName::Counters => "counters",
            CheckName::Digest => "digest",
            CheckName::Keys => "keys",
            CheckName::Files => "files",
            CheckName::Parquet => "parquet",
            CheckName::Deletes => "deletes",
            CheckName::Bounds => "bounds",
            CheckName::Cut => "cut",
        }
    }
}

impl fmt::Display for CheckName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl Serialize for CheckName {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

/// One check of one table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Check {
    pub name: CheckName,
    pub ok: bool,
    /// What is wrong; or what was checked, and what is odd without being wrong.
    pub detail: String,
}

/// Collects what a check finds.
#[derive(Debug)]
pub(super) struct Findings {
    name: CheckName,
    failures: Told,
    notes: Told,
}

#[derive(Debug, Default)]
struct Told {
    first: Vec<String>,
    count: usize,
}

impl Told {
    fn add(&mut self, what: String) {
        self.count += 1;
        if self.first.len() < TOLD {
            self.first.push(what);
        }
    }

    fn text(&self) -> String {
        let rest = match self.count - self.first.len() {
            0 => String::new(),
            more => format!("; and {more} more"),
        };
        self.first.join("; ") + &rest
    }
}

impl Findings {
    pub(super) fn new(name: CheckName) -> Self {
        Self { name, failures: Told::default(), notes: Told::default() }
    }

    pub(super) fn fail(&mut self, what: impl Into<String>) {
        self.failures.add(what.into());
    }

    /// Something that a reader of the report should know and that is not wrong.
    pub(super) fn note(&mut self, what: impl Into<String>) {
        self.notes.add(what.into());
    }

    /// `checked` says what was looked at.
    pub(super) fn check(self, checked: impl Into<String>) -> Check {
        let ok = self.failures.count == 0;
        let checked = checked.into();
        let parts = [self.failures.text(), checked, self.notes.text()];
        let detail: Vec<String> = parts.into_iter().filter(|part| !part.is_empty()).collect();
        Check { name: self.name, ok, detail: detail.join("; ") }
    }
}

/// A check that does not apply, with the reason.
pub(super) fn skipped(name: CheckName, why: &str) -> Check {
    Check { name, ok: true, detail: format!("not checked: {why}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thousand_failures_make_a_short_report() {
        let mut findings = Findings::new(CheckName::LivePaths);
        (0..1_000).for_each(|n| findings.fail(format!("f{n}")));
        findings.note("odd");
        let check = findings.check("7 snapshots");
        assert!(!check.ok && check.detail.len() < 100, "{}", check.detail);
        assert!(check.detail.starts_with("f0; f1") && check.detail.ends_with("f9; and 990 more; 7 snapshots; odd"));
        assert_eq!(serde_json::to_value(&check).unwrap()["name"], "live_paths");
    }
}
