//! The API, metrics and health over HTTP.

use std::io;

use tokio::net::{TcpListener, UnixListener};

use crate::reconcile::Handle;

/// Serves the API on the agent's socket until the agent stops.
///
/// # Errors
/// The socket is lost.
pub async fn serve_api(_handle: Handle, _socket: UnixListener) -> io::Result<()> {
    std::future::pending().await
}

/// Serves `/metrics`, `/healthz` and `/readyz` on an address of the node until the agent stops.
///
/// # Errors
/// The socket is lost.
pub async fn serve_metrics(_handle: Handle, _socket: TcpListener) -> io::Result<()> {
    std::future::pending().await
}
