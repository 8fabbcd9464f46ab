//! What must hold before a view is refreshed: that it is one, that the role may, how it can be done,
//! and what it reads. Reads only.

use sqlx::PgConnection;
use sqlx::postgres::types::Oid;

use super::Views;
use super::order::order;
use crate::job::JobError;
use crate::postgres::catalog::{self, Relation, RelationKind, ResolveError, nearest};
use crate::postgres::grant::Grant;
use crate::postgres::quote::identifier;
use crate::postgres::sqlstate::DatabaseError;
use crate::values::TableName;

/// The first server where a privilege stands for ownership.
const MAINTAIN_SINCE: i32 = 170_000;

/// A materialized view, and how it is refreshed.
#[derive(Debug, Clone)]
pub(super) struct View {
    /// The view.
    pub(super) relation: Relation,
    /// Why readers must wait; none where they need not.
    pub(super) plainly: Option<String>,
    /// The views of the plan that it reads, by their places in it.
    pub(super) after: Vec<usize>,
}

impl View {
    /// The statement that refreshes it.
    pub(super) fn statement(&self) -> String {
        let manner = if self.plainly.is_none() { "CONCURRENTLY " } else { "" };
        format!("REFRESH MATERIALIZED VIEW {manner}{}", self.relation.quoted())
    }
}

/// Checks all views; answers with them in their order, and with warnings.
pub(super) async fn check(connection: &mut PgConnection, views: &Views) -> Result<(Vec<View>, Vec<String>), JobError> {
    let relations = find_all(connection, views).await?;
    allowed(&needed(connection, &relations).await?)?;
    let mut found = Vec::new();
    for relation in relations {
        let plainly = plainly(connection, &relation, views.concurrently).await?;
        found.push(View {
            relation,
            plainly,
            after: Vec::new(),
        });
    }
    let (reads, mut warnings) = reads(connection, &found).await?;
    let places = order(&reads).map_err(|places| {
        let names: Vec<String> = places
            .into_iter()
            .filter_map(|place| found.get(place))
            .map(|view| view.relation.display())
            .collect();
        refuse(
            &names.join(", "),
            "they read each other, so that none can come first",
            "let one of them read tables only",
        )
    })?;
    let ordered: Vec<View> = places
        .iter()
        .filter_map(|place| {
            let after = reads.get(*place)?;
            let after = after
                .iter()
                .filter_map(|other| places.iter().position(|place| place == other));
            Some(View {
                after: after.collect(),
                ..found.get(*place)?.clone()
            })
        })
        .collect();
    warnings.extend(purged(connection, &ordered).await?);
    Ok((ordered, warnings))
}

/// The rights that the views need.
pub(super) async fn grants(connection: &mut PgConnection, views: &Views) -> Result<Vec<Grant>, JobError> {
    let relations = find_all(connection, views).await?;
    needed(connection, &relations).await
}

async fn find_all(connection: &mut PgConnection, views: &Views) -> Result<Vec<Relation>, JobError> {
    let mut relations: Vec<Relation> = Vec::new();
    for name in &views.views {
        let relation = find(connection, name).await?;
        if relations.iter().any(|other| other.oid == relation.oid) {
            let cause = "it is named twice, once with its schema and once without";
            return Err(refuse(&relation.display(), cause, "name each view once"));
        }
        relations.push(relation);
    }
    Ok(relations)
}

/// A materialized view, as the catalog has it.
async fn find(connection: &mut PgConnection, name: &TableName) -> Result<Relation, JobError> {
    let shown = name.to_string();
    let relation = match catalog::resolve(connection, name).await {
        Ok(relation) => relation,
        Err(ResolveError::Database(error)) => return Err(reading(&shown)(error)),
        Err(error @ ResolveError::Ambiguous(_)) => {
            return Err(refuse(&shown, error.to_string(), "write the view with its schema"));
        }
        Err(ResolveError::Missing { .. }) => {
            let near = near(connection, name).await.map_err(reading(&shown))?;
            let remedy = if near.is_empty() {
                "write the name as the catalog has it, letter case included".to_owned()
            } else {
                format!("did you mean {}?", near.join(" or "))
            };
            return Err(refuse(&shown, "there is no materialized view of this name", remedy));
        }
    };
    if relation.kind == RelationKind::MaterializedView {
        return Ok(relation);
    }
    let remedy = match relation.kind {
        RelationKind::View => "leave it out: a view that is not materialized is never behind",
        _ => "name a materialized view",
    };
    let cause = format!("it is a {}", relation.kind.as_str());
    Err(refuse(&relation.display(), cause, remedy))
}

