//! The change stream of a database as a [`ChangeSource`]: pgoutput messages in, chunks and boundaries out.
//!
//! Transactions come whole and in commit order. Rows of many small transactions share a chunk; a chunk goes out when it
//! is large, or at the next commit after [`LINGER`]. A keepalive between transactions is a boundary (protocol C3): the
//! server has nothing more for this stream before it.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::time::Duration;

use lakehouse_core::change::{Operation, Origin};
use lakehouse_core::commit::DurablePosition;
use lakehouse_core::error::Problem;
use lakehouse_core::position::Position;
use lakehouse_core::source::{ChangeSource, SourceEvent};
use tokio::time::Instant;
use tokio_postgres::Client;
use tracing::warn;

use crate::chunk::{ChunkBuilder, RowError, commit_position};
use crate::pgoutput::{Decoder, Message};
use crate::problem::{sql_problem, wal_problem};
use crate::relation::{Judgement, Shape, StreamedTable};
use crate::tables::describe_column;
use crate::walsender::{Replication, WalEvent};

/// Bytes off the wire after which a chunk goes out, also in the middle of a transaction.
const CHUNK_BYTES: usize = 4 << 20;
/// How long committed changes wait for company: a quarter of the shortest commit interval. Every chunk costs its columns
/// once more when it is written, so small ones are dear.
const LINGER: Duration = Duration::from_millis(250);
/// Messages handled before other tasks get their turn.
const MESSAGES_AT_ONCE: usize = 4_096;
/// Microseconds from 1970 to 2000, where PostgreSQL's clock begins.
const POSTGRES_EPOCH: i64 = 946_684_800_000_000;

/// A started stream.
pub(crate) struct WalStream {
    replication: Replication,
    slot: String,
    decoder: Decoder,
    /// For types of columns that are added while streaming.
    client: Client,
    tables: BTreeMap<String, StreamedTable>,
    /// By oid, what has been announced.
    relations: HashMap<u32, Route>,
    transaction: Option<Transaction>,
    /// A new shape whose types are not looked up yet, and the message behind it waits.
    waiting: Option<Announced>,
    events: VecDeque<SourceEvent>,
    /// End of the last transaction, or a keepalive behind it.
    reached: Position,
    /// The last boundary that went out.
    told: Position,
    pending_bytes: usize,
    pending_since: Option<Instant>,
}

struct Announced {
    oid: u32,
    table: String,
    shape: Shape,
    added: Vec<(String, u32, i32, bool)>,
}

/// Where rows of an announced table go.
enum Route {
    /// Not captured, or halted.
    Nowhere,
    Table {
        name: String,
        shape: Shape,
        builder: Box<ChunkBuilder>,
    },
}

struct Transaction {
    commit: Position,
    committed_at: i64,
    id: i64,
    ordinal: i32,
}

impl Transaction {
    fn next_origin(&mut self) -> Origin {
        let ordinal = self.ordinal;
        self.ordinal = ordinal.saturating_add(1);
        Origin { commit: self.commit, committed_at: self.committed_at, transaction: self.id, ordinal }
    }
}

impl WalStream {
    /// `from` is the cut's position, compared with the slot's: the server may hear it at once.
    pub(crate) fn new(
        replication: Replication,
        slot: &str,
        client: Client,
        tables: BTreeMap<String, StreamedTable>,
        from: Position,
    ) -> Self {
        replication.feedback.durable(from.offset());
        Self {
            replication,
            slot: slot.to_owned(),
            decoder: Decoder::new(),
            client,
            tables,
            relations: HashMap::new(),
            transaction: None,
            waiting: None,
            events: VecDeque::new(),
            reached: from,
            told: from,
            pending_bytes: 0,
            pending_since: None,
        }
    }

    /// Ends the stream in good order: the server hears the durable position once more (R68).
    pub(crate) async fn shutdown(self, limit: Duration) {
        if let Err(error) = self.replication.shutdown(limit).await {
            warn!(%error, "replication did not end in good order");
        }
    }

