//! Keeps tables healthy. What stands so far is the first step, looking: [`health::observe`] measures a table, without
//! changing anything. Planning and acting are not part of this release.

pub mod health;
