//! A slow S3 server that keeps the sizes of large objects and the bytes of small ones: as much of the
//! protocol as a backup uses, in this process, so that a dump needs no disk.

use std::collections::HashMap;
use std::fmt::Write;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};

/// Bodies up to this size are kept.
const SMALL: usize = 1024 * 1024;

#[derive(Default)]
struct Objects {
    /// Size and, of a small object, bytes.
    whole: HashMap<String, (usize, Vec<u8>)>,
    /// Bytes of each upload that is open, by the path of its object.
    parts: HashMap<String, usize>,
}

/// Starts it; all connections together take `rate` bytes a second.
pub(crate) async fn start(rate: u64) -> SocketAddr {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    let objects = Arc::new(Mutex::new(Objects::default()));
    let clock = Arc::new(Mutex::new(Instant::now()));
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let (objects, clock) = (Arc::clone(&objects), Arc::clone(&clock));
            tokio::spawn(async move {
                // The client closes the connection when it has no more to ask.
                let _ = connection(stream, &objects, &clock, rate).await;
            });
        }
    });
    address
}

async fn connection(
    stream: TcpStream,
    objects: &Mutex<Objects>,
    clock: &Mutex<Instant>,
    rate: u64,
) -> std::io::Result<()> {
    let mut stream = BufReader::new(stream);
    loop {
        let mut request = String::new();
        if stream.read_line(&mut request).await? == 0 {
            return Ok(());
        }
        let (mut length, mut exclusive, mut expects) = (0, false, false);
        loop {
            let mut header = String::new();
            stream.read_line(&mut header).await?;
            let header = header.trim().to_ascii_lowercase();
            match header.split_once(':') {
                None => break,
                Some(("content-length", value)) => length = value.trim().parse().unwrap(),
                Some(("if-none-match", _)) => exclusive = true,
                Some(("expect", _)) => expects = true,
                Some(_) => {}
            }
        }
        if expects {
            stream.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").await?;
        }
        let body = body(&mut stream, length, clock, rate).await?;
        let mut words = request.split(' ');
        let (method, target) = (words.next().unwrap(), words.next().unwrap());
        let answer = answer(&mut objects.lock().unwrap(), method, target, (length, body), exclusive);
        stream.write_all(&answer).await?;
    }
}

/// Reads a body no faster than all bodies together may be read.
async fn body(
    stream: &mut BufReader<TcpStream>,
    length: usize,
    clock: &Mutex<Instant>,
    rate: u64,
) -> std::io::Result<Vec<u8>> {
    let (mut left, mut kept, mut buffer) = (length, Vec::new(), vec![0; 256 * 1024]);
    while left > 0 {
        let room = left.min(buffer.len());
        let read = stream.read(&mut buffer[..room]).await?;
        if read == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        left -= read;
        if length <= SMALL {
            kept.extend_from_slice(&buffer[..read]);
        }
        let due = {
            let mut clock = clock.lock().unwrap();
            *clock = (*clock).max(Instant::now()) + Duration::from_secs_f64(read as f64 / rate as f64);
            *clock
        };
        tokio::time::sleep_until(due.into()).await;
    }
    Ok(kept)
}

/// The open uploads of a bucket, whose path is `/NAME` or `/NAME/`.
fn uploads(objects: &Objects, bucket: &str) -> String {
    let open = objects.parts.keys().filter_map(|path| {
        let key = path.strip_prefix(bucket)?.trim_start_matches('/');
        Some(format!("<Upload><Key>{key}</Key><UploadId>one</UploadId></Upload>"))
    });
    let open: String = open.collect();
    format!("<ListMultipartUploadsResult><IsTruncated>false</IsTruncated>{open}</ListMultipartUploadsResult>")
}

fn answer(objects: &mut Objects, method: &str, target: &str, body: (usize, Vec<u8>), exclusive: bool) -> Vec<u8> {
    let (key, query) = target.split_once('?').unwrap_or((target, ""));
    let has = |name: &str| query.split('&').any(|pair| pair.split('=').next() == Some(name));
    let xml = |text: &str| {
        (
            200,
            format!("<?xml version=\"1.0\" encoding=\"UTF-8\"?>{text}").into_bytes(),
            0,
        )
    };
    let (status, content, size) = match method {
        "PUT" if has("partNumber") => {
            *objects.parts.entry(key.to_owned()).or_default() += body.0;
            (200, Vec::new(), 0)
        }
        "PUT" if exclusive && objects.whole.contains_key(key) => (412, Vec::new(), 0),
        "PUT" => {
            objects.whole.insert(key.to_owned(), body);
            (200, Vec::new(), 0)
        }
        "POST" if has("uploads") => {
            objects.parts.insert(key.to_owned(), 0);
            xml("<InitiateMultipartUploadResult><UploadId>one</UploadId></InitiateMultipartUploadResult>")
        }
        "POST" if exclusive && objects.whole.contains_key(key) => (412, Vec::new(), 0),
        "POST" => {
            let size = objects.parts.remove(key).unwrap_or_default();
            objects.whole.insert(key.to_owned(), (size, Vec::new()));
            xml("<CompleteMultipartUploadResult><ETag>\"x\"</ETag></CompleteMultipartUploadResult>")
        }
        "DELETE" if has("uploadId") => {
            objects.parts.remove(key);
            (204, Vec::new(), 0)
        }
        "DELETE" => {
            objects.whole.remove(key);
            (204, Vec::new(), 0)
        }
        _ => match objects.whole.get(key) {
            Some((size, _)) if method == "HEAD" => (200, Vec::new(), *size),
            Some((_, bytes)) => (200, bytes.clone(), 0),
            None if has("list-type") => xml("<ListBucketResult><IsTruncated>false</IsTruncated></ListBucketResult>"),
            None if has("uploads") => xml(&uploads(objects, key)),
            None => (404, Vec::new(), 0),
        },
    };
    let mut head = format!("HTTP/1.1 {status} x\r\nETag: \"x\"\r\nLast-Modified: Sat, 21 Nov 2026 06:00:00 GMT\r\n");
    if status != 204 {
        let _ = write!(head, "Content-Length: {}\r\n", content.len().max(size));
    }
    [format!("{head}\r\n").into_bytes(), content].concat()
}
