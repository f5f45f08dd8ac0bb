//! What a diff of two snapshots tells, against all rows of both, read and compared one by one: over commits of every kind,
//! columns that were added, compactions in between and rollbacks on top.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::support::bank::Load;
use crate::support::block_on;
use crate::support::check::{in_order, is_rewrite};
use crate::support::compaction::{Compaction, world};
use crate::support::reading::{Kept, cells, rows};
use crate::support::script::{Identity, Row, Table, trimmed};
use crate::support::world::{Worker, World};
use arrow_array::RecordBatch;
use fastrand::Rng;
use iceberg::spec::SnapshotRef;
use lakehouse_core::catalog::LoadedTable;
use lakehouse_core::commit::Restored;
use lakehouse_core::diff::{self, Changes, Counts, Diff};
use lakehouse_core::error::Problem;
use lakehouse_core::read::TableReader;
use lakehouse_core::storage::{Storage, local_path};
use testkit::tier;

/// Pairs of snapshots that are compared of each table.
const PAIRS: usize = 6;

/// Rows that differ, each list sorted.
#[derive(Debug, Default, PartialEq, Eq)]
struct Differences {
    inserted: Vec<Row>,
    updated: Vec<(Row, Row)>,
    deleted: Vec<Row>,
}

impl Differences {
    fn counts(&self) -> Counts {
        let count = |rows: usize| rows as u64;
        Counts {
            inserted: count(self.inserted.len()),
            updated: count(self.updated.len()),
            deleted: count(self.deleted.len()),
        }
    }

    fn sorted(mut self) -> Self {
        self.inserted.sort_unstable();
        self.updated.sort_unstable();
        self.deleted.sort_unstable();
        self
    }
}

/// The oracle: by the first column where that is the key, else by whole rows and how often they stand there.
fn expected(table: &Table, before: Vec<Row>, after: Vec<Row>) -> Differences {
    let mut differences = Differences::default();
    if matches!(table.identity, Identity::Key | Identity::KeyFull) {
        let keyed = |rows: Vec<Row>| rows.into_iter().map(|row| (row[0].clone(), row)).collect::<BTreeMap<_, _>>();
        let (mut before, after) = (keyed(before), keyed(after));
        for (key, row) in after {
            match before.remove(&key) {
                None => differences.inserted.push(row),
                Some(old) if old == row => {}
                Some(old) => differences.updated.push((old, row)),
            }
        }
        differences.deleted.extend(before.into_values());
    } else {
        let mut balance: BTreeMap<Row, i64> = BTreeMap::new();
        before.into_iter().for_each(|row| *balance.entry(row).or_default() -= 1);
        after.into_iter().for_each(|row| *balance.entry(row).or_default() += 1);
        for (row, rows) in balance {
            let side = if rows < 0 { &mut differences.deleted } else { &mut differences.inserted };
            (0..rows.abs()).for_each(|_| side.push(row.clone()));
        }
    }
    differences.sorted()
}

fn told(batch: &RecordBatch) -> impl Iterator<Item = Row> {
    assert!(batch.num_rows() > 0, "no empty batches");
    (0..batch.num_rows()).map(|row| trimmed(cells(batch.columns(), row)))
}

/// What the product says, and its count of it.
fn found(diff: &Diff) -> (Differences, Counts) {
    let mut differences = Differences::default();
    let mut each = |changes: Changes| {
        match changes {
            Changes::Inserted(batch) => differences.inserted.extend(told(&batch)),
            Changes::Deleted(batch) => differences.deleted.extend(told(&batch)),
            Changes::Updated { before, after } => differences.updated.extend(told(&before).zip(told(&after))),
        }
        Ok::<(), Problem>(())
    };
    let counts = diff.changes(&|| Ok(()), &mut each).expect("a diff");
    (differences.sorted(), counts)
}

/// What all comparisons have come to.
#[derive(Debug, Default)]
struct Total {
    pairs: usize,
    rewrites: usize,
    restored: usize,
    columns_added: usize,
    keyless: usize,
    counts: Counts,
}

impl Total {
    async fn compare(
        &mut self,
        storage: &Storage,
        (table, loaded): (&Table, &LoadedTable),
        (from, to): (&SnapshotRef, &SnapshotRef),
        kept: &mut Kept<Row>,
    ) {
        let (from_id, to_id) = (from.snapshot_id(), to.snapshot_id());
        let before = rows(storage, loaded, from_id, kept).await.expect("rows").0;
        let after = rows(storage, loaded, to_id, kept).await.expect("rows").0;
        let expected = expected(table, before, after);
        let whole = Diff::open(storage, loaded, from_id, to_id).await.expect("a diff");
        let tiny = Diff::open(storage, loaded, from_id, to_id).await.expect("a diff").in_partitions_of(1);
        for diff in [whole, tiny] {
            let (differences, counts) = tokio::task::block_in_place(|| found(&diff));
            assert_eq!(differences, expected, "{} from {from_id} to {to_id}", loaded.name);
            assert_eq!(counts, expected.counts(), "{} from {from_id} to {to_id}", loaded.name);
        }
        assert_eq!(diff::counts(storage, loaded, from_id, to_id, || Ok(())).await.expect("counts"), expected.counts());
        let is_next = to.parent_snapshot_id() == Some(from_id);
        if is_next && is_rewrite(to) {
            assert!(expected.counts().is_equal(), "the oracle itself: a rewrite keeps all rows");
            self.rewrites += 1;
        }
        self.pairs += 1;
        self.columns_added += usize::from(from.schema_id() != to.schema_id());
        self.keyless += usize::from(table.identity == Identity::WholeRow && !expected.counts().is_equal());
        self.counts += expected.counts();
    }
}

