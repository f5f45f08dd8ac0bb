//! What has gone wrong in other projects' maintenance, one test for each behaviour, named after what must hold instead
//! (`maintenance.md` section 6; the issues stand at each test).
//!
//! Where else to look, and what cannot occur here:
//! - A replace by another engine, without a row map, under a pending delete (iceberg #9781 from the other side):
//!   `lakehouse-core/tests/foreign_compaction.rs`.
//! - All orders of writer, rewrites, expiry, rollback and cleaning (M-8): `interleavings.rs`; a run that ends in the middle
//!   (M-14): `killed.rs`.
//! - Two spellings of one file in manifest and listing, and files of unknown age (StarRocks #77394, ClickHouse #114194):
//!   tests of `clean.rs` and of the core's `storage.rs`.
//! - Metadata of a hundred thousand commits (M-7): `lakehouse-core/tests/metadata_bounds.rs`.
//! - Equality deletes of another engine, which become position deletes (M-10): `other_engines.rs`.
//! - A v3 upgrade under an Athena reader (M-13) cannot occur: nothing here writes format v3.
//! - No statement in Athena that removes dangling deletes (pyiceberg #3925) is not ours to mend; we leave none behind.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use crate::support::between::{Between, Meddler};
use crate::support::objects::Life;
use crate::support::{Lake, Rows, Story, age_local_files, block_on, eager, maintain, temporary_folder};
use async_trait::async_trait;
use iceberg::TableUpdate;
use iceberg::spec::{SnapshotReference, SnapshotRetention, Transform, UnboundPartitionSpec};
use lakehouse_core::catalog::{Catalog, LoadedTable};
use lakehouse_core::commit::{FileChange, GiveWay, Maintainer, Replaced, Rewrite};
use lakehouse_core::error::Problem;
use lakehouse_core::live::{LiveFiles, load_manifest, referenced};
use lakehouse_core::planted::{Bug, Planted};
use lakehouse_core::position::Position;
use lakehouse_core::storage::{canonical, local_path};
use maintenance::budget::Budgets;
use maintenance::expire::{self, Snapshots};
use maintenance::plan::{Group, Reason, Targets};
use maintenance::run::{self, Outcome, Settings};
use maintenance::runs::{Operation, Step};
use maintenance::view::View;
use maintenance::{clean, compact};
use tempfile::TempDir;
use testkit::object_store::{Call, Contents};

/// A table on this machine's disk. The folder goes when it is dropped.
async fn story() -> (TempDir, Story) {
    let folder = temporary_folder();
    let lake = Lake::local(folder.path()).await;
    (folder, Story::on(lake).await)
}

/// The live files of the head.
async fn live(lake: &Lake) -> LiveFiles {
    let table = lake.load().await;
    LiveFiles::load(&lake.storage, &table, table.snapshot_id()).await.expect("manifests")
}

/// A rewrite of all files, or of those that are chosen, that nobody has put in place yet.
async fn rewrite(lake: &Lake, chosen: impl Fn(&str) -> bool) -> (LoadedTable, Rewrite) {
    let view = View::of(&lake.storage, lake.load().await).await.expect("a sound table");
    let files = view.partitions().into_values().flatten().filter(|file| chosen(&file.path)).collect();
    let group = Group { reason: Reason::SmallFiles, files };
    let targets = Targets::default();
    let rewriting = || compact::rewrite(&lake.storage, &view, &group, &targets, Planted::none());
    let rewritten = tokio::task::block_in_place(rewriting);
    (view.table, rewritten.expect("a rewrite"))
}

async fn put_in_place(lake: &Lake, (table, rewrite): &(LoadedTable, Rewrite)) -> Replaced {
    lake.maintainer().replace(table, rewrite).await.expect("a catalog that answers")
}

fn exists(location: &str) -> bool {
    Path::new(&local_path(location).expect("a local file")).exists()
}

