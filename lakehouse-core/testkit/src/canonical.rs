//! The canonical text of rows, the same that `deploy/readers/canonical.py` defines and documents, from PostgreSQL's text.
//!
//! Not here: which rows (`oracle`), and what a reader says (`readers`).

use serde_json::Value;

/// How one column's PostgreSQL text becomes canonical text: the type map of the product, written a second time and
/// without its code. A value that the mapped Iceberg type cannot hold is NULL.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Integers, strings, uuid, and everything else whose text is kept.
    Text,
    Boolean,
    Float,
    Double,
    /// A numeric that fits `decimal(p, s)`: all digits of the scale are in PostgreSQL's text.
    Decimal,
    Date,
    Time,
    Timestamp,
    Timestamptz,
    /// bytea: `\x…`.
    Binary,
    /// `PostGIS` geometry: hexadecimal EWKB in capitals.
    Geometry,
    Point,
    Hstore,
    /// A one-dimensional array; one element that does not fit makes the whole value NULL.
    List(Box<Kind>),
}

/// A row as one line of compact JSON.
#[must_use]
pub fn line(row: Vec<Value>) -> String {
    Value::Array(row).to_string()
}

/// One value as canonical JSON.
///
/// # Panics
/// When the text is not what PostgreSQL writes for this kind with the settings of `oracle`.
#[must_use]
pub fn value(kind: &Kind, text: Option<&str>) -> Value {
    text.and_then(|text| kept(kind, text)).unwrap_or(Value::Null)
}

/// `None` for a value that the Iceberg type cannot hold.
fn kept(kind: &Kind, text: &str) -> Option<Value> {
    let canonical = match kind {
        Kind::Text => text.to_owned(),
        Kind::Boolean => match text {
            "t" => "true".to_owned(),
            "f" => "false".to_owned(),
            _ => malformed(kind, text),
        },
        Kind::Float => double(f64::from(text.parse::<f32>().unwrap_or_else(|_| malformed(kind, text)))),
        Kind::Double => double(text.parse().unwrap_or_else(|_| malformed(kind, text))),
        Kind::Decimal if text == "NaN" => return None,
        Kind::Decimal => text.to_owned(),
        Kind::Date => date(text)?,
        Kind::Time if text == "24:00:00" => return None,
        Kind::Time => time(text),
        Kind::Timestamp => timestamp(text, "")?,
        Kind::Timestamptz => timestamp(text, "+00")? + "Z",
        Kind::Binary => text.strip_prefix("\\x").unwrap_or_else(|| malformed(kind, text)).to_owned(),
        Kind::Geometry => text.to_lowercase(),
        Kind::Point => {
            let pair =
                text.strip_prefix('(').and_then(|text| text.strip_suffix(')')).and_then(|text| text.split_once(','));
            let (x, y) = pair.unwrap_or_else(|| malformed(kind, text));
            return Some(Value::Array(vec![kept(&Kind::Double, x)?, kept(&Kind::Double, y)?]));
        }
        Kind::Hstore => return Some(hstore(text)),
        Kind::List(element) => return list(element, text),
    };
    Some(Value::String(canonical))
}

fn malformed(kind: &Kind, text: &str) -> ! {
    panic!("not a {kind:?}: {text}")
}

/// A double as Python's `repr` writes it: the shortest digits that read back, an exponent from 1e16 and below 1e-4 on.
fn double(value: f64) -> String {
    if value.is_nan() {
        return "NaN".to_owned();
    }
    if value.is_infinite() {
        return if value > 0.0 { "Infinity" } else { "-Infinity" }.to_owned();
    }
    let scientific = format!("{value:e}");
    let (mantissa, exponent) = scientific.split_once('e').expect("an exponent");
    let exponent: i32 = exponent.parse().expect("a whole exponent");
    if (-4..16).contains(&exponent) {
        return format!("{value:?}");
    }
    format!("{mantissa}e{}{:02}", if exponent < 0 { '-' } else { '+' }, exponent.abs())
}

/// `0044-03-15 BC` → `-0043-03-15`; an infinite date is none.
fn date(text: &str) -> Option<String> {
    if text.ends_with("infinity") {
        return None;
    }
    let (date, before_christ) = text.strip_suffix(" BC").map_or((text, false), |date| (date, true));
    let (year, rest) = date.split_once('-').unwrap_or_else(|| panic!("not a date: {text}"));
    let year = era_year(year, before_christ);
    Some(format!("{}-{rest}", year_text(year)))
}

