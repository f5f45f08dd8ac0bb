//! The rules of the commit protocol, one by one: tests named in its section G, and those that a rule asks for.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use crate::support::catalog::{Call, Fault, Gate, Planned, Step};
use crate::support::check::{Report, in_order};
use crate::support::faults::{control, ended, overtake, until_asleep};
use crate::support::script::{Database, Identity, Script, Table, plain};
use crate::support::source::{Chunking, ScriptedSource, chunks};
use crate::support::world::{PIPELINE, SOURCE, Worker, World};
use crate::support::{Violation, block_on};
use iceberg::TableUpdate;
use iceberg::spec::{SnapshotReference, SnapshotRetention};
use lakehouse_core::commit::properties::{BATCH, FORMAT, SOURCE as SOURCE_PROPERTY};
use lakehouse_core::commit::{Control, ControlState, Cut, GiveWay, Maintainer, recorded_cuts};
use lakehouse_core::error::{Problem, Reaction};
use lakehouse_core::planted::Planted;
use lakehouse_core::position::Position;
use lakehouse_core::rollback;
use lakehouse_core::schema::TableName;
use lakehouse_core::source::SourceEvent;

const FIRST: usize = 0;
const SECOND: usize = 1;
/// Which of a table's commits is its first of changes: the copy makes one for its only chunk, and one for its end.
const CHANGE: usize = 2;

/// Two tables, copied with one row each; then transactions that change the first, the second, or both.
fn script(changes: &[&[usize]]) -> Script {
    let mut database =
        Database::new(vec![Table::new("public.first", Identity::Key), Table::new("public.second", Identity::Key)]);
    database.transaction(|tx| {
        tx.insert(FIRST, plain(1, "one", 0));
        tx.insert(SECOND, plain(1, "one", 0));
    });
    database.copy_here();
    for (number, tables) in changes.iter().enumerate() {
        database.transaction(|tx| tables.iter().for_each(|&table| tx.add(table, 1, number as i64 + 1, &[1])));
    }
    database.done()
}

fn world(changes: &[&[usize]]) -> Arc<World> {
    Arc::new(World::new(script(changes)))
}

fn at(table: &str, call: usize, fault: Fault) -> Planned {
    Planned { step: Step::new(table, call), fault }
}

/// Batches of one transaction each.
fn small(number: usize) -> Worker {
    Worker { idles: true, bytes: 1, ..Worker::plain(number) }
}

async fn run(world: &World, worker: Worker) -> Result<(), Problem> {
    world.incarnation(&worker, &Arc::default()).await
}

async fn finish(world: &World) -> Report {
    let lived = world.live(9, &[]).await;
    lived.unwrap_or_else(|violation| panic!("{violation}"));
    checked(world).await
}

async fn checked(world: &World) -> Report {
    world.end().await.unwrap_or_else(|violation| panic!("{violation}"))
}

fn code(result: Result<(), Problem>) -> &'static str {
    result.map_or_else(|problem| problem.code, |()| "")
}

/// The call of a fault-free worker's life with which it makes its n-th commit to a table.
async fn commit_call(changes: &[&[usize]], worker: Worker, table: &str, n: usize) -> usize {
    let world = world(changes);
    run(&world, worker).await.expect("a life without faults");
    let commits = world.ground.steps().into_iter().filter(|(step, call)| step.table == table && *call == Call::Commit);
    commits.map(|(step, _)| step.call).nth(n).expect("so many commits")
}

async fn set_property(world: &World, table: &TableName, key: &str, value: &str) {
    let loaded = world.catalog.load(table, None).await.unwrap().unwrap();
    let updates = HashMap::from([(key.to_owned(), value.to_owned())]);
    world.catalog.commit(&loaded, vec![TableUpdate::SetProperties { updates }]).await.unwrap();
}

async fn checked_after(world: &World, worker: Worker) -> Report {
    run(world, worker).await.unwrap_or_else(|problem| panic!("{problem:?}"));
    checked(world).await
}

