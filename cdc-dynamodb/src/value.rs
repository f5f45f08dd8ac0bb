//! Items and their attributes as DynamoDB means them: the source of everything that a row is made of.
//!
//! They come by move from Amazon's clients (`sdk.rs`), or from DynamoDB JSON, as exports have it (`json.rs`). Both bring
//! numbers into their canonical form and sort what has no order, so that equal items are equal values. Their text in the
//! lake is another one (`canonical.rs`).

mod canonical;
mod json;
mod sdk;
#[cfg(test)]
pub(crate) mod tests;

use std::fmt;

use crate::number::{InvalidNumber, Number};

pub(crate) use canonical::{write_name, write_value};

/// The value of an attribute.
#[derive(Clone, PartialEq, Eq)]
pub enum Value {
    S(String),
    N(Number),
    B(Vec<u8>),
    Bool(bool),
    /// Not the same as a missing attribute.
    Null,
    M(Item),
    L(Vec<Value>),
    /// Sorted, without duplicates, as the other sets.
    Ss(Vec<String>),
    Ns(Vec<Number>),
    Bs(Vec<Vec<u8>>),
}

/// Attributes by name, sorted by the names' bytes; also what a map holds.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Item(Vec<(String, Value)>);

/// Why something is no item of DynamoDB's. Values are never part of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidValue {
    #[error("a number is {0}")]
    Number(#[from] InvalidNumber),
    #[error("a binary value is not base64")]
    Base64,
    #[error("a name comes twice in one map")]
    NameTwice,
    /// A type that is newer than this program.
    #[error("a value has an unknown type")]
    UnknownType,
    #[error("not an item in DynamoDB JSON")]
    Json,
    #[error("not an item in canonical JSON")]
    Canonical,
}

impl Item {
    /// From attributes in any order.
    ///
    /// # Errors
    /// When a name comes twice.
    pub fn new(mut attributes: Vec<(String, Value)>) -> Result<Self, InvalidValue> {
        attributes.sort_unstable_by(|(one, _), (other, _)| one.cmp(other));
        match attributes.windows(2).any(|pair| pair[0].0 == pair[1].0) {
            true => Err(InvalidValue::NameTwice),
            false => Ok(Self(attributes)),
        }
    }

    pub fn get(&self, name: &str) -> Option<&Value> {
        self.0.binary_search_by(|(known, _)| known.as_str().cmp(name)).ok().map(|place| &self.0[place].1)
    }

    /// Attributes by name.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&str, &Value)> {
        self.0.iter().map(|(name, value)| (name.as_str(), value))
    }

    /// Only the attributes with these names.
    #[must_use]
    pub fn only(&self, names: &[&str]) -> Self {
        Self(self.0.iter().filter(|(name, _)| names.contains(&name.as_str())).cloned().collect())
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// About how many bytes the item holds; its canonical JSON is at most six times as long.
    pub fn bytes(&self) -> usize {
        self.0.iter().map(|(name, value)| name.len() + value.bytes()).sum()
    }
}

impl Value {
    /// The type's name on the wire.
    pub fn type_name(&self) -> &'static str {
        match self {
            Value::S(_) => "S",
            Value::N(_) => "N",
            Value::B(_) => "B",
            Value::Bool(_) => "BOOL",
            Value::Null => "NULL",
            Value::M(_) => "M",
            Value::L(_) => "L",
            Value::Ss(_) => "SS",
            Value::Ns(_) => "NS",
            Value::Bs(_) => "BS",
        }
    }

    fn bytes(&self) -> usize {
        /// Of the value itself, and of each member of a set.
        const AROUND: usize = 3;
        /// Numbers have up to 38 digits beside their sign and exponent.
        const NUMBER: usize = 40;
        let content = match self {
            Value::S(text) => text.len(),
            Value::N(_) => NUMBER,
            Value::B(bytes) => bytes.len(),
            Value::Bool(_) | Value::Null => 1,
            Value::M(members) => members.bytes(),
            Value::L(members) => members.iter().map(Value::bytes).sum(),
            Value::Ss(members) => members.iter().map(|member| AROUND + member.len()).sum(),
            Value::Ns(members) => members.len() * NUMBER,
            Value::Bs(members) => members.iter().map(|member| AROUND + member.len()).sum(),
        };
        AROUND + content
    }
}

/// Sets have no order and no member twice.
fn set<T: Ord>(mut members: Vec<T>) -> Vec<T> {
    members.sort_unstable();
    members.dedup();
    members
}

/// Item values stay out of logs.
impl fmt::Debug for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.type_name())
    }
}

/// Names are no secret, values are.
impl fmt::Debug for Item {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.iter()).finish()
    }
}
