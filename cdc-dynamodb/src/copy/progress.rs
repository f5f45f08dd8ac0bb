//! How far a scan has come, as a chunk's commit says it (D6). Pure: no I/O, no clock.
//!
//! Segments are begun in the order of their numbers and few at a time, so that a scan of a million segments is told by the
//! number of the next one and the last keys of those under way: a few kilobytes at most. Keys are data of the table's own.
//! They stand in the mirror's properties, beside its rows, and nowhere else.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use aws_sdk_dynamodb::primitives::Blob;
use aws_sdk_dynamodb::types::AttributeValue;
use aws_smithy_types::base64;
use md5::{Digest, Md5};
use serde::{Deserialize, Serialize};

use super::{Part, RawItem};
use crate::items::ItemSchema;

/// The segments of one scan.
#[derive(Clone, Debug)]
pub(crate) struct Progress {
    mapping: String,
    total: i32,
    /// Number of the segment that is begun next; those before it are read to their ends, or stand in `open`.
    next: i32,
    /// Segments under way, with the last key whose item is in a chunk.
    open: BTreeMap<i32, Option<RawItem>>,
}

/// The same as text.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Text {
    /// What becomes of an item: rows of another mapping are not gone on with.
    mapping: String,
    segments: i32,
    next: i32,
    open: BTreeMap<i32, Option<Key>>,
}

type Key = BTreeMap<String, KeyValue>;

/// The types that a key may have.
#[derive(Serialize, Deserialize)]
enum KeyValue {
    S(String),
    N(String),
    /// In base64.
    B(String),
}

impl Progress {
    pub(crate) fn begin(items: &ItemSchema, total: i32) -> Self {
        Self { mapping: mapping(items), total, next: 0, open: BTreeMap::new() }
    }

    /// From a text; `None` if nothing can go on from it: it was written for another mapping, or by another release.
    pub(crate) fn resume(text: &str, items: &ItemSchema) -> Option<Self> {
        let Text { mapping: written, segments, next, open } = serde_json::from_str(text).ok()?;
        let known = (0..=segments).contains(&next) && open.keys().all(|number| (0..next).contains(number));
        if written != mapping(items) || !known {
            return None;
        }
        let raw = |key: Option<Key>| key.map_or(Some(None), |key| raw(key).map(Some));
        let open = open.into_iter().map(|(number, key)| Some((number, raw(key)?))).collect::<Option<_>>()?;
        Some(Self { mapping: written, total: segments, next, open })
    }

    /// `None` if a key is of a type that keys do not have: such a copy begins anew after a crash.
    pub(crate) fn text(&self) -> Option<String> {
        let text = |key: &Option<RawItem>| key.as_ref().map_or(Some(None), |key| text(key).map(Some));
        let open = self.open.iter().map(|(&number, key)| Some((number, text(key)?))).collect::<Option<_>>()?;
        let text = Text { mapping: self.mapping.clone(), segments: self.total, next: self.next, open };
        Some(serde_json::to_string(&text).expect("segments are plain data"))
    }

    pub(crate) fn part(&self, number: i32, after: Option<RawItem>) -> Part {
        Part { number, total: self.total, after }
    }

    /// Segments that were under way.
    pub(crate) fn open(&self) -> impl Iterator<Item = Part> {
        self.open.iter().map(|(&number, after)| self.part(number, after.clone()))
    }

    pub(crate) fn begin_segment(&mut self) -> Option<Part> {
        let number = self.next;
        if number >= self.total {
            return None;
        }
        self.next += 1;
        self.open.insert(number, None);
        Some(self.part(number, None))
    }

    /// A segment is in chunks up to this key, or to its end.
    pub(crate) fn reached(&mut self, number: i32, after: Option<RawItem>) {
        match after {
            Some(after) => drop(self.open.insert(number, Some(after))),
            None => drop(self.open.remove(&number)),
        }
    }
}

fn text(key: &RawItem) -> Option<Key> {
    let value = |value: &AttributeValue| match value {
        AttributeValue::S(text) => Some(KeyValue::S(text.clone())),
        AttributeValue::N(number) => Some(KeyValue::N(number.clone())),
        AttributeValue::B(bytes) => Some(KeyValue::B(base64::encode(bytes))),
        _ => None,
    };
    key.iter().map(|(name, attribute)| Some((name.clone(), value(attribute)?))).collect()
}

