//! Names for snapshots, given and taken away by people. Each is one change of the table's metadata, whoever writes to it.

use lakehouse_core::catalog::LoadedTable;
use lakehouse_core::schema::TableName;
use lakehouse_core::tags::{self, TagName};

use super::control::moved;
use crate::failure::Failure;
use crate::lake::{Lake, unknown_tag};
use crate::upkeep::check_maintained;

/// What the audit trail calls it.
pub(crate) fn action(name: &TagName, removes: bool) -> &'static str {
    match (name.is_protected(), removes) {
        (false, false) => "tag",
        (false, true) => "untag",
        (true, false) => "protect",
        (true, true) => "unprotect",
    }
}

/// A table whose snapshots may be named, as it stands.
///
/// # Errors
/// `TABLE_UNKNOWN`, also for one that no pipeline owns.
pub(crate) async fn table(lake: &Lake, name: &TableName) -> Result<LoadedTable, Failure> {
    let table = lake.table(name).await?;
    check_maintained(&table)?;
    Ok(table)
}

/// The snapshot that has a name.
///
/// # Errors
/// `TAG_UNKNOWN`, with the nearest one; `TAG_NAME` for a branch.
pub(crate) fn named(table: &LoadedTable, name: &TagName) -> Result<i64, Failure> {
    tags::tagged(table, name)?.ok_or_else(|| unknown_tag(table, name.as_str()))
}

/// # Errors
/// As [`tags::set`].
pub(crate) async fn set(
    lake: &Lake,
    table: &TableName,
    name: &TagName,
    snapshot_id: i64,
    seen: Option<i64>,
) -> Result<(), Failure> {
    tags::set(&lake.maintainer(), table, name, snapshot_id, seen).await.map_err(moved)
}

/// # Errors
/// As [`tags::remove`].
pub(crate) async fn remove(lake: &Lake, table: &TableName, name: &TagName, seen: i64) -> Result<(), Failure> {
    tags::remove(&lake.maintainer(), table, name, seen).await.map_err(moved)
}
