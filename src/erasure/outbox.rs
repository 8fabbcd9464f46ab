//! Recipients of personal data are told of its erasure (Art. 19), by webhook.
//!
//! A message waits in the database until its recipient has acknowledged it with a status of 2xx. It
//! names the request and the subject's token, and nothing else of the person; a recipient that must
//! know whom is meant asks the application for its own request, by `request_row`.
//!
//! This file alone names `hyper`.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use http_body_util::{BodyExt, Full};
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, USER_AGENT};
use hyper::{Method, Request, StatusCode, Uri};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde::Serialize;
use serde_json::json;
use tokio_util::bytes::Bytes;

use crate::ledger::notices::Notice;
use crate::values::{Name, Secret, ValueError};

/// How long one try may take.
const TRY_TIME: Duration = Duration::from_secs(10);

/// The rests between the tries of one run.
const RESTS: [Duration; 2] = [Duration::from_millis(250), Duration::from_secs(1)];

/// After so many tries a message is given up; with the rests between runs that is about a week.
const MOST_TRIES: i32 = 60;

/// The longest rest between runs, in seconds.
const LONGEST_REST: f64 = 6.0 * 3600.0;

/// How much of an answer is read; nothing in it matters.
const MOST_ANSWER: usize = 64 * 1024;

/// `notify.NAME`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Recipient {
    /// Where messages go: `https`, or `http` to this host itself.
    pub url: String,
    /// A file whose first line is sent as a bearer token; read anew for each message.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub secret_file: Option<PathBuf>,
}

impl Recipient {
    /// Checks a URL.
    ///
    /// # Errors
    /// When messages would travel in plain text, or the URL carries a password.
    pub fn check_url(text: &str) -> Result<(), ValueError> {
        let bad = |problem: &str| ValueError {
            problem: problem.to_owned(),
            help: "write https://HOST/PATH; a secret belongs into secret_file".to_owned(),
        };
        let url = url::Url::parse(text).map_err(|_| bad("this is not a URL"))?;
        if !url.username().is_empty() || url.password().is_some() {
            return Err(bad("the URL carries a user or password"));
        }
        let is_here = matches!(url.host_str(), Some("localhost" | "127.0.0.1" | "[::1]"));
        match url.scheme() {
            "https" => {}
            "http" if is_here => {}
            _ => return Err(bad("messages would travel in plain text")),
        }
        text.parse::<Uri>().map(|_| ()).map_err(|_| bad("this is not a URL"))
    }
}

/// The recipients of a job, by their names.
pub type Recipients = BTreeMap<Name, Recipient>;

/// How the tries to deliver a message ended.
#[derive(Debug, Clone, PartialEq)]
pub enum Delivery {
    /// The recipient has it, after so many tries.
    Acknowledged(i32),
    /// It has not: after so many tries, for a reason, and is to be tried again after so many seconds.
    Pending(i32, String, f64),
    /// It has not, and is given up.
    GivenUp(i32, String),
}

/// Sends messages.
#[derive(Debug)]
pub struct Messenger {
    client: Client<HttpsConnector<HttpConnector>, Full<Bytes>>,
}

impl Messenger {
    /// A messenger that trusts whom the host trusts.
    ///
    /// # Errors
    /// When the host has no certificates of authorities.
    pub fn new() -> Result<Self, String> {
        let connector = HttpsConnectorBuilder::new()
            .with_native_roots()
            .map_err(|error| format!("read the host's trusted certificates: {error}"))?
            .https_or_http()
            .enable_http1()
            .build();
        Ok(Self {
            client: Client::builder(TokioExecutor::new()).build(connector),
        })
    }

