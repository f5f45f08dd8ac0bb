//! A stream and its shards: which shard takes which records, how shards follow each other, what of it is listed.

use std::collections::{BTreeMap, HashMap};
use std::ops::Bound;
use std::sync::Arc;

use fastrand::Rng;
use serde_json::{Value, json};

use super::habits::{Habits, happens};
use super::item::{Item, KeySchema};
use super::refusal::Refusal;
use super::sequence;

/// Shards on a page of DescribeStream.
pub(super) const LARGEST_LISTING: usize = 100;
/// How long records live, and closed shards without records, in milliseconds.
pub(super) const LIFE: u64 = 24 * 3_600_000;

/// What a stream's records hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum View {
    KeysOnly,
    NewImage,
    OldImage,
    NewAndOldImages,
}

impl View {
    pub(super) fn text(self) -> &'static str {
        match self {
            View::KeysOnly => "KEYS_ONLY",
            View::NewImage => "NEW_IMAGE",
            View::OldImage => "OLD_IMAGE",
            View::NewAndOldImages => "NEW_AND_OLD_IMAGES",
        }
    }

    pub(super) fn has_new(self) -> bool {
        matches!(self, View::NewImage | View::NewAndOldImages)
    }

    pub(super) fn has_old(self) -> bool {
        matches!(self, View::OldImage | View::NewAndOldImages)
    }
}

/// What a record says happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    Insert,
    Modify,
    Remove,
}

impl Event {
    pub(super) fn text(self) -> &'static str {
        match self {
            Event::Insert => "INSERT",
            Event::Modify => "MODIFY",
            Event::Remove => "REMOVE",
        }
    }
}

/// A record as it lies in its shard.
#[derive(Clone, Debug)]
pub(super) struct Record {
    pub(super) sequence: u128,
    /// Milliseconds since 1970.
    pub(super) at: u64,
    pub(super) size: usize,
    /// As GetRecords sends it.
    pub(super) text: Box<str>,
    pub(super) event: Event,
    pub(super) keys: Arc<Item>,
    pub(super) old: Option<Arc<Item>>,
    pub(super) new: Option<Arc<Item>>,
    pub(super) by_ttl: bool,
}

#[derive(Debug)]
pub(super) struct Shard {
    pub(super) id: String,
    pub(super) parent: Option<usize>,
    /// Hashes of its items, both included.
    low: u64,
    high: u64,
    pub(super) starting: u128,
    pub(super) ending: Option<u128>,
    closed_at: u64,
    /// Place in the listing.
    order: u64,
    /// Missing in the listings until this is 0; each listing takes one off before it looks.
    unlisted: u32,
    /// Shown as open until this is 0, likewise.
    shown_open: u32,
    /// Neither listed nor readable any more.
    pub(super) gone: bool,
    pub(super) records: Vec<Record>,
    /// So many of the records are gone.
    pub(super) trimmed: usize,
    /// Its end comes with its last records.
    pub(super) ends_with_records: bool,
    children: Vec<usize>,
}

#[derive(Debug)]
pub(super) struct Stream {
    pub(super) arn: String,
    pub(super) label: String,
    pub(super) table: String,
    pub(super) keys: KeySchema,
    pub(super) view: View,
    pub(super) created: u64,
    pub(super) disabled_at: Option<u64>,
    /// No number below has been given out for something that follows.
    pub(super) next: u128,
    pub(super) shards: Vec<Shard>,
    by_id: HashMap<String, usize>,
    /// By place in the listing.
    listing: BTreeMap<u64, usize>,
    /// Open shards by their lowest hash.
    open: BTreeMap<u64, usize>,
    /// Shards whose listing is late in one way or the other.
    late: Vec<usize>,
}

impl Stream {
    pub(super) fn new(arn: String, label: String, table: String, keys: KeySchema, view: View, created: u64) -> Self {
        Self {
            arn,
            label,
            table,
            keys,
            view,
            created,
            disabled_at: None,
            next: sequence::FIRST,
            shards: Vec::new(),
            by_id: HashMap::new(),
            listing: BTreeMap::new(),
            open: BTreeMap::new(),
            late: Vec::new(),
        }
    }

    /// The first shards, which have no parents.
    pub(super) fn add_roots(&mut self, count: usize, now: u64, habits: &Habits, rng: &mut Rng) {
        let width = u64::MAX / u64::try_from(count.max(1)).expect("a count of shards");
        for number in 0..count.max(1) {
            let low = if number == 0 { 0 } else { width * number as u64 + 1 };
            let high = if number + 1 == count.max(1) { u64::MAX } else { width * (number as u64 + 1) };
            self.add(None, (low, high), now, habits, rng);
        }
    }

