//! The verbs of backups and of the audit log.

use pgreeve::demo::s3_server::S3Server;
use pgreeve::ledger::locks;
use serde_json::Value;

use super::{NIGHTLY, application, as_role, assert_says, directory_store, role, s3_store, superuser};
use crate::support::process::{Host, until};
use crate::support::{Database, cluster};

/// A host with one backup of a database in its own directory.
async fn backed_up(database: &Database) -> Host {
    let host = Host::new("");
    host.configure(&format!(
        "{}{}{NIGHTLY}",
        superuser(database).await,
        directory_store(&host)
    ));
    host.run(&["run", "nightly"]).expect_code(0);
    host
}

async fn databases(database: &Database) -> i64 {
    // Other tests make theirs at the same time; these names are this test's own.
    let like = format!("{}\\_%", database.name);
    database
        .value(&format!("SELECT count(*) FROM pg_database WHERE datname LIKE '{like}'"))
        .await
}

fn records(host: &Host, kind: &str) -> Vec<Value> {
    host.audit_records()
        .into_iter()
        .filter(|record| record["kind"] == kind)
        .collect()
}

#[tokio::test]
async fn a_restore_of_what_is_not_there_or_onto_what_is_there_is_refused() {
    let database = application().await;
    let host = backed_up(&database).await;
    let into = format!("{}_copy", database.name);
    let unknown = host
        .run(&["backup", "restore", "01ARZ3NDEKTSV4RRFFQ69G5FAV", "--into", &into])
        .expect_code(2);
    assert_says(
        &unknown,
        &["there is no backup `01ARZ3NDEKTSV4RRFFQ69G5FAV`", "pgreeve backup list"],
    );
    let unknown = host
        .run(&["backup", "restore", "latest", "--job", "weekly", "--into", &into])
        .expect_code(2);
    assert_says(
        &unknown,
        &["there is no backup job `weekly`", "the backup jobs are nightly"],
    );
    let exists = host
        .run(&["backup", "restore", "latest", "--into", &database.name])
        .expect_code(3);
    assert_says(&exists, &["exists already", "name a database that does not exist"]);
    assert_eq!(database.value::<i64>("SELECT count(*) FROM events").await, 100);
    assert_eq!(databases(&database).await, 0);
    let nameless = host.run(&["backup", "restore", "latest"]).expect_code(2);
    assert_says(&nameless, &["--into <NEWDB>"]);
}

/// PostgreSQL's programs, with a `pg_restore` that reads all it gets and then goes on as long as its parent.
fn programs_that_hang(host: &Host) -> std::path::PathBuf {
    let directory = host.path("programs");
    std::fs::create_dir(&directory).unwrap();
    let real = pgreeve::postgres::programs::find("pg_restore").unwrap();
    for entry in std::fs::read_dir(real.parent().unwrap()).unwrap() {
        let entry = entry.unwrap();
        if entry.file_name() != "pg_restore" {
            std::os::unix::fs::symlink(entry.path(), directory.join(entry.file_name())).unwrap();
        }
    }
    let script = format!(
        "#!/bin/sh\n[ \"$1\" = --version ] && exec {} --version\nparent=$PPID\ncat > /dev/null\nwhile kill -0 $parent 2>/dev/null; do sleep 0.1; done\n",
        real.display()
    );
    let file = directory.join("pg_restore");
    std::fs::write(&file, script).unwrap();
    std::fs::set_permissions(&file, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    directory
}

#[tokio::test]
async fn a_restore_that_was_killed_is_begun_anew_and_takes_no_other_databases_place() {
    let database = application().await;
    let host = backed_up(&database).await;
    let into = format!("{}_copy", database.name);
    let restore = ["backup", "restore", "latest", "--into", &into];
    let mut killed = host
        .command(&restore)
        .env("PGREEVE_PG_BINDIR", programs_that_hang(&host))
        .spawn()
        .unwrap();
    until("the restore is under way", async || {
        database
            .value::<bool>(&format!(
                "SELECT EXISTS (SELECT FROM pg_database WHERE datname = '{into}' AND shobj_description(oid, 'pg_database') LIKE 'pgreeve restores%'
                                AND datacl IS NOT NULL)"
            ))
            .await
    })
    .await;
    // Beside it none into the same name begins.
    let beside = host.run(&restore).expect_code(3);
    assert_says(&beside, &["another restore into", "is at work"]);
    killed.kill().unwrap();
    killed.wait().unwrap();
    assert_eq!(databases(&database).await, 1);
    let (class, key) = (locks::RESTORE_CLASS.cast_unsigned(), locks::key(&into).cast_unsigned());
    let held = format!(
        "SELECT EXISTS (SELECT FROM pg_locks WHERE locktype = 'advisory' AND classid = '{class}' AND objid = '{key}')"
    );
    until("the server has noticed", async || !database.value::<bool>(&held).await).await;
    let restored = host.run(&restore).expect_code(0);
    assert_says(&restored, &["did not end; it is dropped"]);
    let comment: Option<String> = database
        .value(&format!(
            "SELECT shobj_description(oid, 'pg_database') FROM pg_database WHERE datname = '{into}'"
        ))
        .await;
    assert_eq!(comment, None);
    // What is whole is never replaced, nor what looks like a rest and is open to everybody.
    host.run(&restore).expect_code(3);
    database
        .execute(&format!(
            "COMMENT ON DATABASE {into} IS 'pgreeve restores a backup into it, and has not ended'"
        ))
        .await;
    let refused = host.run(&restore).expect_code(3);
    assert_says(&refused, &["exists already"]);
}

