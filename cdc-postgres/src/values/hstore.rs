//! hstore: its text and binary forms, and the map column that stores it. Pairs keep the order that the server sends.

use std::ops::Range;
use std::sync::Arc;

use arrow_array::builder::{ArrayBuilder, StringBuilder};
use arrow_array::{ArrayRef, MapArray, StructArray};
use arrow_buffer::{NullBufferBuilder, OffsetBuffer, ScalarBuffer};

use super::column::{has_room, string_bytes};
use super::types::{hstore_entries, hstore_entry_fields};
use super::{Appended, ValueError, malformed, utf8};

pub(super) struct HstoreColumn {
    keys: StringBuilder,
    values: StringBuilder,
    offsets: Vec<i32>,
    nulls: NullBufferBuilder,
    pairs: Pairs,
}

impl HstoreColumn {
    pub(super) fn new(rows: usize) -> Self {
        Self {
            keys: StringBuilder::new(),
            values: StringBuilder::new(),
            offsets: vec![0],
            nulls: NullBufferBuilder::new(rows),
            pairs: Pairs::default(),
        }
    }

    pub(super) fn append_text(&mut self, value: &[u8]) -> Result<Appended, ValueError> {
        self.pairs.read_text(value)?;
        self.append_pairs(value.len())
    }

    pub(super) fn append_binary(&mut self, value: &[u8]) -> Result<Appended, ValueError> {
        self.pairs.read_binary(value)?;
        self.append_pairs(value.len())
    }

    pub(super) fn accepts_text(&self, value: &[u8]) -> Result<bool, ValueError> {
        Pairs::default().read_text(value).map(|()| true)
    }

    pub(super) fn append_null(&mut self) {
        self.end_row(false);
    }

    /// Each pair takes more than one byte of input.
    pub(super) fn has_room(&self, bytes: usize) -> bool {
        let most = self.keys.len().max(self.keys.values_slice().len()).max(self.values.values_slice().len());
        has_room(most, bytes)
    }

    pub(super) fn len(&self) -> usize {
        self.offsets.len() - 1
    }

    pub(super) fn bytes(&self) -> usize {
        string_bytes(&self.keys) + string_bytes(&self.values) + size_of_val(self.offsets.as_slice())
    }

    pub(super) fn finish(&mut self) -> ArrayRef {
        let offsets = std::mem::replace(&mut self.offsets, vec![0]);
        let offsets = OffsetBuffer::new(ScalarBuffer::from(offsets));
        let columns: Vec<ArrayRef> = vec![Arc::new(self.keys.finish()), Arc::new(self.values.finish())];
        let pairs = StructArray::new(hstore_entry_fields(), columns, None);
        Arc::new(MapArray::new(hstore_entries(), offsets, pairs, self.nulls.finish(), false))
    }

    fn append_pairs(&mut self, bytes: usize) -> Result<Appended, ValueError> {
        if !self.has_room(bytes) {
            return Err(ValueError::Full);
        }
        for (key, value) in &self.pairs.spans {
            self.keys.append_value(&self.pairs.text[key.clone()]);
            self.values.append_option(value.clone().map(|value| &self.pairs.text[value]));
        }
        self.end_row(true);
        Ok(Appended::Stored)
    }

    fn end_row(&mut self, valid: bool) {
        self.nulls.append(valid);
        self.offsets.push(i32::try_from(self.keys.len()).expect("room was checked"));
    }
}

/// The pairs of one value, unquoted.
#[derive(Default)]
struct Pairs {
    text: String,
    spans: Vec<(Range<usize>, Option<Range<usize>>)>,
}

impl Pairs {
    /// `"a"=>"1", "b"=>NULL` as `hstore_out` prints it: all is quoted but NULL.
    fn read_text(&mut self, value: &[u8]) -> Result<(), ValueError> {
        let mut rest = utf8(value)?;
        self.clear();
        while !rest.is_empty() {
            let (key, after) = self.take_quoted(rest)?;
            let after = after.strip_prefix("=>").ok_or(MALFORMED)?;
            let (value, after) = match after.strip_prefix("NULL") {
                Some(after) => (None, after),
                None => self.take_quoted(after).map(|(value, after)| (Some(value), after))?,
            };
            self.spans.push((key, value));
            rest = match after.strip_prefix(", ") {
                Some("") => return Err(MALFORMED),
                Some(next) => next,
                None if after.is_empty() => after,
                None => return Err(MALFORMED),
            };
        }
        Ok(())
    }

