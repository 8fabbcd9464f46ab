//! `pg_cron` with as many jobs on a server of its own.

use std::time::Duration;

use pgreeve::postgres::programs;
use sqlx::{AssertSqlSafe, Connection, Executor};

use crate::server::Server;
use crate::{IDLE, line};

/// Its launcher looks once a minute which jobs are due; two minutes are watched.
const WATCHED_MINUTES: usize = 2;

/// What its jobs took.
pub(crate) struct Theirs {
    /// What the whole server takes while nothing is due, as a part of a core.
    pub(crate) idle: f64,
    pub(crate) due: usize,
    /// How many seconds after its minute each run that ended well began.
    pub(crate) delays: Vec<f64>,
}

/// `None` where the extension is not installed.
pub(crate) async fn measure(jobs: usize) -> Option<Theirs> {
    let installed = programs::find("postgres").ok().and_then(|postgres| {
        let library = postgres.parent()?.parent()?.join("lib/pg_cron.so");
        library.is_file().then_some(())
    });
    if installed.is_none() {
        line("pg_cron is not installed (postgresql-15-cron); left out");
        return None;
    }
    let server = Server::with_tables(
        "shared_preload_libraries = 'pg_cron'\ncron.database_name = 'app'\ncron.use_background_workers = on\ncron.log_statement = off\nmax_worker_processes = 40",
        jobs,
    )
    .await;
    let mut connection = server.connect().await;
    connection.execute("CREATE EXTENSION pg_cron").await.unwrap();
    let schedule = |minutes: &str| {
        format!(
            "TRUNCATE cron.job;
             INSERT INTO cron.job (schedule, command, database, nodeport)
                 SELECT {minutes}, format('DELETE FROM t%s WHERE created_at < now() - interval ''90 days''', n), 'app', 5432
                 FROM generate_series(0, {jobs} - 1) n;
             SELECT cron.schedule('reload', '0 0 1 1 *', 'SELECT 1')"
        )
    };
    connection
        .execute(AssertSqlSafe(schedule("'0 0 1 1 *'")))
        .await
        .unwrap();
    tokio::time::sleep(Duration::from_secs(3)).await;
    let before = server.processor();
    tokio::time::sleep(IDLE).await;
    let idle = (server.processor() - before) / IDLE.as_secs_f64();

    // At the start of a minute, so that whole minutes are seen.
    let to_minute = "SELECT pg_sleep(61 - extract(second FROM clock_timestamp()))";
    connection.execute(to_minute).await.unwrap();
    connection
        .execute(AssertSqlSafe(schedule("(n % 60) || ' * * * *'")))
        .await
        .unwrap();
    for _ in 0..WATCHED_MINUTES {
        connection.execute(to_minute).await.unwrap();
    }
    connection.execute("SELECT pg_sleep(30)").await.unwrap();
    let delays: Vec<f64> = sqlx::query_scalar(
        "SELECT extract(epoch FROM start_time - date_trunc('minute', start_time))::float8 FROM cron.job_run_details
         WHERE status = 'succeeded'",
    )
    .fetch_all(&mut connection)
    .await
    .unwrap();
    let due: i64 = sqlx::query_scalar(AssertSqlSafe(format!(
        "SELECT count(*) FROM generate_series(0, {jobs} - 1) n
         WHERE n % 60 IN (SELECT extract(minute FROM start_time)::int FROM cron.job_run_details)"
    )))
    .fetch_one(&mut connection)
    .await
    .unwrap();
    connection.close().await.unwrap();
    Some(Theirs {
        idle,
        due: usize::try_from(due).unwrap(),
        delays,
    })
}
