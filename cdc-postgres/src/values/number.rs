//! bool, integers, object ids and floats. Decimals are in `numeric`.

use super::{ValueError, fixed, malformed, utf8};

#[inline]
pub(super) fn bool_from_text(value: &[u8]) -> Result<bool, ValueError> {
    match value {
        b"t" => Ok(true),
        b"f" => Ok(false),
        _ => malformed("bool"),
    }
}

#[inline]
pub(super) fn bool_from_binary(value: &[u8]) -> Result<bool, ValueError> {
    fixed::<1>(value, "bool").map(|[byte]| byte != 0)
}

/// A decimal integer between `min` and `max`.
#[inline]
pub(super) fn int_from_text(value: &[u8], min: i64, max: i64) -> Result<i64, ValueError> {
    let (negative, digits) = match value {
        [b'-', digits @ ..] => (true, digits),
        digits => (false, digits),
    };
    // 19 digits fit u64 whatever they are.
    if digits.is_empty() || digits.len() > 19 {
        return malformed("integer");
    }
    let mut magnitude = 0u64;
    for &byte in digits {
        let digit = byte.wrapping_sub(b'0');
        if digit > 9 {
            return malformed("integer");
        }
        magnitude = magnitude * 10 + u64::from(digit);
    }
    let number = if negative { 0i64.checked_sub_unsigned(magnitude) } else { 0i64.checked_add_unsigned(magnitude) };
    match number {
        Some(number) if number >= min && number <= max => Ok(number),
        _ => malformed("integer"),
    }
}

#[inline]
pub(super) fn int2_from_text(value: &[u8]) -> Result<i32, ValueError> {
    int_from_text(value, i64::from(i16::MIN), i64::from(i16::MAX)).map(|n| n as i32)
}

#[inline]
pub(super) fn int4_from_text(value: &[u8]) -> Result<i32, ValueError> {
    int_from_text(value, i64::from(i32::MIN), i64::from(i32::MAX)).map(|n| n as i32)
}

#[inline]
pub(super) fn int8_from_text(value: &[u8]) -> Result<i64, ValueError> {
    int_from_text(value, i64::MIN, i64::MAX)
}

#[inline]
pub(super) fn oid_from_text(value: &[u8]) -> Result<i64, ValueError> {
    int_from_text(value, 0, i64::from(u32::MAX))
}

#[inline]
pub(super) fn int2_from_binary(value: &[u8]) -> Result<i32, ValueError> {
    fixed(value, "int2").map(|bytes| i32::from(i16::from_be_bytes(bytes)))
}

#[inline]
pub(super) fn int4_from_binary(value: &[u8]) -> Result<i32, ValueError> {
    fixed(value, "int4").map(i32::from_be_bytes)
}

#[inline]
pub(super) fn int8_from_binary(value: &[u8]) -> Result<i64, ValueError> {
    fixed(value, "int8").map(i64::from_be_bytes)
}

#[inline]
pub(super) fn oid_from_binary(value: &[u8]) -> Result<i64, ValueError> {
    fixed(value, "oid").map(|bytes| i64::from(u32::from_be_bytes(bytes)))
}

/// `NaN`, `Infinity`, `-Infinity` or the shortest decimal that reads back as the same number.
#[inline]
pub(super) fn float4_from_text(value: &[u8]) -> Result<f32, ValueError> {
    let number = utf8(value)?.parse().map_err(|_| ValueError::Malformed { expected: "float4" })?;
    Ok(one_nan32(number))
}

/// As `float4_from_text`.
#[inline]
pub(super) fn float8_from_text(value: &[u8]) -> Result<f64, ValueError> {
    let number = utf8(value)?.parse().map_err(|_| ValueError::Malformed { expected: "float8" })?;
    Ok(one_nan64(number))
}

