//! A run of maintenance that ends at any call of the storage or of the catalog, before its effect and after it. Whatever
//! was done by then, every kept snapshot reads as before, nothing that is needed is missing, and what is left over goes
//! with a later run.
//!
//! The table stands in an object store in memory, so that a history begins with a copy of the same table. Metadata files
//! are objects too: the only call of the catalog that the store does not see is the swap. From its end on a run is refused
//! everything, which leaves what a kill leaves: whatever it still tries has no effect.

#[path = "../../lakehouse-core/tests/support/catalog.rs"]
#[allow(dead_code, unreachable_pub, reason = "the crash tests of the core use all of it")]
mod catalog;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use crate::support::objects::{Life, copy_files};
use crate::support::{Lake, Oracle, Rows, Story, Writer, block_on, eager, maintain, temporary_folder};
use catalog::{Call, Fault, FaultyCatalog, Ground, Planned, Step};
use futures::{StreamExt, stream};
use lakehouse_core::catalog::Catalog;
use lakehouse_core::commit::properties::POSITION;
use lakehouse_core::position::Position;
use maintenance::clean;
use tempfile::TempDir;
use testkit::object_store::{Contents, End};

/// Histories at the same time.
const AT_ONCE: usize = 4;
/// Of the line of commits; a tagged one stays beside them.
const KEPT: usize = 3;
/// Runs until nothing is left to do: what expires in one is removed in the next.
const RUNS: usize = 6;

/// A table in the middle of its life, to be copied.
struct Kept {
    contents: Contents,
    catalog: TempDir,
    oracle: Oracle,
}

/// Where a run ends.
#[derive(Clone, Debug)]
enum Cut {
    Storage(End),
    Catalog(Planned),
}

impl Kept {
    /// Files to merge, deletes to apply, snapshots to expire, and leftovers of earlier runs to remove.
    async fn make() -> Self {
        let life = Life::of(Contents::default(), None);
        let mut story = Story::on(life.lake().await).await;
        story.put(0..12).await;
        let tagged = story.put(12..24).await;
        story.change(0..4, [5]).await;
        story.lake.tag("keep", tagged).await;
        maintain(&story.lake, &eager(KEPT)).await.expect("a run");
        story.put(24..36).await;
        story.change([1, 13, 25], [2, 14, 26]).await;
        maintain(&story.lake, &eager(KEPT)).await.expect("a run");
        story.put(36..48).await;
        story.change([3, 15, 37], [4, 16, 38]).await;
        let location = story.lake.load().await.metadata.location().to_owned();
        life.store.put(&format!("{location}/data/left-behind.parquet"), b"nobody names it");
        life.store.age(clean::AGE + Duration::from_secs(1));
        let oracle = story.oracle.clone();
        drop(story);
        let catalog = temporary_folder();
        copy_files(life.folder.path(), catalog.path());
        Self { contents: life.store.contents(), catalog, oracle }
    }

    fn life(&self) -> Life {
        Life::of(self.contents.clone(), Some(self.catalog.path()))
    }

    /// Every place where a run can end: a call that changes nothing is as after the one before it.
    async fn cuts(&self) -> Vec<Cut> {
        let life = self.life();
        let ground = Arc::new(Ground::default());
        let lake = life.lake_through(|inner| faulty(inner, &ground, Vec::new())).await;
        life.store.end_at(None);
        let (plan, outcome) = maintain(&lake, &eager(KEPT)).await.expect("a run without a cut");
        let landed = outcome.rewrites.iter().all(|rewrite| rewrite.snapshot_id.is_some());
        assert!(landed && !outcome.rewrites.is_empty() && outcome.expired == Some(true), "{outcome:?}");
        assert!(outcome.removed_files > 1 && !plan.expiry.expired.is_empty(), "{outcome:?}");
        let mut cuts = Vec::new();
        for (call, kind) in life.store.calls().into_iter().enumerate() {
            cuts.push(Cut::Storage(End { call, after: false }));
            if kind.changes() {
                cuts.push(Cut::Storage(End { call, after: true }));
            }
        }
        for (step, call) in ground.steps() {
            let planned = |fault| Cut::Catalog(Planned { step: Step::clone(&step), fault });
            cuts.push(planned(Fault::CrashBefore));
            if call == Call::Commit {
                cuts.push(planned(Fault::CrashAfter));
            }
        }
        cuts
    }

