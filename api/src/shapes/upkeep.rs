//! What maintenance tells of tables.

use std::collections::BTreeMap;

use utoipa::ToSchema;

// maintenance::health::TableHealth
/// Measures of a table; all of them are left out where it cannot be measured.
#[derive(ToSchema)]
pub(crate) struct Measures {
    /// Of 100.
    score: Option<f64>,
    data_files: Option<u64>,
    small_files: Option<u64>,
    delete_files: Option<u64>,
    equality_delete_files: Option<u64>,
    /// The most delete files that one data file has.
    most_deletes_per_file: Option<u64>,
    /// Delete files that no live data file has.
    dangling_deletes: Option<u64>,
    rows: Option<u64>,
    deleted_rows: Option<u64>,
    bytes: Option<u64>,
    manifests: Option<u64>,
    manifest_bytes: Option<u64>,
    snapshots: Option<u64>,
    metadata_bytes: Option<u64>,
    /// What compaction would read now if nothing bounded it.
    debt_bytes: Option<u64>,
    /// Since files were last replaced.
    compaction_age_seconds: Option<u64>,
    /// How far back the table can be read as of any time.
    time_travel_seconds: Option<u64>,
    /// How far back the configuration wants it.
    promised_time_travel_seconds: Option<u64>,
    time_travel_kept: Option<bool>,
}

// maintenance::runs::Step, without its beginning.
#[derive(ToSchema)]
pub(crate) struct Step {
    seconds: Option<f64>,
    table: String,
    operation: StepOperation,
    /// Why: `retention`, `small-files`, `deleted-rows`, `read-cost`, `dangling-deletes`, `equality-deletes`,
    /// `manifests`, `age`, `schedule`, `found`.
    trigger: String,
    /// Who did it: `self`, `spark` or `s3-tables`.
    owner: String,
    /// `landed`, `overtaken`, or the code of what went wrong.
    result: String,
    snapshot_id: Option<String>,
    input_files: Option<u64>,
    input_bytes: Option<u64>,
    output_files: Option<u64>,
    output_bytes: Option<u64>,
    /// Rows that stay.
    rows: Option<u64>,
    forwarded_deletes: Option<u64>,
    attempts: Option<u64>,
    /// Snapshots that have left.
    snapshots: Option<u64>,
    stranded_files: Option<u64>,
    stranded_bytes: Option<u64>,
}

#[derive(ToSchema)]
#[schema(rename_all = "lowercase")]
enum StepOperation {
    Compaction,
    Expiry,
    Cleaning,
    /// A run that ended before it came to one of them.
    Planning,
}

// maintenance::run::TableRun
/// What is to be done to a table, and, where it was done, what has come of it.
#[derive(ToSchema)]
pub(crate) struct TableRun {
    #[schema(nullable = false)]
    plan: Option<TablePlan>,
    /// How the table stands.
    #[schema(nullable = false)]
    before: Option<Measures>,
    #[schema(nullable = false)]
    outcome: Option<Outcome>,
    /// How it stands behind that.
    #[schema(nullable = false)]
    after: Option<Measures>,
}

#[derive(ToSchema)]
struct TablePlan {
    table: String,
    /// The snapshot that it was made on.
    snapshot_id: Option<String>,
    rewrites: Vec<PlannedRewrite>,
    /// Delete files that no live data file has: they go with the first commit.
    dangling_deletes: Vec<String>,
    /// Another engine's equality-delete files: they become position deletes first, and all else waits for the next run.
    equality_deletes: Vec<String>,
    /// Manifests that are merged into others; 0 where there are few.
    merged_manifests: u64,
    expiry: PlannedExpiry,
    orphans: Orphans,
}

#[derive(ToSchema)]
struct PlannedRewrite {
    reason: RewriteReason,
    files: Vec<String>,
    delete_files: Vec<String>,
    bytes: u64,
    /// Rows that stay.
    rows: u64,
    /// Rows that are dropped for good.
    deleted_rows: u64,
    /// Files that come of it, about.
    expected_files: u64,
}

#[derive(ToSchema)]
#[schema(rename_all = "kebab-case")]
enum RewriteReason {
    SmallFiles,
    DeletedRows,
    ReadCost,
    DanglingDeletes,
    EqualityDeletes,
    Manifests,
}

#[derive(ToSchema)]
struct PlannedExpiry {
    /// Snapshots by the tags that they get.
    tagged: BTreeMap<String, String>,
    /// Tags that go.
    untagged: Vec<String>,
    /// Snapshots that leave.
    expired: Vec<String>,
}

/// Files below a table's location that nothing needs.
#[derive(ToSchema)]
struct Orphans {
    /// Old enough to go.
    removable: Vec<Orphan>,
    /// Too young, or of unknown age.
    waiting: u64,
    waiting_bytes: u64,
    /// Why nothing may go.
    #[schema(nullable = false)]
    refused: Option<String>,
}

