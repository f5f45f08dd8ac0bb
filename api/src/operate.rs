//! What operators do to pipelines and tables, once for everybody who asks: the command line (`verbs`) and HTTP (`http`).
//!
//! Each file has one verb's plan and effect. Not here: how it was asked for, whether somebody has said yes or may do it at
//! all, and how it is answered.

mod control;
pub(crate) mod operations;
pub(crate) mod pause;
pub(crate) mod quarantine;
pub(crate) mod release;
pub(crate) mod resync;
pub(crate) mod rollback;
pub(crate) mod tags;
pub(crate) mod verify;

pub(crate) use control::heads;

use lakehouse_core::commit::Cut;

use crate::failure::Failure;
use crate::lake::Lake;

/// Where a pipeline stands; nothing is created for one that has never been started.
///
/// # Errors
/// `NO_CUT`.
async fn cut(lake: &Lake, pipeline: &str) -> Result<Cut, Failure> {
    let control = lake.control(pipeline).await?;
    control.and_then(|(control, _)| control.cut).ok_or_else(|| {
        let remedy = "start the pipeline: its first start copies every table";
        Failure::failed("NO_CUT", pipeline, "the pipeline has no cut yet", remedy)
    })
}
