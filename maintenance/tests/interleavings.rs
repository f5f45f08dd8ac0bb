//! A writer that deletes rows, rewrites that are planned, held and committed at any later moment, expiry, tags, rollbacks
//! and cleaning, in any order and between each other's look and commit, on a network that loses, delays and doubles. An
//! oracle in memory knows the rows of every snapshot; each one that is kept must read just so.
//!
//! `LAKEHOUSE_SEEDS` sets how many, `LAKEHOUSE_SEED` the first; all 10,000 are for the long tier.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use crate::support::between::{Between, Meddler};
use crate::support::{Lake, Rows, Story, Writer, age_local_files, block_on, eager, temporary_folder};
use async_trait::async_trait;
use fastrand::Rng;
use futures::{StreamExt, stream};
use iceberg::TableUpdate;
use iceberg::spec::{SnapshotReference, SnapshotRetention};
use lakehouse_core::catalog::{Catalog, LoadedTable, Swap};
use lakehouse_core::commit::properties::{KIND, RESTORED, TO};
use lakehouse_core::commit::{Committer, GiveWay, Maintainer, Replaced, Restored, Rewrite};
use lakehouse_core::error::Problem;
use lakehouse_core::planted::{Bug, Planted};
use lakehouse_core::position::Position;
use lakehouse_core::storage::canonical;
use maintenance::budget::Budgets;
use maintenance::expire::{self, Expiry, Retention, Snapshots};
use maintenance::plan::{Group, Order, Reason, Targets};
use maintenance::run::{self, Outcome, Settings};
use maintenance::view::View;
use maintenance::{clean, compact};
use tempfile::TempDir;
use testkit::tier;
use tokio::sync::Mutex;

/// A planted bug must be found within this many.
const WITHIN: u64 = 500;
const ACTIONS: usize = 24;
const KEYS: i64 = 40;

type Violation = String;

/// What happens to a request.
#[derive(Clone, Copy)]
enum Fate {
    Answered,
    /// It arrives; the answer does not.
    AnswerLost,
    /// It never arrives.
    Lost,
    /// It arrives later, if the table still lets it.
    Delayed,
}

impl Fate {
    fn random(rng: &mut Rng) -> Self {
        match rng.u8(..60) {
            0 => Self::AnswerLost,
            1 => Self::Lost,
            2 => Self::Delayed,
            _ => Self::Answered,
        }
    }
}

#[derive(Default)]
struct Network {
    rng: std::sync::Mutex<Rng>,
    delayed: std::sync::Mutex<VecDeque<(LoadedTable, Vec<TableUpdate>)>>,
}

impl Network {
    async fn deliver(&self, clean: &dyn Catalog) -> Result<(), Problem> {
        let next = self.delayed.lock().expect("no panic holds it").pop_front();
        if let Some((base, updates)) = next {
            clean.commit(&base, updates).await?;
        }
        Ok(())
    }
}

/// Maintenance commits through it alone: anything in between it would have to wait for itself.
#[async_trait]
impl Meddler for Arc<Network> {
    async fn commit(
        &self,
        inner: &dyn Catalog,
        base: &LoadedTable,
        updates: Vec<TableUpdate>,
    ) -> Result<Swap, Problem> {
        let fate = Fate::random(&mut self.rng.lock().expect("no panic holds it"));
        match fate {
            Fate::Answered => return inner.commit(base, updates).await,
            Fate::AnswerLost => drop(inner.commit(base, updates).await?),
            Fate::Lost => {}
            Fate::Delayed => self.delayed.lock().expect("no panic holds it").push_back((base.clone(), updates)),
        }
        Ok(Swap::Unknown("a test's network".into()))
    }
}

