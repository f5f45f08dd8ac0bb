//! The shards of one table's stream: which are known, how far they have been read, which may be read now. Pure: no I/O,
//! no clock of its own.
//!
//! A listing is neither ordered nor complete: a shard appears late, its parent still looks open, one that is gone was only
//! left out. So nothing is concluded from one listing that the next could take back: what looks like a loss is a loss only
//! once it has lasted as long as a listing may lag.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use lakehouse_core::lanes::{Lane, LaneOffset, Reached, TableLanes};
use lakehouse_core::planted::{Bug, Planted};

/// A shard as the service lists it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ListedShard {
    pub id: String,
    pub parent: Option<String>,
    /// Its first sequence number.
    pub first: LaneOffset,
    /// It has ended, as far as the listing knows.
    pub closed: bool,
}

/// Records that the service no longer has, or may not have. What was lost cannot be known.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Gap {
    #[error("shard {shard} is gone and had not been read to its end; it was read up to {reached}")]
    Lost { shard: String, reached: String },
    #[error("shard {shard} goes on from a shard that was never seen; whether changes were lost cannot be known")]
    Orphan { shard: String },
}

/// Where to begin to read a shard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Start {
    /// At its first sequence number, never at the trim horizon: that would begin silently behind what was trimmed (D26).
    At(LaneOffset),
    After(LaneOffset),
    /// The same where an export has brought what is trimmed behind it: if that is so, at what is left of it.
    AfterIfKept(LaneOffset),
    /// At what is left of it: only where nothing that is gone was still to be read.
    Horizon,
}

#[derive(Debug)]
pub(crate) struct Lineage {
    lanes: TableLanes,
    /// First sequence numbers of shards of which nothing has been read.
    firsts: BTreeMap<String, LaneOffset>,
    /// Since when something has looked like a loss, by shard.
    doubts: BTreeMap<String, Duration>,
    /// How long a listing may lag.
    lag: Duration,
    /// Being read by somebody.
    taken: BTreeSet<String>,
    planted: Planted,
    /// What is trimmed of them an export has brought.
    bridged: BTreeSet<String>,
    /// Shards whose end no cut may hold yet: the number of the first boundary that says it.
    ended: BTreeMap<String, u64>,
}

impl Lineage {
    /// At the first start of a table (D4): everything in shards that have ended is older than the copy that follows; the
    /// others are read from where they begin; so up to `now` (milliseconds since 1970) nothing is missed. A shard that has a child has ended, whatever the listing says of it: read
    /// beside a child that is not, its old changes would come behind newer ones.
    pub(crate) fn begin(log: &str, listing: &[ListedShard], now: i64, lag: Duration) -> Self {
        let parents: BTreeSet<&String> = listing.iter().filter_map(|shard| shard.parent.as_ref()).collect();
        let lane = |shard: &ListedShard| {
            let at = if shard.closed || parents.contains(&shard.id) { Reached::End } else { Reached::Nothing };
            (shard.id.clone(), Lane { parent: shard.parent.clone(), at })
        };
        let lanes = listing.iter().map(lane).collect();
        let mut begun = Self::resume(TableLanes { log: log.to_owned(), lanes, read_until: Some(now) }, lag);
        begun.note_firsts(listing);
        begun
    }

    /// From what a cut or a table holds.
    pub(crate) fn resume(lanes: TableLanes, lag: Duration) -> Self {
        let (firsts, doubts, taken) = (BTreeMap::new(), BTreeMap::new(), BTreeSet::new());
        let (planted, bridged, ended) = (Planted::none(), BTreeSet::new(), BTreeMap::new());
        Self { lanes, firsts, doubts, lag, taken, planted, bridged, ended }
    }

    /// Of these lanes the cut holds only `durable`; the boundary of this number is the first one behind all of them.
    pub(crate) fn ahead_of(mut self, durable: &TableLanes, boundary: u64) -> Self {
        let ended = |lane: Option<&Lane>| lane.is_some_and(|lane| lane.at == Reached::End);
        let ahead = self.lanes.lanes.iter().filter(|(id, lane)| ended(Some(lane)) && !ended(durable.lanes.get(*id)));
        self.ended = ahead.map(|(id, _)| (id.clone(), boundary)).collect();
        self
    }

    /// With a deliberate fault, for tests.
    pub(crate) fn with(self, planted: Planted) -> Self {
        Self { planted, ..self }
    }

