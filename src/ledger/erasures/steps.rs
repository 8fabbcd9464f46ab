//! `pgreeve.erasure_step`: what was done of each request.

use std::collections::BTreeMap;

use sqlx::PgConnection;
use uuid::Uuid;

use crate::erasure::RequestId;
use crate::postgres::quote::literal;
use crate::postgres::sqlstate::DatabaseError;
use crate::values::RunId;

/// One step as it is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StepRow {
    /// Its place in the order.
    pub step: i32,
    /// `schema.table`.
    pub relation: String,
    /// `delete`, `mask`, `unlink` or `keep`.
    pub action: String,
    /// `open`, `done` or `held`.
    pub state: String,
    /// How many rows it deleted, changed or counted.
    pub rows: u64,
    /// How many rows holds keep from it.
    pub held: u64,
    /// How many objects of its rows are gone.
    pub objects: u64,
    /// Of how many of them an older version stays.
    pub object_versions: u64,
}

/// A request, and the columns of a [`StepRow`], in their order.
type StepColumns = (Uuid, i32, String, String, String, i64, i64, i64, i64);

/// The steps of a request that were begun, in order.
pub async fn steps(connection: &mut PgConnection, id: RequestId) -> Result<Vec<StepRow>, DatabaseError> {
    let mut all = steps_of(connection, &[id.0]).await?;
    Ok(all.remove(&id.0).unwrap_or_default())
}

/// The steps of requests that were begun, in order.
pub async fn steps_of(
    connection: &mut PgConnection,
    ids: &[Uuid],
) -> Result<BTreeMap<Uuid, Vec<StepRow>>, DatabaseError> {
    let rows: Vec<StepColumns> = sqlx::query_as(
        "SELECT request_id, step, relation, action, state, rows, held, objects, object_versions FROM pgreeve.erasure_step
         WHERE request_id = ANY ($1) ORDER BY request_id, step",
    )
    .bind(ids)
    .fetch_all(connection)
    .await?;
    let mut found: BTreeMap<Uuid, Vec<StepRow>> = BTreeMap::new();
    for (id, step, relation, action, state, rows, held, objects, versions) in rows {
        found.entry(id).or_default().push(StepRow {
            step,
            relation,
            action,
            state,
            rows: rows.unsigned_abs(),
            held: held.unsigned_abs(),
            objects: objects.unsigned_abs(),
            object_versions: versions.unsigned_abs(),
        });
    }
    Ok(found)
}

/// Adds what steps did to their rows, in the steps' own transaction. A step that counts (`keep`)
/// replaces its number. `holds` keep rows from those that are held.
pub async fn record_steps(
    transaction: &mut PgConnection,
    id: RequestId,
    run: RunId,
    rows: &[StepRow],
    holds: &[Uuid],
) -> Result<(), DatabaseError> {
    let texts = |of: fn(&StepRow) -> &str| rows.iter().map(of).collect::<Vec<_>>();
    let numbers = |of: fn(&StepRow) -> u64| {
        let numbers = rows.iter().map(|row| i64::try_from(of(row)).unwrap_or(i64::MAX));
        numbers.collect::<Vec<_>>()
    };
    sqlx::query(
        "INSERT INTO pgreeve.erasure_step (request_id, step, relation, action, state, rows, held, objects, object_versions, holds, run_id)
         SELECT $1, new.*, CASE WHEN new.state = 'held' THEN $8::uuid[] ELSE '{}' END, $9
         FROM ROWS FROM (pg_catalog.unnest($2::int[]), pg_catalog.unnest($3::text[]), pg_catalog.unnest($4::text[]),
                         pg_catalog.unnest($5::text[]), pg_catalog.unnest($6::int8[]), pg_catalog.unnest($7::int8[]),
                         pg_catalog.unnest($10::int8[]), pg_catalog.unnest($11::int8[]))
             AS new (step, relation, action, state, rows, held, objects, object_versions)
         ON CONFLICT (request_id, step) DO UPDATE
         SET state = excluded.state, held = excluded.held, holds = excluded.holds, run_id = excluded.run_id,
             rows = excluded.rows + CASE WHEN excluded.action = 'keep' THEN 0 ELSE pgreeve.erasure_step.rows END,
             objects = pgreeve.erasure_step.objects + excluded.objects,
             object_versions = pgreeve.erasure_step.object_versions + excluded.object_versions,
             committed_at = pg_catalog.clock_timestamp()",
    )
    .bind(id.0)
    .bind(rows.iter().map(|row| row.step).collect::<Vec<_>>())
    .bind(texts(|row| &row.relation))
    .bind(texts(|row| &row.action))
    .bind(texts(|row| &row.state))
    .bind(numbers(|row| row.rows))
    .bind(numbers(|row| row.held))
    .bind(holds)
    .bind(run.0)
    .bind(numbers(|row| row.objects))
    .bind(numbers(|row| row.object_versions))
    .execute(transaction)
    .await?;
    Ok(())
}

/// The statement of a script that writes the rows of all steps of the request that an expression names:
/// the number, table and action of each, and an array of how many rows each was about.
#[must_use]
pub fn steps_done_in(request: &str, run: RunId, steps: &[(i32, String, &str)], rows: &str) -> String {
    let new: Vec<String> = (steps.iter().enumerate())
        .map(|(at, (step, relation, action))| {
            let (relation, action) = (literal(relation), literal(action));
            format!(
                "({request}, {step}, {relation}, {action}, 'done', ({rows})[{}], '{run}')",
                at + 1
            )
        })
        .collect();
    format!(
        "INSERT INTO pgreeve.erasure_step (request_id, step, relation, action, state, rows, run_id) VALUES {}",
        new.join(", ")
    )
}

/// How many rows the steps of requests have deleted or changed, of those of which a step is done.
pub async fn changed(connection: &mut PgConnection, ids: &[Uuid]) -> Result<BTreeMap<Uuid, u64>, DatabaseError> {
    let rows: Vec<(Uuid, i64)> = sqlx::query_as(
        "SELECT request_id, coalesce(sum(rows) FILTER (WHERE action <> 'keep'), 0)::int8
         FROM pgreeve.erasure_step WHERE request_id = ANY ($1) GROUP BY request_id",
    )
    .bind(ids)
    .fetch_all(connection)
    .await?;
    Ok(rows.into_iter().map(|(id, rows)| (id, rows.unsigned_abs())).collect())
}

/// The holds that keep rows of requests, each once, of those of which some are kept.
pub async fn holds_on(connection: &mut PgConnection, ids: &[Uuid]) -> Result<BTreeMap<Uuid, Vec<Uuid>>, DatabaseError> {
    let rows: Vec<(Uuid, Uuid)> = sqlx::query_as(
        "SELECT DISTINCT s.request_id, h.id FROM pgreeve.erasure_step s, pg_catalog.unnest(s.holds) AS h (id)
         WHERE s.request_id = ANY ($1) AND s.state = 'held' ORDER BY 1, 2",
    )
    .bind(ids)
    .fetch_all(connection)
    .await?;
    let mut found: BTreeMap<Uuid, Vec<Uuid>> = BTreeMap::new();
    for (id, hold) in rows {
        found.entry(id).or_default().push(hold);
    }
    Ok(found)
}
