//! The format of `COPY … TO STDOUT (FORMAT binary)`, fed in pieces of any size and given out row by row. What the
//! fields mean is not known here (`values`).
//!
//! A row that lies in one piece, which is how the server sends them, is not copied. Memory is bounded by what was
//! pushed and not yet read: no length in the data makes an allocation.

use std::fmt;

use bytes::{Buf, Bytes, BytesMut};

/// Reads one copy.
pub struct CopyReader {
    columns: usize,
    state: State,
    input: Input,
    /// Bytes that must be there before another look at the next row can succeed.
    wanted: usize,
}

/// What there was to read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CopyStep {
    /// A whole row, all of whose fields were given out.
    Row,
    /// Nothing was given out; push more.
    Incomplete,
    /// The trailer: there are no more rows.
    End,
}

/// Bytes that are no copy of these columns. It stays that way: the copy is lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CopyError {
    #[error("copy does not begin with the binary signature")]
    Signature,
    #[error("copy has flags {flags:#x} that are not known")]
    Flags { flags: u32 },
    #[error("copy has a header extension of negative length")]
    HeaderExtension,
    #[error("copy row has {found} fields where {expected} were asked for")]
    FieldCount { expected: usize, found: i16 },
    #[error("copy field {column} has length {length}")]
    FieldLength { column: usize, length: i32 },
    #[error("copy goes on after its trailer")]
    AfterTrailer,
    #[error("copy ended before its trailer")]
    Truncated,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Header,
    /// So many bytes of the header extension are still to be skipped.
    Extension(usize),
    Rows,
    End,
}

/// The bytes not yet read: one piece as it came, or several joined because a row crosses their seam.
enum Input {
    Piece(Bytes),
    Joined(BytesMut),
}

const SIGNATURE: &[u8; 11] = b"PGCOPY\n\xff\r\n\0";
const HEADER_BYTES: usize = SIGNATURE.len() + 8;
const TRAILER: i16 = -1;
const NULL: i32 = -1;
/// `MaxAllocSize` of PostgreSQL: no field is longer.
const MAX_FIELD_BYTES: usize = 0x3fff_ffff;

impl CopyReader {
    /// A reader of rows with so many fields.
    pub fn new(columns: usize) -> Self {
        Self { columns, state: State::Header, input: Input::Piece(Bytes::new()), wanted: HEADER_BYTES }
    }

    /// Adds what came from the server. Read all rows before the next push: then little is copied.
    pub fn push(&mut self, piece: Bytes) {
        if piece.is_empty() {
            return;
        }
        match &mut self.input {
            Input::Joined(joined) if !joined.is_empty() => joined.extend_from_slice(&piece),
            Input::Piece(rest) if !rest.is_empty() => {
                let mut joined = BytesMut::with_capacity(rest.len() + piece.len());
                joined.extend_from_slice(rest);
                joined.extend_from_slice(&piece);
                self.input = Input::Joined(joined);
            }
            Input::Joined(_) | Input::Piece(_) => self.input = Input::Piece(piece),
        }
    }

    /// Gives the fields of the next row to `field`, as column number and bytes or NULL, if the whole row is there.
    ///
    /// # Errors
    /// `CopyError`, or the error of `field`, after which the row is half given out and the copy is of no more use.
    pub fn next_row<E: From<CopyError>>(
        &mut self,
        mut field: impl FnMut(usize, Option<&[u8]>) -> Result<(), E>,
    ) -> Result<CopyStep, E> {
        if !self.skip_header()? {
            return Ok(CopyStep::Incomplete);
        }
        if self.state == State::End {
            return if self.input.bytes().is_empty() { Ok(CopyStep::End) } else { Err(CopyError::AfterTrailer.into()) };
        }
        let input = self.input.bytes();
        if input.len() < self.wanted {
            return Ok(CopyStep::Incomplete);
        }
        let row = match measure_row(input, self.columns)? {
            Measured::Row(bytes) => bytes,
            Measured::Incomplete { wanted } => {
                self.wanted = wanted;
                return Ok(CopyStep::Incomplete);
            }
            Measured::Trailer => {
                self.state = State::End;
                self.input.advance(2);
                return self.next_row(field);
            }
        };
        let mut rest = &input[2..row];
        for column in 0..self.columns {
            let (value, after) = split_field(rest, column)?.ok_or(CopyError::Truncated)?;
            field(column, value)?;
            rest = after;
        }
        self.input.advance(row);
        self.wanted = 2;
        Ok(CopyStep::Row)
    }

