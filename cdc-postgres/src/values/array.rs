//! T[]: the text of `array_out` cut into elements, and the list column that stores them.
//!
//! The binary form of an array is not read: `copy_cast` asks for its text, so that an array that no list can hold
//! (several dimensions, another lower bound, an element that overflows) has its exact text at hand.

use std::ops::Range;
use std::sync::Arc;

use arrow_array::{ArrayRef, ListArray};
use arrow_buffer::{NullBufferBuilder, OffsetBuffer, ScalarBuffer};
use arrow_schema::FieldRef;

use super::column::Column;
use super::types::{ColumnType, element_field};
use super::{Appended, ValueError, malformed, utf8};

pub(super) struct ListColumn {
    field: FieldRef,
    delimiter: u8,
    elements: Column,
    offsets: Vec<i32>,
    nulls: NullBufferBuilder,
    split: Elements,
}

impl ListColumn {
    pub(super) fn new(element: &ColumnType, delimiter: u8, rows: usize) -> Self {
        Self {
            field: element_field(element.data_type().clone()),
            delimiter,
            elements: Column::new(element.codec(), rows),
            offsets: vec![0],
            nulls: NullBufferBuilder::new(rows),
            split: Elements::default(),
        }
    }

    /// Elements are decoded twice, so that one that is bad or does not fit leaves nothing behind.
    pub(super) fn append_text(&mut self, value: &[u8]) -> Result<Appended, ValueError> {
        let text = utf8(value)?;
        if !self.elements.has_room(value.len()) {
            return Err(ValueError::Full);
        }
        if !self.split.fit(value, self.delimiter, &self.elements)? {
            self.append_null();
            return Ok(Appended::Overflow(text.to_owned()));
        }
        for element in self.split.iter() {
            match element {
                None => self.elements.append_null(),
                Some(element) => {
                    let appended = self.elements.append_text(element);
                    assert!(matches!(appended, Ok(Appended::Stored)), "an accepted element is stored");
                }
            }
        }
        self.end_row(true);
        Ok(Appended::Stored)
    }

    pub(super) fn accepts_text(&self, value: &[u8]) -> Result<bool, ValueError> {
        utf8(value)?;
        Elements::default().fit(value, self.delimiter, &self.elements)
    }

    pub(super) fn append_null(&mut self) {
        self.end_row(false);
    }

    fn end_row(&mut self, valid: bool) {
        self.nulls.append(valid);
        self.offsets.push(i32::try_from(self.elements.len()).expect("room was checked"));
    }

    pub(super) fn has_room(&self, bytes: usize) -> bool {
        self.elements.has_room(bytes)
    }

    pub(super) fn len(&self) -> usize {
        self.offsets.len() - 1
    }

    pub(super) fn bytes(&self) -> usize {
        self.elements.bytes() + size_of_val(self.offsets.as_slice())
    }

    pub(super) fn finish(&mut self) -> ArrayRef {
        let offsets = std::mem::replace(&mut self.offsets, vec![0]);
        let offsets = OffsetBuffer::new(ScalarBuffer::from(offsets));
        Arc::new(ListArray::new(self.field.clone(), offsets, self.elements.finish(), self.nulls.finish()))
    }
}

/// The elements of one array, unquoted; `None` is NULL.
#[derive(Default)]
struct Elements {
    text: Vec<u8>,
    spans: Vec<Option<Range<usize>>>,
}

enum Shape {
    /// One dimension that begins with 1, or no element at all.
    List,
    Other,
}

