//! Every measure of a table's health (M-19), of a scripted table before its upkeep and behind it.

use crate::support::{Lake, Story, block_on, eager, maintain, temporary_folder};
use maintenance::health::TableHealth;
use maintenance::run::Settings;
use maintenance::view::View;

async fn health(lake: &Lake) -> TableHealth {
    let table = lake.load().await;
    // A minute later, whatever the machine's clock says.
    let now = table.metadata.last_updated_ms() + 60_000;
    let view = View::of(&lake.storage, table).await.expect("a table that can be looked at");
    TableHealth::of(&view, &Settings::default(), now)
}

#[test]
fn a_scripted_table_measures_as_it_was_made() {
    block_on(async {
        let folder = temporary_folder();
        let mut story = Story::on(Lake::local(folder.path()).await).await;
        story.put(0..50).await;
        story.put(50..100).await;
        // The first file loses three rows in two commits, by one delete file; the other one row.
        story.delete([1, 2]).await;
        story.delete([3, 51]).await;
        let view = View::of(&story.lake.storage, story.lake.load().await).await.expect("a sound table");
        let data_bytes: u64 = view.live.data.values().map(|file| file.bytes).sum();
        let found = health(&story.lake).await;
        let expected = TableHealth {
            // Half of the files are small ones beyond the first; 4 % of the rows are deleted, of 10 at most.
            score: 100.0 - 20.0 - 8.0,
            data_files: 2,
            small_files: 2,
            delete_files: 2,
            equality_delete_files: 0,
            most_deletes_per_file: 1,
            dangling_deletes: 0,
            rows: 96,
            deleted_rows: 4,
            bytes: view.live.totals().bytes,
            manifests: view.live.manifests.len() as u64,
            manifest_bytes: found.manifest_bytes,
            snapshots: 4,
            metadata_bytes: view.table.metadata_bytes,
            debt_bytes: data_bytes,
            compaction_age_seconds: None,
            time_travel_seconds: found.time_travel_seconds,
            promised_time_travel_seconds: 86_400,
            time_travel_kept: true,
        };
        assert!((found.score - expected.score).abs() < 1e-9, "{}", found.score);
        assert_eq!(found, TableHealth { score: found.score, ..expected });
        assert!(found.manifest_bytes > 0 && found.time_travel_seconds >= 59);

        maintain(&story.lake, &eager(2)).await.expect("a run");
        let after = health(&story.lake).await;
        assert_eq!((after.data_files, after.small_files, after.delete_files), (1, 1, 0));
        assert_eq!((after.rows, after.deleted_rows, after.debt_bytes), (96, 0, 0));
        // What has gone is told in the manifest of what has come, and of deletes in one: readers open each.
        assert!(
            found.manifests >= 3 && after.manifests == 2,
            "{} manifests, then {}",
            found.manifests,
            after.manifests
        );
        assert!(
            (after.score - 100.0).abs() < 1e-9 && after.compaction_age_seconds.is_some_and(|age| age < 120),
            "{after:?}"
        );
        // Snapshots have left: the window is shorter than what is promised, and that is said.
        assert!(!after.time_travel_kept, "{after:?}");
    });
}
