//! Verbs on legal holds: `hold place`, `hold release`, `hold list`.

use std::time::Duration;

use clap::{Args, Subcommand};
use serde_json::json;
use sqlx::{AssertSqlSafe, Connection};
use uuid::Uuid;

use super::record::{audit_failure, open_audit};
use super::run::look;
use super::site::{database_failure, target};
use super::{Exit, Failure, actor, output};
use crate::audit::{Entry, RecordKind};
use crate::batch::predicate;
use crate::config::Config;
use crate::ledger::holds::{self, Hold, NewHold};
use crate::ledger::migrate;
use crate::postgres::catalog::{self, Relation, RelationKind, ResolveError};
use crate::postgres::connect::{Session, SessionSettings};
use crate::postgres::quote::identifier;
use crate::postgres::sqlstate::DatabaseError;
use crate::values::{Name, TableName, ValueError, fingerprint};

/// How long the rows of a new hold are counted.
const COUNT_TIME: Duration = Duration::from_secs(10);

#[derive(Debug, Subcommand)]
pub(super) enum HoldVerb {
    /// Place a hold: no run deletes or changes these rows until it is released.
    Place(PlaceArguments),
    /// Release a hold.
    Release {
        /// The hold's id.
        id: Uuid,
        /// Why, for the record.
        #[arg(long, value_name = "TEXT")]
        reason: String,
        /// The database it is in; default: wherever it is found.
        #[arg(long)]
        database: Option<Name>,
    },
    /// List the holds, those that stand first.
    List {
        /// Those of one database only.
        #[arg(long)]
        database: Option<Name>,
    },
}

#[derive(Debug, Args)]
pub(super) struct PlaceArguments {
    /// The database's name in the configuration; may be left out when there is only one.
    #[arg(long)]
    database: Option<Name>,
    /// Whose rows: "table" or "schema.table", as the catalog has it.
    #[arg(long)]
    table: TableName,
    /// Which rows: one condition in SQL; `true` for all of them. It may name the table.
    #[arg(long = "where", value_name = "SQL", value_parser = parse_condition)]
    condition: String,
    /// Why, for the record; no personal data.
    #[arg(long, value_name = "TEXT")]
    reason: String,
}

fn parse_condition(text: &str) -> Result<String, ValueError> {
    predicate::check(text).map(|()| text.to_owned())
}

pub(super) async fn hold(config: &Config, verb: &HoldVerb, json: bool) -> Result<Exit, Failure> {
    match verb {
        HoldVerb::Place(arguments) => place(config, arguments, json).await,
        HoldVerb::Release { id, reason, database } => release(config, *id, reason, database.as_ref(), json).await,
        HoldVerb::List { database } => list(config, database.as_ref(), json).await,
    }
}

async fn place(config: &Config, arguments: &PlaceArguments, json: bool) -> Result<Exit, Failure> {
    said(&arguments.reason)?;
    let database = the_database(config, arguments.database.as_ref())?;
    let audit = open_audit(config)?;
    let site = look(database, target(config, database)?).await?;
    let failed = |error| database_failure("place the hold", &error);
    migrate::apply(&site.target).await.map_err(failed)?;
    let mut session = session(&site.target).await.map_err(failed)?;
    let mut transaction = session
        .connection()
        .begin()
        .await
        .map_err(|error| failed(error.into()))?;
    let relation = find(&mut transaction, &arguments.table).await?;
    try_condition(&mut transaction, &relation, &arguments.condition).await?;
    let (hold_id, actor) = (Uuid::now_v7(), actor());
    let new = NewHold {
        hold_id,
        relation: &relation,
        predicate: &arguments.condition,
        reason: &arguments.reason,
        actor: &actor,
    };
    holds::place(&mut transaction, &new).await.map_err(failed)?;
    // What a hold says may be about a person. Its digest tells whether it was changed later.
    let body = json!({
        "hold": hold_id, "table": relation.display(), "where_digest": fingerprint(&arguments.condition),
        "reason": arguments.reason,
    });
    let entry = Entry::new(RecordKind::HoldPlaced, body)
        .database(site.system_identifier.clone())
        .actor(actor);
    audit.append(entry).await.map_err(|error| audit_failure(&error))?;
    transaction.commit().await.map_err(|error| failed(error.into()))?;
    let rows = covered(&mut session, &relation, &arguments.condition).await;
    session.close().await;
    if json {
        let placed = json!({ "hold_id": hold_id, "database": database, "table": relation.display(), "rows": rows });
        output::document(&json!({ "version": 1, "hold": placed }));
    } else {
        let covers = match rows {
            Some(0) => " and covers no row now: what was deleted before it stood is gone".to_owned(),
            Some(1) => " and covers 1 row".to_owned(),
            Some(rows) => format!(" and covers {rows} rows"),
            None => format!("; its rows were not counted within {} s", COUNT_TIME.as_secs()),
        };
        output::line(&format!("hold {hold_id} stands on {}{covers}", relation.display()));
    }
    Ok(Exit::Green)
}

