//! One run over one table: look, plan, act, look again. What a dry run prints is what the run after it does, unless the
//! table moves in between; then each step says that it was overtaken, and the next run plans anew.

use std::collections::{BTreeMap, HashSet};
use std::time::{Duration, Instant};

use lakehouse_core::catalog::{Catalog, LoadedTable};
use lakehouse_core::commit::{ByPosition, CONTROL_NAMESPACE, Maintainer, Replaced, mergeable_manifests, recorded_cuts};
use lakehouse_core::error::Problem;
use lakehouse_core::foreign::check_foreign;
use lakehouse_core::schema::TableName;
use serde::Serialize;
use tracing::{info, warn};

use crate::budget::Budgets;
use crate::clean::{self, Orphans};
use crate::compact;
use crate::expire::{self, Expiry, Retention, Snapshots};
use crate::health::TableHealth;
use crate::plan::{Clock, Group, Reason, Targets, groups};
use crate::view::View;

/// More manifests than this cost every reader: they are merged where that leaves fewer.
const MANIFESTS: usize = 100;

/// What is done for one table, and how.
#[derive(Clone, Debug)]
pub struct Settings {
    pub compact: bool,
    /// Delete files without a data file are dropped, also where another engine compacts.
    pub drop_dangling: bool,
    /// Equality deletes become position deletes, whoever compacts: the table's writer waits for it.
    pub by_position: bool,
    pub expire: bool,
    /// Checkpoints are tagged and untagged, also where another engine expires: tags tell it what stays (MD-3).
    pub tag: bool,
    pub clean: bool,
    pub targets: Targets,
    pub retention: Retention,
    /// The age from which files that nothing needs are removed.
    pub orphan_age: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            compact: true,
            drop_dangling: true,
            by_position: true,
            expire: true,
            tag: true,
            clean: true,
            targets: Targets::default(),
            retention: Retention::default(),
            orphan_age: clean::AGE,
        }
    }
}

/// Exactly what a run would touch.
#[derive(Clone, Debug, Default, Serialize)]
pub struct TablePlan {
    pub table: String,
    /// The snapshot that it was made on.
    #[serde(serialize_with = "as_text")]
    pub snapshot_id: Option<i64>,
    pub rewrites: Vec<PlannedRewrite>,
    /// Delete files that no live data file has: they go with the first commit.
    pub dangling_deletes: Vec<String>,
    /// Another engine's equality-delete files: they become position deletes first, and all else waits for the next run.
    pub equality_deletes: Vec<String>,
    /// Manifests that are merged into others; 0 where there are few.
    pub merged_manifests: usize,
    pub expiry: PlannedExpiry,
    pub orphans: Orphans,
    #[serde(skip)]
    pub(crate) groups: Vec<Group>,
    #[serde(skip)]
    pub(crate) planned_expiry: Expiry,
}

#[derive(Clone, Debug, Serialize)]
pub struct PlannedRewrite {
    pub reason: Reason,
    pub files: Vec<String>,
    pub delete_files: Vec<String>,
    pub bytes: u64,
    /// Rows that stay, and rows that are dropped for good.
    pub rows: u64,
    pub deleted_rows: u64,
    /// Files that come of it, about.
    pub expected_files: u64,
}

#[derive(Clone, Debug, Default, Serialize)]
pub struct PlannedExpiry {
    pub tagged: BTreeMap<String, String>,
    pub untagged: Vec<String>,
    pub expired: Vec<String>,
}

/// What has come of a plan.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Outcome {
    pub rewrites: Vec<RewriteOutcome>,
    /// `None`: there was nothing to do.
    pub expired: Option<bool>,
    pub removed_files: u64,
    pub removed_bytes: u64,
    /// Seconds from the first look to the last.
    pub seconds: f64,
}