/// A year as astronomers count: the one before the year 1 is 0.
fn era_year(year: &str, before_christ: bool) -> i64 {
    let year: i64 = year.parse().unwrap_or_else(|_| panic!("not a year: {year}"));
    if before_christ { 1 - year } else { year }
}

fn year_text(year: i64) -> String {
    match year {
        0..=9999 => format!("{year:04}"),
        _ => format!("{}{:04}", if year < 0 { '-' } else { '+' }, year.abs()),
    }
}

/// Always six digits of fraction.
fn time(text: &str) -> String {
    let (seconds, fraction) = text.split_once('.').unwrap_or((text, ""));
    format!("{seconds}.{fraction:0<6}")
}

fn timestamp(text: &str, offset: &str) -> Option<String> {
    // Microseconds since 1970 in 64 bits end here.
    const LAST: (i64, &str) = (294_247, "01-10T04:00:54.775807");
    if text.ends_with("infinity") {
        return None;
    }
    let (moment, before_christ) = text.strip_suffix(" BC").map_or((text, false), |moment| (moment, true));
    let parts = moment.strip_suffix(offset).and_then(|moment| moment.split_once(' '));
    let parts = parts.and_then(|(date, clock)| Some((date.split_once('-')?, clock)));
    let ((year, day), clock) = parts.unwrap_or_else(|| panic!("not a timestamp at offset {offset:?}: {text}"));
    let (year, rest) = (era_year(year, before_christ), format!("{day}T{}", time(clock)));
    ((year, rest.as_str()) <= LAST).then(|| format!("{}-{rest}", year_text(year)))
}

/// `{a,NULL,"b c"}`; other dimensions than one, or another lower bound than 1, do not fit a list.
fn list(element: &Kind, text: &str) -> Option<Value> {
    let body = text.strip_prefix('{')?.strip_suffix('}')?;
    if body.starts_with('{') {
        return None;
    }
    let mut elements = Vec::new();
    let mut rest = body;
    while !rest.is_empty() {
        let (item, quoted, tail) = item(rest, &[',']);
        elements.push(match item.as_str() {
            "NULL" if !quoted => Value::Null,
            item => kept(element, item)?,
        });
        rest = tail.strip_prefix(',').unwrap_or(tail);
    }
    Some(Value::Array(elements))
}

/// `"a"=>"1", "b"=>NULL`, as pairs sorted by the key's JSON text.
fn hstore(text: &str) -> Value {
    let mut pairs = Vec::new();
    let mut rest = text;
    while !rest.is_empty() {
        let (key, _, tail) = item(rest, &['=']);
        let tail = tail.strip_prefix("=>").unwrap_or_else(|| panic!("not an hstore: {text}"));
        let (value, quoted, tail) = item(tail, &[',']);
        let value = if value == "NULL" && !quoted { Value::Null } else { Value::String(value) };
        pairs.push((Value::String(key), value));
        rest = tail.strip_prefix(", ").unwrap_or(tail);
    }
    pairs.sort_by_cached_key(|(key, _)| key.to_string());
    Value::Array(pairs.into_iter().map(|(key, value)| Value::Array(vec![key, value])).collect())
}

/// The first item of a PostgreSQL list: its text, whether it was quoted, and what follows it.
fn item<'a>(text: &'a str, ends: &[char]) -> (String, bool, &'a str) {
    let Some(quoted) = text.strip_prefix('"') else {
        let end = text.find(ends).unwrap_or(text.len());
        return (text[..end].to_owned(), false, &text[end..]);
    };
    let mut item = String::new();
    let mut characters = quoted.char_indices();
    while let Some((at, character)) = characters.next() {
        match character {
            '"' => return (item, true, &quoted[at + 1..]),
            '\\' => item.extend(characters.next().map(|(_, character)| character)),
            _ => item.push(character),
        }
    }
    panic!("an open quote: {text}");
}

/// What a reader cannot tell apart; `deploy/readers/judge.py` says which reader and why.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Fold {
    /// NULL, the empty list or map, and the struct of NULLs.
    EmptyIsNull,
    /// A time of day with and without its fraction.
    TimeInSeconds,
}

/// Canonical lines with the values made equal that `folds` name, sorted.
///
/// # Panics
/// When a line is not canonical.
#[must_use]
pub fn folded(rows: &[String], folds: &[Fold]) -> Vec<String> {
    let mut rows = rows.to_vec();
    for fold in folds {
        for row in &mut rows {
            let parsed: Vec<Value> = serde_json::from_str(row).unwrap_or_else(|error| panic!("{row}: {error}"));
            *row = line(parsed.into_iter().map(|value| fold.apply(value)).collect());
        }
    }
    rows.sort_unstable();
    rows
}

