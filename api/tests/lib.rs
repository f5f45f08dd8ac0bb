//! The binary under test, a file a subject.

#![cfg(test)]

mod answers;
mod app_data;
mod bad_input;
mod big_transaction;
mod change_log;
mod command_line;
mod console;
mod foreign;
mod http;
mod http_compression;
mod http_hostile;
mod http_pages;
mod http_rows;
mod killed_operations;
mod kills;
mod live;
mod maintenance;
mod openapi;
mod operate_http;
mod quarantine_http;
mod resync;
mod rollback;
mod s3_tables;
mod schemathesis;
mod security;
mod spark;
mod support;
mod tags;
mod tls;
