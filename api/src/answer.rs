//! How an answer is written: one JSON document, or lines and aligned tables for people.

use std::io::{self, IsTerminal, Write};

use chrono::{DateTime, SecondsFormat, Utc};
use serde::Serialize;
use serde_json::{Map, Value};

use crate::failure::Failure;

/// One JSON document on standard output: indented on a terminal, one line otherwise.
pub(crate) fn json(answer: &impl Serialize) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    let written = match out.is_terminal() {
        true => serde_json::to_writer_pretty(&mut out, answer),
        false => serde_json::to_writer(&mut out, answer),
    };
    written.map_err(io::Error::from)?;
    out.write_all(b"\n")?;
    Ok(out.flush()?)
}

/// The keys of an object, for a document that has more.
pub(crate) fn keys(object: &impl Serialize) -> Map<String, Value> {
    match serde_json::to_value(object) {
        Ok(Value::Object(keys)) => keys,
        other => unreachable!("it is no object of plain data: {other:?}"),
    }
}

/// A line of text on standard output.
pub(crate) fn line(text: &str) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    writeln!(out, "{text}")?;
    Ok(out.flush()?)
}

/// An aligned table on standard output, all of it in memory.
pub(crate) fn table<const N: usize>(headers: [&str; N], rows: &[[String; N]]) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    let emphasis = out.is_terminal();
    let rows: Vec<Vec<String>> = rows.iter().map(|row| row.iter().map(|cell| shown(cell)).collect()).collect();
    let mut layout = Layout::new(headers.iter().map(ToString::to_string).collect());
    layout.widen(&rows);
    layout.write_header(&mut out, emphasis)?;
    for row in &rows {
        layout.write_row(&mut out, row)?;
    }
    Ok(out.flush()?)
}

/// Columns and their widths in characters.
pub(crate) struct Layout {
    headers: Vec<String>,
    widths: Vec<usize>,
}

impl Layout {
    pub(crate) fn new(headers: Vec<String>) -> Self {
        let widths = headers.iter().map(|header| header.chars().count()).collect();
        Self { headers, widths }
    }

    pub(crate) fn widen(&mut self, rows: &[Vec<String>]) {
        for row in rows {
            for (width, cell) in self.widths.iter_mut().zip(row) {
                *width = (*width).max(cell.chars().count());
            }
        }
    }

    pub(crate) fn write_header(&self, out: &mut impl Write, emphasis: bool) -> io::Result<()> {
        if emphasis {
            out.write_all(b"\x1b[1m")?;
        }
        self.write_row(out, &self.headers)?;
        if emphasis {
            out.write_all(b"\x1b[0m")?;
        }
        Ok(())
    }

    pub(crate) fn write_row(&self, out: &mut impl Write, cells: &[String]) -> io::Result<()> {
        for (number, (cell, width)) in cells.iter().zip(&self.widths).enumerate() {
            match number + 1 == cells.len() {
                true => out.write_all(cell.as_bytes())?,
                false => write!(out, "{cell:<width$}  ")?,
            }
        }
        out.write_all(b"\n")
    }
}

/// A text that cannot move a terminal's cursor or colours: control characters are written as escapes.
pub(crate) fn shown(text: &str) -> String {
    // Marks of writing direction can make a line read as another one.
    let turns = |c: char| matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    match text.contains(|c: char| c.is_control() || turns(c)) {
        false => text.to_owned(),
        true => {
            let escaped = |c: char| match c.is_control() || turns(c) {
                true => c.escape_default().to_string(),
                false => c.to_string(),
            };
            text.chars().map(escaped).collect()
        }
    }
}

/// RFC 3339 in UTC, from milliseconds since 1970.
pub(crate) fn time(milliseconds: i64) -> String {
    let time = DateTime::<Utc>::from_timestamp_millis(milliseconds);
    time.map_or_else(|| milliseconds.to_string(), |time| time.to_rfc3339_opts(SecondsFormat::Millis, true))
}

/// A value that may be unknown.
pub(crate) fn or_dash(value: Option<impl ToString>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| value.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_stand_below_each_other() {
        let rows = vec![vec!["a".to_owned(), "1".to_owned()], vec!["äöü".to_owned(), "22".to_owned()]];
        let mut layout = Layout::new(vec!["n".to_owned(), "x".to_owned()]);
        layout.widen(&rows);
        let mut out = Vec::new();
        layout.write_header(&mut out, false).unwrap();
        rows.iter().for_each(|row| layout.write_row(&mut out, row).unwrap());
        assert_eq!(String::from_utf8(out).unwrap(), "n    x\na    1\näöü  22\n");
    }

    #[test]
    fn a_value_cannot_command_the_terminal() {
        assert_eq!(shown("a\u{1b}[2Jb\n\u{202e}c"), "a\\u{1b}[2Jb\\n\\u{202e}c");
        assert_eq!(shown("naïve 日本"), "naïve 日本");
    }

    #[test]
    fn times_are_rfc_3339() {
        assert_eq!(time(1_732_181_234_005), "2024-11-21T09:27:14.005Z");
        assert_eq!(time(i64::MAX), i64::MAX.to_string());
    }
}
