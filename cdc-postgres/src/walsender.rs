//! The replication connection: a thin walsender client over `postgres-protocol`. Owns the login with
//! `replication=database`, commands, slot creation and the start of streaming. Reading the stream is `reader.rs`,
//! reporting back is `feedback.rs`, the meaning of the messages is `pgoutput.rs`.

#[cfg(test)]
mod fake;
mod feedback;
mod login;
mod reader;

pub use feedback::FeedbackHandle;
pub use reader::{WalEvent, WalReader};

use crate::connection::{self, ConnectError, ConnectionSettings, ServerError, Stream};
use crate::lsn::{self, Lsn};
use bytes::BytesMut;
use fallible_iterator::FallibleIterator as _;
use postgres_protocol::message::backend::{DataRowBody, ErrorResponseBody, Message};
use postgres_protocol::message::frontend;
use std::collections::HashMap;
use std::io;
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::timeout;

/// Bound of a message outside the replication stream. What a walsender answers to commands is far smaller.
const MAX_MESSAGE: usize = 1 << 20;
/// How long the creation of a slot may wait for one lock, such as that of an open transaction (R8).
const SLOT_LOCK_TIMEOUT: &str = "-c lock_timeout=60s";

/// Why a replication command or stream ended.
#[derive(Debug, thiserror::Error)]
pub enum WalError {
    /// The server reported an error.
    #[error("the server reported: {0}")]
    Server(ServerError),
    /// The connection broke.
    #[error("the replication connection broke: {0}")]
    Io(#[from] io::Error),
    /// The server ended the stream in good order, as it does when it shuts down.
    #[error("the server ended the replication stream")]
    Closed,
    /// The peer broke the protocol.
    #[error("the server broke the replication protocol: {0}")]
    Protocol(String),
    /// A name that cannot be that of a slot (R7).
    #[error("slot name '{0}' does not consist of 1 to 63 characters out of a-z, 0-9 and _")]
    SlotName(String),
    /// A name or command with a zero byte.
    #[error("a name or command contains a zero byte")]
    ZeroByte,
}

impl WalError {
    /// SQLSTATE, if the server sent one.
    #[must_use]
    pub fn sqlstate(&self) -> Option<&str> {
        match self {
            Self::Server(error) => Some(&error.sqlstate),
            _ => None,
        }
    }

    /// Whether trying again later can help (R25, last line).
    #[must_use]
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Io(_) | Self::Closed => true,
            Self::Server(error) => error.is_transient(),
            Self::Protocol(_) | Self::SlotName(_) | Self::ZeroByte => false,
        }
    }
}

/// What the server says of itself (IDENTIFY_SYSTEM).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SystemIdentity {
    /// Unique to the cluster.
    pub system_id: String,
    /// Current timeline.
    pub timeline: u32,
    /// Flushed position at the time of asking.
    pub flushed: u64,
    /// Database of the connection.
    pub database: String,
}

/// A slot just created.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CreatedSlot {
    /// The stream starts here, and the exported snapshot shows the state here.
    pub consistent_point: u64,
    /// For `SET TRANSACTION SNAPSHOT`; valid until the next command on this connection or its end.
    pub snapshot_name: String,
}

/// What the stream carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProtocolOptions {
    /// Version of the pgoutput protocol.
    pub version: ProtocolVersion,
    /// Whether messages of `pg_logical_emit_message` are sent.
    pub messages: bool,
    /// Whether values are sent in binary where the type can.
    pub binary: bool,
}

/// Version of the pgoutput protocol. Prepared transactions are never asked for (R36).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProtocolVersion {
    /// Transactions are sent whole, at their commit.
    V1,
    /// Large transactions are streamed while open (PostgreSQL 14 and newer).
    V2,
}

impl Default for ProtocolOptions {
    fn default() -> Self {
        Self { version: ProtocolVersion::V2, messages: true, binary: false }
    }
}

/// A replication connection that is not streaming yet.
#[derive(Debug)]
pub struct Walsender {
    stream: Stream,
    input: BytesMut,
    identity: SystemIdentity,
    parameters: HashMap<String, String>,
    /// A command was sent whose answer has not been read to its end.
    busy: bool,
}

/// A started stream: both parts may move to different tasks.
#[derive(Debug)]
pub struct Replication {
    /// What the server sends.
    pub reader: WalReader,
    /// What the server is told.
    pub feedback: FeedbackHandle,
}

