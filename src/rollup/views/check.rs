//! What must hold before views are refreshed: that they are there, that the role may, how it can be
//! done, and in which order. Reads only.

use sqlx::PgConnection;

use super::Views;
use super::manner::plainly;
use super::order::order;
use super::reads::{purged, reads};
use super::rights::{allowed, needed};
use crate::job::JobError;
use crate::postgres::catalog::{self, Relation, RelationKind, ResolveError, nearest};
use crate::postgres::grant::Grant;
use crate::postgres::sqlstate::DatabaseError;
use crate::values::TableName;

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

pub(super) fn display(schema: &str, name: &str) -> String {
    TableName {
        schema: Some(schema.to_owned()),
        name: name.to_owned(),
    }
    .to_string()
}

pub(super) fn refuse(view: &str, cause: impl Into<String>, remedy: impl Into<String>) -> JobError {
    JobError::refused(format!("check {view}"), cause, remedy).about("views")
}

pub(super) fn reading(view: &str) -> impl Fn(DatabaseError) -> JobError + use<> {
    let operation = format!("read the catalog about {view}");
    move |error| JobError::database(operation.clone(), &error)
}
