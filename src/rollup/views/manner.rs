//! Whether a view can be refreshed while it is read.

use sqlx::PgConnection;

use super::check::{reading, refuse};
use crate::job::JobError;
use crate::postgres::catalog::Relation;

/// Why a view cannot be refreshed while it is read, or is not to be.
pub(super) async fn plainly(
    connection: &mut PgConnection,
    relation: &Relation,
    concurrently: Option<bool>,
) -> Result<Option<String>, JobError> {
    if concurrently == Some(false) {
        return Ok(Some("`concurrently` is false".to_owned()));
    }
    let name = relation.display();
    let populated: bool = sqlx::query_scalar("SELECT relispopulated FROM pg_catalog.pg_class WHERE oid = $1")
        .bind(relation.oid)
        .fetch_one(&mut *connection)
        .await
        .map_err(|error| reading(&name)(error.into()))?;
    let Some((cause, remedy)) = unmet(connection, relation).await? else {
        // Nobody can read a view that was never filled, so nobody waits.
        return Ok((!populated).then(|| "it was never filled, so nobody reads it".to_owned()));
    };
    if concurrently == Some(true) {
        return Err(
            refuse(&name, format!("it cannot be refreshed concurrently: {cause}"), remedy).about("concurrently"),
        );
    }
    Ok(Some(cause))
}

/// What a view lacks to be refreshed while it is read, and how to mend it: one unique index over plain
/// columns and all rows.
async fn unmet(connection: &mut PgConnection, relation: &Relation) -> Result<Option<(String, String)>, JobError> {
    type Row = (String, bool, bool, bool, bool);
    let indexes: Vec<Row> = sqlx::query_as(
        "SELECT x.relname::text, i.indisvalid, i.indpred IS NULL, 0 < ALL (i.indkey::int2[]), i.indimmediate AND m.amname = 'btree'
         FROM pg_catalog.pg_index i JOIN pg_catalog.pg_class x ON x.oid = i.indexrelid JOIN pg_catalog.pg_am m ON m.oid = x.relam
         WHERE i.indrelid = $1 AND i.indisunique ORDER BY x.relname",
    )
    .bind(relation.oid)
    .fetch_all(connection)
    .await
    .map_err(|error| reading(&relation.display())(error.into()))?;
    let mut causes = Vec::new();
    for (index, valid, whole, plain, usual) in indexes {
        causes.push(match (valid, whole, plain, usual) {
            (true, true, true, true) => return Ok(None),
            (false, ..) => format!("the unique index {index} is invalid"),
            (_, false, ..) => format!("the unique index {index} has a condition"),
            (_, _, false, _) => format!("the unique index {index} is over an expression"),
            _ => format!("the unique index {index} is of a kind that the server does not use for it"),
        });
    }
    if causes.is_empty() {
        causes.push("it has no unique index".to_owned());
    }
    let remedy = format!(
        "CREATE UNIQUE INDEX ON {} (the columns that tell its rows apart)",
        relation.quoted()
    );
    Ok(Some((causes.join("; "), remedy)))
}