/// How many rows a hold that stands covers; nothing where that takes too long or cannot be read. The
/// hold stands all the same.
async fn covered(session: &mut Session, relation: &Relation, condition: &str) -> Option<u64> {
    let sql = format!(
        "SELECT count(*) FROM {} AS {} WHERE (\n{condition}\n) IS TRUE",
        relation.quoted(),
        identifier(&relation.name)
    );
    let mut transaction = session.connection().begin().await.ok()?;
    sqlx::query("SELECT pg_catalog.set_config('statement_timeout', $1, true)")
        .bind(format!("{}ms", COUNT_TIME.as_millis()))
        .execute(&mut *transaction)
        .await
        .ok()?;
    let rows: i64 = sqlx::query_scalar(AssertSqlSafe(sql))
        .persistent(false)
        .fetch_one(&mut *transaction)
        .await
        .ok()?;
    transaction.rollback().await.ok()?;
    Some(rows.unsigned_abs())
}

async fn release(
    config: &Config,
    id: Uuid,
    reason: &str,
    database: Option<&Name>,
    json: bool,
) -> Result<Exit, Failure> {
    said(reason)?;
    let audit = open_audit(config)?;
    for database in databases(config, database)? {
        let site = look(database, target(config, database)?).await?;
        let failed = |error| database_failure("release the hold", &error);
        let mut session = session(&site.target).await.map_err(failed)?;
        if !holds::exists(session.connection()).await.map_err(failed)? {
            session.close().await;
            continue;
        }
        let actor = actor();
        let mut transaction = session
            .connection()
            .begin()
            .await
            .map_err(|error| failed(error.into()))?;
        if !holds::release(&mut transaction, id, reason, &actor)
            .await
            .map_err(failed)?
        {
            drop(transaction);
            session.close().await;
            continue;
        }
        let entry = Entry::new(RecordKind::HoldReleased, json!({ "hold": id, "reason": reason }))
            .database(site.system_identifier.clone())
            .actor(actor);
        audit.append(entry).await.map_err(|error| audit_failure(&error))?;
        transaction.commit().await.map_err(|error| failed(error.into()))?;
        session.close().await;
        if json {
            output::document(&json!({ "version": 1, "hold": { "hold_id": id, "database": database } }));
        } else {
            output::line(&format!("hold {id} is released"));
        }
        return Ok(Exit::Green);
    }
    Err(Failure::new(Exit::Usage, format!("no hold {id} stands"))
        .with_remedy("`pgreeve hold list` shows those that do"))
}

async fn list(config: &Config, database: Option<&Name>, json: bool) -> Result<Exit, Failure> {
    let mut found: Vec<(&Name, Hold)> = Vec::new();
    for database in databases(config, database)? {
        let failed = |error| database_failure(&format!("list the holds of {database}"), &error);
        let mut session = session(target(config, database)?).await.map_err(failed)?;
        if holds::exists(session.connection()).await.map_err(failed)? {
            let holds = holds::list(session.connection()).await.map_err(failed)?;
            found.extend(holds.into_iter().map(|hold| (database, hold)));
        }
        session.close().await;
    }
    if json {
        let holds: Vec<_> = found
            .iter()
            .map(|(database, hold)| {
                let mut value = json!(hold);
                value["database"] = json!(database);
                value
            })
            .collect();
        output::document(&json!({ "version": 1, "holds": holds }));
        return Ok(Exit::Green);
    }
    let rows: Vec<Vec<String>> = found.iter().map(|(database, hold)| row(database, hold)).collect();
    let header = [
        "HOLD", "DATABASE", "TABLE", "WHERE", "SINCE", "BY", "RELEASED", "REASON",
    ];
    output::table(&header, &rows);
    Ok(Exit::Green)
}

