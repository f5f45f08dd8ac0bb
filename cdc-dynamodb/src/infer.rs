//! Columns that nobody declared, from what a table's items hold (D54); only where the configuration asks for it.
//!
//! Looked at once, before there is a mirror; what that has is kept from then on. So a column never changes its type and
//! never goes, and whatever does not fit one, or comes later, stands in `_rest` as always. Types are chosen as wide as
//! they get: whole numbers are `long`, others decimals of 38 digits.

use std::collections::{BTreeMap, BTreeSet};

use lakehouse_core::catalog::{Catalog, LoadedTable};
use lakehouse_core::error::Problem;
use lakehouse_core::schema::lake_name;
use tokio::sync::mpsc;
use tracing::info;

use crate::budget::Budget;
use crate::client::Clients;
use crate::config::DynamodbSource;
use crate::copy::{Part, scan};
use crate::items::{ColumnType, ItemSchema, REST};
use crate::number::Number;
use crate::table::SourceTable;
use crate::value::{Item, Value};

/// An attribute becomes a column when it stands in so many items, on so many pages if there are as many.
const ITEMS: u64 = 10;
const PAGES: u64 = 2;
/// Names that Glue takes, in bytes.
const LONGEST_NAME: usize = 255;
/// Columns that are inferred, at most: the most frequent ones.
const COLUMNS: usize = 200;

/// What becomes of a table's items, with the columns that its mirror has, or will have, beside the declared ones.
pub(crate) async fn items(
    source: &DynamodbSource,
    clients: &Clients,
    table: &SourceTable,
    catalog: &dyn Catalog,
) -> Result<ItemSchema, Problem> {
    let plain = table.items(source)?;
    let Some(wanted) = source.options.get(&table.name).and_then(|options| options.infer_items) else {
        return Ok(plain);
    };
    let known: BTreeSet<String> = plain.table().columns.iter().map(|column| column.name.clone()).collect();
    let inferred = match catalog.load(&plain.table().mirror, None).await? {
        Some(mirror) => columns_of(&mirror, &known),
        None => {
            let found = look(source, clients, table, u64::from(wanted)).await?.columns(&known);
            info!(table = table.name, columns = found.len(), "columns are inferred");
            found
        }
    };
    table.items_with(source, inferred)
}

/// Columns of a mirror that are not in `known`: their attributes and types stand in their docs.
fn columns_of(mirror: &LoadedTable, known: &BTreeSet<String>) -> Vec<(String, ColumnType)> {
    let fields = mirror.metadata.current_schema().as_struct().fields();
    let column = |doc: &str| {
        let (attribute, column_type) = doc.rsplit_once(' ')?;
        Some((attribute.to_owned(), column_type.parse().ok()?))
    };
    let others = fields.iter().filter(|field| !known.contains(&field.name) && !field.name.starts_with("_cdc_"));
    others.filter_map(|field| column(field.doc.as_deref()?)).collect()
}

/// Scans until enough items have come.
async fn look(
    source: &DynamodbSource,
    clients: &Clients,
    table: &SourceTable,
    wanted: u64,
) -> Result<Inference, Problem> {
    let budget = Budget::new(source.settings.copy_read_units);
    let (sender, mut pages) = mpsc::channel(1);
    let scanned = scan(clients, &table.name, Part::whole(), &budget, sender, || false);
    let looked = async {
        let mut inference = Inference::default();
        while let Some(page) = pages.recv().await {
            // What cannot be read is the copy's to tell.
            let items = page.into_iter().filter_map(|item| Item::try_from(item).ok());
            inference.observe(&items.collect::<Vec<_>>());
            if inference.items >= wanted {
                break;
            }
        }
        drop(pages);
        inference
    };
    let (scanned, inference) = futures::join!(scanned, looked);
    scanned.map(|_| inference)
}

#[derive(Debug, Default)]
struct Inference {
    items: u64,
    pages: u64,
    seen: BTreeMap<String, Seen>,
}

#[derive(Debug)]
struct Seen {
    items: u64,
    pages: u64,
    last_page: u64,
    kind: Kind,
}