    fn handle(&mut self, event: WalEvent) -> Result<(), Problem> {
        match event {
            WalEvent::Keepalive { end, .. } => {
                if self.transaction.is_none() {
                    self.reached = self.reached.max(Position::new(end));
                }
                Ok(())
            }
            WalEvent::Data { payload, .. } => {
                // The decoder is stateless between transactions; taking it out lets the message borrow the payload only.
                let mut decoder = std::mem::take(&mut self.decoder);
                let message = decoder.decode(&payload).map_err(|error| self.protocol(&error.to_string()));
                self.decoder = decoder;
                self.message(message?)
            }
        }
    }

    fn message(&mut self, message: Message<'_>) -> Result<(), Problem> {
        match message {
            Message::Begin { final_lsn, commit_time, xid } => {
                self.transaction = Some(Transaction {
                    commit: commit_position(final_lsn),
                    committed_at: commit_time.saturating_add(POSTGRES_EPOCH),
                    id: i64::from(xid),
                    ordinal: 0,
                });
            }
            Message::Commit { end_lsn, .. } => {
                self.transaction = None;
                self.reached = self.reached.max(Position::new(end_lsn));
            }
            Message::Relation(relation) => self.announce(&relation),
            Message::Insert { relation, new, .. } => {
                self.row(relation, |builder, origin| builder.insert(origin, &new))?
            }
            Message::Update { relation, old, new, .. } => {
                self.row(relation, |builder, origin| builder.update(origin, old.as_ref(), &new))?;
            }
            Message::Delete { relation, old, .. } => {
                self.row(relation, |builder, origin| builder.delete(origin, &old))?;
            }
            Message::Truncate { relations, .. } => {
                for relation in relations {
                    self.row(relation, |builder, origin| {
                        builder.truncate(origin);
                        Ok(())
                    })?;
                }
            }
            Message::Origin { .. } | Message::Type { .. } | Message::Message { .. } => {}
            Message::StreamStart { .. }
            | Message::StreamStop
            | Message::StreamCommit { .. }
            | Message::StreamAbort { .. } => return Err(self.protocol("an open transaction was streamed unasked")),
        }
        Ok(())
    }

    /// One change of a captured table; of any other it is passed over, but counted.
    fn row(
        &mut self,
        relation: u32,
        append: impl FnOnce(&mut ChunkBuilder, Origin) -> Result<(), RowError>,
    ) -> Result<(), Problem> {
        let Some(transaction) = &mut self.transaction else {
            return Err(self.protocol("a row came outside a transaction"));
        };
        let origin = transaction.next_origin();
        let Some(route) = self.relations.get_mut(&relation) else {
            return Err(self.protocol("a row came before its table was announced"));
        };
        let Route::Table { name, builder, .. } = route else {
            return Ok(());
        };
        let before = builder.bytes();
        match append(builder, origin) {
            Ok(()) => {
                self.pending_bytes += builder.bytes() - before + size_of::<Operation>() + size_of::<Origin>();
                self.pending_since.get_or_insert_with(Instant::now);
                Ok(())
            }
            Err(error) => {
                let name = name.clone();
                let code = match error {
                    RowError::KeyOverflow(_) => "KEY_UNMAPPABLE",
                    RowError::Value { .. } | RowError::Columns => "ROW_UNREADABLE",
                };
                self.halt(&name, code, error.to_string());
                Ok(())
            }
        }
    }

    fn announce(&mut self, relation: &crate::pgoutput::Relation<'_>) {
        let name = format!("{}.{}", relation.namespace, relation.name);
        let shape = Shape::of(relation);
        let Some(table) = self.tables.get(&name) else {
            self.relations.insert(relation.id, Route::Nowhere);
            return;
        };
        if let Some(Route::Table { shape: known, .. }) = self.relations.get(&relation.id)
            && *known == shape
        {
            return;
        }
        if table.source.oid != relation.id {
            self.relations.insert(relation.id, Route::Nowhere);
            self.halt(&name, "DETACHED", "the table was dropped and created again".to_owned());
            return;
        }
        match table.judge(&shape) {
            Judgement::Known => self.route(relation.id, name, shape),
            Judgement::Added(added) => {
                self.waiting = Some(Announced { oid: relation.id, table: name, shape, added });
            }
            Judgement::Refused(reason) => {
                self.relations.insert(relation.id, Route::Nowhere);
                self.halt(&name, "SCHEMA_CHANGED", reason);
            }
        }
    }

