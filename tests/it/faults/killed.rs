//! The daemon, killed with `kill -9` in each state of a backup and started again. It is known to be in the
//! state because whoever it waits for then, the store or the ledger, does not answer.
//!
//! | what was done when it died | in the store | journal | after the restart | test |
//! |---|---|---|---|---|
//! | the store is being probed | an upload of the probe | no row | the same, until a later probe sweeps it | `the_store_being_probed` |
//! | the backup is begun | nothing | `streaming` | nothing | `begun_and_nothing_stored` |
//! | the upload is begun, the answer lost | an upload nobody knows | `streaming` | nothing | `the_upload_begun_and_not_told` |
//! | part 1 is being sent | an open upload | `streaming` | nothing | `part_1_on_its_way` |
//! | part n is taken | an open upload | `streaming` | nothing | `part_2_taken`, `the_last_part_taken` |
//! | Complete is sent | an open upload | `streaming` | nothing | `complete_sent` |
//! | Complete is done, the answer lost | the dump | `streaming` | nothing | `complete_done_and_not_told` |
//! | one of several archives is complete | an archive, open uploads | `streaming` | nothing | `one_of_several_archives_complete_and_the_next_one_sent` |
//! | the size is asked | the dump | `streaming` | nothing | `complete_and_the_size_asked` |
//! | the manifest is being sent | the dump | `streaming` | nothing | `the_manifest_on_its_way` |
//! | the manifest is written, the answer lost | a backup | `streaming` | the backup | `the_manifest_written_and_not_told` |
//! | the ledger is being told | a backup | `streaming` | the backup | `the_manifest_written_and_the_ledger_being_told` |
//! | the run is being closed | a backup | `committed` | the backup | `the_ledger_told_and_the_run_being_closed` |
//! | a backup that failed is being cleared away | an open upload | `streaming` | nothing | `a_failed_backup_being_cleared_away` |
//! | an earlier death is being swept | an open upload | `streaming` | nothing | `the_sweep_of_an_earlier_death_under_way` |
//! | an old backup is being removed | its objects without manifest | `committed` | the others; the objects are swept in a week | `an_old_backup_half_removed_by_its_keep_policy` |
//! | a backup is being restored | the backup | `committed` | the backup, and a closed database | `a_restore_that_is_killed_leaves_no_copy_of_the_dump_and_a_closed_database` |
//! | told to stop, and told again | nothing | `aborted` | nothing | `told_twice_to_stop_with_a_part_on_its_way` |

use std::path::Path;
use std::process::{Child, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use pgreeve::backup::catalog::{self, Filter};
use pgreeve::demo::s3_server::S3Server;
use pgreeve::ledger::migrate;
use pgreeve::store::{Store, StoreSettings};
use sqlx::{Connection, PgConnection};
use tempfile::TempDir;

use super::{EXPIRED, FOR_EVER, is_data, is_globals, is_manifest, is_start};
use crate::support::fault_proxy::{Call, Fault, FaultProxy};
use crate::support::process::{Daemon, Host, until};
use crate::support::{Database, cluster};

/// The advisory lock that a gate in the ledger waits for.
const GATE: i64 = 4711;

/// What is there once the daemon runs again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Left {
    Nothing,
    Backup,
}

/// A daemon on a host of its own, whose backups of 12 MiB go to an S3 server behind a proxy in parts of 5.
struct Site {
    database: Database,
    host: Host,
    proxy: FaultProxy,
    /// Past the proxy.
    direct: Arc<dyn Store>,
    _server: S3Server,
    _directory: TempDir,
}

