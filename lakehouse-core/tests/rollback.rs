//! Rollbacks that race with the changes of a worker, with each other and with their own coordinators' deaths: between any
//! look of the worker and its commit somebody begins one, goes on with one, turns one back or releases its tables. Whatever
//! comes first, positions never go back by themselves, and in the end every mirror has its source's rows, each change once.
//!
//! `LAKEHOUSE_SEEDS` sets how many, `LAKEHOUSE_SEED` the first; all 2,000 are for the long tier.

use crate::support;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::support::between::{Between, Meddler};
use crate::support::check::{difference, in_order};
use crate::support::script::{Database, Identity, Script, Table, Writer, plain};
use crate::support::world::{PIPELINE, Worker, World, halted, unreadable};
use crate::support::{Violation, block_on, ensure, reading};
use async_trait::async_trait;
use fastrand::Rng;
use futures::{StreamExt, stream};
use iceberg::spec::{NestedField, PrimitiveType, Schema, Type};
use iceberg::{TableCreation, TableUpdate};
use lakehouse_core::catalog::{Catalog, LoadedTable, Swap};
use lakehouse_core::commit::properties::{POSITION, TableState};
use lakehouse_core::commit::{
    CONTROL_NAMESPACE, Control, ControlState, Exit, GiveWay, Journal, Maintainer, Release, RequestDigest, RolledTable,
    Stage, named_snapshots, recorded_operations,
};
use lakehouse_core::error::{Problem, Reaction};
use lakehouse_core::fsck::{Verdict, fsck};
use lakehouse_core::lakehouse::ROLLBACK_TAGS;
use lakehouse_core::live::LiveFiles;
use lakehouse_core::planted::{Bug, Planted};
use lakehouse_core::position::Position;
use lakehouse_core::rollback::{self, Asked};
use lakehouse_core::schema::TableName;
use lakehouse_core::storage::{Storage, local_path};
use maintenance::expire::{self, Retention, Snapshots};
use testkit::tier;
use tokio::sync::Mutex;

const AT_ONCE: usize = 4;
/// Tables that go back; the third one only goes on.
const ROLLED: usize = 2;
/// Calls of the catalog after which a coordinator dies, at most.
const LIFE: usize = 14;

/// Inserts, updates, key changes, deletes and truncates on three tables, every value sent.
fn script(seed: u64) -> Script {
    let mut rng = Rng::with_seed(seed ^ 0xBAC2);
    let identity = |n: u64| if (seed >> n) & 1 == 0 { Identity::Key } else { Identity::KeyFull };
    let mut database = Database::new(vec![
        Table::new("public.first", identity(0)).with_history(),
        Table::new("public.second", identity(1)).with_history(),
        Table::new("public.third", Identity::Key).with_history(),
    ]);
    database.transaction(|tx| (0..3).for_each(|table| tx.insert(table, plain(1, "copied", 1))));
    database.copy_here();
    for _ in 0..rng.usize(6..14) {
        database.transaction(|tx| {
            for _ in 0..rng.usize(1..5) {
                act(tx, &mut rng);
            }
        });
    }
    database.done()
}

fn act(tx: &mut Writer<'_>, rng: &mut Rng) {
    let (table, id, value) = (rng.usize(..3), rng.i64(0..5), rng.i64(0..1_000));
    let is_there = tx.rows(table).iter().any(|row| row[0] == support::script::int(id));
    match (is_there, rng.u8(..12)) {
        (_, 0) => tx.truncate(table),
        (false, _) => tx.insert(table, plain(id, &format!("note {value}"), value)),
        (true, 1..=3) => tx.delete(table, id),
        (true, _) => tx.update(table, id, |row| *row = plain(id, &format!("note {value}"), value), &[]),
    }
}

/// What happened, over all histories.
#[derive(Default)]
struct Count {
    begun: AtomicUsize,
    rolled_back: AtomicUsize,
    turned_back: AtomicUsize,
    released: AtomicUsize,
    died: AtomicUsize,
}

fn note(counter: &AtomicUsize) {
    counter.fetch_add(1, Ordering::SeqCst);
}

/// The catalog as a coordinator sees it that dies after some calls; one in four dies with its last commit on its way.
struct Dying {
    inner: Arc<dyn Catalog>,
    calls_left: AtomicUsize,
    lands: bool,
}

