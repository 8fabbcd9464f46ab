//! Whatever fails under a backup, and whenever: afterwards there is either a manifest and a backup
//! that can be read, or no manifest and no open upload.
//!
//! The faults, and the tests that show what becomes of the backup. A name without a room is a test of this
//! file; `x/y` is the test `y` of the room `x`.
//!
//! | fault of the store | when it begins an upload | at a part | at Complete | when it is asked for the size | at the manifest |
//! |---|---|---|---|---|---|
//! | 503, twice | | `two_503_at_a_part` | `two_503_at_complete` | `two_503_when_the_size_is_asked` | |
//! | 503 for ever | `an_upload_that_cannot_be_started` | `a_503_at_a_part_for_ever` | | | `a_manifest_that_cannot_be_written`; roles: `a_503_at_the_roles_for_ever` |
//! | 500 | | `a_500_at_a_part` | | | |
//! | 403, a token that expired | | `a_token_that_expires_between_two_parts` | | | |
//! | reset in the middle of a body | | `a_connection_reset_in_the_middle_of_a_part` | | | |
//! | cut before it is seen | `a_store_that_is_lost_altogether_…` | `a_connection_cut_before_a_part_is_seen` | `store/an_object_of_somebody_else_…` | | `a_connection_cut_before_the_manifest_is_seen` |
//! | cut after it was done | `an_upload_that_was_started_without_an_answer` | `a_connection_cut_after_a_part_is_taken` | `a_complete_cut_after_it_was_done` | | `a_manifest_written_without_an_answer` |
//! | reads no further | | `a_server_that_stops_reading_a_part` | | | |
//! | never answers | | `a_server_that_never_answers_a_part` | `a_complete_that_is_never_answered` | `store/a_peer_that_never_answers_…` | `a_manifest_written_and_never_answered` |
//! | 200 and an error | | | `a_complete_answered_200_with_an_error`, `…_for_ever` | | |
//! | 412 | | | `a_complete_refused_for_a_name_that_is_taken` | | `a_manifest_refused_for_a_name_that_is_taken` |
//! | 409 | | | `a_complete_that_meets_another_writer` | | |
//! | `NoSuchUpload` | | `an_upload_that_is_gone_at_a_part` | `an_upload_that_is_gone_at_complete` | | |
//! | ignores `If-None-Match` | | | `store/a_store_that_honours_no_condition_at_complete_…` | | `a_store_that_ignores_conditions` |
//! | another size than was sent | | `a_part_acknowledged_and_not_kept` | | `a_store_that_tells_another_size` | |
//! | other bytes than were sent | | `a_part_changed_on_its_way` | | | |
//!
//! An `ETag` is nobody's digest and is not compared: that the stored bytes are those that were sent is
//! known from SHA-256, when they are read.
//!
//! | fault of `pg_dump` | test |
//! |---|---|
//! | its server process is terminated within a COPY | `a_pg_dump_whose_server_process_is_terminated` |
//! | SIGTERM, SIGKILL | `a_pg_dump_that_is_terminated`, `a_pg_dump_that_is_killed` |
//! | ends with 0 early, with or without output | `a_pg_dump_that_writes_nothing_and_ends_with_0`, `a_pg_dump_that_ends_with_0_after_half_its_output` |
//! | ends with 1 after all its output | `a_pg_dump_that_ends_with_1_after_all_its_output` |
//! | floods its standard error | `a_pg_dump_that_writes_64_mib_to_its_standard_error` |
//! | stalls | `backup/a_hanging_dump_is_ended_…`, `backup/a_dump_that_holds_its_snapshot_too_long_…` |
//! | an archive that is cut off, and 0 | `a_pg_dump_that_ends_with_0_after_half_its_output`, `backup/a_truncated_archive_that_exits_zero_…` |
//! | an archive of a version that nobody knows | `a_pg_dump_whose_archive_is_of_an_unknown_version` |
//! | fails while an upload is being begun | `an_upload_that_is_begun_while_the_dump_fails_is_not_left_open` |
//! | may not read all that there is | `backup/a_role_that_cannot_read_everything_…` |
//!
//! What becomes of a daemon's death in each state of a backup stands in [`killed`].