impl Site {
    async fn new(more: &str) -> Self {
        let database = Database::create().await;
        migrate::apply(&database.target).await.unwrap();
        database
            .execute(
                "CREATE TABLE bulk AS SELECT n, repeat(n::text, 500000) AS text FROM generate_series(10, 21) n;
                 CREATE TABLE other AS SELECT n FROM generate_series(1, 1000) n",
            )
            .await;
        let directory = TempDir::new().unwrap();
        let server = S3Server::start(directory.path()).await.unwrap();
        let proxy = FaultProxy::start(&server).await;
        let host = Host::new(&format!(
            "[databases.app]\nurl = \"{}\"\n[stores.offsite]\nurl = \"s3://{}/backups\"\nendpoint = \"{}\"\n\
             region = \"us-east-1\"\npath_style = true\ncredentials_file = \"{}\"\npart_size = \"5MB\"\n\
             [jobs.nightly]\nschedule = \"0 0 1 1 *\"\nretries = 0\n\
             backup = {{ store = \"offsite\", compress = \"none\"{more} }}\n",
            cluster().await.url_as("postgres", &database.name),
            server.bucket(),
            proxy.settings(&server, "backups").endpoint.unwrap(),
            server.credentials_file().display()
        ));
        let direct = StoreSettings::S3(Box::new(server.settings("backups")))
            .open()
            .await
            .unwrap();
        Self {
            database,
            host,
            proxy,
            direct,
            _server: server,
            _directory: directory,
        }
    }

    /// Starts the daemon; it leads and has tried the store.
    async fn start(&self) -> Daemon {
        let before = self.records("store.probed");
        let daemon = self.host.daemon();
        until("the daemon leads and knows its store", async || {
            daemon.log().contains("leading the database") && self.records("store.probed") > before
        })
        .await;
        daemon
    }

    fn records(&self, kind: &str) -> usize {
        if !self.host.audit().exists() {
            return 0;
        }
        let records = self.host.audit_records();
        records.iter().filter(|record| record["kind"] == kind).count()
    }

    fn ask_for_a_backup(&self) -> Child {
        let mut command = self.host.command(&["run", "nightly"]);
        command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
    }

    /// Kills the daemon with a backup under way, and waits until nothing of it works any more.
    async fn kill(&self, daemon: Daemon, mut client: Child) {
        daemon.kill();
        client.wait().unwrap();
        until("no session of it is left", async || {
            // A server that waits for a lock does not look whether its client is there.
            let sql = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
                       WHERE datname = current_database() AND application_name LIKE 'pgreeve%'";
            self.database.value::<i64>(sql).await == 0
        })
        .await;
        self.proxy.heal();
    }

    /// Runs a backup until as many calls as that wait for an answer, and kills the daemon.
    async fn killed_at(&self, held: usize) {
        let daemon = self.start().await;
        self.kill_at(daemon, held).await;
    }

    async fn kill_at(&self, daemon: Daemon, held: usize) {
        let client = self.ask_for_a_backup();
        until("the daemon waits for the store", async || self.proxy.held() == held).await;
        self.kill(daemon, client).await;
    }

    /// The state of the newest backup in the journal.
    async fn state(&self) -> String {
        let sql = "SELECT coalesce((SELECT state FROM pgreeve.backup ORDER BY started_at DESC LIMIT 1), 'none')";
        self.database.value(sql).await
    }

    /// What lies in the store: open uploads, objects, and manifests of them.
    async fn stored(&self) -> (usize, usize, usize) {
        let keys = self.direct.list("").await.unwrap();
        let manifests = keys
            .iter()
            .filter(|object| object.key.as_str().ends_with("/manifest.json"))
            .count();
        (self.direct.list_uploads("").await.unwrap().len(), keys.len(), manifests)
    }

    /// Starts the daemon again and checks what is there then.
    async fn is_left_with(&self, left: Left) {
        let daemon = self.start().await;
        until("the dead run is closed and what it left is swept", async || {
            let sql = "SELECT NOT EXISTS (SELECT FROM pgreeve.run WHERE outcome IS NULL)
                          AND NOT EXISTS (SELECT FROM pgreeve.backup WHERE state = 'streaming')";
            self.database.value::<bool>(sql).await
        })
        .await;
        let (state, stored) = (self.state().await, self.stored().await);
        match left {
            Left::Nothing => assert_eq!((state.as_str(), stored), ("swept", (0, 0, 0))),
            Left::Backup => {
                assert_eq!((state.as_str(), stored.0, stored.2), ("committed", 0, 1));
                self.newest_is_whole().await;
            }
        }
        // Nothing stands in the way of the next one.
        self.host.run(&["run", "nightly"]).expect_code(0);
        let (uploads, _, manifests) = self.stored().await;
        assert_eq!((uploads, manifests), (0, 1 + usize::from(left == Left::Backup)));
        assert_eq!(daemon.stop(), 0);
        self.host.run(&["audit", "verify"]).expect_code(0);
    }