/// Now and then something else comes between the writer's look and its commit.
#[async_trait]
impl Meddler for Arc<Mutex<Others>> {
    async fn commit(
        &self,
        inner: &dyn Catalog,
        base: &LoadedTable,
        updates: Vec<TableUpdate>,
    ) -> Result<Swap, Problem> {
        let mut others = self.lock().await;
        let meanwhile = [0, 0, 1, 2, 5][others.rng.usize(..5)];
        others.writer_is_between = true;
        for _ in 0..meanwhile {
            others.act().await?;
        }
        others.writer_is_between = false;
        let network = Arc::clone(&others.network);
        drop(others);
        network.commit(inner, base, updates).await
    }
}

/// Everybody but the writer.
struct Others {
    rng: Rng,
    lake: Lake,
    network: Arc<Network>,
    maintainer: Maintainer,
    rewrites: Vec<(LoadedTable, Rewrite)>,
    expiries: Vec<(LoadedTable, Expiry)>,
    /// Tags that somebody has made, by name.
    tags: BTreeMap<String, i64>,
    /// Every snapshot there has been, oldest first.
    seen: Vec<Seen>,
    /// The writer has written files that it is about to commit.
    writer_is_between: bool,
    counts: Counted,
}

/// What has happened, so that a test that does nothing is noticed.
#[derive(Clone, Copy, Debug, Default)]
struct Counted {
    rewrites: usize,
    forwarded: u64,
    overtaken: usize,
    followed: usize,
    expired: usize,
    rollbacks: usize,
    removed: u64,
    snapshots: usize,
}

/// A snapshot as it was when it was new: it may be expired before the oracle hears of it.
struct Seen {
    id: i64,
    parent: Option<i64>,
    to: Option<String>,
    restored: Option<i64>,
}

impl Others {
    async fn act(&mut self) -> Result<(), Problem> {
        self.look().await?;
        self.do_something().await?;
        self.look().await
    }

    /// Notes the head, which is new after each commit.
    async fn look(&mut self) -> Result<(), Problem> {
        let table = self.lake.load().await;
        let known = |id: i64, seen: &[Seen]| seen.iter().any(|seen| seen.id == id);
        let mut new: Vec<_> = table.metadata.snapshots().collect();
        new.retain(|snapshot| !known(snapshot.snapshot_id(), &self.seen));
        new.sort_by_key(|snapshot| snapshot.sequence_number());
        for snapshot in new {
            let summary = &snapshot.summary().additional_properties;
            self.seen.push(Seen {
                id: snapshot.snapshot_id(),
                parent: snapshot.parent_snapshot_id(),
                to: summary.get(TO).cloned(),
                restored: summary.get(RESTORED).and_then(|id| id.parse().ok()),
            });
        }
        Ok(())
    }

    async fn do_something(&mut self) -> Result<(), Problem> {
        match self.rng.u8(..13) {
            0..=2 => self.plan_rewrite().await,
            3 => {
                // What is rewritten twice before a commit lands: its deletes go through both maps, in order.
                for _ in 0..2 {
                    self.plan_rewrite().await?;
                    self.commit_rewrite().await?;
                }
                Ok(())
            }
            4..=6 => self.commit_rewrite().await,
            7 => self.plan_expiry().await,
            8 => self.commit_expiry().await,
            9 => self.tag().await,
            10 => self.roll_back().await,
            // What is planned on rows that have gone back meanwhile.
            11 => {
                self.plan_rewrite().await?;
                self.roll_back().await?;
                self.commit_rewrite().await
            }
            _ => {
                self.clean_up().await?;
                self.network.deliver(&*self.lake.catalog).await
            }
        }
    }

    /// Any files, their rows in one of three orders: what a plan chooses is a part of that.
    async fn plan_rewrite(&mut self) -> Result<(), Problem> {
        let storage = self.maintainer.storage.clone();
        let view = View::of(&storage, self.lake.load().await).await?;
        let files = view.partitions().into_values().next().unwrap_or_default();
        let files: Vec<_> = files.into_iter().filter(|_| self.rng.u8(..3) > 0).collect();
        if files.is_empty() {
            return Ok(());
        }
        let group = Group { reason: Reason::SmallFiles, files };
        // A byte: each batch of rows becomes a file of its own.
        let file_bytes = [1, 1 << 20][self.rng.usize(..2)];
        let columns = || ["value", "id"].map(str::to_owned).to_vec();
        let order = match self.rng.u8(..6) {
            0 => Order::Sorted(columns()),
            1 => Order::ZOrder(columns()),
            _ => Order::AsWritten,
        };
        let targets = Targets { file_bytes, order, ..Targets::default() };
        let planted = self.maintainer.planted;
        let rewrite = tokio::task::block_in_place(|| compact::rewrite(&storage, &view, &group, &targets, planted))?;
        self.rewrites.push((view.table, rewrite));
        match self.rng.bool() {
            true => self.commit_rewrite().await,
            false => Ok(()),
        }
    }

