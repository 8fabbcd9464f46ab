//! A proxy before an S3 server that does to chosen requests what networks and servers do.
//!
//! It passes bytes on as they are, the `Host` header too, so signatures stay right. Each connection
//! carries one request.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use pgreeve::demo::s3_server::S3Server;
use pgreeve::store::S3Settings;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{AbortHandle, JoinSet};

/// What happens to a request.
#[derive(Debug, Clone)]
pub enum Fault {
    /// It is not forwarded; this is the answer.
    Answer(u16, &'static str),
    /// The same with these lines of headers, each ended by `\r\n`.
    AnswerWith(u16, &'static str, &'static str),
    /// It is read, then the connection is cut; the server never sees it.
    CutBefore,
    /// Half of its body is read, then the connection is reset.
    Reset,
    /// It is forwarded and done, but the connection is cut before the answer.
    CutAfter,
    /// It is read, and nothing is ever answered; the server never sees it.
    Silence,
    /// It is forwarded and done, and nothing is ever answered.
    DoneInSilence,
    /// Its body is never read.
    StopReading,
    /// So many bytes of the answer pass, then the connection is cut.
    CutAnswer(usize),
    /// So many bytes of the answer pass, then no more, but the connection stays.
    StallAnswer(usize),
    /// The answer passes at so many bytes a second.
    SlowAnswer(u32),
    /// One byte of its body is changed.
    Corrupt,
}

/// A request as the proxy saw it.
#[derive(Debug, Clone)]
pub struct Call {
    pub method: String,
    pub path: String,
    pub query: String,
    pub headers: Vec<(String, String)>,
}

impl Call {
    /// Whether it sends this part.
    pub fn is_part(&self, number: u32) -> bool {
        self.method == "PUT" && self.parameter("partNumber") == Some(&number.to_string())
    }

    /// Whether it completes an upload.
    pub fn is_complete(&self) -> bool {
        self.method == "POST" && self.parameter("uploadId").is_some()
    }

    /// Whether it creates an object in one piece.
    pub fn is_create(&self) -> bool {
        self.method == "PUT" && self.parameter("partNumber").is_none()
    }

    /// Whether it reads an object.
    pub fn is_read(&self) -> bool {
        self.method == "GET" && self.parameter("list-type").is_none() && self.parameter("uploadId").is_none()
    }

    /// A parameter of its query.
    pub fn parameter(&self, name: &str) -> Option<&str> {
        let mut pairs = self
            .query
            .split('&')
            .map(|pair| pair.split_once('=').unwrap_or((pair, "")));
        pairs.find(|pair| pair.0 == name).map(|pair| pair.1)
    }

    /// A header, by its name in lower case.
    pub fn header(&self, name: &str) -> Option<&str> {
        let found = self.headers.iter().find(|header| header.0 == name);
        found.map(|header| header.1.as_str())
    }
}

type Matcher = Box<dyn Fn(&Call) -> bool + Send>;

struct Rule {
    matches: Matcher,
    left: u32,
    fault: Fault,
}

#[derive(Default)]
struct Script {
    rules: Vec<Rule>,
    calls: Vec<Call>,
    /// How many callers wait for an answer that never comes.
    held: usize,
}

/// A proxy on a port of its own; it ends when dropped.
pub struct FaultProxy {
    address: SocketAddr,
    script: Arc<Mutex<Script>>,
    accepting: AbortHandle,
}

impl FaultProxy {
    /// Starts a proxy that passes everything on.
    pub async fn start(server: &S3Server) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let script = Arc::<Mutex<Script>>::default();
        let (upstream, rules) = (server.address(), Arc::clone(&script));
        let accepting = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((client, _)) = listener.accept().await {
                connections.spawn(serve(client, upstream, Arc::clone(&rules)));
            }
        });
        Self {
            address,
            script,
            accepting: accepting.abort_handle(),
        }
    }

    /// The server's settings, but through the proxy.
    pub fn settings(&self, server: &S3Server, prefix: &str) -> S3Settings {
        S3Settings {
            endpoint: Some(format!("http://{}", self.address)),
            ..server.settings(prefix)
        }
    }

    /// From now on the next `times` requests that match meet the fault. The first rule counts.
    pub fn fault(&self, times: u32, fault: Fault, matches: impl Fn(&Call) -> bool + Send + 'static) {
        self.script.lock().unwrap().rules.push(Rule {
            matches: Box::new(matches),
            left: times,
            fault,
        });
    }

    /// From now on everything passes.
    pub fn heal(&self) {
        self.script.lock().unwrap().rules.clear();
    }

    /// The requests so far that match.
    pub fn calls(&self, matches: impl Fn(&Call) -> bool) -> Vec<Call> {
        let script = self.script.lock().unwrap();
        script.calls.iter().filter(|call| matches(call)).cloned().collect()
    }

    /// How many requests met [`Fault::Silence`] or [`Fault::DoneInSilence`] so far, and were read, or
    /// done, by now.
    pub fn held(&self) -> usize {
        self.script.lock().unwrap().held
    }
}