/// StarRocks #77709: validated from the snapshot at commit, a rewrite made 101 rows of 100. iceberg-compaction #163: what is
/// deleted meanwhile comes back.
#[test]
fn a_row_that_is_deleted_or_updated_while_its_file_is_rewritten_neither_returns_nor_doubles() {
    block_on(async {
        let (_folder, mut story) = story().await;
        story.put(0..50).await;
        story.put(50..100).await;
        let planned = rewrite(&story.lake, |_| true).await;
        story.delete([7]).await;
        story.put([8, 60]).await;
        let replaced = put_in_place(&story.lake, &planned).await;
        assert!(matches!(replaced, Replaced::Landed { forwarded: 3, .. }), "{replaced:?}");
        assert_eq!(story.lake.rows().await.len(), 99);
        story.oracle.check(&story.lake).await;
    });
}

/// iceberg #2308, #9781, HIVE-28102: a delete that names a file which was replaced is silently without effect, and an
/// update leaves both rows.
#[test]
fn an_update_that_was_planned_on_a_replaced_file_finds_its_row() {
    block_on(async {
        let (_folder, mut story) = story().await;
        story.put(0..50).await;
        story.put(50..100).await;
        for _ in 0..2 {
            // The writer still knows the files from before.
            let planned = rewrite(&story.lake, |_| true).await;
            assert!(matches!(put_in_place(&story.lake, &planned).await, Replaced::Landed { .. }));
        }
        story.change([1, 51], [2]).await;
        assert_eq!(story.lake.rows().await.len(), 99);
        story.oracle.check(&story.lake).await;
    });
}

/// iceberg #2308: an equality delete from between plan and commit passes the new files by, because they count as younger.
#[test]
fn a_rewritten_file_is_as_old_as_the_plan_of_its_rewrite() {
    block_on(async {
        let (_folder, mut story) = story().await;
        story.put(0..50).await;
        let planned = rewrite(&story.lake, |_| true).await;
        story.put(50..60).await;
        assert!(matches!(put_in_place(&story.lake, &planned).await, Replaced::Landed { .. }));
        let (_, Rewrite { outputs, sequence_number, .. }) = &planned;
        assert!(*sequence_number < story.lake.load().await.metadata.last_sequence_number() - 1);
        let mut found = 0;
        for manifest in &live(&story.lake).await.manifests {
            for entry in load_manifest(&story.lake.storage, manifest).await.expect("a manifest").entries() {
                if outputs.iter().any(|new| new.file.file_path() == entry.file_path()) {
                    assert_eq!(entry.sequence_number(), Some(*sequence_number));
                    found += 1;
                }
            }
        }
        assert_eq!(found, outputs.len());
    });
}

/// iceberg-go #672, #716, #720: expiry that commits on a table loaded anew takes the snapshot of a tag that was made since
/// its plan.
#[test]
fn a_tag_that_is_made_between_plan_and_commit_of_expiry_keeps_its_snapshot() {
    block_on(async {
        let (_folder, mut story) = story().await;
        let first = story.put(0..10).await;
        for key in 10..14 {
            story.put([key]).await;
        }
        let planned_on = story.lake.load().await;
        let retention = eager(2).retention;
        let now = chrono::Utc::now().timestamp_millis();
        let plan = |table: &LoadedTable| expire::plan(&Snapshots::of(table), &HashSet::new(), &retention, now);
        let expiry = plan(&planned_on);
        assert!(expiry.expired.contains(&first));
        story.lake.tag("audit", first).await;
        let done = |table: &LoadedTable| expiry.is_done(table);
        let landed = story.lake.maintainer().change_metadata(&planned_on, expiry.updates(&planned_on), done).await;
        assert!(!landed.expect("a catalog that answers"));
        let table = story.lake.load().await;
        assert_eq!(table.metadata.snapshot_for_ref("audit").map(|snapshot| snapshot.snapshot_id()), Some(first));
        assert!(!plan(&table).expired.contains(&first), "nor does the next plan take it");
        story.oracle.check(&story.lake).await;
    });
}

