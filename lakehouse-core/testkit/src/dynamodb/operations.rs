//! The operations as requests and answers in JSON.

use std::fmt::Write as _;
use std::sync::Arc;

use serde_json::{Value, json};

use super::calls::Operation;
use super::exports;
use super::habits::{TrimAnswer, happens};
use super::item::Item;
use super::iterator::ShardIterator;
use super::refusal::Refusal;
use super::stream::LARGEST_LISTING;
use super::table::{Scan, Write, key_schema};
use super::world::{Cause, World, table_arn};
use super::{seconds, sequence};

type Answer = Result<String, Refusal>;

/// Records and bytes on a page of a shard.
const MOST_RECORDS: usize = 1_000;
const MOST_BYTES: usize = 1 << 20;

pub(super) fn answer(world: &mut World, operation: Operation, request: &Value) -> Answer {
    // Expressions would need an engine of their own; to ignore them would be a wrong answer.
    let conditional = operation == Operation::PutItem;
    let known = |name: &String| match name.as_str() {
        "ShardFilter" => true,
        "ConditionExpression" | "ExpressionAttributeNames" | "ExpressionAttributeValues" => conditional,
        name => !name.contains("Expression") && !name.contains("Filter"),
    };
    if let Some(name) = request.as_object().and_then(|request| request.keys().find(|name| !known(name))) {
        return Err(Refusal::validation(format!("the simulator does not know {name}")));
    }
    match operation {
        Operation::BatchGetItem => batch_get(world, request),
        Operation::BatchWriteItem => batch_write(world, request),
        Operation::DeleteItem => delete_item(world, request),
        Operation::DescribeContinuousBackups => describe_backups(world, request),
        Operation::DescribeExport => exports::describe_export(world, request),
        Operation::DescribeStream => describe_stream(world, request),
        Operation::DescribeTable => describe_table(world, request),
        Operation::ExportTableToPointInTime => exports::export_table(world, request),
        Operation::GetItem => get_item(world, request),
        Operation::GetRecords => get_records(world, request),
        Operation::GetShardIterator => get_shard_iterator(world, request),
        Operation::ListStreams => list_streams(world, request),
        Operation::PutItem => put_item(world, request),
        Operation::Scan => scan(world, request),
        Operation::TransactWriteItems => transact(world, request),
    }
}

fn text<'a>(request: &'a Value, name: &str) -> Result<&'a str, Refusal> {
    request[name].as_str().ok_or_else(|| Refusal::validation(format!("{name} must not be null")))
}

/// A number within its bounds, if there is one.
fn number(request: &Value, name: &str, least: u64, most: u64) -> Result<Option<u64>, Refusal> {
    let Some(value) = request.get(name).filter(|value| !value.is_null()) else {
        return Ok(None);
    };
    let within = value.as_u64().filter(|value| (least..=most).contains(value));
    within.map(Some).ok_or_else(|| Refusal::validation(format!("{name} must be between {least} and {most}")))
}

fn describe_table(world: &mut World, request: &Value) -> Answer {
    let name = World::table_name(text(request, "TableName")?).to_owned();
    let view = world.stream_of(&name).map(|stream| (stream.view, stream.label.clone()));
    let table = world.table(&name)?;
    let attribute =
        |(name, kind): &(String, super::KeyType)| json!({"AttributeName": name, "AttributeType": kind.letter()});
    let mut described = json!({
        "TableName": name, "TableStatus": "ACTIVE", "TableArn": table_arn(&name),
        "TableId": "00000000-0000-4000-8000-000000000000", "CreationDateTime": seconds(table.created),
        "KeySchema": key_schema(&table.keys), "AttributeDefinitions": table.keys.iter().map(attribute).collect::<Vec<_>>(),
        "ItemCount": table.items.len(), "TableSizeBytes": table.items.values().map(|item| item.size).sum::<usize>(),
        "BillingModeSummary": {"BillingMode": "PAY_PER_REQUEST"},
    });
    if let (Some(arn), Some((view, label))) = (&table.stream, view) {
        described["LatestStreamArn"] = json!(arn);
        described["LatestStreamLabel"] = json!(label);
        if table.streaming {
            described["StreamSpecification"] = json!({"StreamEnabled": true, "StreamViewType": view.text()});
        }
    }
    if !table.replicas.is_empty() {
        let replica = |region: &String| json!({"RegionName": region, "ReplicaStatus": "ACTIVE"});
        described["GlobalTableVersion"] = json!("2019.11.21");
        described["Replicas"] = table.replicas.iter().map(replica).collect();
    }
    Ok(json!({"Table": described}).to_string())
}