    /// Tries to deliver a message, a few times.
    pub async fn deliver(&self, notice: &Notice, job: &str, database: &str, recipient: &Recipient) -> Delivery {
        let body = Bytes::from(message(notice, job, database));
        let mut tries = 0;
        let cause = loop {
            tries += 1;
            let cause = match self.post(notice, recipient, body.clone()).await {
                Ok(()) => return Delivery::Acknowledged(tries),
                Err(cause) => cause,
            };
            let rest = usize::try_from(tries - 1).ok().and_then(|index| RESTS.get(index));
            match rest {
                Some(rest) => tokio::time::sleep(*rest).await,
                None => break cause,
            }
        };
        let total = notice.attempts.saturating_add(tries);
        if total >= MOST_TRIES {
            return Delivery::GivenUp(tries, cause);
        }
        let exponent = (total / tries.max(1)).clamp(0, 16);
        Delivery::Pending(tries, cause, (30.0 * 2_f64.powi(exponent)).min(LONGEST_REST))
    }

    /// The error says what the recipient did, without a word of its own.
    async fn post(&self, notice: &Notice, recipient: &Recipient, body: Bytes) -> Result<(), String> {
        let mut request = Request::builder()
            .method(Method::POST)
            .uri(&recipient.url)
            .header(CONTENT_TYPE, "application/json")
            .header(USER_AGENT, concat!("pgreeve/", env!("CARGO_PKG_VERSION")))
            .header("Idempotency-Key", &notice.idempotency_key);
        if let Some(secret) = secret(recipient)? {
            request = request.header(AUTHORIZATION, format!("Bearer {}", secret.expose()));
        }
        let request = request
            .body(Full::new(body))
            .map_err(|_| "the message cannot be made: check url and secret_file".to_owned())?;
        let answered = tokio::time::timeout(TRY_TIME, async {
            let response = self.client.request(request).await.map_err(|error| {
                if error.is_connect() {
                    "it cannot be reached".to_owned()
                } else {
                    "the connection broke".to_owned()
                }
            })?;
            let status = response.status();
            // Read to its end, so that the connection can be used again.
            let mut body = response.into_body();
            let mut read = 0_usize;
            while let Some(Ok(frame)) = body.frame().await {
                read = read.saturating_add(frame.data_ref().map_or(0, Bytes::len));
                if read > MOST_ANSWER {
                    break;
                }
            }
            Ok(status)
        });
        match answered.await {
            Err(_) => Err(format!("it did not answer within {} s", TRY_TIME.as_secs())),
            Ok(Err(cause)) => Err(cause),
            Ok(Ok(status)) if status.is_success() => Ok(()),
            Ok(Ok(status)) => Err(refusal(status)),
        }
    }
}

fn refusal(status: StatusCode) -> String {
    format!("it answered with status {}", status.as_u16())
}

fn secret(recipient: &Recipient) -> Result<Option<Secret>, String> {
    let Some(file) = &recipient.secret_file else {
        return Ok(None);
    };
    let text = std::fs::read_to_string(file).map_err(|error| format!("read {}: {error}", file.display()))?;
    Ok(Some(Secret::new(text.lines().next().unwrap_or_default().to_owned())))
}

fn message(notice: &Notice, job: &str, database: &str) -> String {
    json!({
        "version": 1,
        "event": "erasure.completed",
        "idempotency_key": notice.idempotency_key,
        "request": notice.request,
        "request_row": notice.source_id,
        "subject": { "token": notice.token, "key_id": notice.token_key },
        "database": database,
        "job": job,
        "state": notice.state,
        "finished_at": notice.finished_at,
    })
    .to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_never_travel_in_plain_text() {
        for good in [
            "https://mail.example.org/erased",
            "http://127.0.0.1:8080/x",
            "http://localhost/x",
            "http://[::1]/x",
        ] {
            Recipient::check_url(good).unwrap();
        }
        for bad in [
            "http://mail.example.org/",
            "ftp://x/",
            "mail",
            "https://user:pass@x/",
            "http://127.0.0.1.example.org/",
        ] {
            assert!(Recipient::check_url(bad).is_err(), "{bad}");
        }
    }
}