    /// To be called when the server has sent everything.
    ///
    /// # Errors
    /// `CopyError::Truncated` unless `next_row` has seen the trailer, `AfterTrailer` if more came behind it.
    pub fn finish(&self) -> Result<(), CopyError> {
        match self.state {
            State::End if self.input.bytes().is_empty() => Ok(()),
            State::End => Err(CopyError::AfterTrailer),
            State::Header | State::Extension(_) | State::Rows => Err(CopyError::Truncated),
        }
    }

    /// Whether rows may follow; `false` while the header is not there as a whole.
    fn skip_header(&mut self) -> Result<bool, CopyError> {
        if self.state == State::Header {
            let Some(header) = self.input.bytes().first_chunk::<HEADER_BYTES>() else {
                return Ok(false);
            };
            self.state = State::Extension(read_header(header)?);
            self.input.advance(HEADER_BYTES);
            self.wanted = 2;
        }
        if let State::Extension(left) = self.state {
            let skipped = left.min(self.input.bytes().len());
            self.input.advance(skipped);
            self.state = if skipped == left { State::Rows } else { State::Extension(left - skipped) };
        }
        Ok(!matches!(self.state, State::Extension(_)))
    }
}

/// Row values stay out of logs.
impl fmt::Debug for CopyReader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CopyReader").field("state", &self.state).finish_non_exhaustive()
    }
}

impl Input {
    fn bytes(&self) -> &[u8] {
        match self {
            Self::Piece(piece) => piece,
            Self::Joined(joined) => joined,
        }
    }

    fn advance(&mut self, count: usize) {
        match self {
            Self::Piece(piece) => piece.advance(count),
            Self::Joined(joined) => joined.advance(count),
        }
    }
}

/// The length of the header's extension.
fn read_header(header: &[u8; HEADER_BYTES]) -> Result<usize, CopyError> {
    let (signature, words) = header.split_at(SIGNATURE.len());
    let &[f0, f1, f2, f3, e0, e1, e2, e3] = words else {
        return Err(CopyError::Signature);
    };
    if signature != SIGNATURE {
        return Err(CopyError::Signature);
    }
    // The upper half are flags that a reader must know; bit 16, rows with OIDs, is gone since PostgreSQL 12.
    let flags = u32::from_be_bytes([f0, f1, f2, f3]);
    if flags >> 16 != 0 {
        return Err(CopyError::Flags { flags });
    }
    usize::try_from(i32::from_be_bytes([e0, e1, e2, e3])).map_err(|_| CopyError::HeaderExtension)
}

enum Measured {
    /// The row takes so many bytes, all there.
    Row(usize),
    Trailer,
    Incomplete {
        wanted: usize,
    },
}

fn measure_row(input: &[u8], columns: usize) -> Result<Measured, CopyError> {
    let Some((count, mut rest)) = input.split_first_chunk() else {
        return Ok(Measured::Incomplete { wanted: 2 });
    };
    let found = i16::from_be_bytes(*count);
    if found == TRAILER {
        return Ok(Measured::Trailer);
    }
    if usize::try_from(found) != Ok(columns) {
        return Err(CopyError::FieldCount { expected: columns, found });
    }
    for column in 0..columns {
        match split_field(rest, column)? {
            Some((_, after)) => rest = after,
            None => {
                let length = match rest.first_chunk() {
                    Some(length) => field_bytes(i32::from_be_bytes(*length), column)?.unwrap_or(0),
                    None => 0,
                };
                return Ok(Measured::Incomplete { wanted: input.len() - rest.len() + 4 + length });
            }
        }
    }
    Ok(Measured::Row(input.len() - rest.len()))
}

