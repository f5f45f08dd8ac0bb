//! Up to when everything that was written to a table has been read: what a cut says as `read_until` (protocol C9). Pure: no
//! I/O, no clock of its own.
//!
//! An open shard vouches for the time until it was last seen at its tip. One that has ended goes on vouching for the time
//! in which it was still open, and for no later one: what follows it is in children that no listing need name yet. Nobody
//! says how many they are, and a listing may name one of two. So they count as known only once several listings in a row,
//! all begun behind the end, have named the same ones, as at a table's first start (`Shared::list_settled`).
//!
//! A listing that lags for longer than that can still prove a claim wrong; no reader of a stream can exclude it.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::time::Duration;

use lakehouse_core::lanes::{Reached, TableLanes};

use crate::lineage::ListedShard;
use crate::reader::SETTLED;

/// Pages without records, in a row, after which an open shard counts as read to its tip: one says nothing.
const EMPTY_AT_TIP: usize = 3;

/// The last pages of one shard, all without records.
#[derive(Debug, Default)]
pub(crate) struct EmptyPages {
    /// When they were asked for, in milliseconds since 1970.
    asked: VecDeque<i64>,
}

impl EmptyPages {
    pub(crate) fn clear(&mut self) {
        self.asked.clear();
    }

    /// Takes in one more, behind which the shard goes on; and says at which moment the shard was surely read to its tip.
    ///
    /// Each of them may have left something out, but not all of them the same. What all would have had to leave out is
    /// what was there when the first was asked for: of what came later, fewer pages tell.
    pub(crate) fn another(&mut self, asked: i64) -> Option<i64> {
        self.asked.push_back(asked);
        if self.asked.len() > EMPTY_AT_TIP {
            self.asked.pop_front();
        }
        self.asked.front().filter(|_| self.asked.len() == EMPTY_AT_TIP).copied()
    }
}

/// What the shards of one table vouch for.
#[derive(Debug)]
pub(crate) struct Tips {
    /// Milliseconds since 1970 at which an open shard was last known to be read to its tip.
    open: HashMap<String, i64>,
    /// Shards that have ended and whose children are not surely known.
    ended: BTreeMap<String, Ended>,
    /// Between two listings that count: what a moment lacks, it lacks in each listing of that moment.
    apart: Duration,
}

#[derive(Debug, Default)]
struct Ended {
    tip: Option<i64>,
    /// When its end was read, on the clock of the listings. `None`: before the start.
    read: Option<Duration>,
    named: Named,
    /// Listings in a row that have named that.
    alike: u32,
    /// When the last of them that counted was begun.
    counted: Duration,
}

/// What a listing names of a shard.
#[derive(Debug, Default, PartialEq, Eq)]
struct Named {
    itself: bool,
    children: BTreeSet<String>,
}

impl Ended {
    /// A shard always has children. Where neither they nor it are listed any more, all of that was a day ago or longer, or
    /// it is an export; of one that was read just now it is the listing that lacks them.
    fn is_settled(&self) -> bool {
        let gone = self.read.is_none() && !self.named.itself;
        self.alike >= SETTLED && (gone || !self.named.children.is_empty())
    }
}

impl Tips {
    /// At lanes that somebody else has read: when those that have ended did so is not known.
    pub(crate) fn resume(lanes: &TableLanes, apart: Duration) -> Self {
        let ended = lanes.lanes.iter().filter(|(_, lane)| lane.at == Reached::End);
        let ended = ended.map(|(id, _)| (id.clone(), Ended::default())).collect();
        Self { open: HashMap::new(), ended, apart }
    }

    /// An open shard is read to its tip as of that moment.
    pub(crate) fn seen(&mut self, shard: &str, at: i64) {
        match self.open.get_mut(shard) {
            Some(tip) => *tip = at.max(*tip),
            None => {
                self.open.insert(shard.to_owned(), at);
            }
        }
    }

    /// A shard has been read to its end by `now`.
    pub(crate) fn end(&mut self, shard: &str, now: Duration) {
        let tip = self.open.remove(shard);
        self.ended.insert(shard.to_owned(), Ended { tip, read: Some(now), ..Ended::default() });
    }

    /// Takes in one whole listing, begun at `begun`.
    pub(crate) fn listed(&mut self, listing: &[ListedShard], begun: Duration) {
        let apart = self.apart;
        let mut named: HashMap<&str, Named> = HashMap::new();
        for shard in listing {
            named.entry(&shard.id).or_default().itself = true;
            if let Some(parent) = &shard.parent {
                named.entry(parent).or_default().children.insert(shard.id.clone());
            }
        }
        self.ended.retain(|id, ended| {
            if ended.read.is_some_and(|read| begun < read) {
                return true;
            }
            let named = named.remove(id.as_str()).unwrap_or_default();
            if ended.alike == 0 || named != ended.named {
                (ended.named, ended.alike, ended.counted) = (named, 1, begun);
            } else if begun >= ended.counted + apart {
                (ended.alike, ended.counted) = (ended.alike + 1, begun);
            }
            !ended.is_settled()
        });
    }