    async fn commit_rewrite(&mut self) -> Result<(), Problem> {
        if self.rewrites.is_empty() {
            return Ok(());
        }
        let (table, rewrite) = self.rewrites.swap_remove(self.rng.usize(..self.rewrites.len()));
        match self.maintainer.replace(&table, &rewrite).await {
            Ok(Replaced::Landed { forwarded, .. }) => {
                self.counts.rewrites += 1;
                self.counts.forwarded += forwarded;
            }
            Ok(Replaced::Overtaken(_)) => self.counts.overtaken += 1,
            Err(problem) if problem.code == "COMMIT_UNSETTLED" => {}
            Err(problem) => return Err(problem),
        }
        Ok(())
    }

    async fn plan_expiry(&mut self) -> Result<(), Problem> {
        let table = self.lake.load().await;
        let retention = Retention {
            dense: Duration::from_millis(self.rng.u64(..3)),
            min_snapshots: self.rng.usize(1..4),
            hourly: Duration::ZERO,
            daily: Duration::ZERO,
        };
        let now = table.metadata.last_updated_ms() + self.rng.i64(0..5);
        let expiry = expire::plan(&Snapshots::of(&table), &HashSet::new(), &retention, now);
        self.expiries.push((table, expiry));
        // Planned and done without anybody in between, as it mostly is.
        match self.rng.bool() {
            true => self.commit_expiry().await,
            false => Ok(()),
        }
    }

    async fn commit_expiry(&mut self) -> Result<(), Problem> {
        let Some((table, expiry)) = self.expiries.pop() else { return Ok(()) };
        let updates = expiry.updates(&table);
        if updates.is_empty() {
            return Ok(());
        }
        let done = |table: &LoadedTable| expiry.is_done(table);
        if self.maintainer.change_metadata(&table, updates, done).await? {
            self.counts.expired += expiry.expired.len();
        }
        Ok(())
    }

    async fn tag(&mut self) -> Result<(), Problem> {
        let table = self.lake.load().await;
        let snapshots: Vec<i64> = table.metadata.snapshots().map(|snapshot| snapshot.snapshot_id()).collect();
        if snapshots.is_empty() {
            return Ok(());
        }
        let (name, id) = (format!("keep-{}", self.tags.len()), snapshots[self.rng.usize(..snapshots.len())]);
        let reference = SnapshotReference::new(id, SnapshotRetention::Tag { max_ref_age_ms: None });
        let update = TableUpdate::SetSnapshotRef { ref_name: name.clone(), reference };
        if let Swap::Landed(_) = self.lake.catalog.commit(&table, vec![update]).await? {
            self.tags.insert(name, id);
        }
        Ok(())
    }

    async fn roll_back(&mut self) -> Result<(), Problem> {
        let table = self.lake.load().await;
        let snapshots: Vec<i64> = table.metadata.snapshots().map(|snapshot| snapshot.snapshot_id()).collect();
        if snapshots.len() < 2 || self.rng.bool() {
            return Ok(());
        }
        let target = snapshots[self.rng.usize(..snapshots.len())];
        match self.maintainer.restore(&table, target, None).await {
            Ok(Restored::Landed { .. }) => self.counts.rollbacks += 1,
            Ok(Restored::Moved) => {}
            Err(problem) if problem.code == "COMMIT_UNSETTLED" => {}
            Err(problem) => return Err(problem),
        }
        Ok(())
    }

