//! PostgreSQL values to Arrow arrays: one `ColumnBuilder` per column takes the text form (the stream) or the binary
//! form (the copy) of each value and stores the same thing for both (requirements, section 4).
//! What is not here: messages and rows (`pgoutput`, `copy_binary`), field ids, and what is done with an overflow text.
//!
//! A value that the mapped type cannot hold is not an error: it is stored as NULL and its exact PostgreSQL text goes
//! back to the caller as `Appended::Overflow`. Text input must come from a session with the settings of R8.

mod array;
mod binary;
mod column;
mod datetime;
mod hstore;
mod money;
mod network;
mod number;
mod numeric;
mod text;
mod types;
mod vector;

use std::fmt;

use arrow_array::ArrayRef;

use column::Column;
pub use money::money_fraction_digits;
pub use types::{ColumnType, PgKind, PgType, TypeOptions, TypeWarning, UnboundedNumeric};

/// Collects the values of one column and turns them into an Arrow array of `ColumnType::data_type`.
pub struct ColumnBuilder {
    column: Column,
}

/// What became of a value.
#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use = "an overflow text must reach the overflow column"]
pub enum Appended {
    Stored,
    /// NULL was stored; the text is what the server's output function gives for the value.
    Overflow(String),
}

/// Bytes that are no value of the column's type. Nothing was appended. The bytes themselves are never part of it (R5).
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ValueError {
    #[error("value is not UTF-8")]
    NotUtf8,
    #[error("value is not in the form of {expected}")]
    Malformed { expected: &'static str },
    /// Arrow counts a column's bytes in 31 bits: finish the batch and append the value to the next one. An empty
    /// builder has room for any value that PostgreSQL can send (1 GiB).
    #[error("column has no room left in this batch")]
    Full,
}

impl ColumnBuilder {
    /// A builder with space for `rows` values.
    pub fn new(t: &ColumnType, rows: usize) -> Self {
        Self { column: Column::new(t.codec(), rows) }
    }

    /// Appends a value in the form of its output function, as pgoutput sends it.
    ///
    /// # Errors
    /// `ValueError` if the bytes are no such value; nothing was appended.
    #[inline]
    pub fn append_text(&mut self, value: &[u8]) -> Result<Appended, ValueError> {
        self.column.append_text(value)
    }

    /// Appends a value in the form that `COPY (FORMAT binary)` gives for the column with `ColumnType::copy_cast`.
    ///
    /// # Errors
    /// `ValueError` if the bytes are no such value; nothing was appended.
    #[inline]
    pub fn append_binary(&mut self, value: &[u8]) -> Result<Appended, ValueError> {
        self.column.append_binary(value)
    }

    pub fn append_null(&mut self) {
        self.column.append_null();
    }

    /// Values held, NULLs included.
    pub fn len(&self) -> usize {
        self.column.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// About how many bytes the values held take, validity bits apart.
    pub fn bytes(&self) -> usize {
        self.column.bytes()
    }

    /// The array of all values held; the builder is empty afterwards.
    pub fn finish(&mut self) -> ArrayRef {
        self.column.finish()
    }
}

/// Row values stay out of logs.
impl fmt::Debug for ColumnBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ColumnBuilder").field("rows", &self.len()).finish_non_exhaustive()
    }
}

fn malformed<T>(expected: &'static str) -> Result<T, ValueError> {
    Err(ValueError::Malformed { expected })
}

fn utf8(value: &[u8]) -> Result<&str, ValueError> {
    std::str::from_utf8(value).map_err(|_| ValueError::NotUtf8)
}

/// Exactly `N` bytes of a binary value.
fn fixed<const N: usize>(value: &[u8], expected: &'static str) -> Result<[u8; N], ValueError> {
    value.try_into().map_err(|_| ValueError::Malformed { expected })
}

#[cfg(test)]
mod tests;
