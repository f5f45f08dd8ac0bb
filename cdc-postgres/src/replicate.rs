//! One incarnation of a pipeline on PostgreSQL: checks, GO, what is left to copy, then the stream (protocol D).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use lakehouse_core::commit::Control;
use lakehouse_core::copy::CopyObserver;
use lakehouse_core::error::Problem;
use lakehouse_core::finding::Severity;
use lakehouse_core::lakehouse::{Environment, Lakehouse};
use lakehouse_core::pipeline::{self, Limits};
use lakehouse_core::planted::Bug;
use lakehouse_core::position::Position;
use lakehouse_core::schema::TableSchema;
use tokio_postgres::Client;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::config::PostgresSource;
use crate::copy::{CopyTable, copy_tables};
use crate::problem::{connect_problem, wal_problem};
use crate::publication::Publications;
use crate::relation::StreamedTable;
use crate::server::{Identity, Server};
use crate::slot::{Slot, slot_lost};
use crate::stream::WalStream;
use crate::tables::{SourceTable, captured_tables};
use crate::validate::{connect, findings};
use crate::walsender::{CreatedSlot, ProtocolOptions, ProtocolVersion, Replication, Walsender};

/// How long the server may take to end the stream when the pipeline stops.
const SHUTDOWN: Duration = Duration::from_secs(5);

/// Runs until `stop`, or until something ends this incarnation; the problem's reaction says whether to come back.
pub async fn replicate(
    source: &PostgresSource,
    environment: Environment,
    limits: Limits,
    observer: Arc<dyn CopyObserver>,
    stop: CancellationToken,
) -> Result<(), Problem> {
    let start = Start::prepare(source, environment).await?;
    let running = tokio::select! {
        biased;
        () = stop.cancelled() => return Ok(()),
        running = start.go(&observer) => running?,
    };
    let Running { mut stream, lakehouse } = running;
    let result = pipeline::run(&mut stream, lakehouse, limits, stop).await;
    stream.shutdown(SHUTDOWN).await;
    result
}

/// The end of the source's WAL: what `wait --caught-up` waits for (protocol C9).
pub async fn end_of_wal(source: &PostgresSource) -> Result<Position, Problem> {
    let client = connect(source).await?;
    Ok(Server::read(&client, source).await?.end_of_wal)
}

/// What is known before anything is written.
struct Start<'a> {
    source: &'a PostgresSource,
    environment: Environment,
    /// Until GO, when the lakehouse takes it.
    control: Option<Control>,
    client: Client,
    server: Server,
    tables: Vec<SourceTable>,
    slot: Option<Slot>,
}

/// A started stream and the lake it goes into.
struct Running {
    stream: WalStream,
    lakehouse: Lakehouse,
}

impl<'a> Start<'a> {
    /// Reads both sides and refuses what cannot work. Writes nothing but a control table where there is none.
    async fn prepare(source: &'a PostgresSource, environment: Environment) -> Result<Self, Problem> {
        let client = connect(source).await?;
        let server = Server::read(&client, source).await?;
        let tables = captured_tables(&client, source).await?;
        for finding in findings(&client, source, &server, &tables).await? {
            match finding.severity {
                Severity::Error => return Err(finding.into_problem()),
                Severity::Warning => warn!(code = finding.code, subject = finding.subject, "{}", finding.message),
            }
        }
        let slot = Slot::find(&client, source).await?;
        let catalog = Arc::clone(&environment.catalog);
        let control = Control::open(catalog, environment.storage.clone(), &source.pipeline).await?;
        let start = Self { source, environment, control: Some(control), client, server, tables, slot };
        start.check()?;
        Ok(start)
    }

    /// Protocol D, before the stream has started; `go` repeats what can change behind our back.
    fn check(&self) -> Result<(), Problem> {
        let Some(cut) = &self.control().state().cut else {
            return self.check_first_start();
        };
        let stored: Identity = serde_json::from_str(&cut.source).map_err(|_| {
            let message = "the lake follows a source of another kind";
            Problem::halt("IDENTITY", &self.source.pipeline, message, "give this pipeline another name")
        })?;
        let now = Identity::new(&self.server, self.source, stored.generation);
        if let Some(difference) = stored.difference(&now) {
            let remedy =
                "point the pipeline at its own source again, or resync it from the new one; nothing was written";
            return Err(Problem::halt("IDENTITY", &self.source.pipeline, difference, remedy));
        }
        if self.server.end_of_wal < cut.position {
            let message = format!("the server's WAL ends at {}, the lake has {}", self.server.end_of_wal, cut.position);
            let remedy = "the server was restored or failed over to an earlier state: resync the pipeline";
            return Err(Problem::halt("SERVER_BEHIND", &self.source.pipeline, message, remedy));
        }
        self.check_slot(self.slot.as_ref(), cut.position)
    }

