//! The audit log and its verification.

use std::fs::{self, OpenOptions, Permissions};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use pgreeve::audit::record::MAX_LINE;
use pgreeve::audit::segment::Segment;
use pgreeve::audit::{Anchor, AuditLog, Entry, PublicKey, RecordKind, RunRecorder, Verification, runs, verify};
use pgreeve::job::Recorder;
use pgreeve::values::RunId;
use proptest::prelude::*;
use serde_json::json;
use tempfile::TempDir;

/// Tells [`writer_process`] what to do and where.
const ROLE: &str = "PGREEVE_TEST_AUDIT_ROLE";
const DIRECTORY: &str = "PGREEVE_TEST_AUDIT_DIRECTORY";

fn entry(number: u64) -> Entry {
    Entry::new(RecordKind::Skipped, json!({"number": number, "reason": "paused"})).job("purge-events".parse().unwrap())
}

async fn append(log: &AuditLog, count: u64) {
    for number in 0..count {
        log.append(entry(number)).await.unwrap();
    }
}

fn check(dir: &Path) -> Verification {
    verify(dir, None, &[]).unwrap()
}

fn assert_green(dir: &Path) -> Verification {
    let result = check(dir);
    assert!(result.ok, "{result:#?}");
    result
}

/// The segments' lines, oldest first, each with its newline.
fn lines(dir: &Path) -> Vec<Vec<u8>> {
    let segments = Segment::list(dir).unwrap();
    let contents = segments.iter().map(|segment| fs::read(&segment.path).unwrap());
    contents
        .flat_map(|content| {
            content
                .split_inclusive(|byte| *byte == b'\n')
                .map(<[u8]>::to_vec)
                .collect::<Vec<_>>()
        })
        .collect()
}

/// A log of three segments that ends in a checkpoint, as bytes, to be damaged in copies.
struct Sample {
    files: Vec<(String, Vec<u8>)>,
    key: PublicKey,
    anchors: Vec<Anchor>,
}

static SAMPLE: LazyLock<Sample> = LazyLock::new(|| {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(async {
        let dir = tempfile::tempdir().unwrap();
        let log = AuditLog::open_with(dir.path(), "db1", 2500).unwrap();
        let mut anchors = Vec::new();
        for _ in 0..3 {
            append(&log, 6).await;
            anchors.push(log.append_checkpoint().await.unwrap());
        }
        let read = |segment: Segment| (segment.name(), fs::read(&segment.path).unwrap());
        let files: Vec<_> = Segment::list(dir.path()).unwrap().into_iter().map(read).collect();
        assert!(files.len() >= 3, "the sample must have several segments");
        Sample {
            files,
            key: log.public_key(),
            anchors,
        }
    })
});

fn newlines(bytes: &[u8]) -> u64 {
    bytes.split(|byte| *byte == b'\n').count() as u64 - 1
}

/// A line of the sample.
#[derive(Debug, Clone)]
struct Spot {
    file: String,
    line: u64,
    seq: u64,
}

impl Sample {
    fn write(&self) -> TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (name, content) in &self.files {
            fs::write(dir.path().join(name), content).unwrap();
        }
        dir
    }

    /// The files as lists of lines, for damage by the line.
    fn split(&self) -> Vec<(String, Vec<Vec<u8>>)> {
        let split = |content: &[u8]| {
            content
                .split_inclusive(|byte| *byte == b'\n')
                .map(<[u8]>::to_vec)
                .collect()
        };
        self.files
            .iter()
            .map(|(name, content)| (name.clone(), split(content)))
            .collect()
    }

    /// Each record's file and line.
    fn spots(&self) -> Vec<Spot> {
        let mut spots = Vec::new();
        for (file, lines) in self.split() {
            for line in 1..=lines.len() as u64 {
                let seq = spots.len() as u64 + 1;
                spots.push(Spot {
                    file: file.clone(),
                    line,
                    seq,
                });
            }
        }
        spots
    }

    fn records(&self) -> u64 {
        self.spots().len() as u64
    }

    fn bytes(&self) -> usize {
        self.files.iter().map(|(_, content)| content.len()).sum()
    }

    /// Verifies a copy in which one file has other bytes.
    fn verify_with(&self, file: usize, content: &[u8], anchors: &[Anchor]) -> Verification {
        let dir = self.write();
        fs::write(dir.path().join(&self.files[file].0), content).unwrap();
        verify(dir.path(), Some(&self.key), anchors).unwrap()
    }

    /// The file and the offset in it of a byte of the whole log, and the line it belongs to.
    fn locate(&self, mut position: usize) -> (usize, usize, Spot) {
        let mut before = 0;
        for (index, (name, content)) in self.files.iter().enumerate() {
            if position < content.len() {
                let above = newlines(&content[..position]);
                let spot = Spot {
                    file: name.clone(),
                    line: above + 1,
                    seq: before + above + 1,
                };
                return (index, position, spot);
            }
            position -= content.len();
            before += newlines(content);
        }
        panic!("the log is shorter");
    }
}

