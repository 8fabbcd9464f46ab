//! What must hold before a row is touched. Whatever would make "nothing left to do" a lie is refused
//! here, with the object, the cause and the remedy.

use sqlx::PgConnection;
use sqlx::postgres::types::Oid;

use super::rule::{Change, Rule};
use super::statement::AgeType;
use super::{foreign, permission, states};
use crate::job::JobError;
use crate::postgres::catalog::access::{self, Access, Need};
use crate::postgres::catalog::columns::{self, Column};
use crate::postgres::catalog::effects::{self, Event, IncomingKey};
use crate::postgres::catalog::leaves::{self, Leaf, PendingDetach};
use crate::postgres::catalog::{self, Relation, RelationKind, ResolveError, nearest};
use crate::postgres::sqlstate::DatabaseError;
use crate::values::TableName;

/// A rule's table, found fit.
#[derive(Debug, Clone)]
pub(super) struct Target {
    /// As whom the run works.
    pub(super) role: String,
    /// The table.
    pub(super) relation: Relation,
    /// Its columns.
    pub(super) columns: Vec<Column>,
    /// The type of its age column.
    pub(super) age_type: AgeType,
    /// The local tables that hold its rows.
    pub(super) leaves: Vec<Leaf>,
    /// The leaves whose rows the role may lock one by one.
    pub(super) lockable: Vec<Oid>,
    /// Partitions whose rows are stored but hidden.
    pub(super) pending: Vec<PendingDetach>,
    /// Foreign keys that a deletion must satisfy.
    pub(super) keys: Vec<IncomingKey>,
    /// Triggers that fire.
    pub(super) triggers: Vec<String>,
    /// What an operator should know, none of which stops the run.
    pub(super) warnings: Vec<String>,
}

impl Target {
    /// A column by its exact name.
    pub(super) fn column(&self, name: &str) -> Result<&Column, JobError> {
        find_column(&self.relation, &self.columns, name)
    }
}

/// Looks the rule's table up and checks all that can be checked without reading its rows.
pub(super) async fn check(connection: &mut PgConnection, rule: &Rule) -> Result<Target, JobError> {
    let relation = table(connection, rule).await?;
    let name = relation.display();
    let read = reading(&name);
    let columns = columns::of(connection, relation.oid).await.map_err(&read)?;
    let age_type = age_type(&relation, &columns, rule).map_err(|error| error.about("age_column"))?;
    let deletes = rule.change == Change::Delete;
    let mut all = leaves::of(connection, relation.oid, &rule.age_column)
        .await
        .map_err(&read)?;
    if let Some(fallback) = &rule.age_fallback {
        stands_in(&relation, &columns, &rule.age_column, fallback).map_err(|error| error.about("age_fallback"))?;
        // An index by one of two columns leads past the rows of the other.
        for leaf in &mut all {
            leaf.age_index = None;
        }
    }
    let (leaves, foreign) = foreign::reachable(connection, &relation, all, deletes).await?;
    let pending = leaves::pending_detaches(connection, relation.oid)
        .await
        .map_err(&read)?;
    let mut oids: Vec<Oid> = leaves.iter().map(|leaf| leaf.relation.oid).collect();
    if !oids.contains(&relation.oid) {
        oids.push(relation.oid);
    }
    let (event, need) = match &rule.change {
        Change::Delete => (Event::Delete, Need::Delete),
        Change::Update(change) => {
            let columns = change.set.keys().chain(&change.stamp).cloned().collect();
            (Event::Update, Need::Update(columns))
        }
    };
    let access = access::of(connection, &oids, &need).await.map_err(&read)?;
    let user = access::current_role(connection).await.map_err(&read)?;
    permission::rows_visible(&relation, &leaves, &access, &user)?;
    permission::privileges(&relation, &leaves, &access, &user, &need)?;
    no_rules(
        &name,
        &effects::rules(connection, &oids, event).await.map_err(&read)?,
        event,
    )?;
    let unidentified = effects::without_replica_identity(connection, &oids, event).await;
    published(&name, &unidentified.map_err(&read)?)?;
    let keys = match event {
        Event::Delete => effects::incoming_keys(connection, &oids).await.map_err(&read)?,
        Event::Update => Vec::new(),
    };
    let triggers = effects::triggers(connection, &oids, event).await.map_err(&read)?;
    let local = |table: Oid| {
        let foreign = |leaf: &Leaf| leaf.relation.oid == table && leaf.relation.kind == RelationKind::Foreign;
        !leaves.iter().any(foreign)
    };
    let lockable: Vec<Oid> = access
        .iter()
        .filter(|access| access.may_lock && local(access.table))
        .map(|access| access.table)
        .collect();
    let mut target = Target {
        role: user,
        lockable,
        warnings: warnings(&leaves, &foreign, &access, &keys, &pending),
        relation,
        columns,
        age_type,
        leaves,
        pending,
        keys,
        triggers,
    };
    if let Change::Update(change) = &rule.change {
        let found = states::check(connection, &target, change, rule).await?;
        target.warnings.extend(found);
    }
    Ok(target)
}

