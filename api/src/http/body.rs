//! What a request carries in its body: JSON, whatever its `Content-Type` says, with no key that is not known.

use std::collections::BTreeSet;
use std::time::Duration;

use axum::body::Bytes;
use axum::extract::{FromRequest, Request};
use axum::http::StatusCode;
use lakehouse_core::error::Problem;
use lakehouse_core::schema::TableName;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use tokio::time::timeout;
use utoipa::openapi::{ObjectBuilder, RefOr, Schema, Type};
use utoipa::{PartialSchema, ToSchema};

use super::problem::HttpProblem;

/// The longest body, in bytes; longer ones are not read.
pub(super) const BODY_BYTES: usize = 256 << 10;
/// How long a client may take to send it (S6).
const BODY_TIME: Duration = Duration::from_secs(10);
/// The longest reason, in characters: every copy of the control table's metadata carries it.
const REASON_LENGTH: usize = 1_000;

/// A body that was understood. An empty one is taken for `{}`.
pub(super) struct Body<T>(pub(super) T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for Body<T> {
    type Rejection = HttpProblem;

    async fn from_request(request: Request, state: &S) -> Result<Self, HttpProblem> {
        let bytes = timeout(BODY_TIME, Bytes::from_request(request, state)).await.map_err(|_| {
            let detail = format!("the body has not come within {} seconds", BODY_TIME.as_secs());
            HttpProblem::invalid(detail).with_status(StatusCode::REQUEST_TIMEOUT)
        })?;
        let bytes = bytes.map_err(|rejection| match rejection.status() {
            StatusCode::PAYLOAD_TOO_LARGE => {
                let detail = format!("a body may have {BODY_BYTES} bytes");
                HttpProblem::new(StatusCode::PAYLOAD_TOO_LARGE, "BODY_LIMIT", detail)
            }
            _ => HttpProblem::invalid("the body has not come whole"),
        })?;
        parse(&bytes).map(Self)
    }
}

fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, HttpProblem> {
    let bytes = if bytes.is_empty() { b"{}" } else { bytes };
    // A list would be taken for the values of an object, in the order in which they happen to be declared here.
    if !bytes.trim_ascii_start().starts_with(b"{") {
        return Err(HttpProblem::invalid("body: write a JSON object"));
    }
    serde_json::from_slice(bytes).map_err(|error| HttpProblem::invalid(format!("body: {error}")))
}

/// Nothing is said.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Nothing {}

/// Only why.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Why {
    pub(super) reason: Reason,
}

/// Why something is done: never blank.
#[derive(Clone, Debug, Deserialize)]
#[serde(try_from = "String")]
pub(super) struct Reason(pub(super) String);

impl TryFrom<String> for Reason {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        match text.chars().count() {
            _ if text.trim().is_empty() => Err("say why, in reason".to_owned()),
            0..=REASON_LENGTH => Ok(Self(text)),
            _ => Err(format!("a reason may have {REASON_LENGTH} characters")),
        }
    }
}

/// A table, as `namespace.table`.
#[derive(Clone, Debug, Deserialize)]
#[serde(try_from = "String")]
pub(super) struct Name(TableName);

impl TryFrom<String> for Name {
    type Error = Problem;

    fn try_from(text: String) -> Result<Self, Problem> {
        text.parse().map(Self)
    }
}

/// The tables of a list, each once; of one that may be left out, none where it is.
///
/// # Errors
/// `REQUEST_INVALID` for a list without tables: it could mean none or all.
pub(super) fn named(tables: Option<Vec<Name>>) -> Result<Vec<TableName>, HttpProblem> {
    match tables {
        Some(tables) if tables.is_empty() => Err(HttpProblem::invalid("tables: name at least one")),
        tables => {
            let each: BTreeSet<TableName> = tables.into_iter().flatten().map(|Name(name)| name).collect();
            Ok(each.into_iter().collect())
        }
    }
}

