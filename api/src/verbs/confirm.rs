//! Asking a person before something is done that readers will see.

use std::io::{self, IsTerminal, Write};

use crate::failure::Failure;

/// A person says yes, or has said so before.
///
/// # Errors
/// `NOT_CONFIRMED`: nothing was changed.
pub(super) fn confirm(verb: &str, said_before: bool) -> Result<(), Failure> {
    if said_before {
        return Ok(());
    }
    let refused = |message: &str| {
        Failure::usage("NOT_CONFIRMED", verb, message, "answer yes, or give --yes; nothing was changed")
    };
    if !io::stdin().is_terminal() {
        return Err(refused("nobody can be asked"));
    }
    write!(io::stderr().lock(), "Type yes to go on: ")?;
    let mut said = String::new();
    io::stdin().read_line(&mut said)?;
    match said.trim() {
        "yes" => Ok(()),
        _ => Err(refused("it was not confirmed")),
    }
}

/// Who asks, as far as the system says.
pub(super) fn asker() -> String {
    let named = |key: &str| std::env::var(key).ok().filter(|name| !name.is_empty());
    named("USER").or_else(|| named("LOGNAME")).unwrap_or_else(|| "unknown".to_owned())
}
