//! Maintenance under test, a file a subject.

#![cfg(test)]

mod health;
mod interleavings;
mod killed;
mod other_engines;
mod public_bugs;
mod read_cost;
mod support;
mod tags;
mod time_travel;
