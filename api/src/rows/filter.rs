//! Conditions on rows: a SQL expression over the columns of a table, as DataFusion understands it, or a tree that means
//! one. Only rows for which it is true are kept; NULL is not true.

mod planner;
mod tree;

use std::sync::Arc;

use arrow_array::cast::AsArray;
use arrow_array::{Array, ArrayRef, RecordBatch, StringArray};
use arrow_schema::{DataType, Field, Fields, Schema};
use datafusion_common::{DFSchema, DataFusionError, SchemaError};
use datafusion_expr::Expr;
use datafusion_physical_expr::PhysicalExpr;

use super::cells;
use crate::failure::{Exit, Failure};
use crate::nearest::nearest;
use planner::Planner;
pub(crate) use tree::FilterTree;

/// A condition as somebody has written it.
pub(crate) enum Where {
    Sql(String),
    Tree(FilterTree),
}

/// An expression whose columns are known, not yet bound to their places in what is read.
pub(super) struct Condition {
    planner: Planner,
    expression: Expr,
    text: String,
}

/// A condition on the rows of batches of one schema.
pub(super) struct Filter {
    expression: Arc<dyn PhysicalExpr>,
    /// What the expression sees: as the batches are, but uuids as text.
    schema: Arc<Schema>,
    text: String,
}

impl Condition {
    /// What is written, over the columns of `table`.
    pub(super) fn new(written: &Where, table: &Schema) -> Result<Self, Failure> {
        let planner = Planner::new();
        let text = match written {
            Where::Sql(text) => text.clone(),
            Where::Tree(_) => "filter".to_owned(),
        };
        let schema = DFSchema::try_from(visible(table));
        let expression = schema.and_then(|schema| match written {
            Where::Sql(text) => planner.parse(text, &schema),
            Where::Tree(tree) => planner.plan(tree.to_sql(table)?, &schema),
        });
        let names = || table.fields().iter().map(|field| field.name().as_str());
        let expression = expression.map_err(|error| invalid(&text, &error, names()))?;
        Ok(Self { planner, expression, text })
    }

    /// The names of the columns that the expression needs.
    pub(super) fn columns(&self) -> Vec<&str> {
        self.expression.column_refs().into_iter().map(|column| column.name.as_str()).collect()
    }

    /// The condition on batches of `read`, which hold its columns.
    pub(super) fn bind(self, read: &Schema) -> Result<Filter, Failure> {
        let schema = visible(read);
        let bound = DFSchema::try_from(schema.clone()).and_then(|typed| self.planner.bind(self.expression, typed));
        let expression = bound.and_then(|expression| match expression.data_type(&schema)? {
            DataType::Boolean | DataType::Null => Ok(expression),
            other => Err(DataFusionError::Plan(format!("it yields {other}, where true or false is wanted"))),
        });
        let expression = expression.map_err(|error| invalid(&self.text, &error, std::iter::empty()))?;
        Ok(Filter { expression, schema: Arc::new(schema), text: self.text })
    }
}

impl Filter {
    /// The rows for which the condition is true.
    pub(super) fn apply(&self, batch: &RecordBatch) -> Result<RecordBatch, Failure> {
        let failed = |error: DataFusionError| {
            let remedy =
                "let the expression meet only rows that it can judge, as in CASE WHEN b <> 0 THEN a / b > 2 END";
            Failure::failed("FILTER_INVALID", &self.text, message(&error), remedy)
        };
        let columns: Vec<ArrayRef> = batch
            .columns()
            .iter()
            .zip(batch.schema_ref().fields())
            .map(|(column, field)| seen(column, field))
            .collect();
        let seen = RecordBatch::try_new(Arc::clone(&self.schema), columns).map_err(|error| failed(error.into()))?;
        let truth = self.expression.evaluate(&seen).and_then(|truth| truth.into_array(batch.num_rows()));
        let truth = truth.map_err(failed)?;
        if truth.data_type() == &DataType::Null {
            return Ok(batch.slice(0, 0));
        }
        arrow_select::filter::filter_record_batch(batch, truth.as_boolean()).map_err(|error| failed(error.into()))
    }
}

/// The schema as an expression sees it: people write uuids as text, and compare them with text.
fn visible(schema: &Schema) -> Schema {
    let field = |field: &Arc<Field>| match is_uuid(field) {
        true => Arc::new(Field::new(field.name(), DataType::Utf8, field.is_nullable())),
        false => Arc::clone(field),
    };
    Schema::new(schema.fields().iter().map(field).collect::<Fields>())
}

fn seen(column: &ArrayRef, field: &Field) -> ArrayRef {
    match is_uuid(field) {
        true => Arc::new((0..column.len()).map(|row| cells::text(column, row)).collect::<StringArray>()),
        false => Arc::clone(column),
    }
}

fn is_uuid(field: &Field) -> bool {
    field.data_type() == &DataType::FixedSizeBinary(16) && field.extension_type_name() == Some("arrow.uuid")
}

fn invalid<'a>(text: &str, error: &DataFusionError, columns: impl Iterator<Item = &'a str>) -> Failure {
    let missing = match error.find_root() {
        DataFusionError::SchemaError(error, _) => match error.as_ref() {
            SchemaError::FieldNotFound { field, .. } => nearest(&field.name, columns),
            _ => None,
        },
        _ => None,
    };
    let remedy = match missing {
        Some(column) => format!("the nearest column is {column}; texts stand in single quotes"),
        None => {
            "write a SQL condition over the table's columns, such as \"amount > 100 AND state = 'paid'\"".to_owned()
        }
    };
    Failure { exit: Exit::Usage, ..Failure::failed("FILTER_INVALID", text, message(error), remedy) }
}

/// The engine's message without the trail of wrappers.
fn message(error: &DataFusionError) -> String {
    let text = error.find_root().strip_backtrace();
    format!("the condition cannot be used: {}", text.lines().next().unwrap_or_default())
}
