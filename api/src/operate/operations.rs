//! What people have done to a pipeline's tables.

use lakehouse_core::commit::{Journal, recorded_operations};

use crate::failure::Failure;
use crate::lake::Lake;

/// As they stood last, oldest first; none before the pipeline's first start. Requests are left out: they are between the
/// journal and who asked.
pub(crate) async fn known(lake: &Lake, pipeline: &str) -> Result<Vec<Journal>, Failure> {
    let control = lake.control(pipeline).await?;
    let mut known = control.map(|(_, table)| recorded_operations(&table)).unwrap_or_default();
    known.iter_mut().for_each(|journal| journal.request = None);
    Ok(known)
}

/// # Errors
/// `OPERATION_UNKNOWN`, with those that are known.
pub(crate) async fn find(lake: &Lake, pipeline: &str, id: &str) -> Result<Journal, Failure> {
    let known = known(lake, pipeline).await?;
    known.iter().find(|journal| journal.id == id).cloned().ok_or_else(|| {
        let ids: Vec<&str> = known.iter().map(|journal| journal.id.as_str()).collect();
        let remedy = format!("known are: {}", if ids.is_empty() { "none".to_owned() } else { ids.join(", ") });
        Failure::failed("OPERATION_UNKNOWN", id, "the pipeline knows no such operation", remedy)
    })
}
