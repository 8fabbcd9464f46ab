//! What tests share: one server for all of them, a database for each.

pub mod backups;
pub mod bench;
pub mod context;
pub mod fault_proxy;
pub mod http;
pub mod memory_store;
pub mod pg_proxy;
pub mod process;

use std::sync::LazyLock;
use std::sync::atomic::{AtomicU32, Ordering};

use pgreeve::postgres::cluster::Cluster;
use pgreeve::postgres::connect::ConnectTarget;
use sqlx::{AssertSqlSafe, Connection, PgConnection};

/// The server that all tests of this process share. It ends with the process.
static CLUSTER: LazyLock<Cluster> =
    LazyLock::new(|| Cluster::start("log_statement = all\nlog_line_prefix = '%d %a '").unwrap());

/// A database of a test's own, with nothing in it.
pub struct Database {
    /// Its name on the server.
    pub name: String,
    /// How to connect to it as the superuser.
    pub target: ConnectTarget,
}

impl Database {
    /// Makes an empty database.
    pub async fn create() -> Self {
        static COUNTER: AtomicU32 = AtomicU32::new(1);
        let name = format!("t{}", COUNTER.fetch_add(1, Ordering::Relaxed));
        let mut connection = cluster().await.target("postgres").connect("test").await.unwrap();
        // TEMPLATE template0: template1 is busy while another test copies it.
        sqlx::raw_sql(AssertSqlSafe(format!("CREATE DATABASE {name} TEMPLATE template0")))
            .execute(&mut connection)
            .await
            .unwrap();
        connection.close().await.unwrap();
        Self {
            target: cluster().await.target(&name),
            name,
        }
    }

    /// A connection as the superuser.
    pub async fn connect(&self) -> PgConnection {
        self.target.connect("test").await.unwrap()
    }

    /// Runs statements as the superuser.
    pub async fn execute(&self, sql: &str) {
        sqlx::raw_sql(AssertSqlSafe(sql.to_owned()))
            .execute(&mut self.connect().await)
            .await
            .unwrap();
    }

    /// One value as the superuser.
    pub async fn value<T>(&self, sql: &str) -> T
    where
        T: Send + Unpin + for<'r> sqlx::Decode<'r, sqlx::Postgres> + sqlx::Type<sqlx::Postgres>,
    {
        sqlx::query_scalar(AssertSqlSafe(sql.to_owned()))
            .fetch_one(&mut self.connect().await)
            .await
            .unwrap()
    }
}

/// The shared server, started by whoever asks first.
pub async fn cluster() -> &'static Cluster {
    tokio::task::spawn_blocking(|| &*CLUSTER).await.unwrap()
}

#[tokio::test]
async fn a_test_gets_a_database_of_its_own() {
    let database = Database::create().await;
    assert_eq!(
        database.value::<String>("SELECT current_database()::text").await,
        database.name
    );
}
