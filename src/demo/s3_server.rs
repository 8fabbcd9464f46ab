//! An S3 server over HTTP in this process: for the demonstration and the tests.
//!
//! Signatures are checked, conditional writes are honoured, and parts must be at least 5 MiB (but
//! the last), as on AWS. Objects are files below the directory that its owner gives.

mod assemble;
mod body;
mod service;
mod uploads;

use std::net::SocketAddr;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::{fs, io};

use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use s3s::auth::SimpleAuth;
use s3s::service::{S3Service, S3ServiceBuilder};
use tokio::net::TcpListener;
use tokio::task::{AbortHandle, JoinSet};

use self::service::Bucket;
use crate::store::S3Settings;

const ACCESS_KEY: &str = "PGREEVEDEMO";
const SECRET_KEY: &str = "not-a-secret-of-anybody";
const BUCKET: &str = "pgreeve-demo";

/// A running server with one bucket. It stops, in the middle of what it does, when dropped.
#[derive(Debug)]
pub struct S3Server {
    address: SocketAddr,
    credentials_file: PathBuf,
    accepting: AbortHandle,
}

impl S3Server {
    /// Starts a server on a free port of 127.0.0.1, on the current runtime. It keeps the bucket and
    /// a credentials file in `directory`, which must exist.
    ///
    /// # Errors
    /// When the directory cannot be written to, or no port can be had.
    pub async fn start(directory: &Path) -> io::Result<Self> {
        let root = directory.join("s3");
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(root.join(BUCKET))?;
        let credentials_file = directory.join("s3-credentials");
        write_credentials(&credentials_file, ACCESS_KEY, SECRET_KEY)?;
        let mut builder = S3ServiceBuilder::new(Bucket::new(root)?);
        builder.set_auth(SimpleAuth::from_single(ACCESS_KEY, SECRET_KEY));
        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        let address = listener.local_addr()?;
        let accepting = tokio::spawn(serve(listener, builder.build())).abort_handle();
        Ok(Self {
            address,
            credentials_file,
            accepting,
        })
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Its endpoint: `http://127.0.0.1:PORT`.
    #[must_use]
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The bucket's name.
    #[must_use]
    pub fn bucket(&self) -> &'static str {
        BUCKET
    }

    /// The one access key it knows.
    #[must_use]
    pub fn access_key(&self) -> &'static str {
        ACCESS_KEY
    }

    /// The secret of that key. It protects nothing but what the server was started for.
    #[must_use]
    pub fn secret_key(&self) -> &'static str {
        SECRET_KEY
    }

    /// A shared credentials file with that key.
    #[must_use]
    pub fn credentials_file(&self) -> &Path {
        &self.credentials_file
    }

    /// How to open the bucket as a store whose keys start with `prefix`.
    #[must_use]
    pub fn settings(&self, prefix: &str) -> S3Settings {
        S3Settings {
            bucket: BUCKET.to_owned(),
            prefix: prefix.to_owned(),
            region: Some("us-east-1".to_owned()),
            endpoint: Some(self.endpoint()),
            path_style: true,
            profile: None,
            credentials_file: Some(self.credentials_file.clone()),
            ..S3Settings::default()
        }
    }
}

impl Drop for S3Server {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

/// Writes a shared credentials file that only its owner can read.
///
/// # Errors
/// When the file cannot be written.
pub fn write_credentials(path: &Path, access_key: &str, secret_key: &str) -> io::Result<()> {
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)?;
    io::Write::write_all(
        &mut file,
        format!("[default]\naws_access_key_id = {access_key}\naws_secret_access_key = {secret_key}\n").as_bytes(),
    )
}

/// Accepts until aborted; the connections end with the set that holds them.
async fn serve(listener: TcpListener, service: S3Service) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((socket, _)) => {
                    let service = service.clone();
                    connections.spawn(async move {
                        let connection = http1::Builder::new()
                            .timer(TokioTimer::new())
                            .serve_connection(TokioIo::new(socket), service);
                        if let Err(error) = connection.await {
                            tracing::debug!(%error, "a connection to the demonstration's S3 server broke");
                        }
                    });
                }
                Err(error) => {
                    // Out of file descriptors, most likely: some connection has to end first.
                    tracing::warn!(%error, "the demonstration's S3 server cannot accept a connection");
                    if connections.join_next().await.is_none() {
                        return;
                    }
                }
            },
            Some(_) = connections.join_next() => {}
        }
    }
}
