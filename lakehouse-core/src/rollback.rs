//! Rollback of one table or several: planned on what a person sees, journalled in the control table, and gone through to
//! its end by whoever comes next, a starting worker included (protocol E3, E4, E7).
//!
//! Each table goes to its target by a forward commit (`commit/restore.rs`). What has been done to a table stands in that
//! table; so any coordinator can go on from any step, and two at once need no lock. Not here: how the tables come back
//! into the cut (`lakehouse/hold.rs`).

mod target;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tracing::{info, warn};

use crate::catalog::LoadedTable;
use crate::commit::properties::{RESTORED, SOURCE_TABLE, TO, TableState};
use crate::commit::{
    Control, Cut, Journal, Maintainer, Mark, OperationMark, RequestDigest, Restored, RolledTable, Stage, is_overtaken,
    named_snapshots, recorded_operations, target_tag, undo_tag,
};
use crate::error::Problem;
use crate::position::Position;
use crate::schema::TableName;
use crate::tags::set_tag;

/// Rounds of one table against others that move it, before the operation waits for its next coordinator.
const ROUNDS: u32 = 8;
/// Between two looks at an operation that another coordinator goes on with.
const PAUSE: Duration = Duration::from_millis(250);

/// A rollback as a person is shown it.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Where the pipeline's cut stands.
    pub cut: Position,
    /// By the mirror's name.
    pub tables: BTreeMap<String, RolledTable>,
}

/// Looks whether tables can go to the snapshots named, and notes what they look like now. Changes nothing.
///
/// # Errors
/// `ROLLBACK_OPEN` while another operation is, or holds a table; `CUT_NOT_REACHED` for a table that stands beyond the cut,
/// or has left it; `TARGET_IS_HEAD`; those of the target: `TARGET_INCOMPLETE`, `TARGET_SCHEMA`, `SNAPSHOT_UNKNOWN`.
pub async fn plan(
    control: &Control,
    maintainer: &Maintainer,
    targets: &BTreeMap<TableName, i64>,
) -> Result<Plan, Problem> {
    check_free(control)?;
    let cut = control.cut()?;
    let mut tables = BTreeMap::new();
    for (name, &target) in targets {
        let table = maintainer.load(name, None).await?;
        let subject = || name.to_string();
        let state = TableState::of(&table)?;
        let (Some(source), Some(position), Some(head)) =
            (table.property(SOURCE_TABLE), state.position, table.snapshot_id())
        else {
            let message = "the table is not a mirror whose copy is done";
            return Err(Problem::halt("TABLE_UNKNOWN", subject(), message, "name a mirror; see `lakehouse status`"));
        };
        check_in_cut(&cut, &name.to_string(), source)?;
        if position > cut.position || !cut.tables.contains_key(&name.to_string()) {
            let message = format!("the table stands at {position}, the cut at {}", cut.position);
            return Err(Problem::retry("CUT_NOT_REACHED", subject(), message));
        }
        if head == target {
            let remedy = "name an older snapshot; `lakehouse snapshots` lists them";
            return Err(Problem::halt("TARGET_IS_HEAD", subject(), "the table stands there already", remedy));
        }
        target::check(maintainer, &table, target).await?;
        let rolled = RolledTable {
            source: source.to_owned(),
            head: head.to_string(),
            target: target.to_string(),
            target_position: rows_position(&table, target),
            position,
        };
        tables.insert(name.to_string(), rolled);
    }
    Ok(Plan { cut: cut.position, tables })
}

/// One at a time: the journal has room for one, and whoever undoes needs to know what.
fn check_free(control: &Control) -> Result<(), Problem> {
    let pipeline = &control.table().name.name;
    if let Some(journal) = control.state().journal.as_ref().filter(|journal| journal.stage.is_open()) {
        return Err(open(pipeline, journal));
    }
    if let Some((held, left)) = control.cut()?.left.iter().find(|(_, left)| left.is_held()) {
        let message = format!("{held} is held: {}", left.reason);
        let remedy = "choose a way out for it first: undo, replay, accept or resync";
        return Err(Problem::halt("ROLLBACK_OPEN", pipeline, message, remedy));
    }
    Ok(())
}

