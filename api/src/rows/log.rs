//! How the changes of a history are written: as its rows, or as one document that says of each what stood there before and
//! after.

use std::io::Write;

use arrow_array::cast::AsArray;
use arrow_array::types::Int64Type;
use arrow_array::{Array, RecordBatch};
use arrow_schema::Schema;
use lakehouse_core::change::Operation;
use lakehouse_core::change_log::{ChangeLog, Tally, Watch};
use lakehouse_core::fold::Range;
use lakehouse_core::position::Position;
use lakehouse_core::read::TableReader;
use lakehouse_core::schema::{ACTOR, BEFORE, COMMITTED_AT, LANE, OFFSET, OPERATION, ORDINAL, POSITION, TRANSACTION};
use serde_json::{Map, Value};

use super::cells;
use super::document::Document;
use super::output::{Output, named};
use crate::cli::Format;
use crate::failure::Failure;

/// What a history's columns that say where a change comes from are called in a document.
const ORIGIN: [(&str, &str); 7] = [
    (POSITION, "position"),
    (ORDINAL, "ordinal"),
    (COMMITTED_AT, "committed_at"),
    (TRANSACTION, "transaction_id"),
    (LANE, "lane"),
    (OFFSET, "offset"),
    (ACTOR, "actor"),
];

/// Where the changes of a log go.
pub(crate) enum LogOutput<W: Write> {
    /// Rows of the history.
    Flat(Output<W>),
    Json(Document<W>),
}

impl<W: Write> LogOutput<W> {
    /// `schema` is the history's.
    pub(crate) fn flat(format: Format, out: W, schema: &Schema, emphasis: bool) -> Result<Self, Failure> {
        Ok(Self::Flat(Output::of(format, out, schema, emphasis)?))
    }

    /// `head` has at least one key.
    pub(crate) fn json(out: W, head: Map<String, Value>) -> Result<Self, Failure> {
        Ok(Self::Json(Document::begin(out, head)?))
    }

    pub(crate) fn write(&mut self, changes: &RecordBatch) -> Result<(), Failure> {
        match self {
            Self::Flat(output) => output.write(changes),
            Self::Json(document) => {
                (0..changes.num_rows()).try_for_each(|row| document.change(|object| write_change(object, changes, row)))
            }
        }
    }

    /// Ends the answer and gives its way out back, everything written.
    pub(crate) fn end(self, tally: Tally) -> Result<W, Failure> {
        match self {
            Self::Flat(output) => output.end(),
            Self::Json(document) => document.end(&tally),
        }
    }
}

/// Writes every change of `range`, in order. `watch` is asked now and then with how many were found, and may end it.
pub(crate) fn write<W: Write>(
    history: &TableReader,
    range: Range,
    watch: Watch<'_, Failure>,
    output: &mut LogOutput<W>,
) -> Result<Tally, Failure> {
    let mut log = ChangeLog::of(history, range, watch)?;
    let mut tally = Tally::default();
    while let Some(changes) = log.next_changes()? {
        watch(0)?;
        tally.add(&changes)?;
        output.write(&changes)?;
    }
    Ok(tally)
}

