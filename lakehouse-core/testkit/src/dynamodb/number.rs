//! Numbers as the service keeps them: checked, zeros trimmed, sortable. Written apart from the product's.

/// A number's canonical text and bytes that sort as the numbers do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Number {
    pub(super) text: String,
    pub(super) sortable: Vec<u8>,
}

/// What `text` means; `None` if the service refuses it.
pub(super) fn parse(text: &str) -> Option<Number> {
    let (negative, unsigned) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    let (mantissa, exponent) = match unsigned.find(['e', 'E']) {
        Some(at) => (&unsigned[..at], unsigned[at + 1..].parse::<i64>().ok()?),
        None => (unsigned, 0),
    };
    let point = mantissa.find('.').unwrap_or(mantissa.len());
    let digits: String = mantissa.chars().enumerate().filter(|(at, _)| *at != point).map(|(_, digit)| digit).collect();
    if digits.is_empty() || !digits.bytes().all(|digit| digit.is_ascii_digit()) {
        return None;
    }
    let leading = digits.len() - digits.trim_start_matches('0').len();
    let digits = digits.trim_matches('0');
    if digits.is_empty() {
        return Some(Number { text: "0".into(), sortable: vec![1] });
    }
    // The power of ten of the first digit.
    let first = exponent.checked_add(i64::try_from(point).ok()? - i64::try_from(leading).ok()? - 1)?;
    if digits.len() > 38 || !(-130..=125).contains(&first) {
        return None;
    }
    Some(Number { text: spell(negative, digits, first), sortable: sortable(negative, digits, first) })
}

fn spell(negative: bool, digits: &str, first: i64) -> String {
    let sign = if negative { "-" } else { "" };
    let length = i64::try_from(digits.len()).unwrap_or(i64::MAX);
    let zeros = |count: i64| "0".repeat(usize::try_from(count).unwrap_or(0));
    match first {
        0..=40 if first + 1 >= length => format!("{sign}{digits}{}", zeros(first + 1 - length)),
        0..=40 => {
            let (whole, fraction) = digits.split_at(usize::try_from(first).unwrap_or(0) + 1);
            format!("{sign}{whole}.{fraction}")
        }
        -40..=-1 => format!("{sign}0.{}{digits}", zeros(-first - 1)),
        _ if length == 1 => format!("{sign}{digits}E{first}"),
        _ => format!("{sign}{}.{}E{first}", &digits[..1], &digits[1..]),
    }
}

fn sortable(negative: bool, digits: &str, first: i64) -> Vec<u8> {
    let mut bytes = vec![u8::try_from(first + 130).unwrap_or(u8::MAX)];
    bytes.extend(digits.bytes());
    bytes.push(0);
    if negative {
        bytes.iter_mut().for_each(|byte| *byte = !*byte);
        bytes.insert(0, 0);
    } else {
        bytes.insert(0, 2);
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_sort_and_read_as_what_they_are() {
        let ascending =
            ["-9e125", "-10", "-9.5", "-9", "-1e-130", "0", "1E-130", "0.5", "1", "1.05", "1.5", "10", "9e125"];
        let sortable: Vec<Vec<u8>> = ascending.iter().map(|text| parse(text).unwrap().sortable).collect();
        assert!(sortable.is_sorted());
        for (spelling, text) in [
            ("1.0", "1"),
            ("+0010", "10"),
            ("-0", "0"),
            ("12.50", "12.5"),
            ("1e2", "100"),
            ("5E-3", "0.005"),
            ("1E-130", "1E-130"),
            ("9.99e125", "9.99E125"),
        ] {
            assert_eq!(parse(spelling).unwrap().text, text, "{spelling}");
        }
        for refused in ["", "-", ".", "x", "1e126", "1e-131", "1.2.3", &"1".repeat(39)] {
            assert_eq!(parse(refused), None, "{refused}");
        }
    }
}