fn row(database: &Name, hold: &Hold) -> Vec<String> {
    vec![
        hold.hold_id.to_string(),
        database.to_string(),
        hold.table.clone(),
        hold.predicate.split_whitespace().collect::<Vec<_>>().join(" "),
        hold.placed_at.to_string(),
        hold.placed_by.clone(),
        hold.released_at.map(|at| at.to_string()).unwrap_or_default(),
        hold.release_reason.clone().unwrap_or_else(|| hold.reason.clone()),
    ]
}

async fn session(target: &crate::postgres::connect::ConnectTarget) -> Result<Session, DatabaseError> {
    Session::open(target, &SessionSettings::control("pgreeve:hold")).await
}

fn said(reason: &str) -> Result<(), Failure> {
    if reason.trim().is_empty() {
        return Err(Failure::new(Exit::Usage, "the reason is empty")
            .with_remedy("say why: whoever reads the record in years has nothing else"));
    }
    Ok(())
}

fn the_database<'a>(config: &'a Config, named: Option<&'a Name>) -> Result<&'a Name, Failure> {
    match databases(config, named)?.as_slice() {
        [only] => Ok(only),
        _ => Err(Failure::new(Exit::Usage, "there are several databases").with_remedy("name one with --database")),
    }
}

fn databases<'a>(config: &'a Config, named: Option<&'a Name>) -> Result<Vec<&'a Name>, Failure> {
    match named {
        None => Ok(config.databases.keys().collect()),
        Some(name) => target(config, name).map(|_| vec![name]),
    }
}

async fn find(connection: &mut sqlx::PgConnection, table: &TableName) -> Result<Relation, Failure> {
    let relation = catalog::resolve(connection, table).await.map_err(|error| match error {
        ResolveError::Database(error) => database_failure(&format!("look for {table}"), &error),
        ResolveError::Missing { ref near } if !near.is_empty() => {
            Failure::new(Exit::Usage, format!("{table}: {error}"))
                .with_remedy(format!("did you mean {}?", near.join(" or ")))
        }
        error => Failure::new(Exit::Usage, format!("{table}: {error}"))
            .with_remedy("write the table as the catalog has it, with its schema"),
    })?;
    match relation.kind {
        RelationKind::Table | RelationKind::Partitioned | RelationKind::Foreign => Ok(relation),
        other => Err(Failure::new(
            Exit::Usage,
            format!("{table} is a {}, which stores no rows", other.as_str()),
        )
        .with_remedy("place the hold on the table that stores them")),
    }
}

/// Has the condition planned as runs will use it. Planning reads no row: what the message quotes is
/// the operator's own text.
async fn try_condition(
    connection: &mut sqlx::PgConnection,
    relation: &Relation,
    condition: &str,
) -> Result<(), Failure> {
    let sql = format!(
        "EXPLAIN SELECT 1 FROM {} AS {} WHERE (\n{condition}\n) IS NOT TRUE",
        relation.quoted(),
        identifier(&relation.name)
    );
    let Err(error) = sqlx::query(AssertSqlSafe(sql))
        .persistent(false)
        .execute(connection)
        .await
    else {
        return Ok(());
    };
    let sqlx::Error::Database(refusal) = &error else {
        return Err(database_failure("try the condition", &error.into()));
    };
    let message = format!(
        "the condition is refused: {} (SQLSTATE {})",
        refusal.message(),
        refusal.code().unwrap_or_default()
    );
    let remedy = DatabaseError::from(error).remedy();
    Err(
        Failure::new(Exit::Usage, message).with_remedy(remedy.unwrap_or_else(|| {
            "it sees the columns of the table, and names outside of pg_catalog with their schema".to_owned()
        })),
    )
}
