//! Another engine that commits to the table, in ways that PyIceberg cannot: it deletes by values, and gives each file a
//! manifest of its own.

use std::collections::HashMap;
use std::sync::Arc;

use arrow_array::{ArrayRef, Int64Array, RecordBatch};
use iceberg::TableUpdate;
use iceberg::spec::{
    DataContentType, DataFile, DataFileBuilder, DataFileFormat, MAIN_BRANCH, ManifestListWriter, ManifestWriterBuilder,
    Operation, Schema, Snapshot, SnapshotReference, SnapshotRetention, Struct, Summary,
};
use lakehouse_core::live::manifest_list;
use lakehouse_core::write::{DataFileWriter, FileSchema, data_location};

use super::{Lake, Rows};

/// Where files stand: partition values, and the number of the spec that they are of.
#[derive(Clone)]
pub struct Placed(pub Struct, pub i32);

impl Default for Placed {
    fn default() -> Self {
        Self(Struct::empty(), 0)
    }
}

/// A data file with these rows, that no snapshot knows yet.
pub async fn data(lake: &Lake, rows: &Rows, placed: Placed) -> DataFile {
    let values: [Vec<i64>; 2] = [rows.keys().copied().collect(), rows.values().copied().collect()];
    file(lake, &["id", "value"], &values, placed).await
}

/// A file that deletes all rows with these values of a column.
pub async fn equality_delete(lake: &Lake, column: &str, values: &[i64], placed: Placed) -> DataFile {
    let written = file(lake, &[column], &[values.to_vec()], placed.clone()).await;
    let id = lake.files.iceberg.field_id_by_name(column).expect("a column");
    let Placed(partition, spec_id) = placed;
    DataFileBuilder::default()
        .content(DataContentType::EqualityDeletes)
        .file_path(written.file_path().to_owned())
        .file_format(DataFileFormat::Parquet)
        .partition(partition)
        .partition_spec_id(spec_id)
        .record_count(written.record_count())
        .file_size_in_bytes(written.file_size_in_bytes())
        .equality_ids(Some(vec![id]))
        .build()
        .expect("a whole description")
}

async fn file(lake: &Lake, columns: &[&str], values: &[Vec<i64>], Placed(partition, spec_id): Placed) -> DataFile {
    let metadata = lake.load().await.metadata;
    let fields = columns.iter().map(|name| Arc::clone(lake.files.iceberg.field_by_name(name).expect("a column")));
    let schema = Arc::new(Schema::builder().with_fields(fields).build().expect("a schema"));
    let files = FileSchema::new(schema).expect("a schema");
    let location = data_location(&metadata, &partition, &lake.files.iceberg);
    let mut writer = DataFileWriter::create(&lake.storage, &location, &files, partition, spec_id).expect("a file");
    let column = |values: &Vec<i64>| -> ArrayRef { Arc::new(Int64Array::from(values.clone())) };
    let rows = RecordBatch::try_new(Arc::clone(&files.arrow), values.iter().map(column).collect());
    writer.write(&rows.expect("rows")).expect("written");
    let written = writer.finish().expect("a whole file").file;
    lake.storage.make_durable(vec![location]).await.expect("durable");
    written
}

/// One commit, of a manifest for each file.
pub async fn commit(lake: &Lake, files: Vec<DataFile>) {
    let table = lake.load().await;
    let metadata = &table.metadata;
    let (number, parent) = (metadata.next_sequence_number(), metadata.current_snapshot_id());
    let id = 1_000_000 + number;
    let mut manifests = match metadata.current_snapshot() {
        Some(head) => manifest_list(&lake.storage, &table, head).await.expect("a manifest list"),
        None => Vec::new(),
    };
    for (n, file) in files.into_iter().enumerate() {
        let path = format!("{}/metadata/foreign-{id}-{n}.avro", metadata.location());
        let output = lake.storage.io().new_output(path).expect("a place");
        let spec = metadata.default_partition_spec().as_ref().clone();
        let schema = Arc::clone(metadata.current_schema());
        let builder = ManifestWriterBuilder::new(output, Some(id), schema, spec);
        let mut writer = match file.content_type() {
            DataContentType::Data => builder.build_v2_data(),
            DataContentType::PositionDeletes | DataContentType::EqualityDeletes => builder.build_v2_deletes(),
        };
        writer.add_file(file, number).expect("an entry");
        manifests.push(writer.write_manifest_file().await.expect("a manifest"));
    }
    let list = format!("{}/metadata/foreign-{id}.avro", metadata.location());
    let sink = lake.storage.io().new_output(&list).expect("a place").writer().await.expect("a file");
    let mut writer = ManifestListWriter::v2(sink, id, parent, number);
    writer.add_manifests(manifests.into_iter()).expect("a list");
    writer.close().await.expect("a whole list");
    let snapshot = Snapshot::builder()
        .with_snapshot_id(id)
        .with_parent_snapshot_id(parent)
        .with_sequence_number(number)
        .with_timestamp_ms(chrono::Utc::now().timestamp_millis().max(metadata.last_updated_ms() + 1))
        .with_manifest_list(list)
        .with_summary(Summary { operation: Operation::Overwrite, additional_properties: HashMap::new() })
        .with_schema_id(metadata.current_schema_id())
        .build();
    let reference = SnapshotReference::new(id, SnapshotRetention::branch(None, None, None));
    lake.change_metadata(vec![
        TableUpdate::AddSnapshot { snapshot },
        TableUpdate::SetSnapshotRef { ref_name: MAIN_BRANCH.to_owned(), reference },
    ])
    .await;
}
