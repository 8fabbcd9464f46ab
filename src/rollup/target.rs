//! The table that keeps the result: made by `rollup init`, or the application's own.

use sqlx::postgres::types::Oid;
use sqlx::{AssertSqlSafe, PgConnection};

use super::bucket::Width;
use super::check::{column, find as find_table, reading, refuse};
use super::spec::Source;
use super::statement::{BucketType, Fresh};
use crate::job::JobError;
use crate::postgres::catalog::columns;
use crate::postgres::catalog::{Relation, RelationKind};
use crate::postgres::quote::{identifier, qualified};
use crate::values::TableName;

/// The target, if there is one.
async fn find_any(connection: &mut PgConnection, table: &TableName) -> Result<Option<Relation>, JobError> {
    // Without a schema it is made in `public`; a table of this name elsewhere is another one.
    let (schema, name) = place(table);
    let there: bool = sqlx::query_scalar(
        "SELECT EXISTS (SELECT FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
                        WHERE n.nspname = $1 AND c.relname = $2)",
    )
    .bind(&schema)
    .bind(&name)
    .fetch_one(&mut *connection)
    .await
    .map_err(|error| reading(&name)(error.into()))?;
    if !there {
        return Ok(None);
    }
    let exact = TableName {
        schema: Some(schema),
        name,
    };
    find_table(connection, &exact, "target").await.map(Some)
}

/// The target, if there is one, and one that rows can be written to.
pub(super) async fn find(connection: &mut PgConnection, table: &TableName) -> Result<Option<Relation>, JobError> {
    let Some(relation) = find_any(connection, table).await? else {
        return Ok(None);
    };
    if relation.schema == "pgreeve" || !matches!(relation.kind, RelationKind::Table | RelationKind::Partitioned) {
        let cause = match relation.kind {
            RelationKind::Table | RelationKind::Partitioned => "it is the ledger's".to_owned(),
            other => format!("it is a {}", other.as_str()),
        };
        let remedy = "name an ordinary table, or one that does not exist yet";
        return Err(refuse("target", &relation.display(), cause, remedy));
    }
    Ok(Some(relation))
}

/// Schema and name of a target.
pub(super) fn place(table: &TableName) -> (String, String) {
    (
        table.schema.clone().unwrap_or_else(|| "public".to_owned()),
        table.name.clone(),
    )
}

/// How an existing target keeps the beginning of a bucket.
pub(super) async fn bucket_type(
    connection: &mut PgConnection,
    target: &Relation,
    source: &Source,
    width: Width,
) -> Result<BucketType, JobError> {
    let name = target.display();
    let columns = columns::of(connection, target.oid).await.map_err(reading(&name))?;
    let bucket = column(target, &columns, &source.bucket_column, "bucket_column")?;
    match bucket.base_type.as_str() {
        "timestamp with time zone" => Ok(BucketType::Instant),
        "date" if !width.is_short() => Ok(BucketType::Date),
        _ => Err(refuse(
            "bucket_column",
            &name,
            format!(
                "the column {} is of type {}, which cannot tell one bucket of {width} from the next",
                bucket.name, bucket.full_type
            ),
            "give the bucket a column of type timestamptz; date will do for a day and more",
        )),
    }
}

/// Checks that an existing target has the columns and the key; answers with warnings.
pub(super) async fn fits(
    connection: &mut PgConnection,
    target: &Relation,
    source: &Source,
) -> Result<Vec<String>, JobError> {
    let name = target.display();
    let columns = columns::of(connection, target.oid).await.map_err(reading(&name))?;
    let written = || {
        let measures = source.measures.iter().flat_map(super::measure::Measure::columns);
        std::iter::once(source.bucket_column.clone())
            .chain(source.group_by.iter().cloned())
            .chain(measures.map(|(name, _)| name))
    };
    for needed in written() {
        let found = column(target, &columns, &needed, "target")?;
        if found.generated {
            let cause = format!("the column {needed} is generated, and cannot be written");
            return Err(refuse("target", &name, cause, "make it an ordinary column"));
        }
    }
    let needed: Vec<String> = written().collect();
    nothing_else_required(connection, target, &needed).await?;
    let mut key = vec![source.bucket_column.clone()];
    key.extend(source.group_by.iter().cloned());
    unique_key(connection, target, &key).await?;
    let leading: bool = sqlx::query_scalar(
        "SELECT EXISTS (SELECT FROM pg_catalog.pg_index i JOIN pg_catalog.pg_attribute a
                        ON a.attrelid = i.indrelid AND a.attnum = i.indkey[0]
                        WHERE i.indrelid = $1 AND i.indisvalid AND i.indpred IS NULL AND a.attname = $2)",
    )
    .bind(target.oid)
    .bind(&source.bucket_column)
    .fetch_one(connection)
    .await
    .map_err(|error| reading(&name)(error.into()))?;
    Ok(if leading {
        Vec::new()
    } else {
        vec![format!(
            "no index of {name} leads with {}, so each run reads the whole target",
            source.bucket_column
        )]
    })
}