/// One change as an object.
fn write_change(out: &mut String, changes: &RecordBatch, row: usize) {
    let operation = changes.column_by_name(OPERATION).map(|column| column.as_string::<i32>().value(row));
    let (word, is_there_after) = match operation.and_then(Operation::named) {
        Some(Operation::Insert) => ("inserted", Some(true)),
        Some(Operation::Update) => ("updated", Some(true)),
        Some(Operation::Delete) => ("deleted", Some(false)),
        Some(Operation::Expire) => ("expired", Some(false)),
        Some(Operation::Quarantine) => ("quarantined", Some(false)),
        // It concerns no row, but all.
        Some(Operation::Truncate) | None => ("truncated", None),
    };
    out.push_str("{\"change\":\"");
    out.push_str(word);
    out.push('"');
    for (name, key) in ORIGIN {
        let Some(column) = changes.column_by_name(name).filter(|column| column.is_valid(row)) else { continue };
        out.push_str(&format!(",\"{key}\":"));
        match name {
            POSITION => {
                let position = column.as_primitive::<Int64Type>().value(row).cast_unsigned();
                out.push_str(&format!("\"{}\"", Position::new(position)));
            }
            // A number of 64 bits.
            TRANSACTION => out.push_str(&format!("\"{}\"", column.as_primitive::<Int64Type>().value(row))),
            _ => cells::write_json(out, column, row),
        }
    }
    // Of a row that goes the history has what the source has sent of it, where an insert or update has the new one.
    let old = changes.column_by_name(BEFORE).filter(|before| before.is_valid(row));
    if let (Some(true), Some(before)) = (is_there_after, old) {
        out.push_str(",\"before\":");
        cells::write_json(out, before, row);
    }
    if let Some(is_there_after) = is_there_after {
        out.push_str(if is_there_after { ",\"after\":" } else { ",\"before\":" });
        let own = named(changes)
            .filter(|(name, _)| ![OPERATION, BEFORE].contains(name) && ORIGIN.iter().all(|(column, _)| column != name));
        cells::write_object(out, own, row);
    }
    out.push('}');
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow_array::{ArrayRef, Int32Array, Int64Array, StringArray, StructArray};
    use arrow_schema::{DataType, Field};
    use serde_json::json;

    use super::*;

    fn changes() -> RecordBatch {
        let operations = StringArray::from(vec!["insert", "update", "update", "delete", "truncate"]);
        let old: ArrayRef = Arc::new(Int64Array::from(vec![None, Some(7), None, None, None]));
        let known = vec![false, true, false, false, false].into();
        let field = Arc::new(Field::new("id", DataType::Int64, true));
        let before = StructArray::new(vec![field].into(), vec![old], Some(known));
        let columns: Vec<(&str, ArrayRef, bool)> = vec![
            (OPERATION, Arc::new(operations), false),
            (POSITION, Arc::new(Int64Array::from(vec![0x64, 0x64, 0xC8, 0xC8, 0x12C])), false),
            (ORDINAL, Arc::new(Int32Array::from(vec![0, 1, 0, 1, 0])), false),
            (TRANSACTION, Arc::new(Int64Array::from(vec![9_007_199_254_740_993; 5])), false),
            (BEFORE, Arc::new(before), true),
            ("id", Arc::new(Int64Array::from(vec![Some(1), Some(2), Some(3), Some(4), None])), true),
            ("name", Arc::new(StringArray::from(vec![Some("a"), None, Some("c"), None, None])), true),
        ];
        RecordBatch::try_from_iter_with_nullable(columns).unwrap()
    }

    #[test]
    fn a_document_says_what_stood_there_before_and_after() {
        let mut tally = Tally::default();
        tally.add(&changes()).unwrap();
        let mut output = LogOutput::json(Vec::new(), Map::from_iter([("table".to_owned(), json!("n.t"))])).unwrap();
        output.write(&changes()).unwrap();
        let document: Value = serde_json::from_slice(&output.end(tally).unwrap()).unwrap();
        let change = |word: &str, position: &str, ordinal: i32| {
            let transaction = "9007199254740993";
            json!({"change": word, "position": position, "ordinal": ordinal, "transaction_id": transaction})
        };
        let with = |mut change: Value, rows: &[(&str, Value)]| {
            rows.iter().for_each(|(key, row)| change[*key] = row.clone());
            change
        };
        let expected = json!([
            with(change("inserted", "0/64", 0), &[("after", json!({"id": 1, "name": "a"}))]),
            with(
                change("updated", "0/64", 1),
                &[("before", json!({"id": 7})), ("after", json!({"id": 2, "name": null}))]
            ),
            with(change("updated", "0/C8", 0), &[("after", json!({"id": 3, "name": "c"}))]),
            with(change("deleted", "0/C8", 1), &[("before", json!({"id": 4, "name": null}))]),
            change("truncated", "0/12C", 0),
        ]);
        assert_eq!(document["changes"], expected);
        let counts = ["inserted", "updated", "deleted", "expired", "truncated", "quarantined"];
        assert_eq!(counts.map(|key| document[key].as_u64().unwrap()), [1, 2, 1, 0, 1, 0]);
        assert_eq!(document["table"], "n.t");
    }

    #[test]
    fn rows_are_those_of_the_history() {
        let mut output = LogOutput::flat(Format::Csv, Vec::new(), changes().schema_ref(), false).unwrap();
        output.write(&changes()).unwrap();
        let text = String::from_utf8(output.end(Tally::default()).unwrap()).unwrap();
        let (heading, first) = ("_cdc_operation,_cdc_position,_cdc_ordinal", "insert,100,0,9007199254740993,,1,a");
        assert!(text.starts_with(heading) && text.lines().nth(1) == Some(first), "{text}");
        assert_eq!(text.lines().count(), 6);
    }
}
