//! A service for benchmarks: tables whose items and records are computed when they are asked for, so that millions of them
//! cost nothing to keep; and bare clients, which read them as Amazon's own library does and forget them.
//!
//! A shard's records write a key space of their own. First come inserts; then, in turns of eight, four more inserts, three
//! changes and one delete of the keys that came first, far behind: in a lake they are looked up, and not in the last batch.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use aws_sdk_dynamodbstreams::types::ShardIteratorType;
use axum::Router;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use bytes::Bytes;
use serde_json::{Value, json};
use tokio::task::JoinSet;

use super::front::JSON;
use super::{REGION, client, streams_client};
use crate::host::Host;

/// Items of a scan's page: about a megabyte, as the service counts.
const PAGE: u64 = 2_900;
/// Records of a page.
const RECORDS: u64 = 1_000;
/// Between the sequence numbers of two shards.
const SHARD: u128 = 1_000_000_000_000;
const FIRST: u128 = 100_000_000_000_000_000_000;

/// How much there is.
#[derive(Clone, Copy, Debug)]
pub struct Extent {
    pub tables: u64,
    /// Of each table.
    pub shards: u64,
    /// Inserted first, of each shard; a multiple of four.
    pub keys: u64,
}

/// What there is to be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stock {
    /// Nothing.
    Empty = 0,
    /// Items, and no records.
    Items = 1,
    /// Records, and the items that come of them.
    Records = 2,
}

/// A running service; it ends when it is dropped.
#[derive(Debug)]
pub struct Bulk {
    address: SocketAddr,
    world: Arc<World>,
    _host: Host,
}

#[derive(Debug)]
struct World {
    extent: Extent,
    stock: AtomicU8,
}

impl Extent {
    /// Of one shard.
    fn records_of_a_shard(self) -> u64 {
        self.keys * 3
    }

    /// Of all tables.
    #[must_use]
    pub fn records(self) -> u64 {
        self.tables * self.shards * self.records_of_a_shard()
    }

    /// Of all tables, with [`Stock::Items`].
    #[must_use]
    pub fn items(self) -> u64 {
        self.tables * self.shards * self.keys * 2
    }

    /// Names of the tables.
    #[must_use]
    pub fn names(self) -> Vec<String> {
        (0..self.tables).map(|table| format!("bulk_{table}")).collect()
    }
}

impl Bulk {
    /// # Panics
    /// When the number of keys is no multiple of four.
    #[must_use]
    pub fn start(extent: Extent) -> Self {
        assert!(extent.keys.is_multiple_of(4), "{extent:?}");
        let host = Host::start("bulk");
        let world = Arc::new(World { extent, stock: AtomicU8::new(Stock::Empty as u8) });
        let (address, listener) = host.listen();
        let router = Router::new().route("/", post(serve)).with_state(Arc::clone(&world));
        host.spawn(async move { axum::serve(listener, router).await.expect("serving never fails") });
        Self { address, world, _host: host }
    }

    #[must_use]
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// What there is from now on.
    pub fn stock(&self, stock: Stock) {
        self.world.stock.store(stock as u8, Ordering::SeqCst);
    }

    /// The last sequence number of each shard of a table, by the shard's name.
    #[must_use]
    pub fn ends(&self, table: &str) -> Vec<(String, String)> {
        let table = self.world.table(table).expect("one of the extent's");
        let last = |shard| (shard_id(table, shard), sequence(shard, self.world.extent.records_of_a_shard() - 1));
        (0..self.world.extent.shards).map(last).collect()
    }
}

async fn serve(State(world): State<Arc<World>>, headers: HeaderMap, body: Bytes) -> Response {
    let target = headers.get("x-amz-target").and_then(|target| target.to_str().ok()).unwrap_or_default();
    let request: Value = serde_json::from_slice(&body).unwrap_or_default();
    let answer = match target.rsplit('.').next().unwrap_or_default() {
        "DescribeTable" => world.describe_table(&request),
        "DescribeStream" => world.describe_stream(&request),
        "GetShardIterator" => world.iterator(&request),
        "GetRecords" => world.records(&request),
        "Scan" => world.scan(&request),
        _ => None,
    };
    match answer {
        Some(answer) => ([(header::CONTENT_TYPE, JSON)], answer).into_response(),
        None => {
            let refusal = json!({"__type": "com.amazon.coral.validate#ValidationException", "message": target});
            (StatusCode::BAD_REQUEST, [(header::CONTENT_TYPE, JSON)], refusal.to_string()).into_response()
        }
    }
}

impl World {
    fn table(&self, name: &str) -> Option<u64> {
        let number = name.strip_prefix("bulk_")?.parse().ok()?;
        (number < self.extent.tables).then_some(number)
    }