/// A field's value and what follows.
type Split<'a> = (Option<&'a [u8]>, &'a [u8]);

/// The first field, if it is there as a whole.
#[inline]
fn split_field(input: &[u8], column: usize) -> Result<Option<Split<'_>>, CopyError> {
    let Some((length, rest)) = input.split_first_chunk() else {
        return Ok(None);
    };
    match field_bytes(i32::from_be_bytes(*length), column)? {
        None => Ok(Some((None, rest))),
        Some(length) => Ok(rest.split_at_checked(length).map(|(value, rest)| (Some(value), rest))),
    }
}

/// The length of a value, `None` for NULL.
#[inline]
fn field_bytes(length: i32, column: usize) -> Result<Option<usize>, CopyError> {
    match usize::try_from(length) {
        Ok(bytes) if bytes <= MAX_FIELD_BYTES => Ok(Some(bytes)),
        Err(_) if length == NULL => Ok(None),
        _ => Err(CopyError::FieldLength { column, length }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Rows = Vec<Vec<Option<Vec<u8>>>>;

    fn copy(rows: &Rows) -> Vec<u8> {
        let mut out = [&SIGNATURE[..], &[0; 4], &[0, 0, 0, 3], b"ext"].concat();
        for row in rows {
            out.extend((row.len() as i16).to_be_bytes());
            for value in row {
                out.extend(value.as_ref().map_or(NULL, |value| value.len() as i32).to_be_bytes());
                out.extend(value.iter().flatten());
            }
        }
        out.extend(TRAILER.to_be_bytes());
        out
    }

    fn example() -> Rows {
        vec![
            vec![Some(b"1".to_vec()), None, Some(vec![])],
            vec![None, None, None],
            vec![Some(vec![7; 300]), Some(b"b".to_vec()), None],
        ]
    }

    /// Feeds the pieces, reading all that is there after each.
    fn read(columns: usize, pieces: &[&[u8]]) -> Result<Rows, CopyError> {
        let mut reader = CopyReader::new(columns);
        let mut rows = Vec::new();
        for piece in pieces {
            reader.push(Bytes::copy_from_slice(piece));
            loop {
                let mut row = Vec::new();
                let step = reader.next_row(|column, value| {
                    assert_eq!(column, row.len());
                    row.push(value.map(<[u8]>::to_vec));
                    Ok::<(), CopyError>(())
                })?;
                if step != CopyStep::Row {
                    assert!(row.is_empty(), "fields are given out for whole rows only");
                    break;
                }
                rows.push(row);
            }
        }
        reader.finish().map(|()| rows)
    }

    #[test]
    fn a_copy_is_read_wherever_it_is_cut() {
        let bytes = copy(&example());
        assert_eq!(read(3, &[&bytes]), Ok(example()));
        assert_eq!(read(3, &bytes.chunks(1).collect::<Vec<_>>()), Ok(example()));
        for first in 0..=bytes.len() {
            let (a, b) = bytes.split_at(first);
            assert_eq!(read(3, &[a, b]), Ok(example()), "cut at {first}");
        }
        let mut rng = fastrand::Rng::with_seed(4);
        for _ in 0..2_000 {
            let mut rest = bytes.as_slice();
            let mut pieces = Vec::new();
            while !rest.is_empty() {
                let (piece, after) = rest.split_at(rng.usize(..=rest.len().min(60)));
                pieces.push(piece);
                rest = after;
            }
            assert_eq!(read(3, &pieces), Ok(example()));
        }
    }

    #[test]
    fn a_copy_without_rows_or_columns_is_one_too() {
        assert_eq!(read(3, &[&copy(&vec![])]), Ok(vec![]));
        assert_eq!(read(0, &[&copy(&vec![vec![], vec![]])]), Ok(vec![vec![], vec![]]));
    }

    #[test]
    fn a_copy_that_stops_early_is_not_finished() {
        let bytes = copy(&example());
        for end in 0..bytes.len() {
            assert_eq!(read(3, &[&bytes[..end]]), Err(CopyError::Truncated), "cut at {end}");
        }
    }

    #[test]
    fn a_row_inside_one_piece_is_not_copied() {
        let piece = Bytes::from(copy(&example()));
        let within = piece.as_ptr_range();
        let mut reader = CopyReader::new(3);
        reader.push(piece);
        while let Ok(CopyStep::Row) = reader.next_row(|_, value| {
            assert!(value.is_none_or(|value| value.is_empty() || within.contains(&value.as_ptr())));
            Ok::<(), CopyError>(())
        }) {}
        assert_eq!(reader.finish(), Ok(()));
    }

    #[test]
    fn bytes_that_are_no_copy_are_refused() {
        let good = copy(&example());
        let changed = |at: usize, bytes: &[u8]| {
            let mut copy = good.clone();
            copy[at..at + bytes.len()].copy_from_slice(bytes);
            read(3, &[&copy])
        };
        assert_eq!(changed(3, b"x"), Err(CopyError::Signature));
        assert_eq!(changed(11, &[0, 1]), Err(CopyError::Flags { flags: 0x1_0000 }));
        assert_eq!(changed(13, &[0xff, 0xff]), Ok(example()), "flags that may be ignored");
        assert_eq!(changed(15, &[0xff; 4]), Err(CopyError::HeaderExtension));
        assert_eq!(changed(22, &[0, 4]), Err(CopyError::FieldCount { expected: 3, found: 4 }));
        assert_eq!(changed(24, &[0xff, 0xff, 0xff, 0xfe]), Err(CopyError::FieldLength { column: 0, length: -2 }));
        assert_eq!(
            changed(24, &[0x40, 0, 0, 0]),
            Err(CopyError::FieldLength { column: 0, length: MAX_FIELD_BYTES as i32 + 1 })
        );
        assert_eq!(read(3, &[&good, b"x"]), Err(CopyError::AfterTrailer));
        assert_eq!(read(3, &[&[good.as_slice(), b"x"].concat()]), Err(CopyError::AfterTrailer));
    }

    #[test]
    fn an_error_of_the_receiver_comes_back() {
        #[derive(Debug, PartialEq)]
        enum Error {
            Copy(CopyError),
            Mine,
        }
        impl From<CopyError> for Error {
            fn from(e: CopyError) -> Self {
                Self::Copy(e)
            }
        }
        let mut reader = CopyReader::new(3);
        reader.push(Bytes::from(copy(&example())));
        assert_eq!(reader.next_row(|_, _| Err(Error::Mine)), Err(Error::Mine));
        let mut reader = CopyReader::new(3);
        reader.push(Bytes::from_static(b"a copy that is not one at all"));
        assert_eq!(reader.next_row(|_, _| Err(Error::Mine)), Err(Error::Copy(CopyError::Signature)));
    }

    #[test]
    fn random_bytes_never_panic() {
        let good = copy(&example());
        let mut rng = fastrand::Rng::with_seed(5);
        for _ in 0..200_000 {
            let mut bytes = good.clone();
            for _ in 0..rng.usize(1..6) {
                let at = rng.usize(..bytes.len());
                bytes[at] = if rng.bool() { rng.u8(..) } else { *rng.choice(&[0, 1, 3, 0xff]).unwrap_or(&0) };
            }
            bytes.truncate(rng.usize(..=bytes.len()));
            let (a, b) = bytes.split_at(rng.usize(..=bytes.len()));
            let whole = read(3, &[&bytes]);
            assert_eq!(read(3, &[a, b]), whole, "the pieces decide nothing");
        }
    }
}
