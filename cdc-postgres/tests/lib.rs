//! The PostgreSQL source under test, a file a subject.

#![cfg(test)]

mod bank;
mod files;
mod halts;
mod main_road;
mod random;
mod semantics;
mod support;
mod types;