#[derive(Clone, Debug, Serialize)]
pub struct RewriteOutcome {
    pub reason: Reason,
    /// The snapshot that it became; `None` where it was overtaken.
    #[serde(serialize_with = "as_text")]
    pub snapshot_id: Option<i64>,
    pub overtaken: Option<&'static str>,
    pub input_files: u64,
    pub input_bytes: u64,
    pub output_files: u64,
    pub output_bytes: u64,
    /// Rows of the new files.
    pub rows: u64,
    pub attempts: u32,
    /// Deletes that came meanwhile and were carried over.
    pub forwarded: u64,
    /// Files that were written and that nothing names.
    pub stranded: Vec<String>,
    pub seconds: f64,
}

/// A plan, what came of it, and how the table stands before and behind it.
#[derive(Clone, Debug, Serialize)]
pub struct TableRun {
    pub plan: TablePlan,
    pub before: TableHealth,
    #[serde(flatten)]
    pub done: Option<Done>,
}

#[derive(Clone, Debug, Serialize)]
pub struct Done {
    pub outcome: Outcome,
    pub after: TableHealth,
}

/// Snapshots that cuts of any pipeline name, by table (protocol C6): the newest cut, and all that are kept.
pub async fn protected(catalog: &dyn Catalog) -> Result<BTreeMap<String, HashSet<i64>>, Problem> {
    let mut named: BTreeMap<String, HashSet<i64>> = BTreeMap::new();
    for control in catalog.list(Some(CONTROL_NAMESPACE)).await? {
        let Some(control) = catalog.load(&control, None).await? else { continue };
        for cut in recorded_cuts(&control) {
            for (table, id) in cut.tables {
                named.entry(table).or_default().extend(id.parse::<i64>().ok());
            }
        }
    }
    Ok(named)
}

/// Looks at a table and says what is to be done, and how the table stands. Changes nothing.
///
/// # Errors
/// `MAINTENANCE_OWNER`; what another engine has done to the table (protocol F6); those of catalog and storage.
pub async fn plan(
    maintainer: &Maintainer,
    name: &TableName,
    protected: &HashSet<i64>,
    others: &[String],
    settings: &Settings,
) -> Result<(View, TablePlan), Problem> {
    maintainer.catalog.check_owner(name).await?;
    let view = View::of(&maintainer.storage, maintainer.load(name, None).await?).await?;
    let table = &view.table;
    check_foreign(&maintainer.storage, table).await?;
    let now = chrono::Utc::now().timestamp_millis();
    // A table that is being copied is its copy's alone; one of no pipeline has no position and no copy.
    let copied = view.state.position.is_some() || view.state.source.is_none();
    let mut equality_deletes: Vec<String> = view.live.equality_deletes().cloned().collect();
    equality_deletes.sort_unstable();
    let countable = equality_deletes.is_empty();
    let groups = match settings.compact && copied && countable {
        true => due(&view, &settings.targets, now),
        false => Vec::new(),
    };
    let mut expiry = match (settings.expire || settings.tag) && countable {
        true => expire::plan(&Snapshots::of(table), protected, &settings.retention, now),
        false => Expiry::default(),
    };
    if !settings.expire {
        expiry.expired.clear();
    }
    let orphans = match settings.clean {
        _ if maintainer.catalog.removes_files() => Orphans { refused: Some(clean::BY_SERVICE), ..Orphans::default() },
        true => clean::plan(&maintainer.storage, table, others, settings.orphan_age, maintainer.planted).await?,
        false => Orphans::default(),
    };
    let merged_manifests = match settings.compact && copied && countable && view.live.manifests.len() > MANIFESTS {
        true => mergeable_manifests(&view.live),
        false => 0,
    };
    let mut dangling_deletes: Vec<String> = match settings.drop_dangling && copied && countable {
        true => view.live.dangling_deletes().iter().cloned().collect(),
        false => Vec::new(),
    };
    dangling_deletes.sort_unstable();
    let plan = TablePlan {
        table: name.to_string(),
        snapshot_id: table.snapshot_id(),
        dangling_deletes,
        equality_deletes: if settings.by_position { equality_deletes } else { Vec::new() },
        merged_manifests,
        rewrites: groups.iter().map(|group| planned(group, &settings.targets)).collect(),
        expiry: PlannedExpiry::of(&expiry),
        orphans,
        groups,
        planned_expiry: expiry,
    };
    Ok((view, plan))
}