/// Materialized views of nearly the name.
async fn near(connection: &mut PgConnection, name: &TableName) -> Result<Vec<String>, DatabaseError> {
    let all: Vec<(String, String)> = sqlx::query_as(
        "SELECT n.nspname::text, c.relname::text
         FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
         WHERE c.relkind = 'm' ORDER BY (n.nspname = 'public') DESC, 1, 2 LIMIT 20000",
    )
    .fetch_all(connection)
    .await?;
    let names = nearest(&name.name, all.iter().map(|(_, name)| name.as_str()), 3);
    let near = all.iter().filter(|(_, name)| names.contains(&name.as_str())).take(3);
    Ok(near.map(|(schema, name)| display(schema, name)).collect())
}

/// What the role needs: to be, or to be a member of, each view's owner; since PostgreSQL 17 the
/// privilege MAINTAIN will do.
async fn needed(connection: &mut PgConnection, relations: &[Relation]) -> Result<Vec<Grant>, JobError> {
    let mut grants: Vec<Grant> = Vec::new();
    for relation in relations {
        let name = relation.display();
        let (role, version, usage, owns, superuser): (String, i32, bool, bool, bool) = sqlx::query_as(
            "SELECT current_user::text, current_setting('server_version_num')::int4,
                    has_schema_privilege(c.relnamespace, 'USAGE'), pg_has_role(c.relowner, 'USAGE'), o.rolsuper
             FROM pg_catalog.pg_class c JOIN pg_catalog.pg_roles o ON o.oid = c.relowner WHERE c.oid = $1",
        )
        .bind(relation.oid)
        .fetch_one(&mut *connection)
        .await
        .map_err(|error| reading(&name)(error.into()))?;
        let role = identifier(&role);
        let usage_on = format!("GRANT USAGE ON SCHEMA {} TO {role}", identifier(&relation.schema));
        let own = if version >= MAINTAIN_SINCE {
            let maintains = owns || maintains(connection, relation).await?;
            Grant::new(format!("GRANT MAINTAIN ON {} TO {role}", relation.quoted()), maintains)
        } else if superuser {
            // Nobody should be made a member of a superuser for this.
            let statement = format!("ALTER MATERIALIZED VIEW {} OWNER TO {role}", relation.quoted());
            Grant::new(statement, owns)
        } else {
            Grant::new(format!("GRANT {} TO {role}", identifier(&relation.owner)), owns)
        };
        for grant in [Grant::new(usage_on, usage), own] {
            if !grants.contains(&grant) {
                grants.push(grant);
            }
        }
    }
    Ok(grants)
}

async fn maintains(connection: &mut PgConnection, relation: &Relation) -> Result<bool, JobError> {
    sqlx::query_scalar("SELECT has_table_privilege($1::oid, 'MAINTAIN')")
        .bind(relation.oid)
        .fetch_one(connection)
        .await
        .map_err(|error| reading(&relation.display())(error.into()))
}

fn allowed(needed: &[Grant]) -> Result<(), JobError> {
    let lacking: Vec<&str> = needed
        .iter()
        .filter(|grant| !grant.held)
        .map(|grant| grant.statement.as_str())
        .collect();
    if lacking.is_empty() {
        return Ok(());
    }
    let cause = "a view is refreshed by its owner only, and the role is not, nor a member of it";
    Err(refuse("the role's rights on the views", cause, lacking.join("; ")))
}

