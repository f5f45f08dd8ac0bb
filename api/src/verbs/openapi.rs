//! `openapi`: the document about the HTTP service, as the service gives it.

use std::io::{self, Write};

use crate::failure::{Exit, Failure};
use crate::http::openapi;

pub(super) fn run() -> Result<Exit, Failure> {
    let mut out = io::stdout().lock();
    out.write_all(openapi::text().as_bytes())?;
    out.flush()?;
    Ok(Exit::Done)
}
