//! A TCP proxy before a server's Unix socket that cuts its connections, or loses what is sent.

use std::path::PathBuf;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, UnixStream};
use tokio::sync::watch;

/// What does not get through. Connections stay, also those that are made meanwhile; what was held
/// back arrives late, as after a retransmission.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Frozen {
    /// All gets through.
    Nothing,
    /// What the server sends.
    Answers,
    /// What the client sends.
    Requests,
    /// Either.
    Both,
}

/// Ends with its owner.
pub struct PgProxy {
    port: u16,
    cuts: watch::Sender<u64>,
    frozen: watch::Sender<Frozen>,
    task: tokio::task::JoinHandle<()>,
}

impl PgProxy {
    /// Listens on a port of its own on loopback.
    pub async fn start(socket: PathBuf) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (cuts, frozen) = (watch::Sender::new(0), watch::Sender::new(Frozen::Nothing));
        let (cut, hold) = (cuts.subscribe(), frozen.subscribe());
        let task = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let (socket, mut cut, hold) = (socket.clone(), cut.clone(), hold.clone());
                cut.mark_unchanged();
                tokio::spawn(async move {
                    let Ok(server) = UnixStream::connect(&socket).await else {
                        return;
                    };
                    let (client_read, client_write) = client.into_split();
                    let (server_read, server_write) = server.into_split();
                    tokio::select! {
                        () = pump(client_read, server_write, hold.clone(), Frozen::Requests) => {}
                        () = pump(server_read, client_write, hold, Frozen::Answers) => {}
                        _ = cut.changed() => {}
                    }
                });
            }
        });
        Self {
            port,
            cuts,
            frozen,
            task,
        }
    }

    /// A URL through the proxy.
    pub fn url(&self, database: &str) -> String {
        format!(
            "postgresql://postgres@127.0.0.1:{}/{database}?sslmode=disable",
            self.port
        )
    }

    /// Cuts every connection.
    pub fn cut(&self) {
        self.cuts.send_modify(|count| *count += 1);
    }

    /// Loses what is sent from now on.
    pub fn freeze(&self, what: Frozen) {
        self.frozen.send_replace(what);
    }
}

impl Drop for PgProxy {
    fn drop(&mut self) {
        self.task.abort();
        self.cut();
    }
}

async fn pump(
    mut from: impl AsyncReadExt + Unpin,
    mut to: impl AsyncWriteExt + Unpin,
    mut frozen: watch::Receiver<Frozen>,
    direction: Frozen,
) {
    let mut buffer = vec![0; 16 * 1024];
    while let Ok(length @ 1..) = from.read(&mut buffer).await {
        let free = frozen.wait_for(|frozen| *frozen != Frozen::Both && *frozen != direction);
        if free.await.is_err() || to.write_all(&buffer[..length]).await.is_err() {
            return;
        }
    }
}