    /// Rows of the old shape go out first; rows of the new one are collected by a builder of their own.
    fn route(&mut self, oid: u32, name: String, shape: Shape) {
        if let Some(Route::Table { builder, .. }) = self.relations.get_mut(&oid)
            && builder.has_changes()
        {
            self.events.push_back(SourceEvent::Changes(builder.finish()));
        }
        let table = self.tables.get_mut(&name).expect("announced tables are captured");
        let builder = Box::new(table.builder(&shape));
        self.relations.insert(oid, Route::Table { name, shape, builder });
    }

    /// Looks up the types of added columns. Cancelled, it begins again.
    async fn add_columns(&mut self) -> Result<(), Problem> {
        let Some(waiting) = &self.waiting else { return Ok(()) };
        let table = &self.tables[&waiting.table];
        let time_as_string = table.source.options.time_as_string;
        let mut columns = Vec::new();
        for (name, oid, typmod, key) in &waiting.added {
            let column = describe_column(&self.client, name, *oid, *typmod, *key, time_as_string).await;
            columns.push(column.map_err(|error| sql_problem(&waiting.table, &error))?);
        }
        let Announced { oid, table, shape, .. } = self.waiting.take().expect("looked at above");
        self.tables.get_mut(&table).expect("announced tables are captured").add_columns(columns);
        self.route(oid, table, shape);
        Ok(())
    }

    /// The table leaves the stream; what it had before this transaction is whole and stays.
    fn halt(&mut self, name: &str, code: &'static str, reason: String) {
        for route in self.relations.values_mut() {
            if matches!(route, Route::Table { name: routed, .. } if routed == name) {
                *route = Route::Nowhere;
            }
        }
        self.tables.remove(name);
        let event = SourceEvent::TableHalted { table: name.to_owned(), position: self.told, code, reason };
        self.events.push_back(event);
    }

    fn flush(&mut self) {
        for route in self.relations.values_mut() {
            if let Route::Table { builder, .. } = route
                && builder.has_changes()
            {
                self.events.push_back(SourceEvent::Changes(builder.finish()));
            }
        }
        self.pending_bytes = 0;
        self.pending_since = None;
        self.tell_boundary();
    }

    fn tell_boundary(&mut self) {
        if self.transaction.is_none() && self.reached > self.told {
            self.told = self.reached;
            self.events.push_back(SourceEvent::Boundary(self.reached.into()));
        }
    }

    /// Between transactions, what lingered long enough goes out.
    fn is_due(&self) -> bool {
        let lingered = self.pending_since.is_some_and(|since| since.elapsed() >= LINGER);
        self.pending_bytes >= CHUNK_BYTES || (self.transaction.is_none() && lingered)
    }

    fn protocol(&self, message: &str) -> Problem {
        Problem::halt("PROTOCOL", &self.slot, message.to_owned(), "report this with the server's version")
    }
}

impl ChangeSource for WalStream {
    async fn next(&mut self) -> Result<SourceEvent, Problem> {
        loop {
            if let Some(event) = self.events.pop_front() {
                return Ok(event);
            }
            self.add_columns().await?;
            let mut handled = 0;
            while handled < MESSAGES_AT_ONCE && self.waiting.is_none() && self.pending_bytes < CHUNK_BYTES {
                let event = self.replication.reader.try_next().map_err(|error| wal_problem(&self.slot, &error))?;
                let Some(event) = event else { break };
                self.handle(event)?;
                handled += 1;
            }
            if self.is_due() {
                self.flush();
            } else if self.pending_since.is_none() {
                self.tell_boundary();
            }
            if !self.events.is_empty() || self.waiting.is_some() {
                continue;
            }
            if handled == MESSAGES_AT_ONCE {
                tokio::task::yield_now().await;
                continue;
            }
            let linger = self.pending_since.filter(|_| self.transaction.is_none()).map(|since| since + LINGER);
            let lingered = async {
                match linger {
                    Some(until) => tokio::time::sleep_until(until).await,
                    None => std::future::pending().await,
                }
            };
            // Either may be dropped: the reader keeps what it has read, the timer is made anew.
            tokio::select! {
                event = self.replication.reader.next() => {
                    let event = event.map_err(|error| wal_problem(&self.slot, &error))?;
                    self.handle(event)?;
                }
                () = lingered => {}
            }
        }
    }

    fn acknowledge(&self, durable: &DurablePosition) {
        self.replication.feedback.durable(durable.get().offset());
    }
}