#[tokio::test]
async fn a_restore_by_a_role_without_createdb_is_refused_and_leaves_nothing() {
    let database = application().await;
    let role = role(&database).await;
    let host = backed_up(&database).await;
    host.configure(&format!(
        "{}{}{NIGHTLY}",
        as_role(&database, &role).await,
        directory_store(&host)
    ));
    let into = format!("{}_copy", database.name);
    let refused = host
        .run(&["backup", "restore", "latest", "--into", &into])
        .expect_code(3);
    assert_says(&refused, &["may not create databases", "CREATEDB", "--url"]);
    assert_eq!(databases(&database).await, 0);
    // As another role, which may.
    let url = cluster().await.url_as("postgres", "postgres");
    let restored = host
        .run(&["backup", "restore", "latest", "--into", &into, "--url", &url, "--json"])
        .expect_code(0)
        .json();
    assert_eq!(
        restored["restore"]["verified"]["mismatches"].as_array().map(Vec::len),
        Some(0)
    );
    assert_eq!(databases(&database).await, 1);
    let wrong = host
        .run(&[
            "backup",
            "restore",
            "latest",
            "--into",
            "x",
            "--url",
            "mysql://u:hunter2@h/d",
        ])
        .expect_code(2);
    assert_says(&wrong, &["--url", "postgresql://"]);
    assert!(!wrong.stderr.contains("hunter2"));
}

#[tokio::test]
async fn a_backup_is_verified_at_three_levels_and_the_proof_is_kept() {
    let database = application().await;
    database
        .execute("CREATE ROLE owner_of_policies; ALTER TABLE events ENABLE ROW LEVEL SECURITY; CREATE POLICY own ON events TO owner_of_policies USING (true); ALTER TABLE events OWNER TO owner_of_policies")
        .await;
    let host = backed_up(&database).await;
    for level in ["0", "1", "2"] {
        let verified = host
            .run(&["backup", "verify", "latest", "--level", level, "--json"])
            .expect_code(0)
            .json();
        assert_eq!(verified["version"], 1);
        assert_eq!(verified["verify"]["ok"], true, "{verified:#}");
        assert_eq!(verified["verify"]["level"].to_string(), level);
        let listed = host.run(&["backup", "list", "--json"]).expect_code(0).json();
        assert_eq!(
            listed["backups"][0]["verified_at"].is_string(),
            level == "2",
            "{listed:#}"
        );
    }
    let verified = host.run(&["backup", "verify", "latest", "--level", "2"]).expect_code(0);
    assert_says(&verified, &["at level 2", "tables", "rows"]);
    let records = records(&host, "backup.verified");
    assert_eq!(records.len(), 4);
    assert_eq!(records[2]["body"]["level"], 2);
    assert!(records[2]["body"]["rows"].as_u64().unwrap() >= 100, "{records:#?}");
    host.run(&["audit", "verify"]).expect_code(0);
    assert_says(
        &host.run(&["backup", "verify", "nope"]).expect_code(2),
        &["there is no backup `nope`"],
    );
}

