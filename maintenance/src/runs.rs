//! The history of maintenance: what was done to which table, why, and what it cost; one row a step, in an Iceberg table
//! that any engine reads (`maintenance.md` M-18).
//!
//! Only ever appended to. It is compacted and expired like every other table; those steps alone leave no row in it, or
//! keeping it would be a reason to keep it again.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::sync::Arc;

use arrow_array::cast::AsArray;
use arrow_array::types::{Float64Type, Int64Type, TimestampMicrosecondType};
use arrow_array::{
    Array, ArrayRef, Float64Array, Int64Array, RecordBatch, StringArray, TimestampMicrosecondArray, new_null_array,
};
use iceberg::TableCreation;
use iceberg::spec::{NestedField, PrimitiveType, Schema, Struct, Type};
use lakehouse_core::catalog::LoadedTable;
use lakehouse_core::commit::{Maintainer, runs_table};
use lakehouse_core::error::Problem;
use lakehouse_core::read::{Projection, TableReader};
use lakehouse_core::storage::Storage;
use lakehouse_core::write::{DataFileWriter, FileSchema, NewFile, data_location};

use serde::Serialize;

use crate::foreign::ForeignRewrite;
use crate::run::{Outcome, RewriteOutcome, TablePlan, as_text};

/// What is done to a table, as the history names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Operation {
    Compaction,
    Expiry,
    Cleaning,
    /// A run that ended before it came to one of them.
    Planning,
}

impl Operation {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Compaction => "compaction",
            Self::Expiry => "expiry",
            Self::Cleaning => "cleaning",
            Self::Planning => "planning",
        }
    }

    fn named(word: &str) -> Option<Self> {
        [Self::Compaction, Self::Expiry, Self::Cleaning, Self::Planning].into_iter().find(|one| one.as_str() == word)
    }
}

/// One row. What does not apply to an operation is `None`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Step {
    /// Milliseconds since 1970; as text it is its reader's to write.
    #[serde(skip)]
    pub started_at: i64,
    pub seconds: Option<f64>,
    pub table: String,
    pub operation: Operation,
    pub trigger: String,
    /// Who did it: `self`, `spark` or `s3-tables`.
    pub owner: String,
    /// `landed`, `overtaken`, or the code of what went wrong.
    pub result: String,
    #[serde(serialize_with = "as_text")]
    pub snapshot_id: Option<i64>,
    pub input_files: Option<u64>,
    pub input_bytes: Option<u64>,
    pub output_files: Option<u64>,
    pub output_bytes: Option<u64>,
    /// Rows that stay.
    pub rows: Option<u64>,
    pub forwarded_deletes: Option<u64>,
    pub attempts: Option<u64>,
    /// Snapshots that have left.
    pub snapshots: Option<u64>,
    pub stranded_files: Option<u64>,
    pub stranded_bytes: Option<u64>,
}

const OURS: &str = "self";
const LANDED: &str = "landed";
const OVERTAKEN: &str = "overtaken";

impl Step {
    fn of(table: &str, operation: Operation, started_at: i64) -> Self {
        Self {
            started_at,
            seconds: None,
            table: table.to_owned(),
            operation,
            trigger: String::new(),
            owner: OURS.to_owned(),
            result: LANDED.to_owned(),
            snapshot_id: None,
            input_files: None,
            input_bytes: None,
            output_files: None,
            output_bytes: None,
            rows: None,
            forwarded_deletes: None,
            attempts: None,
            snapshots: None,
            stranded_files: None,
            stranded_bytes: None,
        }
    }