#[track_caller]
fn assert_bad_at(result: &Verification, spot: &Spot) {
    assert!(!result.ok, "{spot:?}: {result:#?}");
    let bad = result.first_bad.as_ref().unwrap();
    assert_eq!(
        (bad.seq, bad.file.as_str(), bad.line),
        (spot.seq, spot.file.as_str(), spot.line),
        "{bad:?}"
    );
}

#[test]
fn an_untouched_log_verifies_with_its_key_and_anchors() {
    let dir = SAMPLE.write();
    let result = verify(dir.path(), Some(&SAMPLE.key), &SAMPLE.anchors).unwrap();
    assert!(result.ok, "{result:#?}");
    assert_eq!(result.records, SAMPLE.records());
    assert_eq!((result.checkpoints, result.anchors), (3, 3));
    assert_eq!(result.signed_through, SAMPLE.records() - 1);
    assert_eq!(result.segments, SAMPLE.files.len() as u64);
    let document = serde_json::to_value(&result).unwrap();
    assert_eq!(document["version"], 1);
    assert_eq!(document["ok"], true);
    assert_eq!(document["records"], SAMPLE.records());
    assert!(document["first_bad"].is_null());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_changed_byte_is_found_in_its_record(position in 0..SAMPLE.bytes(), mask in 1..=255_u8) {
        let (file, offset, spot) = SAMPLE.locate(position);
        let mut content = SAMPLE.files[file].1.clone();
        content[offset] ^= mask;
        assert_bad_at(&SAMPLE.verify_with(file, &content, &[]), &spot);
    }

    #[test]
    fn a_removed_byte_is_found_in_its_record(position in 0..SAMPLE.bytes()) {
        let (file, offset, spot) = SAMPLE.locate(position);
        let mut content = SAMPLE.files[file].1.clone();
        content.remove(offset);
        assert_bad_at(&SAMPLE.verify_with(file, &content, &[]), &spot);
    }

    #[test]
    fn an_added_byte_is_found_in_its_record(position in 0..SAMPLE.bytes(), byte in any::<u8>()) {
        let (file, offset, spot) = SAMPLE.locate(position);
        let mut content = SAMPLE.files[file].1.clone();
        content.insert(offset, byte);
        assert_bad_at(&SAMPLE.verify_with(file, &content, &[]), &spot);
    }

    #[test]
    fn a_cut_within_a_line_is_found_there(position in 0..SAMPLE.bytes()) {
        let (file, offset, spot) = SAMPLE.locate(position);
        let content = &SAMPLE.files[file].1[..offset];
        prop_assume!(!content.is_empty() && !content.ends_with(b"\n"));
        assert_bad_at(&SAMPLE.verify_with(file, content, &[]), &spot);
    }
}

#[test]
fn each_byte_of_the_last_checkpoint_is_covered_by_its_signature() {
    let (file, content) = (SAMPLE.files.len() - 1, &SAMPLE.files.last().unwrap().1);
    let spot = SAMPLE.spots().pop().unwrap();
    let begin = content[..content.len() - 1]
        .iter()
        .rposition(|byte| *byte == b'\n')
        .unwrap()
        + 1;
    for offset in begin..content.len() {
        let mut content = content.clone();
        // Case and sign of a character: both leave many of them valid JSON.
        content[offset] ^= if offset % 2 == 0 { 0x20 } else { 0x01 };
        assert_bad_at(&SAMPLE.verify_with(file, &content, &[]), &spot);
    }
}

