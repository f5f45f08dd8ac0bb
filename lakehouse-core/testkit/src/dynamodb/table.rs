//! A table: its items, how they change, how they are read. Each change that the stream shall have comes out as a
//! [`Change`].

use std::collections::{BTreeMap, VecDeque};
use std::ops::Bound;
use std::sync::Arc;

use serde_json::{Value, json};

use super::item::{self, Item, ItemKey, KeySchema, Stored};
use super::refusal::Refusal;

/// Bytes on a page of a scan, and bytes of a read unit.
const LARGEST_PAGE: usize = 1 << 20;
const READ_UNIT: usize = 4096;
/// Writes that an eventually consistent read may miss, at most, and for how many milliseconds.
const RECENT: usize = 64;
const SETTLED: u64 = 1_000;

#[derive(Debug)]
pub(super) struct Table {
    pub(super) keys: KeySchema,
    pub(super) items: BTreeMap<ItemKey, Stored>,
    /// ARN of the latest stream, also while it is disabled.
    pub(super) stream: Option<String>,
    pub(super) streaming: bool,
    pub(super) created: u64,
    pub(super) point_in_time_recovery: bool,
    /// Other regions that a global table is in.
    pub(super) replicas: Vec<String>,
    pub(super) read_units: f64,
    /// What stood before the latest writes, oldest first.
    recent: VecDeque<Before>,
}

#[derive(Clone, Debug)]
struct Before {
    key: ItemKey,
    stored: Option<Stored>,
    at: u64,
}

/// One write, checked.
#[derive(Debug)]
pub(super) struct Write {
    pub(super) place: ItemKey,
    keys: Item,
    new: Option<Stored>,
}

/// What a write did.
#[derive(Debug)]
pub(super) struct Change {
    pub(super) hash: u64,
    pub(super) keys: Arc<Item>,
    pub(super) old: Option<Stored>,
    pub(super) new: Option<Stored>,
}

/// What a scan asks for.
#[derive(Debug)]
pub(super) struct Scan {
    pub(super) segment: u64,
    pub(super) segments: u64,
    pub(super) limit: usize,
    pub(super) after: Option<ItemKey>,
    /// So many of the latest writes are not seen.
    pub(super) missed: usize,
    pub(super) consistent: bool,
}

/// What a scan answers with.
#[derive(Debug)]
pub(super) struct Page {
    pub(super) items: Vec<Arc<str>>,
    /// The last key, unless the end was reached.
    pub(super) last: Option<Item>,
    pub(super) read_units: f64,
}

pub(super) fn key_schema(keys: &KeySchema) -> Value {
    let element = |((name, _), role): (&(String, _), _)| json!({"AttributeName": name, "KeyType": role});
    keys.iter().zip(["HASH", "RANGE"]).map(element).collect()
}

impl Table {
    pub(super) fn new(keys: KeySchema, created: u64) -> Self {
        Self {
            keys,
            items: BTreeMap::new(),
            stream: None,
            streaming: false,
            created,
            point_in_time_recovery: true,
            replicas: Vec::new(),
            read_units: 0.0,
            recent: VecDeque::new(),
        }
    }

    pub(super) fn put(&self, item: &Value) -> Result<Write, Refusal> {
        self.put_stored(Stored::new(item)?)
    }

    pub(super) fn put_unchecked(&self, item: &Value) -> Result<Write, Refusal> {
        self.put_stored(Stored::unchecked(item))
    }

    fn put_stored(&self, stored: Stored) -> Result<Write, Refusal> {
        let keys = item::key_of(&self.keys, &stored.item)?;
        Ok(Write { place: item::place_of(&self.keys, &keys)?, keys, new: Some(stored) })
    }

    pub(super) fn delete(&self, key: &Value) -> Result<Write, Refusal> {
        let keys = item::requested_key(&self.keys, key)?;
        Ok(Write { place: item::place_of(&self.keys, &keys)?, keys, new: None })
    }

