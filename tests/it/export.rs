//! Exports: whose rows are written, what makes an export exist, and what is refused.

use std::io::Read;
use std::sync::Arc;

use futures::FutureExt;
use pgreeve::backup::compress::Packing;
use pgreeve::backup::digest::sha256_hex;
use pgreeve::backup::parts::PartSizes;
use pgreeve::batch::ArchiveFormat;
use pgreeve::export::{Manifest, Scope};
use pgreeve::job::{Disposition, Exclusion, Job, JobError, JobReport};
use pgreeve::jobs::backup::Keep;
use pgreeve::jobs::export::{ExportJob, ExportSettings};
use pgreeve::store::{ObjectKey, Store};
use pgreeve::values::Timezone;
use serde_json::{Value, json};

use crate::support::backups::{Bench, until};
use crate::support::memory_store::MemoryStore;

/// Two brands; a message is of a brand through its conversation, a reaction through its message.
const BRANDS: &str = "
    CREATE TABLE conversations (id int PRIMARY KEY, brand_id text, \"Title, odd\" text, extra json);
    CREATE TABLE messages (id int PRIMARY KEY, conversation_id int, body text);
    CREATE TABLE reactions (message int, brand text, amount numeric);
    CREATE TABLE notes (id int, brand_id text);
    INSERT INTO conversations VALUES (1, 'md', E'a\\nb', E'{\"a\":\\n1}'), (2, 'other', 'x', NULL), (3, 'md', 'c\"d', NULL), (4, NULL, 'nobody', NULL);
    INSERT INTO messages VALUES (10, 1, 'one'), (11, 2, 'two'), (12, 3, E'back\\\\slash'), (13, 4, 'four'), (14, NULL, 'five');
    INSERT INTO reactions VALUES (10, 'z', 1.10), (11, 'z', 2), (12, 'z', 3);";

struct Exporting {
    bench: Bench,
    store: MemoryStore,
    job: ExportJob,
}

impl Exporting {
    async fn new(sql: &str) -> Self {
        Self::on(MemoryStore::default(), sql).await
    }

    async fn on(store: MemoryStore, sql: &str) -> Self {
        let bench = Bench::new(Arc::new(store.clone())).await;
        bench.database.execute(sql).await;
        let opened: Arc<dyn Store> = Arc::new(store.clone());
        let edges = [
            "messages.conversation_id = conversations.id",
            "reactions.message = messages.id",
        ];
        let job = ExportJob {
            settings: ExportSettings {
                store: "offsite".parse().unwrap(),
                format: ArchiveFormat::Jsonl,
                tables: ["conversations", "messages", "reactions", "notes"]
                    .map(|name| name.parse().unwrap())
                    .into(),
                scope: Scope {
                    column: "brand_id".to_owned(),
                    values: vec!["md".to_owned()],
                    edges: edges.map(|edge| edge.parse().unwrap()).into(),
                },
                compress: Packing::Gzip(4),
                keep: None,
            },
            open_store: Arc::new(move || {
                let store = Arc::clone(&opened);
                async move { Ok(store) }.boxed()
            }),
            instance: "test".to_owned(),
            timezone: Timezone::utc(),
            sizes: PartSizes {
                part_bytes: 16 * 1024,
                max_parts: 3,
            },
        };
        Self { bench, store, job }
    }

    async fn run(&self) -> Result<JobReport, JobError> {
        let mut context = self.bench.context(&self.bench.database.target).await;
        let plan = self.job.plan(&mut context).await?;
        plan.execute(&mut context).await
    }

    async fn refused(&self) -> String {
        let mut context = self.bench.context(&self.bench.database.target).await;
        let Err(error) = self.job.plan(&mut context).await else {
            panic!("it was not refused");
        };
        assert_eq!(error.disposition, Disposition::Refused, "{error}");
        assert!(error.remedy.is_some() && error.setting.is_some(), "{error:?}");
        error.cause
    }

    fn manifest(&self) -> Manifest {
        let keys = self.store.keys();
        let [key] = keys
            .iter()
            .filter(|key| key.ends_with("/export.json"))
            .collect::<Vec<_>>()[..]
        else {
            panic!("{keys:?}");
        };
        serde_json::from_slice(&self.store.body(key)).unwrap()
    }

    /// The text of a table, its digests compared.
    fn text(&self, manifest: &Manifest, name: &str) -> String {
        let table = manifest.tables.iter().find(|table| table.name == name).unwrap();
        let mut packed = Vec::new();
        for object in &table.objects {
            let body = self.store.body(&object.key);
            assert_eq!(
                (body.len() as u64, sha256_hex(&body)),
                (object.bytes, object.sha256.clone())
            );
            packed.extend_from_slice(&body);
        }
        let mut text = String::new();
        flate2::read::MultiGzDecoder::new(&packed[..])
            .read_to_string(&mut text)
            .unwrap();
        assert_eq!(
            (text.len() as u64, sha256_hex(text.as_bytes())),
            (table.bytes_raw, table.sha256_raw.clone())
        );
        text
    }
}

#[tokio::test]
async fn the_rows_of_one_tenant_are_exported_also_through_other_tables() {
    let exporting = Exporting::new(BRANDS).await;
    let report = exporting.run().await.unwrap();
    let manifest = exporting.manifest();
    let lines = |name| {
        let text = exporting.text(&manifest, name);
        text.lines()
            .map(|line| serde_json::from_str::<Value>(line).unwrap())
            .collect::<Vec<_>>()
    };
    assert_eq!(
        lines("conversations"),
        [
            json!({ "id": 1, "brand_id": "md", "Title, odd": "a\nb", "extra": { "a": 1 } }),
            json!({ "id": 3, "brand_id": "md", "Title, odd": "c\"d", "extra": null }),
        ]
    );
    assert_eq!(
        lines("messages").iter().map(|row| &row["id"]).collect::<Vec<_>>(),
        [&json!(10), &json!(12)]
    );
    assert_eq!(lines("messages")[1]["body"], "back\\slash");
    assert_eq!(lines("reactions").len(), 2);
    assert_eq!(lines("notes"), [] as [Value; 0]);
    assert_eq!(
        manifest.tables.iter().map(|table| table.rows).collect::<Vec<_>>(),
        [2, 2, 2, 0]
    );
    assert_eq!(report.body["rows"], 6);
    assert_eq!(exporting.bench.records.kinds(), ["export.started", "export.committed"]);
    let last = exporting
        .store
        .requests()
        .into_iter()
        .rfind(|request| request.starts_with("create"))
        .unwrap();
    assert!(last.ends_with("/export.json"), "{last}");
}

/// What partition drops and refreshes that keep readers out wait for: their tests hold it as a backup does.
#[tokio::test]
async fn an_export_and_a_backup_share_no_time_with_what_their_snapshots_would_hold_up() {
    let exporting = Exporting::new(BRANDS).await;
    for job in [&exporting.job as &dyn Job, &exporting.bench.job] {
        assert_eq!(job.exclusions(), [Exclusion::Snapshot]);
    }
}

#[tokio::test]
async fn csv_comes_back_with_copy() {
    let mut exporting = Exporting::new(BRANDS).await;
    exporting.job.settings.format = ArchiveFormat::Csv;
    exporting.job.settings.scope.values = vec!["md".to_owned(), "other".to_owned()];
    exporting.run().await.unwrap();
    let text = exporting.text(&exporting.manifest(), "conversations");
    assert!(
        text.starts_with("\"id\",\"brand_id\",\"Title, odd\",\"extra\"\n"),
        "{text}"
    );
    let database = &exporting.bench.database;
    database.execute("CREATE TABLE again (LIKE conversations)").await;
    let mut connection = database.connect().await;
    let mut copy = connection
        .copy_in_raw("COPY again FROM STDIN (FORMAT csv, HEADER)")
        .await
        .unwrap();
    copy.send(text.as_bytes()).await.unwrap();
    assert_eq!(copy.finish().await.unwrap(), 3);
    let differs = "SELECT count(*) FROM again a FULL JOIN conversations c
         ON a.id = c.id AND a.\"Title, odd\" = c.\"Title, odd\" WHERE a.id IS NULL OR c.id IS NULL";
    // Only the conversation of nobody is not there.
    assert_eq!(database.value::<i64>(differs).await, 1);
}

#[tokio::test]
async fn a_large_table_goes_in_parts_and_on_in_further_objects() {
    let sql = "INSERT INTO notes SELECT n, 'md' FROM generate_series(1, 40000) n";
    let mut exporting = Exporting::new(&format!("{BRANDS}{sql}")).await;
    exporting.job.settings.compress = Packing::None;
    exporting.run().await.unwrap();
    let manifest = exporting.manifest();
    let notes = manifest.tables.last().unwrap();
    assert!(notes.objects.len() > 10, "{}", notes.objects.len());
    let text: Vec<u8> = notes
        .objects
        .iter()
        .flat_map(|object| exporting.store.body(&object.key))
        .collect();
    assert_eq!((notes.rows, sha256_hex(&text)), (40_000, notes.sha256_raw.clone()));
    assert_eq!(exporting.store.open_uploads(), 0);
}

#[tokio::test]
async fn what_is_not_tied_to_the_scope_is_refused_by_name() {
    let mut exporting = Exporting::new(BRANDS).await;
    let edges = exporting.job.settings.scope.edges.clone();
    exporting.job.settings.scope.edges.truncate(1);
    assert_eq!(
        exporting.refused().await,
        "public.reactions has no column brand_id, and no edge leads from it"
    );
    exporting.job.settings.scope.edges = vec![edges[0].clone(), "reactions.message = messages.nr".parse().unwrap()];
    assert_eq!(
        exporting.refused().await,
        "public.messages has no column nr, which an edge names"
    );
    exporting.job.settings.scope.edges = ["messages.id = reactions.message", "reactions.message = messages.id"]
        .map(|edge| edge.parse().unwrap())
        .into();
    assert_eq!(
        exporting.refused().await,
        "the edges from public.messages lead in a circle"
    );
    exporting.job.settings.scope.edges = edges;
    exporting.job.settings.tables.push("public.notes".parse().unwrap());
    assert_eq!(exporting.refused().await, "public.notes is named twice");
    exporting.job.settings.tables.push("nowhere".parse().unwrap());
    exporting.job.settings.tables.remove(4);
    assert_eq!(exporting.refused().await, "there is no table of this name");
    exporting.job.settings.tables.pop();
    exporting
        .bench
        .database
        .execute("ALTER TABLE notes ALTER brand_id TYPE uuid USING NULL")
        .await;
    exporting.job.settings.tables = vec!["notes".parse().unwrap()];
    let cause = exporting.refused().await;
    assert_eq!(cause, "a value of `scope.values` is none of the type of brand_id");
    assert_eq!(exporting.store.keys(), [] as [&str; 0]);
}

/// Rows that gzip cannot make small, for a table that goes in parts.
const NOISE: &str = "INSERT INTO notes SELECT n, 'md' FROM generate_series(1, 40000) n;
    ALTER TABLE notes ADD noise text; UPDATE notes SET noise = md5(id::text);";

#[tokio::test]
async fn an_export_that_fails_anywhere_leaves_no_object_and_no_upload() {
    for (operation, key) in [
        ("create", "conversations"),
        ("start_upload", "notes"),
        ("put_part", "notes"),
        ("complete", "notes"),
        ("head", "reactions"),
        ("create", "export.json"),
    ] {
        let exporting = Exporting::new(&format!("{BRANDS}{NOISE}")).await;
        exporting.store.fail(operation, key);
        let error = exporting.run().await.unwrap_err();
        assert_eq!(error.disposition, Disposition::Transient, "{operation} {key}: {error}");
        assert_eq!((exporting.store.keys(), exporting.store.open_uploads()), (vec![], 0));
        assert_eq!(exporting.bench.records.kinds(), ["export.started", "export.failed"]);
    }
}

#[tokio::test]
async fn all_tables_are_as_they_were_at_one_instant() {
    let store = MemoryStore::with_held_parts();
    let mut exporting = Exporting::on(store.clone(), &format!("{BRANDS}{NOISE}")).await;
    exporting.job.settings.tables = ["notes", "conversations", "messages"]
        .map(|name| name.parse().unwrap())
        .into();
    let meanwhile = async {
        until("the first table is on its way", async || store.open_uploads() > 0).await;
        let late = "INSERT INTO conversations VALUES (5, 'md'); DELETE FROM messages WHERE id = 10;
            INSERT INTO messages VALUES (15, 5, 'late'), (16, 5, 'later')";
        exporting.bench.database.execute(late).await;
        store.let_parts_pass();
    };
    let (report, ()) = tokio::join!(exporting.run(), meanwhile);
    report.unwrap();
    let rows: Vec<_> = exporting.manifest().tables.iter().map(|table| table.rows).collect();
    assert_eq!(rows, [40_000, 2, 2]);
}

#[tokio::test]
async fn a_stop_ends_an_export_and_lets_go_of_its_snapshot() {
    let store = MemoryStore::with_held_parts();
    let exporting = Exporting::on(store.clone(), &format!("{BRANDS}{NOISE}")).await;
    let stop = async {
        until("parts are on their way", async || store.open_uploads() > 0).await;
        exporting.bench.stop.cancel();
    };
    let (result, ()) = tokio::join!(exporting.run(), stop);
    assert_eq!(result.unwrap_err().disposition, Disposition::Cancelled);
    assert_eq!((store.keys(), store.open_uploads()), (vec![], 0));
    until("no session holds rows back", async || {
        let holders = "SELECT count(*) FROM pg_stat_activity
             WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_xmin IS NOT NULL";
        exporting.bench.database.value::<i64>(holders).await == 0
    })
    .await;
}

#[tokio::test]
async fn an_upload_that_is_begun_while_an_export_is_stopped_is_not_left_open() {
    let store = MemoryStore::with_held_starts();
    let exporting = Exporting::on(store.clone(), &format!("{BRANDS}{NOISE}")).await;
    let stop = async {
        until("an upload is asked for", async || {
            let asked = |request: &String| request.starts_with("start_upload");
            store.requests().iter().any(asked)
        })
        .await;
        exporting.bench.stop.cancel();
    };
    let (result, ()) = tokio::join!(exporting.run(), stop);
    assert_eq!(result.unwrap_err().disposition, Disposition::Cancelled);
    store.let_starts_pass();
    until("it is aborted", async || {
        let aborted = |request: &String| request.starts_with("abort");
        store.requests().iter().any(aborted) && store.open_uploads() == 0
    })
    .await;
    assert_eq!(store.keys(), [] as [&str; 0]);
}

#[tokio::test]
async fn a_role_from_which_row_security_would_hide_rows_is_refused() {
    let exporting = Exporting::new(BRANDS).await;
    let database = &exporting.bench.database;
    let role = format!("exporter_{}", database.name);
    database
        .execute(&format!(
            "CREATE ROLE {role} LOGIN; GRANT SELECT ON ALL TABLES IN SCHEMA public TO {role};
             GRANT USAGE ON SCHEMA pgreeve TO {role}; GRANT SELECT, UPDATE ON ALL TABLES IN SCHEMA pgreeve TO {role};
             ALTER TABLE messages ENABLE ROW LEVEL SECURITY; CREATE POLICY nobody ON messages USING (false)"
        ))
        .await;
    let mut target = database.target.clone();
    target.user.clone_from(&role);
    let mut context = exporting.bench.context(&target).await;
    let Err(error) = exporting.job.plan(&mut context).await else {
        panic!("it was not refused");
    };
    assert_eq!(error.disposition, Disposition::Refused, "{error}");
    assert!(error.cause.contains("public.messages may not be read"), "{error}");
    assert!(error.remedy.unwrap().contains("BYPASSRLS"));
    database.execute(&format!("ALTER ROLE {role} BYPASSRLS")).await;
    let mut context = exporting.bench.context(&target).await;
    let plan = exporting.job.plan(&mut context).await.unwrap();
    assert_eq!(plan.execute(&mut context).await.unwrap().body["rows"], 6);
}

#[tokio::test]
async fn old_exports_and_what_a_crash_left_go_and_nothing_else() {
    let mut exporting = Exporting::new(BRANDS).await;
    let put = async |key: &str| {
        let key = ObjectKey::new(key).unwrap();
        exporting.store.create(&key, "x".into(), "text/plain").await.unwrap();
    };
    let crashed = "main/nightly/00000000010000000000000000/0001-notes.jsonl.gz";
    let others = [
        "main/nightly/mine/notes.txt",
        "main/nightly_2/00000000010000000000000000/0001-notes.jsonl.gz",
    ];
    put(crashed).await;
    for key in others {
        put(key).await;
    }
    for _ in 0..3 {
        exporting.run().await.unwrap();
    }
    exporting.job.settings.keep = Some(Keep {
        last: 3,
        daily: 0,
        weekly: 0,
        monthly: 0,
        yearly: 0,
        within: None,
        min: 2,
        max_age: None,
    });
    let report = exporting.run().await.unwrap();
    assert_eq!(
        report.body["prune"]["removed"].as_array().unwrap().len(),
        1,
        "{}",
        report.body
    );
    let keys = exporting.store.keys();
    assert_eq!(keys.iter().filter(|key| key.ends_with("/export.json")).count(), 3);
    // Of what was removed the manifest went first.
    let gone = report.body["prune"]["removed"][0].as_str().unwrap();
    let requests = exporting.store.requests();
    let first = requests
        .iter()
        .find(|request| request.starts_with("delete") && request.contains(gone));
    assert!(first.unwrap().ends_with("/export.json"), "{first:?}");
    assert!(!keys.iter().any(|key| key == crashed));
    assert!(
        others.iter().all(|other| keys.iter().any(|key| key == other)),
        "{keys:?}"
    );
}