    fn has(&self, stock: Stock) -> bool {
        self.stock.load(Ordering::SeqCst) == stock as u8
    }

    fn describe_table(&self, request: &Value) -> Option<String> {
        let name = request["TableName"].as_str()?;
        let table = self.table(name)?;
        let items = if self.has(Stock::Empty) { 0 } else { self.extent.items() / self.extent.tables };
        Some(
            json!({"Table": {
                "TableName": name, "TableStatus": "ACTIVE", "TableArn": arn(table), "CreationDateTime": 1.0,
                "KeySchema": [{"AttributeName": "user_id", "KeyType": "HASH"}],
                "AttributeDefinitions": [{"AttributeName": "user_id", "AttributeType": "S"}],
                "ItemCount": items, "TableSizeBytes": items * 350, "LatestStreamArn": stream_arn(table),
                "LatestStreamLabel": "bulk",
                "StreamSpecification": {"StreamEnabled": true, "StreamViewType": "NEW_AND_OLD_IMAGES"},
            }})
            .to_string(),
        )
    }

    fn describe_stream(&self, request: &Value) -> Option<String> {
        let table = self.table_of_stream(request["StreamArn"].as_str()?)?;
        let shard = |shard: u64| {
            let range = json!({"StartingSequenceNumber": sequence(shard, 0)});
            json!({"ShardId": shard_id(table, shard), "SequenceNumberRange": range})
        };
        let shards: Vec<Value> = (0..self.extent.shards).map(shard).collect();
        let described = json!({
            "StreamArn": stream_arn(table), "StreamStatus": "ENABLED", "StreamViewType": "NEW_AND_OLD_IMAGES",
            "TableName": format!("bulk_{table}"), "Shards": shards,
        });
        Some(json!({"StreamDescription": described}).to_string())
    }

    fn table_of_stream(&self, arn: &str) -> Option<u64> {
        self.table(arn.split('/').nth(1)?)
    }

