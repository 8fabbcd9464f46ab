//! A plan changes nothing, not even by accident, and what it says comes true.

use super::{count, with_due_rows};
use crate::support::process::Host;
use crate::support::{Database, cluster};

/// What the server was told by pgreeve's own sessions on a database, in order, since a mark.
async fn told(database: &Database, since: usize) -> Vec<String> {
    let log = std::fs::read_to_string(cluster().await.server_log()).unwrap();
    let prefix = format!("{} pgreeve:", database.name);
    let mut told: Vec<String> = Vec::new();
    let mut ours = false;
    for line in log[since..].lines() {
        if let Some((_, rest)) = line.split_once(&prefix).filter(|(before, _)| before.is_empty()) {
            let statement = rest
                .split_once(" LOG:  ")
                .and_then(|(_, message)| message.split_once(": "));
            ours = statement.is_some();
            told.extend(statement.map(|(_, statement)| statement.trim().to_owned()));
        } else if line.starts_with('\t') && ours {
            if let Some(last) = told.last_mut() {
                last.push(' ');
                last.push_str(line.trim());
            }
        } else {
            ours = false;
        }
    }
    told
}

async fn mark() -> usize {
    std::fs::read_to_string(cluster().await.server_log()).unwrap().len()
}

#[tokio::test]
async fn a_plan_sends_only_read_only_transactions_and_predicts_what_goes() {
    let database = with_due_rows(3000, true).await;
    database
        .execute(
            "UPDATE events SET processed = false WHERE id % 10 = 0;
             CREATE TABLE children (event_id bigint REFERENCES events ON DELETE CASCADE);
             INSERT INTO children SELECT id FROM events WHERE id % 100 = 1",
        )
        .await;
    let url = cluster().await.url_as("postgres", &database.name);
    let host = Host::new(&format!(
        "[databases.app]\nurl = \"{url}\"\n[jobs.purge]\nschedule = \"0 0 1 1 *\"\napproval = \"none\"\n\
         retention = {{ table = \"events\", age_column = \"created_at\", keep = \"30d\", where = \"processed\", max_fraction = 1.0 }}\n"
    ));
    // The ledger is there, as on a server that pgreeve works on.
    host.run(&["status"]).expect_code(0);
    pgreeve::ledger::migrate::apply(&database.target).await.unwrap();
    let since = mark().await;
    let plan = host.run(&["plan", "purge", "--json"]).expect_code(0).json();
    let told = told(&database, since).await;
    assert!(told.iter().any(|sql| sql.contains("count(*)")), "{told:#?}");
    let mut reading = false;
    for sql in &told {
        let word = sql.split_whitespace().next().unwrap().to_uppercase();
        match word.as_str() {
            "BEGIN" | "START" => {
                assert!(sql.ends_with("READ ONLY"), "{sql}");
                reading = true;
            }
            "COMMIT" => reading = false,
            "ROLLBACK" if !sql.to_uppercase().contains(" TO ") => reading = false,
            // Outside of such a transaction only the session's settings and the catalog.
            "SELECT" | "WITH" | "SHOW" | "SET" | "ROLLBACK" | "SAVEPOINT" | "RELEASE" => {
                assert!(reading || !sql.contains("events"), "{sql}");
                assert!(!sql.contains("FOR UPDATE") && !sql.contains("FOR SHARE"), "{sql}");
            }
            _ => assert!(reading && word == "EXPLAIN", "{sql}"),
        }
    }
    let predicted = plan["plan"]["intent"]["eligible"].as_u64().unwrap();
    assert_eq!(predicted, 2700);
    let keys = &plan["plan"]["intent"]["foreign_keys"][0];
    assert_eq!((&keys["rows"], &keys["indexed"]), (&30.into(), &false.into()), "{keys}");
    assert_eq!(count(&database, "events").await, 3010);
    let run = host.run(&["run", "purge", "--json"]).expect_code(0).json();
    assert_eq!(run["run"]["report"]["rows"], predicted);
    assert_eq!(count(&database, "events").await, 3010 - predicted);
}
