//! Exports of point-in-time recovery, written by their documentation into objects that the simulator serves itself.
//!
//! An item stands in an incremental export once, with its state before the window and at its end. Writes that no stream
//! has recorded are in no incremental export here: the records are the simulator's only memory of the past.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::sync::Arc;

use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use md5::{Digest, Md5};
use serde_json::{Value, json};

use super::front::Shared;
use super::item::Item;
use super::refusal::Refusal;
use super::seconds;
use super::world::{World, table_arn};

/// Files of an export; of some nothing is left.
const PARTITIONS: usize = 4;
/// Milliseconds of a window, at least and at most.
const SHORTEST: u64 = 15 * 60_000;
const LONGEST: u64 = 24 * 3_600_000;

#[derive(Debug, Default)]
pub(super) struct Exports {
    /// By `bucket/key`.
    pub(super) objects: BTreeMap<String, Bytes>,
    /// Descriptions by ARN, with how often each is still described as being under way.
    described: BTreeMap<String, (Value, u32)>,
    /// By client token.
    asked: BTreeMap<String, String>,
    /// So many of the next exports fail.
    pub(super) failing: u32,
}

/// What an export says of one item.
struct Changed {
    keys: Arc<Item>,
    at: u64,
    old: Option<Arc<Item>>,
    new: Option<Arc<Item>>,
}

