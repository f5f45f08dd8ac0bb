//! Decoder of pgoutput, the server's logical replication messages, protocol versions 1 and 2. Owns the message layout
//! and nothing of what messages mean. Decoded messages borrow from the payload; a row is walked without allocation.
//!
//! A message is checked as a whole before it is returned, so walking a row afterwards cannot fail half-way.

use std::fmt::{self, Write as _};

/// Why a payload is not a message. None of these texts holds row values, except the dump of a message of unknown kind.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// The payload is empty.
    #[error("a replication message is empty")]
    Empty,
    /// A kind of message that was not asked for, or that this version does not know (R39).
    #[error("replication message of unknown kind {tag:#04x}: {dump}")]
    UnknownTag {
        /// First byte of the message.
        tag: u8,
        /// At most 64 bytes in hexadecimal.
        dump: String,
    },
    /// The message does not have the layout of its kind.
    #[error("replication message {tag:?} of {length} bytes is malformed at byte {at}: {what}")]
    Malformed {
        /// First byte of the message.
        tag: char,
        /// Bytes in the message.
        length: usize,
        /// Where reading stopped.
        at: usize,
        /// What was expected.
        what: &'static str,
    },
    /// The message may not come at this place, such as a commit inside a streamed block.
    #[error("replication message {tag:?} is out of place: {what}")]
    OutOfPlace {
        /// First byte of the message.
        tag: char,
        /// Why.
        what: &'static str,
    },
}

/// One replication message. LSNs are byte positions in the WAL; times are microseconds since 2000-01-01 00:00 UTC. `xid`
/// is present exactly between [`StreamStart`](Self::StreamStart) and [`StreamStop`](Self::StreamStop): there it names the
/// (sub-)transaction that wrote the change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Message<'a> {
    /// A transaction begins; all of it follows.
    Begin {
        /// Position of the commit record.
        final_lsn: u64,
        /// Time of the commit.
        commit_time: i64,
        /// Transaction id.
        xid: u32,
    },
    /// The transaction begun last ends.
    Commit {
        /// Position of the commit record.
        commit_lsn: u64,
        /// Position after the commit record.
        end_lsn: u64,
        /// Time of the commit.
        commit_time: i64,
    },
    /// The transaction was itself replicated from elsewhere.
    Origin {
        /// Commit position at the origin.
        commit_lsn: u64,
        /// Name of the origin.
        name: &'a str,
    },
    /// Shape of a table; precedes its first row and the first row after a change of shape.
    Relation(Relation<'a>),
    /// Name of a type that is not built in.
    Type {
        /// Transaction, while streaming.
        xid: Option<u32>,
        /// Type oid.
        id: u32,
        /// Schema; empty means `pg_catalog`.
        namespace: &'a str,
        /// Type name.
        name: &'a str,
    },
    /// A row was inserted.
    Insert {
        /// Transaction, while streaming.
        xid: Option<u32>,
        /// Table oid.
        relation: u32,
        /// The row.
        new: Tuple<'a>,
    },
    /// A row was updated.
    Update {
        /// Transaction, while streaming.
        xid: Option<u32>,
        /// Table oid.
        relation: u32,
        /// The row before, as far as the replica identity demands it.
        old: Option<OldTuple<'a>>,
        /// The row after.
        new: Tuple<'a>,
    },
    /// A row was deleted.
    Delete {
        /// Transaction, while streaming.
        xid: Option<u32>,
        /// Table oid.
        relation: u32,
        /// The row before.
        old: OldTuple<'a>,
    },
    /// Tables were emptied.
    Truncate {
        /// Transaction, while streaming.
        xid: Option<u32>,
        /// CASCADE was given.
        cascade: bool,
        /// RESTART IDENTITY was given.
        restart_identity: bool,
        /// Table oids.
        relations: Vec<u32>,
    },
    /// A message written by `pg_logical_emit_message`.
    Message {
        /// Transaction, while streaming and transactional.
        xid: Option<u32>,
        /// Whether it belongs to the transaction; otherwise it comes at once.
        transactional: bool,
        /// Its position.
        lsn: u64,
        /// Its prefix.
        prefix: &'a str,
        /// Its content.
        content: &'a [u8],
    },
    /// A block of changes of a transaction still open begins.
    StreamStart {
        /// Top-level transaction.
        xid: u32,
        /// Whether it is the transaction's first block.
        first_segment: bool,
    },
    /// The block ends.
    StreamStop,
    /// A streamed transaction has committed.
    StreamCommit {
        /// Top-level transaction.
        xid: u32,
        /// Position of the commit record.
        commit_lsn: u64,
        /// Position after the commit record.
        end_lsn: u64,
        /// Time of the commit.
        commit_time: i64,
    },
    /// A streamed transaction, or a sub-transaction of it, was rolled back.
    StreamAbort {
        /// Top-level transaction.
        xid: u32,
        /// What was rolled back; equals `xid` if all of it was.
        subxid: u32,
    },
}

