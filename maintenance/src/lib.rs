//! Tables that stay fast under a writer that never stops: `observe` → `plan` → act → check.
//!
//! Planning is pure: it sees what [`view`] has looked up, and says exactly what would be touched. What acts commits through
//! the core's [`Maintainer`](lakehouse_core::commit::Maintainer) and moves no position (protocol F). This crate knows no
//! source and no pipeline, beyond the cuts whose snapshots it must not take away.

pub mod budget;
pub mod clean;
pub mod compact;
pub mod expire;
pub mod foreign;
pub mod health;
pub mod plan;
pub mod run;
pub mod runs;
pub mod spark;
pub mod view;