/// seaweedfs #10774: maintenance expires tagged snapshots, and those of branches.
#[test]
fn what_a_tag_or_a_branch_names_outlives_any_expiry_with_its_files() {
    block_on(async {
        let (_folder, mut story) = story().await;
        let tagged = story.put(0..10).await;
        let branched = story.change(10..20, [3]).await;
        story.lake.tag("audit", tagged).await;
        let reference = SnapshotReference::new(branched, SnapshotRetention::branch(None, None, None));
        story
            .lake
            .change_metadata(vec![TableUpdate::SetSnapshotRef { ref_name: "what-if".to_owned(), reference }])
            .await;
        let mut expired = Vec::new();
        for key in 20..26 {
            story.change([key], [key - 10]).await;
            age_local_files(&story.lake, |_| false).await;
            expired.extend(maintain(&story.lake, &eager(1)).await.expect("a run").0.expiry.expired);
        }
        assert!(expired.len() > 3, "{expired:?}");
        story.oracle.check(&story.lake).await;
        let kept: HashSet<i64> = story.lake.load().await.metadata.snapshots().map(|kept| kept.snapshot_id()).collect();
        assert!(kept.contains(&tagged) && kept.contains(&branched));
    });
}

/// pyiceberg #3925, iceberg #7540, #5058, #8933, #4127, #6126, #12838: delete files pile up that no data file has.
#[test]
fn no_delete_file_outlives_the_rewrite_of_its_data_file() {
    block_on(async {
        let (_folder, mut story) = story().await;
        story.put(0..40).await;
        for round in 0..5 {
            story.change([round, 10 + round], [20 + round]).await;
            assert!(!live(&story.lake).await.deletes.is_empty());
            maintain(&story.lake, &eager(3)).await.expect("a run");
            let live = live(&story.lake).await;
            assert_eq!((live.deletes.len(), live.dangling_deletes().len()), (0, 0));
        }
        story.oracle.check(&story.lake).await;
    });
}

/// iceberg-go #946, #947: which deletes are dangling is decided wrongly, above all after the partitions have changed: some
/// stay, or one goes that still has its data file.
#[test]
fn deletes_that_another_engine_leaves_dangling_go_and_all_others_stay() {
    block_on(async {
        let (_folder, mut story) = story().await;
        story.put(0..10).await;
        story.put(10..20).await;
        story.delete([1, 11]).await;
        let spec = UnboundPartitionSpec::builder().add_partition_field(2, "value_bucket", Transform::Bucket(4));
        let spec = spec.expect("a field").build();
        let evolved = vec![TableUpdate::AddSpec { spec }, TableUpdate::SetDefaultSpec { spec_id: -1 }];
        story.lake.change_metadata(evolved).await;
        story.reopen().await;

        // It replaces the first file by one without the deleted row, and forgets the delete file.
        let before = live(&story.lake).await;
        let path_of = |key: i64| story.writer.places[&key].0.clone();
        let (replaced, other) = (path_of(0), path_of(10));
        let (dangling, kept) = (before.data[&replaced].deletes.clone(), before.data[&other].deletes.clone());
        assert_eq!((dangling.len(), kept.len()), (1, 1));
        let rows: Rows = story.rows.range(..10).map(|(&key, &value)| (key, value)).collect();
        let added = vec![story.lake.data_file(&story.lake.load().await.metadata, &rows)];
        story.change_files(FileChange { added, removed: BTreeSet::from([replaced]), ..FileChange::default() }).await;
        assert_eq!(live(&story.lake).await.dangling_deletes().iter().cloned().collect::<Vec<_>>(), dangling);

        // Without compaction, which would take the other one too.
        let settings = Settings { compact: false, ..eager(100) };
        let (plan, _) = maintain(&story.lake, &settings).await.expect("a run");
        assert_eq!(plan.dangling_deletes, dangling);
        let after = live(&story.lake).await;
        assert_eq!(after.deletes.keys().cloned().collect::<Vec<_>>(), kept);
        story.oracle.check(&story.lake).await;
    });
}

