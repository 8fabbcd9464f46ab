//! A function as the catalog has it, and whether it can be called so. Reads only.

use sqlx::{FromRow, PgConnection};

use super::Call;
use crate::job::JobError;
use crate::postgres::catalog::nearest;
use crate::postgres::grant::Grant;
use crate::postgres::quote::{identifier, qualified};
use crate::postgres::sqlstate::DatabaseError;

/// What is made of a function's result.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Answer {
    /// It is a whole number.
    Number,
    /// It is not read.
    Unread,
}

/// A function that can be called with the arguments that are given.
#[derive(Debug)]
pub(super) struct Function {
    /// `schema.name(types)`.
    pub(super) signature: String,
    /// The statement that calls it.
    pub(super) statement: String,
    pub(super) answer: Answer,
    /// Whether it runs with the rights of its owner.
    pub(super) as_owner: bool,
    pub(super) owner: String,
    pub(super) grants: Vec<Grant>,
    pub(super) warnings: Vec<String>,
}

impl Function {
    /// Refuses a role that lacks a right.
    pub(super) fn allowed(&self) -> Result<(), JobError> {
        let lacking: Vec<&str> = self
            .grants
            .iter()
            .filter(|grant| !grant.held)
            .map(|grant| grant.statement.as_str())
            .collect();
        if lacking.is_empty() {
            return Ok(());
        }
        Err(refuse(&self.signature, "the role may not call it", lacking.join("; ")))
    }
}

#[derive(FromRow)]
#[expect(clippy::struct_excessive_bools, reason = "the columns of a query")]
struct Candidate {
    schema: String,
    name: String,
    kind: String,
    owner: String,
    role: String,
    most: i16,
    least: i16,
    variadic: bool,
    returns_rows: bool,
    is_number: bool,
    as_owner: bool,
    has_path: bool,
    interpreted: bool,
    types: Vec<String>,
    may_use: bool,
    may_execute: bool,
    triggers: bool,
}

const CANDIDATES: &str = "
    SELECT n.nspname::text AS schema, p.proname::text AS name, p.prokind::text AS kind,
           pg_get_userbyid(p.proowner)::text AS owner, current_user::text AS role,
           p.pronargs AS most, p.pronargs - p.pronargdefaults AS least, p.provariadic <> 0 AS variadic,
           p.proretset AS returns_rows,
           p.prorettype IN ('int2'::regtype, 'int4'::regtype, 'int8'::regtype) AS is_number,
           p.prosecdef AS as_owner,
           EXISTS (SELECT FROM unnest(p.proconfig) s WHERE s LIKE 'search_path=%') AS has_path,
           l.lanname NOT IN ('c', 'internal') AS interpreted,
           ARRAY(SELECT format_type(t.type, NULL) FROM unnest(p.proargtypes::oid[]) WITH ORDINALITY AS t (type, place)
                 ORDER BY t.place) AS types,
           has_schema_privilege(n.oid, 'USAGE') AS may_use, has_function_privilege(p.oid, 'EXECUTE') AS may_execute,
           p.prorettype IN ('trigger'::regtype, 'event_trigger'::regtype) AS triggers
    FROM pg_catalog.pg_proc p
    JOIN pg_catalog.pg_namespace n ON n.oid = p.pronamespace
    JOIN pg_catalog.pg_language l ON l.oid = p.prolang
    WHERE p.proname = $1 AND ($2::text IS NULL OR n.nspname = $2)
      AND n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'
    ORDER BY 1, p.oid";

/// Finds the function that the configuration means: without a schema the only one of this name. None is
/// preferred: whoever may create functions in `public` could put one of theirs before the one that is meant.
pub(super) async fn find(connection: &mut PgConnection, call: &Call) -> Result<Function, JobError> {
    let shown = call.function.to_string();
    let mut found: Vec<Candidate> = sqlx::query_as(CANDIDATES)
        .bind(&call.function.name)
        .bind(&call.function.schema)
        .fetch_all(&mut *connection)
        .await
        .map_err(|error| reading(&shown, error.into()))?;
    if found.is_empty() {
        let near = near(connection, call).await.map_err(|error| reading(&shown, error))?;
        let remedy = if near.is_empty() {
            "write the name as the catalog has it, letter case included".to_owned()
        } else {
            format!("did you mean {}?", near.join(" or "))
        };
        return Err(refuse(&shown, "there is no function of this name", remedy));
    }
    let all: Vec<String> = found.iter().map(signature).collect();
    if found
        .windows(2)
        .any(|two| two.first().map(|one| &one.schema) != two.last().map(|one| &one.schema))
    {
        let cause = format!("several could be meant: {}", all.join(", "));
        return Err(refuse(&shown, cause, "write the function with its schema"));
    }
    let given = i16::try_from(call.arguments.len()).unwrap_or(i16::MAX);
    let fitting = |candidate: &Candidate| !candidate.variadic && (candidate.least..=candidate.most).contains(&given);
    found.retain(fitting);
    let candidate = match (found.pop(), found.is_empty()) {
        (Some(only), true) => only,
        (None, _) => {
            let cause = format!("it cannot be called with {given} arguments");
            return Err(refuse(&shown, cause, format!("there is {}", all.join(", "))).about("arguments"));
        }
        (Some(_), false) => {
            let remedy =
                "write the function with its schema, or let a function of another name call the one that is meant";
            return Err(refuse(
                &shown,
                format!("several could be meant: {}", all.join(", ")),
                remedy,
            ));
        }
    };
    check(&candidate, call)?;
    check_path(connection, call).await?;
    check_writers(connection, &candidate, call).await?;
    Ok(function(&candidate, call))
}

