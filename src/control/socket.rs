//! The socket's file: made for its owner and group, gone with the daemon, taken over from a dead one.

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use tokio::net::{UnixListener, UnixStream};

use super::SOCKET_NAME;

/// Who may write to it: owner and group.
const MODE: u32 = 0o660;

/// The longest path of a Unix socket on Linux, without its end.
const LONGEST_PATH: usize = 107;

/// Why there is no control socket: what was tried, the cause, and what to do.
#[derive(Debug, thiserror::Error)]
#[error("the control socket {}: {cause}; {remedy}", path.display())]
pub struct SocketError {
    path: PathBuf,
    cause: String,
    remedy: &'static str,
}

/// A listening socket that nobody else has. Its file goes when it is dropped.
#[derive(Debug)]
pub struct ControlSocket {
    pub(super) listener: UnixListener,
    path: PathBuf,
    inode: (u64, u64),
    /// Held for as long as the socket is ours: of two daemons that start together one is told so.
    _lock: File,
}

impl ControlSocket {
    /// Listens at `runtime_dir/control.sock`. A file that a dead daemon left there is replaced.
    ///
    /// # Errors
    /// When another daemon answers there, when something that is no socket is in the way, or when the
    /// directory cannot be written.
    pub async fn bind(runtime_dir: &Path) -> Result<Self, SocketError> {
        let path = runtime_dir.join(SOCKET_NAME);
        let failed = |cause: String, remedy: &'static str| SocketError {
            path: path.clone(),
            cause,
            remedy,
        };
        let taken = || {
            let remedy = "stop it first; two on one host need a runtime_dir and a state_dir each";
            failed("another pgreeve daemon answers there".to_owned(), remedy)
        };
        let io = |error: io::Error| {
            let remedy = "make `runtime_dir` a directory that the daemon's user may write to";
            failed(error.to_string(), remedy)
        };
        let new = runtime_dir.join("control.new");
        if path.as_os_str().len().max(new.as_os_str().len()) > LONGEST_PATH {
            let remedy = "choose a shorter `runtime_dir`";
            return Err(failed(
                format!("a socket's path has at most {LONGEST_PATH} bytes"),
                remedy,
            ));
        }
        DirBuilder::new()
            .recursive(true)
            .mode(0o750)
            .create(runtime_dir)
            .map_err(io)?;
        let lock = lock(runtime_dir).map_err(io)?.ok_or_else(taken)?;
        match fs::symlink_metadata(&path) {
            Ok(found) if !found.file_type().is_socket() => {
                let remedy = "move it away";
                return Err(failed("something that is no socket is in its place".to_owned(), remedy));
            }
            // A daemon of another file system's view may hold no lock that we see; ask it.
            Ok(_) if UnixStream::connect(&path).await.is_ok() => return Err(taken()),
            _ => {}
        }
        // Made aside and moved into place, so that nobody meets it before its mode is right.
        match fs::remove_file(&new) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(io(error)),
            _ => {}
        }
        let listener = UnixListener::bind(&new).map_err(io)?;
        fs::set_permissions(&new, Permissions::from_mode(MODE)).map_err(io)?;
        let inode = identity(&new).map_err(io)?;
        fs::rename(&new, &path).map_err(io)?;
        Ok(Self {
            listener,
            path,
            inode,
            _lock: lock,
        })
    }

    /// Whether the file's mode still keeps strangers out, so that the kernel let in only those whom
    /// we meant.
    pub(super) fn is_closed_to_others(&self) -> bool {
        fs::metadata(&self.path).is_ok_and(|found| found.mode().trailing_zeros() >= 3)
    }
}

impl Drop for ControlSocket {
    fn drop(&mut self) {
        // Not one that has been put in its place since.
        if identity(&self.path).is_ok_and(|found| found == self.inode) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn identity(path: &Path) -> io::Result<(u64, u64)> {
    let found = fs::symlink_metadata(path)?;
    Ok((found.dev(), found.ino()))
}

/// `None` when somebody else holds it.
fn lock(runtime_dir: &Path) -> io::Result<Option<File>> {
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .open(runtime_dir.join("control.lock"))?;
    match file.try_lock() {
        Ok(()) => Ok(Some(file)),
        Err(fs::TryLockError::WouldBlock) => Ok(None),
        Err(fs::TryLockError::Error(error)) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_socket_is_for_owner_and_group_and_goes_with_its_owner() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(SOCKET_NAME);
        let socket = ControlSocket::bind(directory.path()).await.unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o660);
        assert!(socket.is_closed_to_others());
        let error = ControlSocket::bind(directory.path()).await.unwrap_err();
        assert!(error.to_string().contains("another pgreeve daemon"), "{error}");
        drop(socket);
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn a_dead_socket_is_replaced_and_anything_else_is_not() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(SOCKET_NAME);
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        assert!(path.exists(), "a listener leaves its file");
        drop(ControlSocket::bind(directory.path()).await.unwrap());
        // Somebody answers without our lock.
        let alive = std::os::unix::net::UnixListener::bind(&path).unwrap();
        assert!(ControlSocket::bind(directory.path()).await.is_err());
        drop(alive);
        fs::remove_file(&path).unwrap();
        fs::write(&path, "precious").unwrap();
        assert!(ControlSocket::bind(directory.path()).await.is_err());
        assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
    }

    #[tokio::test]
    async fn a_path_that_is_too_long_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let long = directory.path().join("x".repeat(LONGEST_PATH));
        let error = ControlSocket::bind(&long).await.unwrap_err();
        assert!(error.to_string().contains("shorter `runtime_dir`"), "{error}");
        assert!(!long.exists());
    }
}