#[tokio::test]
async fn a_backup_with_a_wrong_byte_is_found_and_not_proved() {
    let database = application().await;
    let host = backed_up(&database).await;
    let listed = host.run(&["backup", "list", "--json"]).expect_code(0).json();
    let id = listed["backups"][0]["id"].as_str().unwrap();
    let data = host.path(&format!("store/app/nightly/{id}/data.dump.gz"));
    let mut bytes = std::fs::read(&data).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&data, &bytes).unwrap();
    host.run(&["backup", "verify", id, "--level", "0"]).expect_code(0);
    for level in ["1", "2"] {
        let damaged = host
            .run(&["backup", "verify", id, "--level", level, "--json"])
            .expect_code(3)
            .json();
        assert_eq!(damaged["verify"]["ok"], false);
        assert!(damaged["verify"]["problem"].is_string(), "{damaged:#}");
    }
    bytes.truncate(middle);
    std::fs::write(&data, &bytes).unwrap();
    let short = host.run(&["backup", "verify", id, "--level", "0"]).expect_code(3);
    assert_says(
        &short,
        &["DAMAGED", "data.dump.gz", &format!("{middle} bytes instead of")],
    );
    std::fs::remove_file(&data).unwrap();
    assert_says(
        &host.run(&["backup", "verify", id, "--level", "0"]).expect_code(3),
        &["is missing"],
    );
    assert_eq!(records(&host, "backup.verified").len(), 5);
    let listed = host.run(&["backup", "list", "--json"]).expect_code(0).json();
    assert!(listed["backups"][0]["verified_at"].is_null(), "{listed:#}");
}

#[tokio::test]
async fn pruning_shows_its_plan_wants_a_drastic_one_confirmed_and_records_it() {
    let database = application().await;
    let host = backed_up(&database).await;
    for _ in 0..4 {
        host.run(&["run", "nightly"]).expect_code(0);
    }
    let keeps_none = host.run(&["backup", "prune"]).expect_code(0);
    assert_says(&keeps_none, &["nightly has no `keep`"]);
    let keep = NIGHTLY.replace("\"offsite\" }", "\"offsite\", keep = { last = 1, min = 2 } }");
    host.configure(&format!(
        "{}{}{keep}",
        superuser(&database).await,
        directory_store(&host)
    ));
    let count = || {
        host.run(&["backup", "list", "--json"]).expect_code(0).json()["backups"]
            .as_array()
            .unwrap()
            .len()
    };

    let plan = host
        .run(&["backup", "prune", "--dry-run", "--json"])
        .expect_code(0)
        .json();
    let job = &plan["prune"][0];
    assert_eq!(job["needs_confirm"], true, "{plan:#}");
    assert_eq!(
        job["backups"]
            .as_array()
            .unwrap()
            .iter()
            .filter(|backup| backup["keep"] == true)
            .count(),
        2
    );
    assert_eq!(count(), 5);
    let hash = job["hash"].as_str().unwrap().to_owned();
    let refused = host.run(&["backup", "prune"]).expect_code(3);
    assert_says(&refused, &["3 of 5 backups", &hash, "--confirm"]);
    assert_says(
        &host.run(&["backup", "prune", "--confirm", "0123456789ab"]),
        &["would remove"],
    );
    assert_eq!(count(), 5);
    assert!(records(&host, "backup.pruned").is_empty());
    let unknown = host
        .run(&["backup", "prune", "--dry-run", "--confirm", "0123456789ab"])
        .expect_code(2);
    assert_says(&unknown, &["no plan has the hash"]);

    let pruned = host
        .run(&["backup", "prune", "--confirm", &hash, "--json"])
        .expect_code(0)
        .json();
    assert_eq!(pruned["prune"][0]["removed"].as_array().unwrap().len(), 3, "{pruned:#}");
    assert_eq!(count(), 2);
    let phases: Vec<Value> = records(&host, "backup.pruned")
        .iter()
        .map(|record| record["body"]["phase"].clone())
        .collect();
    assert_eq!(phases, ["intent", "done"]);
    // Nothing is left to do, and the old hash counts for nothing.
    host.run(&["backup", "prune"]).expect_code(0);
    host.run(&["backup", "prune", "--confirm", &hash]).expect_code(2);
    assert_eq!(count(), 2);
}

