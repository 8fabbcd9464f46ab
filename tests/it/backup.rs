//! Backups: what exists after a run that succeeds, and after one that does not.

use std::sync::Arc;
use std::time::Duration;

use pgreeve::backup::catalog::{self, Filter};
use pgreeve::backup::compress::Packing;
use pgreeve::backup::digest::sha256_hex;
use pgreeve::backup::manifest::{Manifest, Role};
use pgreeve::backup::program::Programs;
use pgreeve::backup::sweep::sweep_leftovers;
use pgreeve::backup::verify;
use pgreeve::backup::walker::{WalkError, Walked, Walker};
use pgreeve::job::{Disposition, Job, Outcome, Progress};
use pgreeve::ledger::backups::Leftovers;
use pgreeve::ledger::leader::Fence;
use pgreeve::store::{ObjectKey, Store};
use tempfile::TempDir;
use tokio::process::Command;

use crate::support::backups::{Bench, until};
use crate::support::context::Recording;
use crate::support::memory_store::MemoryStore;
use crate::support::{Database, cluster};

async fn only_manifest(store: &dyn Store) -> Manifest {
    let catalog = catalog::list(store, Filter::default()).await.unwrap();
    assert_eq!(catalog.unreadable, []);
    let [entry] = catalog.backups.as_slice() else {
        panic!("{catalog:?}");
    };
    entry.manifest.clone()
}

/// Nothing is left in the store, nothing is open, and the journal knows.
async fn assert_nothing_left(bench: &Bench, store: &dyn Store) {
    assert_eq!(store.list("").await.unwrap(), []);
    assert_eq!(store.list_uploads("").await.unwrap(), []);
    assert_eq!(bench.states().await, ["aborted"]);
    assert_eq!(bench.records.kinds(), ["backup.started", "backup.failed"]);
}

#[tokio::test]
async fn a_backup_is_listed_with_what_the_database_held() {
    let store: Arc<dyn Store> = Arc::new(MemoryStore::default());
    let bench = Bench::new(Arc::clone(&store)).await.with_bulk().await;
    let report = bench.run().await.unwrap();
    assert_eq!(report.outcome, Outcome::Succeeded);

    let manifest = only_manifest(store.as_ref()).await;
    let bulk = manifest.tables.iter().find(|table| table.name == "bulk").unwrap();
    assert_eq!(bulk.rows, 12000);
    let copy = Command::new("/usr/bin/env")
        .args(["psql", "-XAtq", "-h", &bench.database.target.host, "-U", "postgres"])
        .args(["-d", &bench.database.name, "-c", "COPY bulk TO STDOUT"])
        .output()
        .await
        .unwrap();
    assert_eq!(
        (bulk.bytes, &bulk.sha256),
        (copy.stdout.len() as u64, &sha256_hex(&copy.stdout))
    );

    let system: String = bench
        .database
        .value("SELECT system_identifier::text FROM pg_control_system()")
        .await;
    assert_eq!(manifest.system_identifier, Some(system));
    assert_eq!(
        (manifest.archive_version.as_str(), manifest.compression.as_str()),
        ("1.14", "gzip:4")
    );
    assert!(manifest.roles.contains("postgres"));
    assert!(manifest.finished_at > manifest.started_at);
    assert_eq!(manifest.warnings, Vec::<String>::new());
    let data = manifest.data().next().unwrap();
    assert!(data.parts > 5, "{data:?}");
    assert!(manifest.objects.iter().any(|object| object.role == Role::Globals));

    let keys: Vec<&String> = report.body.as_object().unwrap().keys().collect();
    let published = [
        "backup_id",
        "bytes",
        "bytes_raw",
        "duration_ms",
        "objects",
        "parts",
        "prune",
        "rows",
        "store",
        "tables",
        "warnings",
    ];
    assert_eq!(keys, published);
    assert_eq!(report.body["backup_id"], manifest.id);
    assert_eq!(report.body["rows"], manifest.rows());
    assert_eq!(report.body["bytes"], manifest.bytes());
    assert_eq!(report.body["parts"], data.parts);
    assert_eq!(bench.states().await, ["committed"]);
    assert_eq!(bench.records.kinds(), ["backup.started", "backup.committed"]);
}

