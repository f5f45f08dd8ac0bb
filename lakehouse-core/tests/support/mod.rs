//! What the integration tests share: a scripted database with its oracle, a catalog that fails on purpose, a world that
//! runs incarnations of a worker against both, and the checks that every end must pass.
//!
//! The oracle shares no code with the product but [`lakehouse_core::position::Position`].

#![allow(unreachable_pub, reason = "shared by the tests beside it, and by nothing else")]

pub mod bank;
pub mod between;
pub mod catalog;
pub mod check;
pub mod compaction;
pub mod faults;
pub mod reading;
pub mod renamed;
pub mod rig;
pub mod script;
pub mod source;
pub mod world;

/// A rule that was broken, and which check has seen it.
#[derive(Debug)]
pub struct Violation {
    pub check: &'static str,
    pub detail: String,
}

impl Violation {
    pub fn new(check: &'static str, detail: impl Into<String>) -> Self {
        Self { check, detail: detail.into() }
    }
}

impl std::fmt::Display for Violation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "[{}] {}", self.check, self.detail)
    }
}

/// `Ok` if `holds`, else a violation of `check`.
pub fn ensure(holds: bool, check: &'static str, detail: impl FnOnce() -> String) -> Result<(), Violation> {
    if holds { Ok(()) } else { Err(Violation::new(check, detail())) }
}

/// A runtime like the product's: several threads, since committing blocks in place.
pub fn block_on<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(3).enable_all().build();
    runtime.expect("a runtime").block_on(future)
}
