//! Closes a gap of a stream (D26, D28): what changed meanwhile comes from incremental exports of point-in-time recovery,
//! then the stream is followed from lanes that were noted before the last of them ends.
//!
//! An export says of each item what became of it within its window, once. So the mirror is exact again, and the history
//! has one change where the stream would have had several. Each export counts as a lane of its own that has an end:
//! changes are numbered in it as they are read, so they travel, and are skipped, as those of shards are. What open shards
//! still hold of the time that the exports cover is read again behind them: the mirror may show it for a moment.
//!
//! A bridge that a crash interrupts begins anew: its lane has no end, which is a gap.

use std::sync::Arc;

use lakehouse_core::error::{Problem, Reaction};
use lakehouse_core::lanes::{Lane, LaneOffset, Reached, TableLanes};
use lakehouse_core::storage::Storage;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tracing::info;

use crate::client::problem;
use crate::config::DynamodbSource;
use crate::export::{
    Export, ExportFile, ExportedChange, Kind, LONGEST_WINDOW, Requester, SHORTEST_WINDOW, place, read_changes, storage,
};
use crate::lineage::ListedShard;
use crate::reader::{Shared, Told};
use crate::table::SourceTable;

/// Names of lanes that are exports; shards' names begin otherwise.
const LANE: &str = "export/";
/// How far an export begins before what is known to be read: clocks differ, and records come late.
const OVERLAP: i64 = 5 * 60_000;
/// Changes handed on at once, and about how many bytes.
const CHANGES_AT_ONCE: usize = 1_000;
const BYTES_AT_ONCE: usize = 1 << 20;

/// What can close gaps of one table.
#[derive(Clone)]
pub(crate) struct Bridge {
    pub(crate) source: Arc<DynamodbSource>,
    pub(crate) table: SourceTable,
}

/// What a bridge tells, in this order: changes, lane by lane, then that it is done.
#[derive(Debug)]
pub(crate) enum Bridged {
    Changes {
        lane: Arc<str>,
        changes: Vec<(LaneOffset, ExportedChange)>,
        /// Of this lane nothing follows.
        ended: bool,
    },
    /// The stream goes on from here.
    Closed {
        lanes: TableLanes,
        listing: Vec<ListedShard>,
    },
    Failed(Problem),
}

/// True where a bridge was begun and not finished.
pub(crate) fn is_unfinished(lanes: &TableLanes) -> bool {
    lanes.lanes.iter().any(|(name, lane)| name.starts_with(LANE) && lane.at != Reached::End)
}

impl Bridge {
    /// Runs to the end, having ended whoever still reads the table.
    pub(crate) async fn run(self, shared: Shared, mut readers: JoinSet<()>, lanes: TableLanes) {
        readers.shutdown().await;
        let table: Arc<str> = self.table.name.as_str().into();
        if let Err(problem) = self.close(&shared, &table, lanes).await {
            let _ = shared.told.send(Told::Bridged { table, told: Bridged::Failed(problem) }).await;
        }
    }

    async fn close(&self, shared: &Shared, table: &Arc<str>, lanes: TableLanes) -> Result<(), Problem> {
        let unknown = || crate::client::gap(table, "it is not known up to when the stream was read", None);
        let read_until = lanes.read_until.ok_or_else(unknown)?;
        let listing = shared.list_settled(&lanes.log).await;
        let listing = listing.map_err(|trouble| problem("dynamodb:DescribeStream", table, trouble))?;
        let noted = chrono::Utc::now().timestamp_millis();
        let place = place(&self.source, table)?;
        let requester = Requester { clients: &shared.clients, table: &self.table, place };
        let storage = storage(&self.source).await;
        let to = requester.surely_after(noted);
        info!(table = &**table, from = read_until, to, "a gap is being closed by exports");
        let mut followed = follow(lanes, &listing, noted);
        for (from, to) in windows(read_until - OVERLAP, to) {
            let summary = requester.window(from, to).await?;
            let (opened, at) = (storage.clone(), summary.clone());
            let open = move || Export::open(&opened, &at, Kind::Incremental);
            let export = tokio::task::spawn_blocking(open).await.unwrap_or_else(|_| Err(interrupted(table)))?;
            let lane: Arc<str> = lane_of(&summary).into();
            followed.lanes.insert(lane.to_string(), Lane { parent: None, at: Reached::End });
            let (told, name, storage) = (shared.told.clone(), Arc::clone(table), storage.clone());
            let read = move || Reading { table: name, lane, told, read: 0 }.files(&storage, &export.files);
            tokio::task::spawn_blocking(read).await.unwrap_or_else(|_| Err(interrupted(table)))?;
        }
        let closed = Bridged::Closed { lanes: followed, listing };
        let _ = shared.told.send(Told::Bridged { table: Arc::clone(table), told: closed }).await;
        Ok(())
    }
}

fn interrupted(table: &str) -> Problem {
    Problem::retry("INTERRUPTED", table, "reading an export was interrupted")
}

