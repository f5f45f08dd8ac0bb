//! Round trips of every type, of edge values, and of random items.

use fastrand::Rng;

use super::*;

pub(crate) fn number(text: &str) -> Number {
    text.parse().unwrap()
}

pub(crate) fn item(json: &str) -> Item {
    json.parse().unwrap_or_else(|error| panic!("{json}: {error}"))
}

fn nested(levels: usize) -> Value {
    (0..levels).fold(Value::Null, |inner, level| match level % 2 {
        0 => Value::L(vec![inner]),
        _ => Value::M(Item::new(vec![("m".into(), inner)]).unwrap()),
    })
}

pub(crate) fn random_text(rng: &mut Rng) -> String {
    const LETTERS: [char; 14] = ['a', 'Z', '$', '"', '\\', '\n', '\u{1}', '\u{7f}', 'é', '日', '😀', ' ', '/', '.'];
    (0..rng.usize(0..6)).map(|_| rng.choice(LETTERS).unwrap()).collect()
}

pub(crate) fn random_number(rng: &mut Rng) -> Number {
    let digits: String = (0..rng.usize(1..=38)).map(|_| rng.digit(10)).collect();
    let sign = if rng.bool() { "-" } else { "" };
    let length = i32::try_from(digits.len()).unwrap();
    let exponent = match rng.bool() {
        true => rng.i32(-length..=2),
        false => rng.i32(-130..=125 - length + 1),
    };
    number(&format!("{sign}{digits}E{exponent}"))
}

fn random_bytes(rng: &mut Rng) -> Vec<u8> {
    (0..rng.usize(0..5)).map(|_| rng.u8(..)).collect()
}

pub(crate) fn random_value(rng: &mut Rng, depth: usize) -> Value {
    let count = rng.usize(0..4);
    match rng.u32(0..if depth == 0 { 8 } else { 10 }) {
        0 => Value::S(random_text(rng)),
        1 => Value::N(random_number(rng)),
        2 => Value::B(random_bytes(rng)),
        3 => Value::Bool(rng.bool()),
        4 => Value::Null,
        5 => Value::Ss(set((0..=count).map(|_| random_text(rng)).collect())),
        6 => Value::Ns(set((0..=count).map(|_| random_number(rng)).collect())),
        7 => Value::Bs(set((0..=count).map(|_| random_bytes(rng)).collect())),
        8 => Value::L((0..count).map(|_| random_value(rng, depth - 1)).collect()),
        _ => Value::M(random_item(rng, depth - 1)),
    }
}

pub(crate) fn random_item(rng: &mut Rng, depth: usize) -> Item {
    let mut names: Vec<String> = (0..rng.usize(0..5)).map(|_| random_text(rng)).collect();
    names.sort_unstable();
    names.dedup();
    Item::new(names.into_iter().map(|name| (name, random_value(rng, depth))).collect()).unwrap()
}

