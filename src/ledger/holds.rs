//! `pgreeve.hold`: rows that nothing may delete or change, whatever a policy says.
//!
//! Every transaction that deletes or changes rows takes [`share`] and then reads the holds;
//! [`place`] waits for those transactions. So once a hold is placed, no row that it covers goes.

use std::time::Duration;

use jiff::Timestamp;
use jiff_sqlx::Timestamp as SqlTimestamp;
use serde::Serialize;
use sqlx::postgres::PgRow;
use sqlx::postgres::types::Oid;
use sqlx::{PgConnection, Row};
use uuid::Uuid;

use super::locks::HOLD_CLASS;
use crate::postgres::catalog::Relation;
use crate::postgres::quote::identifier;
use crate::postgres::sqlstate::DatabaseError;

/// How long a new hold waits for the batches under way; longer than any of them may take.
const PLACE_LIMIT: Duration = Duration::from_mins(1);

/// A hold as it is kept and shown.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Hold {
    /// Its identity.
    pub hold_id: Uuid,
    /// `schema.table` when it was placed.
    pub table: String,
    /// Which rows.
    #[serde(rename = "where")]
    pub predicate: String,
    /// Why.
    pub reason: String,
    /// Since when.
    pub placed_at: Timestamp,
    /// By whom.
    pub placed_by: String,
    /// Until when; null while it stands.
    pub released_at: Option<Timestamp>,
    /// Who released it.
    pub released_by: Option<String>,
    /// Why.
    pub release_reason: Option<String>,
}

/// A hold that stands and covers rows of a table's family.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Standing {
    /// Its identity.
    pub hold_id: Uuid,
    /// What the table it was placed on is called now; its condition may say so.
    pub name: String,
    /// Which rows.
    pub predicate: String,
    /// The leaves it covers, where it was placed on a part of the table; all of them if empty.
    pub only: Vec<Oid>,
}

impl Standing {
    /// The condition, never null, that a row meets which the hold does not cover. `alias` is what the
    /// statement calls the row's table, quoted.
    #[must_use]
    pub fn spares(&self, alias: &str) -> String {
        let predicate = format!("(\n{}\n)", self.predicate);
        let name = identifier(&self.name);
        let free = if name == alias {
            format!("{predicate} IS NOT TRUE")
        } else {
            // Its condition may name the table it was placed on.
            format!("NOT EXISTS (SELECT 1 FROM (SELECT {alias}.*) AS {name} WHERE {predicate})")
        };
        if self.only.is_empty() {
            return free;
        }
        let leaves: Vec<String> = self.only.iter().map(|oid| oid.0.to_string()).collect();
        format!("({alias}.tableoid NOT IN ({}) OR {free})", leaves.join(", "))
    }
}

/// The holds as of one moment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Holds {
    /// All that stand in the database, by identity: a cheap way to see a change.
    pub all: Vec<Uuid>,
    /// Those that cover rows of the table, its ancestors or its parts.
    pub standing: Vec<Standing>,
}

/// A hold to place.
#[derive(Debug, Clone)]
pub struct NewHold<'a> {
    /// Its identity.
    pub hold_id: Uuid,
    /// The table.
    pub relation: &'a Relation,
    /// Which rows, checked.
    pub predicate: &'a str,
    /// Why.
    pub reason: &'a str,
    /// Who.
    pub actor: &'a str,
}

/// Keeps new holds out until the transaction ends: to be taken before [`read`], in a statement of
/// its own.
pub async fn share(transaction: &mut PgConnection) -> Result<(), DatabaseError> {
    sqlx::query("SELECT pg_catalog.pg_advisory_xact_lock_shared($1, 1)")
        .bind(HOLD_CLASS)
        .execute(transaction)
        .await?;
    Ok(())
}

/// The same for a transaction whose statements all see one snapshot, to be taken before that: who
/// waits for [`share`] has its snapshot already.
pub async fn freeze(transaction: &mut PgConnection) -> Result<(), DatabaseError> {
    sqlx::query("LOCK TABLE pgreeve.hold IN SHARE MODE")
        .execute(transaction)
        .await?;
    Ok(())
}

/// Whether any hold stands in the database.
pub async fn any_stands(transaction: &mut PgConnection) -> Result<bool, DatabaseError> {
    Ok(
        sqlx::query_scalar("SELECT EXISTS (SELECT FROM pgreeve.hold WHERE released_at IS NULL)")
            .fetch_one(transaction)
            .await?,
    )
}

/// Whether somebody waits to place a hold until a transaction that has taken [`share`] ends.
pub async fn is_awaited(transaction: &mut PgConnection) -> Result<bool, DatabaseError> {
    // A lock by two numbers has `objsubid` 2.
    Ok(sqlx::query_scalar(
        "SELECT EXISTS (SELECT FROM pg_catalog.pg_locks l JOIN pg_catalog.pg_database d ON d.oid = l.database
                        WHERE d.datname = pg_catalog.current_database() AND l.locktype = 'advisory' AND l.classid = $1::int4::oid
                          AND l.objid = 1 AND l.objsubid = 2 AND l.mode = 'ExclusiveLock' AND NOT l.granted)",
    )
    .bind(HOLD_CLASS)
    .fetch_one(transaction)
    .await?)
}

/// Whether the holds in the database are still these.
pub async fn unchanged(transaction: &mut PgConnection, known: &Holds) -> Result<bool, DatabaseError> {
    Ok(ids(transaction).await? == known.all)
}

/// The identities of the holds that stand, in order.
const STANDING: &str = "SELECT hold_id FROM pgreeve.hold WHERE released_at IS NULL ORDER BY hold_id";

