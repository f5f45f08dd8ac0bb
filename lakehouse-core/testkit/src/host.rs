//! Where the kit's servers run: a runtime of their own, so that a test that blocks its thread does not stop them.

use std::future::Future;
use std::net::{SocketAddr, TcpListener};

use tokio::runtime::{Builder, Handle, Runtime};

/// A runtime that ends, with all its tasks, when it is dropped.
#[derive(Debug)]
pub(crate) struct Host {
    runtime: Option<Runtime>,
}

impl Host {
    pub(crate) fn start(name: &str) -> Self {
        let runtime = Builder::new_multi_thread().worker_threads(2).thread_name(name).enable_all().build();
        Self { runtime: Some(runtime.expect("start a runtime")) }
    }

    pub(crate) fn handle(&self) -> Handle {
        self.runtime.as_ref().expect("present until dropped").handle().clone()
    }

    /// Runs until the future or the host ends.
    pub(crate) fn spawn<F: Future<Output = ()> + Send + 'static>(&self, work: F) {
        self.handle().spawn(work);
    }

    /// A listener on 127.0.0.1 whose connections this runtime serves.
    pub(crate) fn listen(&self) -> (SocketAddr, tokio::net::TcpListener) {
        let listener = TcpListener::bind(("127.0.0.1", 0)).expect("bind 127.0.0.1");
        listener.set_nonblocking(true).expect("a listener that does not block");
        let address = listener.local_addr().expect("a bound listener has an address");
        let _inside = self.handle().enter();
        (address, tokio::net::TcpListener::from_std(listener).expect("register the listener"))
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        // Not the waiting kind: a test drops its servers inside its own runtime.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// The host and port of an `http://` address.
///
/// # Panics
/// When it is something else: the kit's servers speak plain HTTP on loopback.
pub(crate) fn authority(uri: &str) -> String {
    let rest = uri.strip_prefix("http://").unwrap_or_else(|| panic!("{uri}: http:// expected"));
    rest.split('/').next().unwrap_or(rest).to_owned()
}
