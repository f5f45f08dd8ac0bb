//! Every type with its edge values arrives equal by copy and by stream, as four independent readers see it, and in the
//! long tier Spark and Trino too.
//!
//! The values stand in `lakehouse-core/testkit/data/postgres_types.txt`. Each type is a column; rows come three times:
//! copied (ids from 0), inserted behind the copy (from 1000), and copied as NULLs that are updated later (from 2000).
//! What a type in the lake cannot hold must be NULL there, with PostgreSQL's own text in `_cdc_overflow`.

use crate::support;
use std::collections::{BTreeMap, BTreeSet};

use crate::support::Lake;
use serde_json::{Value, json};
use testkit::canonical;
use testkit::oracle;
use testkit::postgres::{Cluster, Options};
use testkit::readers::{Engine, Judge};
use tokio_postgres::SimpleQueryMessage;

const TYPES: &str = include_str!("../../lakehouse-core/testkit/data/postgres_types.txt");
const OVERFLOW: &str = "_cdc_overflow";
const COLUMNS_PER_TABLE: usize = 10;
const INSERTED: usize = 1000;
const UPDATED: usize = 2000;

/// What every new session gets unless it says otherwise; none of it may reach a value (R8).
const HOSTILE: &str = "ALTER ROLE postgres SET timezone = 'Asia/Tokyo'; ALTER ROLE postgres SET datestyle = 'SQL, DMY';
    ALTER ROLE postgres SET intervalstyle = 'postgres_verbose'; ALTER ROLE postgres SET bytea_output = 'escape';
    ALTER ROLE postgres SET extra_float_digits = 0; ALTER ROLE postgres SET client_encoding = 'LATIN2';
    ALTER ROLE postgres SET statement_timeout = '30s'; ALTER ROLE postgres SET idle_session_timeout = '5s';
    ALTER ROLE postgres SET idle_in_transaction_session_timeout = '5s'";

/// One type and the SQL of its values.
#[derive(Clone, Debug)]
struct Column {
    name: String,
    type_name: String,
    values: Vec<String>,
    /// Moments in years that one reader does not know.
    far: bool,
}

/// A table of the source with what must be in the lake: per id and column, canonical values.
struct Expected {
    table: String,
    columns: Vec<Column>,
    rows: BTreeMap<usize, Vec<Value>>,
    overflows: bool,
}

impl Column {
    /// What else an engine cannot read; what it reads but cannot tell apart is folded (`deploy/readers/judge.py`).
    fn is_readable_by(&self, engine: Engine) -> bool {
        match engine {
            // It refuses far moments or reads them wrong, and takes a list of times for one of numbers.
            Engine::Chdb => !(self.far || self.type_name == "time without time zone[]"),
            // "Millis overflow" from the year 71,000 on, where its moments with a time zone end.
            Engine::Trino406 | Engine::Trino483 => !(self.far && self.type_name == "timestamp with time zone"),
            // "Spark does not support time fields", of whatever other columns it is asked.
            Engine::Spark => !self.is_time(),
            Engine::DuckDb | Engine::Sail | Engine::PyIceberg => true,
        }
    }

