//! From the attribute values of Amazon's two clients, which are alike and not the same type.

use std::collections::HashMap;

use super::{InvalidValue, Item, Value, set};

macro_rules! from_client {
    ($client:ident) => {
        impl TryFrom<$client::types::AttributeValue> for Value {
            type Error = InvalidValue;

            fn try_from(value: $client::types::AttributeValue) -> Result<Self, InvalidValue> {
                use $client::types::AttributeValue;
                let blobs = |blobs: Vec<$client::primitives::Blob>| blobs.into_iter().map(|blob| blob.into_inner());
                Ok(match value {
                    AttributeValue::S(text) => Value::S(text),
                    AttributeValue::N(number) => Value::N(number.parse()?),
                    AttributeValue::B(bytes) => Value::B(bytes.into_inner()),
                    AttributeValue::Bool(value) => Value::Bool(value),
                    AttributeValue::Null(_) => Value::Null,
                    AttributeValue::M(members) => Value::M(members.try_into()?),
                    AttributeValue::L(members) => {
                        Value::L(members.into_iter().map(Value::try_from).collect::<Result<_, _>>()?)
                    }
                    AttributeValue::Ss(members) => Value::Ss(set(members)),
                    AttributeValue::Ns(members) => {
                        let numbers: Result<Vec<_>, _> = members.iter().map(|number| number.parse()).collect();
                        Value::Ns(set(numbers?))
                    }
                    AttributeValue::Bs(members) => Value::Bs(set(blobs(members).collect())),
                    _ => return Err(InvalidValue::UnknownType),
                })
            }
        }

        impl TryFrom<HashMap<String, $client::types::AttributeValue>> for Item {
            type Error = InvalidValue;

            fn try_from(attributes: HashMap<String, $client::types::AttributeValue>) -> Result<Self, InvalidValue> {
                let attribute = |(name, value)| Ok((name, Value::try_from(value)?));
                Item::new(attributes.into_iter().map(attribute).collect::<Result<_, InvalidValue>>()?)
            }
        }
    };
}

from_client!(aws_sdk_dynamodb);
from_client!(aws_sdk_dynamodbstreams);
