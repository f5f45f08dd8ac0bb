//! A simulator of DynamoDB and its Streams, with the habits that no emulator has: shards that split, roll over, vanish
//! and are listed late or out of order, records that are trimmed, iterators that expire, calls that are throttled.
//!
//! Amazon's clients reach it over HTTP at [`DynamoDb::endpoint`] ([`client`], [`streams_client`]); a test writes, scripts
//! and looks behind the scenes by [`DynamoDb`] itself. Time is the test's: [`DynamoDb::advance`] moves the clock, records
//! live 24 hours of it, iterators 15 minutes. Only the limit of DescribeStream and the latency, both off at first, are
//! in real time. The same seed and the same writes give the same stream, whatever is read meanwhile.
//!
//! What it does as the service does, by its documentation:
//! - each change of an item is one record, in the item's order; a write that changes nothing has none;
//! - sequence numbers have 21 to 40 digits and grow over the whole stream, children's above their parents';
//! - a page has at most 1,000 records and 1 MB, an empty page is not the end, the end is a missing next iterator;
//! - an iterator by number behind which records are gone is refused, also when they went after it was issued, and
//!   TRIM_HORIZON begins silently behind them;
//! - a disabled stream can be read for a day, enabling again makes a new one;
//! - an eventually consistent read may miss writes of the last second.
//!
//! Exports are written into objects that it serves as S3 would, at the same address, by path.
//!
//! What is a guess: where exactly a trimmed number is refused ([`TrimAnswer`]), that a closed shard is listed for a day,
//! that a number outside its shard is refused, whether the end of a shard comes with its last records. What it does not
//! do: create tables over HTTP, expressions beyond simple conditions of PutItem, indexes, UpdateItem, merged shards.

pub mod bulk;
mod calls;
mod exports;
mod front;
mod habits;
mod item;
mod iterator;
mod number;
mod operations;
mod plain;
mod refusal;
mod sequence;
mod stream;
mod table;
mod world;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use serde_json::Value;

use crate::host::Host;

pub use calls::{Fault, Operation};
pub use habits::{Habits, TrimAnswer};
pub use item::{Item, KeyType};
pub use plain::{call, scan};
use stream::Stream;
pub use stream::{Event, View};
use world::{Cause, World};

/// Of a clock that runs.
const TICK: Duration = Duration::from_millis(50);
/// Where the simulator is.
pub const REGION: &str = "us-east-1";

/// A running simulator; it ends when it is dropped.
#[derive(Debug)]
pub struct DynamoDb {
    address: SocketAddr,
    world: Arc<Mutex<World>>,
    host: Host,
}

/// A shard as it is, whatever is listed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shard {
    pub id: String,
    pub parent: Option<String>,
    pub starting: String,
    /// None while it is open.
    pub ending: Option<String>,
    /// Records that can be read, and records that are trimmed.
    pub records: usize,
    pub trimmed: usize,
    /// Neither listed nor readable.
    pub gone: bool,
}

/// One record that the stream has or had.
#[derive(Clone, Debug, PartialEq)]
pub struct Recorded {
    pub shard: String,
    pub sequence: String,
    pub event: Event,
    pub keys: Item,
    /// Whatever the view type lets through.
    pub old: Option<Item>,
    pub new: Option<Item>,
    /// Deleted by the service, because its time had come.
    pub by_ttl: bool,
    pub at: SystemTime,
}

/// One write of a transaction.
#[derive(Clone, Debug)]
pub enum Write {
    /// A whole item.
    Put(Value),
    /// By its key.
    Delete(Value),
}