    /// The steps of a run of ours that began at `started_at`, in the order in which they were done: of one that failed,
    /// those before.
    pub fn of_run(plan: &TablePlan, outcome: &Outcome, started_at: i64) -> Vec<Self> {
        let mut steps = Vec::new();
        let mut at = started_at;
        if let Some(landed) = outcome.expired {
            steps.push(Self {
                trigger: "retention".to_owned(),
                result: if landed { LANDED } else { OVERTAKEN }.to_owned(),
                snapshots: Some(if landed { plan.expiry.expired.len() as u64 } else { 0 }),
                ..Self::of(&plan.table, Operation::Expiry, at)
            });
        }
        for done in &outcome.rewrites {
            steps.push(Self::of_rewrite(&plan.table, done, at));
            at += milliseconds(done.seconds);
        }
        if outcome.removed_files > 0 {
            steps.push(Self {
                trigger: "age".to_owned(),
                input_files: Some(outcome.removed_files),
                input_bytes: Some(outcome.removed_bytes),
                ..Self::of(&plan.table, Operation::Cleaning, at)
            });
        }
        steps
    }

    fn of_rewrite(table: &str, done: &RewriteOutcome, at: i64) -> Self {
        // What was overtaken is named by nothing.
        let stranded = if done.stranded.is_empty() { 0 } else { done.output_bytes };
        Self {
            seconds: Some(done.seconds),
            trigger: done.reason.as_str().to_owned(),
            result: if done.overtaken.is_none() { LANDED } else { OVERTAKEN }.to_owned(),
            snapshot_id: done.snapshot_id,
            input_files: Some(done.input_files),
            input_bytes: Some(done.input_bytes),
            output_files: Some(done.output_files),
            output_bytes: Some(done.output_bytes),
            rows: Some(done.rows),
            forwarded_deletes: Some(done.forwarded),
            attempts: Some(done.attempts.into()),
            stranded_files: Some(done.stranded.len() as u64),
            stranded_bytes: Some(stranded),
            ..Self::of(table, Operation::Compaction, at)
        }
    }

    /// A run that came to a problem.
    pub fn failed(table: &str, problem: &Problem, started_at: i64, seconds: f64) -> Self {
        Self {
            seconds: Some(seconds),
            trigger: "schedule".to_owned(),
            result: problem.code.to_owned(),
            ..Self::of(table, Operation::Planning, started_at)
        }
    }

    /// What another engine was found to have done.
    pub fn foreign(table: &str, owner: &str, rewrite: &ForeignRewrite) -> Self {
        Self {
            trigger: "found".to_owned(),
            owner: owner.to_owned(),
            snapshot_id: rewrite.snapshot_id.parse().ok(),
            input_files: Some(rewrite.input_files),
            input_bytes: Some(rewrite.input_bytes),
            output_files: Some(rewrite.output_files),
            output_bytes: Some(rewrite.output_bytes),
            rows: Some(rewrite.rows),
            ..Self::of(table, Operation::Compaction, rewrite.at)
        }
    }
}

fn milliseconds(seconds: f64) -> i64 {
    i64::try_from(std::time::Duration::from_secs_f64(seconds.max(0.0)).as_millis()).unwrap_or(0)
}

/// Adds steps to the history, and creates it where there is none.
///
/// # Errors
/// Those of the catalog and the storage. Nothing of maintenance depends on it: whoever calls says so and goes on.
pub async fn record(maintainer: &Maintainer, steps: Vec<Step>) -> Result<(), Problem> {
    if steps.is_empty() {
        return Ok(());
    }
    let name = runs_table();
    let table = match maintainer.catalog.load(&name, None).await? {
        Some(table) => table,
        None => {
            maintainer.catalog.check_name(&name)?;
            maintainer.catalog.create(&name, creation()?).await?
        }
    };
    let (storage, written_to) = (maintainer.storage.clone(), table.clone());
    let task = tokio::task::spawn_blocking(move || write(&storage, &written_to, &steps));
    let interrupted = |_| Err(Problem::retry("INTERRUPTED", name.to_string(), "writing was interrupted"));
    let file = task.await.unwrap_or_else(interrupted)?;
    maintainer.append(&table, vec![file]).await?;
    Ok(())
}