    /// Behind a gap that exports have closed, at the boundary of this number.
    pub(crate) fn bridge(&mut self, lanes: TableLanes, listing: &[ListedShard], boundary: u64) {
        let bridged = lanes.lanes.keys().cloned().collect();
        let mut resumed = Self { bridged, ..Self::resume(lanes, self.lag).ahead_of(&self.lanes, boundary) };
        resumed.ended.append(&mut self.ended);
        resumed.note_firsts(listing);
        *self = resumed.with(self.planted);
    }

    /// A lane that no listing knows: an export.
    pub(crate) fn begin_lane(&mut self, name: &str) {
        self.lanes.lanes.entry(name.to_owned()).or_default();
    }

    pub(crate) fn lanes(&self) -> &TableLanes {
        &self.lanes
    }

    /// Takes in one whole listing, read at `now` (any clock that does not go back); a cut holds the boundary of the number
    /// `durable`. True if the lanes have changed.
    pub(crate) fn observe(&mut self, listing: &[ListedShard], now: Duration, durable: u64) -> Result<bool, Gap> {
        self.note_firsts(listing);
        let listed: BTreeSet<&str> = listing.iter().map(|shard| shard.id.as_str()).collect();
        let registered = self.register(listing);
        self.ended.retain(|_, boundary| *boundary > durable);
        let forgotten = self.forget(&listed);
        self.check(listing, &listed, now)?;
        Ok(registered || forgotten)
    }

    fn note_firsts(&mut self, listing: &[ListedShard]) {
        self.firsts.extend(listing.iter().map(|shard| (shard.id.clone(), shard.first)));
    }

    /// Shards that are new, parents before children (D14).
    fn register(&mut self, listing: &[ListedShard]) -> bool {
        let mut any = false;
        loop {
            let has_child = self.parents();
            let known = |shard: &&ListedShard| {
                !self.lanes.lanes.contains_key(&shard.id)
                    && shard.parent.as_ref().is_some_and(|parent| self.lanes.lanes.contains_key(parent))
                    && !has_child.contains(&shard.id)
            };
            let new: Vec<&ListedShard> = listing.iter().filter(known).collect();
            if new.is_empty() {
                return any;
            }
            any = true;
            for shard in new {
                let lane = Lane { parent: shard.parent.clone(), at: Reached::Nothing };
                self.lanes.lanes.insert(shard.id.clone(), lane);
            }
        }
    }

    /// Shards whose child is here. One that is not here itself is old: it was read and forgotten, or it had ended before the
    /// first start, whose listing lacked it. Its changes must not come behind its child's.
    fn parents(&self) -> BTreeSet<String> {
        self.lanes.lanes.values().filter_map(|lane| lane.parent.clone()).collect()
    }

    /// Shards that have ended, are no longer listed and have handed on to their children; the eldest first, so that what is
    /// missing among the lanes is always old (D19). And not before a cut says that it has ended: until then a start may say
    /// its changes again, and a table that stands ahead knows by its lane that it has them (protocol A2).
    fn forget(&mut self, listed: &BTreeSet<&str>) -> bool {
        let mut any = false;
        loop {
            let (lanes, has_child) = (&self.lanes.lanes, self.parents());
            let old = lanes.iter().filter(|(id, lane)| {
                let eldest = lane.parent.as_ref().is_none_or(|parent| !lanes.contains_key(parent));
                let ended = lane.at == Reached::End && !self.ended.contains_key(*id);
                ended && eldest && !listed.contains(id.as_str()) && has_child.contains(*id)
            });
            let old: Vec<String> = old.map(|(id, _)| id.clone()).collect();
            if old.is_empty() {
                return any;
            }
            any = true;
            for id in old {
                self.lanes.lanes.remove(&id);
                self.firsts.remove(&id);
            }
        }
    }

