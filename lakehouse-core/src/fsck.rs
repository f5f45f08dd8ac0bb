//! The structure of tables, checked from outside: what snapshots say against what manifests list, what manifests say
//! against what files hold, and positions against each other (reliability requirements, section 4, "structural checks").
//!
//! Reads, never writes, and trusts no view that the writer keeps in memory. An object that is missing or damaged is a
//! failed check that names it, never the end of the run. Not here: whether the rows are the source's (`compare.rs`).

mod bounds;
mod counting;
mod cut;
mod deletes;
mod files;
mod findings;
mod inventory;
mod keys;
mod lineage;
mod metadata;

use std::sync::Arc;

use futures::{StreamExt, stream};
use serde::Serialize;

use crate::catalog::{Catalog, LoadedTable};
use crate::commit::is_control;
use crate::commit::properties;
use crate::error::{Problem, Reaction};
use crate::schema::{POSITION, REASON, TableName};
use crate::storage::Storage;

use bounds::Bounds;
use findings::Findings;
use inventory::{FileFacts, Inventory};

pub use findings::{Check, CheckName};

/// Times that a table is looked at again because snapshots went while it was being checked.
const ROUNDS: usize = 3;
/// Files looked at at the same time.
const FILES_AT_ONCE: usize = 4;

/// What `fsck --json` prints (`design/interface.md` section 2).
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct FsckReport {
    pub verdict: Verdict,
    pub tables: Vec<TableReport>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    Sound,
    Unsound,
}

/// All checks of one table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct TableReport {
    pub table: String,
    pub checks: Vec<Check>,
}

impl TableReport {
    pub fn is_sound(&self) -> bool {
        self.checks.iter().all(|check| check.ok)
    }
}

/// What a table is for, which decides about its checks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    Mirror,
    History,
    Quarantine,
    Control,
    /// Not a table of a pipeline.
    Foreign,
}

impl Role {
    fn of(table: &LoadedTable) -> Self {
        if is_control(&table.name) {
            return Role::Control;
        }
        let schema = table.metadata.current_schema();
        match (table.property(properties::FORMAT), schema.field_by_name(POSITION)) {
            (None, _) => Role::Foreign,
            (Some(_), Some(_)) if schema.field_by_name(REASON).is_some() => Role::Quarantine,
            (Some(_), Some(_)) => Role::History,
            (Some(_), None) => Role::Mirror,
        }
    }
}

/// Checks all tables of a catalog, or only some.
///
/// # Errors
/// When the catalog does not answer, or `only` names a table that is not there; never for what is wrong with a table.
pub async fn fsck(catalog: &dyn Catalog, storage: &Storage, only: Option<&[TableName]>) -> Result<FsckReport, Problem> {
    let mut names = catalog.list(None).await?;
    if let Some(only) = only {
        if let Some(unknown) = only.iter().find(|name| !names.contains(name)) {
            let remedy = "list what is there with `lakehouse tables`";
            return Err(Problem::halt("TABLE_UNKNOWN", unknown.to_string(), "no such table", remedy));
        }
        names.retain(|name| only.contains(name));
    }
    let mut tables = Vec::new();
    for name in &names {
        tables.extend(check_table(catalog, storage, name).await?);
    }
    let verdict = if tables.iter().all(TableReport::is_sound) { Verdict::Sound } else { Verdict::Unsound };
    Ok(FsckReport { verdict, tables })
}

/// `None`: the table went away meanwhile.
async fn check_table(
    catalog: &dyn Catalog,
    storage: &Storage,
    name: &TableName,
) -> Result<Option<TableReport>, Problem> {
    let mut report = None;
    for _ in 0..ROUNDS {
        let Some(loaded) = load(catalog, name).await? else {
            return Ok(None);
        };
        let checks = match &loaded {
            Ok(table) => check_loaded(catalog, storage, table).await?,
            Err(problem) => vec![unreadable(problem)],
        };
        let found = TableReport { table: name.to_string(), checks };
        let settled = found.is_sound() || !snapshots_went(catalog, &loaded).await?;
        report = Some(found);
        if settled {
            break;
        }
    }
    Ok(report)
}

/// Metadata that cannot be read is the table's fault; a catalog that does not answer is nobody's.
async fn load(catalog: &dyn Catalog, name: &TableName) -> Result<Option<Result<LoadedTable, Problem>>, Problem> {
    match catalog.load(name, None).await {
        Ok(table) => Ok(table.map(Ok)),
        Err(problem) if problem.reaction == Reaction::Retry => Err(problem),
        Err(problem) => Ok(Some(Err(problem))),
    }
}

