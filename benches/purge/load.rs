//! An application at work: so many small transactions a second, each at its time.

use std::time::{Duration, Instant};

use pgreeve::postgres::connect::ConnectTarget;
use sqlx::{Connection, PgConnection};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

/// Transactions a second.
pub(crate) const RATE: u32 = 200;
/// Over so many connections.
const CONNECTIONS: u32 = 4;

/// A load that goes on until it is stopped.
pub(crate) struct Load {
    stop: CancellationToken,
    workers: Vec<JoinHandle<Vec<Sample>>>,
}

/// When a transaction was due, and how long after that it was done, in ms.
pub(crate) struct Sample {
    pub(crate) due: Instant,
    pub(crate) took: f64,
}

impl Load {
    /// Starts inserts of events, and updates and reads of events that are not due.
    pub(crate) async fn start(target: &ConnectTarget) -> Self {
        let mut connection = target.connect("load").await.unwrap();
        let events: Vec<Uuid> = sqlx::query_scalar(
            "SELECT id FROM events WHERE created_at >= '2026-01-01' AND created_at < timestamptz '2026-01-01' + interval '1 day' LIMIT 20000",
        )
        .fetch_all(&mut connection)
        .await
        .unwrap();
        connection.close().await.unwrap();
        let stop = CancellationToken::new();
        let began = Instant::now();
        let workers = (0..CONNECTIONS)
            .map(|worker| {
                let first = began + Duration::from_secs(1) * worker / RATE;
                let turns = (first, Duration::from_secs(1) * CONNECTIONS / RATE);
                tokio::spawn(work(
                    target.clone(),
                    events.clone(),
                    turns,
                    worker as usize,
                    stop.clone(),
                ))
            })
            .collect();
        Self { stop, workers }
    }

    /// Ends it; all that was measured.
    pub(crate) async fn end(self) -> Vec<Sample> {
        self.stop.cancel();
        let mut samples = Vec::new();
        for worker in self.workers {
            samples.extend(worker.await.unwrap());
        }
        samples
    }
}

/// A transaction that comes late because the one before was slow is late all the same.
async fn work(
    target: ConnectTarget,
    events: Vec<Uuid>,
    (first, every): (Instant, Duration),
    worker: usize,
    stop: CancellationToken,
) -> Vec<Sample> {
    let mut connection = target.connect("load").await.unwrap();
    let mut samples = Vec::new();
    let mut due = first;
    let mut turn = worker * 7919;
    while !stop.is_cancelled() {
        tokio::time::sleep_until(due.into()).await;
        turn += 1;
        transact(&mut connection, turn, events[turn * 31 % events.len()]).await;
        samples.push(Sample {
            due,
            took: due.elapsed().as_secs_f64() * 1000.0,
        });
        due += every;
    }
    connection.close().await.unwrap();
    samples
}

/// Half of them insert, a quarter each updates and reads.
async fn transact(connection: &mut PgConnection, turn: usize, event: Uuid) {
    let query = match turn % 4 {
        0 => sqlx::query("UPDATE events SET payload = payload || '{\"seen\": true}' WHERE id = $1").bind(event),
        1 => sqlx::query("SELECT * FROM events WHERE id = $1").bind(event),
        _ => sqlx::query(
            "INSERT INTO events (company_id, created_at, type, payload)
             VALUES (1, now(), 'load', jsonb_build_object('user_id', 1, 'note', $1::text))",
        )
        .bind("y".repeat(80)),
    };
    query.execute(connection).await.unwrap();
}