    fn take_quoted<'a>(&mut self, quoted: &'a str) -> Result<(Range<usize>, &'a str), ValueError> {
        let start = self.text.len();
        let mut rest = quoted.strip_prefix('"').ok_or(MALFORMED)?;
        loop {
            let (plain, special) = rest.split_at(rest.find(['"', '\\']).ok_or(MALFORMED)?);
            self.text.push_str(plain);
            let mut chars = special.chars();
            if chars.next() == Some('"') {
                return Ok((start..self.text.len(), chars.as_str()));
            }
            self.text.push(chars.next().ok_or(MALFORMED)?);
            rest = chars.as_str();
        }
    }

    /// Form of `hstore_send`: the number of pairs; for each the lengths and bytes of key and value, −1 for NULL.
    fn read_binary(&mut self, value: &[u8]) -> Result<(), ValueError> {
        self.clear();
        let (count, mut rest) = take_length(value)?;
        for _ in 0..count.ok_or(MALFORMED)? {
            let (key, after) = self.take_counted(rest)?;
            let (value, after) = self.take_counted(after)?;
            self.spans.push((key.ok_or(MALFORMED)?, value));
            rest = after;
        }
        if rest.is_empty() { Ok(()) } else { malformed("hstore") }
    }

    fn take_counted<'a>(&mut self, value: &'a [u8]) -> Result<(Option<Range<usize>>, &'a [u8]), ValueError> {
        let (length, rest) = take_length(value)?;
        let Some(length) = length else { return Ok((None, rest)) };
        let (text, rest) = rest.split_at_checked(length).ok_or(MALFORMED)?;
        let start = self.text.len();
        self.text.push_str(utf8(text)?);
        Ok((Some(start..self.text.len()), rest))
    }

    fn clear(&mut self) {
        self.text.clear();
        self.spans.clear();
    }
}

const MALFORMED: ValueError = ValueError::Malformed { expected: "hstore" };

/// A length, `None` for −1, and what follows.
fn take_length(value: &[u8]) -> Result<(Option<usize>, &[u8]), ValueError> {
    let (length, rest) = value.split_first_chunk().ok_or(MALFORMED)?;
    match i32::from_be_bytes(*length) {
        -1 => Ok((None, rest)),
        length => Ok((Some(usize::try_from(length).map_err(|_| MALFORMED)?), rest)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Owned = Vec<(String, Option<String>)>;

    fn owned(pairs: &Pairs) -> Owned {
        let text = |span: &Range<usize>| pairs.text[span.clone()].to_owned();
        pairs.spans.iter().map(|(key, value)| (text(key), value.as_ref().map(text))).collect()
    }

    fn send(pairs: &[(&str, Option<&str>)]) -> Vec<u8> {
        let mut out = (pairs.len() as i32).to_be_bytes().to_vec();
        for (key, value) in pairs {
            for part in [Some(*key), *value] {
                out.extend(part.map_or(-1, |text| text.len() as i32).to_be_bytes());
                out.extend(part.unwrap_or_default().as_bytes());
            }
        }
        out
    }

    #[test]
    fn both_forms_give_the_same_pairs() {
        for (text, expected) in [
            ("", &[][..]),
            (r#""a"=>"1""#, &[("a", Some("1"))]),
            (r#""a"=>NULL, "b"=>"NULL""#, &[("a", None), ("b", Some("NULL"))]),
            (r#"""=>"", "q\"\\"=>"ž, \"=>\"""#, &[("", Some("")), ("q\"\\", Some("ž, \"=>\""))]),
        ] {
            let expected_owned: Owned =
                expected.iter().map(|(key, value)| ((*key).to_owned(), value.map(str::to_owned))).collect();
            let mut pairs = Pairs::default();
            pairs.read_text(text.as_bytes()).unwrap();
            assert_eq!(owned(&pairs), expected_owned, "{text}");
            pairs.read_binary(&send(expected)).unwrap();
            assert_eq!(owned(&pairs), expected_owned, "{text}");
        }
    }

    #[test]
    fn malformed_hstores_are_refused() {
        let mut pairs = Pairs::default();
        for text in ["a=>1", "\"a\"", "\"a\"=>", "\"a\"=>x", "\"a=>1", "\"a\"=>\"1\",", "\"a\"=>\"1\", ", "\"a\\", " "]
        {
            assert!(pairs.read_text(text.as_bytes()).is_err(), "{text}");
        }
        let good = send(&[("a", Some("1")), ("b", None)]);
        for cut in 0..good.len() {
            assert!(pairs.read_binary(&good[..cut]).is_err());
        }
        assert!(pairs.read_binary(&[good.as_slice(), b"x"].concat()).is_err());
        assert!(pairs.read_binary(&i32::MAX.to_be_bytes()).is_err());
        assert!(pairs.read_binary(&[0, 0, 0, 1, 0xff, 0xff, 0xff, 0xff]).is_err(), "a NULL key");
    }
}
