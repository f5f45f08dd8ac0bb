//! How much a test does. The normal tier is what a build machine has time for at every change; `LAKEHOUSE_LONG=1` is all
//! that was promised, for the night; a variable of its own sets one test's size by hand.

/// All that was promised is wanted, however long it takes.
#[must_use]
pub fn long() -> bool {
    std::env::var_os("LAKEHOUSE_LONG").is_some_and(|value| value == "1")
}

/// How many histories, kills or rounds: what the variable says, else `all` in the long tier and `some` in the normal one.
///
/// # Panics
/// When the variable is no number.
#[must_use]
pub fn size(variable: &str, some: u64, all: u64) -> u64 {
    number(variable).unwrap_or(if long() { all } else { some })
}

/// `LAKEHOUSE_SEED`, or one that nobody has tried; small enough to count on from.
///
/// # Panics
/// When the variable is no number.
#[must_use]
pub fn seed() -> u64 {
    number("LAKEHOUSE_SEED").unwrap_or_else(|| fastrand::u64(..u64::MAX / 2))
}

fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{variable} is no number: {text:?}")))
}