fn raw(key: Key) -> Option<RawItem> {
    let value = |value: KeyValue| match value {
        KeyValue::S(text) => Some(AttributeValue::S(text)),
        KeyValue::N(number) => Some(AttributeValue::N(number)),
        KeyValue::B(text) => base64::decode(text).ok().map(|bytes| AttributeValue::B(Blob::new(bytes))),
    };
    key.into_iter().map(|(name, attribute)| Some((name, value(attribute)?))).collect()
}

/// Names and types of the columns, and which send items to the quarantine, digested.
fn mapping(items: &ItemSchema) -> String {
    let mut hash = Md5::new();
    for column in &items.table().columns {
        for part in [&column.source_name, &column.name, &column.source_type] {
            hash.update((part.len() as u64).to_le_bytes());
            hash.update(part);
        }
    }
    for attribute in items.quarantining() {
        hash.update((attribute.len() as u64).to_le_bytes());
        hash.update(attribute);
    }
    hash.finalize().iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").expect("a string takes all");
        text
    })
}

#[cfg(test)]
mod tests {
    use lakehouse_core::quarantine::QuarantineLimit;
    use lakehouse_core::schema::TableName;

    use super::*;
    use crate::items::{ItemTable, KeyAttribute, KeyType};

    fn items(key: &str) -> ItemSchema {
        let table = ItemTable {
            source: "t".to_owned(),
            mirror: TableName::new("app", "t"),
            key: vec![KeyAttribute { name: key.to_owned(), key_type: KeyType::S }],
            expected_key: None,
            declared: Vec::new(),
            partition: Vec::new(),
            history: false,
            old_images: true,
            quarantine_limit: QuarantineLimit::default(),
        };
        table.schema().unwrap()
    }

    fn key(bytes: &[u8]) -> RawItem {
        RawItem::from([
            ("s".to_owned(), AttributeValue::S("ü\"\u{0}".to_owned())),
            ("n".to_owned(), AttributeValue::N("-1.5E-7".to_owned())),
            ("b".to_owned(), AttributeValue::B(Blob::new(bytes))),
        ])
    }

    #[test]
    fn a_scan_goes_on_where_its_text_says() {
        let mut progress = Progress::begin(&items("id"), 4);
        assert_eq!(
            (0..3).filter_map(|_| progress.begin_segment()).map(|part| part.number).collect::<Vec<_>>(),
            [0, 1, 2]
        );
        progress.reached(1, Some(key(&[0, 255])));
        progress.reached(2, None);
        let mut again = Progress::resume(&progress.text().unwrap(), &items("id")).unwrap();
        let open: Vec<Part> = again.open().collect();
        assert_eq!(open.iter().map(|part| (part.number, part.total)).collect::<Vec<_>>(), [(0, 4), (1, 4)]);
        assert_eq!(open[0].after, None, "it was begun, and nothing of it had landed");
        assert_eq!(open[1].after, Some(key(&[0, 255])));
        assert_eq!(again.begin_segment().unwrap().number, 3);
        assert!(again.begin_segment().is_none());
        (0..4).for_each(|number| again.reached(number, None));
        let done = Progress::resume(&again.text().unwrap(), &items("id")).unwrap();
        assert_eq!((done.open().count(), done.next), (0, 4));
    }

    #[test]
    fn what_cannot_be_gone_on_with_is_not() {
        let text = Progress::begin(&items("id"), 4).text().unwrap();
        assert!(Progress::resume(&text, &items("other")).is_none(), "items become other rows");
        for damaged in ["", "{}", &text.replace("\"next\":0", "\"next\":5"), &text.replacen('{', "{\"x\":1,", 1)] {
            assert!(Progress::resume(damaged, &items("id")).is_none(), "{damaged}");
        }
    }

    #[test]
    fn a_million_segments_take_no_more_than_those_under_way() {
        let mut progress = Progress::begin(&items("id"), 1_000_000);
        (0..999_990).filter_map(|_| progress.begin_segment()).for_each(drop);
        (0..999_926).for_each(|number| progress.reached(number, None));
        let longest = RawItem::from([("id".to_owned(), AttributeValue::S("k".repeat(2_048)))]);
        (999_926..999_990).for_each(|number| progress.reached(number, Some(longest.clone())));
        assert!(progress.text().unwrap().len() < 140_000, "64 workers with the longest keys there are");
    }
}