#[tokio::test]
async fn pruning_keeps_away_while_the_job_runs() {
    let database = application().await;
    let host = backed_up(&database).await;
    let keep = NIGHTLY.replace("\"offsite\" }", "\"offsite\", keep = { last = 1, min = 2 } }");
    host.configure(&format!(
        "{}{}{keep}",
        superuser(&database).await,
        directory_store(&host)
    ));
    let mut holder = database.connect().await;
    sqlx::query("SELECT pg_advisory_lock($1, $2)")
        .bind(pgreeve::ledger::locks::JOB_CLASS)
        .bind(pgreeve::ledger::locks::key("nightly"))
        .execute(&mut holder)
        .await
        .unwrap();
    assert_says(
        &host.run(&["backup", "prune"]).expect_code(75),
        &["the job nightly is running"],
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backup_in_a_bucket_is_verified_and_pruned_there() {
    let database = application().await;
    let directory = tempfile::tempdir().unwrap();
    let server = S3Server::start(directory.path()).await.unwrap();
    let store = s3_store(&server, server.bucket(), server.credentials_file());
    let keep = NIGHTLY.replace("\"offsite\" }", "\"offsite\", keep = { last = 1, min = 2 } }");
    let host = Host::new(&format!("{}{store}{keep}", superuser(&database).await));
    host.run(&["run", "nightly"]).expect_code(0);
    host.run(&["backup", "verify", "latest", "--level", "2"]).expect_code(0);
    let listed = host.run(&["backup", "list", "--json"]).expect_code(0).json();
    assert!(listed["backups"][0]["verified_at"].is_string(), "{listed:#}");
    let planned = host.run(&["backup", "prune", "--dry-run"]).expect_code(0);
    assert_says(&planned, &["newest_verified"]);
}

#[tokio::test]
async fn a_changed_audit_log_ends_with_4_and_names_the_record() {
    let database = application().await;
    let host = backed_up(&database).await;
    let sound = host.run(&["audit", "verify"]).expect_code(0);
    assert_says(&sound, &["is sound"]);
    let segment = host.audit().join("audit-000000000001.jsonl");
    let text = std::fs::read_to_string(&segment).unwrap();
    let forged = text.replacen("\"trigger\":\"manual\"", "\"trigger\":\"forged\"", 1);
    assert_ne!(forged, text);
    std::fs::write(&segment, forged).unwrap();
    let tampered = host.run(&["audit", "verify"]).expect_code(4);
    assert_says(
        &tampered,
        &["TAMPERED", "first bad record", "audit-000000000001.jsonl:"],
    );
    let document = host.run(&["audit", "verify", "--json"]).expect_code(4).json();
    assert_eq!(document["ok"], false);
    assert!(document["first_bad"]["seq"].as_u64().unwrap() > 1, "{document:#}");
    let missing = host.run(&["audit", "verify", "--dir", "/nonexistent"]).expect_code(1);
    assert_says(&missing, &["/nonexistent", "no such directory", "--dir"]);
    let key = host.path("config.toml").display().to_string();
    assert_says(
        &host.run(&["audit", "verify", "--public-key", &key]).expect_code(1),
        &["public key", "public.key"],
    );
}