impl Fold {
    fn apply(self, value: Value) -> Value {
        match (self, value) {
            (_, Value::Array(items)) => {
                let items: Vec<Value> = items.into_iter().map(|item| self.apply(item)).collect();
                let is_nothing = self == Self::EmptyIsNull && items.iter().all(Value::is_null);
                if is_nothing { Value::Null } else { Value::Array(items) }
            }
            (Self::TimeInSeconds, Value::String(text)) if is_time(&text) => {
                Value::String(format!("{}000000", &text[..9]))
            }
            (_, value) => value,
        }
    }
}

fn is_time(text: &str) -> bool {
    let pattern = "00:00:00.000000";
    text.len() == pattern.len()
        && text.bytes().zip(pattern.bytes()).all(
            |(byte, like)| {
                if like == b'0' { byte.is_ascii_digit() } else { byte == like }
            },
        )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(kind: &Kind, text: &str, expected: &str) {
        assert_eq!(value(kind, Some(text)).to_string(), expected, "{kind:?} {text}");
    }

    #[test]
    fn doubles_are_written_as_python_writes_them() {
        for (text, expected) in [
            ("1", "1.0"),
            ("0.1", "0.1"),
            ("-0", "-0.0"),
            ("1e+15", "1000000000000000.0"),
            ("1e+16", "1e+16"),
            ("1.5e+300", "1.5e+300"),
            ("0.0001", "0.0001"),
            ("1.25e-05", "1.25e-05"),
            ("5e-324", "5e-324"),
            ("NaN", "NaN"),
            ("-Infinity", "-Infinity"),
        ] {
            check(&Kind::Double, text, &format!("\"{expected}\""));
        }
        check(&Kind::Float, "0.1", r#""0.10000000149011612""#);
        check(&Kind::Float, "1e-45", r#""1.401298464324817e-45""#);
    }

    #[test]
    fn moments_beyond_four_digit_years_and_beyond_iceberg() {
        check(&Kind::Date, "0044-03-15 BC", r#""-0043-03-15""#);
        check(&Kind::Date, "0001-03-15 BC", r#""0000-03-15""#);
        check(&Kind::Date, "5874897-12-31", r#""+5874897-12-31""#);
        check(&Kind::Date, "-infinity", "null");
        check(&Kind::Time, "01:02:03.5", r#""01:02:03.500000""#);
        check(&Kind::Time, "24:00:00", "null");
        check(&Kind::Timestamp, "2024-02-29 12:00:00", r#""2024-02-29T12:00:00.000000""#);
        check(&Kind::Timestamptz, "4714-11-24 00:00:00+00 BC", r#""-4713-11-24T00:00:00.000000Z""#);
        check(&Kind::Timestamptz, "294247-01-10 04:00:54.775807+00", r#""+294247-01-10T04:00:54.775807Z""#);
        check(&Kind::Timestamptz, "294247-01-10 04:00:54.775808+00", "null");
        check(&Kind::Timestamp, "infinity", "null");
    }

    #[test]
    fn lists_and_maps_keep_quotes_and_nulls() {
        let texts = Kind::List(Box::new(Kind::Text));
        check(&texts, "{}", "[]");
        check(&texts, r#"{a,NULL,"NULL","b \"c\" \\,{}",""}"#, r#"["a",null,"NULL","b \"c\" \\,{}",""]"#);
        check(&texts, "{{a},{b}}", "null");
        check(&texts, "[0:1]={a,b}", "null");
        check(&Kind::List(Box::new(Kind::Decimal)), "{1.50,NaN}", "null");
        check(&Kind::List(Box::new(Kind::Double)), "{1,NULL}", r#"["1.0",null]"#);
        check(&Kind::Hstore, r#""b"=>"1, \"", "a"=>NULL, "c"=>"NULL""#, r#"[["a",null],["b","1, \""],["c","NULL"]]"#);
        check(&Kind::Point, "(1.5,-0)", r#"["1.5","-0.0"]"#);
    }

    #[test]
    fn folds_make_equal_what_a_reader_confuses_and_nothing_else() {
        let rows = [r#"["a",[],[null],[["k",null]],"01:02:03.000004"]"#.to_owned()];
        assert_eq!(folded(&rows, &[]), rows);
        assert_eq!(folded(&rows, &[Fold::EmptyIsNull]), [r#"["a",null,null,[["k",null]],"01:02:03.000004"]"#]);
        assert_eq!(folded(&rows, &[Fold::TimeInSeconds]), [r#"["a",[],[null],[["k",null]],"01:02:03.000000"]"#]);
    }
}