/// A number of 64 bits: its digits as text, as answers have them, or a number, which not every client can write exactly.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(try_from = "Digits")]
pub(super) struct Id(pub(super) i64);

#[derive(Deserialize)]
#[serde(untagged, expecting = "a number of 64 bits, or its digits as text, is wanted")]
enum Digits {
    Number(i64),
    Text(String),
}

impl TryFrom<Digits> for Id {
    type Error = String;

    fn try_from(digits: Digits) -> Result<Self, String> {
        match digits {
            Digits::Number(number) => Ok(Self(number)),
            Digits::Text(text) => text.parse().map(Self).map_err(|_| format!("{text:?} is no number of 64 bits")),
        }
    }
}

impl PartialSchema for Reason {
    fn schema() -> RefOr<Schema> {
        let schema = text("Why; never blank. It is recorded.").pattern(Some("\\S"));
        schema.min_length(Some(1)).max_length(Some(REASON_LENGTH)).into()
    }
}

impl PartialSchema for Name {
    fn schema() -> RefOr<Schema> {
        text("A table, as `namespace.table`.").examples(["shop.orders"]).into()
    }
}

impl PartialSchema for Id {
    fn schema() -> RefOr<Schema> {
        text("A number of 64 bits as text; a JSON number is taken, too.").pattern(Some("^-?[0-9]{1,19}$")).into()
    }
}

impl ToSchema for Reason {}
impl ToSchema for Name {}
impl ToSchema for Id {}

fn text(description: &str) -> ObjectBuilder {
    ObjectBuilder::new().schema_type(Type::String).description(Some(description))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct All {
        reason: Option<Reason>,
        tables: Option<Vec<Name>>,
        ids: Option<Vec<Id>>,
    }

    #[test]
    fn what_is_not_known_or_says_nothing_is_refused() {
        let all: All = parse(br#"{"reason":"x","tables":["app.t"],"ids":[1,"-9223372036854775808"]}"#).unwrap();
        assert_eq!(all.reason.map(|Reason(text)| text).as_deref(), Some("x"));
        assert_eq!(named(all.tables).unwrap(), [TableName::new("app", "t")]);
        assert_eq!(all.ids.unwrap().into_iter().map(|Id(id)| id).collect::<Vec<_>>(), [1, i64::MIN]);
        assert!(parse::<All>(b"").is_ok() && parse::<All>(b"{}").is_ok());
        let long = format!(r#"{{"reason":"{}"}}"#, "é".repeat(REASON_LENGTH + 1));
        for text in [
            "{",
            "[]",
            r#"["x",["app.t"],[1]]"#,
            "{} {}",
            r#"{"why":"x"}"#,
            r#"{"reason":""}"#,
            r#"{"reason":" \n"}"#,
            r#"{"reason":1}"#,
            &long,
            r#"{"reason":"a","reason":"b"}"#,
            r#"{"tables":["t"]}"#,
            r#"{"tables":"app.t"}"#,
            r#"{"ids":[1.5]}"#,
            r#"{"ids":["9223372036854775808"]}"#,
            r#"{"ids":["0x1"]}"#,
        ] {
            assert!(parse::<All>(text.as_bytes()).is_err(), "{text}");
        }
        assert!(parse::<All>(b"{\"reason\":\"\xff\"}").is_err());
        assert!(parse::<Nothing>(b"[]").is_err());
        assert!(parse::<Nothing>(b"").is_ok() && parse::<Nothing>(br#"{"reason":"x"}"#).is_err());
    }

    #[test]
    fn a_list_names_each_table_once_and_is_never_empty() {
        let name = |text: &str| Name::try_from(text.to_owned()).unwrap();
        let found = named(Some(vec![name("app.b"), name("app.a"), name("app.b")])).unwrap();
        assert_eq!(found, [TableName::new("app", "a"), TableName::new("app", "b")]);
        assert_eq!(named(None).unwrap(), []);
        assert!(named(Some(Vec::new())).is_err());
    }
}