#[test]
fn two_workers_start_and_both_answers_are_lost() {
    block_on(async {
        let world = world(&[]);
        run(&world, Worker::plain(0)).await.unwrap();
        let open = |number, faults| {
            let (world, gate) = (Arc::clone(&world), Arc::new(Gate::default()));
            let worker = Worker::plain(number).with(faults);
            let catalog = world.faulty(&worker, &gate);
            let raising = tokio::spawn(async move {
                let mut control = Control::open(catalog, world.storage.clone(), PIPELINE).await?;
                let epoch = control.raise_epoch(None).await?;
                Ok::<_, Problem>((epoch, control.owner().to_owned()))
            });
            (raising, gate)
        };
        // Calls: load, load, commit. The late one has looked, and sends its request behind the other's.
        let (late, gate) = open(1, [at(&control(), 1, Fault::PauseAfter), at(&control(), 2, Fault::LostAfter)]);
        gate.reached().await;
        let (early, _) = open(2, [at(&control(), 2, Fault::LostAfter), at(&control(), 99, Fault::Rejected)]);
        let (epoch, owner) = early.await.unwrap().expect("the first request has landed, whatever was heard");
        gate.open();
        let late = late.await.unwrap().expect_err("an epoch is given once");
        assert_eq!((late.code, late.reaction), ("FENCED", Reaction::Retry));
        let (state, _) = ControlState::read(world.catalog.as_ref(), PIPELINE).await.unwrap().unwrap();
        assert_eq!((state.epoch, state.owner), (epoch, Some(owner)));
        assert_eq!(epoch, 2);
    });
}

#[test]
fn two_workers_on_one_pipeline_take_turns_and_lose_nothing() {
    block_on(async {
        for seed in 0..5 {
            let world = world(&[&[FIRST], &[SECOND], &[FIRST, SECOND], &[FIRST], &[SECOND]]);
            let worker = |local: &'static str, number: usize| {
                let world = Arc::clone(&world);
                tokio::spawn(async move {
                    let mut rng = fastrand::Rng::with_seed(seed + number as u64);
                    for life in 0..100 {
                        let worker = Worker { local, ..Worker::random(number + 2 * life, &world.script, &mut rng) };
                        match world.incarnation(&worker, &Arc::default()).await {
                            Ok(()) => return Ok(()),
                            Err(problem) => ended(Err(problem))?,
                        }
                        tokio::time::sleep(Duration::from_millis(rng.u64(..100))).await;
                    }
                    Err(Violation::new("liveness", "two workers keep each other from the end"))
                })
            };
            let (one, other) = (worker("one", 0), worker("other", 1));
            one.await.unwrap().unwrap_or_else(|violation| panic!("{violation}"));
            other.await.unwrap().unwrap_or_else(|violation| panic!("{violation}"));
            checked(&world).await;
        }
    });
}

/// `cdc.batch` of the newest commit of a table (protocol B2).
async fn batch_id(world: &World, table: &str) -> String {
    let loaded = world.catalog.load(&TableName::new("lake", table), None).await.unwrap().unwrap();
    loaded.property(BATCH).expect("every commit names its batch").to_owned()
}

fn landings(world: &World, worker: usize, table: &str) -> usize {
    world.ground.landings().iter().filter(|landing| landing.worker == worker && landing.table == table).count()
}

#[test]
fn a_batch_formed_again_has_the_same_name() {
    let changes: &[&[usize]] = &[&[FIRST, SECOND], &[FIRST]];
    block_on(async {
        let undisturbed = world(changes);
        run(&undisturbed, Worker::plain(0)).await.unwrap();
        // Crashed before its commit, then formed of other chunks by another incarnation.
        let disturbed = world(changes);
        let call = commit_call(changes, Worker::plain(0), "lake.first", CHANGE).await;
        let crash = Worker::plain(0).with([at("lake.first", call, Fault::CrashBefore)]);
        assert_eq!(code(run(&disturbed, crash).await), "CRASH");
        let again = Worker { chunking: Chunking { group: 2, rows: 1 }, ..Worker::plain(1) };
        checked_after(&disturbed, again).await;
        for table in ["first", "second"] {
            assert_eq!(batch_id(&undisturbed, table).await, batch_id(&disturbed, table).await);
        }
    });
}