#[tokio::test]
async fn the_manifest_is_the_last_object_and_needs_no_pgreeve_to_restore() {
    let store = MemoryStore::default();
    let bench = Bench::new(Arc::new(store.clone())).await.with_bulk().await;
    bench.run().await.unwrap();
    let requests = store.requests();
    let at = |start: &str, end: &str| {
        let found = |request: &&String| request.starts_with(start) && request.ends_with(end);
        requests.iter().position(|request| found(&request)).unwrap()
    };
    let manifest = at("create", "/manifest.json");
    assert!(at("complete", "/data.dump.gz") < at("head", "/data.dump.gz"));
    assert!(at("head", "/data.dump.gz") < manifest);
    assert_eq!(requests.len(), manifest + 1);

    // The documented recovery: gunzip | pg_restore.
    let directory = TempDir::new().unwrap();
    let key = store
        .keys()
        .into_iter()
        .find(|key| key.ends_with("data.dump.gz"))
        .unwrap();
    std::fs::write(directory.path().join("dump.gz"), store.body(&key)).unwrap();
    let listed = Command::new("/bin/sh")
        .args([
            "-c",
            "gunzip -c dump.gz | pg_restore -f - | grep -c '^[0-9]*\t[0-9a-f]\\{256\\}$'",
        ])
        .current_dir(directory.path())
        .output()
        .await
        .unwrap();
    assert_eq!(String::from_utf8(listed.stdout).unwrap().trim(), "12000");
}

#[tokio::test]
async fn a_small_database_is_one_piece_and_may_be_stored_as_it_is() {
    let store: Arc<dyn Store> = Arc::new(MemoryStore::default());
    let mut bench = Bench::new(Arc::clone(&store)).await;
    bench.job.settings.compress = Packing::None;
    bench.job.sizes.part_bytes = 1024 * 1024;
    bench.run().await.unwrap();
    let manifest = only_manifest(store.as_ref()).await;
    let data = manifest.data().next().unwrap();
    assert!(data.key.ends_with("/data.dump"));
    assert_eq!((data.parts, Some(data.bytes)), (0, data.bytes_raw));
    assert_eq!(Some(&data.sha256), data.sha256_raw.as_ref());
}

#[tokio::test]
async fn zstd_and_several_threads_need_no_pgreeve_to_restore_either() {
    let directory = TempDir::new().unwrap();
    for (packing, threads, name, unpack) in [
        (Packing::Zstd(3), 1, "data.dump.zst", "zstd -dcq"),
        (Packing::Zstd(3), 3, "data.dump.zst", "zstd -dcq"),
        (Packing::Gzip(1), 3, "data.dump.gz", "gunzip -c"),
    ] {
        let store = MemoryStore::default();
        let mut bench = Bench::new(Arc::new(store.clone())).await.with_bulk().await;
        bench.job.settings.compress = packing;
        bench.job.settings.threads = threads;
        bench.run().await.unwrap();
        let manifest = only_manifest(&store).await;
        let data = manifest.data().next().unwrap();
        assert!(data.key.ends_with(name) && data.parts > 1, "{data:?}");
        verify::read_through(Arc::new(store.clone()), &manifest, Progress::new(), None)
            .await
            .unwrap();
        std::fs::write(directory.path().join("dump"), store.body(&data.key)).unwrap();
        let rows = Command::new("/bin/sh")
            .args([
                "-c",
                &format!("{unpack} dump | pg_restore -f - | grep -c '^[0-9]*\t[0-9a-f]\\{{256\\}}$'"),
            ])
            .current_dir(directory.path())
            .output()
            .await
            .unwrap();
        assert_eq!(String::from_utf8(rows.stdout).unwrap().trim(), "12000");
    }
}

#[tokio::test]
async fn a_packed_dump_has_no_chunk_for_each_row_and_the_same_rows() {
    let store: Arc<dyn Store> = Arc::new(MemoryStore::default());
    let mut bench = Bench::new(Arc::clone(&store)).await.with_bulk().await;
    let mut made = Vec::new();
    for packing in [Packing::None, Packing::Gzip(1), Packing::Zstd(1)] {
        bench.job.settings.compress = packing;
        bench.run().await.unwrap();
        let catalog = catalog::list(store.as_ref(), Filter::default()).await.unwrap();
        let mut manifests = catalog.backups.into_iter().map(|entry| entry.manifest);
        made.extend(manifests.find(|manifest| manifest.packing() == Ok(packing)));
    }
    let [plain, gzip, zstd] = made.as_slice() else {
        panic!("{made:?}");
    };
    let bulk = |manifest: &Manifest| manifest.tables.iter().find(|table| table.name == "bulk").cloned();
    for packed in [gzip, zstd] {
        assert_eq!(bulk(packed), bulk(plain));
        // Five bytes for each of 12,000 rows, but for those that begin a piece.
        assert!(plain.bytes_raw() - packed.bytes_raw() > 59_000, "{packed:?}");
        verify::read_through(Arc::clone(&store), packed, Progress::new(), None)
            .await
            .unwrap();
    }
}