/// The newest steps of the history, newest first: at most `most`, of the tables that are `wanted`. Reads it whole, a batch
/// at a time; `check` is asked in between whether anybody still waits. Blocks.
///
/// # Errors
/// `SCHEMA` where somebody has changed its columns; those of the storage and of `check`.
pub fn newest(
    history: &TableReader,
    most: usize,
    wanted: impl Fn(&str) -> bool,
    check: impl Fn() -> Result<(), Problem>,
) -> Result<Vec<Step>, Problem> {
    let columns = Projection::all(&history.schema)?;
    let mut found: Vec<Step> = Vec::new();
    let keep_newest = |found: &mut Vec<Step>| {
        found.sort_by_key(|step| Reverse(step.started_at));
        found.truncate(most);
    };
    for path in history.files() {
        let mut rows = history.read(path, &columns)?;
        while let Some(batch) = rows.next_batch() {
            check()?;
            found.extend(steps_of(&batch?.0)?.into_iter().filter(|step| wanted(&step.table)));
            keep_newest(&mut found);
        }
    }
    Ok(found)
}

fn steps_of(batch: &RecordBatch) -> Result<Vec<Step>, Problem> {
    fn lost(name: &str) -> Problem {
        let remedy = "drop the table; the next run of maintenance makes it anew";
        Problem::halt("SCHEMA", runs_table().to_string(), format!("its column {name} was changed"), remedy)
    }
    let column = |name: &str| batch.column_by_name(name);
    let text = |name: &str| column(name).and_then(|found| found.as_string_opt::<i32>()).ok_or_else(|| lost(name));
    let whole = |name: &str| -> Option<&Int64Array> { column(name)?.as_primitive_opt::<Int64Type>() };
    let started = column("started_at").and_then(|found| found.as_primitive_opt::<TimestampMicrosecondType>());
    let started = started.ok_or_else(|| lost("started_at"))?;
    let seconds = column("seconds").and_then(|found| found.as_primitive_opt::<Float64Type>());
    let [tables, operations, triggers, owners, results] =
        ["table_name", "operation", "trigger", "owner", "result"].map(text);
    let (tables, operations, triggers, owners, results) = (tables?, operations?, triggers?, owners?, results?);
    // What somebody has dropped is not there to be told.
    let number = |name: &str, row: usize| {
        let value = whole(name).filter(|numbers| numbers.is_valid(row)).map(|numbers| numbers.value(row));
        value.and_then(|value| u64::try_from(value).ok())
    };
    let step = |row: usize| {
        Ok(Step {
            started_at: started.value(row) / 1_000,
            seconds: seconds.filter(|seconds| seconds.is_valid(row)).map(|seconds| seconds.value(row)),
            table: tables.value(row).to_owned(),
            operation: Operation::named(operations.value(row)).ok_or_else(|| lost("operation"))?,
            trigger: triggers.value(row).to_owned(),
            owner: owners.value(row).to_owned(),
            result: results.value(row).to_owned(),
            snapshot_id: whole("snapshot_id").filter(|ids| ids.is_valid(row)).map(|ids| ids.value(row)),
            input_files: number("input_files", row),
            input_bytes: number("input_bytes", row),
            output_files: number("output_files", row),
            output_bytes: number("output_bytes", row),
            rows: number("rows", row),
            forwarded_deletes: number("forwarded_deletes", row),
            attempts: number("attempts", row),
            snapshots: number("snapshots", row),
            stranded_files: number("stranded_files", row),
            stranded_bytes: number("stranded_bytes", row),
        })
    };
    (0..batch.num_rows()).map(step).collect()
}

/// The columns, in the order of the schema.
const COLUMNS: [(&str, PrimitiveType, bool); 18] = [
    ("started_at", PrimitiveType::Timestamptz, true),
    ("seconds", PrimitiveType::Double, false),
    ("table_name", PrimitiveType::String, true),
    ("operation", PrimitiveType::String, true),
    ("trigger", PrimitiveType::String, true),
    ("owner", PrimitiveType::String, true),
    ("result", PrimitiveType::String, true),
    ("snapshot_id", PrimitiveType::Long, false),
    ("input_files", PrimitiveType::Long, false),
    ("input_bytes", PrimitiveType::Long, false),
    ("output_files", PrimitiveType::Long, false),
    ("output_bytes", PrimitiveType::Long, false),
    ("rows", PrimitiveType::Long, false),
    ("forwarded_deletes", PrimitiveType::Long, false),
    ("attempts", PrimitiveType::Long, false),
    ("snapshots", PrimitiveType::Long, false),
    ("stranded_files", PrimitiveType::Long, false),
    ("stranded_bytes", PrimitiveType::Long, false),
];

