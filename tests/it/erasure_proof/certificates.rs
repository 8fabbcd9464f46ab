//! Certificates: what they say, that they can be checked, that they name nobody.

use serde_json::Value;

use super::{JANE, JANE_ID, ask, assert_nothing_of_jane, files, host, request, run, shop};
use crate::support::process::Host;

fn certificate(host: &Host, request: &str, more: &[&str]) -> String {
    let arguments = [&["erasure", "certificate", request], more].concat();
    host.run(&arguments).expect_code(0).stdout
}

#[tokio::test]
async fn a_certificate_says_what_was_done_and_names_nobody() {
    let database = shop().await;
    let host = host(&database, "").await;
    run(&host, "nightly");
    ask(&database).await;
    let report = run(&host, "erase");
    assert_eq!(report["outcome"], "succeeded", "{report:#}");
    let request = request(&database).await;
    let signed = certificate(&host, &request, &["--format", "json"]);
    let document: Value = serde_json::from_str(&signed).unwrap();
    let erasure = &document["erasure"];
    assert_eq!(erasure["state"], "completed");
    let steps = erasure["steps"].as_array().unwrap();
    let rows = |table: &str| steps.iter().find(|step| step["table"] == table).unwrap()["rows"].as_u64();
    assert_eq!(rows("public.orders"), Some(5));
    assert_eq!(rows("public.users"), Some(1));
    assert_eq!(erasure["kept"].as_array().unwrap().len(), 2, "{erasure:#}");
    let residue = &erasure["residue"];
    assert_eq!(residue["identifiers"], 2);
    assert!(
        residue["places"]
            .as_array()
            .unwrap()
            .iter()
            .all(|place| place["kept"] == true),
        "{residue:#}"
    );
    // The backup of before still holds Jane; it is one of the newest two for as long as nobody makes
    // another, and one a day is foreseen.
    let backups = document["copies"]["backups"].as_array().unwrap();
    assert_eq!(backups.len(), 1);
    assert_eq!(document["copies"]["gone_by"], backups[0]["gone_by"]);
    let gone_by: jiff::Timestamp = backups[0]["gone_by"].as_str().unwrap().parse().unwrap();
    let days = gone_by.duration_since(jiff::Timestamp::now()).as_hours() / 24;
    assert!((6..=8).contains(&days), "{days} days");
    let (from, to) = (&document["audit_records"][0], &document["audit_records"][1]);
    assert!(from.as_u64() < to.as_u64(), "{document:#}");
    let started = host
        .audit_records()
        .into_iter()
        .find(|record| record["kind"] == "erasure.started")
        .unwrap();
    assert!(started["seq"].as_u64() > from.as_u64() && started["seq"].as_u64() <= to.as_u64());

    // Nothing that the run left on the host, or says, is about Jane; the backup is, of course.
    for (place, bytes) in files(&host.path("state")) {
        assert_nothing_of_jane(&place, &bytes);
    }
    for more in [&["--format", "html"][..], &["--format", "text"], &["--json"]] {
        let shown = certificate(&host, &request, more);
        assert_nothing_of_jane("the certificate", shown.as_bytes());
        assert!(shown.contains("Art. 17(3)(b)"), "{shown}");
    }
    for verb in [&["status"][..], &["history", "--json"], &["erasure", "list", "--json"]] {
        assert_nothing_of_jane("a verb", host.run(verb).stdout.as_bytes());
    }
    assert_nothing_of_jane("the report", report.to_string().as_bytes());
    let ledger: String = database
        .value("SELECT string_agg(to_jsonb(r)::text, '') || (SELECT coalesce(string_agg(to_jsonb(s)::text, ''), '') FROM pgreeve.erasure_scope s) FROM pgreeve.erasure_request r")
        .await;
    assert_nothing_of_jane("the request's row", ledger.as_bytes());
}

