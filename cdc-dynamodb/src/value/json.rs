//! DynamoDB JSON, each value under the name of its type: `{"id":{"S":"a"},"level":{"N":"7"}}`. Exports are written in it.

use std::fmt;
use std::str::FromStr;

use aws_smithy_types::base64;
use serde::de::{Error, MapAccess, Visitor};
use serde::ser::{SerializeMap, Serializer};
use serde::{Deserialize, Deserializer, Serialize};

use super::{InvalidValue, Item, Value, set};

/// DynamoDB JSON of one item, without the `Item` around it that a line of an export has.
impl FromStr for Item {
    type Err = InvalidValue;

    fn from_str(text: &str) -> Result<Self, InvalidValue> {
        serde_json::from_str(text).map_err(|_| InvalidValue::Json)
    }
}

/// DynamoDB JSON.
impl fmt::Display for Item {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&serde_json::to_string(self).map_err(|_| fmt::Error)?)
    }
}

impl<'de> Deserialize<'de> for Item {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Attributes;

        impl<'de> Visitor<'de> for Attributes {
            type Value = Item;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("attributes by name")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Item, A::Error> {
                let mut attributes = Vec::new();
                while let Some(attribute) = map.next_entry()? {
                    attributes.push(attribute);
                }
                Item::new(attributes).map_err(Error::custom)
            }
        }

        deserializer.deserialize_map(Attributes)
    }
}

impl<'de> Deserialize<'de> for Value {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Typed;

        impl<'de> Visitor<'de> for Typed {
            type Value = Value;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a value under the name of its type")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
                let kind: String = map.next_key()?.ok_or_else(|| Error::custom(InvalidValue::UnknownType))?;
                let value = match kind.as_str() {
                    "S" => Value::S(map.next_value()?),
                    "N" => Value::N(map.next_value::<String>()?.parse().map_err(Error::custom)?),
                    "B" => Value::B(decode(&map.next_value::<String>()?).map_err(Error::custom)?),
                    "BOOL" => Value::Bool(map.next_value()?),
                    "NULL" => {
                        map.next_value::<bool>()?;
                        Value::Null
                    }
                    "M" => Value::M(map.next_value()?),
                    "L" => Value::L(map.next_value()?),
                    "SS" => Value::Ss(set(map.next_value()?)),
                    "NS" => {
                        let members: Vec<String> = map.next_value()?;
                        let members: Result<Vec<_>, _> = members.iter().map(|member| member.parse()).collect();
                        Value::Ns(set(members.map_err(Error::custom)?))
                    }
                    "BS" => {
                        let members: Vec<String> = map.next_value()?;
                        let members: Result<Vec<_>, _> = members.iter().map(|member| decode(member)).collect();
                        Value::Bs(set(members.map_err(Error::custom)?))
                    }
                    _ => return Err(Error::custom(InvalidValue::UnknownType)),
                };
                match map.next_key::<String>()? {
                    None => Ok(value),
                    Some(_) => Err(Error::custom(InvalidValue::Json)),
                }
            }
        }

        deserializer.deserialize_map(Typed)
    }
}

fn decode(text: &str) -> Result<Vec<u8>, InvalidValue> {
    base64::decode(text).map_err(|_| InvalidValue::Base64)
}

impl Serialize for Item {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.iter())
    }
}

impl Serialize for Value {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(1))?;
        let name = self.type_name();
        match self {
            Value::S(text) => map.serialize_entry(name, text)?,
            Value::N(number) => map.serialize_entry(name, &number.to_string())?,
            Value::B(bytes) => map.serialize_entry(name, &base64::encode(bytes))?,
            Value::Bool(value) => map.serialize_entry(name, value)?,
            Value::Null => map.serialize_entry(name, &true)?,
            Value::M(members) => map.serialize_entry(name, members)?,
            Value::L(members) => map.serialize_entry(name, members)?,
            Value::Ss(members) => map.serialize_entry(name, members)?,
            Value::Ns(members) => {
                map.serialize_entry(name, &members.iter().map(ToString::to_string).collect::<Vec<_>>())?;
            }
            Value::Bs(members) => {
                map.serialize_entry(name, &members.iter().map(base64::encode).collect::<Vec<_>>())?;
            }
        }
        map.end()
    }
}
