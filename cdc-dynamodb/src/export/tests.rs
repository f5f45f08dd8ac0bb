//! Exports in the documented layout, written by the simulator of the service and then spoilt; the reader shares no code
//! with it.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write as _;
use std::path::Path;

use aws_sdk_dynamodb::primitives::DateTime;
use aws_sdk_dynamodb::types::{ExportFormat, ExportType, IncrementalExportSpecification};
use flate2::Compression;
use flate2::write::GzEncoder;
use lakehouse_core::storage::location_of;
use md5::{Digest, Md5};
use serde_json::{Value as Json, json};
use tempfile::TempDir;
use testkit::dynamodb::{DynamoDb, Habits, KeyType, View, client};

use super::data::{ExportedChange, read_changes, read_items};
use super::manifest::{Export, Kind, checksum};
use super::*;
use crate::value::Item;

/// An export's objects in a folder, as `aws s3 sync` would bring them.
struct Folder {
    folder: TempDir,
    summary: String,
}

impl Folder {
    fn of(service: &DynamoDb) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut summary = String::new();
        for (key, bytes) in service.objects() {
            let path = folder.path().join(&key);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, bytes).unwrap();
            if key.ends_with("manifest-summary.json") {
                summary = location_of(&path);
            }
        }
        Self { folder, summary }
    }

    fn open(&self, kind: Kind) -> Result<Export, Problem> {
        Export::open(&Storage::local(), &self.summary, kind)
    }

    /// The only file whose name ends so, or the largest of them.
    fn path(&self, ending: &str) -> std::path::PathBuf {
        fn walk(folder: &Path, all: &mut Vec<std::path::PathBuf>) {
            for entry in fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() { walk(&path, all) } else { all.push(path) }
            }
        }
        let mut all = Vec::new();
        walk(self.folder.path(), &mut all);
        let found = all.into_iter().filter(|path| path.to_string_lossy().ends_with(ending));
        found.max_by_key(|path| fs::metadata(path).unwrap().len()).unwrap()
    }

    /// Everything, or the code of what is wrong.
    fn read(&self) -> Result<Vec<Item>, &'static str> {
        let export = self.open(Kind::Full).map_err(|problem| problem.code)?;
        let mut items = Vec::new();
        for file in &export.files {
            let each = |item| {
                items.push(item);
                Ok(())
            };
            read_items(&Storage::local(), file, each).map_err(|problem| problem.code)?;
        }
        assert_eq!(items.len() as u64, export.items);
        Ok(items)
    }

    /// A manifest again with the checksum beside it.
    fn rewrite(&self, name: &str, edit: impl Fn(String) -> String) {
        let path = self.path(&format!("{name}.json"));
        let text = edit(fs::read_to_string(&path).unwrap());
        let sum = Md5::digest(&text).iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        fs::write(path.with_extension("checksum"), sum).unwrap();
        fs::write(path, text).unwrap();
    }
}

fn service(items: u64) -> DynamoDb {
    let service = DynamoDb::start_now(Habits::default(), 7);
    service.create_table("profiles", &[("id", KeyType::S)]);
    service.enable_stream("profiles", View::NewAndOldImages, 1);
    for number in 0..items {
        service.put("profiles", &json!({"id": {"S": format!("u{number}")}, "n": {"N": number.to_string()}}));
    }
    service
}

const ARN: &str = "arn:aws:dynamodb:us-east-1:000000000000:table/profiles";

async fn exported(items: u64) -> Folder {
    let service = service(items);
    let call = client(&service.endpoint()).export_table_to_point_in_time().table_arn(ARN).s3_bucket("exports");
    call.s3_prefix("a/b").export_format(ExportFormat::DynamodbJson).send().await.unwrap();
    Folder::of(&service)
}