/// Methods that name a table, stream or shard that is not there panic, and so do writes that the service refuses.
#[expect(clippy::missing_panics_doc, reason = "said above, once")]
impl DynamoDb {
    /// As [`DynamoDb::start`], with a clock that shows the present and runs: for programs that compare times with their own
    /// clock.
    #[must_use]
    pub fn start_now(habits: Habits, seed: u64) -> Self {
        let service = Self::start(habits, seed);
        service.advance(SystemTime::now().duration_since(service.now()).unwrap_or_default());
        let (world, mut last) = (Arc::clone(&service.world), Instant::now());
        service.host.spawn(async move {
            loop {
                tokio::time::sleep(TICK).await;
                // Whole milliseconds; what is left counts at the next tick.
                let passed = u64::try_from(last.elapsed().as_millis()).expect("a sensible time");
                last += Duration::from_millis(passed);
                world.lock().expect("no panic under the lock").advance(passed);
            }
        });
        service
    }

    /// An empty service; the seed decides about everything that [`Habits`] leaves to chance.
    #[must_use]
    pub fn start(habits: Habits, seed: u64) -> Self {
        let host = Host::start("dynamodb");
        let world = Arc::new(Mutex::new(World::new(habits, seed)));
        let (address, listener) = host.listen();
        let router = front::router(&world);
        host.spawn(async move { axum::serve(listener, router).await.expect("serving never fails") });
        Self { address, world, host }
    }