mod killed;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use pgreeve::backup::catalog::{self, Filter};
use pgreeve::backup::compress::Packing;
use pgreeve::backup::manifest::OPAQUE;
use pgreeve::backup::parts::PartSizes;
use pgreeve::backup::verify;
use pgreeve::demo::s3_server::S3Server;
use pgreeve::job::{JobError, Progress};
use pgreeve::store::s3::{Limits, S3Store};
use pgreeve::store::{Store, StoreSettings};
use tempfile::TempDir;

use crate::support::backups::Bench;
use crate::support::fault_proxy::{Call, Fault, FaultProxy};
use crate::support::memory_store::MemoryStore;

/// More often than anybody tries again.
const FOR_EVER: u32 = u32::MAX;

macro_rules! xml {
    ($code:literal) => {
        concat!(
            "<?xml version=\"1.0\"?><Error><Code>",
            $code,
            "</Code><Message>no</Message></Error>"
        )
    };
}

const SLOW_DOWN: Fault = Fault::Answer(503, xml!("SlowDown"));
const INTERNAL: Fault = Fault::Answer(500, xml!("InternalError"));
const EXPIRED: Fault = Fault::Answer(403, xml!("ExpiredToken"));
const ERROR_IN_200: Fault = Fault::Answer(200, xml!("InternalError"));
const TAKEN: Fault = Fault::Answer(412, xml!("PreconditionFailed"));
const CONFLICT: Fault = Fault::Answer(409, xml!("ConditionalRequestConflict"));
const GONE: Fault = Fault::Answer(404, xml!("NoSuchUpload"));

/// How the backup is to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Made,
    Failed,
}

/// A backup of 12 MiB, in parts of 5, to an S3 server behind a proxy.
struct Stand {
    bench: Bench,
    proxy: FaultProxy,
    /// Past the proxy.
    direct: Arc<dyn Store>,
    _server: S3Server,
    _directory: TempDir,
}

impl Stand {
    async fn new() -> Self {
        let directory = TempDir::new().unwrap();
        let server = S3Server::start(directory.path()).await.unwrap();
        let proxy = FaultProxy::start(&server).await;
        let limits = Limits {
            connect: Duration::from_secs(2),
            attempt: Duration::from_secs(3),
            slowest: 2 << 20,
            complete: Duration::from_secs(3),
            call: Duration::from_secs(8),
            part: Duration::from_secs(8),
            first_wait: Duration::from_millis(10),
            longest_wait: Duration::from_millis(500),
            resumes: 3,
        };
        let store = S3Store::open_with(&proxy.settings(&server, "backups"), limits)
            .await
            .unwrap();
        let direct = StoreSettings::S3(Box::new(server.settings("backups")))
            .open()
            .await
            .unwrap();
        let mut bench = Bench::new(Arc::new(store)).await;
        bench.job.settings.compress = Packing::None;
        bench.job.sizes = PartSizes {
            part_bytes: 5 << 20,
            max_parts: 9000,
        };
        fill(&bench).await;
        Self {
            bench,
            proxy,
            direct,
            _server: server,
            _directory: directory,
        }
    }

