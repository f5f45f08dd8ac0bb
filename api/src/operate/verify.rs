//! Which mirrors are compared with their source. The comparison is the source crate's.

use lakehouse_core::schema::TableName;

use crate::config::PipelineConfig;
use crate::failure::Failure;
use crate::lake::{Kind, Lake, kind};

/// The mirrors of a pipeline: those that are named, or all of them where none is.
///
/// # Errors
/// `NO_CUT`; `TABLE_UNKNOWN` for what is no mirror of the pipeline: nothing of it would be compared, and so nothing found
/// different.
pub(crate) async fn mirrors(
    lake: &Lake,
    pipeline: &str,
    config: &PipelineConfig,
    names: &[TableName],
) -> Result<Vec<TableName>, Failure> {
    let cut = super::cut(lake, pipeline).await?;
    let mut mirrors = lake.captured(&config.namespace, &cut.source).await?;
    mirrors.retain(|table| kind(table) == Kind::Mirror);
    if names.is_empty() {
        return Ok(mirrors.into_iter().map(|table| table.name).collect());
    }
    for name in names {
        lake.named(&mirrors, name, pipeline).await?;
    }
    Ok(names.to_vec())
}
