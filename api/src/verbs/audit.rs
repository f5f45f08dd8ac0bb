//! `audit verify`: whether the audit trail is still what was written. Reads one file, and needs neither catalog nor source.

use std::path::Path;

use serde::Serialize;

use super::Context;
use crate::answer::{self, or_dash};
use crate::audit::{self, Expected, Report};
use crate::cli::AuditVerify;
use crate::failure::{Exit, Failure};

#[derive(Serialize)]
struct Answer<'a> {
    file: String,
    #[serde(flatten)]
    report: &'a Report,
}

/// The trail that the configuration names.
pub(super) fn verify_configured(context: &Context, arguments: &AuditVerify) -> Result<Exit, Failure> {
    let config = context.config.audit.as_ref().ok_or_else(|| {
        let remedy = "name the file of a trail, or add [audit] with file to the configuration";
        Failure::usage("CONFIG_MISSING_KEY", "[audit]", "no audit trail is configured", remedy)
    })?;
    verify(&config.file, arguments, context.json)
}

pub(super) fn verify(file: &Path, arguments: &AuditVerify, json: bool) -> Result<Exit, Failure> {
    let expected = Expected { head: arguments.expect_head.clone(), at_least: arguments.expect_at_least };
    let report = audit::verify(file, &expected)?;
    match json {
        true => answer::json(&Answer { file: file.display().to_string(), report: &report })?,
        false => print(&report)?,
    }
    Ok(if report.flaw.is_none() { Exit::Done } else { Exit::Different })
}

fn print(report: &Report) -> Result<(), Failure> {
    let Report { verdict, entries, sequence, hash, at, line, flaw } = report;
    if let Some(flaw) = flaw {
        let place = line.map_or_else(|| "the trail".to_owned(), |line| format!("line {line}"));
        answer::line(&format!("{place}: {flaw}"))?;
    }
    // A time is the file's own text.
    let at = answer::shown(&or_dash(at.as_ref()));
    answer::line(&format!("{entries} entries hold; the last is {sequence}, of {at}, with the hash {hash}"))?;
    answer::line(&format!("verdict: {verdict}"))
}
