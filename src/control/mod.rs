//! The control socket: how verbs reach a daemon that runs.
//!
//! `runtime_dir/control.sock` speaks lines of JSON: a request of one line, then any number of
//! updates, then one line that ends it. Whoever may write to the socket may ask: root, the daemon's
//! own user and the socket's group; who asked is told by the kernel and stands in the audit log.
//! Nothing here knows what a verb does: that is the [`Desk`]'s.

mod client;
mod message;
mod server;
mod socket;

pub use client::{CallError, Client};
pub use message::{Answer, MAX_LINE, Refusal, Request, Update, VERSION, Verb, Why};
pub use server::{Desk, Watcher, serve};
pub use socket::{ControlSocket, SocketError};

/// The socket's name below `runtime_dir`.
pub const SOCKET_NAME: &str = "control.sock";