/// What holds all values so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Text,
    Boolean,
    Binary,
    Whole,
    /// Digits before and behind the point.
    Decimal(u8, u8),
    /// All 38 digits and every exponent: as text.
    Number,
    /// Of several types, or of several values: it stays in `_rest`.
    Other,
}

impl Inference {
    fn observe(&mut self, page: &[Item]) {
        self.pages += 1;
        for item in page {
            self.items += 1;
            for (name, value) in item.iter() {
                let Some(kind) = Kind::of(value) else { continue };
                let first = || Seen { items: 0, pages: 0, last_page: 0, kind };
                let seen = self.seen.entry(name.to_owned()).or_insert_with(first);
                seen.items += 1;
                seen.kind = seen.kind.join(kind);
                if seen.last_page < self.pages {
                    (seen.last_page, seen.pages) = (self.pages, seen.pages + 1);
                }
            }
        }
    }

    /// Columns for what is frequent enough and whose name in the lake is its alone.
    fn columns(&self, known: &BTreeSet<String>) -> Vec<(String, ColumnType)> {
        let mut meeting: BTreeMap<String, u32> = BTreeMap::new();
        self.seen.keys().for_each(|name| *meeting.entry(lake_name(name)).or_default() += 1);
        let alone = |name: &str| {
            let lake = lake_name(name);
            let taken = known.contains(&lake) || meeting.get(&lake).is_some_and(|count| *count > 1);
            !taken && !lake.is_empty() && lake.len() <= LONGEST_NAME && lake != REST && !lake.starts_with("_cdc_")
        };
        let often = |seen: &Seen| seen.items >= ITEMS && seen.pages >= PAGES.min(self.pages);
        let mut found: Vec<(&String, &Seen, ColumnType)> = Vec::new();
        for (name, seen) in self.seen.iter().filter(|(name, seen)| often(seen) && alone(name)) {
            found.extend(seen.kind.column_type().map(|column_type| (name, seen, column_type)));
        }
        found.sort_by_key(|(_, seen, _)| std::cmp::Reverse(seen.items));
        found.truncate(COLUMNS);
        found.sort_by_key(|(name, ..)| *name);
        found.into_iter().map(|(name, _, column_type)| (name.clone(), column_type)).collect()
    }
}

impl Kind {
    /// `None` for NULL, which fits everything.
    fn of(value: &Value) -> Option<Self> {
        Some(match value {
            Value::Null => return None,
            Value::S(_) => Kind::Text,
            Value::Bool(_) => Kind::Boolean,
            Value::B(_) => Kind::Binary,
            Value::N(number) => Kind::of_number(number),
            Value::M(_) | Value::L(_) | Value::Ss(_) | Value::Ns(_) | Value::Bs(_) => Kind::Other,
        })
    }

    fn of_number(number: &Number) -> Self {
        if number.unscaled(0).is_some_and(|whole| i64::try_from(whole).is_ok()) {
            return Kind::Whole;
        }
        // Numbers of any exponent have a scale only if they are small enough to be written out.
        (0..=38).find_map(|scale| Some((scale, number.unscaled(scale)?))).map_or(Kind::Number, |(scale, unscaled)| {
            let digits = unscaled.unsigned_abs().to_string().len();
            Kind::Decimal(u8::try_from(digits).unwrap_or(u8::MAX).saturating_sub(scale), scale)
        })
    }

    fn join(self, other: Self) -> Self {
        /// Digits of the longest `long`.
        const LONG: u8 = 19;
        match (self, other) {
            (one, other) if one == other => one,
            (Kind::Decimal(whole, scale), Kind::Whole) | (Kind::Whole, Kind::Decimal(whole, scale)) => {
                Kind::Decimal(whole.max(LONG), scale)
            }
            (Kind::Decimal(whole, scale), Kind::Decimal(other_whole, other_scale)) => {
                Kind::Decimal(whole.max(other_whole), scale.max(other_scale))
            }
            (Kind::Number, Kind::Whole | Kind::Decimal(..)) | (Kind::Whole | Kind::Decimal(..), Kind::Number) => {
                Kind::Number
            }
            _ => Kind::Other,
        }
    }

