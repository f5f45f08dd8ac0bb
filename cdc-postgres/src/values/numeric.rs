//! numeric: text and binary to a scaled 128-bit integer, and binary to the text of the server's `numeric_out`.
//! `Ok(None)` is a number that the decimal cannot hold: NaN, an infinity, too many digits on either side.

use super::{ValueError, malformed};

const POW10: [u128; 39] = {
    let mut powers = [1u128; 39];
    let mut i = 1;
    while i < powers.len() {
        powers[i] = powers[i - 1] * 10;
        i += 1;
    }
    powers
};

/// Reads `-123.45` and the like; PostgreSQL never prints an exponent here.
#[inline]
pub(super) fn decimal_from_text(value: &[u8], precision: u8, scale: u8) -> Result<Option<i128>, ValueError> {
    let (negative, digits) = match value {
        [b'-', digits @ ..] => (true, digits),
        digits => (false, digits),
    };
    // Up to 19 characters, point included or not, fit u64 whatever they are.
    if digits.len() > 19 {
        return long_decimal_from_text(value, negative, digits, precision, scale);
    }
    let mut mantissa = 0u64;
    let mut point = None;
    for (at, &byte) in digits.iter().enumerate() {
        let digit = byte.wrapping_sub(b'0');
        if digit <= 9 {
            mantissa = mantissa * 10 + u64::from(digit);
        } else if byte == b'.' && at > 0 && point.is_none() {
            point = Some(at);
        } else {
            return not_a_number(value);
        }
    }
    let fraction = match point {
        None if digits.is_empty() => return malformed("numeric"),
        None => 0,
        Some(at) if at + 1 == digits.len() => return malformed("numeric"),
        Some(at) => digits.len() - at - 1,
    };
    let scale = usize::from(scale);
    let scaled = if fraction <= scale {
        POW10.get(scale - fraction).and_then(|power| u128::from(mantissa).checked_mul(*power))
    } else {
        let power = POW10[fraction - scale] as u64;
        mantissa.is_multiple_of(power).then(|| u128::from(mantissa / power))
    };
    Ok(signed(scaled, negative, precision))
}

/// `value` is `digits` with its sign.
#[cold]
fn long_decimal_from_text(
    value: &[u8],
    negative: bool,
    digits: &[u8],
    precision: u8,
    scale: u8,
) -> Result<Option<i128>, ValueError> {
    let (whole, fraction) = match digits.iter().position(|&byte| byte == b'.') {
        Some(at) => (&digits[..at], &digits[at + 1..]),
        None => (digits, &b"0"[..]),
    };
    let all_digits = |part: &[u8]| !part.is_empty() && part.iter().all(u8::is_ascii_digit);
    if !all_digits(whole) || !all_digits(fraction) {
        return not_a_number(value);
    }
    let scale = usize::from(scale);
    let (kept, beyond) = fraction.split_at(scale.min(fraction.len()));
    if beyond.iter().any(|&byte| byte != b'0') {
        return Ok(None);
    }
    let mut scaled = Some(0u128);
    for &byte in whole.iter().chain(kept) {
        scaled = scaled.and_then(|n| n.checked_mul(10)).and_then(|n| n.checked_add(u128::from(byte - b'0')));
    }
    let scaled = scaled.and_then(|n| n.checked_mul(*POW10.get(scale - kept.len())?));
    Ok(signed(scaled, negative, precision))
}

#[cold]
fn not_a_number(value: &[u8]) -> Result<Option<i128>, ValueError> {
    match value {
        b"NaN" | b"Infinity" | b"-Infinity" => Ok(None),
        _ => malformed("numeric"),
    }
}

#[inline]
fn signed(magnitude: Option<u128>, negative: bool, precision: u8) -> Option<i128> {
    let magnitude = magnitude.filter(|m| POW10.get(usize::from(precision)).is_some_and(|limit| m < limit))? as i128;
    Some(if negative { -magnitude } else { magnitude })
}

/// Reads the form of `numeric_send`: groups of four decimal digits.
#[inline]
pub(super) fn decimal_from_binary(value: &[u8], precision: u8, scale: u8) -> Result<Option<i128>, ValueError> {
    let number = Binary::read(value)?;
    let negative = match number.sign {
        Sign::Positive => false,
        Sign::Negative => true,
        Sign::NotFinite(_) => return Ok(None),
    };
    Ok(signed(number.scaled(i32::from(scale)), negative, precision))
}

/// The same number as a double, by way of its text as for text input.
pub(super) fn double_from_binary(value: &[u8]) -> Result<f64, ValueError> {
    super::number::float8_from_text(text_from_binary(value)?.as_bytes())
}

/// The text of `numeric_out` for the form of `numeric_send`.
pub(super) fn text_from_binary(value: &[u8]) -> Result<String, ValueError> {
    let mut out = String::new();
    write_text(value, &mut out)?;
    Ok(out)
}