impl Dying {
    fn lives(&self) -> bool {
        self.calls_left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)).is_ok()
    }
}

fn dead() -> Problem {
    Problem::retry("DEAD", "coordinator", "it is dead")
}

#[async_trait]
impl Catalog for Dying {
    async fn list(&self, namespace: Option<&str>) -> Result<Vec<TableName>, Problem> {
        self.inner.list(namespace).await
    }

    async fn load(&self, name: &TableName, known: Option<&LoadedTable>) -> Result<Option<LoadedTable>, Problem> {
        if self.lives() { self.inner.load(name, known).await } else { Err(dead()) }
    }

    async fn create(&self, name: &TableName, creation: TableCreation) -> Result<LoadedTable, Problem> {
        self.inner.create(name, creation).await
    }

    async fn commit(&self, base: &LoadedTable, updates: Vec<TableUpdate>) -> Result<Swap, Problem> {
        if self.lives() {
            return self.inner.commit(base, updates).await;
        }
        if self.lands {
            self.inner.commit(base, updates).await?;
        }
        Err(dead())
    }
}

/// Somebody at the operator's desk.
struct Operator {
    catalog: Arc<dyn Catalog>,
    storage: Storage,
    rng: Mutex<Rng>,
    planted: Planted,
    count: Arc<Count>,
}

impl Operator {
    fn dying(&self, rng: &mut Rng) -> Maintainer {
        let calls_left = AtomicUsize::new(if rng.bool() { usize::MAX } else { rng.usize(..LIFE) });
        let dying = Dying { inner: Arc::clone(&self.catalog), calls_left, lands: rng.u8(..4) == 0 };
        self.maintainer(Arc::new(dying))
    }

    fn maintainer(&self, catalog: Arc<dyn Catalog>) -> Maintainer {
        Maintainer { catalog, storage: self.storage.clone(), give_way: GiveWay::default(), planted: self.planted }
    }

    async fn control(&self, maintainer: &Maintainer) -> Result<Control, Problem> {
        Control::open(Arc::clone(&maintainer.catalog), self.storage.clone(), PIPELINE).await
    }

    /// One thing, at a moment that nobody has chosen.
    async fn act(&self) -> Result<(), Problem> {
        let mut rng = self.rng.lock().await;
        if rng.u8(..3) > 0 {
            return Ok(());
        }
        let maintainer = self.dying(&mut rng);
        let done = match rng.u8(..6) {
            0..=2 => self.begin(&maintainer, &mut rng).await,
            3 => self.turn_back(&maintainer).await,
            _ => self.release(&maintainer, &mut rng).await,
        };
        match done {
            Err(problem) if problem.code == "DEAD" => note(&self.count.died),
            // Somebody else was first, or there is nothing to do it to.
            Err(problem) => {
                let harmless = [
                    "FENCED",
                    "TABLE_MOVED",
                    "CUT_NOT_REACHED",
                    "ROLLBACK_OPEN",
                    "TARGET_IS_HEAD",
                    "NO_CUT",
                    "OPERATION_UNKNOWN",
                    "NOT_HELD",
                    "TABLE_UNKNOWN",
                ];
                if !harmless.contains(&problem.code) {
                    return Err(problem);
                }
            }
            Ok(()) => {}
        }
        Ok(())
    }

    async fn begin(&self, maintainer: &Maintainer, rng: &mut Rng) -> Result<(), Problem> {
        let mut control = self.control(maintainer).await?;
        let mut targets = BTreeMap::new();
        for number in 0..ROLLED {
            let name = TableName::new("lake", ["first", "second"][number]);
            if rng.u8(..4) == 0 {
                continue;
            }
            let Some(table) = maintainer.catalog.load(&name, None).await? else { return Ok(()) };
            let known = in_order(&table);
            if let Some(target) = known.get(rng.usize(..known.len().max(1))) {
                // A copy that is not whole is no state of the source.
                if rollback::rows_position(&table, target.snapshot_id()).is_some() {
                    targets.insert(name, target.snapshot_id());
                }
            }
        }
        if targets.is_empty() {
            return Ok(());
        }
        let plan = rollback::plan(&control, maintainer, &targets).await?;
        let id = format!("{:032x}", rng.u128(..));
        let asked = Asked { id, by: "test".to_owned(), reason: "race".to_owned(), request: None };
        rollback::begin(&mut control, &plan, &asked).await?;
        note(&self.count.begun);
        let journal = rollback::run(&mut control, maintainer).await?;
        match journal.map(|journal| journal.stage) {
            Some(Stage::RolledBack) => note(&self.count.rolled_back),
            _ => note(&self.count.turned_back),
        }
        Ok(())
    }

