//! What finds a subject's rows, collected before the first of them goes, in one transaction.

use rustix::rand::{GetRandomFlags, getrandom};
use sqlx::{AssertSqlSafe, PgConnection};
use uuid::Uuid;

use super::execute::{Trouble, Worker};
use super::intake::write_status;
use super::plan::ErasurePlan;
use super::proof::Search;
use super::reach::Node;
use super::request::Identifiers;
use super::statement::requests::RequestTable;
use super::statement::{Statements, identifier_source, source};
use crate::job::JobError;
use crate::ledger::erasures::{self, Request};

/// How often the tables of a circle are walked before that is taken for a mistake.
const MOST_ROUNDS: u32 = 10_000;

/// Collects the scope of a request, or adds to it what has come since. Answers with whether the
/// subject's row is there.
pub(super) async fn resolve(worker: &mut Worker<'_>, request: &Request) -> Result<bool, Trouble> {
    let Some(subject) = &request.subject else {
        return Err(Trouble::Permanent(
            "the request's subject is not known any more".to_owned(),
        ));
    };
    let (plan, rule, may_lock) = (worker.plan, worker.rule, worker.may_lock);
    let statements = Statements::new(plan);
    let Some(root) = plan.root() else {
        return Err(Trouble::Permanent("the plan has no subject".to_owned()));
    };
    let sources = own_sources(plan, root);
    let mut transaction = worker.begin_on(request).await?;
    let failed = |error| Trouble::of("collect what finds the subject", &error);
    // Nothing is lost with it but work that is done again: the steps wait for the disk, too.
    sqlx::query("SELECT pg_catalog.set_config('synchronous_commit', 'off', true)")
        .execute(&mut *transaction)
        .await
        .map_err(Trouble::sql("collect what finds the subject"))?;
    erasures::put(
        &mut transaction,
        request.id,
        &sources.each_ref().map(String::as_str),
        &[subject.expose(); 2],
    )
    .await
    .map_err(failed)?;
    let sql = if may_lock {
        statements.lock_root()
    } else {
        statements.find_root()
    };
    let found = match sql {
        Some(sql) => run(&mut transaction, sql, request).await? > 0,
        None => false,
    };
    collect(&mut transaction, plan, request).await?;
    for (place, column) in &plan.identifiers {
        if let Some(sql) = statements.collect_identifiers(*place, column) {
            run(&mut transaction, sql, request).await?;
        }
    }
    if plan.replaces_texts() {
        put_patterns(&mut transaction, &[request.id.0]).await?;
    }
    let pads = mask_pads().map_err(Trouble::Run)?;
    erasures::resolved(&mut transaction, request.id, found, &pads)
        .await
        .map_err(failed)?;
    let word = rule
        .requests
        .as_ref()
        .and_then(|requests| requests.processing.as_deref());
    if let (Some(table), Some(id), Some(word)) = (RequestTable::new(plan, rule), request.source_id.as_deref(), word) {
        write_status(&mut transaction, &table, &[id], word, false)
            .await
            .map_err(failed)?;
    }
    transaction
        .commit()
        .await
        .map_err(Trouble::sql("keep what finds the subject"))?;
    Ok(found)
}

/// What a mask that replaces the identifiers of subjects in texts looks for.
pub(super) async fn put_patterns(transaction: &mut PgConnection, ids: &[Uuid]) -> Result<(), Trouble> {
    let failed = |error| Trouble::of("collect what finds the subject", &error);
    let identifiers = erasures::identifiers(transaction, ids).await.map_err(failed)?;
    erasures::clear(transaction, ids, PATTERN).await.map_err(failed)?;
    let patterns = identifiers.iter().map(pattern);
    let patterns: Vec<(Uuid, String)> = (ids.iter().zip(patterns))
        .filter_map(|(id, pattern)| Some((*id, pattern?)))
        .collect();
    let (ids, patterns): (Vec<Uuid>, Vec<&str>) = patterns.iter().map(|(id, text)| (*id, text.as_str())).unzip();
    erasures::put_all(transaction, &ids, &vec![PATTERN; patterns.len()], &patterns)
        .await
        .map_err(failed)
}

/// The source of the pattern in a request's scope.
const PATTERN: &str = "pattern";

/// Where the subject's own key stands in a scope: as what rows refer to, and as an identifier.
pub(super) fn own_sources(plan: &ErasurePlan, root: &Node) -> [String; 2] {
    [
        source(root, std::slice::from_ref(&plan.key)),
        identifier_source(root, &plan.key),
    ]
}