    fn column_type(self) -> Option<ColumnType> {
        Some(match self {
            Kind::Text => ColumnType::String,
            Kind::Boolean => ColumnType::Boolean,
            Kind::Binary => ColumnType::Binary,
            Kind::Whole => ColumnType::Long,
            Kind::Decimal(whole, scale) if whole + scale <= 38 => ColumnType::Decimal { precision: 38, scale },
            Kind::Decimal(..) | Kind::Number => ColumnType::Number,
            Kind::Other => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn items(texts: &[&str], times: usize) -> Vec<Item> {
        let parse = |text: &&str| text.parse().unwrap_or_else(|error| panic!("{text}: {error}"));
        texts.iter().cycle().take(texts.len() * times).map(parse).collect()
    }

    fn inferred(texts: &[&str]) -> Vec<String> {
        let mut inference = Inference::default();
        (0..3).for_each(|_| inference.observe(&items(texts, 10)));
        let known = BTreeSet::from(["id".to_owned(), "declared".to_owned()]);
        inference.columns(&known).into_iter().map(|(name, column_type)| format!("{name} {column_type}")).collect()
    }

    #[test]
    fn each_type_has_a_column_that_holds_what_was_seen() {
        let cases: [(&[&str], &str); 9] = [
            (&[r#"{"v":{"S":"a"}}"#, r#"{"v":{"NULL":true}}"#], "v string"),
            (&[r#"{"v":{"BOOL":true}}"#], "v boolean"),
            (&[r#"{"v":{"B":"AA=="}}"#], "v binary"),
            (&[r#"{"v":{"N":"1"}}"#, r#"{"v":{"N":"-9223372036854775808"}}"#], "v long"),
            (&[r#"{"v":{"N":"1"}}"#, r#"{"v":{"N":"1.25"}}"#, r#"{"v":{"N":"0.5"}}"#], "v decimal(38,2)"),
            (&[r#"{"v":{"N":"9223372036854775808"}}"#], "v decimal(38,0)"),
            (&[r#"{"v":{"N":"1E-130"}}"#, r#"{"v":{"N":"1"}}"#], "v number"),
            (&[r#"{"v":{"N":"1E30"}}"#, r#"{"v":{"N":"1E-20"}}"#], "v number"),
            (&[r#"{"v":{"N":"9223372036854775807"}}"#, r#"{"v":{"N":"1E-20"}}"#], "v number"),
        ];
        for (texts, wanted) in cases {
            assert_eq!(inferred(texts), [wanted], "{texts:?}");
        }
    }

    #[test]
    fn what_is_mixed_nested_or_has_a_name_that_is_taken_stays_where_it_is() {
        for texts in [
            &[r#"{"v":{"S":"a"}}"#, r#"{"v":{"N":"1"}}"#][..],
            &[r#"{"v":{"M":{}}}"#],
            &[r#"{"v":{"SS":["a"]}}"#],
            &[r#"{"v":{"NULL":true}}"#],
            &[r#"{"ID":{"S":"a"},"Declared":{"S":"a"},"_rest":{"S":"a"},"_CDC_x":{"S":"a"}}"#],
            &[r#"{"userId":{"S":"a"},"UserID":{"S":"a"}}"#],
        ] {
            assert_eq!(inferred(texts), Vec::<String>::new(), "{texts:?}");
        }
    }

    #[test]
    fn what_is_rare_gets_no_column() {
        let mut inference = Inference::default();
        inference.observe(&items(&[r#"{"often":{"S":"a"},"once":{"S":"a"}}"#], 50));
        inference.observe(&items(&[r#"{"often":{"S":"a"}}"#], 1));
        inference.observe(&items(&[r#"{"often":{"S":"a"},"few":{"S":"a"}}"#], 9));
        let names: Vec<String> = inference.columns(&BTreeSet::new()).into_iter().map(|(name, _)| name).collect();
        assert_eq!(names, ["often"], "on one page of three, or in nine items");
    }
}