    async fn turn_back(&self, maintainer: &Maintainer) -> Result<(), Problem> {
        let mut control = self.control(maintainer).await?;
        let Some(last) = recorded_operations(control.table()).pop() else { return Ok(()) };
        rollback::turn_back(&mut control, &last.id, "race").await?;
        rollback::run(&mut control, maintainer).await?;
        note(&self.count.turned_back);
        Ok(())
    }

    /// Replays what is held; else goes on with what is open.
    async fn release(&self, maintainer: &Maintainer, rng: &mut Rng) -> Result<(), Problem> {
        let mut control = self.control(maintainer).await?;
        rollback::run(&mut control, maintainer).await?;
        let Some(last) = recorded_operations(control.table()).pop() else { return Ok(()) };
        let cut = control.cut()?;
        let mut releases = BTreeMap::new();
        for table in last.tables.values() {
            let held = cut.left.get(&table.source).is_some_and(|left| left.is_held() && left.release.is_none());
            if let (true, Some(after)) = (held && rng.u8(..4) > 0, table.target_position) {
                let release =
                    Release { operation: last.id.clone(), after, exit: Exit::Replay, leave_out: Default::default() };
                releases.insert(table.source.clone(), release);
            }
        }
        if !releases.is_empty() {
            control.release(releases).await?;
            note(&self.count.released);
        }
        Ok(())
    }
}

/// Before each commit of the worker to a table of changes the operator may act.
#[async_trait]
impl Meddler for Arc<Operator> {
    async fn before_commit(&self, base: &LoadedTable) -> Result<(), Problem> {
        match base.name.namespace != CONTROL_NAMESPACE && base.property(POSITION).is_some() {
            true => self.act().await,
            false => Ok(()),
        }
    }
}

/// One history, in a task of its own. Returns the snapshots looked at.
async fn history(seed: u64, planted: Planted, count: Arc<Count>) -> Result<usize, Violation> {
    let (world, snapshots) = tokio::spawn(play(seed, planted, count)).await.expect("no panic")?;
    sound(&world).await?;
    Ok(snapshots)
}

async fn play(seed: u64, planted: Planted, count: Arc<Count>) -> Result<(World, usize), Violation> {
    let mut made = None;
    let world = World::through(script(seed), |inner, storage| {
        let rng = Mutex::new(Rng::with_seed(seed));
        let (catalog, count) = (Arc::clone(&inner), Arc::clone(&count));
        let operator = Arc::new(Operator { catalog, storage, rng, planted, count });
        made = Some(Arc::clone(&operator));
        Arc::new(Between { inner, meddler: operator })
    });
    let operator = made.expect("it was made");
    let clean = operator.maintainer(Arc::clone(&operator.catalog));
    let mut rng = Rng::with_seed(seed);
    let gate = Arc::default();
    for life in 0..200 {
        let worker = Worker::random(life, &world.script, &mut rng);
        match world.incarnation(&worker, &gate).await {
            Err(problem) if problem.reaction == Reaction::Retry => continue,
            Err(problem) => return Err(halted(&problem)),
            Ok(()) => {}
        }
        // The script has ended: what is held comes back, one way or the other.
        let mut control = operator.control(&clean).await.map_err(|problem| unreadable(&problem))?;
        rollback::run(&mut control, &clean).await.map_err(|problem| unreadable(&problem))?;
        let cut = control.cut().map_err(|problem| unreadable(&problem))?;
        if cut.left.is_empty() && cut.position == world.script.end() {
            let snapshots = check(&world, seed).await?;
            return Ok((world, snapshots));
        }
        let back = match rng.bool() {
            true => operator.release(&clean, &mut rng).await,
            false => operator.turn_back(&clean).await,
        };
        match back {
            Err(problem) if problem.reaction == Reaction::Retry || problem.code == "NOT_HELD" => {}
            other => other.map_err(|problem| unreadable(&problem))?,
        }
    }
    Err(Violation::new("liveness", "the tables do not all come back"))
}

