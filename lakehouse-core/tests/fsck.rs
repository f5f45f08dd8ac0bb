//! Each kind of damage makes its own check fail, by name, and names what is damaged; the rest of the lake is still checked.

use std::collections::HashMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::tiny::Lake;
use arrow_array::{ArrayRef, Int64Array, RecordBatch, StringArray};
use iceberg::spec::{
    DataFileBuilder, DataFileFormat, Datum, ManifestFile, ManifestListWriter, ManifestWriterBuilder, Struct,
};
use lakehouse_core::fsck::{Check, CheckName, FsckReport, Verdict, fsck};
use lakehouse_core::live::{LiveFiles, find_snapshot, holds_data, load_manifest, manifest_list};
use lakehouse_core::planted::{Bug, Planted};
use lakehouse_core::schema::Key;
use lakehouse_core::storage::local_path;
use parquet::arrow::ArrowWriter;
use parquet::file::properties::WriterProperties;

const MIRROR: &str = "ns.t";
const HISTORY: &str = "ns.t_history";
const CONTROL: &str = "lakehouse_control.p";

async fn lake() -> Lake {
    Lake::of(Key::Columns(vec![0]), "1a 2b 3c", &["+4d =1e", "-2 =3f =4g", "+5h -1"], Planted::none()).await
}

async fn run(lake: &Lake) -> FsckReport {
    fsck(&*lake.catalog, &lake.storage, None).await.unwrap()
}

fn checks<'a>(report: &'a FsckReport, table: &str) -> &'a [Check] {
    &report.tables.iter().find(|found| found.table == table).expect("every table is reported").checks
}

/// What has failed, over all tables.
fn failed(report: &FsckReport) -> Vec<(String, CheckName)> {
    let all = report.tables.iter().flat_map(|table| table.checks.iter().map(|check| (table.table.clone(), check)));
    all.filter(|(_, check)| !check.ok).map(|(table, check)| (table, check.name)).collect()
}

/// The check fails and names the damage. Nothing but `table` is touched by it.
async fn expect(lake: &Lake, table: &str, name: CheckName, said: &str) -> FsckReport {
    let report = run(lake).await;
    assert_eq!(report.verdict, Verdict::Unsound);
    let check = checks(&report, table).iter().find(|check| check.name == name).expect("the check is there");
    assert!(!check.ok && check.detail.contains(said), "{check:?}");
    assert!(failed(&report).iter().all(|(other, _)| other == table), "{:?}", failed(&report));
    report
}

/// The file behind a location.
fn path(location: &str) -> PathBuf {
    local_path(location).unwrap()
}

/// Replaces text in a file, and sees that it was there.
fn replace(file: &Path, from: &str, to: &str) {
    let text = fs::read_to_string(file).unwrap();
    assert!(text.contains(from), "{from} is not in {}", file.display());
    fs::write(file, text.replace(from, to)).unwrap();
}

async fn metadata_file(lake: &Lake, table: &str) -> PathBuf {
    path(&lake.load(table).await.metadata_location)
}

async fn live(lake: &Lake, table: &str) -> LiveFiles {
    let loaded = lake.load(table).await;
    LiveFiles::load(&lake.storage, &loaded, loaded.snapshot_id()).await.unwrap()
}

/// A data file of the head, the first by name.
async fn data_file(lake: &Lake, table: &str) -> String {
    live(lake, table).await.data.into_keys().min().unwrap()
}