    /// Every digest agrees, and what is restored is what was there.
    async fn newest_is_whole(&self) {
        let backups = catalog::list(self.direct.as_ref(), Filter::default())
            .await
            .unwrap()
            .backups;
        let id = backups.last().unwrap().id.as_str();
        self.host.run(&["backup", "verify", id, "--level", "1"]).expect_code(0);
        let into = format!("{}_again", self.database.name);
        self.host
            .run(&["backup", "restore", id, "--into", &into])
            .expect_code(0);
        let again = Database {
            target: self.database.target.with_dbname(&into),
            name: into,
        };
        let sum = "SELECT md5(string_agg(n || text, '' ORDER BY n)) || (SELECT sum(n) FROM other) FROM bulk";
        assert_eq!(
            again.value::<String>(sum).await,
            self.database.value::<String>(sum).await
        );
    }

    /// Makes the ledger wait when it is told how a row of a table ended.
    async fn gate(&self, table: &str, ended: &str) -> PgConnection {
        self.database
            .execute(&format!(
                "CREATE FUNCTION gate() RETURNS trigger LANGUAGE plpgsql AS
                     $$ BEGIN PERFORM pg_advisory_xact_lock({GATE}); RETURN NEW; END $$;
                 CREATE TRIGGER gate BEFORE UPDATE ON pgreeve.{table} FOR EACH ROW WHEN ({ended}) EXECUTE FUNCTION gate()"
            ))
            .await;
        let mut keeper = self.database.connect().await;
        sqlx::query("SELECT pg_advisory_lock($1)")
            .bind(GATE)
            .execute(&mut keeper)
            .await
            .unwrap();
        keeper
    }

    async fn killed_at_the_gate(&self, keeper: PgConnection) {
        let daemon = self.start().await;
        let client = self.ask_for_a_backup();
        until("the daemon waits for the ledger", async || {
            let sql = format!(
                "SELECT EXISTS (SELECT FROM pg_locks WHERE locktype = 'advisory' AND objid = {GATE} AND NOT granted
                 AND database = (SELECT oid FROM pg_database WHERE datname = current_database()))"
            );
            self.database.value::<bool>(&sql).await
        })
        .await;
        self.kill(daemon, client).await;
        keeper.close().await.unwrap();
    }
}

fn is_probe(call: &Call) -> bool {
    call.path.contains(".pgreeve-probes")
}

/// One state: the call that is held in it, unseen or done; what lies in the store then (open uploads,
/// objects, manifests); what is there after the restart.
macro_rules! killed {
    ($($name:ident: $fault:expr, $calls:expr, $then:expr => $left:expr;)*) => {
        $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn $name() {
            let site = Site::new("").await;
            site.proxy.fault(1, $fault, $calls);
            site.killed_at(1).await;
            assert_eq!((site.state().await.as_str(), site.stored().await), ("streaming", $then));
            site.is_left_with($left).await;
        })*
    };
}

