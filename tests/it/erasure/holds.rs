//! Legal holds against erasures.

use std::time::Duration;

use pgreeve::ledger::holds;
use sqlx::{Connection, Executor};

use super::{SHOP_RULE, count, erase, job, shop};
use crate::retention::contention::until_somebody_waits;
use crate::retention::holds::place;
use crate::support::Database;
use crate::support::context::{Setup, context, run};

pub(super) async fn release(database: &Database, hold: uuid::Uuid) {
    let mut connection = database.connect().await;
    let mut transaction = connection.begin().await.unwrap();
    assert!(holds::release(&mut transaction, hold, "over", "a test").await.unwrap());
    transaction.commit().await.unwrap();
}

async fn state(database: &Database) -> String {
    database.value("SELECT state FROM pgreeve.erasure_request").await
}

#[tokio::test]
async fn a_hold_keeps_what_it_covers_and_what_that_refers_to_and_the_rest_goes() {
    let database = shop().await;
    let hold = place(&database, "sales.lines", "order_id = 1 AND shop = 1").await;
    let report = erase(&database, SHOP_RULE).await.0.unwrap();
    assert_eq!(
        (&report.body["on_hold"], &report.body["completed"]),
        (&1.into(), &0.into())
    );
    assert_eq!(state(&database).await, "on_hold");
    assert_eq!(count(&database, "sales.lines WHERE (shop, order_id) = (1, 1)").await, 4);
    assert_eq!(
        count(
            &database,
            "sales.orders o JOIN users u ON u.id = o.user_id WHERE u.id = 1"
        )
        .await,
        1,
        "only the order that is referred to"
    );
    assert_eq!(count(&database, "events").await, 10, "what no hold covers is gone");
    assert_eq!(
        database.value::<String>("SELECT status FROM requests").await,
        "pending",
        "it is not done"
    );
    // Nothing changes while the hold stands.
    let report = erase(&database, SHOP_RULE).await.0.unwrap();
    assert_eq!((&report.body["rows"], &report.body["open"]), (&0.into(), &1.into()));
    release(&database, hold).await;
    let (report, witness) = erase(&database, SHOP_RULE).await;
    assert_eq!(report.unwrap().body["completed"], 1);
    assert_eq!(
        count(&database, "users WHERE id = 1").await + count(&database, "sales.orders WHERE user_id = 1").await,
        0
    );
    assert_eq!(database.value::<String>("SELECT status FROM requests").await, "done");
    let asked = witness.asked();
    let rows = |table: &str| {
        asked.certified[0]
            .steps
            .iter()
            .filter(|step| step.table == table)
            .map(|step| (step.rows, step.held))
            .collect::<Vec<_>>()
    };
    assert_eq!(rows("sales.lines"), [(16, 0)]);
    assert_eq!(rows("sales.orders"), [(4, 0)]);
}

#[tokio::test]
async fn a_hold_placed_in_the_middle_of_an_erasure_keeps_what_is_still_there() {
    let (database, hold) = held_in_the_middle("sales.orders", "user_id = 1").await;
    assert_eq!(
        count(&database, "sales.lines WHERE order_id IN (1, 2)").await,
        0,
        "no hold covers them"
    );
    assert_eq!(count(&database, "sales.orders WHERE user_id = 1").await, 4);
    assert_eq!(count(&database, "users WHERE id = 1").await, 1);
    release(&database, hold).await;
    assert_eq!(erase(&database, SHOP_RULE).await.0.unwrap().body["completed"], 1);
    assert_eq!(count(&database, "users WHERE id = 1").await, 0);
}

#[tokio::test]
async fn rows_that_a_transaction_under_way_has_deleted_come_back_for_a_hold_that_waits_for_it() {
    let (database, hold) = held_in_the_middle("sales.lines", "order_id = 1").await;
    assert_eq!(count(&database, "sales.lines WHERE order_id = 1").await, 8);
    assert_eq!(count(&database, "sales.lines WHERE order_id = 2").await, 0);
    release(&database, hold).await;
    let (report, witness) = erase(&database, SHOP_RULE).await;
    assert_eq!(report.unwrap().body["completed"], 1);
    let asked = witness.asked();
    let lines = asked.certified[0].steps.iter().find(|step| step.table == "sales.lines");
    assert_eq!(lines.unwrap().rows, 16, "each was counted once");
}

/// Places a hold while an erasure has just deleted Jane's lines, and lets both go on.
async fn held_in_the_middle(table: &str, predicate: &str) -> (Database, uuid::Uuid) {
    let database = shop().await;
    database
        .execute(
            "CREATE FUNCTION wait() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_advisory_xact_lock_shared(4711); RETURN NULL; END $$;
             CREATE TRIGGER wait AFTER DELETE ON sales.lines FOR EACH STATEMENT EXECUTE FUNCTION wait()",
        )
        .await;
    let mut holder = database.connect().await;
    holder.execute("SELECT pg_advisory_lock(4711)").await.unwrap();
    let (job, _) = job(SHOP_RULE);
    let setup = Setup {
        lock_timeout: Duration::from_secs(30),
        ..Setup::default()
    };
    let mut context = context(&database, &job, &setup).await;
    let (report, hold) = tokio::join!(run(&job, &mut context), async {
        until_somebody_waits(&database).await;
        let placing = place(&database, table, predicate);
        let release = async {
            crate::support::process::until("the hold waits for the step", async || {
                count(&database, "pg_locks l JOIN pg_database d ON d.oid = l.database WHERE d.datname = current_database() AND l.locktype = 'advisory' AND NOT l.granted").await == 2
            })
            .await;
            holder.execute("SELECT pg_advisory_unlock(4711)").await.unwrap();
        };
        tokio::join!(placing, release).0
    });
    assert_eq!(report.unwrap().body["on_hold"], 1);
    (database, hold)
}

#[tokio::test]
async fn a_hold_on_another_person_does_not_matter() {
    let database = shop().await;
    place(&database, "sales.orders", "user_id = 2").await;
    place(&database, "users", "id = 3").await;
    assert_eq!(erase(&database, SHOP_RULE).await.0.unwrap().body["completed"], 1);
}

#[tokio::test]
async fn a_masked_row_under_a_hold_is_masked_after_its_release_and_the_others_once() {
    let database = shop().await;
    let hold = place(&database, "clicks", "session_token = 'session-3'").await;
    let report = erase(&database, SHOP_RULE).await.0.unwrap();
    assert_eq!(report.body["on_hold"], 1);
    assert_eq!(count(&database, "clicks WHERE session_token = 'session-3'").await, 3);
    let masked: String = database
        .value("SELECT min(session_token) FROM clicks WHERE session_token !~ '-'")
        .await;
    release(&database, hold).await;
    let (report, witness) = erase(&database, SHOP_RULE).await;
    assert_eq!(report.unwrap().body["completed"], 1);
    assert_eq!(count(&database, "clicks WHERE session_token ~ '-'").await, 12);
    assert_eq!(
        count(&database, &format!("clicks WHERE session_token = '{masked}'")).await,
        3,
        "it was not masked twice"
    );
    let asked = witness.asked();
    assert_eq!(
        asked.certified[0]
            .steps
            .iter()
            .find(|step| step.table == "public.clicks")
            .unwrap()
            .rows,
        6
    );
}
