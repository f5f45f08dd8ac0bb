//! `health`: how well tables can be read, what their upkeep owes them, and whose upkeep it is. Changes nothing.

use chrono::Utc;
use indicatif::HumanBytes;
use lakehouse_core::catalog::LoadedTable;
use lakehouse_core::error::Problem;
use lakehouse_core::live::EQUALITY_DELETES;
use lakehouse_core::planted::Planted;
use lakehouse_core::schema::TableName;
use maintenance::clean;
use maintenance::health::TableHealth;
use maintenance::view::View;
use serde::Serialize;
use utoipa::ToSchema;

use super::Context;
use crate::answer::{self, or_dash};
use crate::config::{MaintenanceConfig, Owner, Owners, Span};
use crate::failure::{Exit, Failure};
use crate::lake::{self, Kind, Lake};
use crate::shapes;
use crate::upkeep::{DRIFT, check_maintained, is_maintained};

#[derive(Serialize)]
struct Answer {
    tables: Vec<Table>,
}

/// How one table is.
#[derive(Serialize, ToSchema)]
#[schema(as = TableHealth)]
pub(crate) struct Table {
    table: String,
    kind: Kind,
    owner: Owners,
    /// The jobs of S3 Tables are not as the configuration has them.
    owner_drift: bool,
    /// Why the table cannot be measured, or that its owner has drifted.
    code: Option<&'static str>,
    #[serde(flatten)]
    #[schema(value_type = shapes::Measures)]
    health: Option<TableHealth>,
    /// Where it was asked for, and somebody other than the storage itself may look.
    #[serde(skip_serializing_if = "Option::is_none")]
    unreferenced: Option<Unreferenced>,
}

/// Files below a table's folder that no kept snapshot needs, the youngest among them perhaps about to be committed.
#[derive(Serialize, ToSchema)]
struct Unreferenced {
    files: u64,
    bytes: u64,
    /// Those that are old enough to be removed.
    removable_files: u64,
    removable_bytes: u64,
}

pub(super) async fn run(context: &Context, wanted: Option<&TableName>, with_files: bool) -> Result<Exit, Failure> {
    let lake = Lake::open(&context.config).await?;
    let tables = match wanted {
        Some(name) => {
            let table = lake.table(name).await?;
            check_maintained(&table)?;
            vec![table]
        }
        None => lake.tables(None).await?.into_iter().filter(is_maintained).collect(),
    };
    let mut answers = Vec::new();
    for table in tables {
        let unreferenced = match with_files {
            true => unreferenced(&lake, &context.config.maintenance, &table).await?,
            false => None,
        };
        answers.push(Table { unreferenced, ..one(&lake, &context.config.maintenance, table).await? });
    }
    match (context.json, wanted) {
        (true, _) => answer::json(&Answer { tables: answers })?,
        (false, None) => print(&answers)?,
        (false, Some(_)) => answers.iter().try_for_each(print_one)?,
    }
    Ok(Exit::Done)
}

/// # Errors
/// What the catalog meets; what the table itself is like is in the answer.
pub(crate) async fn one(lake: &Lake, config: &MaintenanceConfig, table: LoadedTable) -> Result<Table, Failure> {
    let (name, kind) = (table.name.clone(), lake::kind(&table));
    let own = config.of(&name);
    let drift = match lake.catalog.check_owner(&name).await {
        Ok(()) => false,
        Err(problem) if problem.code == DRIFT => true,
        Err(problem) => return Err(problem.into()),
    };
    let measured = match View::of(&lake.storage, table).await {
        Ok(view) => Ok(TableHealth::of(&view, &own.settings(Owner::Ours), Utc::now().timestamp_millis())),
        // What another engine has left there is this table's answer, not the end of all others'.
        Err(Problem { code, .. }) => Err(code),
    };
    let unread = measured.as_ref().is_ok_and(|health| health.equality_delete_files > 0).then_some(EQUALITY_DELETES);
    let code = measured.as_ref().err().copied().or(unread).or(drift.then_some(DRIFT));
    Ok(Table {
        table: name.to_string(),
        kind,
        owner: own.owner,
        owner_drift: drift,
        code,
        health: measured.ok(),
        unreferenced: None,
    })
}

/// `None` where only the storage's own service can tell, or where another table's files stand among these.
async fn unreferenced(
    lake: &Lake,
    config: &MaintenanceConfig,
    table: &LoadedTable,
) -> Result<Option<Unreferenced>, Failure> {
    if lake.catalog.removes_files() {
        return Ok(None);
    }
    let mut others = Vec::new();
    for name in lake.catalog.list(None).await?.into_iter().filter(|name| *name != table.name) {
        let other = lake.catalog.load(&name, None).await?;
        others.extend(other.map(|other| other.metadata.location().to_owned()));
    }
    let age = config.of(&table.name).settings(Owner::Ours).orphan_age;
    let orphans = clean::plan(&lake.storage, table, &others, age, Planted::none()).await?;
    let removable_files = orphans.removable.len() as u64;
    let removable_bytes: u64 = orphans.removable.iter().map(|orphan| orphan.bytes).sum();
    Ok(orphans.refused.is_none().then(|| Unreferenced {
        files: removable_files + orphans.waiting as u64,
        bytes: removable_bytes + orphans.waiting_bytes,
        removable_files,
        removable_bytes,
    }))
}