fn creation() -> Result<TableCreation, Problem> {
    let field = |(id, (name, kind, required)): (i32, (&str, PrimitiveType, bool))| {
        Arc::new(NestedField::new(id, name, Type::Primitive(kind), required))
    };
    let schema = Schema::builder().with_fields((1..).zip(COLUMNS).map(field)).build();
    let name = runs_table();
    let schema = schema.map_err(|error| Problem::halt("SCHEMA", name.to_string(), error.to_string(), "report this"))?;
    let text = |key: &str, value: &str| (key.to_owned(), value.to_owned());
    let properties = HashMap::from([
        text("write.metadata.previous-versions-max", "10"),
        text("write.parquet.compression-codec", "zstd"),
    ]);
    Ok(TableCreation::builder().name(name.name).schema(schema).properties(properties).build())
}

fn write(storage: &Storage, table: &LoadedTable, steps: &[Step]) -> Result<NewFile, Problem> {
    let metadata = &table.metadata;
    let files = FileSchema::new(Arc::clone(metadata.current_schema()))?;
    let partition = Struct::empty();
    let location = data_location(metadata, &partition, &files.iceberg);
    let spec = metadata.default_partition_spec_id();
    let mut writer = DataFileWriter::create(storage, &location, &files, partition, spec)?;
    writer.write(&batch(table, &files, steps)?)?;
    writer.finish()
}

/// The steps as the table has its columns: one that somebody has added is NULL, one that somebody has dropped is left out.
fn batch(table: &LoadedTable, files: &FileSchema, steps: &[Step]) -> Result<RecordBatch, Problem> {
    let known: HashMap<&str, ArrayRef> = COLUMNS.iter().map(|(name, ..)| *name).zip(columns(steps)).collect();
    let fields = files.arrow.fields().iter();
    let arrays = fields.map(|field| match known.get(field.name().as_str()) {
        Some(array) => Arc::clone(array),
        None => new_null_array(field.data_type(), steps.len()),
    });
    RecordBatch::try_new(Arc::clone(&files.arrow), arrays.collect()).map_err(|error| {
        let remedy = "drop the table; the next run of maintenance makes it anew";
        Problem::halt("SCHEMA", table.name.to_string(), format!("its columns were changed: {error}"), remedy)
    })
}