    fn iterator(&self, request: &Value) -> Option<String> {
        let (_, table_and_shard) = request["ShardId"].as_str()?.split_once("shardId-")?;
        let (table, shard) = table_and_shard.split_once('-')?;
        let (table, shard): (u64, u64) = (table.parse().ok()?, shard.parse().ok()?);
        let at = |text: &Value| u64::try_from(text.as_str()?.parse::<u128>().ok()? - first(shard)).ok();
        let next = match request["ShardIteratorType"].as_str()? {
            "TRIM_HORIZON" => 0,
            "AT_SEQUENCE_NUMBER" => at(&request["SequenceNumber"])?,
            "AFTER_SEQUENCE_NUMBER" => at(&request["SequenceNumber"])? + 1,
            _ => return None,
        };
        Some(format!(r#"{{"ShardIterator":"{table}/{shard}/{next}"}}"#))
    }

    fn records(&self, request: &Value) -> Option<String> {
        let mut parts = request["ShardIterator"].as_str()?.split('/').map(str::parse::<u64>);
        let mut part = || parts.next()?.ok();
        let (table, shard, from) = (part()?, part()?, part()?);
        let limit = request["Limit"].as_u64().unwrap_or(RECORDS).min(RECORDS);
        let last = if self.has(Stock::Records) { self.extent.records_of_a_shard() } else { 0 };
        let to = (from + limit).min(last).max(from);
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let mut answer = String::with_capacity(usize::try_from(to - from).unwrap_or(0) * 1_400 + 100);
        answer.push_str(r#"{"Records":["#);
        for number in from..to {
            if number > from {
                answer.push(',');
            }
            self.record(&mut answer, (table, shard), number, now);
        }
        write!(answer, r#"],"NextShardIterator":"{table}/{shard}/{to}"}}"#).expect("a string takes all");
        Some(answer)
    }

    fn record(&self, text: &mut String, (table, shard): (u64, u64), number: u64, now: u64) {
        let keys = self.extent.keys;
        let (key, event) = match number.checked_sub(keys) {
            None => (number, "INSERT"),
            Some(later) => match (later / 8 * 4, later % 8) {
                (turn, place @ 0..4) => (keys + turn + place, "INSERT"),
                (turn, place @ 4..7) => (turn + place - 4, "MODIFY"),
                (turn, _) => (turn + 3, "REMOVE"),
            },
        };
        let user = user(table, shard, key);
        write!(
            text,
            r#"{{"eventID":"{number:032x}","eventName":"{event}","eventVersion":"1.1","eventSource":"aws:dynamodb","awsRegion":"{REGION}","dynamodb":{{"ApproximateCreationDateTime":{now},"Keys":{{"user_id":{{"S":"{user}"}}}},"#,
        )
        .expect("a string takes all");
        if event != "REMOVE" {
            text.push_str(r#""NewImage":"#);
            item(text, &user, key, if event == "INSERT" { 1 } else { 2 });
            text.push(',');
        }
        if event != "INSERT" {
            text.push_str(r#""OldImage":"#);
            item(text, &user, key, 1);
            text.push(',');
        }
        let sequence = sequence(shard, number);
        let size = if event == "MODIFY" { 700 } else { 350 };
        write!(text, r#""SequenceNumber":"{sequence}","SizeBytes":{size},"StreamViewType":"NEW_AND_OLD_IMAGES"}}}}"#)
            .expect("a string takes all");
    }

    /// Items lie by number: those of one shard behind those of another.
    fn scan(&self, request: &Value) -> Option<String> {
        let table = self.table(request["TableName"].as_str()?)?;
        let all = if self.has(Stock::Empty) { 0 } else { self.extent.shards * self.extent.keys * 2 };
        let segments = request["TotalSegments"].as_u64().unwrap_or(1).max(1);
        let segment = request["Segment"].as_u64().unwrap_or(0);
        let end = all * (segment + 1) / segments;
        let from = match request["ExclusiveStartKey"]["user_id"]["S"].as_str() {
            Some(last) => self.number_of(last)? + 1,
            None => all * segment / segments,
        };
        let to = (from + request["Limit"].as_u64().unwrap_or(PAGE).min(PAGE)).min(end);
        let mut answer = String::with_capacity(usize::try_from(to.saturating_sub(from)).unwrap_or(0) * 650 + 200);
        answer.push_str(r#"{"Items":["#);
        let mut count = 0;
        for number in from..to {
            let (shard, key) = self.place_of(number);
            let streamed = self.has(Stock::Records) && key < self.extent.keys;
            if streamed && key % 4 == 3 {
                continue;
            }
            if count > 0 {
                answer.push(',');
            }
            item(&mut answer, &user(table, shard, key), key, if streamed { 2 } else { 1 });
            count += 1;
        }
        write!(answer, r#"],"Count":{count},"ScannedCount":{count}"#).expect("a string takes all");
        if to < end {
            let (shard, key) = self.place_of(to - 1);
            let last = user(table, shard, key);
            write!(answer, r#","LastEvaluatedKey":{{"user_id":{{"S":"{last}"}}}}"#).expect("a string takes all");
        }
        answer.push('}');
        Some(answer)
    }

    fn place_of(&self, number: u64) -> (u64, u64) {
        (number / (self.extent.keys * 2), number % (self.extent.keys * 2))
    }

    fn number_of(&self, user: &str) -> Option<u64> {
        let mut parts = user.split('-').skip(2).map(str::parse::<u64>);
        let (shard, key) = (parts.next()?.ok()?, parts.next()?.ok()?);
        Some(shard * self.extent.keys * 2 + key)
    }
}

fn arn(table: u64) -> String {
    format!("arn:aws:dynamodb:{REGION}:000000000000:table/bulk_{table}")
}

fn stream_arn(table: u64) -> String {
    format!("{}/stream/bulk", arn(table))
}

fn shard_id(table: u64, shard: u64) -> String {
    format!("shardId-{table:08}-{shard:08}")
}

fn first(shard: u64) -> u128 {
    FIRST + u128::from(shard) * SHARD
}

fn sequence(shard: u64, number: u64) -> String {
    (first(shard) + u128::from(number)).to_string()
}

fn user(table: u64, shard: u64, key: u64) -> String {
    format!("user-{table}-{shard}-{key:010}")
}

/// About 350 bytes as the service counts them, with a nested map, a list, a set and numbers.
fn item(text: &mut String, user: &str, key: u64, version: u64) {
    let (level, score, day) = (key * 31 % 997 + version, key * 7919 % 1_000_003, key % 28 + 1);
    let plan = ["free", "plus", "guide"][usize::try_from(key % 3).unwrap_or(0)];
    write!(
        text,
        r#"{{"user_id":{{"S":"{user}"}},"level":{{"N":"{level}"}},"plan":{{"S":"{plan}"}},"updated_at":{{"S":"2026-11-{day:02}T09:00:{:02}Z"}},"email":{{"S":"visitor-{key:010}@mail.example.com"}},"score":{{"N":"{score}.25"}},"prefs":{{"M":{{"theme":{{"S":"dark"}},"weather":{{"BOOL":true}},"crowding":{{"BOOL":{}}}}}}},"badges":{{"SS":["summit","sunrise"]}},"visits":{{"L":[{{"N":"{level}"}},{{"N":"{version}"}}]}},"note":{{"S":"started at the fifth station, number {score:07} that day, and came back after {level:04} minutes; wind from the west, {score:05} steps, no view from the summit but a meal"}}}}"#,
        version % 60,
        key.is_multiple_of(2),
    )
    .expect("a string takes all");
}

/// Reads all records of all shards of some tables with Amazon's library, each shard by a task of its own, and counts them.
///
/// # Panics
/// When the service refuses.
pub async fn fetch_records(endpoint: &str, tables: &[String]) -> u64 {
    let (described, streams) = (client(endpoint), streams_client(endpoint));
    let mut readers = JoinSet::new();
    for table in tables {
        let table = described.describe_table().table_name(table).send().await.expect("a table").table;
        let arn = table.and_then(|table| table.latest_stream_arn).expect("a stream");
        let stream = streams.describe_stream().stream_arn(&arn).send().await.expect("a stream");
        for shard in stream.stream_description.and_then(|stream| stream.shards).unwrap_or_default() {
            let (streams, arn) = (streams.clone(), arn.clone());
            readers.spawn(async move {
                let call = streams.get_shard_iterator().stream_arn(arn).set_shard_id(shard.shard_id);
                let first = call.shard_iterator_type(ShardIteratorType::TrimHorizon).send().await;
                let mut at = first.expect("an iterator").shard_iterator;
                let mut count = 0;
                loop {
                    let page = streams.get_records().set_shard_iterator(at.take()).limit(1_000).send().await;
                    let page = page.expect("a page");
                    let records = page.records.unwrap_or_default();
                    if records.is_empty() {
                        return count;
                    }
                    count += records.len() as u64;
                    at = page.next_shard_iterator;
                }
            });
        }
    }
    readers.join_all().await.into_iter().sum()
}

/// Reads all items of some tables with Amazon's library, in so many segments at once, and counts them.
///
/// # Panics
/// When the service refuses.
pub async fn fetch_items(endpoint: &str, tables: &[String], segments: i32) -> u64 {
    let client = client(endpoint);
    let mut count = 0;
    for table in tables {
        let mut readers = JoinSet::new();
        for segment in 0..segments {
            let (client, table) = (client.clone(), table.clone());
            readers.spawn(async move {
                let (mut after, mut count) = (None, 0);
                loop {
                    let call = client.scan().table_name(&table).consistent_read(true);
                    let call = call.segment(segment).total_segments(segments).set_exclusive_start_key(after.take());
                    let page = call.send().await.expect("a page");
                    count += page.items.map_or(0, |items| items.len() as u64);
                    after = page.last_evaluated_key;
                    if after.is_none() {
                        return count;
                    }
                }
            });
        }
        count += readers.join_all().await.into_iter().sum::<u64>();
    }
    count
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::super::item::Stored;
    use super::*;

    const EXTENT: Extent = Extent { tables: 2, shards: 3, keys: 8 };

    #[test]
    fn an_item_has_about_350_bytes() {
        for key in [0, 7, 123_456] {
            let mut text = String::new();
            item(&mut text, &user(1, 2, key), key, 1);
            let item: Value = serde_json::from_str(&text).expect("JSON");
            let size = Stored::new(&item).expect("the service takes it").size;
            assert!((330..=370).contains(&size), "{size}");
        }
    }

    #[tokio::test]
    async fn the_items_are_what_comes_of_the_records() {
        let bulk = Bulk::start(EXTENT);
        let names = EXTENT.names();
        assert_eq!(fetch_records(&bulk.endpoint(), &names).await, 0);
        assert_eq!(fetch_items(&bulk.endpoint(), &names, 2).await, 0);
        bulk.stock(Stock::Items);
        assert_eq!(fetch_items(&bulk.endpoint(), &names, 5).await, EXTENT.items());
        bulk.stock(Stock::Records);
        assert_eq!(fetch_records(&bulk.endpoint(), &names).await, EXTENT.records());

        let mut items: BTreeMap<String, Value> = BTreeMap::new();
        for shard in 0..EXTENT.shards {
            let page = bulk.world.records(&json!({"ShardIterator": format!("1/{shard}/0")})).expect("a page");
            let page: Value = serde_json::from_str(&page).expect("JSON");
            let records = page["Records"].as_array().expect("records").clone();
            assert_eq!(
                records.last().expect("one")["dynamodb"]["SequenceNumber"],
                bulk.ends("bulk_1")[shard as usize].1
            );
            for record in records {
                let change = &record["dynamodb"];
                let user = change["Keys"]["user_id"]["S"].as_str().expect("a key").to_owned();
                let before = match change.get("NewImage") {
                    Some(image) => items.insert(user, image.clone()),
                    None => items.remove(&user),
                };
                assert_eq!(before.as_ref(), change.get("OldImage"));
            }
        }
        let scanned = super::super::scan(&bulk.endpoint(), "bulk_1").await.expect("a scan");
        let scanned: BTreeMap<String, Value> =
            scanned.into_iter().map(|item| (item["user_id"]["S"].as_str().expect("a key").to_owned(), item)).collect();
        assert_eq!(scanned, items);
    }
}