#[test]
fn a_line_that_is_removed_repeated_or_moved_is_found() {
    let spots = SAMPLE.spots();
    for (file, (name, lines)) in SAMPLE.split().into_iter().enumerate() {
        let is_last_file = file + 1 == SAMPLE.files.len();
        for index in 0..lines.len() {
            let spot = spots
                .iter()
                .find(|spot| spot.file == name && spot.line == index as u64 + 1)
                .unwrap();
            let mut repeated = lines.clone();
            repeated.insert(index, lines[index].clone());
            let after = Spot {
                line: spot.line + 1,
                seq: spot.seq + 1,
                ..spot.clone()
            };
            assert_bad_at(&SAMPLE.verify_with(file, &repeated.concat(), &[]), &after);
            if index + 1 == lines.len() {
                continue;
            }
            let mut swapped = lines.clone();
            swapped.swap(index, index + 1);
            assert_bad_at(&SAMPLE.verify_with(file, &swapped.concat(), &[]), spot);
            let mut removed = lines.clone();
            removed.remove(index);
            assert_bad_at(&SAMPLE.verify_with(file, &removed.concat(), &[]), spot);
        }
        if !is_last_file {
            let cut = lines[..lines.len() - 1].concat();
            let next = spots.iter().find(|spot| spot.file == SAMPLE.files[file + 1].0).unwrap();
            let missing = Spot {
                seq: next.seq - 1,
                ..next.clone()
            };
            assert_bad_at(&SAMPLE.verify_with(file, &cut, &[]), &missing);
        }
    }
}

#[test]
fn a_removed_segment_is_found_at_the_start_and_in_the_middle() {
    for file in 0..SAMPLE.files.len() - 1 {
        let dir = SAMPLE.write();
        fs::remove_file(dir.path().join(&SAMPLE.files[file].0)).unwrap();
        let result = verify(dir.path(), Some(&SAMPLE.key), &[]).unwrap();
        let missing = SAMPLE
            .spots()
            .into_iter()
            .find(|spot| spot.file == SAMPLE.files[file].0)
            .unwrap();
        let next = Spot {
            file: SAMPLE.files[file + 1].0.clone(),
            ..missing
        };
        assert_bad_at(&result, &next);
    }
}

#[test]
fn an_empty_directory_is_not_a_sound_log() {
    let dir = tempfile::tempdir().unwrap();
    assert!(!verify(dir.path(), Some(&SAMPLE.key), &[]).unwrap().ok);
    assert!(
        verify(dir.path(), None, &[]).is_err(),
        "without a key nothing can be checked"
    );
    assert!(verify(&dir.path().join("absent"), Some(&SAMPLE.key), &[]).is_err());
}

#[test]
fn a_tail_cut_at_the_end_of_a_line_is_found_with_an_anchor() {
    let file = SAMPLE.files.len() - 1;
    let (name, lines) = SAMPLE.split().pop().unwrap();
    let newest = SAMPLE.anchors.last().unwrap();
    let anchored = SAMPLE.spots().iter().position(|spot| spot.seq == newest.seq).unwrap();
    assert_eq!(
        SAMPLE.spots()[anchored].file,
        name,
        "the newest anchor is of the last file"
    );
    for kept in 1..lines.len() {
        let content = lines[..kept].concat();
        let without = SAMPLE.verify_with(file, &content, &[]);
        assert!(without.ok, "{without:#?}");
        assert!(
            without.warnings.iter().any(|warning| warning.contains("no anchor")),
            "{without:#?}"
        );
        let with = SAMPLE.verify_with(file, &content, &SAMPLE.anchors);
        let last_seq = without.records;
        assert_eq!(with.ok, last_seq >= newest.seq, "{with:#?}");
        if let Some(bad) = with.first_bad {
            assert_eq!((bad.seq, bad.line), (last_seq + 1, kept as u64));
            assert!(bad.problem.contains("cut off"), "{bad:?}");
        }
    }
}

