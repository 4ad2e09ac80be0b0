//! The signal to stop, as the stages of the collector see it.

use tokio::sync::watch;

/// Completes when the flag becomes true.
pub(crate) async fn told_to_stop(stopping: &mut watch::Receiver<bool>) {
    // An error means that the sender is gone, which is a reason to stop as well.
    let _ = stopping.wait_for(|stop| *stop).await;
}