impl Walsender {
    /// Connects, logs in, pins the session settings (R8) and makes sure that a walsender is at the other end.
    ///
    /// # Errors
    /// See [`ConnectError`].
    pub async fn connect(settings: &ConnectionSettings) -> Result<Self, ConnectError> {
        settings.check()?;
        let stream = connection::dial(settings).await?;
        let identity = SystemIdentity { system_id: String::new(), timeline: 0, flushed: 0, database: String::new() };
        let input = BytesMut::with_capacity(1 << 13);
        let mut walsender = Self { stream, input, identity, parameters: HashMap::new(), busy: false };
        timeout(settings.connect_timeout, walsender.open_session(settings))
            .await
            .map_err(|_| ConnectError::Timeout { step: "logging in" })??;
        Ok(walsender)
    }

    async fn open_session(&mut self, settings: &ConnectionSettings) -> Result<(), ConnectError> {
        self.login(settings).await?;
        connection::check_pinned(|name| self.parameters.get(name).map(String::as_str))?;
        self.identity = match self.identify().await {
            Ok(identity) => identity,
            // An ordinary session takes the command for bad SQL: something dropped `replication` on the way.
            Err(WalError::Server(error)) if error.sqlstate == "42601" => {
                return Err(ConnectError::Pooler("replication mode was not passed on".to_owned()));
            }
            Err(error) => return Err(into_connect_error(error)),
        };
        if let Some(sql) = connection::late_settings(self.server_major()) {
            self.simple_query(sql).await.map_err(into_connect_error)?;
        }
        Ok(())
    }

    /// Major version of the server; 0 if it did not tell.
    #[must_use]
    pub fn server_major(&self) -> u32 {
        connection::major_version(self.parameters.get("server_version").map(String::as_str))
    }

    /// The server as it described itself when the connection was made.
    #[must_use]
    pub fn identity(&self) -> &SystemIdentity {
        &self.identity
    }

    /// Asks the server for its identity and current position.
    ///
    /// # Errors
    /// See [`WalError`].
    pub async fn identify(&mut self) -> Result<SystemIdentity, WalError> {
        let rows = self.simple_query("IDENTIFY_SYSTEM").await?;
        match rows.into_iter().next().as_deref() {
            Some([Some(system_id), Some(timeline), Some(flushed), Some(database), ..]) => Ok(SystemIdentity {
                system_id: system_id.clone(),
                timeline: timeline.parse().map_err(|_| unexpected("timeline"))?,
                flushed: lsn::parse(flushed).map_err(|_| unexpected("position"))?,
                database: database.clone(),
            }),
            _ => Err(unexpected("row of IDENTIFY_SYSTEM")),
        }
    }

    /// Runs a replication command or simple SQL; returns the rows of all results in text form, `None` for NULL.
    /// Not cancel-safe: a connection whose command was abandoned refuses further ones.
    ///
    /// # Errors
    /// See [`WalError`]; after [`WalError::Server`] the connection is usable.
    pub async fn simple_query(&mut self, sql: &str) -> Result<Vec<Vec<Option<String>>>, WalError> {
        self.send_query(sql).await?;
        let mut rows = Vec::new();
        let mut failure = None;
        loop {
            let mut frame = self.frame().await?;
            match parse(&mut frame)? {
                Message::DataRow(row) => rows.push(text_row(&row)?),
                Message::ErrorResponse(body) => failure = Some(server_error(&body)),
                Message::ReadyForQuery(_) => break,
                Message::ParameterStatus(_)
                | Message::NoticeResponse(_)
                | Message::RowDescription(_)
                | Message::CommandComplete(_)
                | Message::EmptyQueryResponse => {}
                _ => return Err(unexpected("answer to a command")),
            }
        }
        self.busy = false;
        failure.map_or(Ok(rows), |error| Err(WalError::Server(error)))
    }