#[test]
fn a_removed_last_segment_is_found_with_an_anchor() {
    let dir = SAMPLE.write();
    fs::remove_file(dir.path().join(&SAMPLE.files.last().unwrap().0)).unwrap();
    assert!(verify(dir.path(), Some(&SAMPLE.key), &[]).unwrap().ok);
    let result = verify(dir.path(), Some(&SAMPLE.key), &SAMPLE.anchors).unwrap();
    assert!(result.first_bad.unwrap().problem.contains("cut off"));
}

#[tokio::test]
async fn a_log_that_was_written_anew_is_found_by_key_and_by_anchor() {
    let dir = tempfile::tempdir().unwrap();
    let log = AuditLog::open(dir.path(), "db1").unwrap();
    append(&log, 30).await;
    log.append_checkpoint().await.unwrap();
    let without = assert_green(dir.path());
    assert!(
        without.warnings.iter().any(|warning| warning.contains("own directory")),
        "{without:#?}"
    );
    assert!(
        !verify(dir.path(), Some(&SAMPLE.key), &[]).unwrap().ok,
        "the pinned key is another one"
    );
    assert!(
        !verify(dir.path(), None, &SAMPLE.anchors).unwrap().ok,
        "the anchors are of another key"
    );
}

#[tokio::test]
async fn a_log_rewritten_with_its_own_key_is_found_by_an_anchor() {
    let dir = tempfile::tempdir().unwrap();
    let log = AuditLog::open(dir.path(), "db1").unwrap();
    append(&log, 3).await;
    let anchor = log.append_checkpoint().await.unwrap();
    drop(log);
    fs::remove_file(&Segment::list(dir.path()).unwrap()[0].path).unwrap();
    let log = AuditLog::open(dir.path(), "db1").unwrap();
    append(&log, 9).await;
    log.append_checkpoint().await.unwrap();
    assert_green(dir.path());
    let result = verify(dir.path(), Some(&log.public_key()), std::slice::from_ref(&anchor)).unwrap();
    let bad = result.first_bad.unwrap();
    assert_eq!(bad.seq, anchor.seq);
    assert!(bad.problem.contains("rewritten"), "{bad:?}");
}

#[tokio::test]
async fn records_after_the_last_checkpoint_are_named_as_unsigned() {
    let dir = tempfile::tempdir().unwrap();
    let log = AuditLog::open(dir.path(), "db1").unwrap();
    let anchor = log.append_checkpoint().await.unwrap();
    assert!(
        !check(dir.path())
            .warnings
            .iter()
            .any(|warning| warning.contains("no signature"))
    );
    append(&log, 2).await;
    let result = verify(dir.path(), Some(&log.public_key()), &[anchor]).unwrap();
    assert!(result.ok);
    assert_eq!((result.signed_through, result.anchored_through), (1, 1));
    assert!(
        result
            .warnings
            .iter()
            .any(|warning| warning.starts_with("records 3 to 4 follow")),
        "{result:#?}"
    );
}

#[tokio::test]
async fn a_full_segment_is_followed_by_another() {
    let dir = tempfile::tempdir().unwrap();
    let log = AuditLog::open_with(dir.path(), "db1", 1000).unwrap();
    append(&log, 40).await;
    let result = assert_green(dir.path());
    assert!(result.segments > 5, "{result:#?}");
    assert_eq!(result.records, 40 + result.segments);
    for segment in Segment::list(dir.path()).unwrap() {
        let metadata = fs::metadata(&segment.path).unwrap();
        assert!(metadata.len() < 1500, "{segment:?}");
        assert_eq!(metadata.permissions().mode() & 0o7777, 0o640);
    }
    // A closed and opened log goes on where it was.
    drop(log);
    let log = AuditLog::open_with(dir.path(), "db1", 1000).unwrap();
    assert_eq!(log.append(entry(0)).await.unwrap().seq, check(dir.path()).records);
    assert_green(dir.path());
}

#[tokio::test]
async fn two_handles_see_each_others_records() {
    let dir = tempfile::tempdir().unwrap();
    let one = AuditLog::open_with(dir.path(), "daemon", 1500).unwrap();
    let other = AuditLog::open_with(dir.path(), "cli", 1500).unwrap();
    for _ in 0..12 {
        let first = one.append(entry(1)).await.unwrap();
        let second = other.append(entry(2)).await.unwrap();
        assert!(second.seq > first.seq);
        other.append_checkpoint().await.unwrap();
    }
    assert_eq!(assert_green(dir.path()).checkpoints, 12);
}