/// Why a view cannot be refreshed while it is read, or is not to be.
async fn plainly(
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

/// For each view, which of the others it reads, through whatever views lie between; and warnings.
async fn reads(connection: &mut PgConnection, views: &[View]) -> Result<(Vec<Vec<usize>>, Vec<String>), JobError> {
    let oids: Vec<Oid> = views.iter().map(|view| view.relation.oid).collect();
    let pairs: Vec<(Oid, Oid, String, String)> = sqlx::query_as(sqlx::AssertSqlSafe(format!(
        "{READS}
         SELECT r.view, c.oid, n.nspname::text, c.relname::text
         FROM reads r JOIN pg_catalog.pg_class c ON c.oid = r.relation JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
         WHERE c.relkind = 'm' ORDER BY 3, 4"
    )))
    .bind(&oids)
    .fetch_all(connection)
    .await
    .map_err(|error| reading("what the views read")(error.into()))?;
    let place = |oid: Oid| oids.iter().position(|other| *other == oid);
    let mut after = vec![Vec::new(); views.len()];
    let mut warnings = Vec::new();
    for (view, read, schema, name) in pairs {
        let Some(reader) = place(view) else { continue };
        match (place(read), after.get_mut(reader)) {
            (Some(other), Some(after)) => after.push(other),
            _ => warnings.extend(views.get(reader).map(|view| {
                let (view, read) = (view.relation.display(), display(&schema, &name));
                format!("{view} reads the materialized view {read}, which this job does not refresh: it is no newer")
            })),
        }
    }
    Ok((after, warnings))
}

/// Warnings about tables of which the views lose what is purged.
async fn purged(connection: &mut PgConnection, views: &[View]) -> Result<Vec<String>, JobError> {
    let failed = reading("what the views read");
    let ledger: bool = sqlx::query_scalar("SELECT pg_catalog.to_regclass('pgreeve.purge') IS NOT NULL")
        .fetch_one(&mut *connection)
        .await
        .map_err(|error| failed(error.into()))?;
    if !ledger {
        return Ok(Vec::new());
    }
    let oids: Vec<Oid> = views.iter().map(|view| view.relation.oid).collect();
    let pairs: Vec<(Oid, String)> = sqlx::query_as(sqlx::AssertSqlSafe(format!(
        "{READS}
         SELECT DISTINCT r.view, p.relation
         FROM reads r JOIN pg_catalog.pg_class c ON c.oid = r.relation JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
         JOIN pgreeve.purge p ON p.relation = n.nspname || '.' || c.relname ORDER BY 2"
    )))
    .bind(&oids)
    .fetch_all(connection)
    .await
    .map_err(|error| failed(error.into()))?;
    let warning = |(view, table): (Oid, String)| {
        let view = views
            .iter()
            .find(|other| other.relation.oid == view)?
            .relation
            .display();
        Some(format!(
            "{view} reads {table}, which is purged: what goes there goes from the view too; a rollup keeps its figures"
        ))
    };
    Ok(pairs.into_iter().filter_map(warning).collect())
}

/// All that some views read, at any distance.
const READS: &str = "WITH RECURSIVE reads (view, relation) AS (
        SELECT v.oid, d.refobjid
        FROM unnest($1::oid[]) AS v (oid) JOIN pg_catalog.pg_rewrite w ON w.ev_class = v.oid
        JOIN pg_catalog.pg_depend d ON d.classid = 'pg_catalog.pg_rewrite'::regclass AND d.objid = w.oid
            AND d.refclassid = 'pg_catalog.pg_class'::regclass AND d.refobjid <> v.oid
        UNION
        SELECT r.view, d.refobjid
        FROM reads r JOIN pg_catalog.pg_rewrite w ON w.ev_class = r.relation
        JOIN pg_catalog.pg_depend d ON d.classid = 'pg_catalog.pg_rewrite'::regclass AND d.objid = w.oid
            AND d.refclassid = 'pg_catalog.pg_class'::regclass AND d.refobjid <> r.relation)";

fn display(schema: &str, name: &str) -> String {
    TableName {
        schema: Some(schema.to_owned()),
        name: name.to_owned(),
    }
    .to_string()
}

fn refuse(view: &str, cause: impl Into<String>, remedy: impl Into<String>) -> JobError {
    JobError::refused(format!("check {view}"), cause, remedy).about("views")
}

fn reading(view: &str) -> impl Fn(DatabaseError) -> JobError + use<> {
    let operation = format!("read the catalog about {view}");
    move |error| JobError::database(operation.clone(), &error)
}