fn describe_backups(world: &mut World, request: &Value) -> Answer {
    let now = seconds(world.now);
    let table = world.table(text(request, "TableName")?)?;
    let mut recovery = json!({"PointInTimeRecoveryStatus": "DISABLED"});
    if table.point_in_time_recovery {
        recovery = json!({
            "PointInTimeRecoveryStatus": "ENABLED", "RecoveryPeriodInDays": 35,
            "EarliestRestorableDateTime": seconds(table.created), "LatestRestorableDateTime": now,
        });
    }
    let description = json!({"ContinuousBackupsStatus": "ENABLED", "PointInTimeRecoveryDescription": recovery});
    Ok(json!({"ContinuousBackupsDescription": description}).to_string())
}

fn list_streams(world: &mut World, request: &Value) -> Answer {
    let limit = number(request, "Limit", 1, 100)?.unwrap_or(100);
    let limit = usize::try_from(limit).expect("at most 100");
    let table = request["TableName"].as_str().map(World::table_name);
    let after = request["ExclusiveStartStreamArn"].as_str();
    let wanted = world.streams.values().filter(|stream| table.is_none_or(|table| table == stream.table));
    let mut rest = wanted.filter(|stream| after.is_none_or(|after| stream.arn.as_str() > after)).peekable();
    let page: Vec<Value> = rest
        .by_ref()
        .take(limit)
        .map(|stream| json!({"StreamArn": stream.arn, "TableName": stream.table, "StreamLabel": stream.label}))
        .collect();
    let mut answer = json!({"Streams": page});
    if rest.peek().is_some() {
        answer["LastEvaluatedStreamArn"] = answer["Streams"][limit - 1]["StreamArn"].clone();
    }
    Ok(answer.to_string())
}

fn describe_stream(world: &mut World, request: &Value) -> Answer {
    let largest = world.habits.largest_listing.clamp(1, LARGEST_LISTING);
    let limit = number(request, "Limit", 1, LARGEST_LISTING as u64)?.unwrap_or(LARGEST_LISTING as u64);
    let limit = usize::try_from(limit).expect("at most 100").min(largest);
    let filter = &request["ShardFilter"];
    let children_of = match filter.is_null() {
        true => None,
        false if filter["Type"] == "CHILD_SHARDS" => Some(text(filter, "ShardId")?),
        false => return Err(Refusal::validation("the only shard filter is CHILD_SHARDS")),
    };
    let stream = world.stream(text(request, "StreamArn")?)?;
    Ok(stream.describe(request["ExclusiveStartShardId"].as_str(), limit, children_of)?.to_string())
}

fn get_shard_iterator(world: &mut World, request: &Value) -> Answer {
    world.chains += 1;
    let (chain, now, trim) = (world.chains, world.now, world.habits.trim);
    let stream = world.stream(text(request, "StreamArn")?)?;
    let id = text(request, "ShardId")?;
    let shard = stream.find(id).filter(|shard| !stream.shards[*shard].gone).ok_or_else(|| Refusal::no_shard(id))?;
    let state = &stream.shards[shard];
    let given = || -> Result<u128, Refusal> {
        let given = sequence::parse(text(request, "SequenceNumber")?);
        let inside = |given: &u128| *given >= state.starting && state.ending.is_none_or(|ending| *given <= ending);
        let invalid = || Refusal::validation("Invalid SequenceNumber: it is not one of the shard's");
        let given = given.filter(inside).ok_or_else(invalid)?;
        match state.last_trimmed().is_some_and(|last| given <= last) && trim == TrimAnswer::EveryTrimmedNumber {
            true => Err(Refusal::trimmed()),
            false => Ok(given),
        }
    };
    let kept = |from: u128| match state.lost_from(from) && trim != TrimAnswer::Never {
        true => Err(Refusal::trimmed()),
        false => Ok(from),
    };
    let from = match text(request, "ShardIteratorType")? {
        "TRIM_HORIZON" => state.last_trimmed().map_or(state.starting, |last| last + 1),
        "LATEST" => state.records.last().map_or(state.starting, |record| record.sequence + 1),
        "AT_SEQUENCE_NUMBER" => kept(given()?)?,
        "AFTER_SEQUENCE_NUMBER" => kept(given()? + 1)?,
        other => return Err(Refusal::validation(format!("no ShardIteratorType: {other}"))),
    };
    let iterator = ShardIterator { stream: stream.arn.clone(), shard, from, issued: now, chain };
    Ok(json!({"ShardIterator": iterator.text()}).to_string())
}

/// The iterator of a GetRecords, for counting.
pub(super) fn iterator_of(request: &Value) -> Option<ShardIterator> {
    ShardIterator::parse(request["ShardIterator"].as_str()?)
}

