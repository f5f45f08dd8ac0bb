//! What is rewritten for readers' sake alone: the dirtiest files where a partition has lost too many rows, and whatever loses
//! no more of them.

use std::time::Duration;

use crate::support::{Lake, Story, block_on, maintain, temporary_folder};
use fastrand::Rng;
use maintenance::plan::{Reason, Targets};
use maintenance::run::Settings;
use maintenance::view::View;

/// Of random keys, so that a file of them has more than a megabyte and is neither small nor next to nothing.
const ROWS: usize = 80_000;

/// With a table that is quiet behind so much time.
fn quiet(quiet_after: Duration) -> Targets {
    Targets { file_bytes: 1 << 20, quiet_after, ..Targets::default() }
}

/// The files of each rewrite for readers' sake; there are no others.
async fn kept_up(story: &Story, targets: Targets) -> Vec<Vec<String>> {
    let settings = Settings { targets, expire: false, clean: false, ..Settings::default() };
    let (plan, outcome) = maintain(&story.lake, &settings).await.expect("a run");
    assert!(outcome.rewrites.iter().all(|done| done.reason == Reason::ReadCost && done.snapshot_id.is_some()));
    assert_eq!(outcome.rewrites.len(), plan.rewrites.len());
    plan.rewrites.into_iter().map(|rewrite| rewrite.files).collect()
}

/// The files that have lost rows, and how many.
async fn dirty(story: &Story) -> Vec<(String, u64)> {
    let view = View::of(&story.lake.storage, story.lake.load().await).await.expect("sound");
    let files = view.partitions().into_values().flatten().filter(|file| file.deleted > 0);
    files.map(|file| (file.path, file.deleted)).collect()
}

#[test]
fn readers_are_left_with_few_deleted_rows_and_with_none_in_a_file_that_is_left_alone() {
    block_on(async {
        let folder = temporary_folder();
        let mut story = Story::on(Lake::local(folder.path()).await).await;
        let mut rng = Rng::with_seed(7);
        let [first, second] = [(); 2].map(|()| (0..ROWS).map(|_| rng.i64(..)).collect::<Vec<i64>>());
        story.put(first.iter().copied()).await;
        story.put(second.iter().copied()).await;
        let (busy, idle) = (|| quiet(Duration::from_secs(3_600)), || quiet(Duration::ZERO));
        assert!(kept_up(&story, idle()).await.is_empty(), "nothing is deleted");

        // One row of 160,000 may stay where it is; then the other file loses a hundredth of its rows.
        story.delete(first.iter().copied().take(1)).await;
        assert!(kept_up(&story, busy()).await.is_empty(), "{:?}", dirty(&story).await);
        story.reopen().await;
        story.delete(second.iter().copied().take(ROWS / 100)).await;
        let found = dirty(&story).await;
        let most = found.iter().max_by_key(|(_, deleted)| *deleted).expect("two files are dirty").0.clone();
        assert_eq!((found.len(), kept_up(&story, busy()).await), (2, vec![vec![most]]));
        let left = dirty(&story).await;
        assert!(left.len() == 1 && left[0].1 == 1, "{left:?}");

        let cold = Targets { cold_after: Duration::ZERO, ..busy() };
        assert_eq!(kept_up(&story, cold).await, [[left[0].0.clone()]]);
        story.reopen().await;
        story.delete(first.iter().copied().skip(1).take(1)).await;
        assert_eq!((kept_up(&story, busy()).await.len(), kept_up(&story, idle()).await.len()), (0, 1));
        assert!(dirty(&story).await.is_empty() && kept_up(&story, idle()).await.is_empty());
        story.oracle.check(&story.lake).await;
    });
}