/// An error of the database while the catalog is read.
pub(super) fn reading(table: &str) -> impl Fn(DatabaseError) -> JobError + use<> {
    let operation = format!("read the catalog about {table}");
    move |error| JobError::database(operation.clone(), &error)
}

/// A refusal about a table.
pub(super) fn refuse(table: &str, cause: impl Into<String>, remedy: impl Into<String>) -> JobError {
    JobError::refused(format!("check {table}"), cause, remedy).about("table")
}

/// `; did you mean …?`, or a way to find out.
pub(super) fn did_you_mean(near: &[&str], otherwise: &str) -> String {
    if near.is_empty() {
        otherwise.to_owned()
    } else {
        format!("did you mean {}?", near.join(" or "))
    }
}

/// The rule's table, as the catalog has it.
pub(super) async fn table(connection: &mut PgConnection, rule: &Rule) -> Result<Relation, JobError> {
    let relation = named(connection, &rule.table).await?;
    foreign::unmanaged(connection, &relation, rule).await?;
    Ok(relation)
}

/// The table that a name stands for, if it stores rows.
pub(super) async fn named(connection: &mut PgConnection, table: &TableName) -> Result<Relation, JobError> {
    let name = table.to_string();
    let relation = match catalog::resolve(connection, table).await {
        Ok(relation) => relation,
        Err(ResolveError::Database(error)) => return Err(reading(&name)(error)),
        Err(ref error @ ResolveError::Missing { ref near }) => {
            let near: Vec<&str> = near.iter().map(String::as_str).collect();
            let remedy = did_you_mean(&near, "write the table as the catalog has it, letter case included");
            return Err(refuse(&name, error.to_string(), remedy));
        }
        Err(error @ ResolveError::Ambiguous(_)) => {
            return Err(refuse(&name, error.to_string(), "write the table with its schema"));
        }
    };
    if relation.schema == "pgreeve" {
        return Err(refuse(
            &name,
            "the ledger is no table of the application",
            "leave it to pgreeve, which trims its ledger itself",
        ));
    }
    if matches!(
        relation.kind,
        RelationKind::Table | RelationKind::Partitioned | RelationKind::Foreign
    ) {
        return Ok(relation);
    }
    Err(refuse(
        &name,
        format!("it is a {}, which stores no rows of its own", relation.kind.as_str()),
        "name the table that stores the rows",
    ))
}

fn find_column<'a>(relation: &Relation, columns: &'a [Column], name: &str) -> Result<&'a Column, JobError> {
    let found = columns.iter().find(|column| column.name == name);
    found.ok_or_else(|| {
        let near = nearest(name, columns.iter().map(|column| column.name.as_str()), 3);
        refuse(
            &relation.display(),
            format!("there is no column {name}"),
            did_you_mean(&near, "write the column as the catalog has it, letter case included"),
        )
    })
}