    fn add(&mut self, parent: Option<usize>, (low, high): (u64, u64), now: u64, habits: &Habits, rng: &mut Rng) {
        let number = self.shards.len();
        let id = loop {
            let id = format!("shardId-{now:020}-{:08x}", rng.u32(..));
            if !self.by_id.contains_key(&id) {
                break id;
            }
        };
        // Siblings begin at different numbers, none of which a record has yet.
        let siblings = parent.map_or(number, |parent| self.shards[parent].children.len());
        let order = loop {
            let order = if habits.unordered { rng.u64(..) } else { (number as u64) << 32 };
            if !self.listing.contains_key(&order) {
                break order;
            }
        };
        let late = |rng: &mut Rng, most: u32| if most == 0 || parent.is_none() { 0 } else { rng.u32(0..=most) };
        let mut unlisted = late(rng, habits.listed_late);
        if siblings > 0 {
            unlisted += late(rng, habits.listed_late);
        }
        self.shards.push(Shard {
            id: id.clone(),
            parent,
            low,
            high,
            starting: self.next + siblings as u128,
            ending: None,
            closed_at: 0,
            order,
            unlisted: 0,
            shown_open: 0,
            gone: false,
            records: Vec::new(),
            trimmed: 0,
            ends_with_records: happens(rng, habits.ends_with_records),
            children: Vec::new(),
        });
        self.by_id.insert(id, number);
        self.listing.insert(order, number);
        self.open.insert(low, number);
        if let Some(parent) = parent {
            self.shards[parent].children.push(number);
        }
        self.list_late(number, unlisted);
    }

    pub(super) fn find(&self, id: &str) -> Option<usize> {
        self.by_id.get(id).copied()
    }

    /// The open shard of a hash.
    pub(super) fn shard_of(&self, hash: u64) -> usize {
        *self.open.range(..=hash).next_back().expect("open shards cover all hashes").1
    }

