//! Rows in the order of some columns: the first so many of them, and in memory no more than those and the batch at hand.

use std::cmp::Ordering;
use std::str::FromStr;

use arrow_array::{ArrayRef, RecordBatch};
use arrow_row::{Row, RowConverter, Rows, SortField};
use arrow_schema::{ArrowError, Schema, SortOptions};
use arrow_select::interleave::interleave_record_batch;
use serde::Deserialize;
use utoipa::ToSchema;

use crate::failure::Failure;

/// Rows that an answer in an order may have (S6).
pub(crate) const ORDERED_ROWS: u64 = 10_000;
/// Bytes of them, together with what they are ordered by.
const ORDERED_BYTES: usize = 32 << 20;

/// One of the columns that rows are ordered by. As in PostgreSQL, NULL comes behind all values, and before them where the
/// order descends; texts are ordered by their bytes.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = OrderBy)]
pub(crate) struct By {
    pub(crate) column: String,
    #[serde(default)]
    pub(crate) descending: bool,
}

/// In one word: `amount`, or `amount:desc`.
impl FromStr for By {
    type Err = std::convert::Infallible;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (column, descending) = match text.rsplit_once(':') {
            Some((column, "asc")) => (column, false),
            Some((column, "desc")) => (column, true),
            _ => (text, false),
        };
        Ok(Self { column: column.trim().to_owned(), descending })
    }
}

/// An order, bound to what is read.
pub(super) struct Order {
    /// Where the columns stand in a batch.
    places: Vec<usize>,
    fields: Vec<SortField>,
}

impl Order {
    /// By columns of batches of `read`, which are there.
    ///
    /// # Errors
    /// `ORDER_INVALID` for a column whose values have no order.
    pub(super) fn new(by: &[By], read: &Schema) -> Result<Self, Failure> {
        let (mut places, mut fields) = (Vec::new(), Vec::new());
        for By { column, descending } in by {
            let place = read.index_of(column).expect("what rows are ordered by is read");
            let data_type = read.field(place).data_type().clone();
            if data_type.is_nested() {
                let remedy = "order by columns of numbers, texts or times";
                return Err(Failure::failed("ORDER_INVALID", column, "nested values have no order", remedy));
            }
            let options = SortOptions { descending: *descending, nulls_first: *descending };
            places.push(place);
            fields.push(SortField::new_with_options(data_type, options));
        }
        Ok(Self { places, fields })
    }

    /// Nothing yet of at most `limit` rows.
    pub(super) fn first(&self, limit: u64) -> Result<First<'_>, Failure> {
        let converter = RowConverter::new(self.fields.clone()).map_err(failed)?;
        Ok(First { order: self, converter, limit: usize::try_from(limit).unwrap_or(usize::MAX), kept: None })
    }
}

/// The first rows of all that it was given.
pub(super) struct First<'a> {
    order: &'a Order,
    converter: RowConverter,
    limit: usize,
    /// In their order, with what they are ordered by.
    kept: Option<(RecordBatch, Rows)>,
}

impl First<'_> {
    /// Takes of a batch what comes before the last of those that are kept. Of rows that are alike the earlier one stays.
    ///
    /// # Errors
    /// `ROWS_LIMIT` where rows are too wide to be kept.
    pub(super) fn add(&mut self, batch: &RecordBatch) -> Result<(), Failure> {
        let added = self.keys(batch)?;
        let (kept, keys) = self.kept.take().unwrap_or_else(|| (batch.slice(0, 0), self.converter.empty_rows(0, 0)));
        let known = keys.num_rows();
        let bound = known.checked_sub(1).filter(|_| known >= self.limit).map(|last| keys.row(last));
        let before = |key: &Row<'_>| bound.is_none_or(|bound| key.cmp(&bound) == Ordering::Less);
        let new = added.iter().enumerate().filter(|(_, key)| before(key)).map(|(row, key)| (key, (1, row)));
        let mut all: Vec<(Row<'_>, (usize, usize))> =
            keys.iter().enumerate().map(|(row, key)| (key, (0, row))).chain(new).collect();
        if all.len() == known {
            drop(all);
            self.kept = (known > 0).then_some((kept, keys));
            return Ok(());
        }
        all.sort_by_key(|(key, _)| *key);
        all.truncate(self.limit);
        let key_bytes: usize = all.iter().map(|(key, _)| key.as_ref().len()).sum();
        bounded(key_bytes)?;
        let rows: Vec<(usize, usize)> = all.into_iter().map(|(_, row)| row).collect();
        // Each of these may be as large as what is kept: none stays longer than it is needed.
        drop((keys, added));
        let first = interleave_record_batch(&[&kept, batch], &rows).map_err(failed)?;
        drop(kept);
        bounded(key_bytes + first.get_array_memory_size())?;
        let keys = self.keys(&first)?;
        self.kept = Some((first, keys));
        Ok(())
    }

    /// The rows, in their order; none, if there were none.
    pub(super) fn rows(self) -> Option<RecordBatch> {
        self.kept.map(|(kept, _)| kept)
    }

    fn keys(&self, batch: &RecordBatch) -> Result<Rows, Failure> {
        let columns: Vec<ArrayRef> = self.order.places.iter().map(|&place| batch.column(place).clone()).collect();
        self.converter.convert_columns(&columns).map_err(failed)
    }
}