/// Refuses a target with columns that must have a value and get none.
pub(super) async fn nothing_else_required(
    connection: &mut PgConnection,
    target: &Relation,
    written: &[String],
) -> Result<(), JobError> {
    let name = target.display();
    let lacking: Vec<String> = sqlx::query_scalar(
        "SELECT a.attname::text FROM pg_catalog.pg_attribute a
         WHERE a.attrelid = $1 AND a.attnum > 0 AND NOT a.attisdropped AND a.attnotnull AND NOT a.atthasdef
           AND a.attidentity = '' AND a.attname <> ALL ($2) ORDER BY a.attnum",
    )
    .bind(target.oid)
    .bind(written)
    .fetch_all(connection)
    .await
    .map_err(|error| reading(&name)(error.into()))?;
    if lacking.is_empty() {
        return Ok(());
    }
    Err(refuse(
        "target",
        &name,
        format!(
            "the column {} takes no null, has no default, and would get no value",
            lacking.join(", ")
        ),
        "give it a default, or a value",
    ))
}

async fn unique_key(connection: &mut PgConnection, target: &Relation, key: &[String]) -> Result<(), JobError> {
    let name = target.display();
    let unique: bool = sqlx::query_scalar(
        "SELECT EXISTS (SELECT FROM pg_catalog.pg_index i
             WHERE i.indrelid = $1 AND i.indisunique AND i.indisvalid AND i.indpred IS NULL AND i.indexprs IS NULL
               AND i.indnkeyatts = cardinality($2::text[])
               AND $2::text[] <@ ARRAY(SELECT a.attname::text FROM pg_catalog.pg_attribute a
                                       WHERE a.attrelid = i.indrelid AND a.attnum = ANY ((i.indkey::int2[])[0:i.indnkeyatts - 1])))",
    )
    .bind(target.oid)
    .bind(key)
    .fetch_one(connection)
    .await
    .map_err(|error| reading(&name)(error.into()))?;
    if unique {
        return Ok(());
    }
    let columns: Vec<String> = key.iter().map(|column| identifier(column)).collect();
    Err(refuse(
        "target",
        &name,
        format!(
            "no unique index on ({}) keeps a group from being there twice",
            key.join(", ")
        ),
        format!("CREATE UNIQUE INDEX ON {} ({})", target.quoted(), columns.join(", ")),
    ))
}

/// The statements that make a target, and a key that also tells groups without a value apart where
/// the server can.
pub(super) fn make(table: &TableName, source: &Source, fresh: &Fresh, version: i32, job: &str) -> Vec<String> {
    let (schema, name) = place(table);
    let target = qualified(&schema, &name);
    let quoted = |column: &String| identifier(column);
    let bucket = identifier(&source.bucket_column);
    let key: Vec<String> = std::iter::once(bucket.clone())
        .chain(source.group_by.iter().map(quoted))
        .collect();
    let nulls = if version >= 150_000 { " NULLS NOT DISTINCT" } else { "" };
    let day = [jiff::Timestamp::UNIX_EPOCH, jiff::Timestamp::UNIX_EPOCH];
    let mut statements = vec![
        format!("CREATE TABLE {target} AS {} WITH NO DATA", fresh.select(&day)),
        format!("ALTER TABLE {target} ALTER COLUMN {bucket} SET NOT NULL"),
        format!("CREATE UNIQUE INDEX ON {target} ({}){nulls}", key.join(", ")),
        format!(
            "COMMENT ON TABLE {target} IS {}",
            crate::postgres::quote::literal(&format!("Kept by pgreeve, job {job}."))
        ),
    ];
    for measure in source.measures.iter().filter(|measure| measure.is_average()) {
        let column = |suffix: &str| identifier(&format!("{}{suffix}", measure.name));
        // Stored with the row, so that nobody averages averages by mistake and everybody can read one.
        statements.push(format!(
            "ALTER TABLE {target} ADD COLUMN {} double precision GENERATED ALWAYS AS ({}::double precision / NULLIF({}, 0)) STORED",
            column(""),
            column("_sum"),
            column("_count")
        ));
    }
    statements
}

/// How many rows a table has, up to a limit.
pub(super) async fn has_rows(connection: &mut PgConnection, target: &Relation) -> Result<bool, JobError> {
    let sql = format!("SELECT EXISTS (SELECT FROM {})", target.quoted());
    sqlx::query_scalar(AssertSqlSafe(sql))
        .persistent(false)
        .fetch_one(connection)
        .await
        .map_err(|error| reading(&target.display())(error.into()))
}

/// A table's identity, for locks.
pub(super) fn lock_key(target: &Relation) -> i32 {
    let Oid(oid) = target.oid;
    crate::ledger::locks::key(&format!("target {oid}"))
}
