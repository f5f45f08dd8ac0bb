//! Parts of answers for the OpenAPI document whose types cannot say what they look like: those of crates that know no HTTP,
//! and documents with rows, which are written as they are read. Nobody makes one of these. Their comments are for readers of
//! the document.

#![expect(dead_code, reason = "only their schemas are wanted")]

mod upkeep;
mod verify;

use std::collections::BTreeMap;

use serde_json::Value;
use utoipa::openapi::{ObjectBuilder, RefOr, Schema, Type};
use utoipa::{PartialSchema, ToSchema};

pub(crate) use upkeep::{ForeignRewrite, Measures, Step, TableRun, Told};
pub(crate) use verify::VerifyReport;

// lakehouse_core::position::Position
pub(crate) struct Position;

impl PartialSchema for Position {
    fn schema() -> RefOr<Schema> {
        let schema = ObjectBuilder::new()
            .schema_type(Type::String)
            .description(Some("How far a source has been read: two hexadecimal halves with a slash between."))
            .pattern(Some("^[0-9A-Fa-f]{1,8}/[0-9A-Fa-f]{1,8}$"));
        schema.examples(["0/16B3748"]).into()
    }
}

impl ToSchema for Position {}

// lakehouse_core::commit::Stage
/// How far an operation has come.
#[derive(ToSchema)]
#[schema(rename_all = "snake_case")]
pub(crate) enum Stage {
    Forward,
    Back,
    RolledBack,
    Released,
    Closed,
}

// lakehouse_core::commit::RolledTable
/// One table of an operation.
#[derive(ToSchema)]
pub(crate) struct RolledTable {
    /// The table's name at the source.
    source: String,
    /// The snapshot that was current before.
    head: String,
    /// The snapshot whose rows are made current again.
    target: String,
    /// Left out where it is not known.
    #[schema(nullable = false)]
    target_position: Option<Position>,
    /// What the table had, and keeps.
    position: Position,
}

/// Rows of a table, in one document.
#[derive(ToSchema)]
pub(crate) struct Rows {
    /// As `namespace.table`.
    table: String,
    consistency: Consistency,
    /// The state that the rows are of; null for a table without commits.
    snapshot_id: Option<String>,
    /// RFC 3339.
    committed_at: Option<String>,
    /// Only where a cut was asked for.
    #[schema(nullable = false)]
    cut: Option<CutOfRows>,
    columns: Vec<String>,
    /// Values by the names of their columns.
    rows: Vec<BTreeMap<String, Value>>,
}

/// Whether the rows agree with those of the pipeline's other tables at the same cut, or are this table's alone.
#[derive(ToSchema)]
#[schema(rename_all = "snake_case")]
enum Consistency {
    Cut,
    PerTable,
}

/// The cut that the rows are of.
#[derive(ToSchema)]
struct CutOfRows {
    position: Position,
    /// It is at the very position that was asked for, not before it.
    exact: bool,
}

/// What differs between two snapshots of a table, or what has led from one to the other, in one document.
#[derive(ToSchema)]
pub(crate) struct Changes {
    /// As `namespace.table`.
    table: String,
    from: String,
    to: String,
    /// Only of a log, as `log`.
    #[schema(nullable = false)]
    mode: Option<String>,
    /// Left out where only counts are wanted.
    #[schema(nullable = false)]
    changes: Option<Vec<Change>>,
    inserted: u64,
    updated: u64,
    deleted: u64,
    /// Only of a log, as the next ones: rows that the source has let go of, and the mirror keeps.
    #[schema(nullable = false)]
    expired: Option<u64>,
    #[schema(nullable = false)]
    truncated: Option<u64>,
    #[schema(nullable = false)]
    quarantined: Option<u64>,
}

/// A row that differs; in a log one change, and where it comes from.
#[derive(ToSchema)]
struct Change {
    change: Changed,
    /// Only in a log, as the next ones: the end of the change's transaction.
    #[schema(nullable = false)]
    position: Option<Position>,
    /// Place in its transaction.
    #[schema(nullable = false)]
    ordinal: Option<i32>,
    /// At the source; RFC 3339.
    #[schema(nullable = false)]
    committed_at: Option<String>,
    /// The source's own number.
    #[schema(nullable = false)]
    transaction_id: Option<String>,
    /// Of a source's log in shards.
    #[schema(nullable = false)]
    lane: Option<String>,
    #[schema(nullable = false)]
    offset: Option<String>,
    /// Who has made the change, where the source says that it was not a client.
    #[schema(nullable = false)]
    actor: Option<String>,
    /// Of a row updated or deleted; in a log what the source has sent of it.
    #[schema(nullable = false)]
    before: Option<BTreeMap<String, Value>>,
    /// Of a row inserted or updated.
    #[schema(nullable = false)]
    after: Option<BTreeMap<String, Value>>,
}

#[derive(ToSchema)]
#[schema(rename_all = "snake_case")]
enum Changed {
    Inserted,
    Updated,
    Deleted,
    Expired,
    Truncated,
    Quarantined,
}

/// JSON, an object a line. The last has `_status`: `complete`, or `failed` with a `code`; without it rows are missing.
#[derive(ToSchema)]
#[schema(value_type = String)]
pub(crate) struct Lines(String);

/// CSV with a line of headings.
#[derive(ToSchema)]
#[schema(value_type = String)]
pub(crate) struct Csv(String);

/// An IPC stream of Arrow. Without its end mark rows are missing.
#[derive(ToSchema)]
#[schema(value_type = String, format = Binary)]
pub(crate) struct ArrowStream(Vec<u8>);

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use lakehouse_core::commit;

    use super::*;

    /// As the schema says which keys there are.
    pub(super) fn check<T: PartialSchema>(shown: &impl serde::Serialize) {
        let schema = serde_json::to_value(T::schema()).unwrap();
        let keys = |object: &Value| object.as_object().unwrap().keys().cloned().collect::<BTreeSet<_>>();
        assert_eq!(keys(&schema["properties"]), keys(&serde_json::to_value(shown).unwrap()));
    }

    #[test]
    fn a_shape_has_the_keys_of_what_it_stands_for() {
        check::<RolledTable>(&commit::RolledTable {
            source: "public.t".to_owned(),
            head: "2".to_owned(),
            target: "1".to_owned(),
            target_position: Some(lakehouse_core::position::Position::new(7)),
            position: lakehouse_core::position::Position::new(7),
        });
    }

    #[test]
    fn every_stage_is_among_those_of_the_shape() {
        use commit::Stage::{Back, Closed, Forward, Released, RolledBack};
        let next = |stage| match stage {
            Forward => Some(Back),
            Back => Some(RolledBack),
            RolledBack => Some(Released),
            Released => Some(Closed),
            Closed => None,
        };
        let all: Vec<_> = std::iter::successors(Some(Forward), |stage| next(*stage)).collect();
        let schema = serde_json::to_value(Stage::schema()).unwrap();
        assert_eq!(schema["enum"], serde_json::to_value(all).unwrap());
    }
}
