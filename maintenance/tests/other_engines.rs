//! What other engines leave in a table and we never do: deletes by value, which become deletes by position (M-10), and a
//! crowd of manifests (M-12).

use std::collections::BTreeSet;

use crate::support::foreign::{self, Placed};
use crate::support::{Lake, Rows, Story, Writer, block_on, eager, maintain, temporary_folder};
use iceberg::TableUpdate;
use iceberg::spec::{DataFile, Literal, Struct, Transform, UnboundPartitionSpec};
use lakehouse_core::commit::Replaced;
use lakehouse_core::error::Reaction;
use lakehouse_core::fsck::{CheckName, fsck};
use lakehouse_core::live::{EQUALITY_DELETES, LiveFiles};
use maintenance::compact;
use maintenance::health::TableHealth;
use maintenance::plan::{Group, Reason, Targets};
use maintenance::run::Settings;
use maintenance::view::View;
use tempfile::TempDir;
use testkit::readers::{Engine, Judge};

async fn story() -> (TempDir, Story) {
    let folder = temporary_folder();
    let lake = Lake::local(folder.path()).await;
    (folder, Story::on(lake).await)
}

async fn view(lake: &Lake) -> View {
    View::of(&lake.storage, lake.load().await).await.expect("a table that can be looked at")
}

async fn by_id(lake: &Lake, keys: &[i64]) -> DataFile {
    foreign::equality_delete(lake, "id", keys, Placed::default()).await
}

/// Without merging files, which would apply deletes of any kind.
fn without_groups() -> Settings {
    // Of a byte: no file is small.
    let targets = Targets { file_bytes: 1, deleted_share: 1.0, read_cost_share: 1.0, ..Targets::default() };
    Settings { targets, expire: false, clean: false, ..eager(100) }
}

#[test]
fn deletes_by_value_become_deletes_by_position_and_the_writer_goes_on() {
    block_on(async {
        let (_folder, mut story) = story().await;
        story.put(0..50).await;
        story.put(50..100).await;
        story.delete([7]).await;
        // Key 7 is gone already and 1,000 never was; key 8 comes back in the commit that deletes it.
        let lake = story.lake.clone();
        let value_of_9 = story.rows[&9];
        let files = vec![
            by_id(&lake, &[7, 8, 60, 1_000]).await,
            foreign::equality_delete(&lake, "value", &[value_of_9], Placed::default()).await,
            foreign::data(&lake, &Rows::from([(8, 88)]), Placed::default()).await,
        ];
        story.foreign(files, &[(8, 88)], &[60, 9]).await;
        story.oracle.check(&lake).await;

        // Nobody builds on it before.
        let refused = Writer::open(&lake, story.writer.committer.clone()).await.err().expect("it is refused");
        assert_eq!((refused.code, refused.reaction), (EQUALITY_DELETES, Reaction::Retry));
        let now = chrono::Utc::now().timestamp_millis();
        let health = TableHealth::of(&view(&lake).await, &eager(100), now);
        assert_eq!((health.equality_delete_files, health.delete_files), (2, 1));

        let (plan, outcome) = maintain(&lake, &without_groups()).await.expect("a run");
        assert_eq!(plan.equality_deletes.len(), 2);
        let [done] = &outcome.rewrites[..] else { panic!("{outcome:?}") };
        // Keys 8, 9 and 60, in two files of which one had a delete file.
        assert_eq!((done.reason, done.input_files, done.output_files, done.rows), (Reason::EqualityDeletes, 2, 2, 3));
        let live = view(&lake).await.live;
        assert_eq!((live.equality_deletes().count(), live.deletes.len(), live.deleted_rows()), (0, 2, 4));
        assert!(live.data.values().all(|file| file.deletes.len() <= 1));
        story.oracle.check(&lake).await;

        story.reopen().await;
        story.change([8, 9, 100], [61]).await;
        assert_eq!(story.lake.rows().await.len(), story.rows.len());
        maintain(&lake, &eager(100)).await.expect("a run that merges what is there");
        assert!(view(&lake).await.live.deletes.is_empty());
        story.reopen().await;
        story.change([9], [8]).await;
        story.oracle.check(&lake).await;
        read_elsewhere(&story).await;
        // Deletes by value are there in older snapshots, and no fault any more.
        let report = fsck(&*lake.catalog, &lake.storage, None).await.expect("a report");
        let checks = || report.tables.iter().flat_map(|table| &table.checks);
        for name in [CheckName::Counters, CheckName::Deletes, CheckName::LivePaths, CheckName::Files] {
            assert!(checks().any(|check| check.name == name && check.ok), "{:?}", checks().collect::<Vec<_>>());
        }
    });
}

