//! Has the work of the bucket's client done while a thread that may block waits for it: on threads of its own, so that
//! it does not matter where it is asked from.

use std::{io, sync::mpsc};

use tokio::{
    runtime::{Builder, Handle, Runtime},
    task::JoinHandle,
};

/// Threads for it: they only wait for the network.
const THREADS: usize = 2;

/// The threads.
#[derive(Debug)]
pub(super) struct Ahead {
    handle: Handle,
    runtime: Option<Runtime>,
}

impl Ahead {
    /// Starts them.
    pub(super) fn new() -> io::Result<Self> {
        let runtime = Builder::new_multi_thread().worker_threads(THREADS).thread_name("bucket").enable_all().build()?;
        Ok(Self { handle: runtime.handle().clone(), runtime: Some(runtime) })
    }

    /// Begins some work.
    pub(super) fn begin<T: Send + 'static>(&self, work: impl Future<Output = T> + Send + 'static) -> JoinHandle<T> {
        self.handle.spawn(work)
    }

    /// Begins some work, and blocks until it is done.
    pub(super) fn wait<T: Send + 'static>(
        &self,
        work: impl Future<Output = io::Result<T>> + Send + 'static,
    ) -> io::Result<T> {
        let (done, result) = mpsc::channel();
        self.handle.spawn(async move {
            // nobody waits any more
            let _ = done.send(work.await);
        });
        result.recv().unwrap_or_else(|_| Err(io::Error::other("the bucket's client ended early")))
    }
}

impl Drop for Ahead {
    fn drop(&mut self) {
        // also where waiting is not allowed
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}
