//! The two kinds of rows, and the SQL that makes and changes them.
//!
//! Rows are computed from their key, so every run on every machine has the same ones.

/// What a row looks like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shape {
    /// 29 columns, on average 184 bytes as PostgreSQL stores them without its row header: 2 bigint, 3 integer,
    /// 2 smallint, 1 real, 1 double, 5 numeric(12,2), 3 boolean, 2 timestamptz, 1 timestamp, 2 date, 1 uuid and 6 text.
    Wide,
    /// 5 columns: bigint, integer, numeric(12,2), timestamptz and text.
    Narrow,
}

impl Shape {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Wide => "wide",
            Self::Narrow => "narrow",
        }
    }

    pub(crate) fn create(self, table: &str) -> String {
        let columns: Vec<String> = self.columns().iter().map(|(name, kind, _)| format!("{name} {kind}")).collect();
        format!("CREATE TABLE {table} ({}, PRIMARY KEY (id))", columns.join(", "))
    }

    /// Inserts the rows with keys from `first` to `last`, both SQL expressions.
    pub(crate) fn insert(self, table: &str, first: &str, last: &str) -> String {
        let values: Vec<&str> = self.columns().iter().map(|(_, _, value)| *value).collect();
        format!(
            "INSERT INTO {table} SELECT {} FROM generate_series({first}::bigint, {last}::bigint) k",
            values.join(", ")
        )
    }

    /// The SET clause of an update that touches some columns of each kind, as applications do.
    pub(crate) fn change(self) -> &'static str {
        match self {
            Self::Wide => {
                "status = 6, attempts = attempts + 1, balance = balance + 1.25, \
                 settled_at = paid_at + interval '1 day', note = 'settled in run ' || id % 1000"
            }
            Self::Narrow => "amount = amount + 1.25, kind = 'corrected'",
        }
    }

    /// Name, type and value; `k` is the key.
    fn columns(self) -> &'static [(&'static str, &'static str, &'static str)] {
        match self {
            Self::Wide => &WIDE,
            Self::Narrow => &NARROW,
        }
    }
}

const WIDE: [(&str, &str, &str); 29] = [
    ("id", "bigint", "k"),
    ("customer_id", "bigint", "k * 7919 % 1000003"),
    ("merchant_id", "integer", "k * 31 % 5003"),
    ("terminal_id", "integer", "k * 17 % 20011"),
    ("quantity", "integer", "k % 12 + 1"),
    ("attempts", "smallint", "k % 3 + 1"),
    ("status", "smallint", "k % 5"),
    ("risk", "real", "(k * 37 % 1000) / 1000.0"),
    ("distance", "double precision", "(k * 48271 % 1000003) / 97.0::float8"),
    ("amount", "numeric(12,2)", "(k * 48271 % 9999991) / 100.0"),
    ("fee", "numeric(12,2)", "(k * 7 % 4999) / 100.0"),
    ("tax", "numeric(12,2)", "(k * 13 % 99991) / 100.0"),
    ("discount", "numeric(12,2)", "(k * 3 % 499) / 100.0"),
    ("balance", "numeric(12,2)", "(k * 16807 % 99999989) / 100.0"),
    ("captured", "boolean", "k % 5 <> 0"),
    ("refunded", "boolean", "k % 97 = 0"),
    ("is_test", "boolean", "k % 1000 = 0"),
    ("paid_at", "timestamptz", "timestamptz '2026-01-01 00:00:00+00' + k * interval '1.370013 seconds'"),
    (
        "settled_at",
        "timestamptz",
        "CASE WHEN k % 4 > 0 THEN timestamptz '2026-01-03 00:00:00+00' + k * interval '1.370013 seconds' END",
    ),
    ("created_at", "timestamp", "timestamp '2025-12-31 00:00:00' + k * interval '1.370013 seconds'"),
    ("due_on", "date", "date '2026-01-01' + (k % 365)::int"),
    ("booked_on", "date", "date '2026-01-01' + (k * 11 % 365)::int"),
    ("reference", "uuid", "md5(k::text)::uuid"),
    ("currency", "text", "(ARRAY['EUR', 'USD', 'JPY', 'GBP'])[k % 4 + 1]"),
    ("country", "text", "(ARRAY['DE', 'JP', 'US', 'FR', 'BR'])[k % 5 + 1]"),
    ("method", "text", "(ARRAY['card', 'transfer', 'wallet'])[k % 3 + 1]"),
    ("city", "text", "'city-' || k % 997"),
    ("description", "text", "'order ' || substr(md5((k * 3)::text), 1, 4 + (k % 12)::int)"),
    ("note", "text", "CASE WHEN k % 3 = 0 THEN substr(md5((k * 5)::text), 1, 20) END"),
];

const NARROW: [(&str, &str, &str); 5] = [
    ("id", "bigint", "k"),
    ("account_id", "integer", "k * 7919 % 100003"),
    ("amount", "numeric(12,2)", "(k * 48271 % 9999991) / 100.0"),
    ("booked_at", "timestamptz", "timestamptz '2026-01-01 00:00:00+00' + k * interval '1.370013 seconds'"),
    ("kind", "text", "(ARRAY['payment', 'refund', 'fee', 'interest'])[k % 4 + 1]"),
];