/// Every mirror and history is the script's, and no position has ever gone back. Returns the snapshots looked at.
async fn check(world: &World, seed: u64) -> Result<usize, Violation> {
    let mut seen = 0;
    let (control, _) = ControlState::read(&*world.catalog, PIPELINE)
        .await
        .map_err(|problem| unreadable(&problem))?
        .ok_or_else(|| Violation::new("control", "it is gone"))?;
    let cut = control.cut.ok_or_else(|| Violation::new("cut", "there is none"))?;
    for (number, table) in world.script.tables.iter().enumerate() {
        for name in [table.mirror(), table.mirror().history()] {
            let loaded = world.catalog.load(&name, None).await.map_err(|problem| unreadable(&problem))?;
            let loaded = loaded.ok_or_else(|| Violation::new("missing table", name.to_string()))?;
            ensure(cut.tables.contains_key(&name.to_string()), "cut", || format!("{name} is not in the last cut"))?;
            let state = TableState::of(&loaded).map_err(|problem| unreadable(&problem))?;
            let mut reached = Position::START;
            for snapshot in in_order(&loaded) {
                seen += 1;
                let to = snapshot.summary().additional_properties.get("cdc.to").and_then(|to| to.parse().ok());
                if let Some(to) = to {
                    ensure(to >= reached, "positions go forward", || format!("{name}: {to} follows {reached}"))?;
                    reached = to;
                }
            }
            ensure(state.position == Some(reached), "position", || format!("{name}: {:?}, {reached}", state.position))?;
            let head = loaded.snapshot_id().expect("it has snapshots");
            if name == table.mirror() {
                let read = reading::rows(&world.storage, &loaded, head, &mut HashMap::new()).await;
                let (rows, _) = read.map_err(|problem| unreadable(&problem))?;
                let expected = world.script.rows_at(number, world.script.end());
                ensure(rows == expected, "rows at the end", || {
                    format!("seed {seed}, {name}: {}", difference(&rows, &expected))
                })?;
            } else {
                let read = reading::told(&world.storage, &loaded, head, &mut HashMap::new()).await;
                let told = read.map_err(|problem| unreadable(&problem))?;
                let expected = world.script.told(number, world.script.consistent_point, world.script.end());
                ensure(told == expected, "every change once and in order", || {
                    format!("seed {seed}, {name}: {}", difference(&told, &expected))
                })?;
            }
        }
    }
    Ok(seen)
}

/// The ranges of each table's ancestry join, and all else that the lake says of itself is true.
async fn sound(world: &World) -> Result<(), Violation> {
    let report = fsck(&*world.catalog, &world.storage, None).await.map_err(|problem| unreadable(&problem))?;
    ensure(report.verdict == Verdict::Sound, "fsck", || {
        let checks = report.tables.iter().flat_map(|table| table.checks.iter().map(|check| (&table.table, check)));
        format!("{:?}", checks.filter(|(_, check)| !check.ok).collect::<Vec<_>>())
    })
}

#[test]
fn b6_a_rollback_that_moves_the_ref_is_caught() {
    let found = block_on(async {
        for seed in 0..20 {
            if let Err(violation) = history(seed, Planted::only(Bug::MoveRef), Arc::default()).await {
                return Some((seed, violation.to_string()));
            }
        }
        None
    });
    let (seed, violation) = found.expect("it is caught within twenty histories");
    println!("MoveRef: caught in history {seed}: {}", violation.chars().take(300).collect::<String>());
}

