//! Every change between two points of a table's past, from its history.

use std::io::Write;

use axum::response::Response;
use lakehouse_core::change_log::Tally;
use lakehouse_core::read::Projection;
use serde_json::{Value, json};

use super::diff::Asked;
use super::pipe::{self, Pipe, Wanted};
use super::problem::HttpProblem;
use super::rows::{ended, respond, too_many};
use crate::answer;
use crate::cli::Mode;
use crate::rows::{LogOutput, head, write_log};

/// Changes of one log: where each of them stands is held in memory, in 24 bytes.
const LOG_CHANGES: u64 = 4_000_000;

impl Asked<'_> {
    pub(super) async fn log(self) -> Result<Response, HttpProblem> {
        let (service, counts, format) = (self.service, self.counts, self.format);
        service.check_scope(self.principal, &[self.table.name.history()]).await?;
        let passage = service.lake.passage(&service.config, &self.table, self.from, self.to).await?;
        // Its changes are what they are; columns may be added to its rows.
        let schema = passage.history.metadata.current_schema_id();
        let etag = self.etag(&format!("log {} {} {schema}", self.from, self.to));
        if let Some(unchanged) = etag.unchanged(self.headers) {
            return Ok(unchanged);
        }
        let permit = service.scan_permit(self.principal)?;
        let history = passage.open(&service.lake).await?;
        let columns = Projection::all(&history.schema)?.arrow;
        let intent = self.intent("log").await?;
        let mut head = head(&self.table.name, self.from, self.to, Mode::Log);
        let (most, metrics) = (service.most_rows(format, None)?.min(LOG_CHANGES), service.metrics.clone());
        let work = move |mut pipe: Pipe, wanted: &Wanted| {
            if counts {
                let tally = Tally::of(&history, passage.range, &|_| wanted.check());
                intent.outcome_now(&tally, json!({"rows": 0}));
                head.extend(answer::keys(&tally?));
                writeln!(pipe, "{}", Value::Object(head))?;
                return Ok(pipe);
            }
            let watch = |found: usize| {
                wanted.check()?;
                if found as u64 > most { Err(too_many(most)) } else { Ok(()) }
            };
            let mut output = match format.flat() {
                None => LogOutput::json(pipe, head)?,
                Some(flat) => LogOutput::flat(flat, pipe, &columns, false)?,
            };
            let written = write_log(&history, passage.range, &watch, &mut output);
            let rows = written.as_ref().map_or(0, |tally| tally.total());
            metrics.rows(rows);
            intent.outcome_now(&written, json!({"rows": rows}));
            ended(format, wanted, written, |tally| output.end(tally), |tally| json!(tally))
        };
        let answer = pipe::start(service, permit, work);
        Ok(etag.on(respond(answer, format).await?))
    }
}
