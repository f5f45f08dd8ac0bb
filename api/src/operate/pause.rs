//! A pipeline stands still, and goes on from its cut. Nothing is lost meanwhile; the source holds what it has not been told
//! to forget.

use futures::FutureExt;

use super::control::on_control;
use crate::failure::Failure;
use crate::lake::Lake;

/// It stands still for this reason, or goes on where there is none. A worker at work finds out at its next cut.
pub(crate) async fn set(lake: &Lake, pipeline: &str, reason: Option<&str>) -> Result<(), Failure> {
    on_control(lake, pipeline, reason, |control, reason| control.pause(reason.map(str::to_owned)).boxed()).await
}