/// olake #925: a delete file that names rows of several data files keeps each of them from being compacted.
#[test]
fn each_delete_file_speaks_of_one_data_file_and_ties_no_other_down() {
    block_on(async {
        let (_folder, mut story) = story().await;
        for first in [0, 10, 20] {
            story.put(first..first + 10).await;
        }
        story.delete([1, 2, 11, 21]).await;
        let before = live(&story.lake).await;
        let named: BTreeSet<String> =
            before.deletes.values().map(|delete| referenced(&delete.file).expect("one data file")).collect();
        assert_eq!((named.len(), before.deletes.len()), (3, 3));
        let first = story.writer.places[&0].0.clone();
        let planned = rewrite(&story.lake, |path| path == first).await;
        assert!(matches!(put_in_place(&story.lake, &planned).await, Replaced::Landed { .. }));
        let after = live(&story.lake).await;
        assert_eq!((after.deletes.len(), after.dangling_deletes().len()), (2, 0));
        story.oracle.check(&story.lake).await;
    });
}

/// iceberg #12545: a compaction that fails leaves files that nobody knows of.
#[test]
fn a_rewrite_that_is_overtaken_names_the_files_it_strands_and_they_are_removed_later() {
    block_on(async {
        let (_folder, mut story) = story().await;
        story.put(0..10).await;
        story.put(10..20).await;
        let (maintainer, settings) = (story.lake.maintainer(), eager(100));
        let planned = run::plan(&maintainer, &story.lake.name, &HashSet::new(), &[], &settings).await;
        let (view, plan) = planned.expect("a plan");
        maintain(&story.lake, &settings).await.expect("a run that comes first");
        let (mut budgets, mut outcome) = (Budgets::unbounded(), Outcome::default());
        run::act(&maintainer, &view, &plan, &settings, &mut budgets, &mut outcome).await.expect("a run");
        let [overtaken] = &outcome.rewrites[..] else { panic!("{outcome:?}") };
        assert!(overtaken.overtaken.is_some() && overtaken.snapshot_id.is_none(), "{outcome:?}");
        let needed = story.lake.referenced().await;
        let stranded = &overtaken.stranded;
        assert!(!stranded.is_empty() && stranded.iter().all(|file| exists(file) && !needed.contains(&canonical(file))));
        age_local_files(&story.lake, |_| false).await;
        maintain(&story.lake, &settings).await.expect("a later run");
        assert!(!stranded.iter().any(|file| exists(file)));
        story.oracle.check(&story.lake).await;
    });
}

/// iceberg #12545: what a run did before it failed is in nobody's books.
#[test]
fn what_a_run_has_done_is_told_although_its_next_step_fails() {
    block_on(async {
        let (_folder, mut story) = story().await;
        story.put(0..10).await;
        story.put(10..20).await;
        let maintainer = Maintainer { planted: Planted::only(Bug::RewriteLosesRow), ..story.lake.maintainer() };
        let settings = eager(1);
        let planned = run::plan(&maintainer, &story.lake.name, &HashSet::new(), &[], &settings).await;
        let (view, plan) = planned.expect("a plan");
        let (mut budgets, mut outcome) = (Budgets::unbounded(), Outcome::default());
        let ended = run::act(&maintainer, &view, &plan, &settings, &mut budgets, &mut outcome).await;
        assert_eq!(ended.expect_err("a row is lost").code, "ROWS_DIFFER");
        let steps = Step::of_run(&plan, &outcome, 0);
        let told: Vec<_> = steps.iter().map(|step| (step.operation, step.result.as_str(), step.snapshots)).collect();
        assert_eq!(told, [(Operation::Expiry, "landed", Some(1))]);
    });
}

/// The writer comes first, before the first few commits of whoever is slow.
struct Slow {
    /// Commits of the writer so far.
    commits: Arc<AtomicUsize>,
    rounds: AtomicUsize,
}