pub(super) fn export_table(world: &mut World, request: &Value) -> Result<String, Refusal> {
    let text = |name: &str| request[name].as_str().map(str::to_owned);
    let invalid = |message: &str| Err(Refusal::validation(message));
    let (Some(arn), Some(bucket)) = (text("TableArn"), text("S3Bucket")) else {
        return invalid("TableArn and S3Bucket must not be null");
    };
    let name = World::table_name(&arn).to_owned();
    let token = text("ClientToken").unwrap_or_default();
    if let Some(known) = world.exports.asked.get(&token).filter(|_| !token.is_empty()) {
        return Ok(json!({"ExportDescription": world.exports.described[known].0}).to_string());
    }
    let (now, table) = (world.now, world.table(&name)?);
    if !table.point_in_time_recovery {
        return Err(Refusal::no_recovery(&name));
    }
    let created = table.created;
    let time = |value: &Value| value.as_f64().map(millis);
    let window = &request["IncrementalExportSpecification"];
    let id = format!("{:014}-{:08x}", now, world.exports.described.len());
    let prefix = text("S3Prefix").map(|prefix| format!("{prefix}/")).unwrap_or_default();
    let folder = format!("{prefix}AWSDynamoDB/{id}");
    let export_arn = format!("{}/export/{id}", table_arn(&name));
    let mut summary = json!({
        "version": "2020-06-30", "exportArn": export_arn, "startTime": "2026-01-01T00:00:00.000Z",
        "endTime": "2026-01-01T00:00:01.000Z", "tableArn": table_arn(&name), "tableId": "00000000-0000-4000-8000-000000000000",
        "s3Bucket": bucket, "s3Prefix": text("S3Prefix"), "s3SseAlgorithm": "AES256", "s3SseKmsKeyId": null,
        "manifestFilesS3Key": format!("{folder}/manifest-files.json"), "billedSizeBytes": 0,
        "outputFormat": "DYNAMODB_JSON",
    });
    let mut files = vec![(0u64, String::new()); PARTITIONS];
    let mut add = |keys: &Item, line: Value| {
        let keys = serde_json::to_string(keys).expect("JSON has a text");
        let (count, text) = &mut files[keys.bytes().map(usize::from).sum::<usize>() % (PARTITIONS - 1)];
        *count += 1;
        text.push_str(&format!("{line}\n"));
    };
    let data = if request["ExportType"] == "INCREMENTAL_EXPORT" {
        let (Some(from), Some(to)) = (time(&window["ExportFromTime"]), time(&window["ExportToTime"])) else {
            return invalid("an incremental export has a window");
        };
        if from < created || to > now || !(SHORTEST..=LONGEST).contains(&(to.saturating_sub(from))) {
            return Err(Refusal::export_time(
                "the window is outside of what can be restored, or not of 15 minutes to 24 hours",
            ));
        }
        let with_old = window["ExportViewType"] != "NEW_IMAGE";
        for changed in changed(world, &name, from, to) {
            let mut line = json!({
                "Metadata": {"WriteTimestampMicros": {"N": (changed.at * 1_000).to_string()}}, "Keys": &*changed.keys,
            });
            if let Some(new) = &changed.new {
                line["NewImage"] = json!(&**new);
            }
            if let Some(old) = changed.old.as_ref().filter(|_| with_old) {
                line["OldImage"] = json!(&**old);
            }
            add(&changed.keys, line);
        }
        summary["version"] = json!("2023-08-01");
        summary["exportType"] = json!("INCREMENTAL_EXPORT");
        format!("{prefix}AWSDynamoDB/data")
    } else {
        let at = time(&request["ExportTime"]).unwrap_or(now);
        if at < created || at > now {
            return Err(Refusal::export_time("the time is outside of what can be restored"));
        }
        for item in items_at(world, &name, at) {
            add(&item, json!({"Item": &*item}));
        }
        format!("{folder}/data")
    };
    summary["itemCount"] = json!(files.iter().map(|(count, _)| count).sum::<u64>());
    let fails = world.exports.failing > 0;
    world.exports.failing = world.exports.failing.saturating_sub(1);
    let mut manifest = String::new();
    for (number, (count, text)) in files.into_iter().enumerate() {
        let bytes = packed(&text);
        let key = format!("{data}/{id}{number}.json.gz");
        let line = json!({
            "itemCount": count, "md5Checksum": base64(&md5_of(&bytes)), "etag": format!("{}-1", hex(&md5_of(&md5_of(&bytes)))),
            "dataFileS3Key": key,
        });
        manifest.push_str(&format!("{line}\n"));
        world.exports.put(&bucket, &key, bytes);
    }
    for (name, text) in [("manifest-files", manifest), ("manifest-summary", summary.to_string())] {
        world.exports.put(&bucket, &format!("{folder}/{name}.checksum"), base64(&md5_of(text.as_bytes())).into_bytes());
        world.exports.put(&bucket, &format!("{folder}/{name}.json"), text.into_bytes());
    }
    world.exports.put(&bucket, &format!("{folder}/_started"), Vec::new());
    let described = json!({
        "ExportArn": export_arn, "ExportStatus": if fails { "FAILED" } else { "COMPLETED" }, "S3Bucket": bucket,
        "S3Prefix": text("S3Prefix"), "TableArn": table_arn(&name), "ItemCount": summary["itemCount"], "StartTime": seconds(now),
        "ExportManifest": format!("{folder}/manifest-summary.json"),
        "FailureCode": fails.then_some("S3NoSuchBucket"), "FailureMessage": fails.then_some("The bucket is not there."),
    });
    let looks = world.habits.export_looks;
    world.exports.described.insert(export_arn.clone(), (described, looks));
    world.exports.asked.insert(token, export_arn.clone());
    let begun = json!({"ExportArn": export_arn, "ExportStatus": "IN_PROGRESS", "TableArn": table_arn(&name)});
    Ok(json!({"ExportDescription": begun}).to_string())
}

pub(super) fn describe_export(world: &mut World, request: &Value) -> Result<String, Refusal> {
    let arn = request["ExportArn"].as_str().unwrap_or_default();
    let (described, looks) = world.exports.described.get_mut(arn).ok_or_else(|| Refusal::no_export(arn))?;
    let mut told = described.clone();
    if *looks > 0 {
        *looks -= 1;
        told["ExportStatus"] = json!("IN_PROGRESS");
    }
    Ok(json!({"ExportDescription": told}).to_string())
}

impl Exports {
    fn put(&mut self, bucket: &str, key: &str, bytes: Vec<u8>) {
        self.objects.insert(format!("{bucket}/{key}"), bytes.into());
    }
}

