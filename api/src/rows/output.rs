//! The formats of rows. Each takes batch after batch; only the aligned table looks ahead, and only one batch.

use std::io::{self, Write};

use arrow_array::{Array, RecordBatch};
use arrow_ipc::writer::StreamWriter;
use arrow_schema::{ArrowError, Schema};
use serde_json::{Map, Value, json};

use super::cells;
use crate::answer::{Layout, or_dash, shown};
use crate::cli::Format;
use crate::failure::Failure;

/// Where rows go.
pub(crate) enum Output<W: Write> {
    /// Widths are those of the first batch.
    Table {
        out: W,
        layout: Layout,
        emphasis: bool,
        begun: bool,
    },
    /// RFC 4180; NULL is empty and an empty text is `""`.
    Csv(W),
    Ndjson(W),
    /// One document: the head's keys, then `rows`.
    Json {
        out: W,
        begun: bool,
    },
    Arrow(Box<StreamWriter<W>>),
}

impl<W: Write> Output<W> {
    /// In a format that a person may name; `emphasis` is for the table's head on a terminal.
    pub(crate) fn of(format: Format, out: W, schema: &Schema, emphasis: bool) -> Result<Self, Failure> {
        Ok(match format {
            Format::Table => Self::table(out, schema, emphasis),
            Format::Csv => Self::csv(out, schema)?,
            Format::Ndjson => Self::ndjson(out),
            Format::Arrow => Self::arrow(out, schema)?,
        })
    }

    pub(crate) fn table(out: W, schema: &Schema, emphasis: bool) -> Self {
        let layout = Layout::new(schema.fields().iter().map(|field| shown(field.name())).collect());
        Self::Table { out, layout, emphasis, begun: false }
    }

    pub(crate) fn csv(mut out: W, schema: &Schema) -> Result<Self, Failure> {
        let names = schema.fields().iter().map(|field| Some(field.name().clone()));
        out.write_all(csv_line(names).as_bytes())?;
        Ok(Self::Csv(out))
    }

    pub(crate) fn ndjson(out: W) -> Self {
        Self::Ndjson(out)
    }

    pub(crate) fn json(mut out: W, schema: &Schema, mut head: Map<String, Value>) -> Result<Self, Failure> {
        let columns: Vec<&String> = schema.fields().iter().map(|field| field.name()).collect();
        head.insert("columns".to_owned(), json!(columns));
        let head = Value::Object(head).to_string();
        write!(out, "{},\"rows\":[", head.strip_suffix('}').unwrap_or(&head))?;
        Ok(Self::Json { out, begun: false })
    }

    pub(crate) fn arrow(out: W, schema: &Schema) -> Result<Self, Failure> {
        Ok(Self::Arrow(Box::new(StreamWriter::try_new(out, schema).map_err(arrow_failed)?)))
    }

    pub(crate) fn write(&mut self, batch: &RecordBatch) -> Result<(), Failure> {
        let rows = 0..batch.num_rows();
        match self {
            Self::Arrow(writer) => writer.write(batch).map_err(arrow_failed)?,
            Self::Table { out, layout, emphasis, begun } => {
                let cell = |column: &dyn Array, row| shown(&or_dash(cells::text(column, row)));
                let line = |row| batch.columns().iter().map(|column| cell(column, row)).collect();
                let lines: Vec<Vec<String>> = rows.map(line).collect();
                if !std::mem::replace(begun, true) {
                    layout.widen(&lines);
                    layout.write_header(out, *emphasis)?;
                }
                lines.iter().try_for_each(|line| layout.write_row(out, line))?;
            }
            Self::Csv(out) => {
                for row in rows {
                    let cells = batch.columns().iter().map(|column| cells::text(column, row));
                    out.write_all(csv_line(cells).as_bytes())?;
                }
            }
            Self::Ndjson(out) => {
                for row in rows {
                    let mut line = String::new();
                    cells::write_object(&mut line, named(batch), row);
                    line.push('\n');
                    out.write_all(line.as_bytes())?;
                }
            }
            Self::Json { out, begun } => {
                for row in rows {
                    let mut object = String::new();
                    if std::mem::replace(begun, true) {
                        object.push(',');
                    }
                    cells::write_object(&mut object, named(batch), row);
                    out.write_all(object.as_bytes())?;
                }
            }
        }
        Ok(())
    }

