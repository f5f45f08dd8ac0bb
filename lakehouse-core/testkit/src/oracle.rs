//! Ground truth: what PostgreSQL itself says must be in the lake, as canonical lines that readers' lines equal byte
//! for byte.
//!
//! Not here: how a value becomes text (`canonical`). The type map is written here a second time on purpose; it shares no
//! code with the product.

use std::collections::BTreeMap;

use tokio_postgres::{Client, SimpleQueryMessage, SimpleQueryRow};

use crate::canonical::{self, Kind};

/// Every setting that changes how PostgreSQL writes a value.
const SETTINGS: &str = "SET datestyle = 'ISO, YMD'; SET intervalstyle = iso_8601; SET timezone = 'UTC'; \
    SET extra_float_digits = 3; SET bytea_output = hex; SET client_encoding = 'UTF8'";

/// A captured column of a source table.
#[derive(Clone, Debug)]
pub struct Column {
    /// Name in PostgreSQL.
    pub name: String,
    /// Name in the lake: lower-case, every other character than `[a-z0-9_]` an underscore.
    pub lake_name: String,
    kind: Kind,
    /// `::numeric` and the like, where PostgreSQL's text depends on the server's locale.
    cast: &'static str,
}

/// The columns that are captured, in their order; generated ones are not (R65).
///
/// # Panics
/// When there is no such table, as for every function here: the oracle has no errors to return.
pub async fn columns(client: &Client, table: &str) -> Vec<Column> {
    let types = Types::read(client).await;
    let query = format!(
        "SELECT attname, atttypid, atttypmod FROM pg_attribute
        WHERE attrelid = '{}'::regclass AND attnum > 0 AND NOT attisdropped AND attgenerated = '' ORDER BY attnum",
        table.replace('\'', "''")
    );
    let columns: Vec<Column> = query_rows(client, &query).await.iter().map(|row| column(row, &types)).collect();
    assert!(!columns.is_empty(), "{table} has no columns");
    columns
}

/// All rows of a table, sorted. Inside a transaction of the client it sees what that transaction sees.
///
/// `table` is written as in SQL: `public."Mixed Case"`.
pub async fn rows(client: &Client, table: &str) -> Vec<String> {
    rows_where(client, table, "true").await
}

/// The rows of a table for which an SQL condition holds, sorted.
pub async fn rows_where(client: &Client, table: &str, condition: &str) -> Vec<String> {
    let columns = columns(client, table).await;
    client.batch_execute(SETTINGS).await.unwrap_or_else(|error| panic!("{SETTINGS}: {error}"));
    let list: Vec<String> = columns.iter().map(Column::expression).collect();
    // ONLY would leave partitions out; inheritance children are tables of their own.
    let query = format!("SELECT {} FROM {table} WHERE {condition}", list.join(", "));
    let mut lines: Vec<String> = query_rows(client, &query)
        .await
        .iter()
        .map(|row| {
            let value = |(index, column): (usize, &Column)| canonical::value(&column.kind, row.get(index));
            canonical::line(columns.iter().enumerate().map(value).collect())
        })
        .collect();
    lines.sort_unstable();
    lines
}

/// A name as the lake spells it.
#[must_use]
pub fn lake_name(name: &str) -> String {
    let letter = |letter: char| {
        if letter.is_ascii_alphanumeric() || letter == '_' { letter } else { '_' }
    };
    name.to_lowercase().chars().map(letter).collect()
}

/// The first differences of two sorted sets of lines, or nothing when they are equal; for a test's message.
#[must_use]
pub fn difference(expected: &[String], found: &[String]) -> Option<String> {
    const SHOWN: usize = 10;
    if expected == found {
        return None;
    }
    let only = |mark: char, these: &[String], those: &[String]| -> String {
        let mut others = those.iter().peekable();
        let missing = these.iter().filter(|line| {
            while others.next_if(|other| other < line).is_some() {}
            others.next_if_eq(line).is_none()
        });
        missing.take(SHOWN).map(|line| format!("{mark} {line}\n")).collect()
    };
    let (missing, extra) = (only('-', expected, found), only('+', found, expected));
    Some(format!("{} rows expected, {} found\n{missing}{extra}", expected.len(), found.len()))
}

