//! Programs around the product. They use it as its users do: the binary, its configuration, its tables.

pub mod demo;
