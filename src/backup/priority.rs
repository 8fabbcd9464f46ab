//! The priority of threads that compute.

/// How much they give way to the server's own processes.
const NICE: i32 = 10;

/// Lowers the calling thread's priority for good.
pub(super) fn lower() {
    // On Linux a process id of none is the calling thread.
    if let Err(error) = rustix::process::setpriority_process(None, NICE) {
        tracing::debug!(%error, "a thread could not lower its priority");
    }
}