fn check_in_cut(cut: &Cut, table: &str, source: &str) -> Result<(), Problem> {
    let Some(left) = cut.left.get(source) else { return Ok(()) };
    let message = format!("the table has left the cut: {}", left.code);
    Err(Problem::halt("CUT_NOT_REACHED", table, message, "undo, replay, accept or resync it first"))
}

/// Looks whether every table still has the head that the person saw (protocol E3). Changes nothing; what moves behind this
/// look turns the operation back.
///
/// # Errors
/// `TABLE_MOVED`.
pub async fn check_heads(maintainer: &Maintainer, plan: &Plan) -> Result<(), Problem> {
    for (name, seen) in &plan.tables {
        let head = maintainer.load(&name.parse()?, None).await?.snapshot_id().map(|id| id.to_string());
        if head.as_ref() != Some(&seen.head) {
            let head = head.unwrap_or_else(|| "gone".to_owned());
            let message = format!("its head is {head}, the plan was made on {}; nothing was changed", seen.head);
            let remedy = "look again, and roll back; pause the pipeline first if the table never rests";
            return Err(Problem::halt("TABLE_MOVED", name, message, remedy));
        }
    }
    Ok(())
}

/// Who begins an operation, and why.
#[derive(Clone, Debug)]
pub struct Asked {
    /// The operation's id: a new one, and the same however often its begin is tried.
    pub id: String,
    pub by: String,
    pub reason: String,
    /// Of a program that may ask again.
    pub request: Option<RequestDigest>,
}

/// Opens the operation that `plan` describes: from here on it ends, whoever ends it. The worker is fenced. Asked again by
/// the same id or the same request, it is the operation that was begun first.
///
/// # Errors
/// `ROLLBACK_OPEN` and `CUT_NOT_REACHED` as [`plan`]: others may have been quicker since; `IDEMPOTENCY_REUSED`.
pub async fn begin(control: &mut Control, plan: &Plan, asked: &Asked) -> Result<Journal, Problem> {
    let known = recorded_operations(control.table()).into_iter().find(|journal| journal.id == asked.id);
    let first = asked.request.as_ref().map(|request| repeated(control.table(), request)).transpose()?;
    if let Some(begun) = known.or(first.flatten()) {
        return Ok(begun);
    }
    check_free(control)?;
    let cut = control.cut()?;
    for (name, table) in &plan.tables {
        check_in_cut(&cut, name, &table.source)?;
    }
    let journal = Journal {
        id: asked.id.clone(),
        stage: Stage::Forward,
        turned: None,
        epoch: 0,
        by: asked.by.clone(),
        reason: asked.reason.clone(),
        begun_at: chrono::Utc::now().timestamp_millis(),
        request: asked.request.clone(),
        tables: plan.tables.clone(),
    };
    control.open_journal(journal.clone()).await?;
    info!(operation = asked.id, "rollback is begun");
    Ok(Journal { epoch: control.state().epoch, ..journal })
}

/// The operation that this request has begun, as long as the control table knows it: the last one always (requirement R-9).
///
/// # Errors
/// `IDEMPOTENCY_REUSED` where the key has come with another request.
pub fn repeated(control: &LoadedTable, request: &RequestDigest) -> Result<Option<Journal>, Problem> {
    for journal in recorded_operations(control) {
        match &journal.request {
            Some(first) if first == request => return Ok(Some(journal)),
            Some(first) if first.key == request.key => {
                let message = "this key has begun the operation with another request";
                let remedy = "take a new key for each request, and the same one only to repeat it unchanged";
                return Err(Problem::halt("IDEMPOTENCY_REUSED", journal.id, message, remedy));
            }
            _ => {}
        }
    }
    Ok(None)
}