#[tokio::test]
async fn what_is_removed_while_the_log_is_in_use_stops_it() {
    let dir = tempfile::tempdir().unwrap();
    let log = AuditLog::open(dir.path(), "db1").unwrap();
    append(&log, 3).await;
    let path = &Segment::list(dir.path()).unwrap()[0].path;
    let kept = lines(dir.path())[..3].concat();
    fs::write(path, &kept).unwrap();
    for _ in 0..2 {
        let error = log.append(entry(9)).await.unwrap_err();
        assert!(error.cause.contains("removed"), "{error}");
    }
    assert_eq!(fs::read(path).unwrap(), kept);
    fs::remove_file(path).unwrap();
    log.append(entry(9)).await.unwrap_err();
    assert!(Segment::list(dir.path()).unwrap().is_empty());
}

#[tokio::test]
async fn a_torn_last_line_is_kept_aside_and_put_on_record() {
    let dir = tempfile::tempdir().unwrap();
    let log = AuditLog::open(dir.path(), "db1").unwrap();
    append(&log, 3).await;
    let whole = lines(dir.path());
    let path = &Segment::list(dir.path()).unwrap()[0].path;
    let line = &whole[2];
    // Cut in the middle, cut before the newline, and a block that never reached the device.
    let mut hole = line.clone();
    hole[20..60].fill(0);
    for (round, torn) in [&line[..40], &line[..line.len() - 1], &hole, b"\0\0\0\0"]
        .into_iter()
        .enumerate()
    {
        OpenOptions::new()
            .append(true)
            .open(path)
            .unwrap()
            .write_all(torn)
            .unwrap();
        assert!(!check(dir.path()).ok, "round {round}");
        // Odd rounds: found by a log that is already open.
        if round % 2 == 0 {
            drop(AuditLog::open(dir.path(), "db1").unwrap());
        }
        log.append(entry(0)).await.unwrap();
        let result = assert_green(dir.path());
        assert_eq!(result.records, 4 + 2 * (round as u64 + 1));
        let said = format!(
            "a crash cut a write of {} bytes short; they are kept in torn-",
            torn.len()
        );
        assert!(
            result.warnings.iter().any(|warning| warning.contains(&said)),
            "{result:#?}"
        );
    }
    let mut kept: Vec<_> = files(dir.path(), "torn-")
        .iter()
        .map(|path| fs::read(path).unwrap().len())
        .collect();
    kept.sort_unstable();
    assert_eq!(kept, [4, 40, line.len() - 1, line.len()]);
    for path in files(dir.path(), "torn-") {
        fs::remove_file(path).unwrap();
    }
    assert!(
        assert_green(dir.path())
            .warnings
            .iter()
            .any(|warning| warning.contains("no longer in"))
    );
}

#[test]
fn a_recovery_that_was_cut_short_itself_is_put_on_record() {
    let dir = tempfile::tempdir().unwrap();
    drop(AuditLog::open(dir.path(), "db1").unwrap());
    // The torn bytes were moved aside, then the process died.
    fs::write(dir.path().join("torn-000000000002-1700000000000000.bin"), "half a li").unwrap();
    drop(AuditLog::open(dir.path(), "db1").unwrap());
    let result = assert_green(dir.path());
    assert_eq!(result.records, 2);
    assert!(
        result.warnings.iter().any(|warning| warning.contains("9 bytes")),
        "{result:#?}"
    );
    drop(AuditLog::open(dir.path(), "db1").unwrap());
    assert_eq!(assert_green(dir.path()).records, 2, "it is recorded once");
}

#[tokio::test]
async fn a_damaged_last_line_is_not_written_after() {
    let dir = tempfile::tempdir().unwrap();
    let log = AuditLog::open(dir.path(), "db1").unwrap();
    append(&log, 1).await;
    let path = &Segment::list(dir.path()).unwrap()[0].path;
    OpenOptions::new()
        .append(true)
        .open(path)
        .unwrap()
        .write_all(b"not a record\n")
        .unwrap();
    let before = fs::read(path).unwrap();
    assert!(log.append(entry(0)).await.is_err());
    let error = AuditLog::open(dir.path(), "db1").unwrap_err();
    assert!(error.remedy.contains("audit verify"), "{error:?}");
    assert_eq!(fs::read(path).unwrap(), before);
}