impl Column {
    fn expression(&self) -> String {
        let name = format!("\"{}\"", self.name.replace('"', "\"\""));
        format!("{name}{}", self.cast)
    }
}

fn column(row: &SimpleQueryRow, types: &Types) -> Column {
    let (name, oid, modifier) = (text(row, 0).to_owned(), number(row, 1), number(row, 2));
    let cast = match types.base(oid) {
        Type { name, .. } if name == "money" => "::numeric",
        Type { element: Some(element), .. } if types.base(*element).name == "money" => "::numeric[]",
        _ => "",
    };
    Column { lake_name: lake_name(&name), name, kind: types.kind(oid, modifier), cast }
}

/// The server's types, by oid.
struct Types(BTreeMap<i64, Type>);

struct Type {
    name: String,
    /// Of a domain: the type below it and its modifier.
    domain_of: Option<(i64, i64)>,
    /// Of an array: the type of its elements, which may be a domain, also one over arrays. None where the element is of
    /// a type that the map does not name: such an array is text.
    element: Option<i64>,
}

/// Types of extensions that the map names; every type that comes with the server is named.
const EXTENSION_TYPES: [&str; 9] =
    ["citext", "ltree", "lquery", "ltxtquery", "hstore", "geometry", "geography", "vector", "halfvec"];
/// Where the oids of the server's own types end.
const FIRST_NORMAL_OID: i64 = 16_384;

impl Types {
    async fn read(client: &Client) -> Self {
        const QUERY: &str = "SELECT t.oid, t.typname, t.typtype, t.typbasetype, t.typtypmod, coalesce(e.oid, 0),
            coalesce(e.typname, ''), coalesce(e.typtype, 'b') FROM pg_type t LEFT JOIN pg_type e ON e.typarray = t.oid";
        let described = |row: &SimpleQueryRow| {
            let domain_of = (text(row, 2) == "d").then(|| (number(row, 3), number(row, 4)));
            let named =
                |oid: i64| oid < FIRST_NORMAL_OID || text(row, 7) != "b" || EXTENSION_TYPES.contains(&text(row, 6));
            let element = Some(number(row, 5)).filter(|&oid| oid != 0 && named(oid));
            (number(row, 0), Type { name: text(row, 1).to_owned(), domain_of, element })
        };
        Self(query_rows(client, QUERY).await.iter().map(described).collect())
    }

    /// The type below all domains.
    fn base(&self, oid: i64) -> &Type {
        let found = &self.0[&oid];
        found.domain_of.map_or(found, |(below, _)| self.base(below))
    }

    fn kind(&self, oid: i64, modifier: i64) -> Kind {
        match &self.0[&oid] {
            Type { domain_of: Some((below, own)), .. } => self.kind(*below, if *own < 0 { modifier } else { *own }),
            Type { element: Some(element), .. } => Kind::List(Box::new(self.kind(*element, modifier))),
            Type { name, .. } => kind(name, modifier),
        }
    }
}

fn text(row: &SimpleQueryRow, index: usize) -> &str {
    row.get(index).expect("no NULL in the catalog's answer")
}

fn number(row: &SimpleQueryRow, index: usize) -> i64 {
    text(row, index).parse().expect("a number")
}

/// `requirements/postgres.md`, section 4.
fn kind(base: &str, modifier: i64) -> Kind {
    match base {
        "bool" => Kind::Boolean,
        "float4" => Kind::Float,
        "float8" => Kind::Double,
        "numeric" if fits_decimal(modifier) => Kind::Decimal,
        "date" => Kind::Date,
        "time" => Kind::Time,
        "timestamp" => Kind::Timestamp,
        "timestamptz" => Kind::Timestamptz,
        "bytea" => Kind::Binary,
        "geometry" | "geography" => Kind::Geometry,
        "point" => Kind::Point,
        "hstore" => Kind::Hstore,
        _ => Kind::Text,
    }
}