    /// A time of day in the lake, or a list of such.
    fn is_time(&self) -> bool {
        self.type_name.starts_with("time") && self.type_name.contains("without") && !self.type_name.contains("stamp")
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_type_arrives_equal_by_copy_and_by_stream() {
    let cluster = Cluster::start(Options::default()).await;
    let tables = create_tables(&cluster).await;
    cluster.sql("postgres", HOSTILE).await;
    let lake = Lake::new(&cluster);
    let mut running = lake.start();
    lake.caught_up(&cluster, &mut running).await;
    for (table, columns) in &tables {
        change(&cluster, table, columns).await;
    }
    lake.caught_up(&cluster, &mut running).await;
    running.stop().await;

    let mut expected = Vec::new();
    for (table, columns) in tables {
        expected.push(expect(&cluster, table, columns).await);
    }
    let values: usize = expected.iter().flat_map(|table| &table.columns).map(|column| column.values.len()).sum();
    println!("{values} values, each copied, inserted and updated");
    assert!(values > 350, "the list of values was not read: {values}");
    assert!(expected.iter().any(|table| table.overflows), "some values must overflow");
    let mut wrong = Vec::new();
    for engine in Engine::at_hand() {
        let mut judge = Judge::start(engine).await;
        for table in &expected {
            wrong.extend(compare(&mut judge, &lake, table).await);
        }
    }
    assert!(wrong.is_empty(), "{} differences\n{}", wrong.len(), wrong.join("\n"));
}

/// Makes the types and the tables, with the rows that are to be copied.
async fn create_tables(cluster: &Cluster) -> Vec<(String, Vec<Column>)> {
    let version: u32 = cluster.value("postgres", "SHOW server_version_num").await.parse().expect("a number");
    let extensions = cluster.sql("postgres", "SELECT name FROM pg_available_extensions").await;
    let extensions: BTreeSet<String> = extensions.into_iter().flatten().flatten().collect();
    let (statements, columns) = parse(version / 10_000, &extensions);
    cluster.sql("postgres", &statements.join(";\n")).await;
    let mut tables = Vec::new();
    // Times of day have a table of their own, for the sake of the engine that reads no table with one.
    let (times, others): (Vec<Column>, Vec<Column>) = columns.into_iter().partition(Column::is_time);
    let chunks = others.chunks(COLUMNS_PER_TABLE).chain(std::iter::once(times.as_slice()));
    for (number, columns) in chunks.enumerate() {
        let table = format!("types_{number:02}");
        let list: Vec<String> = columns.iter().map(|column| format!("{} {}", column.name, column.type_name)).collect();
        let mut script = format!("CREATE TABLE {table} (id int PRIMARY KEY, {});\n", list.join(", "));
        script.push_str(&insert(&table, columns, 0));
        script.push_str(&format!("INSERT INTO {table} (id) SELECT id + {UPDATED} FROM {table}"));
        cluster.sql("postgres", &script).await;
        tables.push((table, columns.to_vec()));
    }
    tables
}

/// One row for each value of the type with most values, and one of NULLs.
fn insert(table: &str, columns: &[Column], first: usize) -> String {
    let most = columns.iter().map(|column| column.values.len()).max().unwrap_or(0);
    let row = |row: usize| {
        let value = |column: &Column| match column.values.get(row) {
            Some(value) => format!("({value})::{}", column.type_name),
            None => "NULL".to_owned(),
        };
        let values: Vec<String> = columns.iter().map(value).collect();
        format!("INSERT INTO {table} VALUES ({}, {});\n", first + row, values.join(", "))
    };
    (0..=most).map(row).collect()
}

async fn change(cluster: &Cluster, table: &str, columns: &[Column]) {
    let set: Vec<String> = columns.iter().map(|column| format!("{0} = o.{0}", column.name)).collect();
    let script = format!(
        "{}UPDATE {table} t SET {} FROM {table} o WHERE t.id = o.id + {UPDATED}",
        insert(table, columns, INSERTED),
        set.join(", ")
    );
    cluster.sql("postgres", &script).await;
}

/// What the server says of its rows, with the values that must overflow.
async fn expect(cluster: &Cluster, table: String, columns: Vec<Column>) -> Expected {
    let client = cluster.connect("postgres").await;
    let mut rows = BTreeMap::new();
    for line in oracle::rows(&client, &table).await {
        let mut values: Vec<Value> = serde_json::from_str(&line).expect("a canonical line");
        let id = values.remove(0).as_str().and_then(|id| id.parse::<usize>().ok()).expect("an id");
        rows.insert(id, values);
    }
    // The oracle has set the session up, so that the text is as in the stream.
    let mut overflows = false;
    let messages = client.simple_query(&format!("SELECT * FROM {table}")).await.expect("the rows' text");
    for message in messages {
        let SimpleQueryMessage::Row(row) = message else { continue };
        let id: usize = row.get(0).expect("an id").parse().expect("a number");
        let values = rows.get_mut(&id).expect("the same rows");
        let mut entries = Vec::new();
        for (place, column) in columns.iter().enumerate() {
            if let (Value::Null, Some(text)) = (&values[place], row.get(place + 1)) {
                entries.push(json!([column.name, text]));
            }
        }
        overflows |= !entries.is_empty();
        values.push(if entries.is_empty() { Value::Null } else { Value::Array(entries) });
    }
    Expected { table, columns, rows, overflows }
}

/// The differences that one reader finds in a table's mirror and history.
async fn compare(judge: &mut Judge, lake: &Lake, expected: &Expected) -> Vec<String> {
    let mut wrong = Vec::new();
    for (table, first) in [(expected.table.clone(), 0), (format!("{}_history", expected.table), INSERTED)] {
        let metadata = judge.metadata(&lake.database(), &format!("{}.{table}", support::PIPELINE)).await;
        let mut places: Vec<usize> = (0..expected.columns.len()).collect();
        places.retain(|&place| expected.columns[place].is_readable_by(judge.engine()));
        if places.is_empty() {
            continue;
        }
        if expected.overflows {
            places.push(expected.columns.len());
        }
        if differs(judge, &metadata, expected, first, &places).await.is_none() {
            continue;
        }
        for place in places {
            let name = expected.columns.get(place).map_or(OVERFLOW, |column| &column.type_name);
            if let Some(difference) = differs(judge, &metadata, expected, first, &[place]).await {
                wrong.push(format!("{:?}, {table}, {name}: {difference}", judge.engine()));
            }
        }
    }
    wrong
}

async fn differs(
    judge: &mut Judge,
    metadata: &str,
    expected: &Expected,
    first: usize,
    places: &[usize],
) -> Option<String> {
    let name = |&place: &usize| expected.columns.get(place).map_or(OVERFLOW, |column| column.name.as_str());
    let mut columns = vec!["id"];
    columns.extend(places.iter().map(name));
    let line = |(id, values): (&usize, &Vec<Value>)| {
        let id = Value::String(id.to_string());
        canonical::line(std::iter::once(id).chain(places.iter().map(|&place| values[place].clone())).collect())
    };
    let lines: Vec<String> = expected.rows.range(first..).map(line).collect();
    match judge.ask(json!({"do": "rows", "metadata": metadata, "columns": columns})).await {
        Ok(found) => oracle::difference(&judge.folded(&lines), &found).map(|text| text.chars().take(2000).collect()),
        Err(error) => Some(error),
    }
}

/// Statements to run first, and the types that this server has.
fn parse(version: u32, extensions: &BTreeSet<String>) -> (Vec<String>, Vec<Column>) {
    let (mut statements, mut types): (Vec<String>, Vec<(String, Vec<String>)>) = (Vec::new(), Vec::new());
    let mut active = true;
    for line in TYPES.lines().map(str::trim_end) {
        if let Some(name) = line.strip_prefix("@extension ") {
            active = extensions.contains(name);
            if !active {
                println!("SKIP types of extension {name}: the server does not have it");
            }
        } else if let Some(least) = line.strip_prefix("@version ") {
            active = version >= least.parse().expect("a version");
            if !active {
                println!("SKIP values from version {least} on: the server has version {version}");
            }
        } else if line == "@all" {
            active = true;
        } else if line.is_empty() || line.starts_with('#') || !active {
        } else if let Some(statement) = line.strip_prefix("! ") {
            statements.push(statement.to_owned());
        } else {
            let mut parts = line.split(" | ");
            let head = parts.next().expect("split gives one part at least");
            let values: Vec<String> = parts.map(str::to_owned).collect();
            match head.strip_prefix("| ") {
                Some(value) => {
                    let (_, known) = types.last_mut().expect("a type above");
                    known.push(value.to_owned());
                    known.extend(values);
                }
                None => types.push((head.to_owned(), values)),
            }
        }
    }
    let mut columns = Vec::new();
    for (type_name, values) in types {
        let (far, near): (Vec<String>, Vec<String>) = values.into_iter().partition(|value| is_far(value));
        for (far, values) in [(false, near), (true, far)] {
            if !values.is_empty() {
                let name = format!("c{:03}", columns.len());
                columns.push(Column { name, type_name: type_name.clone(), values, far });
            }
        }
    }
    (statements, columns)
}

fn is_far(value: &str) -> bool {
    [" BC", "'10000-", "5874897", "29424", "29427"].iter().any(|mark| value.contains(mark))
}