#[tokio::test]
async fn a_dump_past_the_part_limit_goes_on_in_segments() {
    let store: Arc<dyn Store> = Arc::new(MemoryStore::default());
    let mut bench = Bench::new(Arc::clone(&store)).await.with_bulk().await;
    bench.job.sizes.max_parts = 20;
    bench.run().await.unwrap();
    let manifest = only_manifest(store.as_ref()).await;
    let data: Vec<_> = manifest.data().collect();
    assert!(data.len() > 2, "{data:?}");
    assert!(data[0].key.ends_with("/data.dump.gz") && data[1].key.ends_with("/data-0002.dump.gz"));
    let (last, full) = data.split_last().unwrap();
    assert!(
        full.iter()
            .all(|object| object.parts == 20 && object.bytes == 20 * 16 * 1024)
    );
    assert!(last.sha256_raw.is_some() && full.iter().all(|object| object.sha256_raw.is_none()));
    assert_eq!(bench.states().await, ["committed"]);
}

#[tokio::test]
async fn a_row_inserted_after_the_snapshot_is_not_in_the_dump() {
    let directory = TempDir::new().unwrap();
    let store: Arc<dyn Store> = Arc::new(MemoryStore::default());
    let bench = Bench::new(Arc::clone(&store)).await.with_bulk().await;
    let (host, name) = (bench.database.target.host.clone(), bench.database.name.clone());
    // The row is committed after the snapshot was exported and before pg_dump takes it over.
    let script = format!(
        "env -u PGOPTIONS psql -Xq -h {host} -U postgres -d {name} -c \"INSERT INTO bulk VALUES (0, 'late')\" || exit 9\nexec $REAL \"$@\""
    );
    let bench = bench.with_pg_dump(&directory, &script);
    bench.run().await.unwrap();
    let manifest = only_manifest(store.as_ref()).await;
    let bulk = manifest.tables.iter().find(|table| table.name == "bulk").unwrap();
    assert_eq!(bulk.rows, 12000);
    assert_eq!(bench.database.value::<i64>("SELECT count(*) FROM bulk").await, 12001);
}

#[tokio::test]
async fn a_dump_that_exits_nonzero_leaves_no_object() {
    let directory = TempDir::new().unwrap();
    let sent = directory.path().join("sent");
    let store = MemoryStore::default();
    let script = format!(
        "$REAL \"$@\" | head -c 2000000\nwhile [ ! -e {} ]; do sleep 0.02; done\necho 'pg_dump: error: out of luck' >&2\nexit 1",
        sent.display()
    );
    let bench = Bench::new(Arc::new(store.clone()))
        .await
        .with_bulk()
        .await
        .with_pg_dump(&directory, &script);
    let part = async {
        until("a part was sent", async || {
            store.requests().iter().any(|request| request.starts_with("put_part"))
        })
        .await;
        std::fs::write(&sent, "").unwrap();
    };
    let (result, ()) = tokio::join!(bench.run(), part);
    let error = result.unwrap_err();
    assert!(error.operation.contains("stage dump"), "{error}");
    assert!(
        error.cause.contains("out of luck") && error.cause.contains("exit status: 1"),
        "{error}"
    );
    assert_nothing_left(&bench, &store).await;
    assert_eq!(bench.records.body("backup.failed")["stage"], "dump");
}

#[tokio::test]
async fn a_truncated_archive_that_exits_zero_leaves_no_object() {
    let directory = TempDir::new().unwrap();
    for (length, output) in [("2000000", "half of it"), ("0", "nothing")] {
        let store = MemoryStore::default();
        let script = format!("$REAL \"$@\" | head -c {length}\nexit 0");
        let bench = Bench::new(Arc::new(store.clone()))
            .await
            .with_bulk()
            .await
            .with_pg_dump(&directory, &script);
        let error = bench.run().await.unwrap_err();
        assert!(error.operation.contains("stage walk"), "{output}: {error}");
        assert_eq!(error.disposition, Disposition::Permanent);
        assert_nothing_left(&bench, &store).await;
    }
}

#[tokio::test]
async fn a_dump_that_is_not_an_archive_names_the_walk() {
    let directory = TempDir::new().unwrap();
    let store = MemoryStore::default();
    let bench = Bench::new(Arc::new(store.clone()))
        .await
        .with_pg_dump(&directory, "exec cat /dev/zero");
    let error = bench.run().await.unwrap_err();
    assert!(error.operation.contains("stage walk"), "{error}");
    assert_nothing_left(&bench, &store).await;
}

