//! The private PostgreSQL of one bench: its slots, its positions, and its own clients as reference.
//!
//! Not here: the cluster itself (testkit) and what is written into it.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use testkit::postgres::{Cluster, Options};

use crate::Result;
use crate::process::{self, Process};

const DATABASE: &str = "postgres";
const DEFAULT_BINARIES: &str = "/usr/lib/postgresql/15/bin";
/// How long a client may take to start streaming, or a server to notice that one has gone.
const PATIENCE: Duration = Duration::from_secs(60);

/// Settings that keep the server's own background work out of the figures.
const CONFIG: [&str; 7] = [
    "shared_buffers = 512MB",
    "max_wal_size = 64GB",
    "checkpoint_timeout = 1h",
    "autovacuum = off",
    "jit = off",
    "max_parallel_workers_per_gather = 0",
    "maintenance_work_mem = 256MB",
];

pub(crate) struct Server {
    cluster: Cluster,
}

impl Server {
    pub(crate) async fn start() -> Self {
        let config = CONFIG.map(str::to_owned).to_vec();
        Self { cluster: Cluster::start(Options { config, unsafe_but_fast: true, certificate: None }).await }
    }

    pub(crate) fn port(&self) -> u16 {
        self.cluster.port()
    }

    pub(crate) fn password(&self) -> &str {
        self.cluster.superuser_password()
    }

    /// Any number of statements.
    pub(crate) async fn sql(&self, text: &str) -> Result<Vec<Vec<Option<String>>>> {
        self.cluster.try_sql(DATABASE, text).await.map_err(|error| {
            let reason = error.as_db_error().map_or_else(|| error.to_string(), ToString::to_string);
            format!("{reason}, in {}", text.chars().take(200).collect::<String>()).into()
        })
    }

    async fn value(&self, text: &str) -> Result<String> {
        let rows = self.sql(text).await?;
        let value = rows.into_iter().flatten().next().flatten();
        Ok(value.ok_or_else(|| format!("no value from {text}"))?)
    }

    /// Everything written so far ends here.
    pub(crate) async fn position(&self) -> Result<u64> {
        parse_position(&self.value("SELECT pg_current_wal_insert_lsn()").await?)
    }

    /// Makes `to` a slot that delivers the same WAL as `from`; an earlier `to` is dropped.
    pub(crate) async fn copy_slot(&self, from: &str, to: &str) -> Result<()> {
        self.drop_slot(to).await?;
        self.sql(&format!("SELECT pg_copy_logical_replication_slot('{from}', '{to}')")).await?;
        Ok(())
    }

    /// Drops a slot, if there is one, as soon as its last client has been noticed to be gone.
    pub(crate) async fn drop_slot(&self, slot: &str) -> Result<()> {
        let begun = Instant::now();
        while self.is_active(slot).await? {
            if begun.elapsed() > PATIENCE {
                return Err(format!("slot {slot} is still in use").into());
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let sql = "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name =";
        self.sql(&format!("{sql} '{slot}'")).await?;
        Ok(())
    }

    /// Waits until `client` streams from the slot.
    pub(crate) async fn streams(&self, slot: &str, client: &Process) -> Result<()> {
        let begun = Instant::now();
        let connection = self.cluster.connect(DATABASE).await;
        let sql = "SELECT EXISTS (SELECT FROM pg_replication_slots WHERE slot_name = $1 AND active)";
        let statement = connection.prepare(sql).await?;
        while !connection.query_one(&statement, &[&slot]).await?.get::<_, bool>(0) {
            client.must_run()?;
            if begun.elapsed() > PATIENCE {
                return Err(client.failure(&format!("does not stream within {PATIENCE:?}")));
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        Ok(())
    }

    async fn is_active(&self, slot: &str) -> Result<bool> {
        let sql = "SELECT EXISTS (SELECT FROM pg_replication_slots WHERE active AND slot_name =";
        Ok(self.value(&format!("{sql} '{slot}')")).await? == "t")
    }

    /// PostgreSQL's stream client, which throws everything away from `slot` to `end`.
    pub(crate) fn recvlogical(&self, slot: &str, publication: &str, end: u64, folder: &Path) -> Result<Process> {
        let mut command = self.client("pg_recvlogical");
        command.args(["--start", "--no-loop", "-f", "/dev/null", "-o", "proto_version=1", "-S", slot]);
        command.args(["-o", &format!("publication_names={publication}")]);
        command.arg(format!("--endpos={}", format_position(end)));
        Process::start("pg_recvlogical", &mut command, folder.join("pg_recvlogical.log"))
    }

    /// One connection that copies a table to nowhere, in binary.
    pub(crate) fn copy_to_nowhere(&self, table: &str, folder: &Path) -> Result<Process> {
        let mut command = self.client("psql");
        command.args(["-X", "-q", "-c", &format!("COPY {table} TO STDOUT (FORMAT binary)")]);
        Process::start("psql", &mut command, folder.join("psql.log"))
    }

    fn client(&self, program: &str) -> Command {
        let binaries = std::env::var_os("LAKEHOUSE_POSTGRES_BIN").map_or(DEFAULT_BINARIES.into(), PathBuf::from);
        let mut command = process::command(&binaries.join(program));
        command.args(["-h", "127.0.0.1", "-p", &self.port().to_string(), "-U", "postgres", "-w"]);
        command.args(["-d", &format!("dbname={DATABASE} sslmode=disable gssencmode=disable")]);
        command.env("PGPASSWORD", self.password());
        command
    }
}

/// From the form of write-ahead logs, `16/B374D848`.
pub(crate) fn parse_position(text: &str) -> Result<u64> {
    let half = |digits: &str| u32::from_str_radix(digits, 16).ok().map(u64::from);
    let parsed = text.split_once('/').and_then(|(high, low)| Some((half(high)? << 32) | half(low)?));
    Ok(parsed.ok_or_else(|| format!("{text:?} is not a position"))?)
}

fn format_position(position: u64) -> String {
    format!("{:X}/{:X}", position >> 32, position & 0xFFFF_FFFF)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_position_survives_its_text() {
        for position in [0, 0xFFFF_FFFF, 0x16_B374_D848] {
            assert_eq!(parse_position(&format_position(position)).expect("a position"), position);
        }
        for wrong in ["", "1", "1/", "1/x", "1/123456789"] {
            assert!(parse_position(wrong).is_err(), "{wrong}");
        }
    }
}
