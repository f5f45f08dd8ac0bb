//! Sequence numbers: 21 to 40 digits, so they fit no machine word and do not sort as text.

use fastrand::Rng;

/// From here on a number has 40 digits: 128 bits hold 38 of them, and two are put in front.
const WIDE: u128 = 10u128.pow(38);
/// The least of those with 21 digits.
pub(super) const FIRST: u128 = 10u128.pow(20);

/// Where a table begins.
pub(super) fn first(rng: &mut Rng) -> u128 {
    rng.u128(FIRST..FIRST * 9)
}

/// Text on the wire; greater numbers have greater texts, as numbers go.
pub(super) fn text(number: u128) -> String {
    if number < WIDE { number.to_string() } else { format!("1{number:039}") }
}

pub(super) fn parse(text: &str) -> Option<u128> {
    if !text.bytes().all(|digit| digit.is_ascii_digit()) {
        return None;
    }
    match text.len() {
        21..=38 => text.parse().ok(),
        40 => text[1..].parse().ok().filter(|number| *number >= WIDE),
        _ => None,
    }
}

/// A number with one digit more than `number`; of those with 40 it is the number itself.
pub(super) fn longer(number: u128, rng: &mut Rng) -> u128 {
    if number >= WIDE / 10 {
        return number.max(WIDE);
    }
    let least = 10u128.pow(u32::try_from(number.to_string().len()).expect("at most 37"));
    rng.u128(least..least * 9)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_grow_as_the_numbers_do() {
        let mut rng = Rng::with_seed(1);
        let mut number = first(&mut rng);
        let mut lengths = Vec::new();
        for _ in 0..20 {
            lengths.push(text(number).len());
            assert_eq!(parse(&text(number)), Some(number));
            number = longer(number, &mut rng) + 7;
        }
        assert_eq!(lengths[0], 21);
        assert!(lengths.is_sorted());
        assert_eq!(lengths.last(), Some(&40));
    }
}