killed! {
    begun_and_nothing_stored: Fault::Silence, is_globals, (0, 0, 0) => Left::Nothing;
    the_upload_begun_and_not_told: Fault::DoneInSilence, is_start, (1, 1, 0) => Left::Nothing;
    part_1_on_its_way: Fault::Silence, |call| call.is_part(1) && is_data(call), (1, 1, 0) => Left::Nothing;
    part_2_taken: Fault::DoneInSilence, |call| call.is_part(2) && is_data(call), (1, 1, 0) => Left::Nothing;
    the_last_part_taken: Fault::DoneInSilence, |call| call.is_part(3) && is_data(call), (1, 1, 0) => Left::Nothing;
    complete_sent: Fault::Silence, |call| call.is_complete() && is_data(call), (1, 1, 0) => Left::Nothing;
    complete_done_and_not_told: Fault::DoneInSilence, |call| call.is_complete() && is_data(call), (0, 2, 0) => Left::Nothing;
    complete_and_the_size_asked: Fault::Silence, |call| call.method == "HEAD" && is_data(call), (0, 2, 0) => Left::Nothing;
    the_manifest_on_its_way: Fault::Silence, is_manifest, (0, 2, 0) => Left::Nothing;
    the_manifest_written_and_not_told: Fault::DoneInSilence, is_manifest, (0, 3, 1) => Left::Backup;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_store_being_probed() {
    let site = Site::new("").await;
    let daemon = site.start().await;
    site.proxy
        .fault(1, Fault::DoneInSilence, |call| call.is_part(1) && is_probe(call));
    site.kill_at(daemon, 1).await;
    // Nothing was begun. What the probe left is swept by a probe an hour later: see the conformance tests.
    assert_eq!((site.state().await.as_str(), site.stored().await), ("none", (1, 1, 0)));
    let daemon = site.start().await;
    site.host.run(&["run", "nightly"]).expect_code(0);
    assert_eq!((site.state().await.as_str(), site.stored().await.2), ("committed", 1));
    assert_eq!(daemon.stop(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_of_several_archives_complete_and_the_next_one_sent() {
    let site = Site::new(", parallel = 2").await;
    let completed = AtomicU32::new(0);
    site.proxy.fault(1, Fault::Silence, move |call| {
        call.is_complete() && !is_probe(call) && completed.fetch_add(1, Ordering::Relaxed) == 1
    });
    site.killed_at(1).await;
    assert_eq!(
        (site.state().await.as_str(), site.stored().await),
        ("streaming", (2, 2, 0))
    );
    site.is_left_with(Left::Nothing).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_manifest_written_and_the_ledger_being_told() {
    let site = Site::new("").await;
    let keeper = site.gate("backup", "NEW.state = 'committed'").await;
    site.killed_at_the_gate(keeper).await;
    assert_eq!(
        (site.state().await.as_str(), site.stored().await),
        ("streaming", (0, 3, 1))
    );
    site.is_left_with(Left::Backup).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_ledger_told_and_the_run_being_closed() {
    let site = Site::new("").await;
    let keeper = site.gate("run", "NEW.outcome IS NOT NULL").await;
    site.killed_at_the_gate(keeper).await;
    assert_eq!(
        (site.state().await.as_str(), site.stored().await),
        ("committed", (0, 3, 1))
    );
    site.is_left_with(Left::Backup).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failed_backup_being_cleared_away() {
    let site = Site::new("").await;
    site.proxy
        .fault(FOR_EVER, EXPIRED, |call| call.is_part(2) && is_data(call));
    site.proxy
        .fault(1, Fault::Silence, |call| call.method == "DELETE" && is_data(call));
    site.killed_at(1).await;
    assert_eq!(
        (site.state().await.as_str(), site.stored().await),
        ("streaming", (1, 1, 0))
    );
    site.is_left_with(Left::Nothing).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_sweep_of_an_earlier_death_under_way() {
    let site = Site::new("").await;
    site.proxy
        .fault(1, Fault::DoneInSilence, |call| call.is_part(2) && is_data(call));
    site.killed_at(1).await;
    site.proxy
        .fault(1, Fault::Silence, |call| call.method == "DELETE" && is_data(call));
    let daemon = site.start().await;
    until("the sweep waits for the store", async || site.proxy.held() == 2).await;
    daemon.kill();
    site.proxy.heal();
    assert_eq!(
        (site.state().await.as_str(), site.stored().await),
        ("streaming", (1, 1, 0))
    );
    site.is_left_with(Left::Nothing).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_old_backup_half_removed_by_its_keep_policy() {
    let site = Site::new(", keep = { last = 2, min = 2 }").await;
    let daemon = site.start().await;
    for _ in 0..2 {
        site.host.run(&["run", "nightly"]).expect_code(0);
    }
    site.proxy
        .fault(1, Fault::Silence, |call| call.method == "DELETE" && is_data(call));
    site.kill_at(daemon, 1).await;
    // Of three backups of three objects the oldest has lost its manifest, and is none.
    assert_eq!(
        (site.state().await.as_str(), site.stored().await),
        ("committed", (0, 8, 2))
    );
    let daemon = site.start().await;
    site.newest_is_whole().await;
    site.host.run(&["run", "nightly"]).expect_code(0);
    let listed = site.host.run(&["backup", "list", "--json"]).expect_code(0).json();
    assert_eq!(listed["backups"].as_array().unwrap().len(), 2);
    // What is left of it goes when it is a week old: see `objects_without_a_manifest_are_deleted_…`.
    assert_eq!(site.stored().await, (0, 8, 2));
    assert_eq!(daemon.stop(), 0);
}

/// SIGTERM lets a backup go on for a while; a second one ends it at once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn told_twice_to_stop_with_a_part_on_its_way() {
    let site = Site::new("").await;
    let daemon = site.start().await;
    site.proxy
        .fault(FOR_EVER, Fault::Silence, |call| call.is_part(2) && is_data(call));
    let mut client = site.ask_for_a_backup();
    until("the daemon waits for the store", async || site.proxy.held() == 1).await;
    daemon.signal(rustix::process::Signal::TERM);
    until("it drains", async || {
        daemon.log().contains("a second signal ends them now")
    })
    .await;
    assert_eq!(daemon.stop(), 0);
    client.wait().unwrap();
    assert_eq!(
        (site.state().await.as_str(), site.stored().await),
        ("aborted", (0, 0, 0))
    );
    site.proxy.heal();
    let daemon = site.start().await;
    site.host.run(&["run", "nightly"]).expect_code(0);
    assert_eq!(daemon.stop(), 0);
    site.host.run(&["audit", "verify"]).expect_code(0);
}

/// How much lies in files without a name that a process has open below a directory.
fn unnamed_bytes(pid: u32, directory: &Path) -> u64 {
    let open = std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
    open.filter_map(|entry| {
        let file = entry.unwrap().path();
        let target = std::fs::read_link(&file).ok()?;
        let unnamed = target.starts_with(directory) && target.to_string_lossy().ends_with(" (deleted)");
        unnamed.then(|| std::fs::metadata(&file).map_or(0, |found| found.len()))
    })
    .sum()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restore_that_is_killed_leaves_no_copy_of_the_dump_and_a_closed_database() {
    let site = Site::new("").await;
    // Of one large table the rows would be loaded as they come, without a copy.
    site.database.execute("CREATE TABLE more AS TABLE bulk").await;
    site.host.run(&["run", "nightly"]).expect_code(0);
    let backups = catalog::list(site.direct.as_ref(), Filter::default())
        .await
        .unwrap()
        .backups;
    let (id, into) = (backups[0].id.as_str(), format!("{}_again", site.database.name));
    let restore = ["backup", "restore", id, "--into", &into, "--jobs", "2"];
    site.proxy
        .fault(1, Fault::StallAnswer(6 << 20), |call| call.is_read() && is_data(call));
    let directory = site.host.path("tmp");
    std::fs::create_dir(&directory).unwrap();
    let mut command = site.host.command(&restore);
    let mut child = command.env("TMPDIR", &directory).spawn().unwrap();
    until("a part of the dump is unpacked", async || {
        unnamed_bytes(child.id(), &directory) > 1 << 20
    })
    .await;
    let named = || std::fs::read_dir(&directory).unwrap().count();
    assert_eq!(named(), 0);
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(named(), 0);
    site.proxy.heal();

    // What is left is a database that nobody but superusers enters.
    let open = format!("SELECT has_database_privilege('public', '{into}', 'CONNECT')");
    assert!(!site.database.value::<bool>(&open).await);
    // And that makes room for the next restore into it, once the server has noticed.
    until("the restore is begun anew", async || site.host.run(&restore).code == 0).await;
    assert!(site.database.value::<bool>(&open).await);
}
