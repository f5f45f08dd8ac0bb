//! Which tables are captured, and what the server's catalog says of each: columns, types, identity, partitions.

use std::collections::BTreeMap;
use std::sync::Arc;

use lakehouse_core::error::Problem;
use lakehouse_core::schema::{Column, Key, TableName, TableSchema, lake_name};
use tokio_postgres::{Client, Row};

use crate::config::{PostgresSource, TableOptions};
use crate::problem::sql_problem;
use crate::values::{ColumnType, PgKind, PgType, TypeOptions, money_fraction_digits};

/// A table as it stands at the source.
#[derive(Clone, Debug)]
pub(crate) struct SourceTable {
    pub(crate) oid: u32,
    pub(crate) schema: String,
    pub(crate) name: String,
    pub(crate) partitioned: bool,
    pub(crate) unlogged: bool,
    pub(crate) row_security: bool,
    pub(crate) identity: Identity,
    /// Of the table and its partitions, which the copy reads one by one: those that the role may not read, as schema and
    /// name.
    pub(crate) unreadable: Vec<(String, String)>,
    /// Size of the heap, of all partitions, in bytes.
    pub(crate) bytes: u64,
    pub(crate) columns: Vec<SourceColumn>,
    /// Stored generated columns, which the stream leaves out (R65).
    pub(crate) generated: Vec<String>,
    pub(crate) options: TableOptions,
}

#[derive(Clone, Debug)]
pub(crate) struct SourceColumn {
    pub(crate) name: String,
    pub(crate) type_oid: u32,
    pub(crate) typmod: i32,
    pub(crate) type_name: String,
    pub(crate) column_type: ColumnType,
    /// Part of the replica identity, or of the primary key where the identity is FULL.
    pub(crate) key: bool,
}

/// REPLICA IDENTITY, with what it comes to for this table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Identity {
    /// The primary key or an index.
    Key,
    Full,
    Nothing,
}

impl SourceTable {
    /// `schema.table`, as the configuration and the lake name it.
    pub(crate) fn full_name(&self) -> String {
        format!("{}.{}", self.schema, self.name)
    }

    /// For SQL.
    pub(crate) fn quoted(&self) -> String {
        qualified(&self.schema, &self.name)
    }

    /// The table as the core knows it.
    pub(crate) fn table_schema(&self, source: &PostgresSource) -> Result<TableSchema, Problem> {
        let lake =
            |name: &str| self.options.column_names.get(name).map_or_else(|| lake_name(name), |own| lake_name(own));
        let key = self.key()?;
        let column = |(index, column): (usize, &SourceColumn)| Column {
            name: lake(&column.name),
            source_name: column.name.clone(),
            source_type: column.type_name.clone(),
            data_type: column.column_type.data_type().clone(),
            required: matches!(&key, Key::Columns(key) if key.contains(&index)),
        };
        let columns: Vec<Column> = self.columns.iter().enumerate().map(column).collect();
        self.check_names(&columns)?;
        let before_columns = match self.identity {
            Identity::Full => (0..columns.len()).collect(),
            Identity::Key => (0..columns.len()).filter(|&index| self.columns[index].key).collect(),
            Identity::Nothing => Vec::new(),
        };
        Ok(TableSchema {
            many_lanes: false,
            quarantine: None,
            source: self.full_name(),
            mirror: TableName::new(&source.namespace, self.lake_name()),
            columns,
            key,
            before_columns,
            partition: self.options.partition.clone(),
            history: self.options.history.unwrap_or(source.history),
        })
    }

    pub(crate) fn lake_name(&self) -> String {
        lake_name(self.options.name.as_deref().unwrap_or(&self.name))
    }

    fn key(&self) -> Result<Key, Problem> {
        if let Some(names) = &self.options.key {
            return self.configured_key(names);
        }
        let key: Vec<usize> = (0..self.columns.len()).filter(|&index| self.columns[index].key).collect();
        Ok(match (self.identity, key.is_empty()) {
            (Identity::Nothing, _) => Key::None,
            (Identity::Full, true) => Key::WholeRow,
            (Identity::Key, true) => Key::None,
            (_, false) => Key::Columns(key),
        })
    }