#[test]
fn whatever_races_with_a_rollback_every_mirror_ends_with_its_sources_rows() {
    let first = tier::seed();
    let seeds = tier::size("LAKEHOUSE_SEEDS", 60, 2_000);
    println!("LAKEHOUSE_SEED={first} LAKEHOUSE_SEEDS={seeds}");
    let count = Arc::new(Count::default());
    let snapshots: usize = block_on(async {
        let played = (first..first + seeds).map(|seed| {
            let count = Arc::clone(&count);
            async move {
                let played = history(seed, Planted::none(), count).await;
                played.unwrap_or_else(|violation| panic!("LAKEHOUSE_SEED={seed} LAKEHOUSE_SEEDS=1: {violation}"))
            }
        });
        stream::iter(played).buffer_unordered(AT_ONCE).fold(0, |sum, one| async move { sum + one }).await
    });
    let told = |counter: &AtomicUsize| counter.load(Ordering::SeqCst);
    let Count { begun, rolled_back, turned_back, released, died } = &*count;
    println!(
        "{} rollbacks begun, {} to their end, {} turned back, {} released, {} coordinators died, {snapshots} snapshots",
        told(begun),
        told(rolled_back),
        told(turned_back),
        told(released),
        told(died)
    );
    let few = usize::try_from(seeds / 10).expect("a number of histories");
    assert!([begun, rolled_back, turned_back, released, died].iter().all(|counter| told(counter) >= few));
}

/// A table that was copied and changed once, and the end of its copy as where it can go back to.
pub(crate) async fn changed_once() -> (World, Maintainer, BTreeMap<TableName, i64>) {
    let mut database = Database::new(vec![Table::new("public.first", Identity::Key).with_history()]);
    database.transaction(|tx| tx.insert(0, plain(1, "copied", 1)));
    database.copy_here();
    database.transaction(|tx| tx.insert(0, plain(2, "new", 2)));
    let world = World::new(database.done());
    world.incarnation(&Worker::plain(0), &Arc::default()).await.expect("a life");

    let (catalog, storage) = (Arc::clone(&world.catalog), world.storage.clone());
    let maintainer = Maintainer { catalog, storage, give_way: GiveWay::default(), planted: Planted::none() };
    let name = TableName::new("lake", "first");
    let table = maintainer.load(&name, None).await.expect("a mirror");
    let copied = in_order(&table).into_iter().find(|snapshot| {
        let id = snapshot.snapshot_id();
        table.snapshot_id() != Some(id) && rollback::rows_position(&table, id).is_some()
    });
    (world, maintainer, BTreeMap::from([(name, copied.expect("the copy's end").snapshot_id())]))
}

pub(crate) async fn control_of(world: &World) -> Control {
    Control::open(Arc::clone(&world.catalog), world.storage.clone(), PIPELINE).await.expect("a control table")
}

/// Begins the operation `one`, with which nobody has gone on yet.
pub(crate) async fn begin_one(
    world: &World,
    maintainer: &Maintainer,
    targets: &BTreeMap<TableName, i64>,
) -> RolledTable {
    let mut control = control_of(world).await;
    let plan = rollback::plan(&control, maintainer, targets).await.expect("a plan");
    let asked = Asked { id: "one".to_owned(), by: "test".to_owned(), reason: "test".to_owned(), request: None };
    rollback::begin(&mut control, &plan, &asked).await.expect("begun");
    plan.tables["lake.first"].clone()
}

/// The operation `one`, at its end: the table is held.
async fn rolled_back(world: &World, maintainer: &Maintainer, targets: &BTreeMap<TableName, i64>) -> RolledTable {
    let rolled = begin_one(world, maintainer, targets).await;
    let done = rollback::finish(PIPELINE, maintainer, "one").await.expect("its end");
    assert_eq!(done.stage, Stage::RolledBack);
    rolled
}

/// The files that a table's rows are in, with their deletes: the same files have the same rows.
pub(crate) async fn files_of(maintainer: &Maintainer, table: &LoadedTable) -> BTreeMap<String, BTreeSet<String>> {
    let live = LiveFiles::load(&maintainer.storage, table, table.snapshot_id()).await.expect("its files");
    live.data.into_iter().map(|(path, file)| (path, file.deletes.into_iter().collect())).collect()
}