    /// What looks like a loss, and whether it has lasted long enough to be one (D14, D17).
    fn check(&mut self, listing: &[ListedShard], listed: &BTreeSet<&str>, now: Duration) -> Result<(), Gap> {
        let (lanes, has_child) = (&self.lanes.lanes, self.parents());
        let lost = lanes.iter().filter(|(id, lane)| lane.at != Reached::End && !listed.contains(id.as_str()));
        let lost = lost.map(|(id, lane)| {
            let reached = match lane.at {
                Reached::Offset(offset) => offset.to_string(),
                Reached::Nothing | Reached::End => "nothing".to_owned(),
            };
            (id.clone(), Gap::Lost { shard: id.clone(), reached })
        });
        let orphans = listing.iter().filter(|shard| {
            let waits = shard.parent.as_ref().is_some_and(|parent| listed.contains(parent.as_str()));
            !lanes.contains_key(&shard.id) && !waits && !has_child.contains(&shard.id)
        });
        let orphans = orphans.map(|shard| (shard.id.clone(), Gap::Orphan { shard: shard.id.clone() }));
        let found: BTreeMap<String, Gap> = lost.chain(orphans).collect();
        self.doubts.retain(|id, _| found.contains_key(id));
        for (id, gap) in found {
            let since = *self.doubts.entry(id).or_insert(now);
            if now.saturating_sub(since) >= self.lag {
                return Err(gap);
            }
        }
        Ok(())
    }

    /// Something is listed whose parent is not known, or was not when it was last listed.
    pub(crate) fn has_orphans(&self) -> bool {
        self.doubts.keys().any(|id| !self.lanes.lanes.contains_key(id))
    }

    /// Everything that is listed has been read to its end: of a stream that is disabled nothing follows.
    pub(crate) fn is_done(&self, listing: &[ListedShard]) -> bool {
        let (lanes, has_child) = (&self.lanes.lanes, self.parents());
        lanes.values().all(|lane| lane.at == Reached::End)
            && listing.iter().all(|shard| lanes.contains_key(&shard.id) || has_child.contains(&shard.id))
    }

    /// Shards that may be read and that nobody reads: those whose parent has been read to its end (D13). Each is handed out
    /// once.
    pub(crate) fn take_readable(&mut self) -> Vec<(String, Start)> {
        let lanes = &self.lanes.lanes;
        let ready = lanes.iter().filter(|(id, lane)| {
            let parent = lane.parent.as_ref().and_then(|parent| lanes.get(parent));
            let due = parent.is_none_or(|parent| parent.at == Reached::End);
            !self.taken.contains(*id) && (due || self.planted.is(Bug::ChildBeforeParent))
        });
        let start = |(id, lane): (&String, &Lane)| {
            let start = match lane.at {
                Reached::End => return None,
                Reached::Offset(offset) if self.bridged.contains(id) => Start::AfterIfKept(offset),
                Reached::Offset(offset) => Start::After(offset),
                Reached::Nothing => Start::At(*self.firsts.get(id)?),
            };
            Some((id.clone(), start))
        };
        let ready: Vec<(String, Start)> = ready.filter_map(start).collect();
        self.taken.extend(ready.iter().map(|(id, _)| id.clone()));
        ready
    }

    pub(crate) fn advance(&mut self, shard: &str, offset: LaneOffset) {
        if let Some(lane) = self.lanes.lanes.get_mut(shard) {
            lane.at = lane.at.max(Reached::Offset(offset));
        }
    }

    /// The shard has been read to its end: to the answer that says that nothing follows, never to an empty page or to an
    /// error (D16). The boundary of this number is the first that says so.
    pub(crate) fn end(&mut self, shard: &str, boundary: u64) {
        if let Some(lane) = self.lanes.lanes.get_mut(shard) {
            lane.at = Reached::End;
            self.ended.insert(shard.to_owned(), boundary);
        }
        self.taken.remove(shard);
    }

    /// Shards that are being followed.
    pub(crate) fn open(&self) -> impl Iterator<Item = &str> {
        self.lanes.lanes.iter().filter(|(_, lane)| lane.at != Reached::End).map(|(id, _)| id.as_str())
    }