#[tokio::test]
async fn exports_from_before_with_rows_of_the_tables_in_reach_are_listed_with_the_day_they_go() {
    let database = shop().await;
    database
        .execute("CREATE TABLE prices (user_id uuid, price int); INSERT INTO prices SELECT id, 7 FROM users")
        .await;
    let export = |name: &str, table: &str, schedule: &str| {
        format!(
            "[jobs.{name}]\nschedule = \"{schedule}\"\nexport = {{ store = \"offsite\", tables = [\"{table}\"], \
             scope = {{ column = \"user_id\", values = [\"{JANE_ID}\"] }}, keep = {{ daily = 7, min = 2 }} }}\n"
        )
    };
    let exports = [
        export("copy-consents", "consents", "0 0 1 1 *"),
        export("copy-orders", "orders", "0 5 * * *"),
        export("copy-prices", "prices", "0 5 * * *"),
    ];
    let host = host(&database, &exports.concat()).await;
    for job in ["copy-consents", "copy-orders", "copy-prices"] {
        assert_eq!(run(&host, job)["outcome"], "succeeded");
    }
    ask(&database).await;
    run(&host, "erase");
    run(&host, "copy-orders");
    let request = request(&database).await;
    let document: Value = serde_json::from_str(&certificate(&host, &request, &["--format", "json"])).unwrap();
    let copies = &document["copies"];
    let exports = copies["exports"].as_array().unwrap();
    assert_eq!(exports.len(), 2, "{copies:#}");
    assert_eq!(
        (&exports[1]["job"], &exports[1]["tables"]),
        (&"copy-orders".into(), &serde_json::json!(["public.orders"]))
    );
    // Who exports daily removes the old one in a week; who does so once a year, nobody knows when.
    assert!(exports[1]["gone_by"].is_string(), "{copies:#}");
    assert!(
        exports[0]["gone_by"].is_null() && copies["gone_by"].is_null(),
        "{copies:#}"
    );
    let page = certificate(&host, &request, &["--format", "text"]);
    assert!(
        page.contains("of copy-orders in offsite, rows of public.orders as of"),
        "{page}"
    );

    // What cannot be read is not passed over.
    let manifest = files(&host.path("store"))
        .into_iter()
        .find(|(path, _)| path.contains("/copy-orders/") && path.ends_with("/export.json"));
    std::fs::write(manifest.unwrap().0, "{").unwrap();
    database
        .execute("INSERT INTO requests (id, who) SELECT 11, id FROM users LIMIT 1")
        .await;
    run(&host, "erase");
    let newest: String = database
        .value("SELECT request_id::text FROM pgreeve.erasure_request ORDER BY received_at DESC LIMIT 1")
        .await;
    let document: Value = serde_json::from_str(&certificate(&host, &newest, &["--format", "json"])).unwrap();
    let unknown = document["copies"]["unknown"].to_string();
    assert!(unknown.contains("exports of copy-orders in offsite"), "{unknown}");
}

#[tokio::test]
async fn archives_of_deleted_rows_are_listed_with_the_day_they_expire() {
    let database = shop().await;
    let archive = |keep: &str| {
        format!(
            "[jobs.purge-orders]\nschedule = \"0 2 * * *\"\nretention = {{ table = \"orders\", age_column = \"made_at\", keep = \"7y\", archive = {{ store = \"offsite\"{keep} }} }}\n"
        )
    };
    let host = host(&database, &archive(", keep = \"30d\"")).await;
    run(&host, "nightly");
    database
        .execute(
            "INSERT INTO pgreeve.archive (run_id, job, store, prefix, relation, table_oid, cutoff, format, compress, state, started_at)
             SELECT gen_random_uuid(), 'purge-orders', 'offsite', 'archives', 'public.' || t, t::regclass, now(), 'jsonl', 'gzip:4', s, at
             FROM (VALUES ('orders', 'closed', '2030-01-01T02:00:00Z'::timestamptz), ('orders', 'closed', '2030-02-01T02:00:00Z'),
                          ('orders', 'expired', '2031-01-01T02:00:00Z')) a (t, s, at)",
        )
        .await;
    ask(&database).await;
    run(&host, "erase");
    let request = request(&database).await;
    let document =
        |host: &Host| -> Value { serde_json::from_str(&certificate(host, &request, &["--format", "json"])).unwrap() };
    let copies = &document(&host)["copies"];
    let archives = copies["archives"].as_array().unwrap();
    assert_eq!(archives.len(), 1, "{copies:#}");
    assert_eq!(archives[0]["archives"], 2);
    assert_eq!(archives[0]["gone_by"], "2030-03-03T02:00:00Z");
    assert_eq!(copies["gone_by"], "2030-03-03T02:00:00Z");
    let page = certificate(&host, &request, &["--format", "text"]);
    assert!(page.contains("the last is gone by 2030-03-03T02:00:00Z"), "{page}");
}