impl Drop for FaultProxy {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

/// One connection. Errors end it: the other side has gone, which is the tests' business.
async fn serve(mut client: TcpStream, upstream: SocketAddr, script: Arc<Mutex<Script>>) {
    let Some((head, mut body)) = read_head(&mut client).await else {
        return;
    };
    let call = parse(&head);
    let fault = decide(&mut script.lock().unwrap(), &call);
    if let Some(Fault::StopReading) = fault {
        return std::future::pending().await;
    }
    if call.header("expect").is_some() && client.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").await.is_err() {
        return;
    }
    let length: usize = call.header("content-length").map_or(0, |text| text.parse().unwrap());
    let have = body.len();
    if let Some(Fault::Reset) = fault {
        body.resize(have.max(length / 2), 0);
        // Closing with a part of it unread resets the connection.
        let _ = client.read_exact(&mut body[have..]).await;
        return;
    }
    body.resize(length, 0);
    if client.read_exact(&mut body[have.min(length)..]).await.is_err() {
        return;
    }
    match fault {
        Some(Fault::Answer(status, text)) => answer(&mut client, status, "", text).await,
        Some(Fault::AnswerWith(status, headers, text)) => answer(&mut client, status, headers, text).await,
        Some(Fault::CutBefore) => {}
        Some(Fault::Silence) => {
            script.lock().unwrap().held += 1;
            until_closed(&mut client).await;
        }
        Some(Fault::DoneInSilence) => {
            if let Some(mut server) = forward(upstream, &head, &body).await {
                // The server closes when it has answered.
                while let Ok(1..) = server.read(&mut [0; 4096]).await {}
                script.lock().unwrap().held += 1;
                until_closed(&mut client).await;
            }
        }
        fault => {
            if let (Some(Fault::Corrupt), Some(byte)) = (&fault, body.last_mut()) {
                *byte ^= 1;
            }
            if let Some(server) = forward(upstream, &head, &body).await {
                pass_on(client, server, fault).await;
            }
        }
    }
}

async fn answer(client: &mut TcpStream, status: u16, headers: &str, text: &str) {
    let length = text.len();
    let answer = format!(
        "HTTP/1.1 {status} Fault\r\n{headers}Content-Type: application/xml\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{text}"
    );
    // The client may have gone; nobody else asks.
    let _ = client.write_all(answer.as_bytes()).await;
}

async fn read_head(client: &mut TcpStream) -> Option<(String, Vec<u8>)> {
    let mut bytes = Vec::new();
    loop {
        if let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") {
            let body = bytes.split_off(end + 4);
            return Some((String::from_utf8(bytes).unwrap(), body));
        }
        if client.read_buf(&mut bytes).await.ok()? == 0 {
            return None;
        }
    }
}

fn parse(head: &str) -> Call {
    let mut lines = head.trim_end().split("\r\n");
    let mut words = lines.next().unwrap().split(' ');
    let method = words.next().unwrap().to_owned();
    let target = words.next().unwrap();
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let headers = lines.map(|line| {
        let (name, value) = line.split_once(':').unwrap();
        (name.to_ascii_lowercase(), value.trim().to_owned())
    });
    Call {
        method,
        path: path.to_owned(),
        query: query.to_owned(),
        headers: headers.collect(),
    }
}

fn decide(script: &mut Script, call: &Call) -> Option<Fault> {
    script.calls.push(call.clone());
    let rule = script
        .rules
        .iter_mut()
        .find(|rule| rule.left > 0 && (rule.matches)(call))?;
    rule.left -= 1;
    Some(rule.fault.clone())
}

async fn forward(upstream: SocketAddr, head: &str, body: &[u8]) -> Option<TcpStream> {
    let mut server = TcpStream::connect(upstream).await.ok()?;
    let kept = head.trim_end().split("\r\n").filter(|line| {
        let name = line.split(':').next().unwrap_or_default();
        !name.eq_ignore_ascii_case("expect") && !name.eq_ignore_ascii_case("connection")
    });
    let head = kept.collect::<Vec<_>>().join("\r\n");
    server
        .write_all(format!("{head}\r\nConnection: close\r\n\r\n").as_bytes())
        .await
        .ok()?;
    server.write_all(body).await.ok()?;
    Some(server)
}

/// Passes the answer on until the server closes, or the fault is due.
async fn pass_on(mut client: TcpStream, mut server: TcpStream, fault: Option<Fault>) {
    let mut buffer = vec![0; 64 * 1024];
    let mut left = match fault {
        Some(Fault::CutAnswer(bytes) | Fault::StallAnswer(bytes)) => bytes,
        _ => usize::MAX,
    };
    if let Some(Fault::SlowAnswer(pace)) = fault {
        buffer.truncate((pace as usize / 20).max(1));
    }
    loop {
        let Ok(count @ 1..) = server.read(&mut buffer).await else {
            return;
        };
        if let Some(Fault::CutAfter) = fault {
            continue;
        }
        if client.write_all(&buffer[..count.min(left)]).await.is_err() {
            return;
        }
        left = left.saturating_sub(count);
        match fault {
            Some(Fault::CutAnswer(_)) if left == 0 => return,
            Some(Fault::StallAnswer(_)) if left == 0 => return until_closed(&mut client).await,
            Some(Fault::SlowAnswer(_)) => tokio::time::sleep(Duration::from_millis(50)).await,
            _ => {}
        }
    }
}

async fn until_closed(client: &mut TcpStream) {
    let mut rest = [0; 1024];
    while let Ok(1..) = client.read(&mut rest).await {}
}