/// Whether `numeric(p, s)` fits a decimal of 38 digits; without a modifier it does not.
fn fits_decimal(modifier: i64) -> bool {
    if modifier < 0 {
        return false;
    }
    let (precision, scale) = ((modifier - 4) >> 16, (modifier - 4) & 0x7ff);
    // Eleven bits with a sign: PostgreSQL 15 has negative scales.
    let scale = (scale ^ 1024) - 1024;
    let digits = if scale < 0 { precision - scale } else { precision.max(scale) };
    digits <= 38
}

async fn query_rows(client: &Client, query: &str) -> Vec<SimpleQueryRow> {
    let messages = client.simple_query(query).await.unwrap_or_else(|error| panic!("{query}: {error}"));
    let row = |message| match message {
        SimpleQueryMessage::Row(row) => Some(row),
        _ => None,
    };
    messages.into_iter().filter_map(row).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::postgres::{Cluster, Options};

    #[tokio::test]
    async fn rows_of_every_type_have_canonical_text() {
        let cluster = Cluster::start(Options::default()).await;
        let client = cluster.connect("postgres").await;
        let script = r#"
            CREATE EXTENSION hstore;
            CREATE DOMAIN amount AS numeric(9,2);
            CREATE DOMAIN price AS amount CHECK (value > 0);
            CREATE TABLE "Odd Name" ("Id" int PRIMARY KEY, b bool, f float4, n numeric(9,2), neg numeric(3,-2),
                tiny numeric(2,4), free numeric, wide numeric(39,0), p price, m money, c char(3), bin bytea, d date,
                t time, tz timestamptz, iv interval, l numeric(5,1)[], h hstore, pt point, j json, u uuid, gone int,
                g int GENERATED ALWAYS AS ("Id" + 1) STORED);
            ALTER TABLE "Odd Name" DROP COLUMN gone;
            SET timezone = 'Asia/Tokyo'; SET datestyle = 'German'; SET bytea_output = escape;
            INSERT INTO "Odd Name" VALUES
                (1, true, 0.1, 1.5, 12345, 0.0012, 1e-3, 1, 2, '12.3', 'a', '\x00ff', '0044-03-15 BC', '01:02:03', '2024-02-29 12:00Z',
                 '1 month 2 hours', '{1,NULL}', 'b=>1,a=>NULL', '(1,2)', '{"a" : 1}', '00112233-4455-6677-8899-AABBCCDDEEFF'),
                (2, NULL, 'NaN', 'NaN', NULL, NULL, 'Infinity', NULL, NULL, '-0.01', '', '', 'infinity', '24:00', '-infinity',
                 NULL, '{{1}}', '', NULL, 'null', NULL);
        "#;
        client.batch_execute(script).await.expect("the script");
        let table = r#"public."Odd Name""#;
        let columns = columns(&client, table).await;
        assert_eq!((columns[0].lake_name.as_str(), columns.len()), ("id", 21));
        let expected = [
            concat!(
                r#"["1","true","0.10000000149011612","1.50","12300","0.0012","0.001","1","2.00","12.30","a  ","00ff","-0043-03-15","#,
                r#""01:02:03.000000","2024-02-29T12:00:00.000000Z","P1MT2H",["1.0",null],[["a",null],["b","1"]],["1.0","2.0"],"#,
                r#""{\"a\" : 1}","00112233-4455-6677-8899-aabbccddeeff"]"#
            ),
            concat!(
                r#"["2",null,"NaN",null,null,null,"Infinity",null,null,"-0.01","   ","",null,null,null,null,null,[],null,"#,
                r#""null",null]"#
            ),
        ];
        assert_eq!(rows(&client, table).await, expected);
        assert_eq!(rows_where(&client, table, r#""Id" > 1"#).await, expected[1..]);
        // canonical.py counts days before year 1 by itself; here is where PostgreSQL has the same ones.
        assert_eq!(cluster.value("postgres", "SELECT date '1970-01-01' - 735594").await, "0045-01-06 BC");
    }

    #[test]
    fn a_difference_shows_what_is_missing_and_what_is_too_much() {
        let lines = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
        assert_eq!(difference(&lines("a b"), &lines("a b")), None);
        let shown = difference(&lines("a b b c"), &lines("b c d")).expect("a difference");
        assert_eq!(shown, "4 rows expected, 3 found\n- a\n- b\n+ d\n");
    }
}
