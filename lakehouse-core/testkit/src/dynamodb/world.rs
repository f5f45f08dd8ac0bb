//! Everything that the service knows: tables, streams, the clock, and what goes wrong.

use std::collections::BTreeMap;
use std::sync::Arc;

use fastrand::Rng;

use super::calls::{Calls, Operation};
use super::exports::Exports;
use super::habits::{Habits, happens};
use super::item::{KeySchema, Stored};
use super::refusal::Refusal;
use super::stream::{Event, LIFE, Record, Stream, View};
use super::table::{Change, Table, Write};
use super::{seconds, sequence};

/// The clock's first moment: 2026-01-01.
const BEGINNING: u64 = 1_767_225_600_000;

#[derive(Debug)]
pub(super) struct World {
    pub(super) habits: Habits,
    /// Decides about what writes bring along, so that the same writes make the same stream.
    pub(super) writes: Rng,
    /// Decides about answers, in the order of calls.
    pub(super) answers: Rng,
    /// Milliseconds since 1970.
    pub(super) now: u64,
    pub(super) tables: BTreeMap<String, Table>,
    pub(super) streams: BTreeMap<String, Stream>,
    pub(super) calls: Calls,
    pub(super) chains: u64,
    pub(super) exports: Exports,
    events: u64,
}

/// Who wrote.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cause {
    User,
    TimeToLive,
}

impl World {
    pub(super) fn new(habits: Habits, seed: u64) -> Self {
        Self {
            habits,
            writes: Rng::with_seed(seed),
            answers: Rng::with_seed(seed ^ 0x5eed),
            now: BEGINNING,
            tables: BTreeMap::new(),
            streams: BTreeMap::new(),
            calls: Calls::default(),
            chains: 0,
            exports: Exports::default(),
            events: 0,
        }
    }

    pub(super) fn create_table(&mut self, name: &str, keys: KeySchema) {
        let table = Table::new(keys, self.now);
        let taken = self.tables.insert(name.to_owned(), table);
        assert!(taken.is_none(), "{name}: the table exists");
    }

    /// Drops the table; its stream can be read for a day.
    pub(super) fn delete_table(&mut self, name: &str) -> Result<(), Refusal> {
        self.disable_stream(name)?;
        self.tables.remove(name);
        Ok(())
    }

    /// The name in a table's name or ARN.
    pub(super) fn table_name(text: &str) -> &str {
        text.split_once(":table/").map_or(text, |(_, rest)| rest.split('/').next().unwrap_or(rest))
    }

    pub(super) fn table(&mut self, name: &str) -> Result<&mut Table, Refusal> {
        let name = Self::table_name(name);
        self.tables.get_mut(name).ok_or_else(|| Refusal::no_table(name))
    }

    pub(super) fn stream(&mut self, arn: &str) -> Result<&mut Stream, Refusal> {
        self.streams.get_mut(arn).ok_or_else(|| Refusal::no_stream(arn))
    }

    /// The latest stream of a table, by the table's name; also of a table that is gone.
    pub(super) fn stream_of(&mut self, table: &str) -> Option<&mut Stream> {
        self.streams.values_mut().filter(|stream| stream.table == table).max_by_key(|stream| stream.created)
    }

    /// What the table's streams have recorded within a time, trimmed or not, in order.
    pub(super) fn recorded(&self, table: &str, time: std::ops::Range<u64>) -> Vec<&Record> {
        let streams = self.streams.values().filter(|stream| stream.table == table);
        let records = streams.flat_map(|stream| &stream.shards).flat_map(|shard| &shard.records);
        let mut records: Vec<&Record> = records.filter(|record| time.contains(&record.at)).collect();
        records.sort_by_key(|record| record.sequence);
        records
    }

    /// A new stream with a new ARN.
    pub(super) fn enable_stream(&mut self, name: &str, view: View, shards: usize) -> Result<String, Refusal> {
        // Two streams of a table never begin in the same millisecond: that is in the ARN.
        self.now += 1;
        let now = self.now;
        let before = self.stream_of(name).map(|stream| stream.next);
        let table = self.table(name)?;
        let label = label(now);
        let arn = format!("{}/stream/{label}", table_arn(name));
        let mut stream = Stream::new(arn.clone(), label, name.to_owned(), table.keys.clone(), view, now);
        (table.stream, table.streaming) = (Some(arn.clone()), true);
        stream.next = before.map_or_else(|| sequence::first(&mut self.writes), |before| before + 1_000);
        stream.add_roots(shards, now, &self.habits, &mut self.writes);
        self.streams.insert(arn.clone(), stream);
        Ok(arn)
    }

    pub(super) fn disable_stream(&mut self, name: &str) -> Result<(), Refusal> {
        let table = self.table(name)?;
        if !std::mem::take(&mut table.streaming) {
            return Ok(());
        }
        let arn = table.stream.clone().expect("a table that streams has a stream");
        let stream = self.streams.get_mut(&arn).expect("it was made with the ARN");
        stream.disable(self.now, &self.habits, &mut self.writes);
        Ok(())
    }

    /// Moves the clock; what is a day old is trimmed.
    pub(super) fn advance(&mut self, milliseconds: u64) {
        self.now += milliseconds;
        let before = self.now - LIFE;
        self.streams.values_mut().for_each(|stream| stream.trim(before));
        self.streams.retain(|_, stream| stream.disabled_at.is_none_or(|disabled| disabled > before));
    }

    pub(super) fn write(&mut self, table: &str, write: Write, cause: Cause) -> Result<Option<Stored>, Refusal> {
        let now = self.now;
        let state = self.table(table)?;
        let Some(change) = state.apply(write, now) else {
            return Ok(None);
        };
        let old = change.old.clone();
        if state.streaming {
            let arn = state.stream.clone().expect("a table that streams has a stream");
            self.record(&arn, change, cause);
        }
        Ok(old)
    }