    /// Creates a logical slot with an exported snapshot (R26). Waits for transactions that are open on the server; each
    /// wait is bounded by `lock_timeout` (60 s, 55P03).
    ///
    /// # Errors
    /// See [`WalError`].
    pub async fn create_slot(&mut self, name: &str, temporary: bool) -> Result<CreatedSlot, WalError> {
        let slot = quoted_slot(name)?;
        let temporary = if temporary { " TEMPORARY" } else { "" };
        let snapshot = if self.server_major() >= 15 { "(SNAPSHOT 'export')" } else { "EXPORT_SNAPSHOT" };
        let sql = format!("CREATE_REPLICATION_SLOT {slot}{temporary} LOGICAL pgoutput {snapshot}");
        let rows = self.simple_query(&sql).await?;
        match rows.into_iter().next().as_deref() {
            Some([_, Some(point), Some(snapshot), ..]) => Ok(CreatedSlot {
                consistent_point: lsn::parse(point).map_err(|_| unexpected("consistent point"))?,
                snapshot_name: snapshot.clone(),
            }),
            _ => Err(unexpected("row of CREATE_REPLICATION_SLOT")),
        }
    }

    /// Drops a slot, after waiting for its present user to leave.
    ///
    /// # Errors
    /// See [`WalError`].
    pub async fn drop_slot(&mut self, name: &str) -> Result<(), WalError> {
        let sql = format!("DROP_REPLICATION_SLOT {} WAIT", quoted_slot(name)?);
        self.simple_query(&sql).await.map(drop)
    }

    /// Starts streaming at `start` (0: where the slot stands). The server moves a start below the slot's confirmed
    /// position forward without a word; the caller compares positions (R32). Must be called within a tokio runtime.
    ///
    /// `interval` is the pace of status messages (R27).
    ///
    /// # Errors
    /// See [`WalError`].
    pub async fn start(
        mut self,
        slot: &str,
        start: u64,
        publications: &[&str],
        options: ProtocolOptions,
        interval: Duration,
    ) -> Result<Replication, WalError> {
        let sql = start_command(slot, start, publications, options)?;
        self.send_query(&sql).await?;
        loop {
            let mut frame = self.frame().await?;
            if frame.first() == Some(&b'W') {
                break;
            }
            match parse(&mut frame)? {
                Message::ErrorResponse(body) => return Err(WalError::Server(server_error(&body))),
                Message::NoticeResponse(_) | Message::ParameterStatus(_) => {}
                _ => return Err(unexpected("answer to START_REPLICATION")),
            }
        }
        self.stream.collect()?;
        let (read, write) = tokio::io::split(self.stream);
        let (feedback, shared) = feedback::spawn(write, start, interval);
        Ok(Replication { reader: WalReader::new(read, self.input, shared), feedback })
    }

    async fn send_query(&mut self, sql: &str) -> Result<(), WalError> {
        if self.busy {
            return Err(WalError::Protocol("an earlier command was abandoned".to_owned()));
        }
        let mut output = BytesMut::new();
        frontend::query(sql, &mut output).map_err(|_| WalError::ZeroByte)?;
        self.busy = true;
        self.stream.write_all(&output).await?;
        self.stream.flush().await?;
        Ok(())
    }

    /// Reads one whole message. Its length is checked before anything is allocated for it.
    async fn frame(&mut self) -> Result<BytesMut, WalError> {
        loop {
            if let Some(length) = reader::frame_length(&self.input, MAX_MESSAGE)?
                && self.input.len() >= length
            {
                return Ok(self.input.split_to(length));
            }
            self.input.reserve(1 << 12);
            if self.stream.read_buf(&mut self.input).await? == 0 {
                return Err(WalError::Io(io::ErrorKind::UnexpectedEof.into()));
            }
        }
    }
}

impl Replication {
    /// Ends the stream in good order; see [`FeedbackHandle::shutdown`].
    ///
    /// # Errors
    /// See [`WalError`].
    pub async fn shutdown(self, limit: Duration) -> Result<(), WalError> {
        self.feedback.shutdown(self.reader, limit).await
    }
}

fn start_command(slot: &str, start: u64, publications: &[&str], options: ProtocolOptions) -> Result<String, WalError> {
    let (slot, start) = (quoted_slot(slot)?, Lsn(start));
    // The option is a literal that holds a list of identifiers, so each name is quoted twice.
    let names: Vec<String> = publications.iter().map(|name| quoted(name, '"')).collect();
    let publications = quoted(&names.join(","), '\'');
    let version = match options.version {
        ProtocolVersion::V1 => "'1'",
        ProtocolVersion::V2 => "'2', streaming 'on'",
    };
    let messages = if options.messages { ", messages 'true'" } else { "" };
    let binary = if options.binary { ", binary 'true'" } else { "" };
    Ok(format!(
        "START_REPLICATION SLOT {slot} LOGICAL {start} \
         (proto_version {version}, publication_names {publications}{messages}{binary})"
    ))
}