async fn run(transaction: &mut PgConnection, sql: String, request: &Request) -> Result<u64, Trouble> {
    let done = sqlx::query(AssertSqlSafe(sql))
        .bind(request.id.0)
        .execute(transaction)
        .await
        .map_err(Trouble::sql("collect what finds the subject"))?;
    Ok(done.rows_affected())
}

/// Collects the values that rows in reach are referred to by, from the subject outwards. Tables that
/// refer to each other in a circle are walked until nothing new is found.
async fn collect(transaction: &mut PgConnection, plan: &ErasurePlan, request: &Request) -> Result<(), Trouble> {
    let statements = Statements::new(plan);
    let (sources, straight) = (plan.sources(), plan.is_straight());
    for _ in 0..MOST_ROUNDS {
        let mut new = 0;
        for (parent, keys) in &sources {
            if let Some(sql) = statements.collect(*parent, keys) {
                new += run(&mut *transaction, sql, request).await?;
            }
        }
        if straight || new == 0 {
            return Ok(());
        }
    }
    Err(Trouble::Permanent(
        "the rows in reach of the subject do not end".to_owned(),
    ))
}

/// A regular expression that matches each telling identifier as a whole.
fn pattern(identifiers: &Identifiers) -> Option<String> {
    let mut parts: Vec<String> = identifiers
        .telling()
        .map(|identifier| escaped(identifier.expose()))
        .collect();
    // The longest first: one may be the beginning of another.
    parts.sort_by_key(|part| std::cmp::Reverse(part.len()));
    parts.dedup();
    (!parts.is_empty()).then(|| format!("(?:{})", parts.join("|")))
}

/// A text that stands for itself in a regular expression of PostgreSQL.
fn escaped(text: &str) -> String {
    let mut escaped = String::new();
    for c in text.chars() {
        if !c.is_alphanumeric() && c.is_ascii() {
            escaped.push('\\');
        }
        escaped.push(c);
    }
    escaped
}

/// The two pads of HMAC-SHA256 under a key that is drawn now and kept nowhere else.
pub(super) fn mask_pads() -> Result<[u8; 128], JobError> {
    let mut key = [0_u8; 64];
    let failed = |cause: String| JobError::permanent("draw a key for the masks", cause);
    let drawn = getrandom(&mut key, GetRandomFlags::empty()).map_err(|error| failed(error.to_string()))?;
    if drawn != key.len() {
        return Err(failed("the kernel gave too few random bytes".to_owned()));
    }
    let mut pads = [0_u8; 128];
    let (inner, outer) = pads.split_at_mut(64);
    for ((inner, outer), byte) in inner.iter_mut().zip(outer).zip(key) {
        (*inner, *outer) = (byte ^ 0x36, byte ^ 0x5c);
    }
    Ok(pads)
}

/// What a scan looks for of each request.
pub(super) async fn searches(
    connection: &mut PgConnection,
    plan: &ErasurePlan,
    requests: &[Request],
) -> Result<Vec<Search>, Trouble> {
    let ids: Vec<Uuid> = requests.iter().map(|request| request.id.0).collect();
    let identifiers = erasures::identifiers(connection, &ids)
        .await
        .map_err(|error| Trouble::of("read what finds the subject", &error))?;
    let scope = plan.scan_scope();
    let search = |identifiers| Search {
        scope: scope.clone(),
        identifiers,
    };
    Ok(identifiers.into_iter().map(search).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::erasure::request::Identifier;

    #[test]
    fn a_pattern_matches_telling_identifiers_literally_and_the_longest_first() {
        let of = |values: &[&str]| {
            let identifiers = values.iter().map(|value| Identifier::new("t.c", (*value).to_owned()));
            pattern(&Identifiers(identifiers.collect()))
        };
        assert_eq!(of(&["42", "jane"]), None);
        assert_eq!(
            of(&["jane.d@x.org", "jane.d@x.org.uk"]).unwrap(),
            r"(?:jane\.d\@x\.org\.uk|jane\.d\@x\.org)"
        );
        assert_eq!(of(&["a|b(c)*"]).unwrap(), r"(?:a\|b\(c\)\*)");
        assert_eq!(of(&["Jürgen Groß"]).unwrap(), r"(?:Jürgen\ Groß)");
    }
}
