//! `[audit]`: where the audit trail is kept.

use std::path::PathBuf;

use serde::Serialize;

use super::layers::Section;
use crate::failure::Failure;

#[derive(Clone, Debug, Serialize)]
pub(crate) struct AuditConfig {
    pub(crate) file: PathBuf,
    /// Reads of rows over HTTP have entries, too.
    pub(crate) rows: bool,
}

pub(super) fn audit(section: &Section<'_>) -> Result<AuditConfig, Failure> {
    let file = section.path("file")?;
    let rows = section.boolean("rows")?.unwrap_or(true);
    section.finish()?;
    // A section without a file is somebody's who believes that there is a trail.
    let file = file.ok_or_else(|| section.missing("file"))?;
    Ok(AuditConfig { file, rows })
}