#[inline]
pub(super) fn float4_from_binary(value: &[u8]) -> Result<f32, ValueError> {
    fixed(value, "float4").map(|bytes| one_nan32(f32::from_be_bytes(bytes)))
}

#[inline]
pub(super) fn float8_from_binary(value: &[u8]) -> Result<f64, ValueError> {
    fixed(value, "float8").map(|bytes| one_nan64(f64::from_be_bytes(bytes)))
}

/// The text form has one NaN, so the binary form may not have more.
fn one_nan32(number: f32) -> f32 {
    if number.is_nan() { f32::NAN } else { number }
}

fn one_nan64(number: f64) -> f64 {
    if number.is_nan() { f64::NAN } else { number }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn integers_are_read_up_to_their_ends_and_no_further() {
        assert_eq!(int2_from_text(b"-32768"), Ok(-32768));
        assert!(int2_from_text(b"32768").is_err());
        assert_eq!(int4_from_text(b"2147483647"), Ok(i32::MAX));
        assert_eq!(int4_from_text(b"-2147483648"), Ok(i32::MIN));
        assert!(int4_from_text(b"2147483648").is_err());
        assert_eq!(int8_from_text(b"-9223372036854775808"), Ok(i64::MIN));
        assert_eq!(int8_from_text(b"9223372036854775807"), Ok(i64::MAX));
        assert!(int8_from_text(b"9223372036854775808").is_err());
        assert_eq!(oid_from_text(b"4294967295"), Ok(4_294_967_295));
        assert!(oid_from_text(b"-1").is_err());
        for bad in ["", "-", "+1", " 1", "1 ", "1.0", "0x10", "99999999999999999999"] {
            assert!(int8_from_text(bad.as_bytes()).is_err(), "{bad}");
        }
    }

    #[test]
    fn integers_in_binary_have_exactly_their_width() {
        assert_eq!(int2_from_binary(&[0x80, 0]), Ok(-32768));
        assert_eq!(oid_from_binary(&[0xff; 4]), Ok(4_294_967_295));
        assert!(int4_from_binary(&[0; 3]).is_err());
        assert!(int8_from_binary(&[0; 9]).is_err());
    }

    #[test]
    fn special_floats_keep_their_bits_in_both_forms() {
        for (text, number) in [
            ("NaN", f64::NAN),
            ("Infinity", f64::INFINITY),
            ("-Infinity", f64::NEG_INFINITY),
            ("-0", -0.0),
            ("5e-324", 5e-324),
            ("1.7976931348623157e+308", f64::MAX),
            ("1e+20", 1e20),
        ] {
            assert_eq!(float8_from_text(text.as_bytes()).unwrap().to_bits(), number.to_bits(), "{text}");
            assert_eq!(float8_from_binary(&number.to_be_bytes()).unwrap().to_bits(), number.to_bits(), "{text}");
        }
        assert_eq!(float4_from_text(b"1e-45").unwrap().to_bits(), 1);
        assert_eq!(float4_from_text(b"-0").unwrap().to_bits(), (-0f32).to_bits());
    }

    #[test]
    fn every_nan_becomes_the_one_that_text_can_name() {
        let odd = f64::from_bits(0xfff8_0000_0000_0001);
        assert_eq!(float8_from_binary(&odd.to_be_bytes()).unwrap().to_bits(), f64::NAN.to_bits());
        let odd = f32::from_bits(0xffc0_0001);
        assert_eq!(float4_from_binary(&odd.to_be_bytes()).unwrap().to_bits(), f32::NAN.to_bits());
    }

    #[test]
    fn random_floats_come_back_from_their_shortest_text() {
        let mut rng = fastrand::Rng::with_seed(1);
        for _ in 0..20_000 {
            let number = f64::from_bits(rng.u64(..));
            if number.is_finite() {
                let text = format!("{number:e}");
                assert_eq!(float8_from_text(text.as_bytes()).unwrap().to_bits(), number.to_bits());
            }
        }
    }
}