/// A delete file of the head, and the data file that it names.
async fn delete_file(lake: &Lake) -> (String, String) {
    let deletes = live(lake, MIRROR).await.deletes;
    let (path, delete) = deletes.into_iter().min_by(|a, b| a.0.cmp(&b.0)).expect("the script deletes rows");
    (path, delete.file.referenced_data_file().unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_product_writes_is_sound() {
    for key in [Key::Columns(vec![0]), Key::WholeRow] {
        let script = ["+4d =1a>1e", "-2b +2z", "!", "+5h +6i", "-5h"];
        let lake = Lake::of(key, "1a 2b 3c", &script, Planted::none()).await;
        let report = run(&lake).await;
        assert_eq!(failed(&report), [], "{report:#?}");
        assert_eq!(report.verdict, Verdict::Sound);
        let tables: Vec<&str> = report.tables.iter().map(|table| table.table.as_str()).collect();
        assert_eq!(tables, [CONTROL, MIRROR, HISTORY]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_report_has_the_keys_that_scripts_read() {
    let report = serde_json::to_value(run(&lake().await).await).unwrap();
    assert_eq!(report["verdict"], "sound");
    let mirror = &report["tables"][1];
    assert_eq!(mirror["table"], MIRROR);
    let names: Vec<&str> =
        mirror["checks"].as_array().unwrap().iter().map(|check| check["name"].as_str().unwrap()).collect();
    let all = "metadata chain position live_paths counters files parquet deletes bounds digest keys";
    assert_eq!(names.join(" "), all);
    assert!(mirror["checks"].as_array().unwrap().iter().all(|c| c["ok"] == true && c["detail"].is_string()));
    // That nothing is wrong means something: rows were read and ranges were joined.
    let detail = |name: &str| {
        let found = mirror["checks"].as_array().unwrap().iter().find(|check| check["name"] == name);
        found.unwrap()["detail"].as_str().unwrap().to_owned()
    };
    assert!(
        detail("chain").starts_with("3 change, 2 copy and 0 foreign snapshots from 0/64 to 0/82"),
        "{}",
        detail("chain")
    );
    assert_eq!(detail("digest"), "5 snapshots recomputed");
    assert_eq!(detail("keys"), "3 live rows");
}

#[tokio::test(flavor = "multi_thread")]
async fn only_the_tables_asked_for_are_checked_and_unknown_ones_are_refused() {
    let lake = lake().await;
    let only = [MIRROR.parse().unwrap()];
    let report = fsck(&*lake.catalog, &lake.storage, Some(&only)).await.unwrap();
    assert_eq!(report.tables.len(), 1);
    let unknown = ["ns.other".parse().unwrap()];
    assert_eq!(fsck(&*lake.catalog, &lake.storage, Some(&unknown)).await.unwrap_err().code, "TABLE_UNKNOWN");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_truncated_data_file_fails_files_and_parquet() {
    let lake = lake().await;
    let file = data_file(&lake, MIRROR).await;
    let length = fs::metadata(path(&file)).unwrap().len();
    File::options().write(true).open(path(&file)).unwrap().set_len(length - 5).unwrap();
    let report = expect(&lake, MIRROR, CheckName::Files, &format!("{file} has {} bytes", length - 5)).await;
    let parquet = checks(&report, MIRROR).iter().find(|check| check.name == CheckName::Parquet).unwrap();
    assert!(!parquet.ok && parquet.detail.contains(&file), "{parquet:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_file_is_named() {
    let lake = lake().await;
    let (file, _) = delete_file(&lake).await;
    fs::remove_file(path(&file)).unwrap();
    expect(&lake, MIRROR, CheckName::Files, &format!("{file} is missing")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn flipped_bytes_in_a_manifest_are_named_and_the_other_checks_go_on() {
    let lake = lake().await;
    let manifest = live(&lake, MIRROR).await.manifests[0].manifest_path.clone();
    let mut bytes = fs::read(path(&manifest)).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle..].iter_mut().for_each(|byte| *byte = !*byte);
    fs::write(path(&manifest), bytes).unwrap();
    let report = expect(&lake, MIRROR, CheckName::Files, &format!("manifest {manifest} cannot be read")).await;
    assert_eq!(checks(&report, MIRROR).len(), 11);
    assert!(checks(&report, HISTORY).iter().all(|check| check.ok));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_manifest_list_is_named() {
    let lake = lake().await;
    let table = lake.load(MIRROR).await;
    let list = table.metadata.current_snapshot().unwrap().manifest_list().to_owned();
    fs::write(path(&list), "not a list").unwrap();
    expect(&lake, MIRROR, CheckName::Files, &format!("manifest list {list} cannot be read")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn unreadable_metadata_fails_its_table_and_the_cut_that_names_it() {
    let lake = lake().await;
    fs::write(metadata_file(&lake, HISTORY).await, "{").unwrap();
    let report = run(&lake).await;
    // What the cut names there cannot be shown to exist; the mirror is not concerned.
    let expected = [(CONTROL.to_owned(), CheckName::Cut), (HISTORY.to_owned(), CheckName::Metadata)];
    assert_eq!(failed(&report), expected, "{report:#?}");
    assert!(checks(&report, CONTROL).iter().any(|check| check.detail.contains("ns.t_history cannot be read")));
    assert!(checks(&report, HISTORY)[0].detail.contains(".metadata.json"));
}

#[tokio::test(flavor = "multi_thread")]
async fn decimals_without_the_space_fail_metadata() {
    let lake = lake().await;
    replace(&metadata_file(&lake, MIRROR).await, "decimal(9, 2)", "decimal(9,2)");
    expect(&lake, MIRROR, CheckName::Metadata, "column amount is written as \"decimal(9,2)\"").await;
}

/// The value that the head's summary has under `key`.
async fn summary(lake: &Lake, table: &str, key: &str) -> String {
    let loaded = lake.load(table).await;
    loaded.metadata.current_snapshot().unwrap().summary().additional_properties[key].clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_summary_fails_the_check_that_recomputes_it() {
    for (key, wrong, name, said) in [
        ("total-records", "77", CheckName::Counters, "total-records = 77"),
        ("added-records", "9", CheckName::Counters, "added-records = 9"),
        ("cdc.from", "0/7A", CheckName::Chain, "gap"),
        ("cdc.from", "0/6D", CheckName::Chain, "overlap"),
        ("cdc.digest", "00000000000000000000000000000001", CheckName::Digest, "its rows come to"),
    ] {
        let lake = lake().await;
        let right = summary(&lake, MIRROR, key).await;
        let file = metadata_file(&lake, MIRROR).await;
        let mut text: serde_json::Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
        let head = text["current-snapshot-id"].clone();
        for snapshot in text["snapshots"].as_array_mut().unwrap().iter_mut().filter(|s| s["snapshot-id"] == head) {
            assert_eq!(snapshot["summary"][key], right.as_str());
            snapshot["summary"][key] = wrong.into();
        }
        fs::write(&file, text.to_string()).unwrap();
        expect(&lake, MIRROR, name, said).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_position_that_is_not_the_newest_changes_fails_position() {
    for table in [MIRROR, HISTORY] {
        let lake = lake().await;
        replace(&metadata_file(&lake, table).await, "\"cdc.position\":\"0/82\"", "\"cdc.position\":\"0/78\"");
        expect(&lake, table, CheckName::Position, "0/82, then 0/78").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn history_rows_outside_of_their_range_fail_position() {
    let lake = lake().await;
    // The newest commit claims to begin behind the rows that it brought.
    let file = metadata_file(&lake, HISTORY).await;
    replace(&file, "\"cdc.from\":\"0/78\"", "\"cdc.from\":\"0/82\"");
    let report = run(&lake).await;
    let position = checks(&report, HISTORY).iter().find(|check| check.name == CheckName::Position).unwrap();
    assert!(
        !position.ok && position.detail.contains("has rows from 0/82 to 0/82, outside of snapshot"),
        "{position:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_stands_twice_fails_keys() {
    let lake = Lake::of(Key::Columns(vec![0]), "1a 2b", &["=1c"], Planted::only(Bug::KeepOldRow)).await;
    let report = expect(&lake, MIRROR, CheckName::Keys, "stands 2 times: row 0 of file://").await;
    assert_eq!(failed(&report).len(), 1, "{:?}", failed(&report));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_position_in_the_summary_only_fails_position() {
    let lake = Lake::of(Key::Columns(vec![0]), "1a", &["+2b"], Planted::only(Bug::PositionInSummaryOnly)).await;
    let report = run(&lake).await;
    assert!(failed(&report).contains(&(MIRROR.to_owned(), CheckName::Position)), "{:?}", failed(&report));
}

async fn head_list(lake: &Lake) -> (String, Vec<ManifestFile>) {
    let table = lake.load(MIRROR).await;
    let snapshot = find_snapshot(&table, table.snapshot_id().unwrap()).unwrap();
    let list = manifest_list(&lake.storage, &table, &snapshot).await.unwrap();
    (snapshot.manifest_list().to_owned(), list)
}

async fn write_list(lake: &Lake, location: &str, manifests: Vec<ManifestFile>) {
    let table = lake.load(MIRROR).await;
    let snapshot = table.metadata.current_snapshot().unwrap();
    let sink = lake.storage.io().new_output(location).unwrap().writer().await.unwrap();
    let (id, parent) = (snapshot.snapshot_id(), snapshot.parent_snapshot_id());
    let mut writer = ManifestListWriter::v2(sink, id, parent, snapshot.sequence_number());
    writer.add_manifests(manifests.into_iter()).unwrap();
    writer.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_path_that_is_live_twice_fails_live_paths() {
    let lake = lake().await;
    let (location, mut manifests) = head_list(&lake).await;
    let data = manifests.iter().find(|manifest| holds_data(manifest)).unwrap().clone();
    manifests.push(data);
    write_list(&lake, &location, manifests).await;
    expect(&lake, MIRROR, CheckName::LivePaths, "more than once").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bounds_that_are_not_true_fail_bounds() {
    let lake = lake().await;
    let table = lake.load(MIRROR).await;
    let id = table.metadata.current_schema().field_id_by_name("id").unwrap();
    let (_, manifests) = head_list(&lake).await;
    let mut changed = String::new();
    for file in manifests.iter().filter(|file| holds_data(file)) {
        let manifest = load_manifest(&lake.storage, file).await.unwrap();
        let output = lake.storage.io().new_output(&file.manifest_path).unwrap();
        let spec = table.metadata.default_partition_spec().as_ref().clone();
        let schema = table.metadata.current_schema().clone();
        let mut writer = ManifestWriterBuilder::new(output, Some(file.added_snapshot_id), schema, spec).build_v2_data();
        for entry in manifest.entries() {
            let old = entry.data_file();
            let upper = HashMap::from([(id, Datum::long(0))]);
            let file = DataFileBuilder::default()
                .content(old.content_type())
                .file_path(old.file_path().to_owned())
                .file_format(DataFileFormat::Parquet)
                .partition(Struct::empty())
                .record_count(old.record_count())
                .file_size_in_bytes(old.file_size_in_bytes())
                .upper_bounds(upper)
                .build()
                .unwrap();
            changed = old.file_path().to_owned();
            writer.add_file(file, entry.sequence_number().unwrap()).unwrap();
        }
        writer.write_manifest_file().await.unwrap();
    }
    expect(&lake, MIRROR, CheckName::Bounds, &format!("{changed}: column id has values outside")).await;
}

/// Writes rows where a file of ours stands, as if we had written them.
fn overwrite(location: &str, columns: Vec<(&str, ArrayRef)>) {
    let batch = RecordBatch::try_from_iter(columns).unwrap();
    let ours = WriterProperties::builder().set_created_by("lakehouse".into()).build();
    let mut writer = ArrowWriter::try_new(File::create(path(location)).unwrap(), batch.schema(), Some(ours)).unwrap();
    writer.write(&batch).unwrap();
    writer.close().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn columns_without_field_ids_and_a_wrong_row_count_fail_parquet() {
    let lake = lake().await;
    let file = data_file(&lake, MIRROR).await;
    overwrite(&file, vec![("id", Arc::new(Int64Array::from_iter_values(0..50)))]);
    expect(&lake, MIRROR, CheckName::Parquet, &format!("{file}: column id has no field id")).await;
    expect(&lake, MIRROR, CheckName::Parquet, &format!("{file}: 50 rows, 50 in row groups, ")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn delete_files_that_engines_misread_fail_deletes() {
    for (names, positions, said) in [
        (None, vec![1, 0], "rows are not sorted"),
        (None, vec![0, 0], "rows are not sorted"),
        (None, vec![99], "row 99 is not within"),
        (None, vec![-1], "row -1 is not within"),
        (Some("file:///elsewhere.parquet"), vec![0], "bounds of file_path are not exact"),
        (Some("file:///elsewhere.parquet"), vec![0], "names file:///elsewhere.parquet"),
        (None, vec![2], "bounds of pos are not"),
    ] {
        let lake = lake().await;
        let (file, data) = delete_file(&lake).await;
        let paths = StringArray::from_iter_values(positions.iter().map(|_| names.unwrap_or(&data)));
        let columns: Vec<(&str, ArrayRef)> =
            vec![("file_path", Arc::new(paths)), ("pos", Arc::new(Int64Array::from(positions)))];
        overwrite(&file, columns);
        expect(&lake, MIRROR, CheckName::Deletes, said).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cut_that_names_what_is_not_there_fails_cut() {
    let lake = lake().await;
    let named = lake.load(MIRROR).await.snapshot_id().unwrap().to_string();
    replace(&metadata_file(&lake, CONTROL).await, &named, "12345");
    expect(&lake, CONTROL, CheckName::Cut, "the cut names snapshot 12345 of ns.t, which is gone").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cut_that_names_an_older_or_a_later_snapshot_fails_cut() {
    let lake = lake().await;
    let table = lake.load(MIRROR).await;
    let head = table.metadata.current_snapshot().unwrap();
    let parent = head.parent_snapshot_id().unwrap();
    let file = metadata_file(&lake, CONTROL).await;
    replace(&file, &head.snapshot_id().to_string(), &parent.to_string());
    expect(&lake, CONTROL, CheckName::Cut, "the cut at 0/82 misses snapshot").await;
    // And the other way: the property's cut is set back below what it names.
    replace(&file, &parent.to_string(), &head.snapshot_id().to_string());
    replace(&file, "\\\"position\\\":\\\"0/82\\\"", "\\\"position\\\":\\\"0/79\\\"");
    expect(&lake, CONTROL, CheckName::Cut, "beyond the cut at 0/79").await;
}