#[test]
fn a_commit_whose_answer_is_lost_is_found_and_not_made_twice() {
    let changes: &[&[usize]] = &[&[FIRST, SECOND], &[FIRST]];
    block_on(async {
        for (fault, attempts) in [(Fault::LostAfter, 1), (Fault::LostBefore, 2), (Fault::Rejected, 2)] {
            let plain = world(changes);
            run(&plain, Worker::plain(0)).await.unwrap();
            let world = world(changes);
            let call = commit_call(changes, Worker::plain(0), "lake.first", CHANGE).await;
            // The same life goes on: it looks, and makes another attempt only if nothing is there.
            checked_after(&world, Worker::plain(0).with([at("lake.first", call, fault)])).await;
            assert_eq!(world.ground.fired(), 1);
            assert_eq!(landings(&world, 0, "lake.first"), landings(&plain, 0, "lake.first"), "{fault:?}");
            let commits = |world: &World| {
                let steps = world.ground.steps();
                steps.iter().filter(|(step, call)| step.table == "lake.first" && *call == Call::Commit).count()
            };
            assert_eq!(commits(&world), commits(&plain) + attempts - 1, "{fault:?}");
        }
    });
}

#[test]
fn a_commit_that_lands_late_wins_or_loses_and_never_both() {
    let changes: &[&[usize]] = &[&[FIRST, SECOND], &[FIRST]];
    block_on(async {
        let plain = world(changes);
        run(&plain, Worker::plain(0)).await.unwrap();
        let call = commit_call(changes, Worker::plain(0), "lake.first", CHANGE).await;
        // Arrives before the next look, between look and next attempt, with the next attempt, and when all is over.
        for delay in [0, 1, 2, 3, 5, 1_000] {
            let world = world(changes);
            checked_after(&world, Worker::plain(0).with([at("lake.first", call, Fault::Delayed(delay))])).await;
            assert_eq!(world.ground.fired(), 1);
            assert_eq!(landings(&world, 0, "lake.first"), landings(&plain, 0, "lake.first"), "{delay}");
        }
    });
}

#[test]
fn a_stale_writer_that_wakes_up_writes_nothing() {
    let changes: &[&[usize]] = &[&[FIRST, SECOND], &[FIRST]];
    block_on(async {
        let call = commit_call(changes, Worker::plain(0), "lake.first", CHANGE).await;
        let world = world(changes);
        let sleeper = Worker { local: "stale", ..Worker::plain(0) }.with([at("lake.first", call, Fault::PauseBefore)]);
        let (running, gate) = until_asleep(&world, sleeper).await.unwrap();
        run(&world, Worker::plain(1)).await.expect("the successor comes to the end");
        let before = pointers(&world).await;
        gate.open();
        assert_eq!(code(running.expect("asleep").await.unwrap()), "FENCED");
        assert_eq!(pointers(&world).await, before);
        checked(&world).await;
    });
}

#[test]
fn a_zombie_lands_between_go_and_our_first_commit_and_the_cut_names_what_was_read() {
    let changes: &[&[usize]] = &[&[SECOND], &[FIRST]];
    block_on(async {
        let world = world(changes);
        let call = commit_call(changes, Worker::plain(0), "lake.first", CHANGE).await;
        // The zombie's batch holds both transactions, and it sleeps before its first commit.
        let zombie = Worker { local: "zombie", ..Worker::plain(0) }.with([at("lake.first", call, Fault::PauseBefore)]);
        // The successor has committed the first transaction to the second table, and is about to write the cut. Its
        // calls before: the look at the start, then look and commit of the epoch.
        let successor = small(1).with([at(&control(), 3, Fault::PauseBefore)]);
        let (asleep, zombie_gate) = until_asleep(&world, zombie).await.unwrap();
        let first = TableName::new("lake", "first");
        let copied = world.catalog.load(&first, None).await.unwrap().unwrap().snapshot_id().unwrap();
        let (awake, gate) = until_asleep(&world, successor).await.unwrap();
        zombie_gate.open();
        assert_eq!(code(asleep.expect("asleep").await.unwrap()), "FENCED");
        let head = world.catalog.load(&first, None).await.unwrap().unwrap().snapshot_id().unwrap();
        assert_ne!(head, copied, "the zombie's commit has landed");
        gate.open();
        assert_eq!(code(awake.expect("asleep").await.unwrap()), "TABLE_MOVED");
        let (_, table) = ControlState::read(world.catalog.as_ref(), PIPELINE).await.unwrap().unwrap();
        let cut = recorded_cuts(&table).pop().expect("the successor's cut");
        assert_eq!(cut.position, world.script.transactions[1].end);
        assert_eq!(cut.tables["lake.first"], copied.to_string());
        finish(&world).await;
    });
}