/// Turns an open operation back, or begins to undo a finished one whose tables are held (protocol E7 e).
///
/// # Errors
/// `OPERATION_UNKNOWN`, also for one that is not the last; `NOT_HELD` once its tables go on.
pub async fn turn_back(control: &mut Control, id: &str, why: &str) -> Result<(), Problem> {
    let known = control.state().journal.clone().filter(|journal| journal.id == id);
    let journal = known.ok_or_else(|| unknown(id))?;
    let cut = control.cut()?;
    let held = |table: &RolledTable| cut.left.get(&table.source).is_some_and(|left| left.is_held());
    match journal.stage {
        Stage::Back => return Ok(()),
        Stage::Forward => {}
        Stage::RolledBack if journal.tables.values().all(held) => {}
        Stage::RolledBack | Stage::Released | Stage::Closed => {
            let message = "its tables are not held any more: they have been undone, replayed, accepted or copied anew";
            let tag = undo_tag(id);
            let remedy = format!("roll back again: to the tag {tag} where a table has it, or to another snapshot");
            return Err(Problem::halt("NOT_HELD", id, message, remedy));
        }
    }
    control.open_journal(Journal { stage: Stage::Back, turned: Some(why.to_owned()), ..journal }).await
}

/// Goes through an open operation to its end; without one, does nothing. Returns the operation as it was closed.
///
/// # Errors
/// Those of the catalog and the storage: the operation stays open, and the next coordinator goes on.
pub async fn run(control: &mut Control, maintainer: &Maintainer) -> Result<Option<Journal>, Problem> {
    while let Some(journal) = control.state().journal.clone().filter(|journal| journal.stage.is_open()) {
        let mut heads = BTreeMap::new();
        let mut moved = None;
        for (name, table) in &journal.tables {
            match advance(maintainer, &journal, name, table).await? {
                Advanced::Done(head) => drop(heads.insert(name.clone(), head)),
                Advanced::Moved(why) => {
                    moved = Some(format!("{name}: {why}"));
                    break;
                }
            }
        }
        match moved {
            None => {
                control.close_journal(&heads).await?;
                info!(operation = journal.id, stage = journal.stage.as_str(), "operation is closed");
            }
            Some(why) => {
                warn!(operation = journal.id, why, "rollback goes back");
                turn_back(control, &journal.id, &why).await?;
            }
        }
    }
    Ok(control.state().journal.clone())
}

/// As [`run`], for somebody who waits for this operation's end, whoever brings it there: a worker that was fenced by it
/// may be quicker.
pub async fn finish(pipeline: &str, maintainer: &Maintainer, id: &str) -> Result<Journal, Problem> {
    let mut last = None;
    for _ in 0..ROUNDS {
        let Maintainer { catalog, storage, .. } = maintainer;
        let mut control = Control::open(Arc::clone(catalog), storage.clone(), pipeline).await?;
        match run(&mut control, maintainer).await {
            Ok(_) => {
                let known = recorded_operations(control.table());
                let found = known.into_iter().find(|journal| journal.id == id);
                return found.ok_or_else(|| unknown(id));
            }
            Err(problem) if is_overtaken(&problem) => last = Some(problem),
            Err(problem) => return Err(problem),
        }
        tokio::time::sleep(PAUSE).await;
    }
    Err(last.unwrap_or_else(|| unknown(id)))
}

/// What has become of one table.
enum Advanced {
    /// It stands at this snapshot, as the operation wants it.
    Done(i64),
    /// It is not what the person saw (protocol E3).
    Moved(String),
}