/// As `text_from_binary`, appending to `out`.
pub(super) fn write_text(value: &[u8], out: &mut String) -> Result<(), ValueError> {
    let number = Binary::read(value)?;
    match number.sign {
        Sign::NotFinite(name) => {
            out.push_str(name);
            return Ok(());
        }
        Sign::Negative => out.push('-'),
        Sign::Positive => {}
    }
    if number.weight < 0 {
        out.push('0');
    } else {
        push_digits(out, number.group(0), false);
        for at in 1..=number.weight {
            push_digits(out, number.group(at), true);
        }
    }
    if number.display_scale > 0 {
        out.push('.');
        let end = out.len() + number.display_scale;
        let mut at = number.weight + 1;
        while out.len() < end {
            push_digits(out, number.group(at), true);
            at += 1;
        }
        out.truncate(end);
    }
    Ok(())
}

/// Four digits, or without leading zeros.
fn push_digits(out: &mut String, group: u16, padded: bool) {
    let mut divisor = 1000;
    let mut started = padded;
    while divisor > 0 {
        let digit = group / divisor % 10;
        if digit > 0 || started || divisor == 1 {
            out.push(char::from(b'0' + digit as u8));
            started = true;
        }
        divisor /= 10;
    }
}

enum Sign {
    Positive,
    Negative,
    NotFinite(&'static str),
}

/// Σ group(i) · 10000^(weight − i).
struct Binary<'a> {
    groups: &'a [[u8; 2]],
    weight: i32,
    sign: Sign,
    display_scale: usize,
}

impl<'a> Binary<'a> {
    fn read(value: &'a [u8]) -> Result<Self, ValueError> {
        let Some((&[n0, n1, w0, w1, s0, s1, d0, d1], groups)) = value.split_first_chunk::<8>() else {
            return malformed("numeric");
        };
        let (groups, rest) = groups.as_chunks::<2>();
        let sign = match u16::from_be_bytes([s0, s1]) {
            0x0000 => Sign::Positive,
            0x4000 => Sign::Negative,
            0xC000 => Sign::NotFinite("NaN"),
            0xD000 => Sign::NotFinite("Infinity"),
            0xF000 => Sign::NotFinite("-Infinity"),
            _ => return malformed("numeric"),
        };
        let complete = rest.is_empty() && groups.len() == usize::from(u16::from_be_bytes([n0, n1]));
        if !complete || groups.iter().any(|&group| u16::from_be_bytes(group) > 9999) {
            return malformed("numeric");
        }
        Ok(Self {
            groups,
            weight: i32::from(i16::from_be_bytes([w0, w1])),
            sign,
            display_scale: usize::from(u16::from_be_bytes([d0, d1]) & 0x3fff),
        })
    }

    /// Group `at` counted from the first stored one; zero outside of what is stored.
    fn group(&self, at: i32) -> u16 {
        let group = usize::try_from(at).ok().and_then(|at| self.groups.get(at));
        group.map_or(0, |&group| u16::from_be_bytes(group))
    }