    /// Runs the backup and checks what must be true however it ended.
    async fn ends(&self, end: End) -> Option<JobError> {
        let outcome = self.bench.run().await;
        let catalog = catalog::list(self.direct.as_ref(), Filter::default()).await.unwrap();
        assert!(
            self.direct.list_uploads("").await.unwrap().is_empty(),
            "an open upload: {outcome:?}"
        );
        assert!(catalog.unreadable.is_empty());
        match catalog.backups.as_slice() {
            [] => {
                let objects = self.direct.list("").await.unwrap();
                assert!(objects.is_empty(), "{objects:?} without a manifest");
                assert_eq!((outcome.is_ok(), end), (false, End::Failed), "{outcome:?}");
                assert_eq!(self.bench.states().await, ["aborted"]);
            }
            [backup] => {
                assert_eq!((outcome.is_ok(), end), (true, End::Made), "{outcome:?}");
                let store = Arc::clone(&self.direct);
                verify::read_through(store, &backup.manifest, Progress::new(), None)
                    .await
                    .unwrap();
                let rows = backup.manifest.rows();
                assert!(rows >= 12_000 || backup.manifest.archive_version == OPAQUE, "{rows}");
                assert_eq!(self.bench.states().await, ["committed"]);
            }
            several => panic!("{several:?}"),
        }
        outcome.err()
    }
}

async fn fill(bench: &Bench) {
    bench
        .database
        .execute(
            "CREATE TABLE bulk (id int PRIMARY KEY, noise text);
             INSERT INTO bulk SELECT n, (SELECT string_agg(md5(n::text || k), '') FROM generate_series(1, 32) k)
             FROM generate_series(1, 12000) n",
        )
        .await;
}

fn is_start(call: &Call) -> bool {
    call.method == "POST" && call.query.contains("uploads") && is_data(call)
}

/// The probe has calls of its own.
fn is_data(call: &Call) -> bool {
    call.path.contains("/data")
}

fn is_globals(call: &Call) -> bool {
    call.is_create() && call.path.contains("/globals")
}

/// The probe's second object of one name, which a store must refuse.
fn second_probe() -> impl Fn(&Call) -> bool + Send + 'static {
    let seen = AtomicU32::new(0);
    move |call| call.is_create() && call.path.contains(".pgreeve-probes") && seen.fetch_add(1, Ordering::Relaxed) == 1
}

fn is_manifest(call: &Call) -> bool {
    call.is_create() && call.path.ends_with("/manifest.json")
}

/// One fault of the store or of the way to it: what it does, to which calls, how often.
macro_rules! fault {
    ($($name:ident: $times:expr, $fault:expr, $calls:expr => $end:expr;)*) => {
        $(#[tokio::test]
        async fn $name() {
            let stand = Stand::new().await;
            stand.proxy.fault($times, $fault, $calls);
            stand.ends($end).await;
        })*
    };
}