    pub(super) fn open_shards(&self) -> impl Iterator<Item = usize> + '_ {
        self.open.values().copied()
    }

    pub(super) fn open_count(&self) -> usize {
        self.open.len()
    }

    /// The number of the next record of a shard.
    pub(super) fn take_number(&mut self, shard: usize, rng: &mut Rng) -> u128 {
        let number = self.next.max(self.shards[shard].starting);
        self.next = number + rng.u128(1..=1_000_000_000);
        number
    }

    fn close(&mut self, shard: usize, now: u64, habits: &Habits, rng: &mut Rng) {
        let last = self.shards[shard].records.last().map(|record| record.sequence);
        let ending = match last.filter(|_| rng.bool()) {
            Some(last) => last,
            None => self.take_number(shard, rng),
        };
        let shown_open = if habits.closed_late == 0 { 0 } else { rng.u32(0..=habits.closed_late) };
        let shard_state = &mut self.shards[shard];
        shard_state.ending = Some(ending);
        shard_state.closed_at = now;
        self.open.remove(&shard_state.low);
        self.show_open(shard, shown_open);
    }

    /// Closes an open shard in favour of two children, or of one where its range is down to one hash.
    pub(super) fn split(&mut self, shard: usize, now: u64, habits: &Habits, rng: &mut Rng) {
        let (low, high) = (self.shards[shard].low, self.shards[shard].high);
        if low == high {
            return self.roll(shard, now, habits, rng);
        }
        let middle = low + (high - low) / 2;
        self.close(shard, now, habits, rng);
        self.add(Some(shard), (low, middle), now, habits, rng);
        self.add(Some(shard), (middle + 1, high), now, habits, rng);
    }

    /// Closes an open shard in favour of one child.
    pub(super) fn roll(&mut self, shard: usize, now: u64, habits: &Habits, rng: &mut Rng) {
        let range = (self.shards[shard].low, self.shards[shard].high);
        self.close(shard, now, habits, rng);
        self.add(Some(shard), range, now, habits, rng);
    }

    /// Closes everything; there are no children.
    pub(super) fn disable(&mut self, now: u64, habits: &Habits, rng: &mut Rng) {
        for shard in self.open_shards().collect::<Vec<_>>() {
            self.close(shard, now, habits, rng);
        }
        self.disabled_at = Some(now);
    }

    /// Records from before are gone, and shards that were closed before and have none left.
    pub(super) fn trim(&mut self, before: u64) {
        for number in 0..self.shards.len() {
            let shard = &mut self.shards[number];
            while shard.records.get(shard.trimmed).is_some_and(|record| record.at <= before) {
                shard.trimmed += 1;
            }
            if shard.ending.is_some() && shard.closed_at <= before && shard.trimmed == shard.records.len() {
                self.forget(number);
            }
        }
    }

    /// A shard leaves the listing and cannot be read, whatever it holds.
    pub(super) fn forget(&mut self, shard: usize) {
        self.shards[shard].gone = true;
        self.listing.remove(&self.shards[shard].order);
    }

    /// In the next so many listings the shard is missing.
    pub(super) fn list_late(&mut self, shard: usize, listings: u32) {
        self.shards[shard].unlisted = if listings == 0 { 0 } else { listings + 1 };
        self.note_late(shard);
    }

    /// In the next so many listings the shard has no ending number.
    pub(super) fn show_open(&mut self, shard: usize, listings: u32) {
        self.shards[shard].shown_open = if listings == 0 { 0 } else { listings + 1 };
        self.note_late(shard);
    }

    fn note_late(&mut self, shard: usize) {
        let state = &self.shards[shard];
        if (state.unlisted > 0 || state.shown_open > 0) && !self.late.contains(&shard) {
            self.late.push(shard);
        }
    }

    /// One page of the listing; `children_of` asks only for a shard's children.
    pub(super) fn describe(
        &mut self,
        after: Option<&str>,
        limit: usize,
        children_of: Option<&str>,
    ) -> Result<Value, Refusal> {
        if after.is_none() {
            self.a_listing_begins();
        }
        let find = |id: &str| self.find(id).ok_or_else(|| Refusal::no_shard(id));
        let start = match after {
            Some(id) => Bound::Excluded(self.shards[find(id)?].order),
            None => Bound::Unbounded,
        };
        let parent = children_of.map(find).transpose()?;
        let shown = |number: &usize| !self.shards[*number].gone && self.shards[*number].unlisted == 0;
        let mut page: Vec<usize> = match parent {
            Some(parent) => {
                let order = |child: &usize| self.shards[*child].order;
                let behind = |child: &usize| !matches!(start, Bound::Excluded(start) if order(child) <= start);
                let mut children = self.shards[parent].children.clone();
                children.sort_by_key(order);
                children.into_iter().filter(behind).filter(shown).take(limit + 1).collect()
            }
            None => {
                let places = self.listing.range((start, Bound::Unbounded)).map(|(_, number)| *number);
                places.filter(shown).take(limit + 1).collect()
            }
        };
        let more = page.len() > limit;
        page.truncate(limit);
        let last = page.last().filter(|_| more).map(|number| self.shards[*number].id.clone());
        let mut description = json!({
            "StreamArn": self.arn, "StreamLabel": self.label, "StreamViewType": self.view.text(),
            "StreamStatus": if self.disabled_at.is_some() { "DISABLED" } else { "ENABLED" },
            "TableName": self.table, "CreationRequestDateTime": super::seconds(self.created),
            "KeySchema": super::table::key_schema(&self.keys),
            "Shards": page.iter().map(|number| self.show(*number)).collect::<Vec<_>>(),
        });
        if let Some(last) = last {
            description["LastEvaluatedShardId"] = json!(last);
        }
        Ok(json!({"StreamDescription": description}))
    }

    fn show(&self, number: usize) -> Value {
        let shard = &self.shards[number];
        let mut range = json!({"StartingSequenceNumber": sequence::text(shard.starting)});
        if let Some(ending) = shard.ending.filter(|_| shard.shown_open == 0) {
            range["EndingSequenceNumber"] = json!(sequence::text(ending));
        }
        let mut shown = json!({"ShardId": shard.id, "SequenceNumberRange": range});
        // Also of a parent that is not listed any more.
        if let Some(parent) = shard.parent {
            shown["ParentShardId"] = json!(self.shards[parent].id);
        }
        shown
    }

    /// What is late comes one listing nearer.
    fn a_listing_begins(&mut self) {
        let shards = &mut self.shards;
        self.late.retain(|number| {
            let shard = &mut shards[*number];
            shard.unlisted = shard.unlisted.saturating_sub(1);
            shard.shown_open = shard.shown_open.saturating_sub(1);
            shard.unlisted > 0 || shard.shown_open > 0
        });
    }
}

impl Shard {
    /// Whether something at or behind a number has been trimmed.
    pub(super) fn lost_from(&self, number: u128) -> bool {
        self.last_trimmed().is_some_and(|last| last >= number)
    }

    pub(super) fn last_trimmed(&self) -> Option<u128> {
        self.trimmed.checked_sub(1).map(|last| self.records[last].sequence)
    }

    /// Up to how many bytes and records a page from `number` on holds; at least one record if there is any.
    pub(super) fn page(&self, number: u128, most_records: usize, most_bytes: usize) -> &[Record] {
        let from = self.records.partition_point(|record| record.sequence < number).max(self.trimmed);
        let mut bytes = 0;
        let fits = |record: &&Record| {
            bytes += record.size;
            bytes <= most_bytes
        };
        let count = self.records[from..].iter().take(most_records).take_while(fits).count();
        let count = count.max(usize::from(from < self.records.len()));
        &self.records[from..from + count]
    }

    /// Whether nothing will ever come at or behind a number.
    pub(super) fn ends_before(&self, number: u128) -> bool {
        self.ending.is_some() && self.records.last().is_none_or(|record| record.sequence < number)
    }
}
