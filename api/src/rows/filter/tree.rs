//! A condition as a JSON tree, for programs: `{"and": [{"ge": {"column": "amount", "value": "100.50"}}, …]}`.
//!
//! It becomes a tree of SQL, never a text of it, so that no value can be anything but a value; what its parts mean is what
//! they mean in SQL.

use arrow_schema::Schema;
use datafusion_common::{Result, plan_err};
use datafusion_sql::sqlparser::ast::{BinaryOperator, Expr, Ident, UnaryOperator, Value};
use serde::Deserialize;
use utoipa::ToSchema;

/// How deep a tree may nest (S6).
const DEPTH: usize = 16;
/// Parts of a tree (S6).
const NODES: usize = 256;
/// Values of one `in` (S6).
const MEMBERS: usize = 1_000;
/// Values of all of them.
const ALL_MEMBERS: usize = 10_000;

/// The tree as it is written.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum FilterTree {
    #[schema(no_recursion)]
    And(Vec<FilterTree>),
    #[schema(no_recursion)]
    Or(Vec<FilterTree>),
    #[schema(no_recursion)]
    Not(Box<FilterTree>),
    Eq(Comparison),
    Ne(Comparison),
    Lt(Comparison),
    Le(Comparison),
    Gt(Comparison),
    Ge(Comparison),
    Like(Comparison),
    In(Membership),
    IsNull(Column),
    IsNotNull(Column),
}

#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Comparison {
    column: String,
    value: Literal,
}

#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Membership {
    column: String,
    values: Vec<Literal>,
}

#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = FilterColumn)]
pub(crate) struct Column {
    column: String,
}

/// Of a tree, as far as it was looked at.
#[derive(Default)]
struct Size {
    nodes: usize,
    members: usize,
}

/// Numbers compare exactly, as decimals; times, dates and uuids are texts.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(untagged, expecting = "a value is a text, a number, true or false")]
enum Literal {
    Text(String),
    #[schema(value_type = f64)]
    Number(serde_json::Number),
    Truth(bool),
}

impl FilterTree {
    /// # Errors
    /// What is wrong with it, in one line: no such tree, or one beyond its bounds.
    pub(crate) fn parse(text: &str) -> std::result::Result<Self, String> {
        let tree: Self = serde_json::from_str(text).map_err(|error| error.to_string())?;
        tree.check(1, &mut Size::default())?;
        Ok(tree)
    }

    fn check(&self, depth: usize, size: &mut Size) -> std::result::Result<(), String> {
        size.nodes += 1;
        if depth > DEPTH || size.nodes > NODES {
            return Err(format!("it has more than {DEPTH} levels or {NODES} parts"));
        }
        match self {
            Self::And(parts) | Self::Or(parts) if parts.is_empty() => Err("and, or: of no parts".to_owned()),
            Self::And(parts) | Self::Or(parts) => parts.iter().try_for_each(|part| part.check(depth + 1, size)),
            Self::Not(part) => part.check(depth + 1, size),
            Self::In(Membership { values, .. }) if values.is_empty() || values.len() > MEMBERS => {
                Err(format!("in takes 1 to {MEMBERS} values"))
            }
            Self::In(Membership { values, .. }) => {
                size.members += values.len();
                if size.members <= ALL_MEMBERS { Ok(()) } else { Err(format!("it has more than {ALL_MEMBERS} values")) }
            }
            _ => Ok(()),
        }
    }

    /// The same in SQL, for a table of these columns.
    ///
    /// # Errors
    /// A text that is no number, compared with numbers.
    pub(super) fn to_sql(&self, table: &Schema) -> Result<Expr> {
        let compare = |comparison: &Comparison, operator| {
            let value = comparison.value.to_sql(&comparison.column, table)?;
            Ok(binary(column(&comparison.column), operator, value))
        };
        Ok(match self {
            Self::And(parts) => joined(parts, &BinaryOperator::And, table)?,
            Self::Or(parts) => joined(parts, &BinaryOperator::Or, table)?,
            Self::Not(part) => Expr::UnaryOp { op: UnaryOperator::Not, expr: Box::new(part.to_sql(table)?) },
            Self::Eq(comparison) => return compare(comparison, BinaryOperator::Eq),
            Self::Ne(comparison) => return compare(comparison, BinaryOperator::NotEq),
            Self::Lt(comparison) => return compare(comparison, BinaryOperator::Lt),
            Self::Le(comparison) => return compare(comparison, BinaryOperator::LtEq),
            Self::Gt(comparison) => return compare(comparison, BinaryOperator::Gt),
            Self::Ge(comparison) => return compare(comparison, BinaryOperator::GtEq),
            Self::Like(comparison) => Expr::Like {
                negated: false,
                any: false,
                expr: Box::new(column(&comparison.column)),
                pattern: Box::new(comparison.value.to_sql(&comparison.column, table)?),
                escape_char: None,
            },
            Self::In(Membership { column: name, values }) => Expr::InList {
                expr: Box::new(column(name)),
                list: values.iter().map(|value| value.to_sql(name, table)).collect::<Result<_>>()?,
                negated: false,
            },
            Self::IsNull(Column { column: name }) => Expr::IsNull(Box::new(column(name))),
            Self::IsNotNull(Column { column: name }) => Expr::IsNotNull(Box::new(column(name))),
        })
    }
}