async fn ids(connection: &mut PgConnection) -> Result<Vec<Uuid>, DatabaseError> {
    Ok(sqlx::query_scalar(STANDING).fetch_all(connection).await?)
}

/// The holds that stand, and those among them that cover rows of a table: placed on it, on what it
/// is a part of, or on a part of it. A table that was made anew under the name of a held one is
/// held too.
pub async fn read(connection: &mut PgConnection, table: Oid) -> Result<Holds, DatabaseError> {
    if !exists(connection).await? {
        return Ok(Holds::default());
    }
    let all = ids(&mut *connection).await?;
    if all.is_empty() {
        return Ok(Holds::default());
    }
    let rows: Vec<(Uuid, String, String, Vec<Oid>)> = sqlx::query_as(
        "WITH RECURSIVE above AS (
             SELECT $1::oid AS oid
             UNION SELECT i.inhparent FROM above a JOIN pg_catalog.pg_inherits i ON i.inhrelid = a.oid),
         below AS (
             SELECT $1::oid AS oid, ARRAY[]::oid[] AS way
             UNION ALL SELECT i.inhrelid, b.way || i.inhrelid FROM below b JOIN pg_catalog.pg_inherits i ON i.inhparent = b.oid),
         family AS (SELECT oid, false AS part FROM above UNION SELECT oid, true FROM below WHERE oid <> $1)
         SELECT h.hold_id, c.relname::text, h.predicate,
                CASE WHEN f.part THEN ARRAY(SELECT DISTINCT b.oid FROM below b WHERE f.oid = ANY(b.way) ORDER BY 1)
                     ELSE ARRAY[]::oid[] END
         FROM family f JOIN pg_catalog.pg_class c USING (oid) JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
         JOIN pgreeve.hold h ON h.released_at IS NULL AND (h.table_oid = c.oid OR h.table_name = n.nspname || '.' || c.relname)
         ORDER BY h.hold_id, c.relname",
    )
    .bind(table)
    .fetch_all(connection)
    .await?;
    let standing = rows
        .into_iter()
        .map(|(hold_id, name, predicate, only)| Standing {
            hold_id,
            name,
            predicate,
            only,
        })
        .collect();
    Ok(Holds { all, standing })
}

/// Whether the database has a place for holds yet.
pub async fn exists(connection: &mut PgConnection) -> Result<bool, DatabaseError> {
    Ok(
        sqlx::query_scalar("SELECT pg_catalog.to_regclass('pgreeve.hold') IS NOT NULL")
            .fetch_one(connection)
            .await?,
    )
}

/// Places a hold, within a transaction: once it is committed no batch deletes a row that it covers.
///
/// # Errors
/// SQLSTATE `55P03` when a batch under way does not end in time.
pub async fn place(transaction: &mut PgConnection, hold: &NewHold<'_>) -> Result<(), DatabaseError> {
    sqlx::query(
        "SELECT pg_catalog.set_config('lock_timeout', $1, true), pg_catalog.set_config('statement_timeout', '0', true)",
    )
    .bind(format!("{}ms", PLACE_LIMIT.as_millis()))
    .execute(&mut *transaction)
    .await?;
    sqlx::query("SELECT pg_catalog.pg_advisory_xact_lock($1, 1)")
        .bind(HOLD_CLASS)
        .execute(&mut *transaction)
        .await?;
    sqlx::query(
        "INSERT INTO pgreeve.hold (hold_id, table_oid, table_name, predicate, reason, placed_by)
         VALUES ($1, $2, $3, $4, $5, $6)",
    )
    .bind(hold.hold_id)
    .bind(hold.relation.oid)
    .bind(hold.relation.plain())
    .bind(hold.predicate)
    .bind(hold.reason)
    .bind(hold.actor)
    .execute(transaction)
    .await?;
    Ok(())
}

/// Releases a hold, within a transaction. `false` when it does not stand.
pub async fn release(
    transaction: &mut PgConnection,
    hold: Uuid,
    reason: &str,
    actor: &str,
) -> Result<bool, DatabaseError> {
    let done = sqlx::query(
        "UPDATE pgreeve.hold SET released_at = pg_catalog.clock_timestamp(), released_by = $3, release_reason = $2
         WHERE hold_id = $1 AND released_at IS NULL",
    )
    .bind(hold)
    .bind(reason)
    .bind(actor)
    .execute(transaction)
    .await?;
    Ok(done.rows_affected() == 1)
}

/// Every hold, those that stand first.
pub async fn list(connection: &mut PgConnection) -> Result<Vec<Hold>, DatabaseError> {
    let rows = sqlx::query(
        "SELECT hold_id, table_name, predicate, reason, placed_at, placed_by, released_at, released_by, release_reason
         FROM pgreeve.hold ORDER BY released_at IS NOT NULL, placed_at, hold_id",
    )
    .fetch_all(connection)
    .await?;
    Ok(rows.iter().map(from_row).collect::<Result<_, _>>()?)
}

fn from_row(row: &PgRow) -> Result<Hold, sqlx::Error> {
    Ok(Hold {
        hold_id: row.try_get("hold_id")?,
        table: row.try_get("table_name")?,
        predicate: row.try_get("predicate")?,
        reason: row.try_get("reason")?,
        placed_at: row.try_get::<SqlTimestamp, _>("placed_at")?.to_jiff(),
        placed_by: row.try_get("placed_by")?,
        released_at: row
            .try_get::<Option<SqlTimestamp>, _>("released_at")?
            .map(SqlTimestamp::to_jiff),
        released_by: row.try_get("released_by")?,
        release_reason: row.try_get("release_reason")?,
    })
}