fn unreadable(problem: &Problem) -> Check {
    let mut findings = Findings::new(CheckName::Metadata);
    findings.fail(format!("{}: {problem}", problem.subject));
    findings.check("")
}

/// True if snapshots that were checked have been expired meanwhile: their files may be gone by right.
async fn snapshots_went(catalog: &dyn Catalog, loaded: &Result<LoadedTable, Problem>) -> Result<bool, Problem> {
    let Ok(table) = loaded else { return Ok(false) };
    let Some(Ok(now)) = load(catalog, &table.name).await? else {
        return Ok(true);
    };
    Ok(table.metadata.snapshots().any(|snapshot| now.metadata.snapshot_by_id(snapshot.snapshot_id()).is_none()))
}

async fn check_loaded(catalog: &dyn Catalog, storage: &Storage, table: &LoadedTable) -> Result<Vec<Check>, Problem> {
    let role = Role::of(table);
    let mut checks = vec![metadata::check(storage, table).await];
    let mut bounds = Bounds::default();
    let (inventory, unread) = Inventory::read(storage, table, &mut bounds).await;
    let inventory = Arc::new(inventory);
    let counted = counting::count(&inventory, table);
    if role == Role::Control {
        checks.push(cut::check(catalog, table).await?);
        checks.extend([counted.live_paths, counted.counters]);
        checks.push(files::exist(storage, &inventory, unread).await?);
        return Ok(checks);
    }
    let lineage = lineage::Lineage::of(table);
    checks.push(lineage.chain());
    let positions = {
        let (storage, table, inventory) = (storage.clone(), table.clone(), Arc::clone(&inventory));
        in_background(move || lineage::position(&storage, &table, role, &lineage, &inventory)).await?
    };
    checks.extend([positions, counted.live_paths, counted.counters]);
    checks.push(files::exist(storage, &inventory, unread).await?);
    checks.push(files::parquet(storage, &inventory).await);
    checks.push(deletes::check(storage, &inventory, counted.deletes).await);
    checks.push(bounds.check());
    let keyed = {
        let (storage, table, inventory) = (storage.clone(), table.clone(), Arc::clone(&inventory));
        in_background(move || {
            [keys::digest(&storage, &table, role, &inventory), keys::unique(&storage, &table, role, &inventory)]
        })
    };
    checks.extend(keyed.await?);
    Ok(checks)
}

/// Runs blocking work off the reactor.
async fn in_background<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, Problem> {
    let task = tokio::task::spawn_blocking(work);
    task.await.map_err(|_| Problem::retry("INTERRUPTED", "", "checking was interrupted"))
}

/// Looks at all wanted files, a few at a time; returns their number. Faults are findings, and so is a panic of a library
/// over damaged bytes.
async fn for_each(
    storage: &Storage,
    inventory: &Arc<Inventory>,
    wanted: impl Fn(&FileFacts) -> bool,
    findings: &mut Findings,
    work: fn(&Storage, &Inventory, &FileFacts) -> Vec<String>,
) -> usize {
    let numbers: Vec<u32> = (0u32..).zip(&inventory.files).filter(|(_, file)| wanted(file)).map(|(n, _)| n).collect();
    let count = numbers.len();
    let looks = numbers.into_iter().map(|number| {
        let (storage, inventory) = (storage.clone(), Arc::clone(inventory));
        async move {
            let look = {
                let inventory = Arc::clone(&inventory);
                in_background(move || work(&storage, &inventory, inventory.file(number)))
            };
            look.await.unwrap_or_else(|_| vec![format!("{} cannot be decoded", inventory.file(number).path)])
        }
    });
    let mut looks = stream::iter(looks).buffered(FILES_AT_ONCE);
    while let Some(faults) = looks.next().await {
        faults.into_iter().for_each(|fault| findings.fail(fault));
    }
    count
}

/// A library that panics over damaged bytes has said that they are damaged.
fn guarded<T>(read: impl FnOnce() -> Result<T, Problem>) -> Result<T, String> {
    let read = std::panic::catch_unwind(std::panic::AssertUnwindSafe(read));
    read.map_err(|_| "it cannot be decoded".to_owned())?.map_err(|problem| problem.to_string())
}