    /// A key from the configuration is of use only if deletes carry it.
    fn configured_key(&self, names: &[String]) -> Result<Key, Problem> {
        let subject = self.full_name();
        let place = |name: &String| self.columns.iter().position(|column| column.name == *name);
        let refused = |message: &str, remedy: &str| Problem::halt("CONFIG_KEY", &subject, message, remedy);
        let places: Option<Vec<usize>> = names.iter().map(place).collect();
        let mut key = places.ok_or_else(|| refused("a key column does not exist", "correct `key` of the table"))?;
        key.sort_unstable();
        key.dedup();
        let sent = |&index: &usize| self.identity == Identity::Full || self.columns[index].key;
        match self.identity != Identity::Nothing && !key.is_empty() && key.iter().all(sent) {
            true => Ok(Key::Columns(key)),
            false => Err(refused(
                "deletes of this table do not carry the configured key",
                &format!("ALTER TABLE {} REPLICA IDENTITY FULL, or use the columns of its identity", self.quoted()),
            )),
        }
    }

    fn check_names(&self, columns: &[Column]) -> Result<(), Problem> {
        let mut seen: BTreeMap<&str, &str> = BTreeMap::new();
        for column in columns {
            if let Some(other) = seen.insert(&column.name, &column.source_name) {
                let message = format!("columns {other:?} and {:?} meet as {:?}", column.source_name, column.name);
                let remedy = format!("set columns.{:?}.name = \"…\" for the table", column.source_name);
                return Err(Problem::halt("NAME_COLLISION", self.full_name(), message, remedy));
            }
            if column.name.starts_with("_cdc_") {
                let message = format!("column {:?} begins with _cdc_, which is reserved", column.source_name);
                let remedy = format!("set columns.{:?}.name = \"…\" for the table", column.source_name);
                return Err(Problem::halt("NAME_RESERVED", self.full_name(), message, remedy));
            }
        }
        Ok(())
    }
}

/// Reads the tables that the configuration names, in the order of their names.
pub(crate) async fn captured_tables(client: &Client, source: &PostgresSource) -> Result<Vec<SourceTable>, Problem> {
    let failed = |error: tokio_postgres::Error| sql_problem(&source.connection.database, &error);
    let rows = client.query(TABLES, &[]).await.map_err(failed)?;
    let options = type_options(client).await.map_err(failed)?;
    let types = Types::read(client).await.map_err(failed)?;
    let mut tables = Vec::new();
    for row in rows {
        let (schema, name): (String, String) = (row.get("schema"), row.get("name"));
        let full = format!("{schema}.{name}");
        let wanted = source.tables.iter().any(|pattern| matches(pattern, &full));
        if !wanted || source.exclude.iter().any(|pattern| matches(pattern, &full)) {
            continue;
        }
        let table_options = source.options.get(&full).cloned().unwrap_or_default();
        let type_options = TypeOptions { time_as_string: table_options.time_as_string, ..options.clone() };
        let mut table = source_table(&row, schema, name, table_options);
        read_columns(client, &mut table, &types, &type_options).await.map_err(failed)?;
        tables.push(table);
    }
    check_collisions(&tables)?;
    Ok(tables)
}

fn check_collisions(tables: &[SourceTable]) -> Result<(), Problem> {
    let mut seen: BTreeMap<String, &SourceTable> = BTreeMap::new();
    for table in tables {
        for name in [table.lake_name(), format!("{}_history", table.lake_name())] {
            if let Some(other) = seen.insert(name.clone(), table) {
                let message = format!("tables {} and {} meet as {name:?}", other.full_name(), table.full_name());
                let remedy = format!("set name = \"…\" in [pipelines.….tables.{:?}]", table.full_name());
                return Err(Problem::halt("NAME_COLLISION", table.full_name(), message, remedy));
            }
        }
    }
    Ok(())
}

fn source_table(row: &Row, schema: String, name: String, options: TableOptions) -> SourceTable {
    let identity: String = row.get("identity");
    SourceTable {
        oid: row.get("oid"),
        schema,
        name,
        partitioned: row.get("partitioned"),
        unlogged: row.get("unlogged"),
        row_security: row.get("row_security"),
        identity: match identity.as_str() {
            "f" => Identity::Full,
            "n" => Identity::Nothing,
            _ => Identity::Key,
        },
        unreadable: row
            .get::<_, Vec<String>>("hidden_schemas")
            .into_iter()
            .zip(row.get::<_, Vec<String>>("hidden_names"))
            .collect(),
        bytes: row.get::<_, i64>("bytes").max(0).unsigned_abs(),
        columns: Vec::new(),
        generated: Vec::new(),
        options,
    }
}