    /// Days go by, but not for what is still to be committed: that would have been written again (protocol A4).
    async fn clean_up(&mut self) -> Result<(), Problem> {
        let table = self.lake.load().await;
        let mut young: HashSet<String> = HashSet::new();
        for (_, rewrite) in &self.rewrites {
            young.extend(rewrite.outputs.iter().map(|new| canonical(new.file.file_path())));
        }
        let storage = &self.maintainer.storage;
        let on_the_way = self.writer_is_between || !self.network.delayed.lock().expect("no panic holds it").is_empty();
        if !on_the_way {
            age_local_files(&self.lake, |location| young.contains(location)).await;
        }
        let orphans = clean::plan(storage, &table, &[], clean::AGE, self.maintainer.planted).await?;
        self.counts.removed += clean::act(&storage.cleaner(), &orphans).await?.0;
        Ok(())
    }
}

/// The writer, with the oracle beside it.
struct World {
    _folder: TempDir,
    rng: Rng,
    lake: Lake,
    through: Arc<dyn Catalog>,
    others: Arc<Mutex<Others>>,
    writer: Writer,
    /// The rows of every snapshot that has ever been seen.
    expected: HashMap<i64, Rows>,
    /// The rows behind each position that the writer has tried to reach: whether its commit came to be shows later.
    claimed: HashMap<String, Rows>,
    reached: u64,
}

impl World {
    async fn new(seed: u64, planted: Planted) -> Self {
        let folder = temporary_folder();
        let lake = Lake::local(folder.path()).await;
        let clean = Arc::clone(&lake.catalog);
        let network = Arc::new(Network { rng: std::sync::Mutex::new(Rng::with_seed(!seed)), ..Network::default() });
        let faulty = Arc::new(Between { inner: Arc::clone(&clean), meddler: Arc::clone(&network) });
        let give_way = GiveWay::default();
        let maintainer = Maintainer { catalog: faulty, give_way: give_way.clone(), planted, ..lake.maintainer() };
        let mut rng = Rng::with_seed(seed);
        let others = Others {
            rng: rng.fork(),
            lake: lake.clone(),
            network,
            maintainer,
            rewrites: Vec::new(),
            expiries: Vec::new(),
            tags: BTreeMap::new(),
            seen: Vec::new(),
            writer_is_between: false,
            counts: Counted::default(),
        };
        let others = Arc::new(Mutex::new(others));
        let through: Arc<dyn Catalog> = Arc::new(Between { inner: clean, meddler: Arc::clone(&others) });
        let committer = Committer { give_way, planted, ..lake.committer(Arc::clone(&through)) };
        let writer = Writer::open(&lake, committer).await.expect("an empty table");
        Self {
            _folder: folder,
            rng,
            lake,
            through,
            others,
            writer,
            expected: HashMap::new(),
            claimed: HashMap::new(),
            reached: 0,
        }
    }

    async fn play(&mut self) -> Result<Counted, Violation> {
        for _ in 0..ACTIONS {
            if self.rng.u8(..3) > 0 {
                self.write().await?;
            } else {
                let acted = self.others.lock().await.act().await;
                acted.map_err(|problem| format!("maintenance: {} {problem}", problem.code))?;
            }
            self.learn().await?;
            if self.rng.u8(..20) == 0 {
                self.reopen().await?;
            }
        }
        // Whoever is still on the way arrives.
        for _ in 0..ACTIONS {
            let others = self.others.lock().await;
            let delivered = others.network.deliver(&*self.lake.catalog).await;
            delivered.map_err(|problem| format!("delivery: {problem}"))?;
        }
        self.learn().await?;
        self.check().await
    }