fn packed(text: &str) -> Vec<u8> {
    let mut packing = GzEncoder::new(Vec::new(), Compression::default());
    packing.write_all(text.as_bytes()).unwrap();
    packing.finish().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_export_is_read_item_by_item_also_where_files_are_empty() {
    let folder = exported(100).await;
    let export = folder.open(Kind::Full).unwrap();
    assert_eq!((export.table_arn.as_str(), export.items), (ARN, 100));
    assert!(export.files.iter().any(|file| file.items == 0), "one partition is empty");
    let mut ids: Vec<String> = folder.read().unwrap().iter().map(|item| format!("{item}")).collect();
    ids.sort();
    assert_eq!(ids.len(), 100);
    assert_eq!(ids[0], r#"{"id":{"S":"u0"},"n":{"N":"0"}}"#);
    assert!(exported(0).await.read().unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_is_missing_spoilt_or_short_is_an_error_with_a_name() {
    let spoil = |ending: &'static str, how: fn(Vec<u8>) -> Option<Vec<u8>>| async move {
        let folder = exported(100).await;
        let path = folder.path(ending);
        match how(fs::read(&path).unwrap()) {
            Some(bytes) => fs::write(&path, bytes).unwrap(),
            None => fs::remove_file(&path).unwrap(),
        }
        folder.read().unwrap_err()
    };
    assert_eq!(spoil(".json.gz", |_| None).await, "EXPORT_MISSING");
    assert_eq!(spoil("manifest-files.json", |_| None).await, "EXPORT_MISSING");
    assert_eq!(spoil("manifest-summary.json", |_| None).await, "EXPORT_MISSING");
    assert_eq!(spoil("manifest-files.checksum", |_| None).await, "EXPORT_MISSING");
    for cut in [
        |bytes: Vec<u8>| Some(bytes[..bytes.len() / 2].to_vec()),
        |bytes: Vec<u8>| Some(bytes[..bytes.len() - 1].to_vec()),
        |mut bytes: Vec<u8>| {
            let middle = bytes.len() / 2;
            bytes[middle] ^= 1;
            Some(bytes)
        },
        |mut bytes: Vec<u8>| {
            bytes.push(0);
            Some(bytes)
        },
        // One that is whole in itself, of another export.
        |_| Some(packed("{\"Item\":{\"id\":{\"S\":\"x\"}}}\n")),
    ] {
        assert_eq!(spoil(".json.gz", cut).await, "EXPORT_CHECKSUM");
    }
    let edit =
        |bytes: Vec<u8>| Some(String::from_utf8(bytes).unwrap().replacen("itemCount", "itemcount", 1).into_bytes());
    assert_eq!(spoil("manifest-files.json", edit).await, "EXPORT_CHECKSUM");
    assert_eq!(spoil("manifest-summary.json", edit).await, "EXPORT_CHECKSUM");
}

#[tokio::test(flavor = "multi_thread")]
async fn manifests_that_do_not_agree_are_refused() {
    let edited = |name: &'static str, from: &'static str, to: &'static str| async move {
        let folder = exported(100).await;
        folder.rewrite(name, |text| {
            assert!(text.contains(from), "{text}");
            text.replacen(from, to, 1)
        });
        folder.read().unwrap_err()
    };
    assert_eq!(edited("manifest-summary", "\"itemCount\":100", "\"itemCount\":101").await, "EXPORT_MANIFEST");
    assert_eq!(edited("manifest-summary", "DYNAMODB_JSON", "ION").await, "EXPORT_MANIFEST");
    assert_eq!(edited("manifest-summary", "\"tableArn\"", "\"tablearn\"").await, "EXPORT_MANIFEST");
    assert_eq!(edited("manifest-files", "\"md5Checksum\":\"", "\"md5Checksum\":\"-").await, "EXPORT_MANIFEST");
    let folder = exported(3).await;
    assert_eq!(folder.open(Kind::Incremental).unwrap_err().code, "EXPORT_MANIFEST");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_count_that_is_wrong_and_a_line_that_is_none_are_told_apart() {
    // Both with right checksums: the manifest counts one item more than the file has, and one line is no item.
    for (text, code) in [
        ("{\"Item\":{\"id\":{\"S\":\"a\"}}}\n".to_owned(), "EXPORT_SHORT"),
        ("{\"Item\":{\"id\":{\"S\":\"secret\"}}\n{\"Item\":{}}\n".to_owned(), "EXPORT_DAMAGED"),
        ("{\"Item\":{\"id\":{\"X\":\"secret\"}}}\n\n{\"Item\":{}}\n".to_owned(), "EXPORT_DAMAGED"),
    ] {
        let folder = written(&text, 2);
        let export = folder.open(Kind::Full).unwrap();
        let problem = read_items(&Storage::local(), &export.files[0], |_| Ok(())).unwrap_err();
        assert_eq!(problem.code, code, "{text}");
        assert!(!problem.message.contains("secret"), "no value is told");
    }
}

/// An export of one file by hand, whose keys lack the prefix, as in the documentation's examples.
fn written(text: &str, items: u64) -> Folder {
    let folder = tempfile::tempdir().unwrap();
    let home = folder.path().join("bucket/2020-Nov/AWSDynamoDB/01693685827463-2d8752fd");
    fs::create_dir_all(home.join("data")).unwrap();
    let bytes = packed(text);
    let sum = aws_smithy_types::base64::encode(Md5::digest(&bytes));
    fs::write(home.join("data/asdl123dasas.json.gz"), bytes).unwrap();
    let key = "AWSDynamoDB/01693685827463-2d8752fd/data/asdl123dasas.json.gz";
    let files = json!({"itemCount": items, "md5Checksum": sum, "etag": "af83d6f217c19b8b0fff8023d8ca4716-1", "dataFileS3Key": key});
    let summary = json!({
        "version": "2020-06-30", "exportArn": format!("{ARN}/export/01693685827463-2d8752fd"), "tableArn": ARN,
        "exportTime": "2020-11-04T07:28:34.028Z", "s3Bucket": "bucket", "s3Prefix": "2020-Nov",
        "manifestFilesS3Key": "AWSDynamoDB/01693685827463-2d8752fd/manifest-files.json", "billedSizeBytes": 0,
        "itemCount": items, "outputFormat": "DYNAMODB_JSON",
    });
    for (name, text) in [("manifest-files", format!("{files}\n")), ("manifest-summary", summary.to_string())] {
        let sum = aws_smithy_types::base64::encode(Md5::digest(&text));
        fs::write(home.join(format!("{name}.checksum")), sum).unwrap();
        fs::write(home.join(format!("{name}.json")), text).unwrap();
    }
    let summary = location_of(&home.join("manifest-summary.json"));
    Folder { folder, summary }
}

#[test]
fn an_export_whose_keys_lack_the_prefix_is_found() {
    assert_eq!(written("{\"Item\":{\"id\":{\"S\":\"a\"}}}\n", 1).read().unwrap().len(), 1);
}

#[test]
fn the_time_of_a_change_is_read_in_every_form() {
    for time in [json!("1680109764000000"), json!(1_680_109_764_000_000_i64), json!({"N": "1680109764000000"})] {
        let line: Json = json!({"Metadata": {"WriteTimestampMicros": time}, "Keys": {"id": {"S": "a"}}});
        let change: ExportedChange = serde_json::from_value(line).unwrap();
        assert_eq!(change.written_at(), Some(1_680_109_764_000_000));
    }
}

#[test]
fn checksums_are_read_in_both_their_forms() {
    let sum = *b"0123456789abcdef";
    let hexadecimal: String = sum.iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(checksum(&hexadecimal), Some(sum));
    assert_eq!(checksum(&aws_smithy_types::base64::encode(sum)), Some(sum));
    for none in ["", "zz", "MTIz", &"zz".repeat(16)] {
        assert_eq!(checksum(none), None, "{none}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_incremental_export_tells_what_became_of_each_item() {
    let service = service(3);
    let hour = std::time::Duration::from_secs(3_600);
    service.advance(hour);
    let from = service.now();
    service.put("profiles", &json!({"id": {"S": "u0"}, "n": {"N": "7"}}));
    service.put("profiles", &json!({"id": {"S": "u0"}, "n": {"N": "8"}}));
    service.delete("profiles", &json!({"id": {"S": "u1"}}));
    service.put("profiles", &json!({"id": {"S": "new"}}));
    service.put("profiles", &json!({"id": {"S": "short"}}));
    service.delete("profiles", &json!({"id": {"S": "short"}}));
    service.advance(hour);
    let window = IncrementalExportSpecification::builder().export_from_time(DateTime::from(from));
    let window = window.export_to_time(DateTime::from(service.now())).build();
    let call = client(&service.endpoint()).export_table_to_point_in_time().table_arn(ARN).s3_bucket("exports");
    let call = call.export_type(ExportType::IncrementalExport).incremental_export_specification(window);
    call.send().await.unwrap();
    let export = Folder::of(&service).open(Kind::Incremental);
    let folder = Folder::of(&service);
    let export = export.and_then(|_| folder.open(Kind::Incremental)).unwrap();
    let mut seen: BTreeMap<String, (Option<String>, Option<String>)> = BTreeMap::new();
    for file in &export.files {
        let each = |change: ExportedChange| {
            let text = |image: Option<Item>| image.map(|item| item.canonical());
            assert!(change.written_at().is_some());
            seen.insert(change.keys.canonical(), (text(change.old_image), text(change.new_image)));
            Ok(())
        };
        read_changes(&Storage::local(), file, each).unwrap();
    }
    let image = |text: &str| Some(text.to_owned());
    let wanted = [
        (r#"{"id":"new"}"#, (None, image(r#"{"id":"new"}"#))),
        (r#"{"id":"short"}"#, (None, None)),
        (r#"{"id":"u0"}"#, (image(r#"{"id":"u0","n":0}"#), image(r#"{"id":"u0","n":8}"#))),
        (r#"{"id":"u1"}"#, (image(r#"{"id":"u1","n":1}"#), None)),
    ];
    assert_eq!(seen, wanted.map(|(key, images)| (key.to_owned(), images)).into());
}
