//! Time travel behind maintenance: whatever was compacted, expired and removed, each snapshot that is kept reads, to
//! engines that share no code with us, as it did to one of them when it was made.

use std::collections::BTreeMap;

use crate::support::{Lake, Story, age_local_files, block_on, eager, maintain, temporary_folder};
use fastrand::Rng;
use testkit::readers::{Engine, Judge};

const COMMITS: usize = 18;
/// Commits between two runs of maintenance.
const BETWEEN: usize = 6;
/// Of the line of commits; tagged ones stay beside them.
const KEPT: usize = 9;
const KEYS: i64 = 300;
/// The first one reads each snapshot when it is made.
const ENGINES: [Engine; 3] = [Engine::DuckDb, Engine::PyIceberg, Engine::Chdb];

/// Inserts, updates and deletes of random keys.
async fn commit(story: &mut Story, rng: &mut Rng) -> i64 {
    let mut keys = |count: usize| -> Vec<i64> { (0..rng.usize(1..count)).map(|_| rng.i64(0..KEYS)).collect() };
    let (put, mut deleted) = (keys(60), keys(20));
    deleted.retain(|key| !put.contains(key));
    story.change(put, deleted).await
}

/// What an engine reads at the head, as canonical lines, sorted.
async fn read(judge: &mut Judge, lake: &Lake) -> Vec<String> {
    let table = lake.load().await;
    judge.rows(&table.metadata_location, table.snapshot_id(), &[]).await
}

#[test]
fn every_kept_snapshot_reads_as_when_it_was_made_to_independent_engines() {
    block_on(async {
        let folder = temporary_folder();
        let mut story = Story::on(Lake::local(folder.path()).await).await;
        let mut rng = Rng::with_seed(18);
        let mut first = Judge::start(ENGINES[0]).await;
        // By sequence number: a rewrite above one and below the next keeps the rows.
        let mut recorded: BTreeMap<i64, Vec<String>> = BTreeMap::new();
        let (mut expired, mut removed, mut rewritten) = (0, 0, 0);
        for number in 1..=COMMITS {
            let id = commit(&mut story, &mut rng).await;
            recorded
                .insert(story.lake.load().await.metadata.last_sequence_number(), read(&mut first, &story.lake).await);
            if number % BETWEEN == 2 {
                story.lake.tag(&format!("keep-{number}"), id).await;
            }
            if number % BETWEEN == 0 {
                age_local_files(&story.lake, |_| false).await;
                let (plan, outcome) = maintain(&story.lake, &eager(KEPT)).await.expect("a run");
                expired += plan.expiry.expired.len();
                removed += outcome.removed_files;
                rewritten += outcome.rewrites.iter().filter(|rewrite| rewrite.snapshot_id.is_some()).count();
            }
        }
        // What the last run has let go.
        age_local_files(&story.lake, |_| false).await;
        removed += maintain(&story.lake, &eager(KEPT)).await.expect("a run").1.removed_files;
        assert!(
            expired > 0 && removed > 0 && rewritten > 1,
            "{expired} expired, {removed} removed, {rewritten} rewritten"
        );

        let table = story.lake.load().await;
        let mut compared = 0;
        for engine in ENGINES {
            let mut judge = Judge::start(engine).await;
            for snapshot in table.metadata.snapshots() {
                let (_, rows) = recorded.range(..=snapshot.sequence_number()).next_back().expect("the first commit");
                judge.assert_rows(&table.metadata_location, Some(snapshot.snapshot_id()), &[], rows).await;
                compared += 1;
            }
        }
        let tagged = COMMITS / BETWEEN - 1;
        assert!(compared >= ENGINES.len() * (KEPT + tagged), "{compared} snapshots compared");
        assert_eq!(story.oracle.check(&story.lake).await, table.metadata.snapshots().len());
        println!("{compared} readings of kept snapshots, {expired} expired, {removed} files removed");
    });
}