    /// A history with one cut; true if it came to it.
    async fn history(&self, cut: &Cut) -> bool {
        let life = self.life();
        let position = life.lake().await.load().await.property(POSITION).map(str::to_owned);
        let ground = Arc::new(Ground::default());
        let faults = if let Cut::Catalog(planned) = cut { vec![planned.clone()] } else { Vec::new() };
        let lake = life.lake_through(|inner| faulty(inner, &ground, faults)).await;
        life.store.end_at(if let Cut::Storage(end) = cut { Some(*end) } else { None });
        let ended = maintain(&lake, &eager(KEPT)).await;
        drop(lake);
        life.store.end_at(None);

        let lake = life.lake().await;
        assert!(self.oracle.check(&lake).await > KEPT);
        assert_eq!(lake.load().await.property(POSITION), position.as_deref(), "no run moves a position");
        let (needed, there) = (lake.referenced().await, life.store.locations());
        let missing: Vec<&String> = needed.difference(&there).collect();
        assert!(missing.is_empty(), "{missing:?}");

        let left = self.tidy(&life).await;
        assert_eq!(left, BTreeSet::new(), "leftovers stay for ever");
        let lake = life.lake().await;
        self.oracle.check(&lake).await;
        self.go_on(&lake).await;
        ended.is_err()
    }

    /// Runs, days apart, until nothing is to be done. Returns what nobody needs and is still there.
    async fn tidy(&self, life: &Life) -> BTreeSet<String> {
        for _ in 0..RUNS {
            life.store.age(clean::AGE + Duration::from_secs(1));
            let (plan, _) = maintain(&life.lake().await, &eager(KEPT)).await.expect("a later run");
            if plan.is_empty() {
                break;
            }
        }
        let needed = life.lake().await.referenced().await;
        life.store.locations().difference(&needed).cloned().collect()
    }

    /// The table takes the next change of its pipeline.
    async fn go_on(&self, lake: &Lake) {
        let committer = lake.committer(Arc::clone(&lake.catalog));
        let mut writer = Writer::open(lake, committer).await.expect("a sound table");
        let expected = writer.table.expected().expect("a position");
        let mut rows = lake.rows().await;
        let next = Position::new(expected.offset() + 1);
        let (first, _) = rows.remove(0);
        writer.commit(lake, &Rows::new(), &BTreeSet::from([first]), next).await.expect("a commit");
        assert_eq!(lake.rows().await, rows);
    }
}

fn faulty(inner: Arc<dyn Catalog>, ground: &Arc<Ground>, faults: Vec<Planned>) -> Arc<dyn Catalog> {
    FaultyCatalog::new(inner, Arc::clone(ground), 0, faults, Arc::default())
}

#[test]
fn a_run_that_ends_anywhere_harms_no_snapshot_and_leaves_nothing_for_ever() {
    block_on(async {
        let kept = Arc::new(Kept::make().await);
        let cuts = kept.cuts().await;
        let histories = cuts.iter().map(|cut| {
            let (kept, cut) = (Arc::clone(&kept), cut.clone());
            async move {
                let story = format!("{cut:?}");
                let ended = tokio::spawn(async move { kept.history(&cut).await }).await;
                ended.unwrap_or_else(|panic| panic!("{story}: {panic}"))
            }
        });
        let reached: Vec<bool> = stream::iter(histories).buffer_unordered(AT_ONCE).collect().await;
        let (cuts, reached) = (reached.len(), reached.into_iter().filter(|reached| *reached).count());
        println!("{cuts} cuts, {reached} reached");
        // How many reads there are depends on which of them come at the same time.
        assert!(cuts > 50 && reached * 10 >= cuts * 9, "{reached} of {cuts} cuts are reached");
    });
}