/// Everything leaves the table's metadata that may so long from now.
async fn let_go(maintainer: &Maintainer, name: &TableName, later: Duration) -> LoadedTable {
    let table = maintainer.load(name, None).await.expect("a mirror");
    let none = Duration::ZERO;
    let retention = Retention { dense: none, min_snapshots: 1, hourly: none, daily: none };
    let then = (SystemTime::now() + later).duration_since(UNIX_EPOCH).expect("a time behind 1970").as_millis();
    let then = i64::try_from(then).expect("milliseconds");
    let expiry = expire::plan(&Snapshots::of(&table), &HashSet::new(), &retention, then);
    if !expiry.is_empty() {
        let done = maintainer.change_metadata(&table, expiry.updates(&table), |table| expiry.is_done(table)).await;
        assert!(done.expect("a catalog"), "nobody else is there");
    }
    maintainer.load(name, Some(&table)).await.expect("a mirror")
}

#[test]
fn target_and_old_head_stay_while_a_table_is_held_and_for_their_time_behind_it() {
    block_on(async {
        let (world, maintainer, targets) = changed_once().await;
        let name = TableName::new("lake", "first");
        let rolled = rolled_back(&world, &maintainer, &targets).await;
        let (undo, target) = (rolled.head.parse::<i64>().expect("an id"), targets[&name]);
        let tags = |table: &LoadedTable| {
            let named = named_snapshots(table);
            let has = |id: i64, tag: &str| named.get(&id).is_some_and(|names| names.iter().any(|name| name == tag));
            [has(undo, "undo/one"), has(target, "target/one")]
        };
        let kept = |table: &LoadedTable| [undo, target].map(|id| table.metadata.snapshot_by_id(id).is_some());

        let held = let_go(&maintainer, &name, 500 * ROLLBACK_TAGS).await;
        assert_eq!((tags(&held), kept(&held)), ([true; 2], [true; 2]), "ten years, and the table is held");

        let after = rolled.target_position.expect("the copy's position");
        let release = Release { operation: "one".to_owned(), after, exit: Exit::Replay, leave_out: Default::default() };
        let releases = BTreeMap::from([(rolled.source.clone(), release)]);
        control_of(&world).await.release(releases).await.expect("asked for");
        world.incarnation(&Worker::plain(1), &Arc::default()).await.expect("a life");
        let released = let_go(&maintainer, &name, ROLLBACK_TAGS - Duration::from_secs(3_600)).await;
        assert_eq!((tags(&released), kept(&released)), ([true; 2], [true; 2]), "its time is not over");
        let again =
            rollback::turn_back(&mut control_of(&world).await, "one", "test").await.expect_err("it is released");
        assert!(again.code == "NOT_HELD" && again.remedy.contains("undo/one"), "{again:?}");
        // That way is open: another operation (protocol E7 g).
        let back = BTreeMap::from([(name.clone(), undo)]);
        rollback::plan(&control_of(&world).await, &maintainer, &back).await.expect("a plan");

        let closed = let_go(&maintainer, &name, ROLLBACK_TAGS + Duration::from_secs(3_600)).await;
        assert_eq!((tags(&closed), kept(&closed)), ([false; 2], [false; 2]), "its time is over");
        let gone = rollback::plan(&control_of(&world).await, &maintainer, &back).await.expect_err("it has expired");
        assert_eq!(gone.code, "SNAPSHOT_UNKNOWN");
    });
}

#[test]
fn an_undo_makes_the_files_and_the_schema_of_the_old_head_current() {
    block_on(async {
        let (world, maintainer, targets) = changed_once().await;
        let look = async || {
            let table = maintainer.load(&TableName::new("lake", "first"), None).await.expect("a mirror");
            let files = files_of(&maintainer, &table).await;
            (table.snapshot_id(), files, table.metadata.current_schema_id())
        };
        let before = look().await;
        rolled_back(&world, &maintainer, &targets).await;
        let held = look().await;
        assert!(held.1 != before.1, "the target has other files");
        rollback::turn_back(&mut control_of(&world).await, "one", "test").await.expect("it goes back");
        let undone = rollback::finish(PIPELINE, &maintainer, "one").await.expect("its end");
        assert_eq!(undone.stage, Stage::Released);
        let after = look().await;
        assert_eq!((&after.1, after.2), (&before.1, before.2));
        assert!(after.0 != before.0 && after.0 != held.0, "by a snapshot of its own");
    });
}