/// The first table is committed up to the end, the second not at all: the worker died between the two.
async fn torn(changes: &[&[usize]]) -> Arc<World> {
    let world = world(changes);
    let call = commit_call(changes, Worker::plain(0), "lake.second", CHANGE).await;
    let crash = Worker::plain(0).with([at("lake.second", call, Fault::CrashBefore)]);
    assert_eq!(code(run(&world, crash).await), "CRASH");
    world
}

#[test]
fn two_tables_at_different_positions_and_another_to() {
    let changes: &[&[usize]] = &[&[FIRST, SECOND], &[SECOND], &[FIRST, SECOND], &[SECOND]];
    block_on(async {
        // Batches that end elsewhere than the one that was torn: each table's part begins where the table stands.
        for (group, bytes) in [(1, 1), (2, 1), (3, 1), (4, usize::MAX)] {
            let world = torn(changes).await;
            let worker = Worker { chunking: Chunking { group, rows: 100 }, bytes, ..Worker::plain(1) };
            checked_after(&world, worker).await;
        }
    });
}

#[test]
fn there_is_no_cut_while_a_table_is_ahead_of_it() {
    let changes: &[&[usize]] = &[&[FIRST, SECOND], &[SECOND], &[FIRST, SECOND]];
    block_on(async {
        let world = torn(changes).await;
        let ahead = world.script.transactions.last().unwrap().end;
        run(&world, small(1)).await.unwrap();
        let (_, table) = ControlState::read(world.catalog.as_ref(), PIPELINE).await.unwrap().unwrap();
        let cuts: Vec<Position> = recorded_cuts(&table).iter().map(|cut| cut.position).collect();
        assert!(cuts.iter().all(|&cut| cut == world.script.consistent_point || cut >= ahead), "{cuts:?}");
        checked(&world).await;
    });
}

#[test]
fn a_rollback_asked_for_while_a_table_is_ahead_waits_for_a_cut() {
    block_on(async {
        let world = torn(&[&[FIRST, SECOND], &[FIRST, SECOND]]).await;
        let (catalog, storage) = (Arc::clone(&world.catalog), world.storage.clone());
        let maintainer = Maintainer { catalog, storage, give_way: GiveWay::default(), planted: Planted::none() };
        let name = TableName::new("lake", "first");
        let table = maintainer.load(&name, None).await.unwrap();
        let mut known = in_order(&table).into_iter().map(|snapshot| snapshot.snapshot_id());
        let copied = known.find(|id| rollback::rows_position(&table, *id).is_some()).unwrap();
        assert_ne!(table.snapshot_id(), Some(copied));
        let targets = BTreeMap::from([(name, copied)]);
        let code = async || {
            let control = Control::open(Arc::clone(&world.catalog), world.storage.clone(), PIPELINE).await.unwrap();
            rollback::plan(&control, &maintainer, &targets).await.map_or_else(|problem| problem.code, |_| "")
        };
        assert_eq!(code().await, "CUT_NOT_REACHED");
        checked_after(&world, Worker::plain(1)).await;
        assert_eq!(code().await, "");
    });
}

#[test]
fn a_source_that_is_never_silent_does_not_put_off_the_cuts() {
    let changes = vec![&[FIRST, SECOND][..]; 40];
    block_on(async {
        let world = world(&changes);
        // Two changes fill a batch, so that most fill up in the middle of a transaction.
        let one = chunks(&world.script, &world.script.transactions[1..2], 1)[0].bytes();
        let worker = Worker { chunking: Chunking { group: 1, rows: 1 }, bytes: one * 3 / 2, ..Worker::plain(0) };
        checked_after(&world, worker).await;
        let (_, table) = ControlState::read(world.catalog.as_ref(), PIPELINE).await.unwrap().unwrap();
        let cuts = recorded_cuts(&table);
        assert_eq!(cuts.len(), 1 + changes.len(), "the copy's, and one for each transaction");
        assert!(cuts.iter().all(|cut| cut.tables.len() == 2), "also the copy's cut names both tables");
    });
}