    /// One commit of changes to random keys, by a writer that knows the table as it last saw it.
    async fn write(&mut self) -> Result<(), Violation> {
        let Writer { table, places, .. } = &self.writer;
        let mut rows = table.loaded.snapshot_id().map_or_else(Rows::new, |id| self.expected[&id].clone());
        let mut gone = BTreeSet::new();
        let mut new = Rows::new();
        for _ in 0..self.rng.usize(1..8) {
            let key = self.rng.i64(0..KEYS);
            if places.contains_key(&key) {
                gone.insert(key);
            }
            match self.rng.u8(..3) {
                0 => {
                    rows.remove(&key);
                    new.remove(&key);
                }
                _ => {
                    let value = self.rng.i64(..);
                    rows.insert(key, value);
                    new.insert(key, value);
                }
            }
        }
        if new.is_empty() && gone.is_empty() {
            return Ok(());
        }
        self.reached += 1;
        let to = Position::new(self.reached);
        self.claimed.insert(to.to_string(), rows);
        match self.writer.commit(&self.lake, &new, &gone, to).await {
            Ok(landed) => {
                self.others.lock().await.counts.followed += landed.followed.len();
                Ok(())
            }
            // A row that is not where it is looked for (INDEX_STALE) is no reason: every rewrite is followed.
            Err(problem) if ["FENCED", "TABLE_MOVED", "FOREIGN_COMMIT"].contains(&problem.code) => self.reopen().await,
            Err(problem) => Err(format!("writer: {} {problem}", problem.code)),
        }
    }

    /// Another incarnation, that knows nothing but the table.
    async fn reopen(&mut self) -> Result<(), Violation> {
        self.learn().await?;
        let told = |problem: Problem| format!("reopening: {} {problem}", problem.code);
        let committer = Committer { catalog: Arc::clone(&self.through), ..self.writer.committer.clone() };
        self.writer = Writer::open(&self.lake, committer).await.map_err(told)?;
        let table = &self.writer.table;
        self.writer.committer.epoch = table.state.epoch.max(1) + u64::from(self.rng.bool());
        self.reached = self.reached.max(table.expected().map_or(0, |position| position.offset()));
        Ok(())
    }

    /// The rows of snapshots that are new.
    async fn learn(&mut self) -> Result<(), Violation> {
        let mut others = self.others.lock().await;
        others.look().await.map_err(|problem| format!("looking: {problem}"))?;
        for Seen { id, parent, to, restored } in &others.seen {
            if self.expected.contains_key(id) {
                continue;
            }
            let rows = match (to, restored.or(*parent)) {
                (Some(to), _) => self.claimed.get(to),
                (None, same_as) => same_as.and_then(|id| self.expected.get(&id)),
            };
            let rows = rows.cloned().ok_or_else(|| format!("snapshot {id} stands on none"))?;
            self.expected.insert(*id, rows);
        }
        Ok(())
    }

    async fn check(&mut self) -> Result<Counted, Violation> {
        let table = self.lake.load().await;
        let mut counts = self.others.lock().await.counts;
        for snapshot in table.metadata.snapshots() {
            let id = snapshot.snapshot_id();
            let expected = &self.expected[&id];
            let told = |problem: Problem| format!("snapshot {id} cannot be read: {} {problem}", problem.code);
            let found = self.lake.rows_at(&table, id).await.map_err(told)?;
            let expected: Vec<(i64, i64)> = expected.iter().map(|(&key, &value)| (key, value)).collect();
            if found != expected {
                let kind = snapshot.summary().additional_properties.get(KIND);
                return Err(format!("snapshot {id} ({kind:?}) reads {found:?} instead of {expected:?}"));
            }
            counts.snapshots += 1;
        }
        for (name, id) in &self.others.lock().await.tags {
            if table.metadata.snapshot_for_ref(name).is_none_or(|snapshot| snapshot.snapshot_id() != *id) {
                return Err(format!("the tag {name} is gone"));
            }
        }
        Ok(counts)
    }
}

/// One history, in a task of its own: a panic is a violation.
async fn history(seed: u64, planted: Planted) -> Result<Counted, Violation> {
    let played = tokio::spawn(async move { World::new(seed, planted).await.play().await });
    played.await.unwrap_or_else(|error| Err(format!("panic: {error}"))).map_err(|why| format!("seed {seed}: {why}"))
}

