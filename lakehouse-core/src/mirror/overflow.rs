//! `_cdc_overflow` of rows whose values were left out: what did not fit before the update does not fit behind it either.

use std::sync::Arc;

use arrow_array::builder::{MapBuilder, MapFieldNames, StringBuilder};
use arrow_array::cast::AsArray;
use arrow_array::{Array, ArrayRef};

use crate::change::ChangeChunk;
use crate::schema::OVERFLOW;

/// The text of a value that does not fit its column.
pub(super) struct Text {
    pub(super) row: usize,
    pub(super) column: String,
    pub(super) text: String,
}

/// The texts of a chunk's rows, if it has any.
pub(super) fn column_of(chunk: &ChangeChunk) -> Option<&ArrayRef> {
    let place = chunk.schema.columns.iter().position(|column| column.name == OVERFLOW)?;
    chunk.rows.get(place)
}

/// The text that a row has for a column.
pub(super) fn text_of(texts: Option<&ArrayRef>, row: usize, column: &str) -> Option<String> {
    entries(texts?, row).into_iter().find(|(name, _)| name == column).map(|(_, text)| text)
}

/// Adds texts, sorted by row, to those that the chunk's rows have already.
pub(super) fn add_texts(chunk: &mut ChangeChunk, texts: Vec<Text>) {
    let names = MapFieldNames { entry: "key_value".into(), key: "key".into(), value: "value".into() };
    let mut builder = MapBuilder::new(Some(names), StringBuilder::new(), StringBuilder::new());
    let mut texts = texts.into_iter().peekable();
    for row in 0..chunk.len() {
        let mut all = column_of(chunk).map_or_else(Vec::new, |texts| entries(texts, row));
        while let Some(Text { column, text, .. }) = texts.next_if(|text| text.row == row) {
            all.push((column, text));
        }
        for (column, text) in &all {
            builder.keys().append_value(column);
            builder.values().append_value(text);
        }
        builder.append(!all.is_empty()).expect("keys and values are appended in pairs");
    }
    if !chunk.schema.has_overflow() {
        chunk.schema = Arc::new(chunk.schema.with_overflow());
        chunk.rows.push(Arc::new(builder.finish()));
        return;
    }
    let last = chunk.rows.last_mut().expect("it has the column");
    *last = Arc::new(builder.finish());
}

fn entries(texts: &ArrayRef, row: usize) -> Vec<(String, String)> {
    let Some(map) = texts.as_map_opt().filter(|map| map.is_valid(row)) else {
        return Vec::new();
    };
    let entries = map.value(row);
    let (keys, values) = (entries.column(0).as_string::<i32>(), entries.column(1).as_string::<i32>());
    (0..entries.len()).map(|n| (keys.value(n).to_owned(), values.value(n).to_owned())).collect()
}