/// In the order of [`COLUMNS`].
fn columns(steps: &[Step]) -> Vec<ArrayRef> {
    let text = |get: fn(&Step) -> &str| -> ArrayRef { Arc::new(StringArray::from_iter_values(steps.iter().map(get))) };
    let number = |get: fn(&Step) -> Option<u64>| -> ArrayRef {
        let values = steps.iter().map(|step| get(step).map(|value| i64::try_from(value).unwrap_or(i64::MAX)));
        Arc::new(values.collect::<Int64Array>())
    };
    let started = TimestampMicrosecondArray::from_iter_values(steps.iter().map(|step| step.started_at * 1_000));
    vec![
        Arc::new(started.with_timezone("+00:00")),
        Arc::new(steps.iter().map(|step| step.seconds).collect::<Float64Array>()),
        text(|step| &step.table),
        text(|step| step.operation.as_str()),
        text(|step| &step.trigger),
        text(|step| &step.owner),
        text(|step| &step.result),
        Arc::new(steps.iter().map(|step| step.snapshot_id).collect::<Int64Array>()),
        number(|step| step.input_files),
        number(|step| step.input_bytes),
        number(|step| step.output_files),
        number(|step| step.output_bytes),
        number(|step| step.rows),
        number(|step| step.forwarded_deletes),
        number(|step| step.attempts),
        number(|step| step.snapshots),
        number(|step| step.stranded_files),
        number(|step| step.stranded_bytes),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clean::{Orphan, Orphans};
    use crate::plan::Reason;
    use crate::run::PlannedExpiry;

    fn done(reason: Reason, overtaken: Option<&'static str>) -> RewriteOutcome {
        let landed = overtaken.is_none();
        RewriteOutcome {
            reason,
            snapshot_id: landed.then_some(7),
            overtaken,
            input_files: 2,
            input_bytes: 100,
            output_files: 1,
            output_bytes: 60,
            rows: 10,
            attempts: u32::from(landed),
            forwarded: 3,
            stranded: if landed { Vec::new() } else { vec!["c".to_owned()] },
            seconds: 1.5,
        }
    }

    #[test]
    fn a_run_has_a_row_for_each_step() {
        let orphan = Orphan { location: "o".to_owned(), bytes: 5, age_seconds: 9 };
        let plan = TablePlan {
            table: "app.t".to_owned(),
            expiry: PlannedExpiry { expired: vec!["1".to_owned(), "2".to_owned()], ..PlannedExpiry::default() },
            orphans: Orphans { removable: vec![orphan], ..Orphans::default() },
            ..TablePlan::default()
        };
        let outcome = Outcome {
            rewrites: vec![done(Reason::SmallFiles, None), done(Reason::DeletedRows, Some("why"))],
            expired: Some(true),
            removed_files: 1,
            removed_bytes: 5,
            seconds: 4.0,
        };
        let steps = Step::of_run(&plan, &outcome, 1_000);
        let told: Vec<_> = steps
            .iter()
            .map(|step| (step.operation.as_str(), step.trigger.as_str(), step.result.as_str(), step.started_at))
            .collect();
        let expected = [
            ("expiry", "retention", "landed", 1_000),
            ("compaction", "small-files", "landed", 1_000),
            ("compaction", "deleted-rows", "overtaken", 2_500),
            ("cleaning", "age", "landed", 4_000),
        ];
        assert_eq!(told, expected);
        assert_eq!((steps[0].snapshots, steps[1].rows, steps[1].snapshot_id), (Some(2), Some(10), Some(7)));
        let stranded = |step: &Step| (step.stranded_files, step.stranded_bytes);
        assert_eq!((stranded(&steps[1]), stranded(&steps[2])), ((Some(0), Some(0)), (Some(1), Some(60))));
    }

    #[test]
    fn the_columns_are_those_of_the_schema() {
        let schema = creation().unwrap().schema;
        let files = FileSchema::new(Arc::new(schema)).unwrap();
        let problem = Problem::retry("STORAGE", "t", "gone");
        let arrays = columns(&[Step::failed("app.t", &problem, 1, 0.5)]);
        assert_eq!(arrays.len(), COLUMNS.len());
        let batch = RecordBatch::try_new(Arc::clone(&files.arrow), arrays).unwrap();
        assert_eq!(batch.num_rows(), 1);
    }

    #[test]
    fn a_step_is_read_back_as_it_was_written() {
        let files = FileSchema::new(Arc::new(creation().unwrap().schema)).unwrap();
        let plan = TablePlan { table: "app.t".to_owned(), ..TablePlan::default() };
        let outcome = Outcome {
            rewrites: vec![done(Reason::SmallFiles, None), done(Reason::DeletedRows, Some("why"))],
            expired: Some(false),
            ..Outcome::default()
        };
        let mut steps = Step::of_run(&plan, &outcome, 1_000);
        steps.push(Step::failed("app.u", &Problem::retry("STORAGE", "u", "gone"), 2_000, 0.5));
        let batch = RecordBatch::try_new(Arc::clone(&files.arrow), columns(&steps)).unwrap();
        assert_eq!(steps_of(&batch).unwrap(), steps);
        let told = serde_json::to_value(&steps[1]).unwrap();
        assert_eq!((&told["operation"], &told["snapshot_id"]), (&"compaction".into(), &"7".into()), "{told}");
        let fewer = batch.project(&(0..10).collect::<Vec<_>>()).unwrap();
        assert_eq!(steps_of(&fewer).unwrap()[1].rows, None, "a column that is gone");
        assert_eq!(steps_of(&batch.project(&[0, 1]).unwrap()).map_err(|problem| problem.code), Err("SCHEMA"));
    }
}
