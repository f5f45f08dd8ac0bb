//! The `lakehouse` binary.

use std::process::ExitCode;

use tikv_jemallocator::Jemalloc;

/// What one thread allocates another one frees: a row is read from the wire here and written into a file there. The
/// system's allocator takes a lock for that, and a busy stream's threads sleep for it more than they work.
#[global_allocator]
static ALLOCATOR: Jemalloc = Jemalloc;

fn main() -> ExitCode {
    api::main()
}
