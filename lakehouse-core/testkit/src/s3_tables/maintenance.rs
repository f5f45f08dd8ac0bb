//! What managed maintenance is told to do with a table, and what it says it did.

use serde_json::{Value, json};

use super::lake::now;
use super::refusal::Refusal;

#[derive(Clone, Debug)]
pub(super) struct Maintenance {
    compaction: Value,
    snapshot_management: Value,
    last_compaction: Option<Run>,
    last_expiry: Option<Run>,
}

/// When a job ran last, and what went wrong.
type Run = (String, Result<(), String>);

/// Both jobs are on for every new table.
impl Default for Maintenance {
    fn default() -> Self {
        Self {
            compaction: json!({
                "status": "enabled",
                "settings": {"icebergCompaction": {"targetFileSizeMB": 512, "strategy": "auto"}},
            }),
            snapshot_management: json!({
                "status": "enabled",
                "settings": {"icebergSnapshotManagement": {"minSnapshotsToKeep": 1, "maxSnapshotAgeHours": 120}},
            }),
            last_compaction: None,
            last_expiry: None,
        }
    }
}

impl Maintenance {
    pub(super) fn compacts(&self) -> bool {
        self.compaction["status"] == "enabled"
    }

    pub(super) fn configuration(&self) -> Value {
        json!({"icebergCompaction": self.compaction, "icebergSnapshotManagement": self.snapshot_management})
    }

    /// Takes a job's new status and, where given, settings.
    pub(super) fn configure(&mut self, job: &str, value: &Value) -> Result<(), Refusal> {
        let current = match job {
            "icebergCompaction" => &mut self.compaction,
            "icebergSnapshotManagement" => &mut self.snapshot_management,
            _ => return Err(Refusal::bad_request(format!("unknown maintenance type: {job}"))),
        };
        let status = value["status"].as_str().unwrap_or_default();
        if !matches!(status, "enabled" | "disabled") {
            return Err(Refusal::bad_request(format!("unknown maintenance status: {status}")));
        }
        let settings = &value["settings"][job];
        let in_range = |name: &str, range: std::ops::RangeInclusive<i64>| match settings.get(name) {
            Some(number) => number.as_i64().is_some_and(|number| range.contains(&number)),
            None => true,
        };
        if !(in_range("targetFileSizeMB", 64..=512)
            && in_range("minSnapshotsToKeep", 1..=i64::MAX)
            && in_range("maxSnapshotAgeHours", 1..=i64::MAX))
        {
            return Err(Refusal::bad_request(format!("settings out of range: {settings}")));
        }
        current["status"] = json!(status);
        for (name, setting) in settings.as_object().into_iter().flatten() {
            current["settings"][job][name] = setting.clone();
        }
        Ok(())
    }

    /// How many snapshots to keep and for how many hours, unless the job is off.
    pub(super) fn expires(&self) -> Option<(usize, u64)> {
        let settings = &self.snapshot_management["settings"]["icebergSnapshotManagement"];
        let number = |name: &str| settings[name].as_u64().unwrap_or_default();
        let kept = usize::try_from(number("minSnapshotsToKeep")).unwrap_or(usize::MAX);
        (self.snapshot_management["status"] == "enabled").then(|| (kept, number("maxSnapshotAgeHours")))
    }

    pub(super) fn compacted(&mut self, outcome: Result<(), String>) {
        self.last_compaction = Some((now(), outcome));
    }

    pub(super) fn expired(&mut self, outcome: Result<(), String>) {
        self.last_expiry = Some((now(), outcome));
    }

    pub(super) fn job_status(&self) -> Value {
        json!({
            "icebergCompaction": status(self.compacts(), self.last_compaction.as_ref()),
            "icebergSnapshotManagement": status(self.expires().is_some(), self.last_expiry.as_ref()),
            "icebergUnreferencedFileRemoval": {"status": "Not_Yet_Run"},
        })
    }
}

fn status(enabled: bool, last: Option<&Run>) -> Value {
    match last {
        _ if !enabled => json!({"status": "Disabled"}),
        None => json!({"status": "Not_Yet_Run"}),
        Some((at, Ok(()))) => json!({"status": "Successful", "lastRunTimestamp": at}),
        Some((at, Err(why))) => json!({"status": "Failed", "lastRunTimestamp": at, "failureMessage": why}),
    }
}