/// Engines that share no code with us find as many rows, and the same.
async fn read_elsewhere(story: &Story) {
    let table = story.lake.load().await;
    let mut duckdb = Judge::start(Engine::DuckDb).await;
    let rows = duckdb.rows(&table.metadata_location, table.snapshot_id(), &[]).await;
    assert_eq!(rows.len(), story.rows.len());
    let mut pyiceberg = Judge::start(Engine::PyIceberg).await;
    pyiceberg.assert_rows(&table.metadata_location, table.snapshot_id(), &[], &rows).await;
}

/// By the specification: a delete of a partition concerns the files of that partition alone, one of no partition all.
#[test]
fn a_delete_by_value_concerns_older_files_of_its_partition() {
    block_on(async {
        let (_folder, mut story) = story().await;
        story.put(0..10).await;
        let lake = story.lake.clone();
        let spec = UnboundPartitionSpec::builder().add_partition_field(2, "value", Transform::Identity);
        let spec = spec.expect("a field").build();
        lake.change_metadata(vec![TableUpdate::AddSpec { spec }, TableUpdate::SetDefaultSpec { spec_id: -1 }]).await;
        let placed = |value: i64| Placed(Struct::from_iter([Some(Literal::long(value))]), 1);
        let mut files = Vec::new();
        for (value, keys) in [(5, 100..110), (6, 110..120)] {
            let rows: Rows = keys.map(|key| (key, value)).collect();
            files.push(foreign::data(&lake, &rows, placed(value)).await);
        }
        let new: Vec<(i64, i64)> = (100..120).map(|key| (key, if key < 110 { 5 } else { 6 })).collect();
        story.foreign(files, &new, &[]).await;
        // All keys by name; only those of the partition go.
        let all: Vec<i64> = (0..200).collect();
        let delete = foreign::equality_delete(&lake, "id", &all, placed(5)).await;
        story.foreign(vec![delete], &[], &(100..110).collect::<Vec<_>>()).await;
        story.oracle.check(&lake).await;
        let (_, outcome) = maintain(&lake, &without_groups()).await.expect("a run");
        assert_eq!(outcome.rewrites[0].rows, 10, "{outcome:?}");
        story.oracle.check(&lake).await;
    });
}

/// M-8: a rewrite that was planned before does not pass deletes by value by.
#[test]
fn a_rewrite_does_not_land_on_deletes_by_value_that_came_since_its_plan() {
    block_on(async {
        let (_folder, mut story) = story().await;
        story.put(0..50).await;
        story.put(50..100).await;
        let lake = story.lake.clone();
        let view = view(&lake).await;
        let files = view.partitions().into_values().flatten().collect();
        let group = Group { reason: Reason::SmallFiles, files };
        let rewriting =
            || compact::rewrite(&lake.storage, &view, &group, &Targets::default(), lake.maintainer().planted);
        let rewrite = tokio::task::block_in_place(rewriting).expect("a rewrite");
        let delete = by_id(&lake, &[7]).await;
        story.foreign(vec![delete], &[], &[7]).await;
        let replaced = lake.maintainer().replace(&view.table, &rewrite).await.expect("a catalog that answers");
        assert!(matches!(replaced, Replaced::Overtaken(_)), "{replaced:?}");
        maintain(&lake, &eager(100)).await.expect("first the deletes");
        maintain(&lake, &eager(100)).await.expect("then the files");
        let live = LiveFiles::load(&lake.storage, &lake.load().await, lake.load().await.snapshot_id()).await;
        assert_eq!(live.expect("nothing that is refused").data.len(), 1);
        story.oracle.check(&lake).await;
    });
}

#[test]
fn a_crowd_of_manifests_is_merged_even_if_nobody_writes() {
    block_on(async {
        let (_folder, mut story) = story().await;
        story.put(0..10).await;
        let lake = story.lake.clone();
        let new: Vec<(i64, i64)> = (1_000..1_120).map(|key| (key, key)).collect();
        let mut files = Vec::new();
        for row in &new {
            files.push(foreign::data(&lake, &Rows::from([*row]), Placed::default()).await);
        }
        story.foreign(files, &new, &[]).await;
        let (plan, outcome) = maintain(&lake, &without_groups()).await.expect("a run");
        assert!(plan.rewrites.is_empty() && plan.merged_manifests >= 119, "{}", plan.merged_manifests);
        let reasons: BTreeSet<&str> = outcome.rewrites.iter().map(|done| done.reason.as_str()).collect();
        assert_eq!(reasons, BTreeSet::from(["manifests"]));
        assert!(view(&lake).await.live.manifests.len() < 10);
        assert!(maintain(&lake, &without_groups()).await.expect("a run").0.is_empty());
        story.oracle.check(&lake).await;
    });
}
