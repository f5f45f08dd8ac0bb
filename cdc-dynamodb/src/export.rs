//! Exports of point-in-time recovery: a table as it stood at a moment, or what changed between two, as files in S3.
//!
//! They cost the table no read capacity, so they are the road for large tables and the bridge over a gap. Asked for and
//! waited for in `request.rs`, their manifests in `manifest.rs`, their files in `data.rs`; what is read becomes a copy in
//! `copy.rs`, and changes in `bridge.rs`. Nothing of a file counts before all of it has been checked (D9).

mod copy;
mod data;
mod manifest;
mod request;
#[cfg(test)]
mod tests;

pub(crate) use copy::copy_exported;
pub(crate) use data::{ExportedChange, read_changes};
pub(crate) use manifest::{Export, ExportFile, Kind};
pub(crate) use request::{LONGEST_WINDOW, Requester, SHORTEST_WINDOW};

use lakehouse_core::error::Problem;
use lakehouse_core::storage::Storage;

use crate::config::{DynamodbSource, ExportPlace};

const REMEDY: &str = "let it be exported again: start the pipeline anew; look at who else writes under the prefix";

/// An export that is not what it says. It is of no use, and so a matter of its table.
fn broken(code: &'static str, location: &str, message: impl Into<String>) -> Problem {
    Problem::halt_table(code, location, message, REMEDY)
}

/// Where exports of this pipeline go.
pub(crate) fn place<'a>(source: &'a DynamodbSource, table: &str) -> Result<&'a ExportPlace, Problem> {
    source.settings.exports.as_ref().ok_or_else(|| {
        let remedy = "set export_bucket in [pipelines.NAME.dynamodb]";
        Problem::halt("CONFIG_MISSING_KEY", table, "exports have nowhere to go", remedy)
    })
}

/// What reads exports: their bucket need not be the lake's.
pub(crate) async fn storage(source: &DynamodbSource) -> Storage {
    Storage::s3(&source.aws).await
}