#[test]
fn a_source_that_sends_again_what_was_acknowledged_does_not_move_the_cut_back() {
    block_on(async {
        let mut database =
            Database::new(vec![Table::new("public.first", Identity::Key), Table::new("public.second", Identity::Key)]);
        database.transaction(|tx| tx.insert(FIRST, plain(1, "one", 0)));
        database.copy_here();
        database.transaction(|tx| tx.add(FIRST, 1, 1, &[]));
        database.keepalive();
        let world = Arc::new(World::new(database.done()));
        run(&world, small(0)).await.unwrap();
        assert_eq!(world.slot.acknowledged(), world.script.end());
        // The cut stands at the keepalive, behind the transaction that is sent again with its own boundary.
        let again = Worker { redelivers_from: Some(world.script.consistent_point), ..small(1) };
        checked_after(&world, again).await;
    });
}

#[test]
fn a_worker_that_loses_its_source_is_gone_when_it_says_so() {
    let changes: &[&[usize]] = &[&[FIRST, SECOND], &[FIRST], &[SECOND]];
    block_on(async {
        for event in 0..12 {
            let world = world(changes);
            let lakehouse = world.start(world.faulty(&Worker::plain(0), &Arc::default()), "local").await.unwrap();
            let worker = small(0);
            let mut source = world.source(&worker, lakehouse.resume_position()).failing_at(event);
            let stop = tokio_util::sync::CancellationToken::new();
            let outcome = lakehouse_core::pipeline::run(&mut source, lakehouse, world.limits(&worker), stop).await;
            assert!(["", "SOURCE_LOST"].contains(&code(outcome)));
            // The key index has one owner: a batch still being committed would keep it.
            finish(&world).await;
        }
    });
}