#[test]
fn a_target_that_the_table_cannot_have_is_refused() {
    block_on(async {
        let (world, maintainer, targets) = changed_once().await;
        let name = TableName::new("lake", "first");
        let code = async || {
            let planned = rollback::plan(&control_of(&world).await, &maintainer, &targets).await;
            planned.map_or_else(|problem| problem.code, |_| "")
        };
        assert_eq!(code().await, "");
        // Another engine wants of every row what the target's rows do not have.
        let table = maintainer.load(&name, None).await.expect("a mirror");
        let now = table.metadata.current_schema();
        let column =
            NestedField::required(table.metadata.last_column_id() + 1, "wanted", Type::Primitive(PrimitiveType::Long));
        let fields = now.as_struct().fields().iter().cloned().chain([Arc::new(column)]);
        let schema =
            Schema::builder().with_fields(fields).with_schema_id(now.schema_id() + 1).build().expect("a schema");
        let updates = vec![TableUpdate::AddSchema { schema }, TableUpdate::SetCurrentSchema { schema_id: -1 }];
        assert!(maintainer.change_metadata(&table, updates, |_| false).await.expect("a catalog"));
        assert_eq!(code().await, "TARGET_SCHEMA");

        let table = maintainer.load(&name, Some(&table)).await.expect("a mirror");
        let updates = vec![TableUpdate::SetCurrentSchema { schema_id: now.schema_id() }];
        assert!(maintainer.change_metadata(&table, updates, |_| false).await.expect("a catalog"));
        assert_eq!(code().await, "");
        // A file is lost.
        let live = LiveFiles::load(&world.storage, &table, Some(targets[&name])).await.expect("the target's files");
        let file = live.data.keys().next().expect("a data file");
        fs::remove_file(local_path(file).expect("a local file")).expect("it was there");
        assert_eq!(code().await, "TARGET_INCOMPLETE");
    });
}

#[test]
fn a_request_that_is_repeated_begins_one_operation() {
    block_on(async {
        let (world, maintainer, targets) = changed_once().await;
        let open = async || control_of(&world).await;
        let plan = rollback::plan(&open().await, &maintainer, &targets).await.expect("a plan");

        let request = |key: &str, content: &str| RequestDigest { key: key.to_owned(), content: content.to_owned() };
        let asked = |id: &str, request: Option<RequestDigest>| Asked {
            id: id.to_owned(),
            by: "test".to_owned(),
            reason: "repeated".to_owned(),
            request,
        };
        let begin = async |asked: Asked| rollback::begin(&mut open().await, &plan, &asked).await;
        let code = |begun: Result<Journal, Problem>| begun.map_or_else(|problem| problem.code, |_| "");

        let first = begin(asked("one", Some(request("k", "c")))).await.expect("begun");
        assert_eq!((first.id.as_str(), first.stage), ("one", Stage::Forward));
        // Its answer was lost: asked for anew, or tried again by who holds its id.
        assert_eq!(begin(asked("two", Some(request("k", "c")))).await.expect("the first one"), first);
        assert_eq!(begin(asked("one", None)).await.expect("the first one"), first);
        assert_eq!(code(begin(asked("two", Some(request("k", "other")))).await), "IDEMPOTENCY_REUSED");
        assert_eq!(code(begin(asked("two", Some(request("l", "c")))).await), "ROLLBACK_OPEN");
        assert_eq!(code(begin(asked("two", None)).await), "ROLLBACK_OPEN");

        rollback::check_heads(&maintainer, &plan).await.expect("no table was touched yet");
        let done = rollback::finish(PIPELINE, &maintainer, "one").await.expect("its end");
        assert_eq!(done.stage, Stage::RolledBack);
        let moved = rollback::check_heads(&maintainer, &plan).await.expect_err("another head");
        assert_eq!((moved.code, moved.reaction), ("TABLE_MOVED", Reaction::Halt));
        // Also behind its end, with the request as it was begun; and a held table is in the way of others.
        let known = rollback::repeated(open().await.table(), &request("k", "c")).expect("no other content");
        assert_eq!(known.map(|journal| (journal.id, journal.stage)), Some(("one".to_owned(), Stage::RolledBack)));
        assert_eq!(code(begin(asked("two", Some(request("l", "c")))).await), "ROLLBACK_OPEN");
    });
}