fn age_type(relation: &Relation, columns: &[Column], rule: &Rule) -> Result<AgeType, JobError> {
    let column = find_column(relation, columns, &rule.age_column)?;
    let table = relation.display();
    let Some(age_type) = AgeType::from_base_type(&column.base_type) else {
        return Err(refuse(
            &table,
            format!(
                "the age column {} is of type {}, which tells no time",
                column.name, column.full_type
            ),
            "name a column of type timestamptz, timestamp or date",
        ));
    };
    if age_type != AgeType::Timestamptz && rule.timezone.is_none() {
        return Err(refuse(
            &table,
            format!(
                "the age column {} is of type {}, which has no time zone",
                column.name, column.full_type
            ),
            "set `timezone` to the zone its values were written in, such as \"UTC\" or \"Europe/Berlin\"",
        ));
    }
    Ok(age_type)
}

/// The two are compared as one value.
fn stands_in(relation: &Relation, columns: &[Column], age_column: &str, fallback: &str) -> Result<(), JobError> {
    let (age, other) = (
        find_column(relation, columns, age_column)?,
        find_column(relation, columns, fallback)?,
    );
    if age.base_type == other.base_type {
        return Ok(());
    }
    let cause = format!(
        "the column {fallback} is of type {} and cannot stand in for {age_column}, which is of type {}",
        other.full_type, age.full_type
    );
    Err(refuse(&relation.display(), cause, "name a column of the same type"))
}

fn no_rules(table: &str, rules: &[String], event: Event) -> Result<(), JobError> {
    if rules.is_empty() {
        return Ok(());
    }
    let event = match event {
        Event::Delete => "DELETE",
        Event::Update => "UPDATE",
    };
    Err(refuse(
        table,
        format!("a rule rewrites {event} into something else: {}", rules.join(", ")),
        "replace the rule by a trigger, or leave the table to the application",
    ))
}

fn published(table: &str, unidentified: &[String]) -> Result<(), JobError> {
    if unidentified.is_empty() {
        return Ok(());
    }
    Err(refuse(
        table,
        format!(
            "published without a replica identity, so PostgreSQL refuses the change: {}",
            unidentified.join(", ")
        ),
        "add a primary key, or ALTER TABLE … REPLICA IDENTITY",
    ))
}

fn warnings(
    leaves: &[Leaf],
    foreign: &[Leaf],
    access: &[Access],
    keys: &[IncomingKey],
    pending: &[PendingDetach],
) -> Vec<String> {
    let mut warnings = Vec::new();
    for leaf in foreign {
        warnings.push(format!(
            "the partition {} is a foreign table that cannot be changed from here and is left out; run the job on the \
             server that stores it",
            leaf.relation.display()
        ));
    }
    let elsewhere = leaves.iter().find(|leaf| leaf.relation.kind == RelationKind::Foreign);
    if let Some(leaf) = elsewhere {
        warnings.push(format!(
            "{} is on another server: row security, triggers and foreign keys there are not seen from here, and after a \
             crash the ledger may count a batch less than was done",
            leaf.relation.display()
        ));
    }
    for detach in pending {
        warnings.push(format!(
            "the detach of {} is pending: its rows are hidden, not erased; run {}",
            detach.partition, detach.remedy
        ));
    }
    for key in keys {
        if !key.indexed {
            warnings.push(format!(
                "no index finds the rows of {} by the foreign key {}: each deleted row reads the whole table",
                key.table, key.constraint
            ));
        }
        match key.on_delete.as_str() {
            "CASCADE" => warnings.push(format!(
                "rows of {} go with the rows they reference and are not counted (foreign key {})",
                key.table, key.constraint
            )),
            "SET NULL" | "SET DEFAULT" => warnings.push(format!(
                "rows of {} lose their reference (foreign key {})",
                key.table, key.constraint
            )),
            _ => {}
        }
    }
    let unlockable = |leaf: &&Leaf| access.iter().any(|a| a.table == leaf.relation.oid && !a.may_lock);
    if leaves.iter().any(|leaf| unlockable(&leaf)) {
        warnings.push(
            "without the privilege UPDATE rows cannot be locked one by one: beside a row that another session holds, \
             due rows are left for the next run"
                .to_owned(),
        );
    }
    warnings
}