#[tokio::test]
async fn a_flood_of_messages_neither_blocks_nor_fills_the_manifest() {
    let directory = TempDir::new().unwrap();
    let store: Arc<dyn Store> = Arc::new(MemoryStore::default());
    let bench = Bench::new(Arc::clone(&store)).await.with_pg_dump(
        &directory,
        "yes 'noise: a@b.example' | head -c 1048576 >&2\necho >&2\necho 'pg_dump: warning: circular foreign keys' >&2\nexec $REAL \"$@\"",
    );
    bench.run().await.unwrap();
    let manifest = only_manifest(store.as_ref()).await;
    let [warning, more] = manifest.warnings.as_slice() else {
        panic!("{:?}", manifest.warnings);
    };
    assert_eq!(warning, "pg_dump: warning: circular foreign keys");
    assert!(more.ends_with("more lines on the standard error"));
}

#[tokio::test]
async fn a_hanging_dump_is_ended_when_the_run_is_stopped() {
    let directory = TempDir::new().unwrap();
    let started = directory.path().join("started");
    let store = MemoryStore::default();
    let bench = Bench::new(Arc::new(store.clone()))
        .await
        .with_bulk()
        .await
        .with_pg_dump(
            &directory,
            &format!(
                "$REAL \"$@\" | head -c 2000000\necho $$ > {}\nexec sleep 600",
                started.display()
            ),
        );
    let stop = async {
        until("the dump hangs", async || {
            store.requests().iter().any(|request| request.starts_with("put_part")) && started.exists()
        })
        .await;
        bench.stop.cancel();
    };
    let (result, ()) = tokio::join!(bench.run(), stop);
    assert_eq!(result.unwrap_err().disposition, Disposition::Cancelled);
    assert_nothing_left(&bench, &store).await;
    let pid = std::fs::read_to_string(&started).unwrap();
    assert!(
        !std::path::Path::new("/proc").join(pid.trim()).exists(),
        "the dump still runs"
    );
}

#[tokio::test]
async fn a_run_that_is_dropped_leaves_nothing_running_and_no_open_upload() {
    let directory = TempDir::new().unwrap();
    let started = directory.path().join("started");
    let store = MemoryStore::default();
    let bench = Bench::new(Arc::new(store.clone()))
        .await
        .with_bulk()
        .await
        .with_pg_dump(
            &directory,
            &format!(
                "$REAL \"$@\" | head -c 2000000\necho $$ > {}\nexec sleep 600",
                started.display()
            ),
        );
    tokio::select! {
        result = bench.run() => panic!("{result:?}"),
        () = until("the dump hangs", async || store.open_uploads() == 1 && started.exists()) => {}
    }
    until("the upload is aborted", async || store.open_uploads() == 0).await;
    let pid = std::fs::read_to_string(&started).unwrap();
    let process = std::path::Path::new("/proc").join(pid.trim());
    until("the dump has ended", async || !process.exists()).await;
    assert_eq!(bench.states().await, ["streaming"]);
}

#[tokio::test]
async fn a_store_that_fails_names_its_stage_and_leaves_nothing() {
    for (operation, key, stage) in [
        ("create", "globals", "upload"),
        ("start_upload", "data", "upload"),
        ("put_part", "data", "upload"),
        ("complete", "data", "commit"),
        ("head", "data", "commit"),
        ("create", "manifest", "commit"),
    ] {
        let store = MemoryStore::default();
        let bench = Bench::new(Arc::new(store.clone())).await.with_bulk().await;
        store.fail(operation, key);
        let error = bench.run().await.unwrap_err();
        assert!(
            error.operation.contains(&format!("stage {stage}")),
            "{operation} {key}: {error}"
        );
        assert_eq!(error.disposition, Disposition::Transient);
        assert_nothing_left(&bench, &store).await;
    }
}

#[tokio::test]
async fn a_silent_store_holds_the_dump_back() {
    let store = MemoryStore::with_held_parts();
    let bench = Bench::new(Arc::new(store.clone())).await.with_bulk().await;
    bench
        .database
        .execute("INSERT INTO bulk SELECT id + k * 100000, noise FROM bulk, generate_series(1, 2) k")
        .await;
    let mut context = bench.context(&bench.database.target).await;
    let progress = context.progress.subscribe();
    let held = async {
        // What fits between the dump and the store is read; then pg_dump's server process waits.
        let mut before = 0;
        until("the server waits for the store", async || {
            let waits = bench
                .database
                .value::<bool>(
                    "SELECT EXISTS (SELECT 1 FROM pg_stat_activity
                     WHERE datname = current_database() AND wait_event = 'ClientWrite')",
                )
                .await;
            let now = progress.borrow().done;
            waits && std::mem::replace(&mut before, now) == now && now > 0
        })
        .await;
        store.let_parts_pass();
        before
    };
    let run = async {
        let plan = bench.job.plan(&mut context).await.unwrap();
        plan.execute(&mut context).await.unwrap()
    };
    let (report, at) = tokio::join!(run, held);
    let total = report.body["bytes_raw"].as_u64().unwrap();
    assert!(at < total, "{at} of {total} bytes were read");
}