/// Whatever a shard that has ended by now held is in the exports; one that is open goes on.
fn follow(mut lanes: TableLanes, listing: &[ListedShard], noted: i64) -> TableLanes {
    for lane in lanes.lanes.iter_mut().filter(|(id, _)| !listing.iter().any(|shard| shard.id == **id)) {
        lane.1.at = Reached::End;
    }
    for shard in listing {
        let has_child = listing.iter().any(|other| other.parent.as_ref() == Some(&shard.id));
        let lane = lanes.lanes.entry(shard.id.clone()).or_default();
        lane.parent.clone_from(&shard.parent);
        if shard.closed || has_child {
            lane.at = Reached::End;
        }
    }
    lanes.read_until = Some(noted);
    lanes
}

/// The time from `from` to `to` in windows as the service takes them, whole seconds, the earliest first.
fn windows(from: i64, to: i64) -> Vec<(i64, i64)> {
    let from = (from - from.rem_euclid(1_000)).min(to - SHORTEST_WINDOW);
    let count = (to - from + LONGEST_WINDOW - 1) / LONGEST_WINDOW;
    let bound = |number: i64| from + (to - from) / 1_000 * number / count * 1_000;
    (0..count).map(|number| (bound(number), if number + 1 == count { to } else { bound(number + 1) })).collect()
}

/// By the folder that the summary stands in.
fn lane_of(summary: &str) -> String {
    format!("{LANE}{}", summary.rsplit('/').nth(1).unwrap_or_default())
}

/// One export being read.
struct Reading {
    table: Arc<str>,
    lane: Arc<str>,
    told: mpsc::Sender<Told>,
    /// Changes so far.
    read: u64,
}

impl Reading {
    fn files(mut self, storage: &Storage, files: &[ExportFile]) -> Result<(), Problem> {
        let mut some: Vec<ExportedChange> = Vec::new();
        let mut bytes = 0;
        for file in files {
            read_changes(storage, file, |change| {
                bytes += change.bytes();
                some.push(change);
                match some.len() >= CHANGES_AT_ONCE || bytes >= BYTES_AT_ONCE {
                    true => {
                        bytes = 0;
                        self.tell(std::mem::take(&mut some), false)
                    }
                    false => Ok(()),
                }
            })?;
        }
        self.tell(some, true)
    }

    fn tell(&mut self, mut some: Vec<ExportedChange>, ended: bool) -> Result<(), Problem> {
        some.sort_by_key(ExportedChange::written_at);
        let changes = some.into_iter().map(|change| {
            self.read += 1;
            (self.read.to_string().parse().expect("a number is an offset"), change)
        });
        let told = Bridged::Changes { lane: Arc::clone(&self.lane), changes: changes.collect(), ended };
        // Where nobody listens any more, nothing is to be read.
        let gone = |_| interrupted(&self.table);
        self.told.blocking_send(Told::Bridged { table: Arc::clone(&self.table), told }).map_err(gone)
    }
}

/// Why a gap stays: the table is left with the gap's own code, so that the next start tries again.
pub(crate) fn not_closed(gap: &str, problem: Problem) -> Problem {
    match problem.reaction {
        Reaction::Retry => problem,
        _ => Problem {
            message: format!("{gap}; and it was not closed: {}: {}", problem.code, problem.message),
            code: "GAP",
            reaction: Reaction::HaltTable,
            ..problem
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: i64 = 3_600_000;

    #[test]
    fn windows_follow_each_other_and_are_as_long_as_they_may_be() {
        for (from, to) in
            [(0, HOUR), (5, HOUR), (0, HOUR / 60), (0, 24 * HOUR), (1, 24 * HOUR + 1_000), (7, 35 * 24 * HOUR)]
        {
            let windows = windows(from, to);
            assert!(windows[0].0 <= from && windows.last().unwrap().1 == to, "{windows:?}");
            assert!(windows.windows(2).all(|pair| pair[0].1 == pair[1].0), "{windows:?}");
            for (from, to) in windows {
                assert!((SHORTEST_WINDOW..=LONGEST_WINDOW).contains(&(to - from)), "{}", to - from);
                assert_eq!(from % 1_000, 0);
            }
        }
        assert_eq!(windows(0, 24 * HOUR).len(), 1);
        assert_eq!(windows(0, 25 * HOUR).len(), 2);
    }

    #[test]
    fn what_has_ended_by_now_is_in_the_export_and_what_is_open_goes_on() {
        let lane = |at| Lane { parent: None, at };
        let offset = Reached::Offset("7".parse().unwrap());
        let lanes = TableLanes {
            log: "arn".to_owned(),
            lanes: [("gone", offset), ("closed", offset), ("open", offset), ("parent", Reached::Nothing)]
                .map(|(name, at)| (name.to_owned(), lane(at)))
                .into(),
            read_until: Some(1),
        };
        let shard = |id: &str, parent: Option<&str>, closed| ListedShard {
            id: id.to_owned(),
            parent: parent.map(str::to_owned),
            first: "1".parse().unwrap(),
            closed,
        };
        let listing = [
            shard("closed", None, true),
            shard("open", None, false),
            shard("parent", None, false),
            shard("child", Some("parent"), false),
        ];
        let followed = follow(lanes.clone(), &listing, 9);
        let at = |name: &str| followed.lanes[name].at;
        assert_eq!([at("gone"), at("closed"), at("parent")], [Reached::End; 3]);
        assert_eq!((at("open"), at("child"), followed.read_until), (offset, Reached::Nothing, Some(9)));
        assert!(followed.cover(&lanes), "nothing that was read is forgotten");
        assert!(!is_unfinished(&followed));
    }
}