/// Compactions and a rollback on top of what the script has left.
async fn disturb(world: &World, compaction: &Compaction, table: &Table, rng: &mut Rng) -> usize {
    let mut restored = 0;
    for _ in 0..3 {
        for _ in 0..4 {
            compaction.act(&table.mirror()).await.expect("a rewrite");
        }
        let loaded = world.catalog.load(&table.mirror(), None).await.expect("a catalog").expect("a mirror");
        let snapshots = in_order(&loaded);
        let target = snapshots[rng.usize(0..snapshots.len())].snapshot_id();
        match compaction.maintainer.restore(&loaded, target, None).await.expect("a rollback") {
            Restored::Landed { .. } => restored += 1,
            Restored::Moved => panic!("nobody else is at work"),
        }
    }
    restored
}

#[test]
fn a_diff_tells_what_two_snapshots_read_row_by_row_differ_in() {
    block_on(async {
        let mut total = Total::default();
        for seed in 0..tier::size("LAKEHOUSE_SEEDS", 2, 400) {
            let mut rng = Rng::with_seed(seed ^ 0xD1FF);
            let (world, compaction) = world(seed, Load { transactions: 16, wide: seed % 2 == 0 });
            let worker = Worker::random(0, &world.script, &mut rng);
            world
                .incarnation(&worker, &Arc::default())
                .await
                .unwrap_or_else(|problem| panic!("seed {seed}: {problem:?}"));
            for table in world.script.tables.iter().filter(|table| table.has_mirror()) {
                total.restored += disturb(&world, &compaction, table, &mut rng).await;
                let loaded = world.catalog.load(&table.mirror(), None).await.expect("a catalog").expect("a mirror");
                let (snapshots, mut kept) = (in_order(&loaded), Kept::new());
                for pair in snapshots.windows(2) {
                    total.compare(&world.storage, (table, &loaded), (&pair[0], &pair[1]), &mut kept).await;
                }
                for _ in 0..PAIRS {
                    let (from, to) = (rng.usize(0..snapshots.len()), rng.usize(0..snapshots.len()));
                    let pair = (&snapshots[from], &snapshots[to]);
                    total.compare(&world.storage, (table, &loaded), pair, &mut kept).await;
                }
            }
        }
        println!("{total:?}");
        let Counts { inserted, updated, deleted } = total.counts;
        for (number, what) in [
            (total.rewrites, "rewrites alone"),
            (total.restored, "rollbacks"),
            (total.columns_added, "columns added in between"),
            (total.keyless, "differences without a key"),
            (inserted as usize, "inserts"),
            (updated as usize, "updates"),
            (deleted as usize, "deletes"),
        ] {
            assert!(number > 0, "too few {what}: {number}");
        }
    });
}

#[test]
fn files_that_both_snapshots_have_alike_are_not_read() {
    block_on(async {
        let (mut spared, mut needed) = (0, 0);
        for seed in 100..104 {
            let (world, _) = world(seed, Load { transactions: 12, wide: false });
            world.incarnation(&Worker::plain(0), &Arc::default()).await.expect("the script's end");
            for table in world.script.tables.iter() {
                let loaded = world.catalog.load(&table.mirror(), None).await.expect("a catalog").expect("a mirror");
                let snapshots = in_order(&loaded);
                let [.., from, to] = &snapshots[..] else { continue };
                let (from, to) = (from.snapshot_id(), to.snapshot_id());
                let counts = diff::counts(&world.storage, &loaded, from, to, || Ok(())).await.expect("counts");
                let past = TableReader::at(&world.storage, &loaded, Some(from)).await.expect("a past");
                let present = TableReader::at(&world.storage, &loaded, Some(to)).await.expect("a present");
                let mut alike = 0;
                for path in past.files() {
                    let now = present.live.data.get(path);
                    if now.is_some_and(|now| now.deletes == past.live.data[path].deletes) {
                        std::fs::remove_file(local_path(path).expect("a local file")).expect("removed");
                        alike += 1;
                    }
                }
                let again = diff::counts(&world.storage, &loaded, from, to, || Ok(())).await;
                assert_eq!(again.expect("no file that is gone is read"), counts, "seed {seed}, {}", loaded.name);
                spared += alike;
                if !counts.is_equal() {
                    let differing = present.files().into_iter().find(|path| !past.live.data.contains_key(*path));
                    if let Some(path) = differing {
                        std::fs::remove_file(local_path(path).expect("a local file")).expect("removed");
                        let blind = diff::counts(&world.storage, &loaded, from, to, || Ok(())).await;
                        assert_eq!(blind.expect_err("a file that differs is needed").code, "FILE_MISSING");
                        needed += 1;
                    }
                }
            }
        }
        println!("{spared} files spared, {needed} needed");
        assert!(spared > 0 && needed > 5, "{spared} files spared, {needed} needed");
    });
}