    /// Milliseconds since 1970 up to which everything has been read, where `open` are the shards that are followed.
    pub(crate) fn read_until<'a>(&self, open: impl Iterator<Item = &'a str>) -> Option<i64> {
        let ended = self.ended.values().map(|ended| ended.tip);
        let open = open.map(|shard| self.open.get(shard).copied());
        let mut until = None;
        for tip in ended.chain(open) {
            let tip = tip?;
            until = Some(until.map_or(tip, |until: i64| until.min(tip)));
        }
        until
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn listing(texts: &[&str]) -> Vec<ListedShard> {
        let shard = |text: &&str| {
            let (id, parent) = text.split_once('<').map_or((*text, None), |(id, parent)| (id, Some(parent.to_owned())));
            ListedShard { id: id.to_owned(), parent, first: "100".parse().unwrap(), closed: false }
        };
        texts.iter().map(shard).collect()
    }

    fn tips() -> Tips {
        Tips::resume(&TableLanes::default(), SECOND)
    }

    #[test]
    fn only_what_was_there_before_the_first_of_several_empty_pages_is_surely_read() {
        let mut pages = EmptyPages::default();
        assert_eq!([1, 2, 3, 4].map(|asked| pages.another(asked)), [None, None, Some(1), Some(2)]);
        pages.clear();
        assert_eq!([5, 6, 7].map(|asked| pages.another(asked)), [None, None, Some(5)]);
    }

    #[test]
    fn the_shard_that_is_furthest_behind_decides() {
        let mut tips = tips();
        assert_eq!(tips.read_until([].into_iter()), None);
        tips.seen("a", 5);
        assert_eq!(tips.read_until(["a", "b"].into_iter()), None, "b has not been seen at its tip");
        tips.seen("b", 9);
        tips.seen("a", 4);
        assert_eq!(tips.read_until(["a", "b"].into_iter()), Some(5));
    }

    #[test]
    fn a_shard_that_has_ended_holds_the_claim_until_three_listings_behind_it_name_the_same_children() {
        let mut tips = tips();
        tips.seen("a", 5);
        tips.seen("b", 50);
        tips.end("a", SECOND * 10);
        let until = |tips: &Tips| tips.read_until(["b", "c", "d"].into_iter());
        tips.seen("c", 60);
        tips.seen("d", 60);
        for (begun, listed, known) in [
            (9, &["a", "b", "c<a"][..], Some(5)),
            (20, &["a", "b"], Some(5)),
            (30, &["a", "b"], Some(5)),
            (40, &["a", "b"], Some(5)),
            (50, &["a", "b", "c<a"], Some(5)),
            (60, &["a", "b", "c<a"], Some(5)),
            (70, &["a", "b", "c<a", "d<a"], Some(5)),
            (80, &["a", "b", "c<a"], Some(5)),
            (90, &["a", "b", "c<a", "d<a"], Some(5)),
            (91, &["a", "b", "c<a", "d<a"], Some(5)),
            (92, &["a", "b", "c<a", "d<a"], Some(50)),
        ] {
            tips.listed(&listing(listed), SECOND * begun);
            assert_eq!(until(&tips), known, "at {begun}");
        }
    }

    #[test]
    fn listings_of_one_moment_count_as_one() {
        let mut tips = tips();
        tips.seen("a", 5);
        tips.end("a", SECOND);
        tips.seen("b", 50);
        for (begun, known) in [(1_000, 5), (1_300, 5), (1_900, 5), (2_000, 5), (2_900, 5), (3_000, 50)] {
            tips.listed(&listing(&["a", "b<a"]), Duration::from_millis(begun));
            assert_eq!(tips.read_until(["b"].into_iter()), Some(known), "at {begun}");
        }
    }

    #[test]
    fn what_ended_before_the_start_may_have_done_so_just_now() {
        let lane = |at| lakehouse_core::lanes::Lane { parent: None, at };
        let lanes = [("a", Reached::End), ("export/1", Reached::End), ("b", Reached::Nothing)];
        let lanes = lanes.map(|(id, at)| (id.to_owned(), lane(at)));
        let lanes = TableLanes { lanes: lanes.into_iter().collect(), ..TableLanes::default() };
        let mut tips = Tips::resume(&lanes, SECOND);
        tips.seen("b", 50);
        for begun in 0..3 {
            assert_eq!(tips.read_until(["b"].into_iter()), None, "{begun} listings");
            tips.listed(&listing(&["a", "b", "c<a"]), SECOND * begun);
        }
        assert_eq!(tips.read_until(["b"].into_iter()), Some(50));
    }
}