impl Literal {
    /// For comparison with a column. A number that is written as a text is a number beside numbers: as texts, 10 would come
    /// before 9.
    fn to_sql(&self, column: &str, table: &Schema) -> Result<Expr> {
        let is_number = || table.field_with_name(column).is_ok_and(|field| field.data_type().is_numeric());
        Ok(match self {
            Self::Text(text) if is_number() => match text.parse::<serde_json::Number>() {
                Ok(_) => signed(text),
                Err(_) => return plan_err!("{column} is compared with {text:?}, where a number is wanted"),
            },
            Self::Text(text) => Expr::Value(Value::SingleQuotedString(text.clone()).into()),
            Self::Number(number) => signed(&number.to_string()),
            Self::Truth(truth) => Expr::Value(Value::Boolean(*truth).into()),
        })
    }
}

/// SQL's numbers have no sign of their own.
fn signed(number: &str) -> Expr {
    let value = |digits: &str| Expr::Value(Value::Number(digits.to_owned(), false).into());
    match number.strip_prefix('-') {
        Some(digits) => Expr::UnaryOp { op: UnaryOperator::Minus, expr: Box::new(value(digits)) },
        None => value(number),
    }
}

/// Quoted: the name is a name, in its own case.
fn column(name: &str) -> Expr {
    Expr::Identifier(Ident::with_quote('"', name))
}

fn binary(left: Expr, op: BinaryOperator, right: Expr) -> Expr {
    Expr::BinaryOp { left: Box::new(left), op, right: Box::new(right) }
}

/// In halves, so that many parts are not a deep tree.
fn joined(parts: &[FilterTree], operator: &BinaryOperator, table: &Schema) -> Result<Expr> {
    match parts {
        [part] => part.to_sql(table),
        parts => {
            let (left, right) = parts.split_at(parts.len() / 2);
            Ok(binary(joined(left, operator, table)?, operator.clone(), joined(right, operator, table)?))
        }
    }
}

#[cfg(test)]
mod tests {
    use arrow_schema::{DataType, Field};

    use super::*;

    fn table() -> Schema {
        let field = |name: &str, data_type| Field::new(name, data_type, true);
        Schema::new(vec![field("amount", DataType::Decimal128(10, 2)), field("id", DataType::Int64)])
    }

    fn check(text: &str, sql: &str) {
        assert_eq!(FilterTree::parse(text).unwrap().to_sql(&table()).unwrap().to_string(), sql, "{text}");
    }

    #[test]
    fn a_tree_means_what_sql_says() {
        check(r#"{"ge":{"column":"amount","value":100.5}}"#, "\"amount\" >= 100.5");
        check(r#"{"lt":{"column":"amount","value":-3}}"#, "\"amount\" < -3");
        check(r#"{"in":{"column":"id","values":[1,"2"]}}"#, "\"id\" IN (1, 2)");
        check(r#"{"le":{"column":"amount","value":"-100.50"}}"#, "\"amount\" <= -100.50");
        check(r#"{"eq":{"column":"name","value":"100"}}"#, "\"name\" = '100'");
        check(r#"{"not":{"is_null":{"column":"name"}}}"#, "NOT \"name\" IS NULL");
        check(
            r#"{"and":[{"eq":{"column":"a","value":true}},{"like":{"column":"b","value":"x%"}}]}"#,
            "\"a\" = true AND \"b\" LIKE 'x%'",
        );
    }

    #[test]
    fn a_text_that_is_no_number_is_not_compared_with_numbers() {
        for value in ["x", "", "1 OR 1=1", "0x10", "--1", " 1"] {
            let text = serde_json::json!({"eq": {"column": "amount", "value": value}}).to_string();
            assert!(FilterTree::parse(&text).unwrap().to_sql(&table()).is_err(), "{value}");
        }
    }

    #[test]
    fn a_value_stays_a_value() {
        check(r#"{"eq":{"column":"a\" OR 1=1 --","value":"' OR '1'='1"}}"#, "\"a\"\" OR 1=1 --\" = ''' OR ''1''=''1'");
    }

    #[test]
    fn what_is_no_tree_or_too_large_a_one_is_refused() {
        let nested = |depth: usize| {
            format!("{}{}{}", r#"{"not":"#.repeat(depth), r#"{"is_null":{"column":"a"}}"#, "}".repeat(depth))
        };
        assert!(FilterTree::parse(&nested(DEPTH - 1)).is_ok());
        let wide = format!(r#"{{"or":[{}]}}"#, vec![r#"{"is_null":{"column":"a"}}"#; NODES].join(","));
        let members = format!(r#"{{"in":{{"column":"a","values":[{}]}}}}"#, vec!["1"; MEMBERS + 1].join(","));
        let one = format!(r#"{{"in":{{"column":"a","values":[{}]}}}}"#, vec!["1"; MEMBERS].join(","));
        let many = |lists: usize| format!(r#"{{"or":[{}]}}"#, vec![one.as_str(); lists].join(","));
        assert!(FilterTree::parse(&many(ALL_MEMBERS / MEMBERS)).is_ok());
        for (text, part) in [
            ("", "EOF"),
            (&many(ALL_MEMBERS / MEMBERS + 1), "10000 values"),
            ("a = 1", "expected"),
            (r#"{"between":{"column":"a"}}"#, "between"),
            (r#"{"eq":{"column":"a","value":null}}"#, "a value is"),
            (r#"{"eq":{"column":"a","value":1,"or":2}}"#, "or"),
            (r#"{"and":[]}"#, "no parts"),
            (&nested(DEPTH), "levels"),
            (&nested(5_000), "recursion"),
            (&wide, "parts"),
            (&members, "values"),
        ] {
            let error = FilterTree::parse(text).expect_err(text);
            assert!(error.contains(part), "{part}: {error}");
        }
    }
}