#[tokio::test]
async fn a_role_that_cannot_read_everything_is_refused_by_name() {
    let store: Arc<dyn Store> = Arc::new(MemoryStore::default());
    let bench = Bench::new(Arc::clone(&store)).await;
    let role = format!("reader_{}", bench.database.name);
    let target = cluster().await.target_as(&role, &bench.database.name);
    bench
        .database
        .execute(&format!(
            "CREATE ROLE {role} LOGIN;
             GRANT USAGE ON SCHEMA pgreeve TO {role};
             GRANT SELECT, INSERT, UPDATE ON ALL TABLES IN SCHEMA pgreeve TO {role};
             CREATE SCHEMA closed; CREATE TABLE closed.t ();
             CREATE MATERIALIZED VIEW summary AS SELECT 1;
             CREATE TABLE secrets (id int); CREATE TABLE tenants (id int);
             INSERT INTO tenants VALUES (1);
             SELECT lo_from_bytea(4711, 'picture')"
        ))
        .await;
    let steps = [
        (
            "may not use the schema closed",
            "GRANT pg_read_all_data TO",
            format!("GRANT USAGE ON SCHEMA closed TO {role}; GRANT SELECT ON closed.t TO {role}"),
        ),
        (
            "may not read public.secrets, public.tenants",
            "GRANT pg_read_all_data TO",
            format!("GRANT SELECT ON secrets, tenants TO {role}; ALTER TABLE tenants ENABLE ROW LEVEL SECURITY"),
        ),
        (
            "row security would hide rows of public.tenants",
            "BYPASSRLS",
            format!("ALTER ROLE {role} BYPASSRLS"),
        ),
        (
            "may not read the large objects 4711",
            "GRANT SELECT ON LARGE OBJECT",
            format!("GRANT SELECT ON LARGE OBJECT 4711 TO {role}"),
        ),
    ];
    for (cause, remedy, mend) in steps {
        let error = bench.run_as(&target).await.unwrap_err();
        assert_eq!(error.disposition, Disposition::Refused, "{error}");
        assert!(error.cause.contains(cause), "{error}");
        assert!(error.remedy.as_ref().unwrap().contains(remedy), "{error:?}");
        bench.database.execute(&mend).await;
    }
    bench.run_as(&target).await.unwrap();
    let manifest = only_manifest(store.as_ref()).await;
    assert_eq!(manifest.large_objects.count, 1);
    assert_eq!(
        manifest
            .tables
            .iter()
            .find(|table| table.name == "tenants")
            .unwrap()
            .rows,
        1
    );
    assert!(manifest.roles.contains(&role));
}

#[tokio::test]
async fn what_a_crash_left_is_swept_and_nothing_else() {
    let store = MemoryStore::default();
    let bench = Bench::new(Arc::new(store.clone())).await;
    let crashed = |id: &str, job: &str| {
        format!(
            "INSERT INTO pgreeve.backup (backup_id, run_id, job, store, prefix, state)
             VALUES ('{id}', gen_random_uuid(), '{job}', 'offsite', 'main/{job}/{id}', 'streaming');"
        )
    };
    let sql = [crashed("A", "nightly"), crashed("B", "weekly")].concat();
    bench.database.execute(&sql).await;
    for key in [
        "main/nightly/A/data.dump.gz",
        "main/nightly/AA/data.dump.gz",
        "main/weekly/B/data.dump.gz",
    ] {
        store
            .create(&ObjectKey::new(key).unwrap(), "x".into(), "text/plain")
            .await
            .unwrap();
    }
    let open = ObjectKey::new("main/nightly/A/data-0002.dump.gz").unwrap();
    drop(store.start_upload(&open, "text/plain").await.unwrap());

    bench.run().await.unwrap();
    assert_eq!(
        bench.records.kinds(),
        ["backup.swept", "backup.started", "backup.committed"]
    );
    let swept = bench.records.body("backup.swept");
    assert_eq!(
        (&swept["backup_id"], &swept["uploads"], &swept["objects"]),
        (&"A".into(), &1.into(), &1.into())
    );
    assert_eq!(store.open_uploads(), 0);
    let left: Vec<String> = store.keys().into_iter().filter(|key| key.len() < 30).collect();
    assert_eq!(left, ["main/nightly/AA/data.dump.gz", "main/weekly/B/data.dump.gz"]);
    assert_eq!(bench.states().await, ["swept", "streaming", "committed"]);

    // At the daemon's start what closed runs left is swept, what an open run writes is not.
    let mut connection = bench.database.connect().await;
    let fence = Fence { epoch: 0 };
    let swept = sweep_leftovers(
        &mut connection,
        fence,
        ("offsite", &store),
        Leftovers::OfClosedRuns("weekly"),
        bench.records.as_ref(),
    )
    .await
    .unwrap();
    assert_eq!(
        swept.iter().map(|swept| swept.job.as_str()).collect::<Vec<_>>(),
        ["weekly"]
    );
    assert_eq!(
        sweep_leftovers(
            &mut connection,
            fence,
            ("offsite", &store),
            Leftovers::OfClosedRuns("weekly"),
            bench.records.as_ref(),
        )
        .await
        .unwrap(),
        []
    );
}

