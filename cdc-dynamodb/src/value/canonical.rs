//! Canonical JSON, the text in `_rest` and in columns declared as `json`: what engines read with their JSON functions,
//! and from which the item comes back whole.
//!
//! | DynamoDB | JSON |
//! |---|---|
//! | S, BOOL, NULL | string, `true` or `false`, `null` |
//! | N | number with all its digits: `12.5`, `1E-130`; engines that read it as a float round it, the text does not |
//! | L, M | array, object |
//! | B | `{"$B":"base64"}` |
//! | SS, NS, BS | `{"$SS":["a","b"]}`, `{"$NS":[1,2.5]}`, `{"$BS":["base64"]}` |
//! | M whose first name begins with `$` | `{"$M":{"$a":1,"b":2}}`: so an object that begins with `$` is always a tag |
//!
//! Names and set members are sorted (names and strings by their bytes, numbers by value), there are no spaces, and
//! numbers have one text (`number.rs`): equal values have equal texts. The outermost object is an item, never a value, so
//! its names are never mistaken for tags.

use aws_smithy_types::base64;

use super::{InvalidValue, Item, Value, set};

/// Deeper than DynamoDB's 32 levels and the tags around them.
const DEEPEST: usize = 100;

impl Item {
    /// Canonical JSON.
    pub fn canonical(&self) -> String {
        let mut text = String::new();
        write_members(&mut text, self);
        text
    }

    /// The item that has this canonical JSON.
    ///
    /// # Errors
    /// When the text has another form.
    pub fn from_canonical(text: &str) -> Result<Self, InvalidValue> {
        let mut reader = Reader { rest: text, depth: 0 };
        let item = reader.members()?;
        if reader.rest.is_empty() { Ok(item) } else { Err(InvalidValue::Canonical) }
    }
}

