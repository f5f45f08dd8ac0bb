//! point, and the vectors of pgvector: texts and binary forms made of floats, and the columns that store them.

use std::sync::Arc;

use arrow_array::builder::{ArrayBuilder, Float32Builder, Float64Builder, ListBuilder};
use arrow_array::{ArrayRef, StructArray};
use arrow_buffer::NullBufferBuilder;
use arrow_schema::DataType;

use super::column::has_room;
use super::number::{float4_from_binary, float4_from_text, float8_from_binary, float8_from_text};
use super::types::{element_field, point_fields};
use super::{Appended, ValueError, malformed};

pub(super) struct PointColumn {
    x: Float64Builder,
    y: Float64Builder,
    nulls: NullBufferBuilder,
}

impl PointColumn {
    pub(super) fn new(rows: usize) -> Self {
        Self {
            x: Float64Builder::with_capacity(rows),
            y: Float64Builder::with_capacity(rows),
            nulls: NullBufferBuilder::new(rows),
        }
    }

    pub(super) fn append_text(&mut self, value: &[u8]) -> Result<Appended, ValueError> {
        self.append(Some(point_from_text(value)?));
        Ok(Appended::Stored)
    }

    pub(super) fn append_binary(&mut self, value: &[u8]) -> Result<Appended, ValueError> {
        self.append(Some(point_from_binary(value)?));
        Ok(Appended::Stored)
    }

    pub(super) fn accepts_text(&self, value: &[u8]) -> Result<bool, ValueError> {
        point_from_text(value).map(|_| true)
    }

    pub(super) fn append_null(&mut self) {
        self.append(None);
    }

    fn append(&mut self, point: Option<(f64, f64)>) {
        self.x.append_option(point.map(|(x, _)| x));
        self.y.append_option(point.map(|(_, y)| y));
        self.nulls.append(point.is_some());
    }

    pub(super) fn len(&self) -> usize {
        self.x.len()
    }

    pub(super) fn bytes(&self) -> usize {
        16 * self.len()
    }

    pub(super) fn finish(&mut self) -> ArrayRef {
        let columns: Vec<ArrayRef> = vec![Arc::new(self.x.finish()), Arc::new(self.y.finish())];
        Arc::new(StructArray::new(point_fields(), columns, self.nulls.finish()))
    }
}

/// `(1.5,-2)`.
fn point_from_text(value: &[u8]) -> Result<(f64, f64), ValueError> {
    let [b'(', point @ .., b')'] = value else {
        return malformed("point");
    };
    let Some(comma) = point.iter().position(|&byte| byte == b',') else {
        return malformed("point");
    };
    Ok((float8_from_text(&point[..comma])?, float8_from_text(&point[comma + 1..])?))
}

fn point_from_binary(value: &[u8]) -> Result<(f64, f64), ValueError> {
    let Some((x, y)) = value.split_at_checked(8) else {
        return malformed("point");
    };
    Ok((float8_from_binary(x)?, float8_from_binary(y)?))
}

/// vector and halfvec. Lists of floats without NULL elements.
pub(super) struct VectorColumn {
    values: ListBuilder<Float32Builder>,
    half: bool,
    scratch: Vec<f32>,
}

impl VectorColumn {
    pub(super) fn new(half: bool, rows: usize) -> Self {
        let values = ListBuilder::with_capacity(Float32Builder::new(), rows);
        Self { values: values.with_field(element_field(DataType::Float32)), half, scratch: Vec::new() }
    }

    pub(super) fn append_text(&mut self, value: &[u8]) -> Result<Appended, ValueError> {
        vector_from_text(value, &mut self.scratch)?;
        self.append()
    }

    pub(super) fn append_binary(&mut self, value: &[u8]) -> Result<Appended, ValueError> {
        vector_from_binary(value, self.half, &mut self.scratch)?;
        self.append()
    }

    pub(super) fn accepts_text(&self, value: &[u8]) -> Result<bool, ValueError> {
        vector_from_text(value, &mut Vec::new()).map(|()| true)
    }

    fn append(&mut self) -> Result<Appended, ValueError> {
        if !self.has_room(self.scratch.len()) {
            return Err(ValueError::Full);
        }
        self.values.values().append_slice(&self.scratch);
        self.values.append(true);
        Ok(Appended::Stored)
    }

    pub(super) fn append_null(&mut self) {
        self.values.append_null();
    }

    pub(super) fn has_room(&self, elements: usize) -> bool {
        has_room(self.values.values_ref().len(), elements)
    }

    pub(super) fn len(&self) -> usize {
        self.values.len()
    }

    pub(super) fn bytes(&self) -> usize {
        4 * (self.values.values_ref().len() + self.len())
    }

    pub(super) fn finish(&mut self) -> ArrayRef {
        Arc::new(self.values.finish())
    }
}

