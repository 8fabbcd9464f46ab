//! The program itself, killed while it deletes.

use std::process::Stdio;
use std::time::Duration;

use super::{count, ledger_rows, with_due_rows};
use crate::support::backups::until;
use crate::support::cluster;
use crate::support::process::Host;

#[tokio::test]
async fn killed_runs_leave_what_one_statement_leaves_and_exact_counts() {
    const ROWS: u32 = 6000;
    for index in [true, false] {
        let database = with_due_rows(ROWS, index).await;
        database
            .execute(
                "UPDATE events SET processed = NULL WHERE id % 7 = 0;
                 CREATE TABLE kept AS SELECT id FROM events
                     WHERE NOT (created_at < now() - interval '30 days' AND processed IS TRUE);
                 CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS
                     $$ BEGIN PERFORM pg_sleep(0.0003); RETURN OLD; END $$;
                 CREATE TRIGGER slow BEFORE DELETE ON events FOR EACH ROW EXECUTE FUNCTION slow()",
            )
            .await;
        let url = cluster().await.url_as("postgres", &database.name);
        let host = Host::new(&format!(
            "[databases.app]\nurl = \"{url}\"\n[jobs.purge]\nschedule = \"0 0 1 1 *\"\napproval = \"none\"\n\
             retention = {{ table = \"events\", age_column = \"created_at\", keep = \"30d\", where = \"processed\", max_fraction = 1.0 }}\n"
        ));
        pgreeve::ledger::migrate::apply(&database.target).await.unwrap();
        for kill in 1_u64..=2 {
            let mut command = host.command(&["run", "purge"]);
            let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
            let before = ledger_rows(&database).await;
            until("a batch is committed", async || ledger_rows(&database).await > before).await;
            // At some moment of a batch.
            tokio::time::sleep(Duration::from_millis(kill * 23)).await;
            child.kill().unwrap();
            child.wait().unwrap();
            let gone = async || u64::from(ROWS) + 10 - count(&database, "events").await;
            until("the server has noticed", async || {
                database
                    .value(
                        "SELECT NOT EXISTS (SELECT FROM pg_stat_activity
                         WHERE datname = current_database() AND application_name LIKE 'pgreeve:%')",
                    )
                    .await
            })
            .await;
            assert_eq!(ledger_rows(&database).await, gone().await);
            assert!(gone().await < u64::from(ROWS) * 6 / 7, "it was killed too late");
        }
        let run = host.run(&["run", "purge", "--json"]).expect_code(0).json();
        let same = "((SELECT id FROM events EXCEPT ALL SELECT id FROM kept)
                     UNION ALL (SELECT id FROM kept EXCEPT ALL SELECT id FROM events)) AS difference";
        assert_eq!(count(&database, same).await, 0, "{run}");
        assert_eq!(
            ledger_rows(&database).await,
            u64::from(ROWS) + 10 - count(&database, "kept").await
        );
    }
}