#[tokio::test]
async fn a_caller_that_stops_waiting_tears_no_line() {
    let dir = tempfile::tempdir().unwrap();
    let log = AuditLog::open(dir.path(), "db1").unwrap();
    for number in 0..50 {
        // Polled once, then dropped.
        let append = std::pin::pin!(log.append(entry(number)));
        assert!(futures::FutureExt::now_or_never(append).is_none_or(|result| result.is_ok()));
    }
    wait_until("all fifty records are there", || check(dir.path()).records == 51);
    assert_green(dir.path());
}

#[tokio::test(flavor = "multi_thread")]
async fn tasks_with_handles_of_their_own_do_not_fork_the_log() {
    let dir = tempfile::tempdir().unwrap();
    let writers = (0..8).map(|writer| {
        let log = AuditLog::open_with(dir.path(), "db1", 4000).unwrap();
        tokio::spawn(async move {
            let shared = log.clone();
            let (one, other) = tokio::join!(append(&log, 15), append(&shared, 15));
            (writer, one, other)
        })
    });
    for writer in writers.collect::<Vec<_>>() {
        writer.await.unwrap();
    }
    let result = assert_green(dir.path());
    assert_eq!(result.records, 8 * 30 + result.segments);
}

#[test]
fn processes_do_not_fork_the_log() {
    let dir = tempfile::tempdir().unwrap();
    let writers: Vec<_> = (0..8).map(|_| Writer::start("append 25", dir.path())).collect();
    for writer in writers {
        assert_eq!(writer.finish().len(), 25);
    }
    let result = assert_green(dir.path());
    assert_eq!(result.records, 8 * 25 + result.segments);
}

#[test]
fn a_killed_writer_leaves_a_sound_log_with_all_it_acknowledged() {
    let dir = tempfile::tempdir().unwrap();
    drop(AuditLog::open_with(dir.path(), "db1", 3000).unwrap());
    for round in 0..6 {
        let mut writers: Vec<_> = (0..2).map(|_| Writer::start("append for ever", dir.path())).collect();
        let before = check(dir.path()).records;
        wait_until("the writers are at work", || {
            check(dir.path()).records > before + 5 + round
        });
        let acknowledged: Vec<Vec<u64>> = writers.iter_mut().map(Writer::kill).collect();
        drop(AuditLog::open_with(dir.path(), "db1", 3000).unwrap());
        let result = assert_green(dir.path());
        let last = acknowledged.iter().flatten().max().unwrap();
        assert!(result.records >= *last, "{last} was acknowledged: {result:#?}");
    }
}

#[test]
fn a_log_that_may_not_be_written_refuses_and_stays_as_it_is() {
    let home = tempfile::tempdir().unwrap();
    fs::set_permissions(home.path(), Permissions::from_mode(0o755)).unwrap();
    let dir = home.path().join("audit");
    fs::create_dir(&dir).unwrap();
    let mut command = Writer::command("refused", &dir);
    if rustix::process::geteuid().is_root() {
        // Permissions do not bind root; and another user may not reach the build directory.
        let program = home.path().join("program");
        let own = std::env::current_exe().unwrap();
        fs::hard_link(&own, &program)
            .or_else(|_| fs::copy(&own, &program).map(drop))
            .unwrap();
        chown(&dir, Some(65534), Some(65534)).unwrap();
        command = Writer::command_of(&program, "refused", &dir);
        command.uid(65534).gid(65534);
    }
    assert_eq!(Writer::spawn(command).finish(), [2]);
    assert_eq!(assert_green(&dir).records, 2);
}