fn get_records(world: &mut World, request: &Value) -> Answer {
    let iterator = iterator_of(request).ok_or_else(|| Refusal::validation("Invalid ShardIterator"))?;
    let limit = number(request, "Limit", 1, MOST_RECORDS as u64)?.unwrap_or(MOST_RECORDS as u64);
    let mut limit = usize::try_from(limit).expect("at most 1,000");
    let (now, trim) = (world.now, world.habits.trim);
    if iterator.expired(now) || happens(&mut world.answers, world.habits.expired_iterators) {
        return Err(Refusal::expired());
    }
    let empty = world.calls.takes_empty_page() || happens(&mut world.answers, world.habits.empty_pages);
    if happens(&mut world.answers, world.habits.short_pages) {
        limit = world.answers.usize(1..=limit.min(10));
    }
    let stream = world.stream(&iterator.stream)?;
    let state = stream.shards.get(iterator.shard).ok_or_else(|| Refusal::validation("Invalid ShardIterator"))?;
    if state.gone {
        return Err(Refusal::no_shard(&state.id));
    }
    if state.lost_from(iterator.from) && trim != TrimAnswer::Never {
        return Err(Refusal::trimmed());
    }
    let page = if empty { &[] } else { state.page(iterator.from, limit, MOST_BYTES) };
    let from = page.last().map_or(iterator.from, |record| record.sequence + 1);
    let ended = !empty && state.ends_before(from) && (page.is_empty() || state.ends_with_records);
    let mut answer = String::with_capacity(page.iter().map(|record| record.text.len() + 1).sum::<usize>() + 300);
    answer.push_str(r#"{"Records":["#);
    for (number, record) in page.iter().enumerate() {
        if number > 0 {
            answer.push(',');
        }
        answer.push_str(&record.text);
    }
    answer.push(']');
    if !ended {
        let next = ShardIterator { from, issued: now, ..iterator };
        write!(answer, r#","NextShardIterator":"{}""#, next.text()).expect("a string takes all");
    }
    answer.push('}');
    Ok(answer)
}

fn scan(world: &mut World, request: &Value) -> Answer {
    let segments = number(request, "TotalSegments", 1, 1_000_000)?;
    let segment = number(request, "Segment", 0, segments.unwrap_or(1) - 1)?;
    if segments.is_some() != segment.is_some() {
        return Err(Refusal::validation("Segment and TotalSegments come together"));
    }
    let consistent = request["ConsistentRead"] == true;
    let missed = world.missed(consistent);
    let (now, largest) = (world.now, world.habits.largest_scan);
    let name = text(request, "TableName")?;
    let table = world.table(name)?;
    let scan = Scan {
        segment: segment.unwrap_or(0),
        segments: segments.unwrap_or(1),
        limit: number(request, "Limit", 1, u64::from(u32::MAX))?
            .map_or(usize::MAX, |limit| usize::try_from(limit).unwrap_or(usize::MAX))
            .min(largest),
        after: request.get("ExclusiveStartKey").filter(|key| !key.is_null()).map(|key| table.place(key)).transpose()?,
        missed,
        consistent,
    };
    let page = table.scan(&scan, now)?;
    let count = page.items.len();
    let mut answer = format!(r#"{{"Items":[{}],"Count":{count},"ScannedCount":{count}"#, page.items.join(","));
    if let Some(last) = page.last {
        write!(answer, r#","LastEvaluatedKey":{}"#, Value::Object(last)).expect("a string takes all");
    }
    if matches!(request["ReturnConsumedCapacity"].as_str(), Some("TOTAL" | "INDEXES")) {
        let capacity = json!({"TableName": World::table_name(name), "CapacityUnits": page.read_units});
        write!(answer, r#","ConsumedCapacity":{capacity}"#).expect("a string takes all");
    }
    answer.push('}');
    Ok(answer)
}

fn get_item(world: &mut World, request: &Value) -> Answer {
    let missed = world.missed(request["ConsistentRead"] == true);
    let now = world.now;
    let table = world.table(text(request, "TableName")?)?;
    let place = table.place(&request["Key"])?;
    Ok(table.get(&place, missed, now).map_or_else(|| "{}".to_owned(), |item| format!(r#"{{"Item":{item}}}"#)))
}

fn batch_get(world: &mut World, request: &Value) -> Answer {
    let tables = request["RequestItems"].as_object().ok_or_else(|| Refusal::validation("RequestItems is missing"))?;
    let keys = |asked: &Value| asked["Keys"].as_array().cloned().unwrap_or_default();
    let count: usize = tables.values().map(|asked| keys(asked).len()).sum();
    if !(1..=100).contains(&count) {
        return Err(Refusal::validation("a batch has 1 to 100 keys"));
    }
    let now = world.now;
    let mut answers = Vec::new();
    for (name, asked) in tables {
        let missed = world.missed(asked["ConsistentRead"] == true);
        let table = world.table(name)?;
        let mut places = Vec::new();
        for key in keys(asked) {
            places.push(table.place(&key)?);
        }
        places.sort_unstable();
        if places.windows(2).any(|pair| pair[0] == pair[1]) {
            return Err(Refusal::validation("Provided list of item keys contains duplicates"));
        }
        let found: Vec<_> = places.iter().filter_map(|place| table.get(place, missed, now)).collect();
        answers.push(format!("{}:[{}]", json!(name), found.join(",")));
    }
    Ok(format!(r#"{{"Responses":{{{}}},"UnprocessedKeys":{{}}}}"#, answers.join(",")))
}

fn put_item(world: &mut World, request: &Value) -> Answer {
    let name = text(request, "TableName")?;
    let table = world.table(name)?;
    let write = table.put(&request["Item"])?;
    if let Some(condition) = request["ConditionExpression"].as_str() {
        let stored = table.items.get(&write.place).map(|stored| Arc::clone(&stored.item));
        if !holds(condition, request, stored.as_deref())? {
            return Err(Refusal::condition());
        }
    }
    written(world, name, write, request)
}

/// A condition whose parts, joined by AND, are `attribute_not_exists(a)`, `attribute_exists(a)` or `a = :value`.
fn holds(condition: &str, request: &Value, stored: Option<&Item>) -> Result<bool, Refusal> {
    let unknown = |part: &str| Refusal::validation(format!("the simulator does not know the condition {part}"));
    let attribute = |name: &str| -> Option<Value> {
        let name = request["ExpressionAttributeNames"][name.trim()].as_str().unwrap_or(name.trim());
        stored?.get(name).cloned()
    };
    let mut all = true;
    for part in condition.split(" AND ") {
        let function = |name: &str| part.trim().strip_prefix(name)?.strip_prefix('(')?.strip_suffix(')');
        all &= if let Some(name) = function("attribute_not_exists") {
            attribute(name).is_none()
        } else if let Some(name) = function("attribute_exists") {
            attribute(name).is_some()
        } else {
            let (name, value) = part.split_once('=').ok_or_else(|| unknown(part))?;
            let value = request["ExpressionAttributeValues"].get(value.trim()).ok_or_else(|| unknown(part))?;
            attribute(name).as_ref() == Some(value)
        };
    }
    Ok(all)
}

fn delete_item(world: &mut World, request: &Value) -> Answer {
    let name = text(request, "TableName")?;
    let write = world.table(name)?.delete(&request["Key"])?;
    written(world, name, write, request)
}

fn written(world: &mut World, name: &str, write: Write, request: &Value) -> Answer {
    let old = world.write(name, write, Cause::User)?;
    Ok(match old {
        Some(old) if request["ReturnValues"] == "ALL_OLD" => format!(r#"{{"Attributes":{}}}"#, old.text),
        _ => "{}".to_owned(),
    })
}

/// Writes of one request, checked, in their order.
fn writes(world: &mut World, table: &str, put: Option<&Value>, delete: Option<&Value>) -> Result<Write, Refusal> {
    let table = world.table(table)?;
    match (put, delete) {
        (Some(item), None) => table.put(item),
        (None, Some(key)) => table.delete(key),
        _ => Err(Refusal::validation("one of a put and a delete")),
    }
}

fn batch_write(world: &mut World, request: &Value) -> Answer {
    let tables = request["RequestItems"].as_object().ok_or_else(|| Refusal::validation("RequestItems is missing"))?;
    let mut all = Vec::new();
    for (name, requests) in tables {
        for one in requests.as_array().map(Vec::as_slice).unwrap_or_default() {
            let (put, delete) = (one["PutRequest"].get("Item"), one["DeleteRequest"].get("Key"));
            all.push((name.clone(), writes(world, name, put, delete)?));
        }
    }
    if all.is_empty() || all.len() > 25 {
        return Err(Refusal::validation("a batch has 1 to 25 requests"));
    }
    for (name, write) in all {
        world.write(&name, write, Cause::User)?;
    }
    Ok(json!({"UnprocessedItems": Item::new()}).to_string())
}

fn transact(world: &mut World, request: &Value) -> Answer {
    let items = request["TransactItems"].as_array().map(Vec::as_slice).unwrap_or_default();
    if items.is_empty() || items.len() > 100 {
        return Err(Refusal::validation("a transaction has 1 to 100 items"));
    }
    let mut all = Vec::new();
    for one in items {
        let (put, delete) = (&one["Put"], &one["Delete"]);
        if !put["ConditionExpression"].is_null() || !delete["ConditionExpression"].is_null() {
            return Err(Refusal::validation("the simulator does not know ConditionExpression"));
        }
        let name = put["TableName"].as_str().or_else(|| delete["TableName"].as_str());
        let name = name.ok_or_else(|| Refusal::validation("the simulator transacts puts and deletes"))?.to_owned();
        let write = writes(world, &name, put.get("Item"), delete.get("Key"))?;
        all.push((name, write));
    }
    world.transact(all)?;
    Ok("{}".to_owned())
}