fn bounded(bytes: usize) -> Result<(), Failure> {
    if bytes <= ORDERED_BYTES {
        return Ok(());
    }
    let message = format!("the rows in this order have more than {} MiB", ORDERED_BYTES >> 20);
    Err(Failure::failed("ROWS_LIMIT", "rows", message, "set a lower limit, or select fewer columns"))
}

fn failed(error: ArrowError) -> Failure {
    Failure::failed("ORDER_INVALID", "rows", format!("they cannot be ordered: {error}"), "order by other columns")
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow_array::cast::AsArray;
    use arrow_array::types::Int64Type;
    use arrow_array::{Int64Array, StringArray};
    use arrow_schema::{DataType, Field};

    use super::*;

    fn batch(rows: &[(Option<i64>, &str)]) -> RecordBatch {
        let numbers: ArrayRef = Arc::new(rows.iter().map(|row| row.0).collect::<Int64Array>());
        let texts: ArrayRef = Arc::new(rows.iter().map(|row| Some(row.1)).collect::<StringArray>());
        RecordBatch::try_from_iter_with_nullable([("n", numbers, true), ("t", texts, true)]).unwrap()
    }

    fn check(by: &str, limit: u64, expected: &[(Option<i64>, &str)]) {
        let by: Vec<By> = by.split(',').map(|one| one.parse().unwrap()).collect();
        let batches = [
            batch(&[(Some(3), "a"), (None, "b"), (Some(1), "c")]),
            batch(&[]),
            batch(&[(Some(1), "a"), (Some(2), "d"), (Some(3), "e")]),
        ];
        let order = Order::new(&by, &batches[0].schema()).unwrap();
        let mut first = order.first(limit).unwrap();
        batches.iter().for_each(|batch| first.add(batch).unwrap());
        let rows = first.rows();
        let found = rows.iter().flat_map(|rows| {
            let numbers = rows.column(0).as_primitive::<Int64Type>().iter();
            numbers.zip(rows.column(1).as_string::<i32>().iter().flatten())
        });
        assert_eq!(found.collect::<Vec<_>>(), expected, "{by:?}, {limit}");
    }

    #[test]
    fn the_first_rows_stay_in_their_order() {
        check("n", 9, &[(Some(1), "c"), (Some(1), "a"), (Some(2), "d"), (Some(3), "a"), (Some(3), "e"), (None, "b")]);
        check("n:desc", 3, &[(None, "b"), (Some(3), "a"), (Some(3), "e")]);
        check("n,t:desc", 2, &[(Some(1), "c"), (Some(1), "a")]);
        check("t:asc,n", 3, &[(Some(1), "a"), (Some(3), "a"), (None, "b")]);
        check("n", 0, &[]);
    }

    #[test]
    fn one_word_names_a_column_and_its_direction() {
        let by = |column: &str, descending| By { column: column.to_owned(), descending };
        for (text, expected) in [
            ("a", by("a", false)),
            (" a:desc", by("a", true)),
            ("a:b", by("a:b", false)),
            ("a:b:asc", by("a:b", false)),
        ] {
            assert_eq!(text.parse(), Ok(expected), "{text}");
        }
    }

    #[test]
    fn what_is_kept_is_bounded_and_nested_values_are_refused() {
        let wide = "x".repeat(1 << 20);
        let rows: Vec<(Option<i64>, &str)> = (0..40).map(|number| (Some(number), wide.as_str())).collect();
        let rows = batch(&rows);
        let by = [By { column: "n".to_owned(), descending: false }];
        let order = Order::new(&by, &rows.schema()).unwrap();
        order.first(8).unwrap().add(&rows).unwrap();
        let refused = order.first(40).unwrap().add(&rows).unwrap_err();
        assert_eq!(refused.problem.code, "ROWS_LIMIT");
        // By a wide column each row is kept twice.
        let by_text = Order::new(&["t".parse().unwrap()], &rows.schema()).unwrap();
        by_text.first(8).unwrap().add(&rows).unwrap();
        order.first(20).unwrap().add(&rows).unwrap();
        assert_eq!(by_text.first(20).unwrap().add(&rows).unwrap_err().problem.code, "ROWS_LIMIT");
        let list = DataType::List(Arc::new(Field::new("element", DataType::Int64, true)));
        let nested = Order::new(&by, &Schema::new(vec![Field::new("n", list, true)])).err();
        assert_eq!(nested.map(|failure| failure.problem.code), Some("ORDER_INVALID"));
    }
}