    /// Carries a write out. One that changes nothing is no change.
    pub(super) fn apply(&mut self, write: Write, now: u64) -> Option<Change> {
        let Write { place, keys, new } = write;
        let old = match &new {
            Some(stored) => self.items.insert(place.clone(), stored.clone()),
            None => self.items.remove(&place),
        };
        if old.as_ref().map(|old| &old.item) == new.as_ref().map(|new| &new.item) {
            return None;
        }
        let hash = place.hash;
        if self.recent.len() == RECENT {
            self.recent.pop_front();
        }
        self.recent.push_back(Before { key: place, stored: old.clone(), at: now });
        Some(Change { hash, keys: Arc::new(keys), old, new })
    }

    pub(super) fn place(&self, key: &Value) -> Result<ItemKey, Refusal> {
        item::place_of(&self.keys, &item::requested_key(&self.keys, key)?)
    }

    pub(super) fn get(&mut self, place: &ItemKey, missed: usize, now: u64) -> Option<Arc<str>> {
        self.as_before(missed, now, |items| items.get(place).map(|stored| Arc::clone(&stored.text)))
    }

    pub(super) fn scan(&mut self, scan: &Scan, now: u64) -> Result<Page, Refusal> {
        let bound = |segment: u64| {
            let hashes = 1u128 << 64;
            u64::try_from(hashes * u128::from(segment) / u128::from(scan.segments)).ok()
        };
        let first = item::first_of(bound(scan.segment).unwrap_or_default());
        let end = bound(scan.segment + 1);
        let inside = |place: &ItemKey| *place >= first && end.is_none_or(|end| place.hash < end);
        let start = match &scan.after {
            Some(after) if !inside(after) => {
                let message = "The provided starting key is outside query boundaries based on provided conditions";
                return Err(Refusal::validation(message));
            }
            Some(after) => Bound::Excluded(after.clone()),
            None => Bound::Included(first.clone()),
        };
        let keys = self.keys.clone();
        let (mut page, bytes) = self.as_before(scan.missed, now, |items| {
            let mut page = Page { items: Vec::new(), last: None, read_units: 0.0 };
            let mut bytes = 0;
            for (place, stored) in items.range((start, Bound::Unbounded)) {
                if !inside(place) {
                    break;
                }
                bytes += stored.size;
                page.items.push(Arc::clone(&stored.text));
                // Also when nothing comes behind: a last key does not promise more.
                if page.items.len() == scan.limit || bytes >= LARGEST_PAGE {
                    page.last = item::key_of(&keys, &stored.item).ok();
                    break;
                }
            }
            (page, bytes)
        });
        let units = u32::try_from(bytes.div_ceil(READ_UNIT).max(1)).expect("a page is small");
        page.read_units = f64::from(units) * if scan.consistent { 1.0 } else { 0.5 };
        self.read_units += page.read_units;
        Ok(page)
    }

    /// Reads the items as they stood so many of the latest writes ago.
    fn as_before<T>(&mut self, missed: usize, now: u64, read: impl FnOnce(&BTreeMap<ItemKey, Stored>) -> T) -> T {
        let fresh = self.recent.iter().rev().take(missed).take_while(|before| before.at + SETTLED > now);
        let undone: Vec<Before> = fresh.cloned().collect();
        let mut redo = Vec::with_capacity(undone.len());
        for before in undone {
            redo.push((set(&mut self.items, &before.key, before.stored), before.key));
        }
        let answer = read(&self.items);
        for (stored, key) in redo.into_iter().rev() {
            set(&mut self.items, &key, stored);
        }
        answer
    }
}

fn set(items: &mut BTreeMap<ItemKey, Stored>, key: &ItemKey, stored: Option<Stored>) -> Option<Stored> {
    match stored {
        Some(stored) => items.insert(key.clone(), stored),
        None => items.remove(key),
    }
}