#[test]
fn a_transaction_larger_than_memory_is_committed_as_soon_as_it_ends() {
    block_on(async {
        let world = world(&[&[FIRST, SECOND, FIRST]]);
        let lakehouse = world.start(world.faulty(&Worker::plain(0), &Arc::default()), "local").await.unwrap();
        // No further change comes, and no cut is due by itself: only the end of the transaction.
        let worker = Worker { bytes: 1, ..Worker::plain(0) };
        let transaction = &world.script.transactions[1];
        let events = chunks(&world.script, std::slice::from_ref(transaction), 1).into_iter().map(SourceEvent::Changes);
        let source = ScriptedSource::of(&world.slot, events.chain([SourceEvent::Boundary(transaction.end.into())]));
        let (mut source, stop) = (source.without_end(), tokio_util::sync::CancellationToken::new());
        let running = tokio::spawn({
            let (limits, stop) = (world.limits(&worker), stop.clone());
            async move { lakehouse_core::pipeline::run(&mut source, lakehouse, limits, stop).await }
        });
        for _ in 0..1_000 {
            if world.slot.acknowledged() == transaction.end {
                break;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        stop.cancel();
        running.await.unwrap().unwrap();
        checked(&world).await;
    });
}

#[test]
fn a_control_table_with_more_than_the_kept_cuts_expires_its_oldest() {
    block_on(async {
        let world = world(&[]);
        let mut control = Control::open(Arc::clone(&world.catalog), world.storage.clone(), PIPELINE).await.unwrap();
        control.keep_cuts(5);
        let cut = |number: u64| Cut {
            lanes: Default::default(),
            read_until: None,
            source: SOURCE.into(),
            position: Position::new(number),
            epoch: 1,
            committed_at: 0,
            tables: [("lake.first".to_owned(), number.to_string())].into(),
            left: Default::default(),
        };
        control.raise_epoch(Some(cut(0))).await.unwrap();
        for number in 1..=260 {
            control.write_cut(cut(number)).await.unwrap();
            assert!(control.table().metadata.snapshots().len() <= 5 + 100, "the control table is bounded");
        }
        let cuts = recorded_cuts(control.table());
        assert_eq!(cuts.last().map(|cut| cut.position), Some(Position::new(260)));
        assert!(cuts.len() >= 5 && cuts.first().is_some_and(|oldest| oldest.position > Position::new(100)));
        assert!(cuts.windows(2).all(|pair| pair[1].position.offset() == pair[0].position.offset() + 1), "no hole");
        let (state, _) = ControlState::read(world.catalog.as_ref(), PIPELINE).await.unwrap().unwrap();
        assert_eq!(state.cut, Some(cut(260)));
    });
}

/// Protocol F2: an expiry is planned on a load, and its token covers the tags of that load.
#[test]
fn a_tag_that_comes_between_plan_and_expiry_keeps_its_snapshot() {
    block_on(async {
        let world = world(&[]);
        let cut = |number: u64| Cut {
            lanes: Default::default(),
            read_until: None,
            source: SOURCE.into(),
            position: Position::new(number),
            epoch: 1,
            committed_at: 0,
            tables: Default::default(),
            left: Default::default(),
        };
        // Load and create, load and commit of the epoch, then a load and a commit per cut: the seventh cut expires.
        let sleeper = Worker::plain(0).with([at(&control(), 17, Fault::PauseBefore)]);
        let gate: Arc<Gate> = Arc::default();
        let mut worker = Control::open(world.faulty(&sleeper, &gate), world.storage.clone(), PIPELINE).await.unwrap();
        worker.keep_cuts(5);
        worker.raise_epoch(Some(cut(0))).await.unwrap();
        let writing = tokio::spawn(async move {
            for number in 1..=7 {
                worker.write_cut(cut(number)).await.unwrap();
            }
        });
        gate.reached().await;
        let planned = world.catalog.load(&control().parse().unwrap(), None).await.unwrap().unwrap();
        let oldest = in_order(&planned)[0].snapshot_id();
        let reference = SnapshotReference::new(oldest, SnapshotRetention::Tag { max_ref_age_ms: None });
        let tag = TableUpdate::SetSnapshotRef { ref_name: "audit".to_owned(), reference };
        world.catalog.commit(&planned, vec![tag]).await.unwrap();
        gate.open();
        writing.await.unwrap();
        let table = world.catalog.load(&planned.name, None).await.unwrap().unwrap();
        assert_eq!(table.metadata.snapshot_for_ref("audit").map(|snapshot| snapshot.snapshot_id()), Some(oldest));
        let is_there = |id: i64| table.metadata.snapshot_by_id(id).is_some();
        let next: Vec<i64> = in_order(&planned)[1..3].iter().map(|snapshot| snapshot.snapshot_id()).collect();
        assert!(!next.iter().any(|&id| is_there(id)), "the expiry was planned anew, and took the next ones");
    });
}

/// A start that must halt, and must not have written anything.
async fn refused(world: &World, code: &str) {
    let landed = world.ground.landings().len();
    let before = pointers(world).await;
    let problem = run(world, Worker::plain(7)).await.expect_err("the start is refused");
    assert_eq!((problem.code, problem.reaction), (code, Reaction::Halt), "{problem:?}");
    assert_eq!(pointers(world).await, before, "nothing is written");
    assert_eq!(world.ground.landings().len(), landed);
}

/// All tables and where their metadata stands.
async fn pointers(world: &World) -> Vec<(String, String)> {
    let mut pointers = Vec::new();
    for name in world.catalog.list(None).await.unwrap() {
        let loaded = world.catalog.load(&name, None).await.unwrap().unwrap();
        pointers.push((name.to_string(), loaded.metadata_location));
    }
    pointers
}

#[test]
fn a_newer_format_is_refused() {
    block_on(async {
        let tables = [TableName::new("lake", "second"), control().parse().unwrap()];
        for table in tables {
            let world = world(&[&[FIRST, SECOND]]);
            run(&world, Worker::plain(0)).await.unwrap();
            set_property(&world, &table, FORMAT, "2").await;
            refused(&world, "NEWER_FORMAT").await;
        }
    });
}

#[test]
fn a_table_of_another_source_is_refused_and_nothing_is_written() {
    block_on(async {
        let world = world(&[&[FIRST, SECOND]]);
        run(&world, Worker::plain(0)).await.unwrap();
        set_property(&world, &TableName::new("lake", "second"), SOURCE_PROPERTY, "postgres system 8 slot 1").await;
        refused(&world, "IDENTITY").await;
    });
}

#[test]
fn a_cut_of_another_source_is_refused_and_nothing_is_written() {
    block_on(async {
        let world = world(&[&[FIRST]]);
        let mut control = Control::open(Arc::clone(&world.catalog), world.storage.clone(), PIPELINE).await.unwrap();
        let cut = Cut {
            lanes: Default::default(),
            read_until: None,
            source: "postgres system 8 slot 1".into(),
            position: world.script.consistent_point,
            epoch: 0,
            committed_at: 0,
            tables: Default::default(),
            left: Default::default(),
        };
        control.raise_epoch(Some(cut)).await.unwrap();
        refused(&world, "IDENTITY").await;
    });
}

#[test]
fn a_foreign_property_on_the_control_table_is_survived() {
    block_on(async {
        let world = world(&[&[FIRST, SECOND], &[FIRST]]);
        // Between the look and the swap of the first cut; and between two lives.
        let call = commit_call(&[&[FIRST, SECOND], &[FIRST]], Worker::plain(0), &control(), 1).await;
        let sleeper = Worker::plain(0).with([at(&control(), call, Fault::PauseBefore)]);
        let (running, gate) = until_asleep(&world, sleeper).await.unwrap();
        set_property(&world, &control().parse().unwrap(), "owner.team", "somebody").await;
        gate.open();
        running.expect("asleep").await.unwrap().unwrap();
        set_property(&world, &control().parse().unwrap(), "owner.team", "somebody else").await;
        finish(&world).await;
        let (_, table) = ControlState::read(world.catalog.as_ref(), PIPELINE).await.unwrap().unwrap();
        assert_eq!(table.property("owner.team"), Some("somebody else"));
    });
}

#[test]
fn a_foreign_property_on_a_mirror_is_followed_without_a_restart() {
    let changes: &[&[usize]] = &[&[FIRST, SECOND], &[FIRST]];
    block_on(async {
        let world = world(changes);
        let call = commit_call(changes, Worker::plain(0), "lake.first", CHANGE).await;
        let sleeper = Worker::plain(0).with([at("lake.first", call, Fault::PauseBefore)]);
        let (running, gate) = until_asleep(&world, sleeper).await.unwrap();
        set_property(&world, &TableName::new("lake", "first"), "owner.team", "somebody").await;
        gate.open();
        assert_eq!(code(running.expect("asleep").await.unwrap()), "", "metadata alone moves no row");
        finish(&world).await;
    });
}

#[test]
fn another_incarnations_commit_of_the_same_batch_is_not_taken_for_ours() {
    let changes: &[&[usize]] = &[&[FIRST], &[FIRST]];
    block_on(async {
        let world = world(changes);
        // Both would commit the same range of the first table; the zombie's files are in, the successor's are not.
        let call = commit_call(changes, Worker::plain(0), "lake.first", CHANGE).await;
        let zombie = Worker { local: "zombie", ..Worker::plain(0) }.with([at("lake.first", call, Fault::PauseBefore)]);
        // Calls of a later life: two loads at the start, then the look at the head before the commit.
        let successor = Worker::plain(1).with([at("lake.first", 2, Fault::PauseBefore)]);
        overtake(&world, zombie, successor).await.unwrap();
        finish(&world).await;
        // The index names files that are live: updates find their rows.
        let loaded = world.catalog.load(&TableName::new("lake", "first"), None).await.unwrap().unwrap();
        assert!(in_order(&loaded).len() >= 3);
    });
}

#[test]
fn chunks_of_any_shape_come_to_the_same() {
    let changes: &[&[usize]] = &[&[FIRST, SECOND, FIRST], &[SECOND], &[FIRST, FIRST]];
    block_on(async {
        for (group, rows, bytes) in [(1, 1, 1), (2, 1, usize::MAX), (3, 2, 1), (3, 100, 2_000)] {
            let world = world(changes);
            let worker = Worker { chunking: Chunking { group, rows }, bytes, ..Worker::plain(0) };
            checked_after(&world, worker).await;
        }
    });
}