async fn read_columns(
    client: &Client,
    table: &mut SourceTable,
    types: &Types,
    options: &TypeOptions,
) -> Result<(), tokio_postgres::Error> {
    for row in client.query(COLUMNS, &[&table.oid]).await? {
        let name: String = row.get("name");
        if row.get("generated") {
            table.generated.push(name);
            continue;
        }
        let (type_oid, typmod): (u32, i32) = (row.get("type_oid"), row.get("typmod"));
        let type_name: String = row.get("type_name");
        let pg = types.describe(type_oid, typmod, &type_name);
        let column_type = ColumnType::of(&pg, options);
        table.columns.push(SourceColumn { name, type_oid, typmod, type_name, column_type, key: row.get("key") });
    }
    Ok(())
}

/// A column that a Relation message has brought, with its type looked up.
pub(crate) async fn describe_column(
    client: &Client,
    name: &str,
    type_oid: u32,
    typmod: i32,
    key: bool,
    time_as_string: bool,
) -> Result<SourceColumn, tokio_postgres::Error> {
    let options = TypeOptions { time_as_string, ..type_options(client).await? };
    let types = Types::read(client).await?;
    let row = client.query_one("SELECT pg_catalog.format_type($1, $2)", &[&type_oid, &typmod]).await?;
    let type_name: String = row.get(0);
    let column_type = ColumnType::of(&types.describe(type_oid, typmod, &type_name), &options);
    Ok(SourceColumn { name: name.to_owned(), type_oid, typmod, type_name, column_type, key })
}

async fn type_options(client: &Client) -> Result<TypeOptions, tokio_postgres::Error> {
    // A sample tells the fraction digits of lc_monetary, which the protocol does not.
    let row = client.query_one("SELECT (-1)::money::pg_catalog.varchar", &[]).await?;
    let sample: String = row.get(0);
    Ok(TypeOptions { money_fraction_digits: money_fraction_digits(&sample), ..TypeOptions::default() })
}

/// All types of the database, by oid.
struct Types(BTreeMap<u32, TypeRow>);

struct TypeRow {
    name: String,
    kind: char,
    base: u32,
    base_typmod: i32,
    element: u32,
}

impl Types {
    async fn read(client: &Client) -> Result<Arc<Self>, tokio_postgres::Error> {
        let rows = client.query(TYPES, &[]).await?;
        let row = |row: Row| {
            let kind: String = row.get("kind");
            let described = TypeRow {
                name: row.get("name"),
                kind: kind.chars().next().unwrap_or('b'),
                base: row.get("base"),
                base_typmod: row.get("base_typmod"),
                element: row.get("element"),
            };
            (row.get("oid"), described)
        };
        Ok(Arc::new(Self(rows.into_iter().map(row).collect())))
    }

    fn describe(&self, oid: u32, typmod: i32, name: &str) -> PgType {
        let kind = match self.0.get(&oid) {
            None => PgKind::Pseudo,
            Some(row) => match row.kind {
                'e' => PgKind::Enum,
                'd' => PgKind::Domain(Box::new(self.named(row.base, row.base_typmod))),
                'c' => PgKind::Composite,
                'r' => PgKind::Range,
                'm' => PgKind::Multirange,
                'p' => PgKind::Pseudo,
                _ if row.element != 0 => PgKind::Array(Box::new(self.named(row.element, -1))),
                _ => PgKind::Base,
            },
        };
        PgType { oid, typmod, name: name.to_owned(), kind }
    }

    fn named(&self, oid: u32, typmod: i32) -> PgType {
        let name = self.0.get(&oid).map_or_else(String::new, |row| row.name.clone());
        self.describe(oid, typmod, &name)
    }
}

