//! Items as they stand on the wire, checked and brought into the form that the service keeps them in.

use std::sync::Arc;

use serde_json::{Map, Value};

use super::number;
use super::refusal::Refusal;

/// Attributes by name, each with its type: `{"id": {"S": "a"}}`.
pub type Item = Map<String, Value>;

/// Type of a key attribute.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyType {
    S,
    N,
    B,
}

impl KeyType {
    pub(super) fn letter(self) -> &'static str {
        match self {
            KeyType::S => "S",
            KeyType::N => "N",
            KeyType::B => "B",
        }
    }
}

/// The hash key, and the range key if there is one.
pub(super) type KeySchema = Vec<(String, KeyType)>;

/// Where an item stands among the others: scans go in this order.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct ItemKey {
    pub(super) hash: u64,
    partition: Vec<u8>,
    sort: Vec<u8>,
}

/// An item, its text, and its size as the service counts it.
#[derive(Clone, Debug)]
pub(super) struct Stored {
    pub(super) item: Arc<Item>,
    pub(super) text: Arc<str>,
    pub(super) size: usize,
}

/// The largest item, and how deep attributes nest.
const LARGEST_ITEM: usize = 400 << 10;
const DEEPEST: usize = 32;

impl Stored {
    /// Checks an item and brings its numbers into one form.
    pub(super) fn new(item: &Value) -> Result<Self, Refusal> {
        let Value::Object(attributes) = item else {
            return Err(Refusal::validation("an item is an object"));
        };
        let mut kept = Item::new();
        let mut size = 0;
        for (name, value) in attributes {
            let (value, bytes) = normal(value, 1)?;
            size += name.len() + bytes;
            kept.insert(name.clone(), value);
        }
        if size > LARGEST_ITEM {
            return Err(Refusal::validation("Item size has exceeded the maximum allowed size"));
        }
        Ok(Self { text: serde_json::to_string(&kept).expect("JSON has a text").into(), item: Arc::new(kept), size })
    }

    /// As it came, whatever it is.
    pub(super) fn unchecked(item: &Value) -> Self {
        let text = item.to_string();
        let kept = item.as_object().cloned().unwrap_or_default();
        Self { size: text.len(), text: text.into(), item: Arc::new(kept) }
    }
}

fn normal(value: &Value, depth: usize) -> Result<(Value, usize), Refusal> {
    let invalid = || Refusal::validation("Supplied AttributeValue is not valid");
    if depth > DEEPEST {
        return Err(Refusal::validation("Nesting Levels have exceeded supported limits"));
    }
    let Some((kind, inner)) = value.as_object().filter(|one| one.len() == 1).and_then(|one| one.iter().next()) else {
        return Err(invalid());
    };
    let (inner, size) = match (kind.as_str(), inner) {
        ("S", Value::String(text)) => (inner.clone(), text.len()),
        ("N", Value::String(text)) => {
            let number = number::parse(text).ok_or_else(not_a_number)?;
            let size = number.text.len() / 2 + 1;
            (Value::String(number.text), size)
        }
        ("B", Value::String(text)) => (inner.clone(), decode(text).ok_or_else(invalid)?.len()),
        ("BOOL", Value::Bool(_)) | ("NULL", Value::Bool(true)) => (inner.clone(), 1),
        ("SS" | "NS" | "BS", Value::Array(members)) => {
            let kind = &kind[..1];
            let mut kept = Vec::with_capacity(members.len());
            let mut size = 0;
            for member in members {
                let (mut member, bytes) = normal(&serde_json::json!({kind: member}), depth)?;
                size += bytes;
                kept.push(member[kind].take());
            }
            let mut sorted: Vec<&str> = kept.iter().filter_map(Value::as_str).collect();
            sorted.sort_unstable();
            if sorted.is_empty() || sorted.windows(2).any(|pair| pair[0] == pair[1]) {
                return Err(Refusal::validation("a set is not empty and has no member twice"));
            }
            (Value::Array(kept), size)
        }
        ("L", Value::Array(members)) => {
            let mut size = 3;
            let mut kept = Vec::with_capacity(members.len());
            for member in members {
                let (member, bytes) = normal(member, depth + 1)?;
                size += bytes + 1;
                kept.push(member);
            }
            (Value::Array(kept), size)
        }
        ("M", Value::Object(members)) => {
            let mut size = 3;
            let mut kept = Item::new();
            for (name, member) in members {
                let (member, bytes) = normal(member, depth + 1)?;
                size += name.len() + bytes + 1;
                kept.insert(name.clone(), member);
            }
            (Value::Object(kept), size)
        }
        _ => return Err(invalid()),
    };
    let mut one = Map::new();
    one.insert(kind.clone(), inner);
    Ok((Value::Object(one), size))
}