/// As many rounds as a rewrite loses before it asks the writer to let it go first.
const LOST_ROUNDS: usize = 3;

#[async_trait]
impl Meddler for Slow {
    async fn before_commit(&self, _: &LoadedTable) -> Result<(), Problem> {
        if self.rounds.fetch_add(1, SeqCst) < LOST_ROUNDS {
            let seen = self.commits.load(SeqCst);
            while self.commits.load(SeqCst) < seen + 2 {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        }
        Ok(())
    }
}

/// iceberg #5397, #1286: beside a writer that never pauses no compaction ever lands.
#[test]
fn a_rewrite_lands_beside_a_writer_that_never_pauses() {
    block_on(async {
        let (_folder, mut story) = story().await;
        story.put(0..500).await;
        let give_way = GiveWay::default();
        let (commits, ends) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
        story.writer.committer.give_way = give_way.clone();
        let lake = story.lake.clone();
        let (table, rewrite) = rewrite(&lake, |_| true).await;
        let writing = tokio::spawn({
            let (commits, ends) = (Arc::clone(&commits), Arc::clone(&ends));
            async move {
                for key in (0..500).cycle() {
                    if ends.load(SeqCst) {
                        break;
                    }
                    story.put([key]).await;
                    commits.fetch_add(1, SeqCst);
                }
                story
            }
        });
        let meddler = Slow { commits, rounds: AtomicUsize::new(0) };
        let catalog = Arc::new(Between { inner: Arc::clone(&lake.catalog), meddler });
        let maintainer = Maintainer { catalog, give_way, ..lake.maintainer() };
        let replaced = maintainer.replace(&table, &rewrite).await.expect("a catalog that answers");
        ends.store(true, SeqCst);
        let story = writing.await.expect("a writer that is never refused");
        let Replaced::Landed { attempts, forwarded, .. } = replaced else { panic!("{replaced:?}") };
        assert!(attempts as usize > LOST_ROUNDS && forwarded > 0, "{attempts} attempts, {forwarded} forwarded");
        story.oracle.check(&story.lake).await;
    });
}

/// iceberg #4194, amoro #1959 and #2925: removing orphans takes files that are about to be committed.
#[test]
fn a_file_that_is_about_to_be_committed_is_no_orphan() {
    block_on(async {
        let (_folder, mut story) = story().await;
        story.put(0..10).await;
        let rows = Rows::from([(50, 5), (51, 6)]);
        let new = story.lake.data_file(&story.lake.load().await.metadata, &rows);
        let path = new.file.file_path().to_owned();
        // Everything else is old, and a file that looks just like it is removed.
        let old = story.lake.data_file(&story.lake.load().await.metadata, &rows).file.file_path().to_owned();
        let young = canonical(&path);
        age_local_files(&story.lake, |location| location == young).await;
        let least = Settings { orphan_age: Duration::ZERO, compact: false, ..eager(100) };
        maintain(&story.lake, &least).await.expect("a run");
        assert!(exists(&path) && !exists(&old), "below the floor nothing goes, whatever is configured");
        story.change_files(FileChange { added: vec![new], ..FileChange::default() }).await;
        let found = story.lake.rows().await;
        assert!(found.contains(&(50, 5)) && found.len() == 12, "{found:?}");
    });
}

/// StarRocks #77394, ClickHouse #114194: what lies below a table's location is taken for its own.
#[test]
fn nothing_is_removed_where_another_table_stands_or_the_table_forbids_it() {
    block_on(async {
        let (_folder, mut story) = story().await;
        story.put(0..10).await;
        let location = story.lake.load().await.metadata.location().to_owned();
        let rows = Rows::from([(50, 5)]);
        let old = story.lake.data_file(&story.lake.load().await.metadata, &rows).file.file_path().to_owned();
        age_local_files(&story.lake, |_| false).await;
        let (maintainer, settings) = (story.lake.maintainer(), eager(100));
        let plan = async |others: &[String]| {
            let planned = run::plan(&maintainer, &story.lake.name, &HashSet::new(), others, &settings).await;
            planned.expect("a plan").1.orphans
        };
        for other in [format!("{location}/below"), location.rsplit_once('/').expect("a folder").0.to_owned()] {
            let orphans = plan(&[other]).await;
            assert!(orphans.removable.is_empty() && orphans.refused.is_some(), "{orphans:?}");
        }
        assert_eq!(plan(&[]).await.removable.len(), 1);
        let updates = HashMap::from([("gc.enabled".to_owned(), "false".to_owned())]);
        story.lake.change_metadata(vec![TableUpdate::SetProperties { updates }]).await;
        assert!(plan(&[]).await.refused.is_some());
        maintain(&story.lake, &settings).await.expect("a run");
        assert!(exists(&old));
    });
}

/// iceberg #5846: expiry takes the snapshot whose summary held the writer's checkpoint, and everything is committed again.
#[test]
fn the_position_outlives_every_snapshot_that_has_moved_it() {
    block_on(async {
        let (_folder, mut story) = story().await;
        story.put(0..10).await;
        story.change(10..20, [4]).await;
        maintain(&story.lake, &eager(1)).await.expect("a run");
        // As another engine expires: all but the head, which is a rewrite of ours.
        let table = story.lake.load().await;
        let head = table.snapshot_id().expect("a head");
        let snapshot_ids = table.metadata.snapshots().map(|snapshot| snapshot.snapshot_id()).filter(|id| *id != head);
        story.lake.change_metadata(vec![TableUpdate::RemoveSnapshots { snapshot_ids: snapshot_ids.collect() }]).await;
        story.reopen().await;
        assert_eq!(story.writer.table.expected(), Some(Position::new(2)));
        story.put([5]).await;
        assert_eq!(story.lake.rows().await.len(), 19);
        story.oracle.check(&story.lake).await;
    });
}

/// As in a table bucket, where the service alone lists and removes files.
struct Managed;

impl Meddler for Managed {
    fn removes_files(&self, _: &dyn Catalog) -> bool {
        true
    }
}

/// airbyte #69087: a destination fails in a table bucket, which refuses to list and to delete (M-2).
#[test]
fn in_a_table_bucket_nothing_is_listed_or_deleted() {
    block_on(async {
        let life = Life::of(Contents::default(), None);
        let run = async |lake: &Lake| {
            life.store.age(clean::AGE + Duration::from_secs(1));
            life.store.end_at(None);
            let (_, outcome) = maintain(lake, &eager(1)).await.expect("a run");
            assert!(!outcome.rewrites.is_empty(), "{outcome:?}");
            life.store.calls().into_iter().filter(|call| matches!(call, Call::List | Call::Delete)).count()
        };
        let mut story = Story::on(life.lake_through(|inner| Arc::new(Between { inner, meddler: Managed })).await).await;
        for first in [0, 10, 20] {
            story.put(first..first + 10).await;
            story.change([first], [first + 1]).await;
            assert_eq!(run(&story.lake).await, 0);
        }
        // The same table elsewhere: there is something to list and to delete.
        let elsewhere = life.lake().await;
        story.put([40]).await;
        assert!(run(&elsewhere).await > 1);
        story.oracle.check(&elsewhere).await;
    });
}

/// estuary #3984, #4346, #3404: metadata grows with every commit, until nobody can read it.
#[test]
fn metadata_does_not_grow_with_the_number_of_commits() {
    block_on(async {
        let (_folder, mut story) = story().await;
        story.put(0..10).await;
        let mut bytes = Vec::new();
        for _ in 0..6 {
            for key in 0..12 {
                story.put([key]).await;
            }
            maintain(&story.lake, &eager(4)).await.expect("a run");
            bytes.push(story.lake.load().await.metadata_bytes);
        }
        let (early, late) = (bytes[1], bytes[5]);
        // Numbers in it may have become a digit longer.
        assert!(late < early + early / 20, "{bytes:?}");
        story.oracle.check(&story.lake).await;
    });
}