fault! {
    two_503_at_a_part: 2, SLOW_DOWN, |call| call.is_part(1) && is_data(call) => End::Made;
    a_500_at_a_part: 1, INTERNAL, |call| call.is_part(2) && is_data(call) => End::Made;
    a_503_at_a_part_for_ever: FOR_EVER, SLOW_DOWN, |call| call.is_part(2) && is_data(call) => End::Failed;
    a_token_that_expires_between_two_parts: FOR_EVER, EXPIRED, |call| call.is_part(2) && is_data(call) => End::Failed;
    a_connection_reset_in_the_middle_of_a_part: 1, Fault::Reset, |call| call.is_part(2) && is_data(call) => End::Made;
    a_part_acknowledged_and_not_kept: 1, Fault::AnswerWith(200, "ETag: \"00000000000000000000000000000000\"\r\n", ""), |call| call.is_part(2) && is_data(call) => End::Failed;
    a_connection_cut_before_a_part_is_seen: 1, Fault::CutBefore, |call| call.is_part(1) && is_data(call) => End::Made;
    a_connection_cut_after_a_part_is_taken: 1, Fault::CutAfter, |call| call.is_part(2) && is_data(call) => End::Made;
    a_server_that_stops_reading_a_part: 1, Fault::StopReading, |call| call.is_part(1) && is_data(call) => End::Made;
    a_server_that_never_answers_a_part: FOR_EVER, Fault::Silence, |call| call.is_part(3) && is_data(call) => End::Failed;
    a_part_changed_on_its_way: 1, Fault::Corrupt, |call| call.is_part(2) && is_data(call) => End::Made;
    an_upload_that_is_gone_at_a_part: FOR_EVER, GONE, |call| call.is_part(2) && is_data(call) => End::Failed;
    an_upload_that_cannot_be_started: FOR_EVER, SLOW_DOWN, is_start => End::Failed;
    an_upload_that_was_started_without_an_answer: 1, Fault::CutAfter, is_start => End::Made;
    a_503_at_the_roles_for_ever: FOR_EVER, SLOW_DOWN, is_globals => End::Failed;
    two_503_at_complete: 2, SLOW_DOWN, |call| call.is_complete() && is_data(call) => End::Made;
    a_complete_answered_200_with_an_error: 1, ERROR_IN_200, |call| call.is_complete() && is_data(call) => End::Made;
    a_complete_answered_200_with_an_error_for_ever: FOR_EVER, ERROR_IN_200, |call| call.is_complete() && is_data(call) => End::Failed;
    a_complete_cut_after_it_was_done: 1, Fault::CutAfter, |call| call.is_complete() && is_data(call) => End::Made;
    a_complete_that_is_never_answered: FOR_EVER, Fault::Silence, |call| call.is_complete() && is_data(call) => End::Failed;
    a_complete_refused_for_a_name_that_is_taken: FOR_EVER, TAKEN, |call| call.is_complete() && is_data(call) => End::Failed;
    a_complete_that_meets_another_writer: FOR_EVER, CONFLICT, |call| call.is_complete() && is_data(call) => End::Failed;
    an_upload_that_is_gone_at_complete: FOR_EVER, GONE, |call| call.is_complete() && is_data(call) => End::Failed;
    a_store_that_tells_another_size: FOR_EVER, Fault::Answer(200, "12345"), |call| call.method == "HEAD" && is_data(call) => End::Failed;
    two_503_when_the_size_is_asked: 2, SLOW_DOWN, |call| call.method == "HEAD" && is_data(call) => End::Made;
    a_store_that_ignores_conditions: 1, Fault::Answer(200, ""), second_probe() => End::Made;
    a_manifest_that_cannot_be_written: FOR_EVER, SLOW_DOWN, is_manifest => End::Failed;
    a_manifest_written_without_an_answer: 1, Fault::CutAfter, is_manifest => End::Made;
    a_manifest_written_and_never_answered: FOR_EVER, Fault::DoneInSilence, is_manifest => End::Made;
    a_connection_cut_before_the_manifest_is_seen: 1, Fault::CutBefore, is_manifest => End::Made;
    a_manifest_refused_for_a_name_that_is_taken: FOR_EVER, TAKEN, is_manifest => End::Failed;
}

#[tokio::test]
async fn a_store_that_is_lost_altogether_is_swept_by_the_next_run() {
    let stand = Stand::new().await;
    let seen = AtomicBool::new(false);
    stand.proxy.fault(FOR_EVER, Fault::CutBefore, move |call| {
        let lost = seen.load(Ordering::Relaxed) || (call.is_part(2) && is_data(call));
        seen.store(lost, Ordering::Relaxed);
        lost
    });
    assert!(stand.bench.run().await.is_err());
    assert_eq!(stand.bench.states().await, ["streaming"], "left in the journal");
    assert_eq!(stand.direct.list_uploads("").await.unwrap().len(), 1);
    stand.proxy.heal();
    stand.bench.run().await.unwrap();
    assert_eq!(stand.bench.states().await, ["swept", "committed"]);
    assert!(stand.direct.list_uploads("").await.unwrap().is_empty());
    let catalog = catalog::list(stand.direct.as_ref(), Filter::default()).await.unwrap();
    assert_eq!(catalog.backups.len(), 1);
    assert_eq!(stand.bench.records.body("backup.swept")["uploads"], 1);
}

