//! `_cdc_overflow`: the exact text of values that their column's type cannot hold, one map by column for each row.

use std::sync::Arc;

use arrow_array::builder::{MapBuilder, MapFieldNames, StringBuilder};
use arrow_array::cast::AsArray;
use arrow_array::{Array, ArrayRef};

use crate::change::ChangeChunk;
use crate::schema::OVERFLOW;

/// The text of a value that does not fit its column.
#[derive(Clone, Debug)]
pub struct Text {
    pub row: usize,
    pub column: String,
    pub text: String,
}

/// Texts, sorted by row, as the column for so many rows; a row without any has NULL.
pub fn overflow_of(rows: usize, texts: Vec<Text>) -> ArrayRef {
    let names = MapFieldNames { entry: "key_value".into(), key: "key".into(), value: "value".into() };
    let mut builder = MapBuilder::new(Some(names), StringBuilder::new(), StringBuilder::new());
    let mut texts = texts.into_iter().peekable();
    for row in 0..rows {
        let mut any = false;
        while let Some(Text { column, text, .. }) = texts.next_if(|text| text.row == row) {
            builder.keys().append_value(column);
            builder.values().append_value(text);
            any = true;
        }
        builder.append(any).expect("keys and values are appended in pairs");
    }
    Arc::new(builder.finish())
}

/// The texts of a chunk's rows, if it has any.
pub(crate) fn column_of(chunk: &ChangeChunk) -> Option<&ArrayRef> {
    let place = chunk.schema.columns.iter().position(|column| column.name == OVERFLOW)?;
    chunk.rows.get(place)
}

/// The text that a row has for a column.
pub(crate) fn text_of(texts: Option<&ArrayRef>, row: usize, column: &str) -> Option<String> {
    entries(texts?, row).into_iter().find(|(name, _)| name == column).map(|(_, text)| text)
}

/// Adds texts to those that the chunk's rows have already.
pub(crate) fn add_texts(chunk: &mut ChangeChunk, texts: Vec<Text>) {
    let mut all = column_of(chunk).map_or_else(Vec::new, |known| {
        let entries = |row| entries(known, row).into_iter().map(move |(column, text)| Text { row, column, text });
        (0..chunk.len()).flat_map(entries).collect()
    });
    all.extend(texts);
    all.sort_by_key(|text| text.row);
    let column = overflow_of(chunk.len(), all);
    match chunk.schema.has_overflow() {
        true => *chunk.rows.last_mut().expect("it has the column") = column,
        false => chunk.rows.push(column),
    }
    chunk.schema = chunk.schema.with_overflow();
}

fn entries(texts: &ArrayRef, row: usize) -> Vec<(String, String)> {
    let Some(map) = texts.as_map_opt().filter(|map| map.is_valid(row)) else {
        return Vec::new();
    };
    let entries = map.value(row);
    let (keys, values) = (entries.column(0).as_string::<i32>(), entries.column(1).as_string::<i32>());
    (0..entries.len()).map(|n| (keys.value(n).to_owned(), values.value(n).to_owned())).collect()
}
