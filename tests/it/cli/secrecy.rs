//! Nothing personal and nothing secret leaves the database or the files it was written into.

use super::{NIGHTLY, PURGE, application, directory_store};
use crate::support::cluster;
use crate::support::process::{Host, until};

/// What must stand nowhere: the rows' values, and the password of the url.
const SECRETS: [&str; 2] = ["@example.org", "hunter2"];

#[track_caller]
fn assert_silent(place: &str, text: &str) {
    for secret in SECRETS {
        assert!(!text.contains(secret), "{place} holds {secret}:\n{text}");
    }
}

#[tokio::test]
async fn values_of_rows_and_passwords_stand_in_no_output_log_or_record() {
    let database = application().await;
    // A trigger that talks, and then breaks a unique constraint: PostgreSQL's messages quote the row.
    database
        .execute(
            "CREATE TABLE gone (email text UNIQUE);
             INSERT INTO gone SELECT email FROM events;
             CREATE FUNCTION keep_address() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
                RAISE WARNING 'deleting %', OLD.email;
                RAISE NOTICE 'really deleting %', OLD.email;
                INSERT INTO public.gone VALUES (OLD.email);
                RETURN OLD; END $$;
             CREATE TRIGGER keep_address BEFORE DELETE ON events FOR EACH ROW EXECUTE FUNCTION keep_address()",
        )
        .await;
    let url = cluster().await.url_as("postgres", &database.name) + "&password=hunter2";
    let host = Host::new("");
    // Each minute, so that the daemon meets it too.
    host.configure(&format!(
        "[databases.app]\nurl = \"{url}\"\n{}{}{NIGHTLY}",
        directory_store(&host),
        PURGE
            .replace("0 2 * * *", "* * * * *")
            .replace("schedule", "catch_up_window = \"2h\"\nschedule")
    ));
    let verbs: [&[&str]; 12] = [
        &["check", "--connect"],
        &["plan", "purge"],
        &["plan", "purge", "--json"],
        &["run", "purge"],
        &["run", "purge", "--json"],
        &["run", "nightly"],
        &["backup", "list", "--json"],
        &["history", "--json"],
        &["status"],
        &["doctor", "--json"],
        &["backup", "verify", "latest", "--level", "2"],
        &["audit", "verify", "--json"],
    ];
    for arguments in verbs {
        let mut command = host.command(arguments);
        // Also when the operator asks for everything.
        command.env("PGREEVE_LOG", "debug");
        let finished = crate::support::process::Finished::from(command.output().unwrap());
        assert_silent(&format!("{arguments:?}"), &finished.stdout);
        assert_silent(&format!("{arguments:?}"), &finished.stderr);
    }
    let failed = host.run(&["run", "purge", "--json"]).expect_code(1).json();
    assert_eq!(failed["run"]["outcome"], "failed");
    let reason = failed["run"]["reason"].as_str().unwrap();
    assert!(
        reason.contains("23505") && reason.contains("gone_email_key"),
        "the object is named: {reason}"
    );

    let daemon = host.daemon_with(|command| {
        command.env("PGREEVE_LOG", "debug");
    });
    until("the daemon has seen the job", async || {
        database
            .value::<bool>("SELECT EXISTS (SELECT 1 FROM pgreeve.schedule WHERE job = 'purge')")
            .await
    })
    .await;
    assert_eq!(daemon.stop(), 0);
    database
        .execute("UPDATE pgreeve.schedule SET evaluated_until = now() - interval '1 hour'")
        .await;
    let daemon = host.daemon_with(|command| {
        command.env("PGREEVE_LOG", "debug");
    });
    until("the daemon's own run has failed", async || {
        database
            .value::<bool>("SELECT EXISTS (SELECT 1 FROM pgreeve.run WHERE trigger <> 'manual' AND outcome = 'failed')")
            .await
    })
    .await;
    // The ledger is closed before the log tells of it; a daemon that has ended has told all.
    assert_eq!(daemon.stop(), 0);
    let log = std::fs::read_to_string(host.path("daemon.log")).unwrap();
    assert!(log.contains("23505"), "{log}");
    assert_silent("the daemon's log", &log);
    for record in host.audit_records() {
        assert_silent("the audit log", &record.to_string());
    }
    let tables: Vec<String> = sqlx::query_scalar(
        "SELECT format('%I.%I', schemaname, tablename) FROM pg_tables WHERE schemaname = 'pgreeve' ORDER BY 1",
    )
    .fetch_all(&mut database.connect().await)
    .await
    .unwrap();
    assert!(tables.len() > 3, "{tables:?}");
    for table in tables {
        let rows: Vec<String> = sqlx::query_scalar(sqlx::AssertSqlSafe(format!(
            "SELECT row_to_json(t)::text FROM {table} t"
        )))
        .fetch_all(&mut database.connect().await)
        .await
        .unwrap();
        assert_silent(&table, &rows.join("\n"));
    }
    assert_eq!(database.value::<i64>("SELECT count(*) FROM events").await, 100);
}