#[tokio::test]
async fn what_was_swept_is_on_record_also_when_the_next_one_cannot_be() {
    let store = MemoryStore::default();
    let bench = Bench::new(Arc::new(store.clone())).await;
    for id in ["A", "B"] {
        let sql = format!(
            "INSERT INTO pgreeve.backup (backup_id, run_id, job, store, prefix, state)
             VALUES ('{id}', gen_random_uuid(), 'nightly', 'offsite', 'main/nightly/{id}', 'streaming')"
        );
        bench.database.execute(&sql).await;
    }
    store.fail("list_uploads", "main/nightly/B");
    let mut connection = bench.database.connect().await;
    let result = sweep_leftovers(
        &mut connection,
        Fence { epoch: 0 },
        ("offsite", &store),
        Leftovers::OfJob("nightly"),
        bench.records.as_ref(),
    )
    .await;
    assert!(result.is_err());
    assert_eq!(bench.records.kinds(), ["backup.swept"]);
    assert_eq!(bench.records.body("backup.swept")["backup_id"], "A");
}

#[tokio::test]
async fn a_backup_whose_ledger_row_was_lost_is_not_swept_away() {
    let store = MemoryStore::default();
    let bench = Bench::new(Arc::new(store.clone())).await;
    bench.run().await.unwrap();
    let before = store.keys();
    bench
        .database
        .execute("UPDATE pgreeve.backup SET state = 'streaming', bytes = NULL")
        .await;
    let mut connection = bench.database.connect().await;
    let swept = sweep_leftovers(
        &mut connection,
        Fence { epoch: 0 },
        ("offsite", &store),
        Leftovers::OfJob("nightly"),
        &Recording::default(),
    )
    .await
    .unwrap();
    assert!(swept[0].committed);
    assert_eq!(store.keys(), before);
    assert_eq!(bench.states().await, ["committed"]);

    // One whose manifest is damaged is left alone too, and does not stand in the way of others.
    let key = before.iter().find(|key| key.ends_with("manifest.json")).unwrap();
    store.damage(key, |bytes| bytes.truncate(9));
    bench
        .database
        .execute("UPDATE pgreeve.backup SET state = 'streaming'")
        .await;
    bench.run().await.unwrap();
    assert!(
        bench.records.body("backup.swept")["left"]
            .as_str()
            .unwrap()
            .contains("not a manifest")
    );
    assert_eq!(bench.states().await, ["streaming", "committed"]);
    assert!(before.iter().all(|key| store.keys().contains(key)));
}

#[tokio::test]
async fn a_leader_that_was_superseded_publishes_nothing() {
    let directory = TempDir::new().unwrap();
    let store = MemoryStore::default();
    let bench = Bench::new(Arc::new(store.clone())).await;
    let (host, name) = (bench.database.target.host.clone(), bench.database.name.clone());
    let script = format!(
        "psql -Xq -h {host} -U postgres -d {name} -c 'UPDATE pgreeve.leader SET epoch = 1' || exit 9\nexec $REAL \"$@\""
    );
    let bench = bench.with_pg_dump(&directory, &script);
    let error = bench.run().await.unwrap_err();
    assert!(
        error.operation.contains("stage commit") && error.cause.contains("taken over"),
        "{error}"
    );
    assert_eq!(store.keys(), Vec::<String>::new());
    // The row is the new leader's to close.
    assert_eq!(bench.states().await, ["streaming"]);
}

