//! `version`: which release this is, and which format of the lake it writes.

use lakehouse_core::commit::properties::FORMAT_VERSION;
use serde_json::json;

use crate::answer;
use crate::failure::{Exit, Failure};

pub(super) fn run(as_json: bool) -> Result<Exit, Failure> {
    let version = env!("CARGO_PKG_VERSION");
    match as_json {
        true => answer::json(&json!({"name": "lakehouse", "version": version, "format": FORMAT_VERSION}))?,
        false => answer::line(&format!("lakehouse {version}"))?,
    }
    Ok(Exit::Done)
}