    /// Ends the answer and gives its way out back, everything written.
    pub(crate) fn end(self) -> Result<W, Failure> {
        let mut out = match self {
            Self::Table { mut out, layout, emphasis, begun } => {
                if !begun {
                    layout.write_header(&mut out, emphasis)?;
                }
                out
            }
            Self::Csv(out) | Self::Ndjson(out) => out,
            Self::Json { mut out, .. } => {
                out.write_all(b"]}\n")?;
                out
            }
            Self::Arrow(mut writer) => {
                writer.finish().map_err(arrow_failed)?;
                writer.into_inner().map_err(arrow_failed)?
            }
        };
        out.flush()?;
        Ok(out)
    }
}

/// The columns of a batch with their names.
pub(super) fn named(batch: &RecordBatch) -> impl Iterator<Item = (&str, &dyn Array)> {
    let names = batch.schema_ref().fields().iter().map(|field| field.name().as_str());
    names.zip(batch.columns().iter().map(|column| column.as_ref()))
}

fn csv_line(cells: impl Iterator<Item = Option<String>>) -> String {
    let mut line = String::new();
    for (number, cell) in cells.enumerate() {
        if number > 0 {
            line.push(',');
        }
        match cell {
            None => {}
            Some(text) if text.is_empty() || text.contains(['"', ',', '\r', '\n']) => {
                line.push('"');
                line.push_str(&text.replace('"', "\"\""));
                line.push('"');
            }
            Some(text) => line.push_str(&text),
        }
    }
    line.push('\n');
    line
}

fn arrow_failed(error: ArrowError) -> Failure {
    match error {
        ArrowError::IoError(_, error) => error.into(),
        other => io::Error::other(other).into(),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow_array::{ArrayRef, Int64Array, StringArray};
    use arrow_ipc::reader::StreamReader;

    use super::*;

    fn batches() -> [RecordBatch; 2] {
        let batch = |ids: Vec<i64>, texts: Vec<Option<&str>>| {
            let (ids, texts): (ArrayRef, ArrayRef) =
                (Arc::new(Int64Array::from(ids)), Arc::new(StringArray::from(texts)));
            RecordBatch::try_from_iter_with_nullable([("id", ids, false), ("a,b", texts, true)]).unwrap()
        };
        [batch(vec![1, 2], vec![Some("x\"y"), None]), batch(vec![3], vec![Some("")])]
    }

    fn check(make: impl Fn(&mut Vec<u8>, &Schema) -> Result<(), Failure>) -> Vec<u8> {
        let mut out = Vec::new();
        make(&mut out, batches()[0].schema_ref()).unwrap();
        out
    }

    fn fill(mut output: Output<&mut Vec<u8>>) -> Result<(), Failure> {
        batches().iter().try_for_each(|batch| output.write(batch))?;
        output.end().map(drop)
    }

    #[test]
    fn csv_tells_null_from_an_empty_text() {
        let out = check(|out, schema| fill(Output::csv(out, schema)?));
        assert_eq!(String::from_utf8(out).unwrap(), "id,\"a,b\"\n1,\"x\"\"y\"\n2,\n3,\"\"\n");
    }

    #[test]
    fn json_is_one_document_and_ndjson_one_a_row() {
        let rows = [json!({"id": 1, "a,b": "x\"y"}), json!({"id": 2, "a,b": null}), json!({"id": 3, "a,b": ""})];
        let out = check(|out, _| fill(Output::ndjson(out)));
        let lines: Vec<Value> =
            String::from_utf8(out).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(lines, rows);
        let head = || Map::from_iter([("table".to_owned(), json!("n.t")), ("cut".to_owned(), json!({"exact": true}))]);
        let out = check(|out, schema| fill(Output::json(out, schema, head())?));
        let document: Value = serde_json::from_slice(&out).unwrap();
        let expected = json!({"table": "n.t", "cut": {"exact": true}, "columns": ["id", "a,b"], "rows": rows});
        assert_eq!(document, expected);
    }

    #[test]
    fn an_arrow_stream_has_an_end_that_readers_see() {
        let out = check(|out, schema| fill(Output::arrow(out, schema)?));
        let read: Vec<RecordBatch> = StreamReader::try_new(&out[..], None).unwrap().map(Result::unwrap).collect();
        assert_eq!(read, batches());
        assert_eq!(out[out.len() - 8..], [0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0]);
    }

    #[test]
    fn a_table_without_rows_still_shows_its_columns() {
        let out = check(|out, schema| Output::table(out, schema, false).end().map(drop));
        assert_eq!(String::from_utf8(out).unwrap(), "id  a,b\n");
        let out = check(|out, schema| fill(Output::table(out, schema, false)));
        assert_eq!(String::from_utf8(out).unwrap(), "id  a,b\n1   x\"y\n2   -\n3   \n");
    }
}