#[tokio::test]
async fn pruning_follows_the_backup_and_a_drastic_plan_waits_for_a_person() {
    let store = MemoryStore::default();
    let bench = Bench::new(Arc::new(store.clone())).await;
    for _ in 0..5 {
        bench.run().await.unwrap();
    }
    let ids = async || {
        let catalog = catalog::list(&store, Filter::default()).await.unwrap();
        catalog.backups.into_iter().map(|entry| entry.id).collect::<Vec<_>>()
    };
    let before = ids().await;

    let bench = bench.with_keep(2, 2);
    let report = bench.run().await.unwrap();
    assert_eq!(report.outcome, Outcome::Succeeded);
    assert!(
        report.body["prune"]["refused"]
            .as_str()
            .unwrap()
            .contains("4 of 6 backups"),
        "{}",
        report.body
    );
    assert_eq!(ids().await.len(), 6);

    let bench = bench.with_keep(4, 2);
    let report = bench.run().await.unwrap();
    assert_eq!(report.body["prune"]["removed"], serde_json::json!(before[..3]));
    let after = ids().await;
    assert_eq!(after.len(), 4);
    assert_eq!(after[..2], before[3..]);
    assert!(store.keys().iter().all(|key| after.iter().any(|id| key.contains(id))));
    assert_eq!(bench.records.body("backup.pruned")["phase"], "intent");
    // Of each removed backup the manifest went first.
    let requests = store.requests();
    let deletes: Vec<&String> = requests
        .iter()
        .filter(|request| request.starts_with("delete") && request.contains(&before[0]))
        .collect();
    assert!(
        deletes.len() == 3 && deletes[0].ends_with("manifest.json"),
        "{deletes:?}"
    );
}

#[tokio::test]
async fn pruning_one_database_touches_no_other_and_no_key_that_it_does_not_know() {
    let store = MemoryStore::default();
    let bench = Bench::new(Arc::new(store.clone())).await;
    for _ in 0..4 {
        bench.run().await.unwrap();
    }
    let put = async |key: &str, body: Vec<u8>| {
        let key = ObjectKey::new(key).unwrap();
        store.create(&key, body.into(), "text/plain").await.unwrap();
    };
    // The same backups again, of a database whose name begins like this one's, and of another job.
    for key in store.keys() {
        let body = store.body(&key);
        for (from, to, field, other) in [
            ("main/", "main_2/", "\"database\": \"main\"", "\"database\": \"main_2\""),
            (
                "/nightly/",
                "/nightly_2/",
                "\"job\": \"nightly\"",
                "\"job\": \"nightly_2\"",
            ),
        ] {
            let copy = if key.ends_with("/manifest.json") {
                let text = String::from_utf8(body.to_vec()).unwrap();
                let text = text.replace(from, to).replace(field, other);
                let manifest: Manifest = serde_json::from_str(&text).unwrap();
                manifest.to_bytes().unwrap().to_vec()
            } else {
                body.to_vec()
            };
            put(&key.replace(from, to), copy).await;
        }
    }
    for junk in [
        "main/nightly/notes.txt",
        "main/nightly/old/copy/manifest.json",
        "main/manifest.json",
    ] {
        put(junk, b"mine".to_vec()).await;
    }
    let others = || {
        let keys = store.keys().into_iter();
        keys.filter(|key| !key.starts_with("main/nightly/0"))
            .collect::<Vec<_>>()
    };
    let before = others();
    assert!(before.len() > 20, "{before:?}");
    let report = bench.with_keep(3, 2).run().await.unwrap();
    assert_eq!(
        report.body["prune"]["removed"].as_array().unwrap().len(),
        2,
        "{}",
        report.body
    );
    assert_eq!(others(), before);
}

#[tokio::test]
async fn an_upload_that_no_journal_knows_is_aborted_when_it_is_a_day_old() {
    let store = MemoryStore::default();
    let bench = Bench::new(Arc::new(store.clone())).await;
    let (old, young) = ("00000000010000000000000000", ulid::Ulid::generate().to_string());
    for key in [
        format!("main/nightly/{old}/data.dump.gz"),
        format!("main/nightly/{young}/data.dump.gz"),
        format!("main/weekly/{old}/data.dump.gz"),
        "main/nightly/mine/data.dump.gz".to_owned(),
    ] {
        let upload = store.start_upload(&ObjectKey::new(key).unwrap(), "text/plain").await;
        drop(upload.unwrap());
    }
    bench.run().await.unwrap();
    let swept = bench.records.body("backup.swept");
    let key = format!("main/nightly/{old}/data.dump.gz");
    assert_eq!(swept["unknown"], serde_json::json!([key]), "{swept}");
    assert_eq!(store.open_uploads(), 3);
}

#[tokio::test]
async fn objects_without_a_manifest_are_deleted_when_they_are_a_week_old() {
    let store = MemoryStore::default();
    let bench = Bench::new(Arc::new(store.clone())).await;
    let (old, whole) = ("00000000010000000000000000", "00000000020000000000000000");
    let young = ulid::Ulid::generate().to_string();
    let keys = [
        format!("main/nightly/{old}/data.dump.gz"),
        format!("main/nightly/{young}/data.dump.gz"),
        format!("main/nightly/{whole}/data.dump.gz"),
        format!("main/nightly/{whole}/manifest.json"),
        format!("main/weekly/{old}/data.dump.gz"),
        "main/nightly/notes.txt".to_owned(),
    ];
    for key in &keys {
        let key = ObjectKey::new(key.as_str()).unwrap();
        store.create(&key, "x".into(), "text/plain").await.unwrap();
        store.written_long_ago(key.as_str());
    }
    bench.run().await.unwrap();
    let swept = bench.records.body("backup.swept");
    assert_eq!(swept["unknown"], serde_json::json!([keys[0]]), "{swept}");
    assert_eq!((&swept["uploads"], &swept["objects"]), (&0.into(), &1.into()));
    assert!(!store.keys().contains(&keys[0]));
    assert!(keys[1..].iter().all(|key| store.keys().contains(key)));
}