/// Shape of a table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Relation<'a> {
    /// Transaction, while streaming.
    pub xid: Option<u32>,
    /// Table oid.
    pub id: u32,
    /// Schema; empty means `pg_catalog`.
    pub namespace: &'a str,
    /// Table name.
    pub name: &'a str,
    /// What UPDATE and DELETE say of the row before.
    pub replica_identity: ReplicaIdentity,
    /// Published columns in the order of row messages.
    pub columns: Vec<Column<'a>>,
}

/// A column of a [`Relation`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Column<'a> {
    /// Whether it is part of the replica identity.
    pub key: bool,
    /// Column name.
    pub name: &'a str,
    /// Type oid.
    pub type_oid: u32,
    /// Type modifier, -1 if none.
    pub type_modifier: i32,
}

/// REPLICA IDENTITY of a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReplicaIdentity {
    /// The primary key.
    Default,
    /// Nothing.
    Nothing,
    /// All columns.
    Full,
    /// A unique index.
    Index,
}

/// The row before an UPDATE or DELETE.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OldTuple<'a> {
    /// Key columns only; the others read as [`Field::Null`].
    Key(Tuple<'a>),
    /// The whole row.
    Full(Tuple<'a>),
}

impl<'a> OldTuple<'a> {
    /// The row, whichever kind it is.
    #[must_use]
    pub fn tuple(&self) -> Tuple<'a> {
        match self {
            Self::Key(tuple) | Self::Full(tuple) => *tuple,
        }
    }
}

/// A row: iterates its fields in the order of the relation's columns, without allocation. `Debug` shows no values (R5).
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Tuple<'a> {
    columns: u16,
    bytes: &'a [u8],
}

impl<'a> Tuple<'a> {
    /// Number of fields.
    #[must_use]
    pub fn len(&self) -> usize {
        usize::from(self.columns)
    }

    /// Whether the table has no published column.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.columns == 0
    }

    /// Bytes of the row as sent, kinds and lengths included.
    #[must_use]
    pub fn byte_len(&self) -> usize {
        self.bytes.len()
    }

    /// The fields.
    #[must_use]
    pub fn fields(&self) -> Fields<'a> {
        Fields { left: self.columns, bytes: self.bytes }
    }
}

impl<'a> IntoIterator for Tuple<'a> {
    type Item = Field<'a>;
    type IntoIter = Fields<'a>;

    fn into_iter(self) -> Fields<'a> {
        self.fields()
    }
}

impl fmt::Debug for Tuple<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Tuple({} columns, {} bytes)", self.columns, self.bytes.len())
    }
}

/// One field of a row. `Debug` shows the length in place of the value (R5).
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Field<'a> {
    /// SQL NULL.
    Null,
    /// A TOASTed value that the UPDATE did not touch and that was not sent.
    Unchanged,
    /// The type's text output, UTF-8.
    Text(&'a [u8]),
    /// The type's binary output.
    Binary(&'a [u8]),
}

impl fmt::Debug for Field<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Null => formatter.write_str("Null"),
            Self::Unchanged => formatter.write_str("Unchanged"),
            Self::Text(value) => write!(formatter, "Text({} bytes)", value.len()),
            Self::Binary(value) => write!(formatter, "Binary({} bytes)", value.len()),
        }
    }
}

/// Iterator over the fields of a [`Tuple`].
#[derive(Clone)]
pub struct Fields<'a> {
    left: u16,
    bytes: &'a [u8],
}

impl<'a> Iterator for Fields<'a> {
    type Item = Field<'a>;

