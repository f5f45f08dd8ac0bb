//! The `lakehouse` binary.

use std::process::ExitCode;

/// Above every buffer of a batch.
const LARGEST_BUFFER: usize = 31 << 20;

fn main() -> ExitCode {
    keep_freed_memory();
    api::main()
}

/// The system's allocator gives buffers back to the kernel that are larger than the largest one it has seen freed, and
/// faults them in again page by page, which costs a fifth of the time of a busy worker. So it is shown a large one.
fn keep_freed_memory() {
    drop(std::hint::black_box(Vec::<u8>::with_capacity(LARGEST_BUFFER)));
}