    /// The magnitude times 10^`scale`, if that is a whole number and fits.
    #[inline]
    fn scaled(&self, scale: i32) -> Option<u128> {
        let mut sum = 0u128;
        let mut exponent = 0;
        for (at, &group) in self.groups.iter().enumerate() {
            let group = u16::from_be_bytes(group);
            exponent = 4 * (self.weight - at as i32) + scale;
            match exponent {
                0.. => sum = sum.checked_mul(10_000)?.checked_add(u128::from(group))?,
                -3..=-1 => {
                    let below = 10u16.pow(exponent.unsigned_abs());
                    if group % below != 0 {
                        return None;
                    }
                    sum = sum.checked_mul(10_000 / u128::from(below))?.checked_add(u128::from(group / below))?;
                }
                _ if group != 0 => return None,
                _ => {}
            }
        }
        match usize::try_from(exponent) {
            Ok(exponent) if sum != 0 => sum.checked_mul(*POW10.get(exponent)?),
            _ => Some(sum),
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// The form of `numeric_send` for a text.
    pub(in super::super) fn send(text: &str) -> Vec<u8> {
        let special = match text {
            "NaN" => Some(0xC000u16),
            "Infinity" => Some(0xD000),
            "-Infinity" => Some(0xF000),
            _ => None,
        };
        if let Some(sign) = special {
            return [[0, 0], [0, 0], sign.to_be_bytes(), [0, 0]].concat();
        }
        let (sign, digits) = text.strip_prefix('-').map_or((0u16, text), |digits| (0x4000, digits));
        let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
        let scale = fraction.len() as u16;
        let mut all = "0".repeat((4 - whole.len() % 4) % 4) + whole;
        let mut weight = all.len() as i32 / 4 - 1;
        all += fraction;
        all += &"0".repeat((4 - all.len() % 4) % 4);
        let mut groups: Vec<u16> =
            all.as_bytes().chunks(4).map(|c| std::str::from_utf8(c).unwrap().parse().unwrap()).collect();
        while groups.last() == Some(&0) {
            groups.pop();
        }
        let leading = groups.iter().take_while(|&&group| group == 0).count();
        groups.drain(..leading);
        weight = if groups.is_empty() { 0 } else { weight - leading as i32 };
        let head = [(groups.len() as u16).to_be_bytes(), (weight as i16).to_be_bytes(), sign.to_be_bytes()];
        let body: Vec<[u8; 2]> = std::iter::once(scale).chain(groups).map(u16::to_be_bytes).collect();
        [head.concat(), body.concat()].concat()
    }

    fn check(text: &str, precision: u8, scale: u8, expected: Option<i128>) {
        assert_eq!(decimal_from_text(text.as_bytes(), precision, scale), Ok(expected), "text of {text}");
        assert_eq!(decimal_from_binary(&send(text), precision, scale), Ok(expected), "binary of {text}");
    }

    #[test]
    fn decimals_are_the_same_from_both_forms() {
        check("0", 10, 2, Some(0));
        check("0.00", 10, 2, Some(0));
        check("-0.01", 10, 2, Some(-1));
        check("12345678.90", 10, 2, Some(1_234_567_890));
        check("99999999.99", 10, 2, Some(9_999_999_999));
        check("-99999999.99", 10, 2, Some(-9_999_999_999));
        check("10000", 8, 0, Some(10_000));
        check("123000", 8, 0, Some(123_000));
        check("0.00012", 5, 5, Some(12));
        check("0.99999", 5, 5, Some(99_999));
        let nines = "9".repeat(38);
        check(&nines, 38, 0, Some(POW10[38] as i128 - 1));
        check(&format!("-0.{nines}"), 38, 38, Some(1 - POW10[38] as i128));
        check(&format!("9.{}", &nines[..37]), 38, 37, Some(POW10[38] as i128 - 1));
        check(&format!("0.{}1", "0".repeat(37)), 38, 38, Some(1));
    }

    #[test]
    fn what_a_decimal_cannot_hold_is_none_and_never_a_panic() {
        for text in ["NaN", "Infinity", "-Infinity", "100000000.00", "0.001", "-123456789012345678901234567890.00"] {
            check(text, 10, 2, None);
        }
        check(&"9".repeat(39), 38, 0, None);
        check(&"9".repeat(5000), 38, 0, None);
        check(&format!("0.{}1", "0".repeat(5000)), 38, 38, None);
        check(&format!("1{}", "0".repeat(38)), 38, 0, None);
        check("1", 38, 38, None);
    }

    #[test]
    fn zeros_beyond_the_scale_are_no_loss() {
        check("1.5000", 10, 2, Some(150));
        check(&format!("1.5{}", "0".repeat(60)), 10, 2, Some(150));
    }

    #[test]
    fn malformed_numbers_are_refused() {
        for text in ["", "-", ".", "1.", ".5", "1.2.3", "1e5", "+1", " 1", "nan", "--1", "1.00000000000000000000x"] {
            assert!(decimal_from_text(text.as_bytes(), 38, 2).is_err(), "{text}");
        }
        let good = send("12.5");
        for cut in 0..good.len() {
            assert!(decimal_from_binary(&good[..cut], 38, 2).is_err());
        }
        assert!(decimal_from_binary(&[0, 1, 0, 0, 0, 0, 0, 0, 0x27, 0x10], 38, 2).is_err(), "a group of 10000");
        assert!(decimal_from_binary(&[0, 0, 0, 0, 0x80, 0, 0, 0], 38, 2).is_err(), "an unknown sign");
    }

    #[test]
    fn binary_is_rendered_as_the_server_prints_it() {
        let tiny = format!("0.{}1", "0".repeat(129));
        let huge = "9".repeat(131_072);
        for text in [
            "0",
            "0.00",
            "1",
            "-1",
            "10",
            "10000",
            "100000000",
            "12345.6789",
            "0.1",
            "0.0001",
            "0.00001",
            "1.50",
            "-0.00000000000000000001",
            "120000.000034",
            "NaN",
            "Infinity",
            "-Infinity",
            &tiny,
            &huge,
        ] {
            assert_eq!(text_from_binary(&send(text)).as_deref(), Ok(text));
        }
    }

    #[test]
    fn random_decimals_make_the_round_trip() {
        let mut rng = fastrand::Rng::with_seed(2);
        for _ in 0..50_000 {
            let precision = rng.u8(1..=38);
            let scale = rng.u8(0..=precision);
            let magnitude = (rng.u128(..) % POW10[usize::from(rng.u8(1..=precision))]) as i128;
            let unscaled = if rng.bool() { magnitude } else { -magnitude };
            let digits = format!("{:0width$}", magnitude, width = usize::from(scale) + 1);
            let (whole, fraction) = digits.split_at(digits.len() - usize::from(scale));
            let point = if scale == 0 { "" } else { "." };
            let text = format!("{}{whole}{point}{fraction}", if unscaled < 0 { "-" } else { "" });
            check(&text, precision, scale, Some(unscaled));
            assert_eq!(text_from_binary(&send(&text)), Ok(text));
        }
    }
}