#[derive(ToSchema)]
struct Orphan {
    location: String,
    bytes: u64,
    age_seconds: u64,
}

/// What has come of a plan.
#[derive(ToSchema)]
struct Outcome {
    rewrites: Vec<RewriteOutcome>,
    /// Whether the expiry has landed; null where there was nothing to do.
    expired: Option<bool>,
    removed_files: u64,
    removed_bytes: u64,
    /// From the first look to the last.
    seconds: f64,
}

#[derive(ToSchema)]
struct RewriteOutcome {
    reason: RewriteReason,
    /// The snapshot that it became; null where it was overtaken.
    snapshot_id: Option<String>,
    overtaken: Option<String>,
    input_files: u64,
    input_bytes: u64,
    output_files: u64,
    output_bytes: u64,
    /// Rows of the new files.
    rows: u64,
    attempts: u32,
    /// Deletes that came meanwhile and were carried over.
    forwarded: u64,
    /// Files that were written and that nothing names.
    stranded: Vec<String>,
    seconds: f64,
}

// maintenance::foreign::ForeignRewrite
/// Files that another engine has replaced.
#[derive(ToSchema)]
pub(crate) struct ForeignRewrite {
    snapshot_id: String,
    input_files: u64,
    input_bytes: u64,
    output_files: u64,
    output_bytes: u64,
    rows: u64,
}

// lakehouse_core::error::Problem
/// What went wrong with a table; the log has the reason.
#[derive(ToSchema)]
pub(crate) struct Told {
    #[schema(nullable = false)]
    code: Option<String>,
    #[schema(nullable = false)]
    message: Option<String>,
    #[schema(nullable = false)]
    subject: Option<String>,
    #[schema(nullable = false)]
    remedy: Option<String>,
}

#[cfg(test)]
mod tests {
    use lakehouse_core::error::Problem;
    use maintenance::clean;
    use maintenance::foreign;
    use maintenance::health::TableHealth;
    use maintenance::plan::Reason;
    use maintenance::run::{self, Done};
    use maintenance::runs;
    use serde_json::json;
    use utoipa::PartialSchema;
    use utoipa::openapi::{RefOr, Schema};

    use super::super::tests::check;
    use super::*;

    #[test]
    fn a_shape_has_the_keys_of_what_it_stands_for() {
        check::<Measures>(&TableHealth::default());
        let (plan, before) = (run::TablePlan::default(), TableHealth::default());
        let done = Done { outcome: run::Outcome::default(), after: TableHealth::default() };
        check::<TablePlan>(&plan);
        check::<PlannedExpiry>(&plan.expiry);
        check::<Outcome>(&done.outcome);
        check::<TableRun>(&run::TableRun { plan, before, done: Some(done) });
        check::<PlannedRewrite>(&run::PlannedRewrite {
            reason: Reason::SmallFiles,
            files: Vec::new(),
            delete_files: Vec::new(),
            bytes: 1,
            rows: 1,
            deleted_rows: 1,
            expected_files: 1,
        });
        check::<Orphans>(&clean::Orphans { refused: Some("why"), ..clean::Orphans::default() });
        check::<Orphan>(&clean::Orphan { location: "a".to_owned(), bytes: 1, age_seconds: 1 });
        check::<RewriteOutcome>(&run::RewriteOutcome {
            reason: Reason::SmallFiles,
            snapshot_id: Some(1),
            overtaken: None,
            input_files: 1,
            input_bytes: 1,
            output_files: 1,
            output_bytes: 1,
            rows: 1,
            attempts: 1,
            forwarded: 1,
            stranded: Vec::new(),
            seconds: 1.0,
        });
        check::<ForeignRewrite>(&foreign::ForeignRewrite {
            snapshot_id: "1".to_owned(),
            at: 1,
            input_files: 1,
            input_bytes: 1,
            output_files: 1,
            output_bytes: 1,
            rows: 1,
        });
        let problem = Problem::retry("STORAGE", "app.t", "gone");
        check::<Step>(&runs::Step::failed("app.t", &problem, 1, 0.5));
        check::<Told>(&problem);
    }

    #[test]
    fn words_are_those_of_what_they_stand_for() {
        use Reason::{DanglingDeletes, DeletedRows, EqualityDeletes, Manifests, ReadCost, SmallFiles};
        use runs::Operation::{Cleaning, Compaction, Expiry, Planning};
        let words = |schema: RefOr<Schema>| serde_json::to_value(schema).unwrap()["enum"].clone();
        let operations = [Compaction, Expiry, Cleaning, Planning];
        assert_eq!(words(StepOperation::schema()), json!(operations));
        let reasons = [SmallFiles, DeletedRows, ReadCost, DanglingDeletes, EqualityDeletes, Manifests];
        assert_eq!(words(RewriteReason::schema()), json!(reasons));
    }
}
