//! Changes as one JSON document: a head's keys, `changes`, then how many of each kind there are.

use std::io::Write;

use lakehouse_core::schema::TableName;
use serde::Serialize;
use serde_json::{Map, Value, json};

use crate::cli::Mode;
use crate::failure::Failure;

/// What a document about the way from one snapshot to another begins with.
pub(crate) fn head(table: &TableName, from: i64, to: i64, mode: Mode) -> Map<String, Value> {
    let mut head = Map::new();
    head.insert("table".to_owned(), json!(table.to_string()));
    head.insert("from".to_owned(), json!(from.to_string()));
    head.insert("to".to_owned(), json!(to.to_string()));
    if mode == Mode::Log {
        head.insert("mode".to_owned(), json!("log"));
    }
    head
}

/// A document that is being written.
pub(crate) struct Document<W> {
    out: W,
    begun: bool,
}

impl<W: Write> Document<W> {
    /// `head` has at least one key.
    pub(super) fn begin(mut out: W, head: Map<String, Value>) -> Result<Self, Failure> {
        let head = Value::Object(head).to_string();
        write!(out, "{},\"changes\":[", head.strip_suffix('}').unwrap_or(&head))?;
        Ok(Self { out, begun: false })
    }

    /// One change, as the object that `write` appends.
    pub(super) fn change(&mut self, write: impl FnOnce(&mut String)) -> Result<(), Failure> {
        let mut object = String::from(if std::mem::replace(&mut self.begun, true) { "," } else { "" });
        write(&mut object);
        Ok(self.out.write_all(object.as_bytes())?)
    }

    /// Ends it and gives its way out back, everything written.
    pub(super) fn end(mut self, counts: &impl Serialize) -> Result<W, Failure> {
        let counts = serde_json::to_string(counts).map_err(std::io::Error::other)?;
        writeln!(self.out, "],{}", counts.strip_prefix('{').unwrap_or(&counts))?;
        self.out.flush()?;
        Ok(self.out)
    }
}