    #[inline]
    fn next(&mut self) -> Option<Field<'a>> {
        // The bytes were checked when the message was decoded: only the end of the row ends the walk.
        let (&kind, rest) = self.bytes.split_first()?;
        self.left = self.left.saturating_sub(1);
        if kind == b'n' || kind == b'u' {
            self.bytes = rest;
            return Some(if kind == b'n' { Field::Null } else { Field::Unchanged });
        }
        let (length, rest) = rest.split_first_chunk::<4>()?;
        let (value, rest) = rest.split_at_checked(u32::from_be_bytes(*length) as usize)?;
        self.bytes = rest;
        Some(if kind == b'b' { Field::Binary(value) } else { Field::Text(value) })
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (usize::from(self.left), Some(usize::from(self.left)))
    }
}

impl ExactSizeIterator for Fields<'_> {}

/// Decodes the messages of one replication connection in their order. Its only state is whether the stream is inside a
/// streamed block, because messages there carry a transaction id.
#[derive(Debug, Clone, Default)]
pub struct Decoder {
    in_block: bool,
}

impl Decoder {
    /// For the start of a connection.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// For payloads that were set aside inside a streamed block and are decoded later.
    #[must_use]
    pub fn within_block() -> Self {
        Self { in_block: true }
    }

    /// Whether the stream is between `StreamStart` and `StreamStop`.
    #[must_use]
    pub fn is_in_block(&self) -> bool {
        self.in_block
    }

    /// Decodes one payload.
    ///
    /// # Errors
    /// [`DecodeError`]; the connection cannot be used further.
    #[inline]
    pub fn decode<'a>(&mut self, payload: &'a [u8]) -> Result<Message<'a>, DecodeError> {
        let (&tag, rest) = payload.split_first().ok_or(DecodeError::Empty)?;
        let mut cursor = Cursor { rest };
        let message = match tag {
            b'I' => cursor.insert(self.in_block),
            b'U' => cursor.update(self.in_block),
            b'D' => cursor.delete(self.in_block),
            _ => self.rare(tag, &mut cursor, payload)?,
        };
        match message {
            Ok(message) if cursor.rest.is_empty() => Ok(message),
            Ok(_) => Err(malformed(payload, &cursor, "nothing more")),
            Err(what) => Err(malformed(payload, &cursor, what)),
        }
    }

    #[cold]
    fn rare<'a>(
        &mut self,
        tag: u8,
        cursor: &mut Cursor<'a>,
        payload: &[u8],
    ) -> Result<Result<Message<'a>, What>, DecodeError> {
        self.check_place(tag)?;
        Ok(match tag {
            b'B' => cursor.begin(),
            b'C' => cursor.commit(),
            b'O' => cursor.origin(),
            b'R' => cursor.relation(self.in_block),
            b'Y' => cursor.type_name(self.in_block),
            b'T' => cursor.truncate(self.in_block),
            b'M' => cursor.logical_message(self.in_block),
            b'S' => cursor.stream_start().inspect(|_| self.in_block = true),
            b'E' => {
                self.in_block = false;
                Ok(Message::StreamStop)
            }
            b'c' => cursor.stream_commit(),
            b'A' => cursor.stream_abort(),
            _ => {
                return Err(DecodeError::UnknownTag { tag, dump: dump(payload) });
            }
        })
    }

    fn check_place(&self, tag: u8) -> Result<(), DecodeError> {
        let what = match (tag, self.in_block) {
            (b'B' | b'C' | b'c' | b'A', true) => "a streamed block is open",
            (b'S', true) => "the previous streamed block is still open",
            (b'E', false) => "no streamed block is open",
            _ => return Ok(()),
        };
        Err(DecodeError::OutOfPlace { tag: tag.into(), what })
    }
}

/// What was expected where reading stopped.
type What = &'static str;

#[cold]
fn malformed(payload: &[u8], cursor: &Cursor<'_>, what: What) -> DecodeError {
    let tag = payload.first().copied().unwrap_or_default().into();
    DecodeError::Malformed { tag, length: payload.len(), at: payload.len() - cursor.rest.len(), what }
}