/// What compaction would rewrite at `now` (milliseconds since 1970), the most useful first.
pub(crate) fn due(view: &View, targets: &Targets, now: i64) -> Vec<Group> {
    let clock = Clock { now, last_commit: view.table.metadata.last_updated_ms() };
    let mut due: Vec<Group> = view.partitions().values().flat_map(|files| groups(files, targets, clock)).collect();
    // What only readers gain by waits for all else, in every partition.
    due.sort_by_key(|group| group.reason == Reason::ReadCost);
    due
}

fn planned(group: &Group, targets: &Targets) -> PlannedRewrite {
    let live: u64 = group.files.iter().map(|file| file.live_bytes()).sum();
    PlannedRewrite {
        reason: group.reason,
        files: group.files.iter().map(|file| file.path.clone()).collect(),
        delete_files: group.files.iter().flat_map(|file| file.deletes.clone()).collect(),
        bytes: group.bytes(),
        rows: group.files.iter().map(|file| file.records - file.deleted).sum(),
        deleted_rows: group.deleted(),
        expected_files: live.div_ceil(targets.file_bytes.max(1)),
    }
}

impl PlannedExpiry {
    fn of(expiry: &Expiry) -> Self {
        Self {
            tagged: expiry.tagged.iter().map(|(name, id)| (name.clone(), id.to_string())).collect(),
            untagged: expiry.untagged.iter().cloned().collect(),
            expired: expiry.expired.iter().map(i64::to_string).collect(),
        }
    }
}

impl TablePlan {
    /// Nothing is to be done.
    pub fn is_empty(&self) -> bool {
        self.groups.is_empty()
            && self.dangling_deletes.is_empty()
            && self.equality_deletes.is_empty()
            && self.merged_manifests == 0
            && self.planned_expiry.is_empty()
            && self.orphans.removable.is_empty()
    }
}

/// Does what a plan says, as far as the budget goes, and notes in `outcome` what is done: also where a later step fails.
///
/// # Errors
/// `ROWS_DIFFER`; those of [`Maintainer::replace`], of catalog and storage.
pub async fn act(
    maintainer: &Maintainer,
    view: &View,
    plan: &TablePlan,
    settings: &Settings,
    budgets: &mut Budgets,
    outcome: &mut Outcome,
) -> Result<(), Problem> {
    let begun = Instant::now();
    if !plan.equality_deletes.is_empty() {
        outcome.rewrites.push(delete_by_position(maintainer, view).await?);
    }
    // What is read and written is the dearest; metadata first, so that a table whose metadata grows is never kept waiting.
    if !plan.planned_expiry.is_empty() {
        let expiry = &plan.planned_expiry;
        let done = |table: &LoadedTable| expiry.is_done(table);
        let landed = maintainer.change_metadata(&view.table, expiry.updates(&view.table), done).await?;
        match landed {
            true => info!(table = plan.table, snapshots = expiry.expired.len(), "snapshots are expired"),
            false => info!(table = plan.table, "the table has moved since expiry was planned; the next run plans anew"),
        }
        outcome.expired = Some(landed);
    }
    for group in &plan.groups {
        let (reason, bytes) = (group.reason, group.bytes());
        if !budgets.take(reason, bytes) {
            let reason = reason.as_str();
            info!(table = plan.table, reason, bytes, "the budget of this hour is spent, compaction goes on later");
            break;
        }
        outcome.rewrites.push(rewrite(maintainer, view, group, settings).await?);
    }
    let landed = |rewrite: &RewriteOutcome| rewrite.snapshot_id.is_some();
    let left =
        [(Reason::DanglingDeletes, !plan.dangling_deletes.is_empty()), (Reason::Manifests, plan.merged_manifests > 0)];
    if let Some((reason, _)) = left.into_iter().find(|(_, due)| *due)
        && !outcome.rewrites.iter().any(landed)
    {
        // A rewrite of nothing: its commit drops what no data file has, and merges manifests.
        let nothing = Group { reason, files: Vec::new() };
        outcome.rewrites.push(rewrite(maintainer, view, &nothing, settings).await?);
    }
    if !plan.orphans.removable.is_empty() {
        let removed = clean::act(&maintainer.storage.cleaner(), &plan.orphans).await?;
        (outcome.removed_files, outcome.removed_bytes) = removed;
        info!(table = plan.table, files = removed.0, bytes = removed.1, "files that nothing needs are removed");
    }
    outcome.seconds = begun.elapsed().as_secs_f64();
    Ok(())
}

