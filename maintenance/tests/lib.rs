//! Maintenance under test, a file a subject.

#![cfg(test)]

mod interleavings;
mod killed;
mod public_bugs;
mod support;
mod tags;
mod time_travel;