    /// All or nothing: the writes are checked by now.
    pub(super) fn transact(&mut self, mut writes: Vec<(String, Write)>) -> Result<(), Refusal> {
        let distinct: std::collections::BTreeSet<_> =
            writes.iter().map(|(table, write)| (table, &write.place)).collect();
        if distinct.len() < writes.len() {
            let message = "Transaction request cannot include multiple operations on one item";
            return Err(Refusal::validation(message));
        }
        if self.habits.shuffled_transactions {
            self.writes.shuffle(&mut writes);
        }
        for (table, write) in writes {
            self.write(&table, write, Cause::User)?;
        }
        Ok(())
    }

    fn record(&mut self, arn: &str, change: Change, cause: Cause) {
        self.events += 1;
        let (event_id, now, rng) = (self.events, self.now, &mut self.writes);
        let stream = self.streams.get_mut(arn).expect("it was made with the ARN");
        let shard = stream.shard_of(change.hash);
        let number = stream.take_number(shard, rng);
        let record = record(stream.view, event_id, number, now, change, cause);
        stream.shards[shard].records.push(record);
        let habits = &self.habits;
        if happens(rng, habits.splits) && stream.open_count() < habits.most_open_shards {
            stream.split(shard, now, habits, rng);
        } else if happens(rng, habits.rolls) {
            stream.roll(shard, now, habits, rng);
        }
    }

    /// What stands in the way of a call, before it is looked at.
    pub(super) fn admit(&mut self, operation: Operation) -> Result<(), Refusal> {
        self.calls.count(operation);
        if self.calls.denied.contains(&operation) {
            return Err(Refusal::denied(&operation.action()));
        }
        if let Some(fault) = self.calls.faults.get_mut(&operation).and_then(std::collections::VecDeque::pop_front) {
            return Err(fault.refusal());
        }
        let too_many = self.habits.describe_stream_limit.is_some_and(|limit| self.calls.describes() > limit);
        if operation == Operation::DescribeStream && too_many {
            return Err(Refusal::limit_exceeded());
        }
        if happens(&mut self.answers, self.habits.throttled) {
            return Err(operation.throttled());
        }
        if happens(&mut self.answers, self.habits.internal_errors) {
            return Err(Refusal::internal());
        }
        Ok(())
    }

    /// How many of the latest writes a read misses.
    pub(super) fn missed(&mut self, consistent: bool) -> usize {
        if consistent { 0 } else { self.answers.usize(0..=self.habits.missed_writes) }
    }
}

pub(super) fn table_arn(name: &str) -> String {
    format!("arn:aws:dynamodb:{}:000000000000:table/{name}", super::REGION)
}

/// A stream's label: the time of its making, `2026-01-01T00:00:00.001`.
fn label(milliseconds: u64) -> String {
    let (days, time) = (milliseconds / 86_400_000, milliseconds % 86_400_000);
    let (year, month, day) = civil(days);
    let (hours, minutes) = (time / 3_600_000, time / 60_000 % 60);
    let (seconds, rest) = (time / 1000 % 60, time % 1000);
    format!("{year}-{month:02}-{day:02}T{hours:02}:{minutes:02}:{seconds:02}.{rest:03}")
}

/// Year, month and day of a day since 1970.
fn civil(mut days: u64) -> (u64, usize, u64) {
    let leap = |year: u64| year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    let mut year = 1970;
    while days >= 365 + u64::from(leap(year)) {
        days -= 365 + u64::from(leap(year));
        year += 1;
    }
    let lengths = [31, 28 + u64::from(leap(year)), 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    let mut month = 0;
    while days >= lengths[month] {
        days -= lengths[month];
        month += 1;
    }
    (year, month + 1, days + 1)
}

fn record(view: View, event_id: u64, number: u128, now: u64, change: Change, cause: Cause) -> Record {
    let event = match (&change.old, &change.new) {
        (None, _) => Event::Insert,
        (Some(_), Some(_)) => Event::Modify,
        (Some(_), None) => Event::Remove,
    };
    let keys = serde_json::to_string(&*change.keys).expect("JSON has a text");
    let mut size = keys.len() / 2;
    let mut images = String::new();
    for (name, image, kept) in [("NewImage", &change.new, view.has_new()), ("OldImage", &change.old, view.has_old())] {
        if let (Some(image), true) = (image, kept) {
            size += image.size;
            images.push_str(&format!(r#""{name}":{},"#, image.text));
        }
    }
    let identity = match cause {
        Cause::User => "",
        Cause::TimeToLive => r#","userIdentity":{"Type":"Service","PrincipalId":"dynamodb.amazonaws.com"}"#,
    };
    let text = format!(
        r#"{{"eventID":"{event_id:032x}","eventName":"{}","eventVersion":"1.1","eventSource":"aws:dynamodb","awsRegion":"{}","dynamodb":{{"ApproximateCreationDateTime":{},"Keys":{keys},{images}"SequenceNumber":"{}","SizeBytes":{size},"StreamViewType":"{}"}}{identity}}}"#,
        event.text(),
        super::REGION,
        seconds(now).trunc(),
        sequence::text(number),
        view.text(),
    );
    let item = |stored: Option<Stored>| stored.map(|stored| Arc::clone(&stored.item));
    Record {
        sequence: number,
        at: now,
        size,
        text: text.into(),
        event,
        keys: change.keys,
        old: item(change.old),
        new: item(change.new),
        by_ttl: cause == Cause::TimeToLive,
    }
}