/// One fault of `pg_dump`, as a script in its place.
macro_rules! producer {
    ($($name:ident: $script:expr => $end:expr, $says:literal;)*) => {
        $(#[tokio::test]
        async fn $name() {
            let directory = TempDir::new().unwrap();
            let mut stand = Stand::new().await;
            stand.bench = stand.bench.with_pg_dump(&directory, $script);
            let said = stand.ends($end).await.map(|error| error.to_string()).unwrap_or_default();
            assert!(said.contains($says), "{said}");
        })*
    };
}

producer! {
    a_pg_dump_that_writes_nothing_and_ends_with_0: "exit 0" => End::Failed, "walk";
    a_pg_dump_that_ends_with_1_after_all_its_output: "$REAL \"$@\"; exit 1" => End::Failed, "stage dump";
    a_pg_dump_that_ends_with_0_after_half_its_output: "$REAL \"$@\" | head -c 6000000" => End::Failed, "walk";
    a_pg_dump_that_is_killed: "$REAL \"$@\" | head -c 6000000; kill -KILL $$" => End::Failed, "stage dump";
    a_pg_dump_that_is_terminated: "$REAL \"$@\" | head -c 6000000; kill -TERM $$" => End::Failed, "stage dump";
    a_pg_dump_whose_server_process_is_terminated: "exec bash -c 'set -o pipefail; \"$0\" \"$@\" | { head -c 6000000; psql -Xqc \"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND query ILIKE \\$a\\$copy%\\$a\\$\" >/dev/null; cat; }' $REAL \"$@\"" => End::Failed, "stage dump";
    a_pg_dump_that_writes_64_mib_to_its_standard_error: "yes 'noise about a row' | head -c 64M >&2; exec $REAL \"$@\"" => End::Made, "";
    a_pg_dump_that_leaves_a_process_with_its_output: "sleep 5 & exec $REAL \"$@\"" => End::Made, "";
    a_pg_dump_whose_archive_is_of_an_unknown_version: "$REAL \"$@\" | { head -c 6; head -c 1 >/dev/null; printf '\\143'; cat; }" => End::Made, "";
}

/// The dump ends while the store's answer to "begin an upload" is still on its way.
#[tokio::test]
async fn an_upload_that_is_begun_while_the_dump_fails_is_not_left_open() {
    let directory = TempDir::new().unwrap();
    let mut stand = Stand::new().await;
    stand.bench = stand
        .bench
        .with_pg_dump(&directory, "$REAL \"$@\" | head -c 6000000; kill -KILL $$");
    stand.proxy.fault(1, Fault::SlowAnswer(400), |call| {
        call.method == "POST" && !call.is_complete() && is_data(call)
    });
    let said = stand.ends(End::Failed).await.unwrap().to_string();
    assert!(said.contains("stage dump"), "{said}");
}

#[tokio::test]
async fn more_parts_than_s3_takes_go_on_in_a_second_object_and_are_read_as_one() {
    let store = MemoryStore::default();
    let mut bench = Bench::new(Arc::new(store.clone())).await;
    bench.job.settings.compress = Packing::None;
    bench.job.sizes.part_bytes = 1024;
    assert_eq!(bench.job.sizes.max_parts, PartSizes::default().max_parts);
    fill(&bench).await;
    bench.run().await.unwrap();
    let manifest = catalog::list(&store, Filter::default()).await.unwrap().backups[0]
        .manifest
        .clone();
    let parts: Vec<u32> = manifest.data().map(|object| object.parts).collect();
    assert!(parts.len() == 2 && parts[0] == 9000 && parts[1] > 1000, "{parts:?}");
    assert!(manifest.data().next_back().unwrap().key.ends_with("/data-0002.dump"));
    verify::read_through(Arc::new(store), &manifest, Progress::new(), None)
        .await
        .unwrap();
}