    fn control(&self) -> &Control {
        self.control.as_ref().expect("only GO takes it")
    }

    fn check_slot(&self, slot: Option<&Slot>, cut: Position) -> Result<(), Problem> {
        let slot = slot.ok_or_else(|| slot_lost(self.source, "the slot does not exist any more"))?;
        match slot.check_holds(self.source, cut) {
            Err(problem) if problem.code == "GAP" && self.environment.planted.is(Bug::NoGapCheck) => Ok(()),
            other => other,
        }
    }

    /// A slot that this lake did not create may be somebody else's.
    fn check_first_start(&self) -> Result<(), Problem> {
        let intended = self.control().state().intent.as_deref() == Some(&self.source.slot);
        match self.slot {
            Some(_) if !intended => {
                let message = "the slot exists already, and this lake knows nothing about it";
                let remedy = format!(
                    "if nobody needs it: SELECT pg_drop_replication_slot('{}'); else configure another slot name",
                    self.source.slot
                );
                Err(Problem::halt("SLOT_FOREIGN", &self.source.slot, message, remedy))
            }
            _ => Ok(()),
        }
    }

    async fn go(mut self, observer: &Arc<dyn CopyObserver>) -> Result<Running, Problem> {
        let publications = Publications::ensure(&self.client, self.source, &self.tables).await?;
        self.keep_published(&publications);
        let schemas = self.tables.iter().map(|table| table.table_schema(self.source).map(Arc::new));
        let schemas: Vec<Arc<TableSchema>> = schemas.collect::<Result<_, _>>()?;
        match self.control().state().cut.clone() {
            None => self.first_start(&publications, schemas, observer).await,
            Some(cut) => {
                let replication = self.start_stream(&publications, cut.position).await?;
                let slot = Slot::find(&self.client, self.source).await?;
                self.check_slot(slot.as_ref(), cut.position)?;
                let lakehouse = self.take_over(cut.source, cut.position, schemas.clone()).await?;
                let (lakehouse, this) = self.copy_rest(lakehouse, &publications, observer).await?;
                Ok(this.running(replication, lakehouse, schemas, cut.position))
            }
        }
    }

    /// Column lists and row filters hold for the copy as they do for the stream (R49).
    fn keep_published(&mut self, publications: &Publications) {
        self.tables.retain(|table| publications.of(table).is_some());
        for table in &mut self.tables {
            let published = publications.of(table).and_then(|published| published.columns.clone());
            if let Some(published) = published {
                table.columns.retain(|column| published.contains(&column.name));
            }
        }
    }

    /// Publication, intent, slot, GO, copy, stream (R26).
    async fn first_start(
        mut self,
        publications: &Publications,
        schemas: Vec<Arc<TableSchema>>,
        observer: &Arc<dyn CopyObserver>,
    ) -> Result<Running, Problem> {
        let adopted = self.slot.as_ref().and_then(|slot| slot.confirmed);
        let (generation, exported) = match adopted {
            // Created by an earlier incarnation that did not live to record it: its snapshot is gone, the slot is good.
            Some(generation) => (generation, None),
            None => {
                let slot = &self.source.slot;
                self.control.as_mut().expect("only GO takes it").intend(slot).await?;
                let mut walsender = self.walsender().await?;
                let created = walsender.create_slot(&self.source.slot, false).await;
                let created = created.map_err(|error| wal_problem(&self.source.slot, &error))?;
                info!(slot = self.source.slot, position = %Position::new(created.consistent_point), "slot is created");
                (Position::new(created.consistent_point), Some((walsender, created)))
            }
        };
        let identity = Identity::new(&self.server, self.source, generation).text();
        let lakehouse = self.take_over(identity, generation, schemas.clone()).await?;
        let (lakehouse, this) = match exported {
            Some((walsender, created)) => {
                let copied = self.copy_from(lakehouse, publications, &created, observer).await;
                drop(walsender); // the exported snapshot lived as long as this connection was idle
                copied?
            }
            None => self.copy_rest(lakehouse, publications, observer).await?,
        };
        let replication = this.start_stream(publications, generation).await?;
        let slot = Slot::find(&this.client, this.source).await?;
        this.check_slot(slot.as_ref(), generation)?;
        Ok(this.running(replication, lakehouse, schemas, generation))
    }

