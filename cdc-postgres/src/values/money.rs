//! money: an integer number of the smallest unit, printed as `lc_monetary` of the server has it. The binary form is
//! that integer; in the text form all but digits and sign is decoration, since the number of fraction digits is fixed.

use super::{ValueError, fixed, malformed, utf8};

/// How many of the digits are behind the point, from the server's own text of `(-1)::money`: 2 for `-$1.00`, 0 for
/// `-¥1`. `None` if the text would not be read back as minus one: such a column maps to string.
pub fn money_fraction_digits(text_of_minus_one: &str) -> Option<u8> {
    let unscaled = money_from_text(text_of_minus_one.as_bytes()).ok()?;
    (0..=10u8).find(|&digits| -(10i64.pow(u32::from(digits))) == unscaled)
}

/// The amount in the smallest unit, of `$1,234.56`, `-$5.00`, `(5.00)`, `-1.234,56 €`, `¥1,234`.
pub(super) fn money_from_text(value: &[u8]) -> Result<i64, ValueError> {
    let text = utf8(value)?;
    let mut magnitude = 0u64;
    let mut digits = 0;
    let mut negative = false;
    for byte in text.bytes() {
        match byte {
            b'0'..=b'9' => {
                digits += 1;
                magnitude = magnitude.wrapping_mul(10).wrapping_add(u64::from(byte - b'0'));
            }
            b'-' | b'(' => negative = true,
            _ => {}
        }
    }
    // Norwegian and other locales have U+2212 for the sign. More than 19 digits could have wrapped around.
    negative |= text.contains('\u{2212}');
    if !(1..=19).contains(&digits) {
        return malformed("money");
    }
    let amount = if negative { 0i64.checked_sub_unsigned(magnitude) } else { 0i64.checked_add_unsigned(magnitude) };
    amount.ok_or(ValueError::Malformed { expected: "money" })
}

pub(super) fn money_from_binary(value: &[u8]) -> Result<i64, ValueError> {
    fixed(value, "money").map(i64::from_be_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn money_is_read_whatever_its_locale_puts_around_the_digits() {
        for (text, amount) in [
            ("$1,234.56", 123_456),
            ("-$5.00", -500),
            ("(5.00)", -500),
            ("($1,234.56)", -123_456),
            ("¥1,234", 1234),
            ("-¥1", -1),
            ("1.234,56 €", 123_456),
            ("kr −5,00", -500),
            ("$0.00", 0),
            ("-$92,233,720,368,547,758.08", i64::MIN),
            ("$92,233,720,368,547,758.07", i64::MAX),
        ] {
            assert_eq!(money_from_text(text.as_bytes()), Ok(amount), "{text}");
            assert_eq!(money_from_binary(&amount.to_be_bytes()), Ok(amount));
        }
    }

    #[test]
    fn what_is_no_amount_is_refused() {
        for text in ["", "$", "-", "$92,233,720,368,547,758.08", "99999999999999999999"] {
            assert!(money_from_text(text.as_bytes()).is_err(), "{text}");
        }
        assert_eq!(money_from_text(b"\xff1"), Err(ValueError::NotUtf8));
        assert!(money_from_binary(&[0; 4]).is_err());
    }

    #[test]
    fn fraction_digits_come_from_the_text_of_minus_one() {
        assert_eq!(money_fraction_digits("-$1.00"), Some(2));
        assert_eq!(money_fraction_digits("($1.00)"), Some(2));
        assert_eq!(money_fraction_digits("-¥1"), Some(0));
        assert_eq!(money_fraction_digits("1,000 KD-"), Some(3));
        assert_eq!(money_fraction_digits("~1.00"), None, "a sign that is not recognised");
    }
}