/// Appends a value's canonical JSON.
pub(crate) fn write_value(text: &mut String, value: &Value) {
    match value {
        Value::S(string) => write_string(text, string),
        Value::N(number) => text.push_str(&number.to_string()),
        Value::B(bytes) => {
            text.push_str(r#"{"$B":"#);
            write_bytes(text, bytes);
            text.push('}');
        }
        Value::Bool(value) => text.push_str(if *value { "true" } else { "false" }),
        Value::Null => text.push_str("null"),
        Value::M(members) if begins_like_a_tag(members) => {
            text.push_str(r#"{"$M":"#);
            write_members(text, members);
            text.push('}');
        }
        Value::M(members) => write_members(text, members),
        Value::L(members) => write_array(text, members, write_value),
        Value::Ss(members) => write_set(text, "$SS", members, |text, member| write_string(text, member)),
        Value::Ns(members) => write_set(text, "$NS", members, |text, member| text.push_str(&member.to_string())),
        Value::Bs(members) => write_set(text, "$BS", members, |text, member| write_bytes(text, member)),
    }
}

/// Appends a name and its colon, and a comma before it unless it is the first.
pub(crate) fn write_name(text: &mut String, name: &str) {
    if !text.ends_with('{') {
        text.push(',');
    }
    write_string(text, name);
    text.push(':');
}

fn begins_like_a_tag(members: &Item) -> bool {
    members.iter().next().is_some_and(|(name, _)| name.starts_with('$'))
}

fn write_members(text: &mut String, members: &Item) {
    text.push('{');
    for (name, value) in members.iter() {
        write_name(text, name);
        write_value(text, value);
    }
    text.push('}');
}

fn write_set<T>(text: &mut String, tag: &str, members: &[T], write: impl Fn(&mut String, &T)) {
    text.push('{');
    write_name(text, tag);
    write_array(text, members, write);
    text.push('}');
}

fn write_array<T>(text: &mut String, members: &[T], write: impl Fn(&mut String, &T)) {
    text.push('[');
    for (number, member) in members.iter().enumerate() {
        if number > 0 {
            text.push(',');
        }
        write(text, member);
    }
    text.push(']');
}

fn write_bytes(text: &mut String, bytes: &[u8]) {
    text.push('"');
    text.push_str(&base64::encode(bytes));
    text.push('"');
}

/// Escapes what JSON demands and nothing else.
fn write_string(text: &mut String, string: &str) {
    text.push('"');
    let mut written = 0;
    for (place, byte) in string.bytes().enumerate() {
        let escape = match byte {
            b'"' => "\\\"",
            b'\\' => "\\\\",
            b'\n' => "\\n",
            b'\r' => "\\r",
            b'\t' => "\\t",
            0..0x20 => "",
            _ => continue,
        };
        text.push_str(&string[written..place]);
        match escape {
            "" => text.push_str(&format!("\\u{byte:04x}")),
            escape => text.push_str(escape),
        }
        written = place + 1;
    }
    text.push_str(&string[written..]);
    text.push('"');
}

/// Reads what the functions above write. Not `serde_json`, which would read numbers as floats.
struct Reader<'a> {
    rest: &'a str,
    depth: usize,
}

impl<'a> Reader<'a> {
    fn value(&mut self) -> Result<Value, InvalidValue> {
        match self.rest.bytes().next().ok_or(InvalidValue::Canonical)? {
            b'"' => Ok(Value::S(self.string()?)),
            b'[' => Ok(Value::L(self.array(Self::value)?)),
            b'{' => self.object(),
            b't' => self.expect("true").map(|()| Value::Bool(true)),
            b'f' => self.expect("false").map(|()| Value::Bool(false)),
            b'n' => self.expect("null").map(|()| Value::Null),
            _ => Ok(Value::N(self.number()?)),
        }
    }

    fn expect(&mut self, wanted: &str) -> Result<(), InvalidValue> {
        self.rest = self.rest.strip_prefix(wanted).ok_or(InvalidValue::Canonical)?;
        Ok(())
    }

    fn number(&mut self) -> Result<crate::number::Number, InvalidValue> {
        let end = self.rest.find([',', ']', '}']).unwrap_or(self.rest.len());
        let (number, rest) = self.rest.split_at(end);
        self.rest = rest;
        Ok(number.parse()?)
    }

    fn string(&mut self) -> Result<String, InvalidValue> {
        let mut escaped = false;
        let end = self.rest.bytes().skip(1).position(|byte| {
            let ends = byte == b'"' && !escaped;
            escaped = byte == b'\\' && !escaped;
            ends
        });
        let end = end.filter(|_| self.rest.starts_with('"')).ok_or(InvalidValue::Canonical)? + 2;
        let (string, rest) = self.rest.split_at(end);
        self.rest = rest;
        serde_json::from_str(string).map_err(|_| InvalidValue::Canonical)
    }

    fn bytes(&mut self) -> Result<Vec<u8>, InvalidValue> {
        base64::decode(self.string()?).map_err(|_| InvalidValue::Base64)
    }

    fn array<T>(&mut self, read: impl Fn(&mut Self) -> Result<T, InvalidValue>) -> Result<Vec<T>, InvalidValue> {
        self.deeper()?;
        self.expect("[")?;
        let mut members = Vec::new();
        while !self.rest.starts_with(']') {
            if !members.is_empty() {
                self.expect(",")?;
            }
            members.push(read(self)?);
        }
        self.depth -= 1;
        self.expect("]")?;
        Ok(members)
    }

    fn members(&mut self) -> Result<Item, InvalidValue> {
        self.deeper()?;
        self.expect("{")?;
        let mut members = Vec::new();
        while !self.rest.starts_with('}') {
            if !members.is_empty() {
                self.expect(",")?;
            }
            let name = self.string()?;
            self.expect(":")?;
            members.push((name, self.value()?));
        }
        self.depth -= 1;
        self.expect("}")?;
        Item::new(members)
    }

    /// A map, or a value with a tag.
    fn object(&mut self) -> Result<Value, InvalidValue> {
        if !self.rest.starts_with(r#"{"$"#) {
            return Ok(Value::M(self.members()?));
        }
        self.deeper()?;
        self.expect("{")?;
        let tag = self.string()?;
        self.expect(":")?;
        let value = match tag.as_str() {
            "$B" => Value::B(self.bytes()?),
            "$SS" => Value::Ss(set(self.array(Self::string)?)),
            "$NS" => Value::Ns(set(self.array(Self::number)?)),
            "$BS" => Value::Bs(set(self.array(Self::bytes)?)),
            "$M" => Value::M(self.members()?),
            _ => return Err(InvalidValue::Canonical),
        };
        self.depth -= 1;
        self.expect("}")?;
        Ok(value)
    }

    fn deeper(&mut self) -> Result<(), InvalidValue> {
        self.depth += 1;
        if self.depth > DEEPEST { Err(InvalidValue::Canonical) } else { Ok(()) }
    }
}