async fn rewrite(
    maintainer: &Maintainer,
    view: &View,
    group: &Group,
    settings: &Settings,
) -> Result<RewriteOutcome, Problem> {
    let begun = Instant::now();
    let (storage, targets, planted) = (maintainer.storage.clone(), settings.targets.clone(), maintainer.planted);
    let task = {
        let (view, group) = (view.clone(), group.clone());
        tokio::task::spawn_blocking(move || compact::rewrite(&storage, &view, &group, &targets, planted))
    };
    let interrupted = |_| Err(Problem::retry("INTERRUPTED", view.name().to_string(), "a rewrite was interrupted"));
    let rewrite = task.await.unwrap_or_else(interrupted)?;
    let replaced = maintainer.replace(&view.table, &rewrite).await?;
    let mut outcome = RewriteOutcome {
        reason: group.reason,
        snapshot_id: None,
        overtaken: None,
        input_files: group.files.len() as u64,
        input_bytes: group.bytes(),
        output_files: rewrite.outputs.len() as u64,
        output_bytes: rewrite.outputs.iter().map(|new| new.file.file_size_in_bytes()).sum(),
        rows: rewrite.outputs.iter().map(|new| new.file.record_count()).sum(),
        attempts: 0,
        forwarded: 0,
        stranded: Vec::new(),
        seconds: begun.elapsed().as_secs_f64(),
    };
    match replaced {
        Replaced::Landed { snapshot_id, attempts, forwarded, .. } => {
            (outcome.snapshot_id, outcome.attempts, outcome.forwarded) = (Some(snapshot_id), attempts, forwarded);
        }
        Replaced::Overtaken(why) => {
            outcome.overtaken = Some(why);
            outcome.stranded = rewrite.outputs.iter().map(|new| new.file.file_path().to_owned()).collect();
            warn!(table = %view.name(), why, files = outcome.stranded.len(), "a rewrite was overtaken, its files are stranded");
        }
    }
    Ok(outcome)
}

/// All equality deletes at once, whatever the budget: nobody writes to the table before.
async fn delete_by_position(maintainer: &Maintainer, view: &View) -> Result<RewriteOutcome, Problem> {
    let begun = Instant::now();
    let files = view.live.equality_deletes().filter_map(|path| view.live.deletes.get(path));
    let bytes: Vec<u64> = files.map(|delete| delete.file.file_size_in_bytes()).collect();
    let done = maintainer.delete_by_position(&view.table, &view.live).await?;
    let ByPosition { replaced, written, bytes: output_bytes, rows } = done;
    let mut outcome = RewriteOutcome {
        reason: Reason::EqualityDeletes,
        snapshot_id: None,
        overtaken: None,
        input_files: bytes.len() as u64,
        input_bytes: bytes.iter().sum(),
        output_files: written.len() as u64,
        output_bytes,
        rows,
        attempts: 1,
        forwarded: 0,
        stranded: Vec::new(),
        seconds: begun.elapsed().as_secs_f64(),
    };
    match replaced {
        Replaced::Landed { snapshot_id, .. } => outcome.snapshot_id = Some(snapshot_id),
        Replaced::Overtaken(why) => {
            warn!(table = %view.name(), why, files = written.len(), "equality deletes stay, new delete files are stranded");
            (outcome.overtaken, outcome.stranded) = (Some(why), written);
        }
    }
    Ok(outcome)
}

pub(crate) fn as_text<S: serde::Serializer>(id: &Option<i64>, serializer: S) -> Result<S::Ok, S::Error> {
    id.map(|id| id.to_string()).serialize(serializer)
}