/// Net changes of a window, by key.
fn changed(world: &World, table: &str, from: u64, to: u64) -> Vec<Changed> {
    let mut all: BTreeMap<String, Changed> = BTreeMap::new();
    for record in world.recorded(table, from..to) {
        let key = serde_json::to_string(&*record.keys).expect("JSON has a text");
        let (at, new) = (record.at, record.new.clone());
        all.entry(key).and_modify(|changed| (changed.at, changed.new) = (at, new.clone())).or_insert_with(|| Changed {
            keys: Arc::clone(&record.keys),
            at,
            old: record.old.clone(),
            new,
        });
    }
    all.into_values().collect()
}

/// Items as they stood: as they stand, less what happened since.
fn items_at(world: &mut World, table: &str, at: u64) -> Vec<Arc<Item>> {
    let key_of = |keys: &Item| serde_json::to_string(keys).expect("JSON has a text");
    let state = world.table(table).expect("it was found before");
    let keys = |item: &Item| -> Item {
        state.keys.iter().map(|(name, _)| (name.clone(), item[name.as_str()].clone())).collect()
    };
    let items = state.items.values().map(|stored| (key_of(&keys(&stored.item)), Arc::clone(&stored.item)));
    let mut items: BTreeMap<String, Arc<Item>> = items.collect();
    for record in world.recorded(table, at + 1..u64::MAX).into_iter().rev() {
        let key = key_of(&record.keys);
        match &record.old {
            Some(old) => items.insert(key, Arc::clone(old)),
            None => items.remove(&key),
        };
    }
    items.into_values().collect()
}

fn packed(text: &str) -> Vec<u8> {
    let mut packing = GzEncoder::new(Vec::new(), Compression::fast());
    packing.write_all(text.as_bytes()).expect("memory takes all");
    packing.finish().expect("memory takes all")
}

fn md5_of(bytes: &[u8]) -> [u8; 16] {
    Md5::digest(bytes).into()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn base64(bytes: &[u8]) -> String {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for three in bytes.chunks(3) {
        let bits = three.iter().fold(0u32, |bits, byte| bits << 8 | u32::from(*byte)) << (8 * (3 - three.len()));
        for place in 0..4 {
            let letter = LETTERS[(bits >> (18 - 6 * place)) as usize & 63];
            text.push(if place > three.len() { '=' } else { char::from(letter) });
        }
    }
    text
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "times of this century")]
fn millis(seconds: f64) -> u64 {
    (seconds * 1_000.0).round() as u64
}

/// S3's GetObject and HeadObject, of what the exports have written.
pub(super) async fn object(
    State(world): State<Shared>,
    Path((bucket, key)): Path<(String, String)>,
    headers: HeaderMap,
) -> Response {
    let bytes = world.lock().expect("no panic under the lock").exports.objects.get(&format!("{bucket}/{key}")).cloned();
    let Some(bytes) = bytes else {
        let body = "<Error><Code>NoSuchKey</Code><Message>The specified key does not exist.</Message></Error>";
        return (StatusCode::NOT_FOUND, [(header::CONTENT_TYPE, "application/xml")], body).into_response();
    };
    let range = headers.get(header::RANGE).and_then(|range| range.to_str().ok()?.strip_prefix("bytes="));
    let Some((from, to)) = range.and_then(|range| range.split_once('-')) else {
        return bytes.into_response();
    };
    let length = bytes.len();
    let (from, to) = match (from.parse::<usize>(), to.parse::<usize>()) {
        (Ok(from), Ok(to)) => (from, (to + 1).min(length)),
        (Ok(from), Err(_)) => (from, length),
        (Err(_), Ok(last)) => (length.saturating_sub(last), length),
        (Err(_), Err(_)) => (length, length),
    };
    if from >= to {
        return StatusCode::RANGE_NOT_SATISFIABLE.into_response();
    }
    let content_range = format!("bytes {from}-{}/{length}", to - 1);
    (StatusCode::PARTIAL_CONTENT, [(header::CONTENT_RANGE, content_range)], bytes.slice(from..to)).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_is_padded() {
        for (bytes, text) in [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foob", "Zm9vYg==")] {
            assert_eq!(base64(bytes.as_bytes()), text);
        }
    }
}