    pub(crate) fn seen_at_tip(&mut self, until: i64) {
        self.lanes.read_until = self.lanes.read_until.max(Some(until));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn number(text: &str) -> LaneOffset {
        text.parse().unwrap()
    }

    /// `child<parent`, with `.` behind it when it is closed.
    fn listing(texts: &[&str]) -> Vec<ListedShard> {
        let shard = |text: &&str| {
            let closed = text.ends_with('.');
            let line = text.trim_end_matches('.');
            let (id, parent) = line.split_once('<').map_or((line, None), |(id, parent)| (id, Some(parent.to_owned())));
            ListedShard { id: id.to_owned(), parent, first: number("100"), closed }
        };
        texts.iter().map(shard).collect()
    }

    fn ids(readable: Vec<(String, Start)>) -> Vec<String> {
        readable.into_iter().map(|(id, _)| id).collect()
    }

    fn begun(texts: &[&str]) -> Lineage {
        Lineage::begin("arn", &listing(texts), 0, SECOND * 60)
    }

    #[test]
    fn the_first_start_reads_open_shards_from_where_they_begin_and_no_other() {
        let mut lineage = begun(&["a.", "b<a", "c", "d", "e<d"]);
        assert_eq!(lineage.take_readable(), ["b", "c", "e"].map(|id| (id.to_owned(), Start::At(number("100")))));
        assert_eq!(lineage.take_readable(), [], "each is handed out once");
    }

    #[test]
    fn it_is_done_when_all_that_is_listed_is_read_and_not_before() {
        let mut lineage = begun(&["a.", "b<a"]);
        assert!(!lineage.is_done(&listing(&["a.", "b<a."])));
        lineage.end("b", 1);
        assert!(lineage.is_done(&listing(&["a.", "b<a."])));
        assert!(!lineage.is_done(&listing(&["a.", "b<a.", "c<b."])), "a child that is not known yet");
        let mut old = begun(&["c<b"]);
        old.end("c", 1);
        assert!(old.is_done(&listing(&["b.", "c<b."])), "a parent that had ended before the first start");
    }

    #[test]
    fn a_shard_that_the_first_listing_lacked_is_not_read_behind_its_child() {
        let mut lineage = begun(&["a.", "c<b"]);
        assert_eq!(ids(lineage.take_readable()), ["c"]);
        assert_eq!(lineage.observe(&listing(&["a.", "b<a.", "c<b"]), SECOND, 1), Ok(false));
        assert!(lineage.take_readable().is_empty());
    }

    #[test]
    fn a_child_waits_for_its_parents_end_also_when_both_look_open() {
        let mut lineage = begun(&["a"]);
        assert_eq!(ids(lineage.take_readable()), ["a"]);
        lineage.observe(&listing(&["b<a", "a"]), SECOND, 1).unwrap();
        assert!(lineage.take_readable().is_empty());
        lineage.advance("a", number("7"));
        assert!(lineage.take_readable().is_empty());
        lineage.end("a", 1);
        assert_eq!(ids(lineage.take_readable()), ["b"]);
    }

    #[test]
    fn descendants_are_registered_in_whatever_order_they_are_listed() {
        let mut lineage = begun(&["a"]);
        assert_eq!(lineage.observe(&listing(&["d<c", "c<b", "b<a", "a."]), SECOND, 1), Ok(true));
        assert_eq!(lineage.lanes().lanes.len(), 4);
        assert_eq!(lineage.observe(&listing(&["d<c", "c<b", "b<a", "a."]), SECOND, 1), Ok(false));
    }

    #[test]
    fn a_child_whose_parent_is_listed_but_not_known_waits_and_is_no_gap() {
        let mut lineage = begun(&["a"]);
        for minute in 1..5 {
            // c's parent b is listed; b's own parent is not known, so b is in doubt until a listing explains it.
            let result = lineage.observe(&listing(&["a", "c<b", "b<x"]), SECOND * (minute * 20), 1);
            match minute {
                1..=3 => assert_eq!(result, Ok(false)),
                _ => assert_eq!(result, Err(Gap::Orphan { shard: "b".into() })),
            }
        }
    }

    #[test]
    fn a_shard_that_is_left_out_of_a_listing_is_lost_only_when_it_stays_away() {
        let mut lineage = begun(&["a", "b"]);
        lineage.advance("a", number("7"));
        assert_eq!(lineage.observe(&listing(&["b"]), SECOND, 1), Ok(false));
        assert_eq!(lineage.observe(&listing(&["a", "b"]), SECOND * 50, 1), Ok(false));
        assert_eq!(lineage.observe(&listing(&["b"]), SECOND * 70, 1), Ok(false), "the doubt begins anew");
        let gap = lineage.observe(&listing(&["b"]), SECOND * 130, 1).unwrap_err();
        assert_eq!(gap, Gap::Lost { shard: "a".into(), reached: "7".into() });
    }

    #[test]
    fn a_second_child_that_is_listed_late_is_still_read() {
        let mut lineage = begun(&["a"]);
        lineage.end("a", 1);
        lineage.observe(&listing(&["a.", "b<a"]), SECOND, 1).unwrap();
        assert_eq!(ids(lineage.take_readable()), ["b"]);
        lineage.observe(&listing(&["a.", "b<a", "c<a"]), SECOND * 30, 1).unwrap();
        assert_eq!(ids(lineage.take_readable()), ["c"]);
    }

    #[test]
    fn a_shard_is_forgotten_only_when_it_has_ended_left_the_listing_and_has_children_here() {
        let mut lineage = begun(&["a"]);
        lineage.observe(&listing(&["a.", "b<a"]), SECOND, 1).unwrap();
        lineage.end("a", 1);
        lineage.observe(&listing(&["a.", "b<a"]), SECOND, 1).unwrap();
        assert!(lineage.lanes().lanes.contains_key("a"), "it is listed");
        assert_eq!(lineage.observe(&listing(&["b<a"]), SECOND, 1), Ok(true));
        assert!(!lineage.lanes().lanes.contains_key("a"));
        // Listed once more, it is not taken for a new one.
        assert_eq!(lineage.observe(&listing(&["a.", "b<a"]), SECOND * 200, 1), Ok(false));
        assert_eq!(lineage.observe(&listing(&["a.", "b<a"]), SECOND * 400, 1), Ok(false));
        // The youngest of a line never goes, however long it has ended.
        lineage.end("b", 1);
        assert_eq!(lineage.observe(&[], SECOND * 500, 1), Ok(false));
        assert!(lineage.lanes().lanes.contains_key("b"));
    }

    #[test]
    fn a_shard_is_not_forgotten_before_a_cut_says_that_it_has_ended() {
        let mut lineage = begun(&["a"]);
        lineage.observe(&listing(&["a.", "b<a"]), SECOND, 6).unwrap();
        lineage.end("a", 7);
        assert_eq!(lineage.observe(&listing(&["b<a"]), SECOND, 6), Ok(false));
        assert!(lineage.lanes().lanes.contains_key("a"), "its changes may be said again");
        assert_eq!(lineage.observe(&listing(&["b<a"]), SECOND, 7), Ok(true));
        assert!(!lineage.lanes().lanes.contains_key("a"));
    }

    #[test]
    fn what_ended_between_the_cut_and_where_reading_goes_on_is_not_forgotten_either() {
        let mut before = begun(&["a", "c"]);
        before.end("c", 1);
        let cut = before.lanes().clone();
        before.observe(&listing(&["a.", "b<a", "c.", "d<c"]), SECOND, 1).unwrap();
        before.end("a", 1);
        let mut lineage = Lineage::resume(before.lanes().clone(), SECOND * 60).ahead_of(&cut, 9);
        assert_eq!(lineage.observe(&listing(&["b<a", "d<c"]), SECOND, 8), Ok(true));
        assert_eq!(lineage.lanes().lanes.keys().collect::<Vec<_>>(), ["a", "b", "d"], "c had ended in the cut");
        assert_eq!(lineage.observe(&listing(&["b<a", "d<c"]), SECOND, 9), Ok(true));
        assert_eq!(lineage.lanes().lanes.keys().collect::<Vec<_>>(), ["b", "d"]);
    }

    #[test]
    fn a_line_is_forgotten_from_its_eldest_on() {
        let mut lineage = begun(&["a"]);
        lineage.observe(&listing(&["a.", "b<a.", "c<b"]), SECOND, 1).unwrap();
        ["a", "b"].iter().for_each(|shard| lineage.end(shard, 1));
        assert_eq!(lineage.observe(&listing(&["a.", "c<b"]), SECOND, 1), Ok(false), "b has left, its parent has not");
        assert_eq!(lineage.observe(&listing(&["c<b"]), SECOND, 1), Ok(true));
        assert_eq!(lineage.open().collect::<Vec<_>>(), ["c"]);
        assert_eq!(lineage.lanes().lanes.len(), 1);
    }

    #[test]
    fn what_is_resumed_goes_on_behind_the_last_record() {
        let mut lineage = begun(&["a"]);
        lineage.take_readable();
        lineage.advance("a", number("7"));
        lineage.advance("a", number("5"));
        let mut again = Lineage::resume(lineage.lanes().clone(), SECOND * 60);
        assert_eq!(again.take_readable(), [("a".into(), Start::After(number("7")))]);
    }
}
