//! Where credentials come from: each way that AWS knows, as the program meets it.

use pgreeve::demo::s3_server::{S3Server, write_credentials};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use crate::support::process::{Finished, Host};

/// A host with a backup to the server; its database is down, which is not the store's fault.
fn host(server: &S3Server, keys: &str) -> Host {
    Host::new(&format!(
        "[databases.app]\nurl = \"postgresql:///app?host=/nonexistent&user=nobody\"\n\
         [stores.offsite]\nurl = \"s3://{}/backups\"\nendpoint = \"{}\"\npath_style = true\n{keys}\n\
         [jobs.nightly]\nschedule = \"30 3 * * *\"\nbackup = {{ store = \"offsite\" }}\n",
        server.bucket(),
        server.endpoint()
    ))
}

fn check(host: &Host, environment: &[(&str, &str)]) -> Finished {
    let mut command = host.command(&["check", "--connect"]);
    command.envs(environment.iter().copied());
    Finished::from(command.output().unwrap())
}

#[track_caller]
fn assert_usable(finished: &Finished, usable: bool) {
    let said = format!("{}{}", finished.stdout, finished.stderr);
    assert!(said.contains("/nonexistent"), "the check came to its end: {said}");
    assert_eq!(!said.contains("store offsite"), usable, "{said}");
}

async fn server() -> (S3Server, TempDir) {
    let directory = TempDir::new().unwrap();
    (S3Server::start(directory.path()).await.unwrap(), directory)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn credentials_may_come_from_the_environment() {
    let (server, _directory) = server().await;
    let host = host(&server, "");
    let offline = ("AWS_EC2_METADATA_DISABLED", "true");
    let key = ("AWS_ACCESS_KEY_ID", server.access_key());
    assert_usable(
        &check(&host, &[offline, key, ("AWS_SECRET_ACCESS_KEY", server.secret_key())]),
        true,
    );
    assert_usable(
        &check(&host, &[offline, key, ("AWS_SECRET_ACCESS_KEY", "wrong")]),
        false,
    );
    assert_usable(&check(&host, &[offline]), false);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn credentials_may_come_from_a_profile_and_from_the_services_own_directory() {
    let (server, directory) = server().await;
    let file = directory.path().join("aws");
    write_credentials(&file, "NOBODY", "wrong").unwrap();
    let wrong = std::fs::read_to_string(&file).unwrap();
    let right = format!(
        "[backup]\naws_access_key_id = {}\naws_secret_access_key = {}\n",
        server.access_key(),
        server.secret_key()
    );
    std::fs::write(&file, wrong + &right).unwrap();
    let path = file.to_str().unwrap();
    let shared = ("AWS_SHARED_CREDENTIALS_FILE", path);
    assert_usable(&check(&host(&server, "profile = \"backup\""), &[shared]), true);
    assert_usable(&check(&host(&server, "profile = \"default\""), &[shared]), false);
    let own = "credentials_file = \"${CREDENTIALS_DIRECTORY}/aws\"\nprofile = \"backup\"";
    // The host's own checks need the variable too.
    let base = directory.path().to_str().unwrap();
    assert_usable(&check(&host(&server, own), &[("CREDENTIALS_DIRECTORY", base)]), true);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn credentials_may_come_from_the_role_of_the_instance() {
    let (server, _directory) = server().await;
    let metadata = metadata_service(server.access_key(), server.secret_key()).await;
    let place = [("AWS_EC2_METADATA_SERVICE_ENDPOINT", metadata.as_str())];
    assert_usable(&check(&host(&server, ""), &place), true);
}

/// What an instance of EC2 tells about its role.
async fn metadata_service(access_key: &str, secret_key: &str) -> String {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    let credentials = format!(
        "{{\"Code\":\"Success\",\"Type\":\"AWS-HMAC\",\"AccessKeyId\":\"{access_key}\",\"SecretAccessKey\":\"{secret_key}\",\"Token\":\"\",\"LastUpdated\":\"2026-01-01T00:00:00Z\",\"Expiration\":\"2999-01-01T00:00:00Z\"}}"
    );
    tokio::spawn(async move {
        while let Ok((mut socket, _)) = listener.accept().await {
            let mut head = Vec::new();
            while !head.windows(4).any(|window| window == b"\r\n\r\n") {
                if socket.read_buf(&mut head).await.unwrap_or(0) == 0 {
                    break;
                }
            }
            let head = String::from_utf8_lossy(&head).into_owned();
            let body = match head.split(' ').nth(1).unwrap_or_default() {
                "/latest/api/token" => "a-token",
                path if path.ends_with("/security-credentials/") || path.ends_with("/security-credentials") => {
                    "backup-role"
                }
                path if path.ends_with("/backup-role") => credentials.as_str(),
                _ => "",
            };
            let answer = format!(
                "HTTP/1.1 {}\r\nx-aws-ec2-metadata-token-ttl-seconds: 21600\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
                if body.is_empty() { "404 Not Found" } else { "200 OK" },
                body.len()
            );
            // The client may have gone; nobody else asks.
            let _ = socket.write_all(answer.as_bytes()).await;
        }
    });
    endpoint
}
