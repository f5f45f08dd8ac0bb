//! From a Relation message to the way its rows are taken: known shape, one more column, or a reason to halt the table.

use std::collections::BTreeSet;
use std::sync::Arc;

use lakehouse_core::schema::{Column, TableSchema, lake_name};

use crate::chunk::ChunkBuilder;
use crate::pgoutput::{self, ReplicaIdentity};
use crate::tables::{Identity, SourceColumn, SourceTable};
use crate::values::ColumnType;

/// A captured table while it streams.
pub(crate) struct StreamedTable {
    pub(crate) source: SourceTable,
    pub(crate) schema: Arc<TableSchema>,
    /// Columns that the server's catalog has and the lake has not yet: older changes come without them.
    pub(crate) unseen: BTreeSet<String>,
}

/// The shape that a Relation message announces, in owned form: it may have to wait for a catalog query.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Shape {
    pub(crate) full: bool,
    pub(crate) nothing: bool,
    /// Name, type oid, typmod, part of the identity.
    pub(crate) columns: Vec<(String, u32, i32, bool)>,
}

/// What a new shape means.
pub(crate) enum Judgement {
    /// Rows are taken as before.
    Known,
    /// These columns are new: their types must be looked up.
    Added(Vec<(String, u32, i32, bool)>),
    /// A change that the table cannot follow by itself.
    Refused(String),
}

impl Shape {
    pub(crate) fn of(relation: &pgoutput::Relation<'_>) -> Self {
        let column =
            |column: &pgoutput::Column<'_>| (column.name.to_owned(), column.type_oid, column.type_modifier, column.key);
        Self {
            full: relation.replica_identity == ReplicaIdentity::Full,
            nothing: relation.replica_identity == ReplicaIdentity::Nothing,
            columns: relation.columns.iter().map(column).collect(),
        }
    }
}

impl StreamedTable {
    /// Only columns that are added are followed; everything else halts the table, with the reason.
    pub(crate) fn judge(&self, shape: &Shape) -> Judgement {
        let mut added = Vec::new();
        for (name, type_oid, typmod, key) in &shape.columns {
            match self.source.columns.iter().find(|column| column.name == *name) {
                None => added.push((name.clone(), *type_oid, *typmod, *key)),
                Some(known) if known.type_oid != *type_oid || known.typmod != *typmod => {
                    return Judgement::Refused(format!("column {name:?} has changed its type"));
                }
                Some(known) if !shape.full && known.key != *key && self.source.identity == Identity::Key => {
                    return Judgement::Refused(format!("column {name:?} has joined or left the replica identity"));
                }
                Some(_) => {}
            }
        }
        let gone = |column: &&SourceColumn| shape.columns.iter().all(|(name, ..)| *name != column.name);
        let gone = self.source.columns.iter().filter(|column| !self.unseen.contains(&column.name)).find(gone);
        if let Some(gone) = gone {
            return Judgement::Refused(format!("column {:?} has been dropped or renamed", gone.name));
        }
        let changed = match self.source.identity {
            Identity::Full => !shape.full,
            Identity::Key => shape.full || shape.nothing,
            Identity::Nothing => false,
        };
        if changed {
            return Judgement::Refused("the replica identity has changed".to_owned());
        }
        if added.is_empty() { Judgement::Known } else { Judgement::Added(added) }
    }

    /// Takes new columns into the table, behind all others.
    pub(crate) fn add_columns(&mut self, columns: Vec<SourceColumn>) {
        let overflow = self.schema.has_overflow();
        let mut wider = TableSchema::clone(&self.schema);
        if overflow {
            wider.columns.pop();
            wider.before_columns.retain(|&column| column < wider.columns.len());
        }
        for column in columns {
            let own = self.source.options.column_names.get(&column.name);
            wider.columns.push(Column {
                name: lake_name(own.unwrap_or(&column.name)),
                source_name: column.name.clone(),
                source_type: column.type_name.clone(),
                data_type: column.column_type.data_type().clone(),
                required: false,
            });
            if self.source.identity == Identity::Full {
                wider.before_columns.push(wider.columns.len() - 1);
            }
            self.source.columns.push(column);
        }
        let wider = Arc::new(wider);
        self.schema = if overflow { wider.with_overflow() } else { wider };
    }

    /// A builder for rows of this shape, whose columns are known from now on.
    pub(crate) fn builder(&mut self, shape: &Shape) -> ChunkBuilder {
        shape.columns.iter().for_each(|(name, ..)| {
            self.unseen.remove(name);
        });
        let place = |name: &String| self.source.columns.iter().position(|column| column.name == *name);
        let places = shape.columns.iter().map(|(name, ..)| place(name)).collect();
        let types: Vec<ColumnType> = self.source.columns.iter().map(|column| column.column_type.clone()).collect();
        ChunkBuilder::new(Arc::clone(&self.schema), &types, places)
    }
}