    fn world(&self) -> MutexGuard<'_, World> {
        self.world.lock().expect("no panic under the lock")
    }

    /// Does something to a table's latest stream.
    fn with_stream<T>(&self, table: &str, act: impl FnOnce(&mut Stream) -> T) -> T {
        let mut world = self.world();
        act(world.stream_of(table).unwrap_or_else(|| panic!("{table} has no stream")))
    }

    fn with_shard<T>(&self, table: &str, shard: &str, act: impl FnOnce(&mut Stream, usize) -> T) -> T {
        self.with_stream(table, |stream| {
            let number = stream.find(shard).unwrap_or_else(|| panic!("{table} has no shard {shard}"));
            act(stream, number)
        })
    }

    /// For both of Amazon's clients.
    #[must_use]
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Changes how the service behaves from now on.
    pub fn habits(&self, change: impl FnOnce(&mut Habits)) {
        change(&mut self.world().habits);
    }

    /// The service's time.
    #[must_use]
    pub fn now(&self) -> SystemTime {
        time(self.world().now)
    }

    /// Time passes: records and closed shards of more than a day ago go, iterators expire.
    pub fn advance(&self, by: Duration) {
        let milliseconds = u64::try_from(by.as_millis()).expect("a sensible time");
        self.world().advance(milliseconds);
    }

    // Tables.

    /// A table with a hash key and perhaps a range key, without a stream.
    pub fn create_table(&self, table: &str, keys: &[(&str, KeyType)]) {
        assert!((1..=2).contains(&keys.len()), "a hash key and at most one range key");
        let keys = keys.iter().map(|(name, kind)| ((*name).to_owned(), *kind)).collect();
        self.world().create_table(table, keys);
    }

    /// The table is gone; its stream can be read for a day.
    pub fn delete_table(&self, table: &str) {
        self.world().delete_table(table).unwrap_or_else(|refusal| panic!("{refusal:?}"));
    }

    /// A new stream with so many open shards; its ARN. The clock moves by a millisecond.
    pub fn enable_stream(&self, table: &str, view: View, shards: usize) -> String {
        self.world().enable_stream(table, view, shards).unwrap_or_else(|refusal| panic!("{refusal:?}"))
    }

    /// All shards close, without children.
    pub fn disable_stream(&self, table: &str) {
        self.world().disable_stream(table).unwrap_or_else(|refusal| panic!("{refusal:?}"));
    }

    /// Whether point-in-time recovery is on, as it is at first.
    pub fn point_in_time_recovery(&self, table: &str, on: bool) {
        self.world().table(table).unwrap_or_else(|refusal| panic!("{refusal:?}")).point_in_time_recovery = on;
    }

    /// Keys, behind the name of their bucket, of all objects that exports have written.
    #[must_use]
    pub fn objects(&self) -> BTreeMap<String, Bytes> {
        self.world().exports.objects.clone()
    }

    /// Writes an object anew, or takes it away.
    pub fn set_object(&self, key: &str, bytes: Option<Bytes>) {
        let objects = &mut self.world().exports.objects;
        match bytes {
            Some(bytes) => objects.insert(key.to_owned(), bytes),
            None => objects.remove(key),
        };
    }

    /// So many of the next exports are given up by the service.
    pub fn fail_exports(&self, exports: u32) {
        self.world().exports.failing = exports;
    }

    /// Makes it a global table with replicas in these regions.
    pub fn replicate_to(&self, table: &str, regions: &[&str]) {
        let mut world = self.world();
        let table = world.table(table).unwrap_or_else(|refusal| panic!("{refusal:?}"));
        table.replicas = regions.iter().map(|region| (*region).to_owned()).collect();
    }

    // Items.

    /// Writes a whole item: `json!({"id": {"S": "a"}})`.
    pub fn put(&self, table: &str, item: &Value) {
        self.write(table, &Write::Put(item.clone()), Cause::User);
    }

    /// As [`DynamoDb::put`], with values that the service would refuse and other servers take.
    pub fn put_unchecked(&self, table: &str, item: &Value) {
        let mut world = self.world();
        let checked = world.table(table).and_then(|table| table.put_unchecked(item));
        let checked = checked.unwrap_or_else(|refusal| panic!("{table}: {refusal:?}"));
        world.write(table, checked, Cause::User).unwrap_or_else(|refusal| panic!("{refusal:?}"));
    }

    /// Deletes by key.
    pub fn delete(&self, table: &str, key: &Value) {
        self.write(table, &Write::Delete(key.clone()), Cause::User);
    }

    /// The service deletes an item whose time has come.
    pub fn ttl_delete(&self, table: &str, key: &Value) {
        self.write(table, &Write::Delete(key.clone()), Cause::TimeToLive);
    }

    fn write(&self, table: &str, write: &Write, cause: Cause) {
        let mut world = self.world();
        let checked = check(&mut world, table, write);
        world.write(table, checked, cause).unwrap_or_else(|refusal| panic!("{refusal:?}"));
    }

    /// Writes several items, of any tables, as one transaction.
    pub fn transact(&self, writes: &[(&str, Write)]) {
        let mut world = self.world();
        let all = writes.iter().map(|(table, write)| ((*table).to_owned(), check(&mut world, table, write))).collect();
        world.transact(all).unwrap_or_else(|refusal| panic!("{refusal:?}"));
    }

    /// All items, in the order of a scan.
    #[must_use]
    pub fn items(&self, table: &str) -> Vec<Item> {
        let mut world = self.world();
        let table = world.table(table).unwrap_or_else(|refusal| panic!("{refusal:?}"));
        table.items.values().map(|stored| (*stored.item).clone()).collect()
    }

    /// Everything that the latest stream has recorded, trimmed or not, by sequence number.
    #[must_use]
    pub fn records(&self, table: &str) -> Vec<Recorded> {
        self.with_stream(table, |stream| {
            let mut all: Vec<_> =
                stream.shards.iter().flat_map(|shard| shard.records.iter().map(|record| (&shard.id, record))).collect();
            all.sort_by_key(|(_, record)| record.sequence);
            let (has_old, has_new) = (stream.view.has_old(), stream.view.has_new());
            let recorded = |(shard, record): (&String, &stream::Record)| Recorded {
                shard: shard.clone(),
                sequence: sequence::text(record.sequence),
                event: record.event,
                keys: (*record.keys).clone(),
                old: record.old.as_deref().filter(|_| has_old).cloned(),
                new: record.new.as_deref().filter(|_| has_new).cloned(),
                by_ttl: record.by_ttl,
                at: time(record.at),
            };
            all.into_iter().map(recorded).collect()
        })
    }

    // Shards of a table's latest stream.

    /// All shards there ever were, oldest first.
    #[must_use]
    pub fn shards(&self, table: &str) -> Vec<Shard> {
        self.with_stream(table, |stream| {
            let shown = |shard: &stream::Shard| Shard {
                id: shard.id.clone(),
                parent: shard.parent.map(|parent| stream.shards[parent].id.clone()),
                starting: sequence::text(shard.starting),
                ending: shard.ending.map(sequence::text),
                records: shard.records.len() - shard.trimmed,
                trimmed: shard.trimmed,
                gone: shard.gone,
            };
            stream.shards.iter().map(shown).collect()
        })
    }

    /// Ids of the open shards, by the hashes that they take.
    #[must_use]
    pub fn open_shards(&self, table: &str) -> Vec<String> {
        self.with_stream(table, |stream| stream.open_shards().map(|number| stream.shards[number].id.clone()).collect())
    }

    /// Closes an open shard in favour of two children, and returns their ids.
    pub fn split(&self, table: &str, shard: &str) -> Vec<String> {
        self.reshard(table, shard, Stream::split)
    }

    /// Closes an open shard in favour of one child, and returns its id.
    pub fn roll(&self, table: &str, shard: &str) -> String {
        self.reshard(table, shard, Stream::roll).remove(0)
    }

    fn reshard(
        &self,
        table: &str,
        shard: &str,
        how: impl FnOnce(&mut Stream, usize, u64, &Habits, &mut fastrand::Rng),
    ) -> Vec<String> {
        let mut world = self.world();
        let (now, habits) = (world.now, world.habits.clone());
        let mut rng = world.writes.fork();
        let stream = world.stream_of(table).unwrap_or_else(|| panic!("{table} has no stream"));
        let number = stream.find(shard).unwrap_or_else(|| panic!("{table} has no shard {shard}"));
        assert!(stream.shards[number].ending.is_none(), "{shard} is closed");
        let before = stream.shards.len();
        how(stream, number, now, &habits, &mut rng);
        stream.shards[before..].iter().map(|shard| shard.id.clone()).collect()
    }

    /// The shard is missing in the next so many listings. A listing is a DescribeStream call for a first page.
    pub fn list_late(&self, table: &str, shard: &str, listings: u32) {
        self.with_shard(table, shard, |stream, shard| stream.list_late(shard, listings));
    }

    /// The closed shard is shown as open in the next so many listings.
    pub fn show_open(&self, table: &str, shard: &str, listings: u32) {
        self.with_shard(table, shard, |stream, shard| stream.show_open(shard, listings));
    }

    /// The shard is neither listed nor readable any more, whatever it holds.
    pub fn vanish(&self, table: &str, shard: &str) {
        self.with_shard(table, shard, Stream::forget);
    }

    /// Trims what was recorded until now, and shards that are closed by now, as a day would.
    pub fn trim(&self, table: &str) {
        let mut world = self.world();
        let now = world.now;
        world.stream_of(table).unwrap_or_else(|| panic!("{table} has no stream")).trim(now);
    }

    /// Trims the first so many records of one shard that are left, and leaves the shard listed.
    pub fn trim_shard(&self, table: &str, shard: &str, records: usize) {
        self.with_shard(table, shard, |stream, shard| {
            let shard = &mut stream.shards[shard];
            shard.trimmed = (shard.trimmed + records).min(shard.records.len());
        });
    }

    /// The next sequence number has a digit more than the last.
    pub fn lengthen_sequence_numbers(&self, table: &str) {
        let mut rng = self.world().writes.fork();
        self.with_stream(table, |stream| stream.next = sequence::longer(stream.next, &mut rng));
    }

    // Faults.

    /// Answers the next calls so, before those that come by chance.
    pub fn fail_next(&self, operation: Operation, fault: Fault, calls: usize) {
        let mut world = self.world();
        world.calls.faults.entry(operation).or_default().extend(std::iter::repeat_n(fault, calls));
    }

    /// Answers the next calls of GetRecords with an empty page, also where there are records.
    pub fn empty_next(&self, calls: usize) {
        self.world().calls.empty_pages += calls;
    }

    /// Answers with AccessDeniedException until [`DynamoDb::allow`].
    pub fn deny(&self, operation: Operation) {
        self.world().calls.denied.insert(operation);
    }

    pub fn allow(&self, operation: Operation) {
        self.world().calls.denied.remove(&operation);
    }

    // What was asked.

    /// Calls over HTTP so far, refused ones included.
    #[must_use]
    pub fn calls(&self, operation: Operation) -> usize {
        self.world().calls.counts.get(&operation).copied().unwrap_or_default()
    }

    /// The most DescribeStream calls within any second of real time.
    #[must_use]
    pub fn most_describe_stream_calls_per_second(&self) -> usize {
        self.world().calls.most_describes
    }

    /// Read units that scans of the table have consumed.
    #[must_use]
    pub fn read_units(&self, table: &str) -> f64 {
        self.world().table(table).unwrap_or_else(|refusal| panic!("{refusal:?}")).read_units
    }

    /// The most GetRecords calls that were reading a shard of the latest stream at once.
    #[must_use]
    pub fn most_readers(&self, table: &str, shard: &str) -> usize {
        let mut world = self.world();
        let stream = world.stream_of(table).unwrap_or_else(|| panic!("{table} has no stream"));
        let (arn, number) = (stream.arn.clone(), stream.find(shard));
        world.calls.most_readers(&arn, number.unwrap_or_else(|| panic!("{table} has no shard {shard}")))
    }

    /// Shards, of all streams, that had two readers: two calls at once, or an iterator that went on after another one,
    /// asked for later, had been used.
    #[must_use]
    pub fn contested_shards(&self) -> BTreeSet<String> {
        self.world().calls.contested.clone()
    }

    /// No shard has had two readers.
    pub fn assert_one_reader_per_shard(&self) {
        let contested = self.contested_shards();
        assert!(contested.is_empty(), "two readers at once: {contested:?}");
    }
}