#[test]
fn a_full_disk_refuses_the_record_and_leaves_the_log_sound() {
    let dir = tempfile::tempdir().unwrap();
    let own = Writer::command("fill", dir.path());
    let mut command = Command::new("/bin/sh");
    command
        .args(["-c", r#"trap "" XFSZ; ulimit -f 16; exec "$0" "$@""#])
        .arg(own.get_program())
        .args(own.get_args());
    command.envs(own.get_envs().filter_map(|(name, value)| Some((name, value?))));
    let acknowledged = Writer::spawn(command).finish();
    assert!(acknowledged.len() > 5, "{acknowledged:?}");
    assert_eq!(assert_green(dir.path()).records, *acknowledged.last().unwrap());
    // With space again it goes on, and nothing was torn.
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let log = AuditLog::open(dir.path(), "db1").unwrap();
    runtime.block_on(append(&log, 1));
    assert_eq!(assert_green(dir.path()).records, acknowledged.last().unwrap() + 1);
    assert!(files(dir.path(), "torn-").is_empty());
}

#[test]
fn files_belong_to_whom_the_directory_belongs() {
    let dir = tempfile::tempdir().unwrap();
    if rustix::process::geteuid().is_root() {
        chown(dir.path(), Some(65534), Some(65534)).unwrap();
    }
    let owner = fs::metadata(dir.path()).unwrap().uid();
    drop(AuditLog::open(dir.path(), "db1").unwrap());
    let all = files(dir.path(), "");
    assert_eq!(all.len(), 4, "{all:?}");
    for path in all {
        assert_eq!(fs::metadata(&path).unwrap().uid(), owner, "{path:?}");
    }
}

#[tokio::test]
async fn runs_without_an_end_are_found() {
    let dir = tempfile::tempdir().unwrap();
    let log = AuditLog::open_with(dir.path(), "db1", 1500).unwrap();
    let recorder = |run| RunRecorder {
        log: log.clone(),
        run: Some(run),
        job: "purge-events".parse().unwrap(),
        database: Some("7300000000000000000".to_owned()),
        policy: Some("sha256:00".to_owned()),
        actor: Some("schedule".to_owned()),
    };
    let [ended, open, interrupted, retried] = std::array::from_fn(|_| RunId::new());
    for run in [ended, open, interrupted, retried] {
        recorder(run).record("run.start", json!({"rows": 1})).await.unwrap();
    }
    recorder(ended)
        .record("run.end", json!({"outcome": "succeeded"}))
        .await
        .unwrap();
    recorder(interrupted)
        .record("run.interrupted", json!({}))
        .await
        .unwrap();
    recorder(retried)
        .record("run.end", json!({"outcome": "failed"}))
        .await
        .unwrap();
    recorder(retried).record("run.start", json!({})).await.unwrap();
    recorder(open).record("backup.committed", json!({})).await.unwrap();

    let traces = runs(dir.path()).unwrap();
    assert_eq!(traces.len(), 4);
    assert_eq!(traces[&ended].ended.as_deref(), Some("succeeded"));
    assert_eq!(traces[&ended].job.as_deref(), Some("purge-events"));
    assert!(traces[&interrupted].interrupted);
    let unfinished: Vec<RunId> = traces
        .iter()
        .filter(|(_, trace)| trace.is_open())
        .map(|(run, _)| *run)
        .collect();
    assert_eq!(unfinished, [open, retried]);
    let verified: Vec<RunId> = assert_green(dir.path())
        .unfinished_runs
        .iter()
        .map(|run| run.run)
        .collect();
    assert_eq!(verified, [open, retried]);
}

#[tokio::test]
async fn a_record_of_no_known_kind_or_form_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let log = AuditLog::open(dir.path(), "db1").unwrap();
    let recorder = RunRecorder {
        log: log.clone(),
        run: Some(RunId::new()),
        job: "a".parse().unwrap(),
        database: None,
        policy: None,
        actor: None,
    };
    for kind in ["run.begin", "checkpoint", "segment"] {
        recorder.record(kind, json!({})).await.unwrap_err();
    }
    recorder.record("run.start", json!([1])).await.unwrap_err();
    recorder
        .record("run.start", json!({"x": "y".repeat(MAX_LINE)}))
        .await
        .unwrap_err();
    assert_eq!(assert_green(dir.path()).records, 1);
    recorder.record("run.start", json!({})).await.unwrap();
    assert_eq!(assert_green(dir.path()).records, 2);
}

fn files(dir: &Path, prefix: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap());
    entries
        .filter(|entry| entry.file_name().to_str().unwrap().starts_with(prefix))
        .map(|entry| entry.path())
        .collect()
}

