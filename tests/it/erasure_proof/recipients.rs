//! Recipients are told by webhook, until they acknowledge.

use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::{ask, assert_nothing_of_jane, host, request, run, shop};

/// A server that answers with some statuses in turn, the last one for ever, and keeps what it got.
struct Recipient {
    url: String,
    got: Arc<Mutex<Vec<String>>>,
}

impl Recipient {
    async fn answering(statuses: &'static [u16]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/erased", listener.local_addr().unwrap());
        let got: Arc<Mutex<Vec<String>>> = Arc::default();
        let kept = Arc::clone(&got);
        tokio::spawn(async move {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                let kept = Arc::clone(&kept);
                tokio::spawn(async move {
                    let mut text = String::new();
                    let mut buffer = vec![0; 4096];
                    loop {
                        let read = stream.read(&mut buffer).await.unwrap();
                        if read == 0 {
                            return;
                        }
                        text.push_str(&String::from_utf8_lossy(&buffer[..read]));
                        let Some((head, body)) = text.split_once("\r\n\r\n") else {
                            continue;
                        };
                        let length = head
                            .lines()
                            .find_map(|line| line.to_lowercase().strip_prefix("content-length: ").map(str::to_owned))
                            .unwrap();
                        if body.len() < length.parse().unwrap() {
                            continue;
                        }
                        let number = {
                            let mut kept = kept.lock().unwrap();
                            kept.push(std::mem::take(&mut text));
                            kept.len()
                        };
                        let status = statuses[(number - 1).min(statuses.len() - 1)];
                        let answer = format!("HTTP/1.1 {status} x\r\ncontent-length: 2\r\n\r\nok");
                        stream.write_all(answer.as_bytes()).await.unwrap();
                    }
                });
            }
        });
        Self { url, got }
    }

    fn got(&self) -> Vec<String> {
        self.got.lock().unwrap().clone()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_recipient_that_fails_twice_acknowledges_the_third_time() {
    let recipient = Recipient::answering(&[500, 503, 204]).await;
    let database = shop().await;
    let secret = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(secret.path(), "s3cret\n").unwrap();
    let notify = format!(
        "notify = {{ mailer = {{ url = \"{}\", secret_file = \"{}\" }} }}\n",
        recipient.url,
        secret.path().display()
    );
    let host = host(&database, &notify).await;
    ask(&database).await;
    let report = run(&host, "erase");
    assert_eq!(report["outcome"], "succeeded", "{report:#}");
    assert_eq!(
        report["report"]["afterwards"]["notices"]["acknowledged"], 1,
        "{report:#}"
    );
    let got = recipient.got();
    assert_eq!(got.len(), 3);
    let request = request(&database).await;
    for message in &got {
        assert!(message.contains(&format!("{request}/notify/mailer")), "{message}");
        assert!(
            message.to_lowercase().contains("authorization: bearer s3cret"),
            "{message}"
        );
        assert_nothing_of_jane("a message", message.as_bytes());
        let body: serde_json::Value = serde_json::from_str(message.split_once("\r\n\r\n").unwrap().1).unwrap();
        assert_eq!(body["request_row"], "10");
        assert_eq!(body["subject"]["token"].as_str().unwrap().len(), 64);
    }
    let row: String = database
        .value("SELECT state || ' ' || attempts FROM pgreeve.erasure_outbox WHERE acknowledged_at IS NOT NULL")
        .await;
    assert_eq!(row, "acknowledged 3");
    let told = host
        .audit_records()
        .into_iter()
        .find(|record| record["kind"] == "erasure.notified")
        .unwrap();
    assert_eq!(told["body"]["recipient"], "mailer");
    // Nobody is told twice.
    run(&host, "erase");
    assert_eq!(recipient.got().len(), 3);
    let status = host
        .run(&["erasure", "certificate", &request, "--format", "text"])
        .expect_code(0);
    assert!(status.stdout.contains("mailer"), "{}", status.stdout);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_recipient_that_never_acknowledges_is_waited_for_and_the_run_says_so() {
    let recipient = Recipient::answering(&[500]).await;
    let database = shop().await;
    let notify = format!("notify = {{ mailer = {{ url = \"{}\" }} }}\n", recipient.url);
    let host = host(&database, &notify).await;
    ask(&database).await;
    let report = run(&host, "erase");
    assert_eq!(report["outcome"], "partial", "{report:#}");
    let state: String = database.value("SELECT state FROM pgreeve.erasure_request").await;
    assert_eq!(state, "completed", "the person is gone all the same");
    let row: String = database
        .value("SELECT state || ' ' || attempts || ' ' || (not_before > now()) || ' ' || reason FROM pgreeve.erasure_outbox")
        .await;
    assert_eq!(row, "pending 3 true it answered with status 500");
    // Not before its time, then again.
    run(&host, "erase");
    assert_eq!(recipient.got().len(), 3);
    database
        .execute("UPDATE pgreeve.erasure_outbox SET not_before = now()")
        .await;
    run(&host, "erase");
    assert_eq!(recipient.got().len(), 6);
}

#[tokio::test]
async fn a_recipient_in_plain_text_is_refused_by_the_configuration() {
    let database = shop().await;
    let host = host(
        &database,
        "notify = { mailer = { url = \"http://mail.example.org/\" } }\n",
    )
    .await;
    let checked = host.run(&["check"]).expect_code(78);
    assert!(checked.stderr.contains("plain text"), "{}", checked.stderr);
}
