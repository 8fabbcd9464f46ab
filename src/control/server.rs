//! The daemon's side: who asks, what they ask, in bounded memory and time.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf, UCred};
use tokio::sync::{Semaphore, mpsc};
use tokio_util::sync::CancellationToken;

use super::message::{Answer, MAX_LINE, Refusal, Request, Update, VERSION, Verb, Why};
use super::socket::ControlSocket;

/// How long a request may take to arrive, and an answer to be taken.
const PATIENCE: Duration = Duration::from_secs(10);
/// How many may ask at the same time.
const MOST_CONNECTIONS: usize = 64;
/// How many updates may wait for a slow reader; it misses the ones between.
const WAITING_UPDATES: usize = 16;

/// Who knows what the verbs do.
pub trait Desk: Send + Sync + 'static {
    /// Does what a verb says. `actor` is who asked, for the record. Runs to its end also when the
    /// asker has gone.
    fn answer(&self, verb: Verb, actor: String, watcher: Watcher) -> BoxFuture<'static, Result<Value, Refusal>>;
}

/// Where updates go while something is under way. Nobody may be listening.
#[derive(Debug, Clone)]
pub struct Watcher(mpsc::Sender<Update>);

impl Watcher {
    /// Passes an update on, unless the reader is slow or gone.
    pub fn tell(&self, update: Update) {
        let _ = self.0.try_send(update);
    }
}

/// Answers until it is stopped; the socket's file is gone when this returns.
pub async fn serve(socket: ControlSocket, desk: Arc<dyn Desk>, stop: CancellationToken) {
    let socket = Arc::new(socket);
    let places = Arc::new(Semaphore::new(MOST_CONNECTIONS));
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => return,
            accepted = socket.listener.accept() => accepted,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                // Out of file descriptors, perhaps: not a reason to spin, nor to stop.
                tracing::warn!(error = %error, "the control socket could not accept a connection");
                tokio::time::sleep(Duration::from_millis(200)).await;
                continue;
            }
        };
        let Ok(place) = Arc::clone(&places).try_acquire_owned() else {
            tracing::warn!("more than {MOST_CONNECTIONS} connections to the control socket; one was turned away");
            continue;
        };
        let (socket, desk) = (Arc::downgrade(&socket), Arc::clone(&desk));
        tokio::spawn(async move {
            let closed = socket.upgrade().is_some_and(|socket| socket.is_closed_to_others());
            if let Err(error) = attend(stream, closed, &*desk).await {
                tracing::debug!(error = %error, "a connection to the control socket ended early");
            }
            drop(place);
        });
    }
}

/// Answers one connection, request by request.
async fn attend(stream: UnixStream, closed_to_others: bool, desk: &dyn Desk) -> io::Result<()> {
    let peer = stream.peer_cred()?;
    let (reader, mut writer) = stream.into_split();
    let mut reader = BufReader::new(reader);
    if !may_ask(&peer, closed_to_others) {
        tracing::warn!(
            peer.uid = peer.uid(),
            "a stranger was turned away from the control socket; its mode was changed"
        );
        // Read first: what is left unread breaks the connection before the answer is seen.
        let _ = read_line(&mut reader).await;
        let refusal = Refusal::new(Why::Denied, format!("uid {} may not control this daemon", peer.uid()))
            .with_remedy("ask as root, as the daemon's user, or as a member of the socket's group");
        return send(&mut writer, Update::Refused(refusal)).await;
    }
    while let Some(line) = read_line(&mut reader).await? {
        let update = match Request::parse(&line) {
            Ok(request) => {
                let actor = actor(&peer, request.sudo_user.as_deref());
                answer(&mut writer, desk, request.verb, actor).await?
            }
            Err(refusal) => Update::Refused(refusal),
        };
        send(&mut writer, update).await?;
        if line.len() >= MAX_LINE {
            // The rest of a line that is too long would be taken for requests.
            return Ok(());
        }
    }
    Ok(())
}

/// Lets the desk do it, and passes on what it tells meanwhile.
async fn answer(writer: &mut OwnedWriteHalf, desk: &dyn Desk, verb: Verb, actor: String) -> io::Result<Update> {
    let limit = verb.time_limit();
    let (sender, mut updates) = mpsc::channel(WAITING_UPDATES);
    // A task of its own: what is begun is ended, whether or not the asker waits for it.
    let mut work = tokio::spawn(desk.answer(verb, actor, Watcher(sender)));
    let deadline = tokio::time::Instant::now() + limit.unwrap_or(Duration::from_hours(24 * 365));
    loop {
        tokio::select! {
            biased;
            Some(update) = updates.recv() => send(writer, update).await?,
            done = &mut work => {
                while let Ok(update) = updates.try_recv() {
                    send(writer, update).await?;
                }
                return Ok(match done {
                    Ok(Ok(value)) => Update::Done(value),
                    Ok(Err(refusal)) => Update::Refused(refusal),
                    Err(_) => Update::Refused(
                        Refusal::new(Why::Failed, "the daemon met a defect of its own")
                            .with_remedy("its log names the line; please report it"),
                    ),
                });
            }
            () = tokio::time::sleep_until(deadline) => {
                return Ok(Update::Refused(
                    Refusal::new(Why::TryAgain, "it takes longer than expected, and goes on")
                        .with_remedy("`pgreeve status` and `pgreeve history` show what becomes of it"),
                ));
            }
        }
    }
}

/// Root and the daemon's own user may; others only as members of the socket's group, which the
/// kernel has checked while the file's mode is ours.
fn may_ask(peer: &UCred, closed_to_others: bool) -> bool {
    peer.uid() == 0 || peer.uid() == rustix::process::geteuid().as_raw() || closed_to_others
}

fn actor(peer: &UCred, sudo_user: Option<&str>) -> String {
    let sound = |user: &&str| {
        !user.is_empty()
            && user.len() <= 64
            && user
                .chars()
                .all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-' | '@' | '+'))
    };
    match sudo_user.filter(sound) {
        Some(user) if peer.uid() == 0 => format!("uid:0 (sudo from {user})"),
        _ => format!("uid:{}", peer.uid()),
    }
}

/// The next line without its newline, or what there is of one that is too long; `None` at the end.
async fn read_line(reader: &mut BufReader<OwnedReadHalf>) -> io::Result<Option<Vec<u8>>> {
    let mut line = Vec::new();
    let most = u64::try_from(MAX_LINE).unwrap_or(u64::MAX);
    tokio::time::timeout(PATIENCE, reader.take(most).read_until(b'\n', &mut line))
        .await
        .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
    if line.last() == Some(&b'\n') {
        line.pop();
        return Ok(Some(line));
    }
    // Without a newline: nothing more comes, or it is too long.
    Ok((line.len() >= MAX_LINE).then_some(line))
}

async fn send(writer: &mut OwnedWriteHalf, update: Update) -> io::Result<()> {
    let mut line = serde_json::to_vec(&Answer {
        version: VERSION,
        update,
    })?;
    line.push(b'\n');
    tokio::time::timeout(PATIENCE, writer.write_all(&line))
        .await
        .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
}