/// `[1,2.5,-3]` into `out`, which is cleared first.
fn vector_from_text(value: &[u8], out: &mut Vec<f32>) -> Result<(), ValueError> {
    out.clear();
    let [b'[', elements @ .., b']'] = value else {
        return malformed("vector");
    };
    if elements.is_empty() {
        return Ok(());
    }
    for element in elements.split(|&byte| byte == b',') {
        out.push(float4_from_text(element)?);
    }
    Ok(())
}

/// Form of `vector_send` and `halfvec_send`: dimensions, an unused word, the elements.
fn vector_from_binary(value: &[u8], half: bool, out: &mut Vec<f32>) -> Result<(), ValueError> {
    out.clear();
    let Some((&[d0, d1, _, _], elements)) = value.split_first_chunk::<4>() else {
        return malformed("vector");
    };
    let width = if half { 2 } else { 4 };
    if elements.len() != width * usize::from(u16::from_be_bytes([d0, d1])) {
        return malformed("vector");
    }
    for element in elements.chunks_exact(width) {
        out.push(match *element {
            [a, b] => half_to_float(u16::from_be_bytes([a, b])),
            _ => float4_from_binary(element)?,
        });
    }
    Ok(())
}

/// IEEE 754 binary16 to binary32, exactly; any NaN is the one NaN.
fn half_to_float(half: u16) -> f32 {
    let (exponent, fraction) = (half >> 10 & 0x1f, f32::from(half & 0x3ff));
    let magnitude = match exponent {
        0 => fraction * 2f32.powi(-24),
        0x1f if fraction == 0.0 => f32::INFINITY,
        0x1f => return f32::NAN,
        _ => (1024.0 + fraction) * 2f32.powi(i32::from(exponent) - 25),
    };
    if half >> 15 == 1 { -magnitude } else { magnitude }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vector(text: &str) -> Result<Vec<f32>, ValueError> {
        let mut out = Vec::new();
        vector_from_text(text.as_bytes(), &mut out).map(|()| out)
    }

    fn send(elements: &[&[u8]]) -> Vec<u8> {
        [&(elements.len() as u16).to_be_bytes()[..], &[0, 0], &elements.concat()].concat()
    }

    #[test]
    fn points_are_two_doubles() {
        let expected = Ok((1.5, f64::NEG_INFINITY));
        assert_eq!(point_from_text(b"(1.5,-Infinity)"), expected);
        let binary = [1.5f64.to_be_bytes(), f64::NEG_INFINITY.to_be_bytes()].concat();
        assert_eq!(point_from_binary(&binary), expected);
        for bad in ["", "()", "(1)", "(1,2", "1,2", "(1,2,3)", "(,)"] {
            assert!(point_from_text(bad.as_bytes()).is_err(), "{bad}");
        }
        for cut in 0..16 {
            assert!(point_from_binary(&binary[..cut]).is_err());
        }
    }

    #[test]
    fn vectors_read_the_same_from_both_forms() {
        let numbers = [1.0f32, -2.5, 0.1, -0.0, f32::MIN_POSITIVE];
        let sent: Vec<[u8; 4]> = numbers.iter().map(|number| number.to_be_bytes()).collect();
        let sent = send(&sent.iter().map(|bytes| &bytes[..]).collect::<Vec<_>>());
        let mut out = Vec::new();
        vector_from_binary(&sent, false, &mut out).unwrap();
        assert_eq!(out, numbers);
        assert_eq!(vector("[1,-2.5,0.1,-0,1.1754944e-38]"), Ok(numbers.to_vec()));
        assert_eq!(vector("[]"), Ok(vec![]));
        for cut in 0..sent.len() {
            assert!(vector_from_binary(&sent[..cut], false, &mut out).is_err());
        }
        for bad in ["", "[", "1", "[1,]", "[,]", "[1 2]", "{1}"] {
            assert!(vector(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn halves_are_exact_floats() {
        for (bits, number) in [
            (0x0000, 0.0),
            (0x8000, -0.0),
            (0x0001, 5.9604645e-8),
            (0x03ff, 6.097_555e-5),
            (0x0400, 6.1035156e-5),
            (0x3c00, 1.0),
            (0x2e66, 0.099975586),
            (0xc100, -2.5),
            (0x7bff, 65504.0),
            (0xfc00, f32::NEG_INFINITY),
        ] {
            assert_eq!(half_to_float(bits).to_bits(), f32::to_bits(number), "{bits:04x}");
        }
        assert!(half_to_float(0xfe01).is_nan());
        let mut out = Vec::new();
        vector_from_binary(&send(&[&[0x3c, 0], &[0xc1, 0]]), true, &mut out).unwrap();
        assert_eq!(out, [1.0, -2.5]);
    }
}