    async fn walsender(&self) -> Result<Walsender, Problem> {
        let connected = Walsender::connect(&self.source.connection).await;
        connected.map_err(|error| connect_problem(&self.source.connection.host, &error))
    }

    async fn start_stream(&self, publications: &Publications, from: Position) -> Result<Replication, Problem> {
        let timeout = u64::try_from(self.server.sender_timeout_ms).unwrap_or(0);
        let third = if timeout == 0 { Duration::from_secs(1) } else { Duration::from_millis(timeout / 3) };
        let options = ProtocolOptions { version: ProtocolVersion::V1, messages: false, binary: false };
        let walsender = self.walsender().await?;
        let names = publications.names(self.source);
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let interval = third.min(Duration::from_secs(1));
        let started = walsender.start(&self.source.slot, from.offset(), &names, options, interval).await;
        started.map_err(|error| wal_problem(&self.source.slot, &error))
    }

    /// GO. Consumes the control table: from here on it belongs to the lakehouse.
    async fn take_over(
        &mut self,
        identity: String,
        from: Position,
        schemas: Vec<Arc<TableSchema>>,
    ) -> Result<Lakehouse, Problem> {
        let control = self.control.take().expect("taken over once");
        Lakehouse::go(self.environment.clone(), control, identity, from, schemas).await
    }

    /// Tables without a finished copy get one from a snapshot of their own, at a later point: they skip what they have.
    async fn copy_rest(
        self,
        lakehouse: Lakehouse,
        publications: &Publications,
        observer: &Arc<dyn CopyObserver>,
    ) -> Result<(Lakehouse, Self), Problem> {
        if lakehouse.tables_to_copy().is_empty() {
            return Ok((lakehouse, self));
        }
        let mut walsender = self.walsender().await?;
        let name = format!("{}_copy_{}", &self.source.slot[..self.source.slot.len().min(40)], lakehouse.epoch());
        let created = walsender.create_slot(&name, true).await;
        let created = created.map_err(|error| wal_problem(&name, &error))?;
        let copied = self.copy_from(lakehouse, publications, &created, observer).await;
        drop(walsender); // and with it the temporary slot
        copied
    }

    async fn copy_from(
        self,
        mut lakehouse: Lakehouse,
        publications: &Publications,
        created: &CreatedSlot,
        observer: &Arc<dyn CopyObserver>,
    ) -> Result<(Lakehouse, Self), Problem> {
        let wanted = lakehouse.tables_to_copy();
        let find = |schema: &Arc<TableSchema>| {
            let table = self.tables.iter().find(|table| table.full_name() == schema.source)?;
            Some(CopyTable { table: table.clone(), published: publications.of(table)?.clone() })
        };
        let tables: Vec<CopyTable> = wanted.iter().filter_map(find).collect();
        let position = Position::new(created.consistent_point);
        copy_tables(self.source, &mut lakehouse, tables, &created.snapshot_name, position, observer).await?;
        Ok((lakehouse, self))
    }

    fn running(
        self,
        replication: Replication,
        lakehouse: Lakehouse,
        schemas: Vec<Arc<TableSchema>>,
        from: Position,
    ) -> Running {
        let streamed = self.tables.into_iter().zip(schemas).map(|(source, schema)| {
            let known = lakehouse.columns(&schema.source);
            let new = schema.columns.iter().filter(|column| !known.contains(&column.name));
            let unseen = new.map(|column| column.source_name.clone()).collect();
            (source.full_name(), StreamedTable { source, schema, unseen })
        });
        let tables: BTreeMap<String, StreamedTable> = streamed.collect();
        let stream = WalStream::new(replication, &self.source.slot, self.client, tables, from);
        Running { stream, lakehouse }
    }
}
