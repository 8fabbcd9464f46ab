//! The asker's side.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;

use super::SOCKET_NAME;
use super::message::{Answer, Refusal, Request, Update, VERSION, Verb, Why};

/// What is waited for beyond a verb's own limit before the daemon is taken for stuck.
const GRACE: Duration = Duration::from_secs(10);

/// Why a call had no good end.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// The daemon said no.
    #[error("{0}")]
    Refused(Refusal),
    /// The way to the daemon broke, or it does not answer.
    #[error("the daemon at {}: {cause}", path.display())]
    Lost {
        /// The socket.
        path: PathBuf,
        /// What happened.
        cause: String,
    },
}

/// A connection to a daemon that runs.
#[derive(Debug)]
pub struct Client {
    stream: BufReader<UnixStream>,
    path: PathBuf,
}

impl Client {
    /// Connects to the daemon of a `runtime_dir`; `None` when there is none.
    ///
    /// # Errors
    /// When there may be one and it cannot be asked, for want of permission for instance.
    pub async fn connect(runtime_dir: &Path) -> Result<Option<Self>, CallError> {
        let path = runtime_dir.join(SOCKET_NAME);
        match UnixStream::connect(&path).await {
            Ok(stream) => Ok(Some(Self {
                stream: BufReader::new(stream),
                path,
            })),
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => {
                Ok(None)
            }
            Err(error) => Err(CallError::Lost {
                path,
                cause: error.to_string(),
            }),
        }
    }

    /// Asks, passes updates on, and waits for the end.
    ///
    /// # Errors
    /// When the daemon refuses, goes away, or does not answer in time.
    pub async fn call(mut self, verb: Verb, mut on_update: impl FnMut(Update)) -> Result<Value, CallError> {
        let limit = verb.time_limit().map(|limit| limit + GRACE);
        let request = Request {
            sudo_user: std::env::var("SUDO_USER").ok().filter(|user| !user.is_empty()),
            ..Request::new(verb)
        };
        let mut line = serde_json::to_vec(&request).map_err(|error| self.lost(error.to_string()))?;
        line.push(b'\n');
        // A daemon that turns us away may do so before it reads; its answer says more than the error.
        let written = self.stream.get_mut().write_all(&line).await;
        if let Err(error) = &written {
            tracing::debug!(error = %error, "the daemon did not take the whole request");
        }
        loop {
            let answer = match limit {
                Some(limit) => tokio::time::timeout(limit, self.read())
                    .await
                    .map_err(|_| self.lost(format!("no answer within {} s", limit.as_secs())))??,
                None => self.read().await?,
            };
            match answer.update {
                Update::Done(value) => return Ok(value),
                Update::Refused(refusal) => return Err(CallError::Refused(refusal)),
                update => on_update(update),
            }
        }
    }

    async fn read(&mut self) -> Result<Answer, CallError> {
        let mut line = Vec::new();
        let read = self.stream.read_until(b'\n', &mut line).await;
        match read {
            Ok(0) => return Err(self.lost("it went away before it answered")),
            Ok(_) => {}
            Err(error) => return Err(self.lost(error.to_string())),
        }
        let answer: Answer = serde_json::from_slice(&line)
            .map_err(|error| self.lost(format!("its answer makes no sense ({:?})", error.classify())))?;
        if answer.version != VERSION {
            let refusal = Refusal::new(Why::BadRequest, format!("it speaks version {}", answer.version));
            return Err(CallError::Refused(
                refusal.with_remedy("use the pgreeve that belongs to this daemon"),
            ));
        }
        Ok(answer)
    }

    fn lost(&self, cause: impl Into<String>) -> CallError {
        CallError::Lost {
            path: self.path.clone(),
            cause: cause.into(),
        }
    }
}