#[test]
fn nothing_is_lost_doubled_or_resurrected_in_any_order() {
    let first = tier::seed();
    let seeds = first..first + tier::size("LAKEHOUSE_SEEDS", 50, 10_000);
    println!("LAKEHOUSE_SEED={first} LAKEHOUSE_SEEDS={}", seeds.end - seeds.start);
    let total = block_on(async {
        let mut total = Counted::default();
        let mut histories = stream::iter(seeds).map(|seed| history(seed, Planted::none())).buffer_unordered(3);
        while let Some(counted) = histories.next().await {
            let counted = counted.unwrap_or_else(|violation| panic!("{violation}"));
            total.rewrites += counted.rewrites;
            total.forwarded += counted.forwarded;
            total.overtaken += counted.overtaken;
            total.followed += counted.followed;
            total.expired += counted.expired;
            total.rollbacks += counted.rollbacks;
            total.removed += counted.removed;
            total.snapshots += counted.snapshots;
        }
        total
    });
    println!("{total:?}");
    assert!(total.rewrites > 0 && total.snapshots > 0, "nothing was done: {total:?}");
}

/// M-15: what was read and what was written are compared, and nothing is committed.
#[test]
fn a_rewrite_that_loses_a_row_is_noticed_in_every_order() {
    block_on(async {
        let folder = temporary_folder();
        let mut story = Story::on(Lake::local(folder.path()).await).await;
        story.put(0..50).await;
        story.put(50..100).await;
        for order in [Order::AsWritten, Order::Sorted(vec!["value".to_owned()]), Order::ZOrder(vec!["id".to_owned()])] {
            let settings = eager(100);
            let settings = Settings { targets: Targets { order, ..settings.targets.clone() }, ..settings };
            let maintainer = Maintainer { planted: Planted::only(Bug::RewriteLosesRow), ..story.lake.maintainer() };
            let planned = run::plan(&maintainer, &story.lake.name, &HashSet::new(), &[], &settings).await;
            let (view, plan) = planned.expect("a plan");
            let (mut budgets, mut outcome) = (Budgets::unbounded(), Outcome::default());
            let ended = run::act(&maintainer, &view, &plan, &settings, &mut budgets, &mut outcome).await;
            assert_eq!(ended.expect_err("it is noticed").code, "ROWS_DIFFER");
        }
        assert_eq!(story.oracle.check(&story.lake).await, 2);
    });
}

/// The same histories as those that pass without a bug, until one does not.
fn caught(bug: Bug) {
    let found = block_on(async {
        let mut histories = stream::iter(0..WITHIN).map(|seed| history(seed, Planted::only(bug))).buffer_unordered(3);
        while let Some(counted) = histories.next().await {
            if let Err(violation) = counted {
                return Some(violation);
            }
        }
        None
    });
    let violation = found.unwrap_or_else(|| panic!("{bug:?} is not caught within {WITHIN} histories"));
    println!("{bug:?}: {}", violation.chars().take(300).collect::<String>());
}

#[test]
fn b5_files_that_are_deleted_after_an_unknown_outcome_are_missed() {
    caught(Bug::DeleteOnUnknown);
}

#[test]
fn b7_files_that_are_removed_at_any_age_are_missed() {
    caught(Bug::OrphanAgeZero);
}

#[test]
fn b15_a_rewrite_that_ignores_later_deletes_is_caught() {
    caught(Bug::CompactionIgnoresDeletes);
}

#[test]
fn deletes_that_are_forwarded_early_with_a_late_token_are_caught() {
    caught(Bug::ForwardEarly);
}

#[test]
fn one_map_of_two_is_caught() {
    caught(Bug::LastMapOnly);
}

#[test]
fn a_merge_on_the_plans_base_is_caught() {
    caught(Bug::MergeOnPlansBase);
}

#[test]
fn a_rewrite_that_does_not_notice_a_rollback_is_caught() {
    caught(Bug::IgnoreRollback);
}