fn check(world: &mut World, table: &str, write: &Write) -> table::Write {
    let checked = world.table(table).and_then(|table| match write {
        Write::Put(item) => table.put(item),
        Write::Delete(key) => table.delete(key),
    });
    checked.unwrap_or_else(|refusal| panic!("{table}: {refusal:?}"))
}

fn time(milliseconds: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_millis(milliseconds)
}

/// Seconds since 1970, as times stand on the wire.
fn seconds(milliseconds: u64) -> f64 {
    Duration::from_millis(milliseconds).as_secs_f64()
}

/// Amazon's client for tables, each call sent once.
#[must_use]
pub fn client(endpoint: &str) -> aws_sdk_dynamodb::Client {
    use aws_sdk_dynamodb::config::{BehaviorVersion, Config, Region, retry::RetryConfig};

    let config = Config::builder()
        .behavior_version(BehaviorVersion::latest())
        .region(Region::new(REGION))
        .endpoint_url(endpoint)
        .retry_config(RetryConfig::disabled())
        .credentials_provider(aws_credential_types::Credentials::new("testing", "testing", None, None, "testkit"))
        .build();
    aws_sdk_dynamodb::Client::from_conf(config)
}

/// Amazon's client for streams, each call sent once.
#[must_use]
pub fn streams_client(endpoint: &str) -> aws_sdk_dynamodbstreams::Client {
    use aws_sdk_dynamodbstreams::config::{BehaviorVersion, Config, Region, retry::RetryConfig};

    let config = Config::builder()
        .behavior_version(BehaviorVersion::latest())
        .region(Region::new(REGION))
        .endpoint_url(endpoint)
        .retry_config(RetryConfig::disabled())
        .credentials_provider(aws_credential_types::Credentials::new("testing", "testing", None, None, "testkit"))
        .build();
    aws_sdk_dynamodbstreams::Client::from_conf(config)
}
