//! From the errors of this crate's layers to what operators see: one code, one fact, one remedy.

use lakehouse_core::error::{Problem, Reaction};

use crate::connection::ConnectError;
use crate::walsender::WalError;

pub(crate) fn connect_problem(subject: &str, error: &ConnectError) -> Problem {
    Problem {
        code: error.code(),
        message: error.to_string(),
        subject: subject.to_owned(),
        remedy: error.remedy().to_string(),
        reaction: if error.is_transient() { Reaction::Retry } else { Reaction::Halt },
    }
}

pub(crate) fn wal_problem(subject: &str, error: &WalError) -> Problem {
    let (code, remedy) = match error.sqlstate() {
        Some("55006") => ("SLOT_BUSY", "nothing: another worker reads the slot; this one waits for its turn"),
        Some("55000") => ("SLOT_LOST", "the slot is lost: resync the pipeline with a new slot"),
        Some("42704") => ("PUBLICATION_MISSING", "create the publication; if it was made after the slot, resync"),
        Some("42501") => ("ROLE_REPLICATION", "grant the role REPLICATION (on RDS: rds_replication)"),
        Some("53400" | "53300") => ("SLOTS", "raise max_replication_slots or max_wal_senders, or drop unused slots"),
        Some("55P03") => ("SLOT_BLOCKED", "end the transactions that have been open for long; the worker tries again"),
        _ => ("WAL", "nothing: the worker connects again by itself"),
    };
    let reaction = match code {
        "SLOT_BUSY" | "SLOT_BLOCKED" => Reaction::Retry,
        "WAL" if error.is_transient() => Reaction::Retry,
        _ => Reaction::Halt,
    };
    Problem { code, message: error.to_string(), subject: subject.to_owned(), remedy: remedy.to_owned(), reaction }
}

pub(crate) fn sql_problem(subject: &str, error: &tokio_postgres::Error) -> Problem {
    let Some(server) = error.as_db_error() else {
        return Problem::retry("SQL", subject, format!("the SQL connection failed: {error}"));
    };
    let message = format!("the server refused a query: {} (SQLSTATE {})", server.message(), server.code().code());
    let state = server.code().code();
    if state.starts_with("08") || matches!(state, "57P01" | "57P02" | "57P03" | "53300" | "55P03" | "40001") {
        return Problem::retry("SQL", subject, message);
    }
    match state {
        "42501" => Problem::halt("PERM", subject, message, "run `lakehouse validate`: it prints the missing GRANT"),
        _ => Problem::halt("SQL", subject, message, "run `lakehouse validate`; report this if it finds nothing"),
    }
}