fn print(tables: &[Table]) -> Result<(), Failure> {
    let row = |table: &Table| {
        let health = table.health.as_ref();
        let measure = |get: fn(&TableHealth) -> String| or_dash(health.map(get));
        [
            table.table.clone(),
            score(table),
            measure(|health| format!("{} of {}", health.small_files, health.data_files)),
            measure(|health| health.delete_files.to_string()),
            measure(|health| percent(health.deleted_rows, health.rows + health.deleted_rows)),
            measure(|health| HumanBytes(health.debt_bytes).to_string()),
            measure(compacted),
            measure(time_travel),
            owner(table.owner),
        ]
    };
    let rows: Vec<_> = tables.iter().map(row).collect();
    let headers = ["TABLE", "SCORE", "SMALL", "DELETES", "DELETED", "DEBT", "COMPACTED", "TIME TRAVEL", "OWNER"];
    answer::table(headers, &rows)
}

/// With the code beside it, or in its place.
fn score(table: &Table) -> String {
    let score = table.health.as_ref().map(|health| format!("{:.0}", health.score));
    score.into_iter().chain(table.code.map(str::to_owned)).collect::<Vec<_>>().join(" ")
}

/// Every measure of one table.
fn print_one(table: &Table) -> Result<(), Failure> {
    let mut rows = vec![
        ["table".to_owned(), table.table.clone()],
        ["kind".to_owned(), table.kind.as_str().to_owned()],
        ["owner".to_owned(), owner(table.owner)],
        ["code".to_owned(), or_dash(table.code)],
    ];
    let mut measure = |name: &str, value: String| rows.push([name.to_owned(), value]);
    if let Some(health) = &table.health {
        measure("score", format!("{:.1} of 100", health.score));
        measure("data files", format!("{}, {}", health.data_files, HumanBytes(health.bytes)));
        measure("small files", health.small_files.to_string());
        measure("delete files", health.delete_files.to_string());
        measure("equality deletes", health.equality_delete_files.to_string());
        measure("most deletes a file", health.most_deletes_per_file.to_string());
        measure("dangling deletes", health.dangling_deletes.to_string());
        let deleted = percent(health.deleted_rows, health.rows + health.deleted_rows);
        measure("rows", format!("{} live, {} deleted ({deleted})", health.rows, health.deleted_rows));
        measure("manifests", format!("{}, {}", health.manifests, HumanBytes(health.manifest_bytes)));
        measure("snapshots", health.snapshots.to_string());
        measure("metadata", HumanBytes(health.metadata_bytes).to_string());
        measure("debt", HumanBytes(health.debt_bytes).to_string());
        measure("compacted", compacted(health));
        measure("time travel", time_travel(health));
    }
    if let Some(Unreferenced { files, bytes, removable_files, removable_bytes }) = table.unreferenced {
        let (all, old) = (HumanBytes(bytes), HumanBytes(removable_bytes));
        measure("unreferenced files", format!("{files}, {all}; old enough to go: {removable_files}, {old}"));
    }
    answer::table(["MEASURE", "VALUE"], &rows)
}

fn compacted(health: &TableHealth) -> String {
    or_dash(health.compaction_age_seconds.map(|seconds| format!("{} ago", ago(seconds))))
}

fn time_travel(health: &TableHealth) -> String {
    let short = if health.time_travel_kept { "" } else { ", short" };
    format!("{} of {}{short}", ago(health.time_travel_seconds), ago(health.promised_time_travel_seconds))
}

/// In its largest whole unit.
fn ago(seconds: u64) -> String {
    let unit = [86_400, 3_600, 60, 1].into_iter().find(|unit| seconds >= *unit).unwrap_or(1);
    Span(std::time::Duration::from_secs(seconds / unit * unit)).to_string()
}

#[expect(clippy::cast_precision_loss, reason = "for people, of numbers below 2^52")]
fn percent(part: u64, whole: u64) -> String {
    format!("{:.1} %", 100.0 * part as f64 / whole.max(1) as f64)
}

/// One word, if one has all duties.
fn owner(owners: Owners) -> String {
    let Owners { compact, expire, clean } = owners;
    match compact == expire && expire == clean {
        true => compact.as_str().to_owned(),
        false => format!("{}/{}/{}", compact.as_str(), expire.as_str(), clean.as_str()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_are_told_in_their_largest_unit() {
        for (seconds, told) in [(0, "0ms"), (59, "59s"), (61, "1m"), (7_300, "2h"), (86_400 * 3 + 5, "3d")] {
            assert_eq!(ago(seconds), told);
        }
    }
}