impl Elements {
    /// Cuts `value` up and says whether it is a list of elements that `column` can hold.
    fn fit(&mut self, value: &[u8], delimiter: u8, column: &Column) -> Result<bool, ValueError> {
        if let Shape::Other = self.split(value, delimiter)? {
            return Ok(false);
        }
        for element in self.iter().flatten() {
            if !column.accepts_text(element)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn iter(&self) -> impl Iterator<Item = Option<&[u8]>> {
        self.spans.iter().map(|span| span.clone().map(|span| &self.text[span]))
    }

    fn split(&mut self, value: &[u8], delimiter: u8) -> Result<Shape, ValueError> {
        self.text.clear();
        self.spans.clear();
        let mut rest = match value {
            b"{}" => return Ok(Shape::List),
            // Bounds are printed only where one of them is not 1.
            [b'[', .., b'}'] | [b'{', b'{', .., b'}'] => return Ok(Shape::Other),
            [b'{', rest @ ..] => rest,
            _ => return malformed("array"),
        };
        loop {
            rest = match rest {
                [b'"', quoted @ ..] => self.take_quoted(quoted)?,
                bare => self.take_bare(bare, delimiter)?,
            };
            match rest {
                [b'}'] => return Ok(Shape::List),
                [byte, after @ ..] if *byte == delimiter => rest = after,
                _ => return malformed("array"),
            }
        }
    }

    /// An element up to its closing quote; gives what follows.
    fn take_quoted<'a>(&mut self, mut quoted: &'a [u8]) -> Result<&'a [u8], ValueError> {
        let start = self.text.len();
        loop {
            let Some(at) = quoted.iter().position(|&byte| matches!(byte, b'"' | b'\\')) else {
                return malformed("array");
            };
            self.text.extend_from_slice(&quoted[..at]);
            match &quoted[at..] {
                [b'\\', escaped, rest @ ..] => {
                    self.text.push(*escaped);
                    quoted = rest;
                }
                [b'"', rest @ ..] => {
                    self.spans.push(Some(start..self.text.len()));
                    return Ok(rest);
                }
                _ => return malformed("array"),
            }
        }
    }

    /// An element up to the delimiter or the end; gives these.
    fn take_bare<'a>(&mut self, bare: &'a [u8], delimiter: u8) -> Result<&'a [u8], ValueError> {
        let special = |byte: &u8| *byte == delimiter || matches!(byte, b'{' | b'}' | b'"' | b'\\');
        let end = bare.iter().position(special).unwrap_or(bare.len());
        let (element, rest) = bare.split_at(end);
        match element {
            b"" => return malformed("array"),
            b"NULL" => self.spans.push(None),
            _ => {
                let start = self.text.len();
                self.text.extend_from_slice(element);
                self.spans.push(Some(start..self.text.len()));
            }
        }
        Ok(rest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn split(text: &str) -> Result<Option<Vec<Option<String>>>, ValueError> {
        let mut elements = Elements::default();
        let owned = |element: &[u8]| String::from_utf8(element.to_vec()).unwrap();
        Ok(match elements.split(text.as_bytes(), b',')? {
            Shape::List => Some(elements.iter().map(|element| element.map(owned)).collect()),
            Shape::Other => None,
        })
    }

    fn list(elements: &[&str]) -> Result<Option<Vec<Option<String>>>, ValueError> {
        Ok(Some(elements.iter().map(|element| Some((*element).to_owned())).collect()))
    }

    #[test]
    fn arrays_are_cut_into_unquoted_elements() {
        assert_eq!(split("{}"), list(&[]));
        assert_eq!(split("{1}"), list(&["1"]));
        assert_eq!(split("{a,b c,žluť}"), list(&["a", "b c", "žluť"]));
        assert_eq!(
            split(r#"{"","a,b","{}","\"","\\","NULL",null}"#),
            list(&["", "a,b", "{}", "\"", "\\", "NULL", "null"])
        );
        assert_eq!(split("{NULL,1}"), Ok(Some(vec![None, Some("1".to_owned())])));
    }

    #[test]
    fn other_dimensions_and_bounds_are_no_lists() {
        for text in ["{{1,2},{3,4}}", "[0:1]={1,2}", "[2:2]={{1}}"] {
            assert_eq!(split(text), Ok(None), "{text}");
        }
    }

    #[test]
    fn malformed_arrays_are_refused() {
        for text in [
            "", "{", "}", "1", "{1", "{1,", "{,}", "{1,}", "{\"a}", "{\"a\\", "{\"a\"b}", "{a\"b\"}", "{1}x", "{a\\b}",
            "{1,{2}}",
        ] {
            assert!(split(text).is_err(), "{text}");
        }
    }
}