/// Refuses what cannot be called in a transaction that counts for one run.
fn check(candidate: &Candidate, call: &Call) -> Result<(), JobError> {
    let (cause, remedy) = match candidate.kind.as_str() {
        "p" => (
            "it is a procedure, which may commit what no fence holds",
            "name a function",
        ),
        "a" | "w" => ("it is an aggregate", "name a function"),
        _ if candidate.triggers => ("only a trigger can call it", "name another function"),
        _ if candidate.returns_rows => (
            "it returns rows, which may tell about people and which nobody would read",
            "name a function that returns void or a number",
        ),
        _ if call.repeat_while_positive && !candidate.is_number => (
            "it returns no whole number, so that nothing tells when to end",
            "leave `repeat_while_positive` out",
        ),
        _ => return Ok(()),
    };
    Err(refuse(&signature(candidate), cause, remedy))
}

async fn check_path(connection: &mut PgConnection, call: &Call) -> Result<(), JobError> {
    let shown = call.function.to_string();
    let missing: Option<String> = sqlx::query_scalar(
        "SELECT wanted FROM unnest($1::text[]) AS wanted
         WHERE NOT EXISTS (SELECT FROM pg_catalog.pg_namespace WHERE nspname = wanted) LIMIT 1",
    )
    .bind(&call.search_path)
    .fetch_optional(connection)
    .await
    .map_err(|error| reading(&shown, error.into()))?;
    match missing {
        None => Ok(()),
        Some(schema) => {
            let cause = format!("there is no schema `{schema}`");
            Err(refuse(&shown, cause, "write the name as the catalog has it").about("search_path"))
        }
    }
}

/// Refuses schemas in which anybody may create what is called, or found by what is called: they would act
/// with the rights of the role.
async fn check_writers(connection: &mut PgConnection, candidate: &Candidate, call: &Call) -> Result<(), JobError> {
    let shown = signature(candidate);
    let mut schemas = call.search_path.clone();
    schemas.push(candidate.schema.clone());
    let open: Option<String> = sqlx::query_scalar(
        "SELECT nspname::text FROM pg_catalog.pg_namespace
         WHERE nspname = ANY($1) AND has_schema_privilege('public', oid, 'CREATE') ORDER BY 1 LIMIT 1",
    )
    .bind(&schemas)
    .fetch_optional(connection)
    .await
    .map_err(|error| reading(&shown, error.into()))?;
    match open {
        None => Ok(()),
        Some(schema) => {
            let cause =
                format!("everybody may create functions in the schema {schema}, and would act with the role's rights");
            let remedy = format!("REVOKE CREATE ON SCHEMA {} FROM PUBLIC", identifier(&schema));
            Err(refuse(&shown, cause, remedy))
        }
    }
}

fn function(candidate: &Candidate, call: &Call) -> Function {
    let name = qualified(&candidate.schema, &candidate.name);
    let role = identifier(&candidate.role);
    let arguments = candidate.types.iter().take(call.arguments.len()).enumerate();
    let arguments: Vec<String> = arguments
        .map(|(place, kind)| format!("${}::text::{kind}", place + 1))
        .collect();
    let called = format!("{name}({})", arguments.join(", "));
    let mut warnings = Vec::new();
    if candidate.interpreted && !candidate.has_path && call.search_path.is_empty() {
        warnings.push(format!(
            "{} sets no search_path: what it names without a schema it will not find; give the schemas in `search_path`",
            signature(candidate)
        ));
    }
    Function {
        signature: signature(candidate),
        statement: if candidate.is_number {
            format!("SELECT {called}::int8")
        } else {
            format!("SELECT {called} IS NULL")
        },
        answer: if candidate.is_number {
            Answer::Number
        } else {
            Answer::Unread
        },
        as_owner: candidate.as_owner,
        owner: candidate.owner.clone(),
        grants: vec![
            Grant::new(
                format!("GRANT USAGE ON SCHEMA {} TO {role}", identifier(&candidate.schema)),
                candidate.may_use,
            ),
            Grant::new(
                format!(
                    "GRANT EXECUTE ON FUNCTION {name}({}) TO {role}",
                    candidate.types.join(", ")
                ),
                candidate.may_execute,
            ),
        ],
        warnings,
    }
}

fn signature(candidate: &Candidate) -> String {
    format!(
        "{}.{}({})",
        candidate.schema,
        candidate.name,
        candidate.types.join(", ")
    )
}

/// Functions of nearly the name.
async fn near(connection: &mut PgConnection, call: &Call) -> Result<Vec<String>, DatabaseError> {
    let all: Vec<(String, String)> = sqlx::query_as(
        "SELECT DISTINCT n.nspname::text, p.proname::text
         FROM pg_catalog.pg_proc p JOIN pg_catalog.pg_namespace n ON n.oid = p.pronamespace
         WHERE p.prokind = 'f' AND n.nspname !~ '^pg_' AND n.nspname NOT IN ('information_schema', 'pgreeve')
         ORDER BY 1, 2 LIMIT 20000",
    )
    .fetch_all(connection)
    .await?;
    let names = nearest(&call.function.name, all.iter().map(|(_, name)| name.as_str()), 3);
    let near = all.iter().filter(|(_, name)| names.contains(&name.as_str())).take(3);
    Ok(near.map(|(schema, name)| format!("{schema}.{name}")).collect())
}

fn refuse(function: &str, cause: impl Into<String>, remedy: impl Into<String>) -> JobError {
    JobError::refused(format!("check {function}"), cause, remedy).about("function")
}

#[expect(clippy::needless_pass_by_value, reason = "it is what `map_err` passes")]
fn reading(function: &str, error: DatabaseError) -> JobError {
    JobError::database(format!("read the catalog about {function}"), &error)
}
