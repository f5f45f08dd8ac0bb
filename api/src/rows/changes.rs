//! The formats of a diff: what differs as rows with one column more, or as one JSON document.

use std::io::Write;
use std::sync::Arc;

use arrow_array::{ArrayRef, RecordBatch, StringArray};
use arrow_schema::{ArrowError, DataType, Field, Schema, SchemaRef as ArrowSchemaRef};
use arrow_select::interleave::interleave_record_batch;
use lakehouse_core::diff::{Changes, Counts};
use serde_json::{Map, Value};

use super::cells;
use super::document::Document;
use super::output::{Output, named};
use crate::cli::Format;
use crate::failure::Failure;

/// What happened to a row, where rows have columns; before all others.
const CHANGE: &str = "_change";

/// Where changes go.
pub(crate) enum ChangesOutput<W: Write> {
    /// Rows with `_change`: `insert`, `delete`, and of an update `update_before` and right behind it `update_after`.
    Flat {
        output: Output<W>,
        schema: ArrowSchemaRef,
    },
    Json(Document<W>),
}

impl<W: Write> ChangesOutput<W> {
    /// For rows of `schema`.
    pub(crate) fn flat(format: Format, out: W, schema: &Schema, emphasis: bool) -> Result<Self, Failure> {
        let mut fields = vec![Arc::new(Field::new(CHANGE, DataType::Utf8, false))];
        fields.extend(schema.fields().iter().cloned());
        let schema = Arc::new(Schema::new(fields));
        Ok(Self::Flat { output: Output::of(format, out, &schema, emphasis)?, schema })
    }

    /// `head` has at least one key.
    pub(crate) fn json(out: W, head: Map<String, Value>) -> Result<Self, Failure> {
        Ok(Self::Json(Document::begin(out, head)?))
    }

    pub(crate) fn write(&mut self, changes: &Changes) -> Result<(), Failure> {
        match self {
            Self::Flat { output, schema } => output.write(&flat(changes, schema).map_err(failed)?),
            Self::Json(document) => {
                let (word, before, after) = match changes {
                    Changes::Inserted(after) => ("inserted", None, Some(after)),
                    Changes::Updated { before, after } => ("updated", Some(before), Some(after)),
                    Changes::Deleted(before) => ("deleted", Some(before), None),
                };
                let rows = before.or(after).map_or(0, RecordBatch::num_rows);
                (0..rows).try_for_each(|row| {
                    document.change(|object| {
                        object.push_str("{\"change\":\"");
                        object.push_str(word);
                        object.push('"');
                        for (key, batch) in [("before", before), ("after", after)] {
                            if let Some(batch) = batch {
                                object.push_str(&format!(",\"{key}\":"));
                                cells::write_object(object, named(batch), row);
                            }
                        }
                        object.push('}');
                    })
                })
            }
        }
    }

    /// Ends the answer and gives its way out back, everything written.
    pub(crate) fn end(self, counts: Counts) -> Result<W, Failure> {
        match self {
            Self::Flat { output, .. } => output.end(),
            Self::Json(document) => document.end(&counts),
        }
    }
}

fn flat(changes: &Changes, schema: &ArrowSchemaRef) -> Result<RecordBatch, ArrowError> {
    let (words, rows): (&[&str], RecordBatch) = match changes {
        Changes::Inserted(rows) => (&["insert"], rows.clone()),
        Changes::Deleted(rows) => (&["delete"], rows.clone()),
        Changes::Updated { before, after } => {
            let places: Vec<(usize, usize)> = (0..before.num_rows()).flat_map(|row| [(0, row), (1, row)]).collect();
            (&["update_before", "update_after"], interleave_record_batch(&[before, after], &places)?)
        }
    };
    let words: StringArray = words.iter().cycle().take(rows.num_rows()).map(|word| Some(*word)).collect();
    let mut columns: Vec<ArrayRef> = vec![Arc::new(words)];
    columns.extend(rows.columns().iter().cloned());
    RecordBatch::try_new(Arc::clone(schema), columns)
}

fn failed(error: ArrowError) -> Failure {
    std::io::Error::other(error).into()
}

#[cfg(test)]
mod tests {
    use arrow_array::Int64Array;
    use serde_json::json;

    use super::*;

    fn batch(ids: Vec<i64>) -> RecordBatch {
        let ids: ArrayRef = Arc::new(Int64Array::from(ids));
        RecordBatch::try_from_iter_with_nullable([("id", ids, false)]).unwrap()
    }

    fn all() -> [Changes; 3] {
        let updated = Changes::Updated { before: batch(vec![3, 4]), after: batch(vec![30, 40]) };
        [Changes::Inserted(batch(vec![1, 2])), updated, Changes::Deleted(batch(vec![5]))]
    }

    const COUNTS: Counts = Counts { inserted: 2, updated: 2, deleted: 1 };

    #[test]
    fn an_update_is_two_rows_one_behind_the_other() {
        let schema = batch(vec![]).schema();
        let mut output = ChangesOutput::flat(Format::Csv, Vec::new(), &schema, false).unwrap();
        all().iter().try_for_each(|changes| output.write(changes)).unwrap();
        let text = String::from_utf8(output.end(COUNTS).unwrap()).unwrap();
        let expected = "_change,id\ninsert,1\ninsert,2\nupdate_before,3\nupdate_after,30\nupdate_before,4\n\
                        update_after,40\ndelete,5\n";
        assert_eq!(text, expected);
    }

    #[test]
    fn a_document_has_both_states_of_an_update() {
        let mut output = ChangesOutput::json(Vec::new(), Map::from_iter([("table".to_owned(), json!("n.t"))])).unwrap();
        all().iter().try_for_each(|changes| output.write(changes)).unwrap();
        let document: Value = serde_json::from_slice(&output.end(COUNTS).unwrap()).unwrap();
        let updated =
            |before: i64| json!({"change": "updated", "before": {"id": before}, "after": {"id": before * 10}});
        let inserted = |id: i64| json!({"change": "inserted", "after": {"id": id}});
        let changes =
            json!([inserted(1), inserted(2), updated(3), updated(4), {"change": "deleted", "before": {"id": 5}}]);
        assert_eq!(document, json!({"table": "n.t", "changes": changes, "inserted": 2, "updated": 2, "deleted": 1}));
    }
}