/// A name as an SQL identifier (R7).
pub(crate) fn quote(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// A table as SQL names it.
pub(crate) fn qualified(schema: &str, name: &str) -> String {
    format!("{}.{}", quote(schema), quote(name))
}

/// A text as an SQL literal (R7).
pub(crate) fn literal(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

/// `*` stands for any run of characters; everything else for itself.
pub(crate) fn matches(pattern: &str, name: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == name,
        Some((head, rest)) => {
            let Some(mut tail) = name.strip_prefix(head) else {
                return false;
            };
            loop {
                if matches(rest, tail) {
                    return true;
                }
                let mut characters = tail.chars();
                if characters.next().is_none() {
                    return false;
                }
                tail = characters.as_str();
            }
        }
    }
}

/// Roots only: a partition is captured through its root (R63). What the server looks at when a row changes is the identity
/// of the partition, which does not follow the root's: with one partition without, the table has none (V3).
const TABLES: &str = "
    SELECT c.oid, n.nspname AS schema, c.relname AS name, c.relkind = 'p' AS partitioned,
           c.relpersistence <> 'p' AS unlogged, c.relrowsecurity AS row_security,
           CASE WHEN u.unidentified THEN 'n' ELSE c.relreplident::text END AS identity,
           h.schemas AS hidden_schemas, h.names AS hidden_names,
           coalesce((SELECT sum(pg_catalog.pg_relation_size(t.relid)) FROM pg_catalog.pg_partition_tree(c.oid) t
                     WHERE t.isleaf), pg_catalog.pg_relation_size(c.oid))::bigint AS bytes
    FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
    CROSS JOIN LATERAL (
        SELECT coalesce(array_agg(pn.nspname::text ORDER BY pn.nspname, p.relname), '{}') AS schemas,
               coalesce(array_agg(p.relname::text ORDER BY pn.nspname, p.relname), '{}') AS names
        FROM (SELECT relid FROM pg_catalog.pg_partition_tree(c.oid) UNION SELECT c.oid) t
        JOIN pg_catalog.pg_class p ON p.oid = t.relid JOIN pg_catalog.pg_namespace pn ON pn.oid = p.relnamespace
        WHERE p.relkind IN ('r', 'p')
          AND NOT (pg_catalog.has_table_privilege(p.oid, 'SELECT') AND pg_catalog.has_schema_privilege(pn.oid, 'USAGE'))) h
    CROSS JOIN LATERAL (
        SELECT c.relkind = 'p' AND EXISTS (
            SELECT FROM pg_catalog.pg_partition_tree(c.oid) t JOIN pg_catalog.pg_class p ON p.oid = t.relid
            WHERE p.relkind = 'r' AND (
                CASE p.relreplident WHEN 'f' THEN false WHEN 'n' THEN true
                ELSE NOT EXISTS (SELECT FROM pg_catalog.pg_index i WHERE i.indrelid = p.oid
                    AND CASE p.relreplident WHEN 'i' THEN i.indisreplident ELSE i.indisprimary END) END
                OR c.relreplident = 'f' AND p.relreplident <> 'f' AND NOT EXISTS (
                    SELECT FROM pg_catalog.pg_index i WHERE i.indrelid = c.oid AND i.indisprimary))) AS unidentified) u
    WHERE c.relkind IN ('r', 'p') AND NOT c.relispartition AND c.relpersistence <> 't'
      AND n.nspname NOT IN ('pg_catalog', 'information_schema') AND n.nspname NOT LIKE 'pg\\_%'
    ORDER BY 2, 3";

const COLUMNS: &str = "
    SELECT a.attname AS name, a.atttypid AS type_oid, a.atttypmod AS typmod,
           pg_catalog.format_type(a.atttypid, a.atttypmod) AS type_name, a.attgenerated <> '' AS generated,
           coalesce(a.attnum = ANY (i.indkey::int2[]), false) AS key
    FROM pg_catalog.pg_attribute a JOIN pg_catalog.pg_class c ON c.oid = a.attrelid
    LEFT JOIN pg_catalog.pg_index i ON i.indrelid = c.oid
         AND CASE c.relreplident WHEN 'i' THEN i.indisreplident WHEN 'n' THEN false ELSE i.indisprimary END
    WHERE a.attrelid = $1 AND a.attnum > 0 AND NOT a.attisdropped
    ORDER BY a.attnum";

const TYPES: &str = "
    SELECT oid, pg_catalog.format_type(oid, NULL) AS name, typtype::text AS kind, typbasetype AS base,
           typtypmod AS base_typmod, typelem AS element
    FROM pg_catalog.pg_type";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_stand_for_names() {
        for (pattern, name, expected) in [
            ("public.*", "public.payments", true),
            ("public.*", "public2.payments", false),
            ("*.audit_*", "app.audit_log", true),
            ("*.audit_*", "app.log", false),
            ("public.t", "public.t", true),
            ("public.t", "public.tt", false),
            ("*", "a.b", true),
            ("*ß*", "naß.x", true),
        ] {
            assert_eq!(matches(pattern, name), expected, "{pattern} {name}");
        }
    }

    #[test]
    fn names_and_texts_are_quoted() {
        assert_eq!(quote("a\"b.c"), "\"a\"\"b.c\"");
        assert_eq!(literal("it's"), "'it''s'");
    }
}
