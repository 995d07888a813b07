//! The orders an agent obeys, as the protocol has them.

use std::{io::SeekFrom, sync::Arc, time::Duration};

use async_trait::async_trait;
use futures::{StreamExt as _, stream::BoxStream};
use tokio::io::{AsyncReadExt as _, AsyncSeekExt as _};
use tokio_stream::wrappers::WatchStream;
use tokio_util::io::ReaderStream;

use super::Supervisor;
use crate::driver::{
    agent::{
        AgentError, AgentState, Authority, CaptureOrder, CollectOrder, ExecOrder, ExecReply, GuestAccess, LeaveCode,
        NodeAgent, Role, UploadOrder, VmState,
    },
    qemu::capture,
    repository::ByteStream,
};

/// Between two lines of an event stream if nothing changes.
const HEARTBEAT: Duration = Duration::from_secs(1);

/// The agent as those see it who give orders.
#[derive(Clone)]
pub struct Orders(pub Arc<Supervisor>);

#[async_trait]
impl GuestAccess for Orders {
    async fn output(&self, from: u64) -> Result<ByteStream, AgentError> {
        let refused = |error: std::io::Error| AgentError::Refused(format!("failed to read the output: {error}"));
        let mut file = tokio::fs::File::open(self.0.paths.output()).await.map_err(refused)?;
        // what comes later is asked for again: a reply ends
        let length = file.metadata().await.map_err(refused)?.len();
        file.seek(SeekFrom::Start(from)).await.map_err(refused)?;
        Ok(ReaderStream::new(file.take(length.saturating_sub(from))).boxed())
    }

    async fn exec(&self, order: &ExecOrder) -> Result<ExecReply, AgentError> {
        self.0.exec(order).await
    }
}

#[async_trait]
impl NodeAgent for Orders {
    async fn state(&self) -> Result<AgentState, AgentError> {
        Ok(self.0.view.render())
    }

    async fn watch(&self) -> Result<BoxStream<'static, AgentState>, AgentError> {
        let view = self.0.view.clone();
        let changes = WatchStream::new(view.changes()).map(|_| ());
        let beats = tokio_stream::wrappers::IntervalStream::new(tokio::time::interval(HEARTBEAT)).map(|_| ());
        Ok(futures::stream::select(changes, beats).map(move |()| view.render()).boxed())
    }

    async fn go(&self, authority: Authority) -> Result<(), AgentError> {
        let vm = self.0.vm.lock().await;
        let state = self.0.view.change(|facts| facts.barrier.admit(authority).map(|()| facts.vm.clone()))?;
        if self.0.config.role == Role::Master && state == VmState::Loaded {
            self.0.view.change(|facts| facts.set_vm(VmState::Running));
            return Ok(());
        }
        let loaded = match state {
            VmState::Running | VmState::Stopped => return Ok(()),
            VmState::Loaded => vm.as_ref(),
            VmState::None | VmState::Fetching { .. } | VmState::Gone { .. } => None,
        };
        let vm = loaded.ok_or_else(|| AgentError::Refused("the VM is not loaded".into()))?;
        capture::resume(&vm.qmp).await.map_err(|error| AgentError::Failed(error.to_string()))?;
        self.0.view.change(|facts| facts.set_vm(VmState::Running));
        tracing::info!("the guest runs");
        let (own, stop) = (self.0.clone(), self.0.stop.clone());
        let followed = futures::future::join(own.clone().follow_guest(), own.keep_running());
        tokio::spawn(async move {
            tokio::select! {
                () = stop.cancelled() => {}
                _ = followed => {}
            }
        });
        Ok(())
    }

    async fn prepare(&self, order: &CaptureOrder) -> Result<(), AgentError> {
        self.0.prepare(order).await
    }

    async fn stop(&self, order: &CaptureOrder) -> Result<(), AgentError> {
        self.0.stop(order).await
    }

    async fn cut(&self, order: &CaptureOrder) -> Result<(), AgentError> {
        self.0.cut(order).await
    }

    async fn abandon(&self, order: &CaptureOrder) -> Result<(), AgentError> {
        self.0.abandon(order).await
    }

    async fn stay_down(&self, order: &CaptureOrder, limit: Duration) -> Result<(), AgentError> {
        let elapsed = self.0.view.elapsed();
        self.0.view.change(|facts| facts.barrier.stay_down(order, limit, elapsed)).map(|_| ())
    }

    async fn upload(&self, order: &UploadOrder) -> Result<(), AgentError> {
        self.0.start_upload(order).await
    }

    async fn collect(&self, order: &CollectOrder) -> Result<(), AgentError> {
        self.0.start_collect(order).await
    }

    async fn leave(&self, authority: Authority, code: LeaveCode) -> Result<(), AgentError> {
        self.0.view.change(|facts| facts.barrier.admit(authority))?;
        // to its end, whether or not anybody waits for the answer
        let own = self.0.clone();
        tokio::spawn(async move { own.leave(code).await }).await.map_err(|error| AgentError::Failed(error.to_string()))
    }
}