#[track_caller]
fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !condition() {
        assert!(begun.elapsed() < Duration::from_mins(1), "waited in vain until {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// This test program, started again as [`writer_process`].
struct Writer(Child);

impl Writer {
    fn start(role: &str, dir: &Path) -> Self {
        Self::spawn(Self::command(role, dir))
    }

    fn command(role: &str, dir: &Path) -> Command {
        Self::command_of(&std::env::current_exe().unwrap(), role, dir)
    }

    fn command_of(program: &Path, role: &str, dir: &Path) -> Command {
        let mut command = Command::new(program);
        command.args([
            "--ignored",
            "--exact",
            "--nocapture",
            "--test-threads=1",
            "audit::writer_process",
        ]);
        command.env(ROLE, role).env(DIRECTORY, dir).current_dir("/");
        command
    }

    fn spawn(mut command: Command) -> Self {
        Self(command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap())
    }

    /// The numbers of the records that it was told are durable.
    fn acknowledged(&mut self) -> Vec<u64> {
        let output = BufReader::new(self.0.stdout.take().unwrap());
        // The last line may be cut by a kill; what has no newline was not said.
        output
            .split(b'\n')
            .filter_map(|line| {
                String::from_utf8(line.unwrap())
                    .unwrap()
                    .strip_prefix("durable ")?
                    .strip_suffix('.')?
                    .parse()
                    .ok()
            })
            .collect()
    }

    fn finish(mut self) -> Vec<u64> {
        let acknowledged = self.acknowledged();
        assert!(self.0.wait().unwrap().success());
        acknowledged
    }

    fn kill(&mut self) -> Vec<u64> {
        self.0.kill().unwrap();
        let acknowledged = self.acknowledged();
        self.0.wait().unwrap();
        acknowledged
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

/// Appends one record and says so on standard output, as one write.
async fn append_and_say(log: &AuditLog) -> Result<u64, pgreeve::audit::AuditError> {
    let seq = log.append(entry(1)).await?.seq;
    let mut output = std::io::stdout();
    output.write_all(format!("\ndurable {seq}.\n").as_bytes()).unwrap();
    output.flush().unwrap();
    Ok(seq)
}

#[tokio::test]
#[ignore = "a process that other tests start"]
async fn writer_process() {
    let (Ok(role), Ok(dir)) = (std::env::var(ROLE), std::env::var(DIRECTORY)) else {
        return;
    };
    let dir = Path::new(&dir);
    match role.as_str() {
        "append 25" => {
            let log = AuditLog::open_with(dir, "db1", 5000).unwrap();
            for _ in 0..25 {
                append_and_say(&log).await.unwrap();
            }
        }
        "append for ever" => {
            let log = AuditLog::open_with(dir, "db1", 3000).unwrap();
            loop {
                append_and_say(&log).await.unwrap();
            }
        }
        "fill" => {
            let log = AuditLog::open(dir, "db1").unwrap();
            while append_and_say(&log).await.is_ok() {}
            let before = lines(dir);
            for _ in 0..3 {
                let error = log.append(entry(2)).await.unwrap_err();
                assert!(
                    error.operation.contains("audit-") && error.remedy.contains("LimitFSIZE"),
                    "{error:?}"
                );
            }
            assert_eq!(lines(dir), before);
            assert!(before.last().unwrap().ends_with(b"\n"));
        }
        "refused" => {
            let log = AuditLog::open(dir, "db1").unwrap();
            append_and_say(&log).await.unwrap();
            let before = lines(dir);
            for path in files(dir, "") {
                fs::set_permissions(path, Permissions::from_mode(0o400)).unwrap();
            }
            fs::set_permissions(dir, Permissions::from_mode(0o500)).unwrap();
            for error in [
                log.append(entry(2)).await.unwrap_err(),
                AuditLog::open(dir, "db1").unwrap_err(),
            ] {
                assert!(error.remedy.contains("the right to read and write"), "{error:?}");
            }
            assert_eq!(lines(dir), before);
        }
        other => panic!("no such role: {other}"),
    }
}
