//! One blob in a Puffin file of its own, referenced by a snapshot's statistics: so no cleaner takes it while that snapshot
//! is kept. The metadata says nothing of the blob itself, only the file does: readers refuse tables whose metadata has kinds
//! of blobs that they do not know (PyIceberg 0.11).

use std::collections::HashMap;

use iceberg::compression::CompressionCodec;
use iceberg::puffin::{Blob, PuffinReader, PuffinWriter};
use iceberg::spec::StatisticsFile;
use uuid::Uuid;

use crate::catalog::LoadedTable;
use crate::error::Problem;
use crate::storage::{Storage, iceberg_problem};

/// Around a footer's payload: two magics, its length, and flags.
const FOOTER_FRAME: i64 = 16;

/// A file that is written and durable.
pub(super) struct StoredBlob {
    pub(super) statistics: StatisticsFile,
    /// The whole file.
    pub(super) bytes: bytes::Bytes,
}

/// Writes `data` for a snapshot that is about to be committed on `base`. `name` tells people what the file is.
pub(super) async fn store(
    storage: &Storage,
    base: &LoadedTable,
    snapshot_id: i64,
    (kind, name): (&str, &str),
    data: Vec<u8>,
) -> Result<StoredBlob, Problem> {
    let path = format!("{}/metadata/{}-{name}.puffin", base.metadata.location(), Uuid::now_v7());
    let failed = |error: iceberg::Error| iceberg_problem(&path, "written", &error);
    let sequence_number = base.metadata.next_sequence_number();
    let blob = Blob::builder()
        .r#type(kind.to_owned())
        .fields(Vec::new())
        .snapshot_id(snapshot_id)
        .sequence_number(sequence_number)
        .data(data)
        .properties(HashMap::new())
        .build();
    let output = storage.io().new_output(&path).map_err(failed)?;
    let mut writer = PuffinWriter::new(&output, HashMap::new(), false).await.map_err(failed)?;
    writer.add(blob, CompressionCodec::zstd_default()).await.map_err(failed)?;
    writer.close().await.map_err(failed)?;
    storage.make_durable(vec![path.clone()]).await?;

    let bytes = storage.io().new_input(&path).map_err(failed)?.read().await.map_err(failed)?;
    let payload: [u8; 4] = bytes
        .get(bytes.len().saturating_sub(12)..)
        .and_then(|tail| tail.first_chunk())
        .copied()
        .ok_or_else(|| Problem::retry("STORAGE", &path, "the file that was written is cut off"))?;
    let statistics = StatisticsFile {
        snapshot_id,
        statistics_path: path.clone(),
        file_size_in_bytes: i64::try_from(bytes.len()).unwrap_or(i64::MAX),
        file_footer_size_in_bytes: i64::from(u32::from_le_bytes(payload)) + FOOTER_FRAME,
        key_metadata: None,
        blob_metadata: Vec::new(),
    };
    Ok(StoredBlob { statistics, bytes })
}

/// True for statistics that were stored under `name`.
pub(super) fn is_named(statistics: &StatisticsFile, name: &str) -> bool {
    statistics.statistics_path.ends_with(&format!("-{name}.puffin"))
}

/// The blob of a kind in a Puffin file.
///
/// # Errors
/// What is wrong with the file, as text.
pub(super) async fn fetch(storage: &Storage, path: &str, kind: &str) -> Result<Vec<u8>, String> {
    let told = |error: iceberg::Error| error.to_string();
    let reader = PuffinReader::new(storage.io().new_input(path).map_err(told)?);
    let blobs = reader.file_metadata().await.map_err(told)?.blobs();
    let found = blobs.iter().find(|blob| blob.blob_type() == kind);
    let found = found.ok_or_else(|| format!("it holds no {kind}"))?;
    Ok(reader.blob(found).await.map_err(told)?.data().to_vec())
}
