//! The host gives way: full disks, directories without rights, results that cannot be written.

use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Stdio};

use super::{NIGHTLY, PURGE, application, as_nobody, assert_says, directory_store, is_root, superuser};
use crate::support::Database;
use crate::support::process::{Finished, Host};

/// The program with a full disk of so many KiB under a directory: a file system of its own where
/// root can mount one.
fn on_small_disk(host: &Host, directory: &str, kib: u32, verb: &[&str]) -> Option<Finished> {
    std::fs::create_dir_all(host.path(directory)).unwrap();
    let script = format!("mount -t tmpfs -o size={kib}k,mode=0777 tmpfs \"$1\" && shift && exec \"$@\"");
    let program = host.command(verb);
    let mut command = Command::new("unshare");
    command
        .args(["--mount", "/bin/sh", "-c", &script, "sh"])
        .arg(host.path(directory))
        .arg(program.get_program())
        .args(program.get_args());
    command.env_clear();
    for (name, value) in program.get_envs() {
        command.env(name, value.unwrap_or_default());
    }
    let may_mount = Command::new("unshare")
        .args(["--mount", "/bin/sh", "-c", "mount -t tmpfs tmpfs /mnt"])
        .output()
        .is_ok_and(|output| output.status.success());
    may_mount.then(|| Finished::from(command.stdin(Stdio::null()).output().unwrap()))
}

/// The program with a limit on the size of the files it writes, in blocks of 512 bytes.
fn with_small_files(host: &Host, blocks: u32, verb: &[&str]) -> Finished {
    let program = host.command(verb);
    let mut command = Command::new("/bin/sh");
    command
        .args(["-c", &format!("ulimit -f {blocks}; exec \"$@\""), "sh"])
        .arg(program.get_program())
        .args(program.get_args());
    command.env_clear();
    for (name, value) in program.get_envs() {
        command.env(name, value.unwrap_or_default());
    }
    Finished::from(command.stdin(Stdio::null()).output().unwrap())
}

/// Rows that gzip cannot make small: about 2 MiB.
async fn bulk(database: &Database) {
    database
        .execute("CREATE TABLE bulk AS SELECT n, (SELECT string_agg(md5(n::text || k), '') FROM generate_series(1, 8) k) AS noise FROM generate_series(1, 8000) n")
        .await;
}

fn assert_no_backup(host: &Host) {
    let listed = host.run(&["backup", "list", "--json"]).expect_code(0).json();
    assert_eq!(listed["backups"].as_array().unwrap().len(), 0);
    let left: Vec<_> = walk(&host.path("store"));
    assert!(left.is_empty(), "{left:?}");
}

fn walk(directory: &std::path::Path) -> Vec<std::path::PathBuf> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
        if entry.path().is_dir() {
            files.extend(walk(&entry.path()));
        } else {
            files.push(entry.path());
        }
    }
    files
}

#[tokio::test]
async fn a_store_on_a_full_disk_fails_the_backup_by_name_and_keeps_no_half_of_it() {
    let database = application().await;
    bulk(&database).await;
    let host = Host::new("");
    host.configure(&format!(
        "{}{}{NIGHTLY}",
        superuser(&database).await,
        directory_store(&host)
    ));
    if let Some(run) = on_small_disk(&host, "store", 512, &["run", "nightly"]) {
        assert!(matches!(run.code, 1 | 75), "{}: {}{}", run.code, run.stdout, run.stderr);
        assert_says(&run, &["failed", "store", "No space left", "make room"]);
    }
    let run = with_small_files(&host, 256, &["run", "nightly"]);
    assert!(matches!(run.code, 1 | 75), "{}: {}{}", run.code, run.stdout, run.stderr);
    assert_says(&run, &["failed", "File too large"]);
    assert_no_backup(&host);
    // And with room again the next one is whole.
    host.run(&["run", "nightly"]).expect_code(0);
    host.run(&["audit", "verify"]).expect_code(0);
}

#[tokio::test]
async fn an_audit_log_that_cannot_grow_stops_a_purge_before_its_first_row() {
    let database = application().await;
    let host = Host::new(&format!("{}{PURGE}", superuser(&database).await));
    // 4 KiB: the keys fit, the run's intent does not.
    if let Some(run) = on_small_disk(&host, "state", 4, &["run", "purge"]) {
        assert_eq!(run.code, 1, "{}{}", run.stdout, run.stderr);
        assert_says(&run, &["audit", "No space left", "free space"]);
    }
    assert_eq!(database.value::<i64>("SELECT count(*) FROM events").await, 100);
    // A log that has begun, and may not grow.
    host.run(&["plan", "purge"]).expect_code(0);
    let limited = with_small_files(&host, 1, &["run", "purge"]);
    assert_eq!(limited.code, 1, "{}{}", limited.stdout, limited.stderr);
    assert_says(&limited, &["audit", "File too large"]);
    assert_eq!(database.value::<i64>("SELECT count(*) FROM events").await, 100);
    host.run(&["run", "purge"]).expect_code(0);
    assert_eq!(database.value::<i64>("SELECT count(*) FROM events").await, 10);
    host.run(&["audit", "verify"]).expect_code(0);
}

#[tokio::test]
async fn a_state_directory_without_rights_stops_every_verb_that_would_write() {
    if !is_root() {
        return;
    }
    let database = application().await;
    let host = Host::new(&format!("{}{PURGE}", superuser(&database).await));
    for (path, mode) in [("", 0o755), ("config.toml", 0o644)] {
        std::fs::set_permissions(host.path(path), std::fs::Permissions::from_mode(mode)).unwrap();
    }
    let verbs: [&[&str]; 2] = [&["run", "purge"], &["daemon"]];
    for arguments in verbs {
        let finished = Finished::from(as_nobody(&mut host.command(arguments)).output().unwrap()).expect_code(1);
        assert_says(
            &finished,
            &[
                "the audit log cannot be used, so nothing runs",
                "/state",
                "give the user that runs pgreeve",
            ],
        );
    }
    let doctor = Finished::from(as_nobody(&mut host.command(&["doctor"])).output().unwrap()).expect_code(3);
    assert_says(&doctor, &["BAD  state_dir", "/state", "id 65534"]);
    // What only looks still works.
    let looks: [&[&str]; 3] = [&["plan", "purge"], &["status"], &["next"]];
    for arguments in looks {
        Finished::from(as_nobody(&mut host.command(arguments)).output().unwrap()).expect_code(0);
    }
    assert_eq!(database.value::<i64>("SELECT count(*) FROM events").await, 100);
}

#[test]
fn a_result_that_cannot_be_written_is_no_success() {
    let host = Host::new(&format!(
        "[databases.app]\nurl = \"postgresql:///app?host=/nowhere&user=nobody\"\n{PURGE}"
    ));
    let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let output = host.command(&["next", "--json"]).stdout(full).output().unwrap();
    let finished = Finished::from(output).expect_code(1);
    assert_says(&finished, &["the result could not be written", "No space left"]);
}

#[test]
fn a_reader_that_has_seen_enough_is_no_error() {
    let host = Host::new(&format!(
        "[databases.app]\nurl = \"postgresql:///app?host=/nowhere&user=nobody\"\n{PURGE}"
    ));
    let mut child = host
        .command(&["next", "-n", "1000", "--json"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let finished = Finished::from(child.wait_with_output().unwrap()).expect_code(0);
    assert_eq!(finished.stderr, "");
}
