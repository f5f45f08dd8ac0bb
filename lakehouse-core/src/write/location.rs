//! Where new files of a table stand: below its location, by partition, under names that never come twice.

use std::sync::Arc;

use iceberg::spec::{SchemaRef, Struct, TableMetadata};
use uuid::Uuid;

pub fn data_location(metadata: &TableMetadata, partition: &Struct, schema: &SchemaRef) -> String {
    format!("{}/{}.parquet", folder(metadata, partition, schema), Uuid::now_v7())
}

pub fn delete_location(metadata: &TableMetadata, partition: &Struct, schema: &SchemaRef) -> String {
    format!("{}/{}-deletes.parquet", folder(metadata, partition, schema), Uuid::now_v7())
}

fn folder(metadata: &TableMetadata, partition: &Struct, schema: &SchemaRef) -> String {
    let spec = metadata.default_partition_spec();
    match partition.fields().len() == spec.fields().len() && !spec.is_unpartitioned() {
        true => format!("{}/data/{}", metadata.location(), spec.partition_to_path(partition, Arc::clone(schema))),
        false => format!("{}/data", metadata.location()),
    }
}