fn quoted(text: &str, quote: char) -> String {
    let mut result = String::with_capacity(text.len() + 2);
    result.push(quote);
    for character in text.chars() {
        if character == quote {
            result.push(quote);
        }
        result.push(character);
    }
    result.push(quote);
    result
}

fn quoted_slot(name: &str) -> Result<String, WalError> {
    let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_';
    if (1..=63).contains(&name.len()) && name.bytes().all(allowed) {
        Ok(quoted(name, '"'))
    } else {
        Err(WalError::SlotName(name.to_owned()))
    }
}

fn text_row(row: &DataRowBody) -> Result<Vec<Option<String>>, WalError> {
    let buffer = row.buffer();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    row.ranges()
        .map(|range| Ok(range.and_then(|range| buffer.get(range)).map(text)))
        .collect()
        .map_err(|error| WalError::Protocol(error.to_string()))
}

/// Parses a frame that is known to be whole.
fn parse(frame: &mut BytesMut) -> Result<Message, WalError> {
    match Message::parse(frame) {
        Ok(Some(message)) => Ok(message),
        Ok(None) => Err(WalError::Protocol("a message is shorter than it says".to_owned())),
        Err(error) => Err(WalError::Protocol(error.to_string())),
    }
}

fn server_error(body: &ErrorResponseBody) -> ServerError {
    let mut error = ServerError { sqlstate: String::new(), message: String::new(), hint: None, routine: None };
    let mut fields = body.fields();
    // A field that cannot be read ends the walk: what came before it is still the server's error.
    while let Ok(Some(field)) = fields.next() {
        let text = String::from_utf8_lossy(field.value_bytes()).into_owned();
        match field.type_() {
            b'C' => error.sqlstate = text,
            b'M' => error.message = text,
            b'H' => error.hint = Some(text),
            b'R' => error.routine = Some(text),
            _ => {}
        }
    }
    error
}

fn unexpected(what: &str) -> WalError {
    WalError::Protocol(format!("unexpected {what}"))
}

fn into_connect_error(error: WalError) -> ConnectError {
    match error {
        WalError::Server(error) => ConnectError::from_server(error, true),
        WalError::Io(error) => ConnectError::Io(error),
        other => ConnectError::Protocol(other.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_quoted_so_that_they_stay_names() {
        let v1 = ProtocolOptions { version: ProtocolVersion::V1, messages: false, binary: false };
        assert_eq!(
            start_command("s_1", 0x1_0000_00AB, &["a\"b'c,d.É"], v1).expect("valid"),
            "START_REPLICATION SLOT \"s_1\" LOGICAL 1/AB (proto_version '1', publication_names '\"a\"\"b''c,d.É\"')"
        );
        let all = ProtocolOptions { binary: true, ..ProtocolOptions::default() };
        assert_eq!(
            start_command("s", 0, &["p", "q,\"'"], all).expect("valid"),
            "START_REPLICATION SLOT \"s\" LOGICAL 0/0 \
             (proto_version '2', streaming 'on', publication_names '\"p\",\"q,\"\"''\"', messages 'true', binary 'true')"
        );
    }

    #[test]
    fn only_what_the_server_takes_for_a_slot_name_is_one() {
        assert!(quoted_slot("lakehouse_0").is_ok());
        assert!(quoted_slot(&"a".repeat(63)).is_ok());
        for name in ["", "A", "a b", "a\"b", "a;b", "é", "a-b", "a.b", "a\0", &"a".repeat(64)] {
            assert!(matches!(quoted_slot(name), Err(WalError::SlotName(_))), "{name:?}");
        }
    }

    #[test]
    fn a_damaged_error_message_keeps_what_was_readable() {
        let mut frame = BytesMut::from(&b"E\0\0\0\x18C55006\0Mslot is act"[..]);
        frame[4] = u8::try_from(frame.len() - 1).expect("short");
        match parse(&mut frame).expect("whole") {
            Message::ErrorResponse(body) => {
                let error = server_error(&body);
                assert_eq!(error.sqlstate, "55006");
                assert!(error.is_transient());
            }
            _ => panic!("not an error"),
        }
    }
}
