//! Whether a snapshot can be gone back to: its files are there, and its rows are rows of the table as it is now (protocol E4).

use futures::{StreamExt, TryStreamExt, stream};
use iceberg::spec::{PrimitiveType, Type};

use crate::catalog::LoadedTable;
use crate::commit::Maintainer;
use crate::error::Problem;
use crate::live::LiveFiles;

/// Files asked for at the same time.
const FILES_AT_ONCE: usize = 16;

/// # Errors
/// `SNAPSHOT_UNKNOWN`; `TARGET_SCHEMA` where a column of the table cannot have the target's values; `TARGET_INCOMPLETE` where
/// files of the target are gone.
pub(super) async fn check(maintainer: &Maintainer, table: &LoadedTable, target: i64) -> Result<(), Problem> {
    check_schema(table, target)?;
    check_files(maintainer, table, target).await
}

/// The commit lists the target's files under the table's present schema (protocol E1). Our own changes of a schema keep it
/// readable: columns that come are optional. Another engine's need not.
fn check_schema(table: &LoadedTable, target: i64) -> Result<(), Problem> {
    let schema_id = table.metadata.snapshot_by_id(target).and_then(|snapshot| snapshot.schema_id());
    let Some(old) = schema_id.and_then(|id| table.metadata.schema_by_id(id)) else { return Ok(()) };
    for column in table.metadata.current_schema().as_struct().fields() {
        let why = match old.field_by_id(column.id) {
            None if column.required => "is required now, and its rows do not have it",
            Some(known) if !is_readable(&known.field_type, &column.field_type) => "was of another type there",
            _ => continue,
        };
        let message = format!("column {} of snapshot {target} {why}", column.name);
        let remedy = "roll back to a snapshot behind the change of the schema, or resync the table";
        return Err(Problem::halt("TARGET_SCHEMA", table.name.to_string(), message, remedy));
    }
    Ok(())
}

/// Whether values of a type are read as another one: Iceberg's promotions. What nested columns hold has ids of its own.
fn is_readable(old: &Type, new: &Type) -> bool {
    use PrimitiveType::{Decimal, Double, Float, Int, Long};
    match (old, new) {
        (Type::Primitive(old), Type::Primitive(new)) => match (old, new) {
            (Int, Long) | (Float, Double) => true,
            (Decimal { precision, scale }, Decimal { precision: wider, scale: same }) => {
                precision <= wider && scale == same
            }
            _ => old == new,
        },
        (Type::Primitive(_), _) | (_, Type::Primitive(_)) => false,
        _ => true,
    }
}

/// Every file of the target must still be there: a commit that names lost files would make the table unreadable (E4).
async fn check_files(maintainer: &Maintainer, table: &LoadedTable, target: i64) -> Result<(), Problem> {
    let live = LiveFiles::load(&maintainer.storage, table, Some(target)).await?;
    let data =
        live.data.iter().flat_map(|(path, file)| std::iter::once(path.clone()).chain(file.deletes.iter().cloned()));
    let files: Vec<String> = data.collect();
    let missing: Vec<String> = stream::iter(files)
        .map(|path| {
            let storage = maintainer.storage.clone();
            async move {
                let look = tokio::task::spawn_blocking(move || {
                    let there = storage.length(&path)?.is_some();
                    Ok::<_, Problem>((!there).then_some(path))
                });
                look.await.map_err(|_| Problem::retry("INTERRUPTED", "", "looking was interrupted"))?
            }
        })
        .buffer_unordered(FILES_AT_ONCE)
        .try_filter_map(|missing| async move { Ok(missing) })
        .try_collect()
        .await?;
    match missing.first() {
        None => Ok(()),
        Some(first) => {
            let message = format!("{} files of snapshot {target} are gone, {first} among them", missing.len());
            let remedy = "roll back to another snapshot, or resync the table";
            Err(Problem::halt("TARGET_INCOMPLETE", table.name.to_string(), message, remedy))
        }
    }
}
