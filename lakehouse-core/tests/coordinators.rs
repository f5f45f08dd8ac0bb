//! Coordinators of a rollback that die with a commit on its way, that begin in the middle, and that are two at once
//! (protocol E7). Any moment of any of them is `rollback.rs`'s; here are those that must not be missed.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::rollback::{begin_one, changed_once, control_of, files_of};
use crate::support::between::{Between, Meddler};
use crate::support::block_on;
use crate::support::world::{PIPELINE, Worker, World};
use async_trait::async_trait;
use iceberg::TableUpdate;
use lakehouse_core::catalog::{Catalog, LoadedTable, Swap};
use lakehouse_core::commit::{CONTROL_NAMESPACE, Maintainer, Stage, properties};
use lakehouse_core::error::Problem;
use lakehouse_core::rollback;
use lakehouse_core::schema::TableName;
use tokio::sync::Mutex;

/// The files of the table's rows.
type Rows = BTreeMap<String, BTreeSet<String>>;

async fn rows(maintainer: &Maintainer) -> Rows {
    files_of(maintainer, &mirror(maintainer).await).await
}

/// An operation that nobody has gone on with yet, and the rows before it.
async fn begun() -> (World, Maintainer, Rows) {
    let (world, maintainer, targets) = changed_once().await;
    let before = rows(&maintainer).await;
    begin_one(&world, &maintainer, &targets).await;
    (world, maintainer, before)
}

async fn mirror(maintainer: &Maintainer) -> LoadedTable {
    maintainer.load(&TableName::new("lake", "first"), None).await.expect("a mirror")
}

/// Snapshots that have an older one's rows.
async fn restored(maintainer: &Maintainer) -> usize {
    let table = mirror(maintainer).await;
    let summaries = table.metadata.snapshots().map(|snapshot| &snapshot.summary().additional_properties);
    summaries.filter(|summary| summary.contains_key(properties::RESTORED)).count()
}

fn with<M: Meddler + 'static>(maintainer: &Maintainer, meddler: M) -> Maintainer {
    let inner = Arc::clone(&maintainer.catalog);
    Maintainer { catalog: Arc::new(Between { inner, meddler }), ..maintainer.clone() }
}

/// Its sender dies with the first commit of rows, which stays on its way.
#[derive(Default)]
struct OnItsWay(Mutex<Option<(LoadedTable, Vec<TableUpdate>)>>);

#[async_trait]
impl Meddler for Arc<OnItsWay> {
    async fn commit(
        &self,
        inner: &dyn Catalog,
        base: &LoadedTable,
        updates: Vec<TableUpdate>,
    ) -> Result<Swap, Problem> {
        let has_rows = updates.iter().any(|update| matches!(update, TableUpdate::AddSnapshot { .. }));
        if base.name.namespace == CONTROL_NAMESPACE || !has_rows {
            return inner.commit(base, updates).await;
        }
        *self.0.lock().await = Some((base.clone(), updates));
        Err(Problem::retry("DEAD", "coordinator", "it is dead"))
    }
}

/// A coordinator that has died, and its commit.
async fn died(maintainer: &Maintainer) -> (LoadedTable, Vec<TableUpdate>) {
    let way = Arc::new(OnItsWay::default());
    let dying = with(maintainer, Arc::clone(&way));
    let dead = rollback::finish(PIPELINE, &dying, "one").await.expect_err("it dies");
    assert_eq!(dead.code, "DEAD");
    way.0.lock().await.take().expect("a commit on its way")
}

async fn is_rejected(world: &World, (base, updates): (LoadedTable, Vec<TableUpdate>)) -> bool {
    matches!(world.catalog.commit(&base, updates).await.expect("a catalog"), Swap::Rejected)
}

#[test]
fn a_commit_that_is_delivered_behind_the_abort_of_its_rollback_does_not_land() {
    block_on(async {
        let (world, maintainer, before) = begun().await;
        let late = died(&maintainer).await;
        assert_eq!(rows(&maintainer).await, before, "no table was touched");
        rollback::turn_back(&mut control_of(&world).await, "one", "abort").await.expect("it goes back");
        let done = rollback::finish(PIPELINE, &maintainer, "one").await.expect("its end");
        assert_eq!((done.stage, rows(&maintainer).await), (Stage::Released, before));
        let end = mirror(&maintainer).await.snapshot_id();
        assert!(is_rejected(&world, late).await);
        assert_eq!(mirror(&maintainer).await.snapshot_id(), end);
        // The pipeline goes on, and nothing is held.
        world.incarnation(&Worker::plain(1), &Arc::default()).await.expect("a life");
        assert!(control_of(&world).await.cut().expect("a cut").left.is_empty());
    });
}

#[test]
fn a_commit_that_is_delivered_behind_the_end_that_another_has_brought_does_not_land_again() {
    block_on(async {
        let (world, maintainer, before) = begun().await;
        let late = died(&maintainer).await;
        let done = rollback::finish(PIPELINE, &maintainer, "one").await.expect("its end");
        assert_eq!((done.stage, restored(&maintainer).await), (Stage::RolledBack, 1));
        assert_ne!(rows(&maintainer).await, before);
        assert!(is_rejected(&world, late).await);
        assert_eq!(restored(&maintainer).await, 1);
    });
}

#[test]
fn a_worker_that_starts_in_the_middle_brings_the_rollback_to_its_end() {
    block_on(async {
        let (world, maintainer, before) = begun().await;
        let late = died(&maintainer).await;
        world.incarnation(&Worker::plain(1), &Arc::default()).await.expect("a life");
        let control = control_of(&world).await;
        let journal = control.state().journal.clone().expect("a journal");
        assert_eq!((journal.id.as_str(), journal.stage), ("one", Stage::RolledBack));
        assert!(control.cut().expect("a cut").left.values().all(|left| left.is_held()), "the table is held");
        assert_eq!(restored(&maintainer).await, 1);
        assert_ne!(rows(&maintainer).await, before);
        assert!(is_rejected(&world, late).await);
    });
}

/// Between another's look at the table and its commit, this one brings the operation to its end.
struct Quicker {
    maintainer: Maintainer,
    world: Arc<World>,
    /// By the way back.
    turns_back: bool,
    was_here: AtomicBool,
}

#[async_trait]
impl Meddler for Quicker {
    async fn before_commit(&self, base: &LoadedTable) -> Result<(), Problem> {
        if base.name.namespace == CONTROL_NAMESPACE || self.was_here.swap(true, Ordering::SeqCst) {
            return Ok(());
        }
        if self.turns_back {
            rollback::turn_back(&mut control_of(&self.world).await, "one", "abort").await?;
        }
        rollback::finish(PIPELINE, &self.maintainer, "one").await.map(drop)
    }
}

#[test]
fn two_coordinators_at_once_come_to_the_same_end() {
    for (turns_back, end) in [(false, Stage::RolledBack), (true, Stage::Released)] {
        block_on(async {
            let (world, maintainer, before) = begun().await;
            let world = Arc::new(world);
            let was_here = AtomicBool::new(false);
            let quicker = Quicker { maintainer: maintainer.clone(), world: Arc::clone(&world), turns_back, was_here };
            let slower = with(&maintainer, quicker);
            let done = rollback::finish(PIPELINE, &slower, "one").await.expect("its end");
            assert_eq!(done.stage, end);
            assert_eq!(rows(&maintainer).await == before, turns_back);
            let marks = mirror(&maintainer).await;
            assert!(marks.property(properties::OPERATION).is_some_and(|mark| mark.contains("one")), "{marks:?}");
            assert_eq!(restored(&maintainer).await, 1, "one of them has done it");
        });
    }
}