#[tokio::test]
async fn a_dump_that_holds_its_snapshot_too_long_is_ended_and_lets_go_of_it() {
    let store = MemoryStore::with_held_parts();
    let mut bench = Bench::new(Arc::new(store.clone())).await.with_bulk().await;
    bench.job.settings.max_duration = Some(Duration::from_secs(1));
    let error = bench.run().await.unwrap_err();
    assert_eq!(error.disposition, Disposition::Permanent, "{error}");
    assert!(error.cause.contains("held its snapshot for 1 s"), "{error}");
    assert!(error.remedy.unwrap().contains("`max_duration`"));
    assert_nothing_left(&bench, &store).await;
    until("no session holds rows back", async || {
        let holders = "SELECT count(*) FROM pg_stat_activity
             WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_xmin IS NOT NULL";
        bench.database.value::<i64>(holders).await == 0
    })
    .await;
}

#[tokio::test]
async fn a_dump_within_its_limits_is_a_backup() {
    let store = MemoryStore::default();
    let mut bench = Bench::new(Arc::new(store.clone())).await.with_bulk().await;
    bench.job.settings.max_duration = Some(Duration::from_mins(1));
    bench.job.settings.bandwidth = Some(1 << 30);
    bench.run().await.unwrap();
    only_manifest(&store).await;
}

#[tokio::test]
async fn a_manifest_that_cannot_be_read_is_reported_and_never_pruned() {
    let store = MemoryStore::default();
    let bench = Bench::new(Arc::new(store.clone())).await.with_keep(1, 1);
    bench.run().await.unwrap();
    let key = store
        .keys()
        .into_iter()
        .find(|key| key.ends_with("manifest.json"))
        .unwrap();
    store.damage(&key, |bytes| bytes.truncate(100));
    let elsewhere = ObjectKey::new("other/nightly/X/manifest.json").unwrap();
    store.create(&elsewhere, "{}".into(), "application/json").await.unwrap();
    let catalog = catalog::list(
        &store,
        Filter {
            database: Some("main"),
            job: None,
        },
    )
    .await
    .unwrap();
    assert_eq!(catalog.backups, []);
    assert_eq!(catalog.unreadable.len(), 1);
    bench.run().await.unwrap();
    let report = bench.run().await.unwrap();
    assert_eq!(report.body["prune"]["unreadable"], serde_json::json!([key]));
    assert!(store.keys().contains(&key));
}

fn walk(pieces: &[&[u8]]) -> Result<Walked, WalkError> {
    let mut walker = Walker::new();
    for piece in pieces {
        walker.feed(piece)?;
    }
    walker.finish()
}

#[tokio::test]
async fn a_real_archive_is_walked_alike_however_it_is_cut() {
    let database = Database::create().await;
    database
        .execute(
            "CREATE TABLE a (id int, note text); INSERT INTO a VALUES (1, E'x\\n\\\\.\\n\\t'), (2, NULL);
             CREATE TABLE nothing (); INSERT INTO nothing DEFAULT VALUES; INSERT INTO nothing DEFAULT VALUES;
             SELECT lo_from_bytea(1, 'abc'); SELECT lo_create(2)",
        )
        .await;
    let output = Command::new(Programs::find().unwrap().pg_dump)
        .args([
            "-Fc",
            "-Z0",
            "-U",
            "postgres",
            "-h",
            &database.target.host,
            &database.name,
        ])
        .output()
        .await
        .unwrap();
    let archive = output.stdout;
    let whole = walk(&[&archive]).unwrap();
    let contents = whole.contents.as_ref().unwrap();
    let rows: Vec<_> = contents
        .tables
        .iter()
        .map(|table| (table.name.as_str(), table.rows))
        .collect();
    assert_eq!(rows, [("a", 2), ("nothing", 2)]);
    assert_eq!((contents.large_objects.count, contents.large_objects.bytes), (2, 3));
    for size in 1..40 {
        let pieces: Vec<&[u8]> = archive.chunks(size).collect();
        assert_eq!(walk(&pieces).unwrap(), whole, "in pieces of {size}");
    }
    for length in 0..archive.len() {
        assert!(walk(&[&archive[..length]]).is_err(), "cut at {length}");
    }
}