#[test]
fn canonical_json_is_what_the_table_says() {
    for (dynamodb, canonical) in [
        (r#"{}"#, r#"{}"#),
        (r#"{"b":{"N":"1.50"},"a":{"S":"x"}}"#, r#"{"a":"x","b":1.5}"#),
        (r#"{"t":{"BOOL":true},"f":{"BOOL":false},"n":{"NULL":true}}"#, r#"{"f":false,"n":null,"t":true}"#),
        (r#"{"b":{"B":""},"c":{"B":"+/8="}}"#, r#"{"b":{"$B":""},"c":{"$B":"+/8="}}"#),
        (r#"{"s":{"SS":["b","","a"]}}"#, r#"{"s":{"$SS":["","a","b"]}}"#),
        (r#"{"s":{"NS":["10","9","1E1"]}}"#, r#"{"s":{"$NS":[9,10]}}"#),
        (r#"{"s":{"BS":["Zg==",""]}}"#, r#"{"s":{"$BS":["","Zg=="]}}"#),
        (r#"{"l":{"L":[{"S":""},{"L":[]}]}}"#, r#"{"l":["",[]]}"#),
        (r#"{"m":{"M":{"$B":{"S":"x"}}}}"#, r#"{"m":{"$M":{"$B":"x"}}}"#),
        (r#"{"m":{"M":{"a":{"S":"x"},"$":{"M":{}}}}}"#, r#"{"m":{"$M":{"$":{},"a":"x"}}}"#),
        (r#"{"$B":{"S":"x"}}"#, r#"{"$B":"x"}"#),
        (r#"{"":{"S":"\"\\\n\u0001é😀"}}"#, "{\"\":\"\\\"\\\\\\n\\u0001é😀\"}"),
        (r#"{"n":{"N":"-0"},"o":{"N":"1E-130"},"p":{"N":"9.99E125"}}"#, r#"{"n":0,"o":1E-130,"p":999E123}"#),
    ] {
        let item = item(dynamodb);
        assert_eq!(item.canonical(), canonical);
        assert_eq!(Item::from_canonical(canonical).unwrap(), item, "{canonical}");
        assert!(serde_json::from_str::<serde_json::Value>(canonical).is_ok(), "{canonical}");
    }
}

#[test]
fn thirty_eight_digits_survive() {
    let digits = "12345678901234567890123456789012345678";
    for text in [
        digits.to_owned(),
        format!("-{digits}"),
        format!("0.{digits}"),
        format!("{digits}E-130"),
        format!("{digits}E88"),
    ] {
        let read = item(&format!(r#"{{"n":{{"N":"{text}"}}}}"#));
        assert!(read.canonical().contains(digits), "{}", read.canonical());
        assert_eq!(Item::from_canonical(&read.canonical()).unwrap(), read);
        assert_eq!(item(&read.to_string()), read);
    }
}

#[test]
fn thirty_two_levels_and_400_kilobytes_survive() {
    let deep = Item::new(vec![("deep".into(), nested(32)), ("large".into(), Value::S("é".repeat(200 << 10)))]).unwrap();
    assert_eq!(item(&deep.to_string()), deep);
    assert_eq!(Item::from_canonical(&deep.canonical()).unwrap(), deep);
    assert!(deep.bytes() > 400 << 10);
}

#[test]
fn random_items_survive_both_texts_and_both_clients() {
    let mut rng = Rng::with_seed(5);
    for round in 0..3_000 {
        let item = random_item(&mut rng, 3);
        let seen = format!("round {round}: {}", item.canonical());
        assert_eq!(Item::from_canonical(&item.canonical()).as_ref(), Ok(&item), "{seen}");
        assert_eq!(item.to_string().parse().as_ref(), Ok(&item), "{seen}");
        assert!(serde_json::from_str::<serde_json::Value>(&item.canonical()).is_ok() || seen.contains('E'), "{seen}");
        assert_eq!(Item::try_from(tables_item(&item)).as_ref(), Ok(&item), "{seen}");
        assert_eq!(Item::try_from(streams_item(&item)).as_ref(), Ok(&item), "{seen}");
    }
}

#[test]
fn equal_texts_are_equal_items() {
    let mut rng = Rng::with_seed(6);
    let mut known = std::collections::HashMap::new();
    for _ in 0..5_000 {
        let item = random_item(&mut rng, 1);
        if let Some(other) = known.insert(item.canonical(), item.clone()) {
            assert_eq!(other, item);
        }
    }
}

#[test]
fn what_is_no_item_is_refused_without_its_value() {
    for (text, expected) in [
        (r#"{"a":{"S":1}}"#, InvalidValue::Json),
        (r#"{"a":{"N":"secret"}}"#, InvalidValue::Json),
        (r#"{"a":{"S":"x","N":"1"}}"#, InvalidValue::Json),
        (r#"{"a":{"S":"x"},"a":{"S":"y"}}"#, InvalidValue::Json),
        (r#"{"a":{"X":"x"}}"#, InvalidValue::Json),
        (r#"{"a":{}}"#, InvalidValue::Json),
        (r#"{"a":{"B":"*"}}"#, InvalidValue::Json),
        ("", InvalidValue::Json),
    ] {
        assert_eq!(text.parse::<Item>().unwrap_err(), expected, "{text}");
    }
    let too_long = aws_sdk_dynamodb::types::AttributeValue::N("1".repeat(39));
    assert_eq!(Value::try_from(too_long).unwrap_err(), InvalidValue::Number(InvalidNumber::TooManyDigits));
    for text in ["", "{", r#"{"a":}"#, r#"{"a":1}x"#, r#"{"a":{"$X":1}}"#, r#"{"a":"x}"#, r#"{"a" :1}"#, r#"{"a":1e}"#]
    {
        assert!(Item::from_canonical(text).is_err(), "{text}");
    }
    let deep = format!("{{\"a\":{}", "[".repeat(100_000));
    assert_eq!(Item::from_canonical(&deep).unwrap_err(), InvalidValue::Canonical);
    assert_eq!(format!("{:?}", item(r#"{"a":{"S":"secret"}}"#)), r#"{"a": S}"#);
}

#[test]
fn no_text_makes_the_readers_panic() {
    let mut rng = Rng::with_seed(7);
    for _ in 0..20_000 {
        let mut text: Vec<char> = random_item(&mut rng, 2).canonical().chars().collect();
        for _ in 0..rng.usize(1..4) {
            let place = rng.usize(0..text.len());
            match rng.bool() {
                true => drop(text.remove(place)),
                false => text[place] = char::from(*rng.choice(br#"{}[]",:$\0eE.-"#).unwrap()),
            }
            if text.is_empty() {
                break;
            }
        }
        let text: String = text.into_iter().collect();
        let _ = Item::from_canonical(&text);
        let _ = text.parse::<Item>();
    }
}

macro_rules! to_client {
    ($name:ident, $client:ident) => {
        fn $name(item: &Item) -> std::collections::HashMap<String, $client::types::AttributeValue> {
            use $client::{primitives::Blob, types::AttributeValue};
            fn convert(value: &Value) -> AttributeValue {
                match value {
                    Value::S(text) => AttributeValue::S(text.clone()),
                    Value::N(number) => AttributeValue::N(number.to_string()),
                    Value::B(bytes) => AttributeValue::B(Blob::new(bytes.clone())),
                    Value::Bool(value) => AttributeValue::Bool(*value),
                    Value::Null => AttributeValue::Null(true),
                    Value::M(members) => AttributeValue::M($name(members)),
                    Value::L(members) => AttributeValue::L(members.iter().map(convert).collect()),
                    Value::Ss(members) => AttributeValue::Ss(members.iter().rev().cloned().collect()),
                    Value::Ns(members) => AttributeValue::Ns(members.iter().rev().map(ToString::to_string).collect()),
                    Value::Bs(members) => AttributeValue::Bs(members.iter().rev().cloned().map(Blob::new).collect()),
                }
            }
            item.iter().map(|(name, inner)| (name.to_owned(), convert(inner))).collect()
        }
    };
}

to_client!(tables_item, aws_sdk_dynamodb);
to_client!(streams_item, aws_sdk_dynamodbstreams);