#[tokio::test]
async fn a_certificate_is_checked_without_the_host_and_a_changed_byte_is_found() {
    let database = shop().await;
    let host = host(&database, "").await;
    ask(&database).await;
    run(&host, "erase");
    let request = request(&database).await;
    let signed = certificate(&host, &request, &["--format", "json"]);
    let outside = tempfile::tempdir().unwrap();
    let file = outside.path().join("certificate.json");
    let key = outside.path().join("public.key");
    std::fs::copy(host.path("state/audit/public.key"), &key).unwrap();
    let check = |text: &str| {
        std::fs::write(&file, text).unwrap();
        let mut command = host.command(&["erasure", "certificate", "--file"]);
        command
            .env("PGREEVE_CONFIG", "/nonexistent")
            .arg(&file)
            .arg("--public-key")
            .arg(&key);
        command.output().unwrap().status.code().unwrap()
    };
    assert_eq!(check(&signed), 0);
    assert_eq!(check(&signed.replacen("\"rows\": 5", "\"rows\": 6", 1)), 4);
    assert_eq!(check(&signed.replacen("completed", "complete ", 1)), 4);
    let mut bytes = signed.clone().into_bytes();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    assert_eq!(check(&String::from_utf8(bytes).unwrap()), 4);
    // The host itself finds a changed file, and has another copy in the database.
    let own = host.path(&format!("state/erasures/certificates/{request}.json"));
    std::fs::write(&own, signed.replacen("\"rows\": 5", "\"rows\": 6", 1)).unwrap();
    let changed = host.run(&["erasure", "certificate", &request]).expect_code(4);
    assert!(changed.stderr.contains("signature"), "{}", changed.stderr);
    std::fs::remove_file(&own).unwrap();
    assert_eq!(certificate(&host, &request, &["--format", "json"]), signed);
    let unknown = host.run(&["erasure", "certificate", "00000000-0000-0000-0000-000000000000"]);
    assert_eq!(unknown.code, 2, "{}", unknown.stderr);
}

#[tokio::test]
async fn what_a_trigger_has_copied_is_in_the_certificate_by_place_and_count() {
    let database = shop().await;
    database
        .execute(
            "CREATE SCHEMA audit; CREATE TABLE audit.log (old jsonb);
             CREATE FUNCTION copy() RETURNS trigger LANGUAGE plpgsql AS
                 $$ BEGIN INSERT INTO audit.log VALUES (to_jsonb(old)); RETURN old; END $$;
             CREATE TRIGGER copy BEFORE DELETE ON users FOR EACH ROW EXECUTE FUNCTION copy()",
        )
        .await;
    let host = host(&database, "").await;
    ask(&database).await;
    let report = run(&host, "erase");
    assert_eq!(report["outcome"], "partial", "{report:#}");
    let request = request(&database).await;
    let shown = certificate(&host, &request, &["--json"]);
    let document: Value = serde_json::from_str(&shown).unwrap();
    let erasure = &document["certificate"]["erasure"];
    assert_eq!(erasure["state"], "completed_with_exceptions");
    let places = erasure["residue"]["places"].as_array().unwrap();
    let found: Vec<&Value> = places.iter().filter(|place| place["kept"] == false).collect();
    assert_eq!(found.len(), 1, "{places:#?}");
    assert_eq!(
        (&found[0]["table"], &found[0]["count"]),
        (&"audit.log".into(), &1.into())
    );
    assert_nothing_of_jane("the certificate", shown.as_bytes());
}

#[tokio::test]
async fn a_second_scan_a_day_later_finds_what_came_after_the_first() {
    let database = shop().await;
    let host = host(&database, "").await;
    ask(&database).await;
    let report = run(&host, "erase");
    assert_eq!(report["report"]["afterwards"]["second_scans"]["done"], 0, "{report:#}");
    let request = request(&database).await;
    let half: Vec<u8> = database.value("SELECT rescan_share FROM pgreeve.erasure_request").await;
    let other_half = host.path(&format!("state/erasures/rescan/{request}"));
    assert_eq!(std::fs::read(&other_half).unwrap().len(), half.len());
    assert_nothing_of_jane("a half", &half);
    // A queue writes her again.
    database
        .execute(&format!(
            "INSERT INTO orders (user_id, note) SELECT id, 'by {JANE}' FROM users;
             UPDATE pgreeve.erasure_request SET rescan_due_at = now() - interval '1 second'"
        ))
        .await;
    let report = run(&host, "erase");
    assert_eq!(report["outcome"], "partial", "{report:#}");
    let scans = &report["report"]["afterwards"]["second_scans"];
    assert_eq!(
        (&scans["done"], &scans["not_clean"]),
        (&1.into(), &1.into()),
        "{report:#}"
    );
    let shown = certificate(&host, &request, &["--json"]);
    let document: Value = serde_json::from_str(&shown).unwrap();
    let addendum = &document["addenda"][0];
    assert_eq!(addendum["certificate"], document["sha256"]);
    let places = addendum["event"]["second_scan"]["residue"]["places"]
        .as_array()
        .unwrap();
    let found: Vec<&Value> = places.iter().filter(|place| place["kept"] == false).collect();
    assert_eq!(
        (&found[0]["table"], &found[0]["column"]),
        (&"public.orders".into(), &"note".into())
    );
    assert_nothing_of_jane("the addendum", shown.as_bytes());
    // Both halves are gone, and it is not done again.
    assert!(!other_half.exists());
    let left: i64 = database
        .value("SELECT count(*) FROM pgreeve.erasure_request WHERE rescan_share IS NOT NULL OR rescanned_at IS NULL")
        .await;
    assert_eq!(left, 0);
    let report = run(&host, "erase");
    assert_eq!(report["outcome"], "succeeded", "{report:#}");
}