#[cold]
fn dump(payload: &[u8]) -> String {
    payload.iter().take(64).fold(String::new(), |mut text, byte| {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

struct Cursor<'a> {
    rest: &'a [u8],
}

impl<'a> Cursor<'a> {
    #[inline]
    fn array<const N: usize>(&mut self) -> Result<[u8; N], What> {
        let (head, rest) = self.rest.split_first_chunk::<N>().ok_or("a number, not the end of the message")?;
        self.rest = rest;
        Ok(*head)
    }

    #[inline]
    fn u8(&mut self) -> Result<u8, What> {
        self.array::<1>().map(|[byte]| byte)
    }

    #[inline]
    fn u16(&mut self) -> Result<u16, What> {
        self.array().map(u16::from_be_bytes)
    }

    #[inline]
    fn u32(&mut self) -> Result<u32, What> {
        self.array().map(u32::from_be_bytes)
    }

    fn u64(&mut self) -> Result<u64, What> {
        self.array().map(u64::from_be_bytes)
    }

    fn i64(&mut self) -> Result<i64, What> {
        self.array().map(i64::from_be_bytes)
    }

    #[inline]
    fn bytes(&mut self, length: u32) -> Result<&'a [u8], What> {
        let (head, rest) = self.rest.split_at_checked(length as usize).ok_or("a value, not the end of the message")?;
        self.rest = rest;
        Ok(head)
    }

    fn text(&mut self) -> Result<&'a str, What> {
        let end = self.rest.iter().position(|byte| *byte == 0).ok_or("a name that ends in zero")?;
        let (head, rest) = self.rest.split_at_checked(end).ok_or("a name")?;
        let text = std::str::from_utf8(head).map_err(|_| "a name in UTF-8")?;
        self.rest = rest.get(1..).ok_or("a name that ends in zero")?;
        Ok(text)
    }

    #[inline]
    fn xid(&mut self, in_block: bool) -> Result<Option<u32>, What> {
        if in_block { self.u32().map(Some) } else { Ok(None) }
    }

    #[inline]
    fn expect(&mut self, tag: u8, what: What) -> Result<(), What> {
        if self.u8()? == tag { Ok(()) } else { Err(what) }
    }

    /// Walks over a row and keeps it for later.
    #[inline]
    fn tuple(&mut self) -> Result<Tuple<'a>, What> {
        let columns = self.u16()?;
        let start = self.rest;
        for _ in 0..columns {
            match self.u8()? {
                b't' | b'b' => {
                    let length = self.u32()?;
                    self.bytes(length)?;
                }
                b'n' | b'u' => {}
                _ => return Err("a field of kind n, u, t or b"),
            }
        }
        let (bytes, _) = start.split_at_checked(start.len() - self.rest.len()).ok_or("a row")?;
        Ok(Tuple { columns, bytes })
    }

    fn insert(&mut self, in_block: bool) -> Result<Message<'a>, What> {
        let (xid, relation) = (self.xid(in_block)?, self.u32()?);
        self.expect(b'N', "a new row")?;
        Ok(Message::Insert { xid, relation, new: self.tuple()? })
    }

    fn update(&mut self, in_block: bool) -> Result<Message<'a>, What> {
        let (xid, relation) = (self.xid(in_block)?, self.u32()?);
        let old = match self.u8()? {
            b'N' => {
                return Ok(Message::Update { xid, relation, old: None, new: self.tuple()? });
            }
            b'K' => OldTuple::Key(self.tuple()?),
            b'O' => OldTuple::Full(self.tuple()?),
            _ => return Err("an old or new row"),
        };
        self.expect(b'N', "a new row")?;
        Ok(Message::Update { xid, relation, old: Some(old), new: self.tuple()? })
    }

    fn delete(&mut self, in_block: bool) -> Result<Message<'a>, What> {
        let (xid, relation) = (self.xid(in_block)?, self.u32()?);
        let old = match self.u8()? {
            b'K' => OldTuple::Key(self.tuple()?),
            b'O' => OldTuple::Full(self.tuple()?),
            _ => return Err("an old row"),
        };
        Ok(Message::Delete { xid, relation, old })
    }

    fn begin(&mut self) -> Result<Message<'a>, What> {
        Ok(Message::Begin { final_lsn: self.u64()?, commit_time: self.i64()?, xid: self.u32()? })
    }

    fn commit(&mut self) -> Result<Message<'a>, What> {
        self.u8()?; // flags, unused
        Ok(Message::Commit { commit_lsn: self.u64()?, end_lsn: self.u64()?, commit_time: self.i64()? })
    }

    fn origin(&mut self) -> Result<Message<'a>, What> {
        Ok(Message::Origin { commit_lsn: self.u64()?, name: self.text()? })
    }

    fn relation(&mut self, in_block: bool) -> Result<Message<'a>, What> {
        let (xid, id) = (self.xid(in_block)?, self.u32()?);
        let (namespace, name) = (self.text()?, self.text()?);
        let replica_identity = match self.u8()? {
            b'd' => ReplicaIdentity::Default,
            b'n' => ReplicaIdentity::Nothing,
            b'f' => ReplicaIdentity::Full,
            b'i' => ReplicaIdentity::Index,
            _ => return Err("a replica identity d, n, f or i"),
        };
        let count = usize::from(self.u16()?);
        // A column takes at least ten bytes.
        let mut columns = Vec::with_capacity(count.min(self.rest.len() / 10));
        for _ in 0..count {
            columns.push(self.column()?);
        }
        Ok(Message::Relation(Relation { xid, id, namespace, name, replica_identity, columns }))
    }

    fn column(&mut self) -> Result<Column<'a>, What> {
        let key = self.u8()? & 1 == 1;
        let (name, type_oid) = (self.text()?, self.u32()?);
        Ok(Column { key, name, type_oid, type_modifier: self.array().map(i32::from_be_bytes)? })
    }

    fn type_name(&mut self, in_block: bool) -> Result<Message<'a>, What> {
        let (xid, id) = (self.xid(in_block)?, self.u32()?);
        Ok(Message::Type { xid, id, namespace: self.text()?, name: self.text()? })
    }

    fn truncate(&mut self, in_block: bool) -> Result<Message<'a>, What> {
        let xid = self.xid(in_block)?;
        let (count, flags) = (self.u32()? as usize, self.u8()?);
        let mut relations = Vec::with_capacity(count.min(self.rest.len() / 4));
        for _ in 0..count {
            relations.push(self.u32()?);
        }
        Ok(Message::Truncate { xid, cascade: flags & 1 != 0, restart_identity: flags & 2 != 0, relations })
    }

    fn logical_message(&mut self, in_block: bool) -> Result<Message<'a>, What> {
        let xid = self.xid(in_block)?;
        let transactional = self.u8()? & 1 == 1;
        let (lsn, prefix, length) = (self.u64()?, self.text()?, self.u32()?);
        Ok(Message::Message { xid, transactional, lsn, prefix, content: self.bytes(length)? })
    }

    fn stream_start(&mut self) -> Result<Message<'a>, What> {
        Ok(Message::StreamStart { xid: self.u32()?, first_segment: self.u8()? == 1 })
    }

    fn stream_commit(&mut self) -> Result<Message<'a>, What> {
        let xid = self.u32()?;
        self.u8()?; // flags, unused
        Ok(Message::StreamCommit { xid, commit_lsn: self.u64()?, end_lsn: self.u64()?, commit_time: self.i64()? })
    }

    fn stream_abort(&mut self) -> Result<Message<'a>, What> {
        Ok(Message::StreamAbort { xid: self.u32()?, subxid: self.u32()? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Messages of PostgreSQL 15, protocol version 2: whether inside a streamed block, and the payload.
    const CAPTURED: &[(bool, &str)] = &[
        (false, "42000000003196ce48000303c4bbd9dc37000002f3"),
        (false, "4300000000003196ce48000000003196ce78000303c4bbd9dc37"),
        (false, "59000040177075626c6963006d6f6f6400"),
        (
            false,
            "520000401b7075626c6963006b006400040169640000000017ffffffff00760000000019ffffffff006e00000006a400080006006d\
             0000004017ffffffff",
        ),
        (false, "52000040227075626c69630066006600020169640000000017ffffffff01760000000019ffffffff"),
        (false, "490000401b4e00047400000001317400000004c3a9277874000000052d312e353074000000056861707079"),
        (false, "490000401b4e00047400000001326e74000000034e614e7400000003736164"),
        (false, "550000401b4e000474000000013174000000017974000000052d312e353074000000056861707079"),
        (false, "550000401b4b00047400000001326e6e6e4e00047400000001336e74000000034e614e7400000003736164"),
        (false, "55000040224f00027400000001317400000001614e0002740000000131740000000162"),
        (false, "55000040274e000374000000013175740000000132"),
        (false, "440000401b4b00047400000001316e6e6e"),
        (false, "44000040224f0002740000000131740000000162"),
        (false, "5400000002030000401b00004022"),
        (false, "4d00000000003196f4e87100000000076f757473696465"),
        (false, "4f00000000000000ab656c7365776865726500"),
        (false, "53000002fa01"),
        (true, "59000002fa000040177075626c6963006d6f6f6400"),
        (
            true,
            "52000002fa0000401b7075626c6963006b006400040169640000000017ffffffff00760000000019ffffffff006e00000006a40008\
             0006006d0000004017ffffffff",
        ),
        (
            true,
            "49000002fa0000401b4e00047400000003313030740000000c73747265616d6564203130307400000004312e303074000000037361\
             64",
        ),
        (true, "55000002fc0000401b4e00047400000001397400000001717400000004312e30307400000003736164"),
        (true, "44000002fc0000401b4b00047400000001396e6e6e"),
        (true, "54000002fc000000010000004027"),
        (true, "4d000002fa01000000003199be00700000000009696e2073747265616d"),
        (true, "45"),
        (false, "41000002fa000002fb"),
        (false, "63000002fa00000000003199d008000000003199d180000303c4bbda2405"),
    ];

    fn unhex(text: &str) -> Vec<u8> {
        let digit = |byte: u8| (byte as char).to_digit(16).expect("hexadecimal");
        let pair = |pair: &[u8]| u8::try_from(digit(pair[0]) * 16 + digit(pair[1])).expect("a byte");
        text.as_bytes().chunks_exact(2).map(pair).collect()
    }

    fn decoder(in_block: bool) -> Decoder {
        if in_block { Decoder::within_block() } else { Decoder::new() }
    }

    fn decode(in_block: bool, payload: &[u8]) -> Result<Message<'_>, DecodeError> {
        decoder(in_block).decode(payload)
    }

    fn row(fields: &[Field<'_>], tuple: Tuple<'_>) {
        assert_eq!(tuple.len(), fields.len());
        assert_eq!(tuple.fields().len(), fields.len());
        assert_eq!(tuple.into_iter().collect::<Vec<_>>(), fields);
    }

    #[test]
    fn transaction_boundaries_carry_their_positions() {
        let begin = Message::Begin { final_lsn: 0x3196_CE48, commit_time: 0x0003_03C4_BBD9_DC37, xid: 755 };
        assert_eq!(decode(false, &unhex(CAPTURED[0].1)), Ok(begin));
        let commit =
            Message::Commit { commit_lsn: 0x3196_CE48, end_lsn: 0x3196_CE78, commit_time: 0x0003_03C4_BBD9_DC37 };
        assert_eq!(decode(false, &unhex(CAPTURED[1].1)), Ok(commit));
    }

    #[test]
    fn the_shape_of_a_table_is_decoded() {
        let payload = unhex(CAPTURED[3].1);
        let Ok(Message::Relation(relation)) = decode(false, &payload) else { panic!("not a relation") };
        assert_eq!((relation.id, relation.namespace, relation.name), (0x401B, "public", "k"));
        assert_eq!(relation.replica_identity, ReplicaIdentity::Default);
        let column = |key, name, type_oid, type_modifier| Column { key, name, type_oid, type_modifier };
        let columns = [column(true, "id", 23, -1), column(false, "v", 25, -1), column(false, "n", 1700, 0x8_0006)];
        assert_eq!(relation.columns[..3], columns);
    }

    #[test]
    fn rows_hold_nulls_texts_and_unchanged_fields() {
        let (text, null) = (|value: &'static str| Field::Text(value.as_bytes()), Field::Null);
        let insert = unhex(CAPTURED[6].1);
        let Ok(Message::Insert { xid: None, relation: 0x401B, new }) = decode(false, &insert) else { panic!() };
        row(&[text("2"), null, text("NaN"), text("sad")], new);

        let key_change = unhex(CAPTURED[8].1);
        let Ok(Message::Update { old: Some(OldTuple::Key(old)), new, .. }) = decode(false, &key_change) else {
            panic!()
        };
        row(&[text("2"), null, null, null], old);
        row(&[text("3"), null, text("NaN"), text("sad")], new);

        let full = unhex(CAPTURED[9].1);
        let Ok(Message::Update { old: Some(OldTuple::Full(old)), new, .. }) = decode(false, &full) else { panic!() };
        row(&[text("1"), text("a")], old);
        row(&[text("1"), text("b")], new);

        let toast = unhex(CAPTURED[10].1);
        let Ok(Message::Update { old: None, new, .. }) = decode(false, &toast) else { panic!() };
        row(&[text("1"), Field::Unchanged, text("2")], new);

        let binary = [b"I\0\0\0\x01N\0\x01b\0\0\0\x02".as_slice(), &[0, 255]].concat();
        let Ok(Message::Insert { new, .. }) = decode(false, &binary) else { panic!() };
        row(&[Field::Binary(&[0, 255])], new);
    }

    #[test]
    fn truncations_origins_and_messages_are_decoded() {
        let truncate =
            Message::Truncate { xid: None, cascade: true, restart_identity: true, relations: vec![0x401B, 0x4022] };
        assert_eq!(decode(false, &unhex(CAPTURED[13].1)), Ok(truncate));
        let message =
            Message::Message { xid: None, transactional: false, lsn: 0x3196_F4E8, prefix: "q", content: b"outside" };
        assert_eq!(decode(false, &unhex(CAPTURED[14].1)), Ok(message));
        let origin = Message::Origin { commit_lsn: 0xAB, name: "elsewhere" };
        assert_eq!(decode(false, &unhex(CAPTURED[15].1)), Ok(origin));
        let kind = Message::Type { xid: None, id: 0x4017, namespace: "public", name: "mood" };
        assert_eq!(decode(false, &unhex(CAPTURED[2].1)), Ok(kind));
    }

    #[test]
    fn a_streamed_block_puts_transaction_ids_on_its_messages() {
        let mut decoder = Decoder::new();
        let start = unhex("53000002fa01");
        assert_eq!(decoder.decode(&start), Ok(Message::StreamStart { xid: 762, first_segment: true }));
        for (_, payload) in CAPTURED.iter().filter(|(in_block, payload)| *in_block && *payload != "45") {
            let payload = unhex(payload);
            let xid = match decoder.decode(&payload).expect("captured") {
                Message::Insert { xid, .. } | Message::Update { xid, .. } | Message::Delete { xid, .. } => xid,
                Message::Truncate { xid, .. } | Message::Type { xid, .. } | Message::Message { xid, .. } => xid,
                Message::Relation(relation) => relation.xid,
                other => panic!("unexpected {other:?}"),
            };
            assert!(matches!(xid, Some(762 | 764)));
        }
        assert!(decoder.is_in_block());
        assert_eq!(decoder.decode(b"E"), Ok(Message::StreamStop));
        let abort = unhex("41000002fa000002fb");
        assert_eq!(decoder.decode(&abort), Ok(Message::StreamAbort { xid: 762, subxid: 763 }));
        assert!(matches!(decoder.decode(&unhex(CAPTURED[5].1)), Ok(Message::Insert { xid: None, .. })));
    }

    #[test]
    fn boundaries_inside_a_streamed_block_are_refused() {
        for index in [0, 1, 16, 25, 26] {
            let error = decode(true, &unhex(CAPTURED[index].1)).expect_err("must be refused");
            assert!(matches!(error, DecodeError::OutOfPlace { .. }), "{error}");
        }
        assert!(matches!(decode(false, b"E"), Err(DecodeError::OutOfPlace { tag: 'E', .. })));
    }

    #[test]
    fn an_unknown_kind_is_an_error_with_a_bounded_dump() {
        for tag in *b"bPKrpXZ\0\xFF" {
            let payload = [vec![tag], vec![0xAB; 200]].concat();
            let Err(DecodeError::UnknownTag { tag: found, dump }) = decode(false, &payload) else { panic!() };
            assert_eq!((found, dump.len()), (tag, 128));
            assert!(dump.ends_with("ab"));
        }
        assert_eq!(decode(false, &[]), Err(DecodeError::Empty));
    }

    #[test]
    fn malformed_messages_are_refused_without_showing_values() {
        let cases: [(&[u8], &str); 6] = [
            (b"I\0\0\0\x01N\0\x01t\0\0\0\x09secret", "a value longer than the message"),
            (b"I\0\0\0\x01N\0\x01t\xFF\xFF\xFF\xFFsecret", "a negative length"),
            (b"I\0\0\0\x01N\0\x02n", "a missing field"),
            (b"I\0\0\0\x01N\0\x01nsecret", "bytes after the end"),
            (b"I\0\0\0\x01N\0\x01?secret", "a field of unknown kind"),
            (b"Y\0\0\0\x01public\0\xFF\0", "a name that is not UTF-8"),
        ];
        for (payload, case) in cases {
            let error = decode(false, payload).expect_err(case);
            assert!(matches!(error, DecodeError::Malformed { .. }), "{case}: {error}");
            assert!(!format!("{error} {error:?}").contains("secret"), "{case}");
        }
        let insert = unhex(CAPTURED[5].1);
        assert!(!format!("{:?}", decode(false, &insert)).contains("happy"));
    }

    #[test]
    fn every_prefix_of_a_message_is_refused() {
        for (in_block, payload) in CAPTURED {
            let payload = unhex(payload);
            assert!(decode(*in_block, &payload).is_ok());
            for end in 0..payload.len() {
                assert!(decode(*in_block, &payload[..end]).is_err(), "{payload:02x?} cut at {end}");
            }
        }
    }

    #[test]
    fn mutated_messages_never_panic_and_never_yield_more_than_they_hold() {
        let seeds = CAPTURED.iter().map(|(in_block, payload)| (*in_block, unhex(payload))).collect::<Vec<_>>();
        let mut random = fastrand::Rng::with_seed(0x5EED);
        let iterations = if cfg!(debug_assertions) { 200_000 } else { 3_000_000 };
        let mut accepted = 0_u32;
        let mut payload = Vec::new();
        for _ in 0..iterations {
            let (in_block, seed) = &seeds[random.usize(..seeds.len())];
            payload.clear();
            payload.extend_from_slice(seed);
            mutate(&mut payload, &mut random);
            let in_block = in_block ^ (random.u8(..16) == 0);
            if let Ok(message) = decode(in_block, &payload) {
                accepted += 1;
                check_bounds(&message, payload.len());
            }
        }
        assert!(accepted > iterations / 20, "too few mutants are still messages: {accepted}");
    }

    fn mutate(payload: &mut Vec<u8>, random: &mut fastrand::Rng) {
        const EDGES: [u8; 10] = [0, 1, 0x7F, 0x80, 0xFF, b'n', b'u', b't', b'b', b'N'];
        for _ in 0..=random.u8(..3) {
            let at = random.usize(..=payload.len());
            match random.u8(..6) {
                0 => payload.truncate(at),
                1 => payload.insert(at, random.u8(..)),
                2 if at < payload.len() => payload[at] ^= 1 << random.u8(..8),
                3 if at < payload.len() => payload[at] = EDGES[random.usize(..EDGES.len())],
                4 if at < payload.len() => drop(payload.remove(at)),
                _ => payload.extend_from_within(at..),
            }
        }
    }

    fn check_bounds(message: &Message<'_>, length: usize) {
        let rows = match message {
            Message::Insert { new, .. } => [Some(*new), None],
            Message::Update { old, new, .. } => [Some(*new), old.map(|old| old.tuple())],
            Message::Delete { old, .. } => [Some(old.tuple()), None],
            Message::Truncate { relations, .. } => return assert!(relations.len() * 4 < length),
            Message::Relation(relation) => return assert!(relation.columns.len() * 10 < length),
            _ => return,
        };
        let mut bytes = 0;
        for row in rows.into_iter().flatten() {
            let mut fields = 0;
            for field in row {
                fields += 1;
                bytes += match field {
                    Field::Null | Field::Unchanged => 1,
                    Field::Text(value) | Field::Binary(value) => 5 + value.len(),
                };
            }
            assert_eq!(fields, row.len());
        }
        assert!(bytes < length);
    }
}