async fn advance(
    maintainer: &Maintainer,
    journal: &Journal,
    name: &str,
    rolled: &RolledTable,
) -> Result<Advanced, Problem> {
    let table_name: TableName = name.parse().map_err(|_| unreadable(journal, name))?;
    let id_of = |text: &str| text.parse::<i64>().map_err(|_| unreadable(journal, name));
    let (seen, target) = (id_of(&rolled.head)?, id_of(&rolled.target)?);
    let forward = journal.stage == Stage::Forward;
    for _ in 0..ROUNDS {
        let table = maintainer.load(&table_name, None).await?;
        let head = table.snapshot_id().ok_or_else(|| unreadable(journal, name))?;
        let (mark, rows) = match (OperationMark::by(&table, &journal.id)?, forward) {
            (Some(Mark::RolledBack), true) | (Some(Mark::Released | Mark::CaughtUp), false) => {
                return Ok(Advanced::Done(head));
            }
            (Some(_), true) => return Ok(Advanced::Moved("it has been released already".to_owned())),
            (None, true) if head != seen => {
                return Ok(Advanced::Moved(format!("its head is {head}, the plan was made on {seen}")));
            }
            (None, true) => (Mark::RolledBack, target),
            (Some(Mark::RolledBack), false) => (Mark::Released, seen),
            // Untouched: a commit that changes no row settles what is still on its way (protocol E7 e).
            (None, false) => (Mark::Released, head),
        };
        if forward {
            let tags = [(undo_tag(&journal.id), seen), (target_tag(&journal.id), target)];
            if !tag(maintainer, &table, &tags).await? {
                continue;
            }
            if let Err(problem) = target::check(maintainer, &table, target).await {
                match problem.code {
                    "TARGET_INCOMPLETE" | "TARGET_SCHEMA" | "SNAPSHOT_UNKNOWN" => {
                        return Ok(Advanced::Moved(problem.message));
                    }
                    _ => return Err(problem),
                }
            }
        }
        // Loaded again: the tags have moved its token, and nothing else may have.
        let table = maintainer.load(&table_name, Some(&table)).await?;
        if table.snapshot_id() != Some(head) {
            continue;
        }
        let mark = OperationMark { id: journal.id.clone(), mark };
        if let Restored::Landed { snapshot_id, .. } =
            maintainer.restore(&table, rows, Some((&mark, journal.epoch))).await?
        {
            return Ok(Advanced::Done(snapshot_id));
        }
    }
    Err(Problem::retry("TABLE_MOVED", name, "others commit to the table all the time; the operation stays open"))
}

/// Sets tags that are missing; `false` if the table has moved meanwhile.
async fn tag(maintainer: &Maintainer, table: &LoadedTable, tags: &[(String, i64)]) -> Result<bool, Problem> {
    let is_there = |table: &LoadedTable, (tag, id): &(String, i64)| {
        named_snapshots(table).get(id).is_some_and(|names| names.contains(tag))
    };
    let missing: Vec<_> = tags.iter().filter(|tag| !is_there(table, tag)).cloned().collect();
    if missing.is_empty() {
        return Ok(true);
    }
    if let Some((_, gone)) = missing.iter().find(|(_, id)| table.metadata.snapshot_by_id(*id).is_none()) {
        let message = format!("snapshot {gone} has expired");
        return Err(Problem::halt("SNAPSHOT_UNKNOWN", table.name.to_string(), message, "roll back to another one"));
    }
    let updates = missing.iter().map(|(name, id)| set_tag(name, *id)).collect();
    maintainer.change_metadata(table, updates, |table| missing.iter().all(|tag| is_there(table, tag))).await
}

/// The position that the rows of a snapshot are of: its own, or that of the snapshot whose rows it has. `None` where what
/// tells has expired.
pub fn rows_position(table: &LoadedTable, snapshot: i64) -> Option<Position> {
    let mut next = Some(snapshot);
    // A line longer than all snapshots is a circle, which no table has.
    for _ in 0..=table.metadata.snapshots().len() {
        let snapshot = table.metadata.snapshot_by_id(next?)?;
        let said = &snapshot.summary().additional_properties;
        if let Some(restored) = said.get(RESTORED) {
            next = Some(restored.parse().ok()?);
        } else if let Some(to) = said.get(TO) {
            return to.parse().ok();
        } else {
            next = snapshot.parent_snapshot_id();
        }
    }
    None
}

/// A worker does not start, and nobody rolls back, while an operation is open (protocol D).
pub fn open(pipeline: &str, journal: &Journal) -> Problem {
    let message = format!("rollback {} is open, and goes {}", journal.id, journal.stage.as_str());
    Problem::retry("ROLLBACK_OPEN", pipeline, message)
}

fn unknown(id: &str) -> Problem {
    let message = "the last rollback of the pipeline is another one";
    Problem::halt("OPERATION_UNKNOWN", id, message, "see `lakehouse operations`")
}

fn unreadable(journal: &Journal, table: &str) -> Problem {
    let message = format!("the journal of {} is damaged", journal.id);
    Problem::halt("PROPERTY_DAMAGED", table, message, "restore the control table's properties")
}