fn not_a_number() -> Refusal {
    Refusal::validation(
        "The parameter cannot be converted to a numeric value, or it has more than 38 significant digits",
    )
}

/// The key attributes of an item, or of a key, which has no others.
pub(super) fn key_of(schema: &KeySchema, item: &Item) -> Result<Item, Refusal> {
    let attribute = |(name, kind): &(String, KeyType)| {
        let value = item.get(name).filter(|value| value.get(kind.letter()).is_some());
        let value = value.ok_or_else(|| {
            Refusal::validation(format!(
                "One or more parameter values were invalid: Missing the key {name} in the item"
            ))
        })?;
        Ok((name.clone(), value.clone()))
    };
    schema.iter().map(attribute).collect()
}

/// A key as it came in a request: exactly the key attributes.
pub(super) fn requested_key(schema: &KeySchema, key: &Value) -> Result<Item, Refusal> {
    let key = Stored::new(key)?;
    match key.item.len() == schema.len() {
        true => key_of(schema, &key.item),
        false => Err(Refusal::validation("The provided key element does not match the schema")),
    }
}

/// The place of a key.
pub(super) fn place_of(schema: &KeySchema, key: &Item) -> Result<ItemKey, Refusal> {
    let mut parts = schema.iter().map(|(name, kind)| {
        let text = key[name][kind.letter()].as_str().unwrap_or_default();
        let bytes = match kind {
            KeyType::S => text.as_bytes().to_vec(),
            KeyType::B => decode(text).unwrap_or_default(),
            KeyType::N => number::parse(text).ok_or_else(not_a_number)?.sortable,
        };
        match bytes.is_empty() {
            true => Err(Refusal::validation(format!("the key attribute {name} must not be empty"))),
            false => Ok(bytes),
        }
    });
    let partition = parts.next().expect("a table has a hash key")?;
    let sort = parts.next().transpose()?.unwrap_or_default();
    Ok(ItemKey { hash: hash(&partition), partition, sort })
}

/// The first place of a hash.
pub(super) fn first_of(hash: u64) -> ItemKey {
    ItemKey { hash, ..ItemKey::default() }
}

/// FNV-1a, mixed so that also the high bits of short keys differ: they decide about the shard.
fn hash(bytes: &[u8]) -> u64 {
    let fnv = bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325u64, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3));
    let mixed = (fnv ^ (fnv >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    mixed ^ (mixed >> 33)
}

/// The bytes of a base64 text.
fn decode(text: &str) -> Option<Vec<u8>> {
    let value = |letter: u8| match letter {
        b'A'..=b'Z' => Some(u32::from(letter - b'A')),
        b'a'..=b'z' => Some(u32::from(letter - b'a') + 26),
        b'0'..=b'9' => Some(u32::from(letter - b'0') + 52),
        b'+' => Some(62),
        b'/' => Some(63),
        _ => None,
    };
    if !text.len().is_multiple_of(4) {
        return None;
    }
    let letters = text.strip_suffix("==").or_else(|| text.strip_suffix('=')).unwrap_or(text).as_bytes();
    let mut bytes = Vec::with_capacity(letters.len() * 3 / 4);
    for group in letters.chunks(4) {
        let mut bits = 0u32;
        for &letter in group {
            bits = bits << 6 | value(letter)?;
        }
        bits <<= 6 * (4 - group.len());
        bytes.extend_from_slice(&bits.to_be_bytes()[1..group.len()]);
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_is_read() {
        for (text, bytes) in
            [("", &b""[..]), ("Zg==", b"f"), ("Zm8=", b"fo"), ("Zm9v", b"foo"), ("+/8=", &[0xfb, 0xff])]
        {
            assert_eq!(decode(text).as_deref(), Some(bytes));
        }
        assert_eq!(decode("Zg="), None);
        assert_eq!(decode("Z*=="), None);
    }
}
