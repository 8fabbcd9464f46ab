//! Several requests, one after the other, in one exchange with the server.
//!
//! A script is an anonymous block. It holds the statements that a request by itself would send, and runs
//! them for each request in turn, in a subtransaction of its own: what comes out is what would come out
//! of one request after the other, also where two people share a row. Whatever goes wrong with a request
//! takes back all of that request and nothing else. A script answers by what it has written; a request of
//! which nothing stands there is then done by itself, which says what went wrong.

use std::time::Duration;

use uuid::Uuid;

use super::scope::Scope;
use super::{Restraint, Statements};
use crate::erasure::plan::{ErasurePlan, Step, Work};
use crate::ledger::erasures;
use crate::postgres::quote::literal;
use crate::values::RunId;

/// The request whose turn it is. A column of the same name makes the server refuse the script, not take
/// one for the other.
const REQUEST: &str = "pgreeve_request";

/// When a script ends before its last request: locks are held meanwhile.
#[derive(Debug, Clone, Copy)]
pub(in crate::erasure) struct Limits {
    /// How many rows it may be about.
    pub(in crate::erasure) rows: u64,
    /// How long it may take, but for the request that is under way.
    pub(in crate::erasure) time: Duration,
}

/// Builds the scripts of one plan.
#[derive(Debug, Clone, Copy)]
pub(in crate::erasure) struct Scripts<'a> {
    statements: Statements<'a>,
}

impl<'a> Scripts<'a> {
    /// The scripts of a plan.
    pub(in crate::erasure) fn new(plan: &'a ErasurePlan) -> Self {
        let scope = Scope(REQUEST);
        Self {
            statements: Statements { plan, scope },
        }
    }

    /// Collects the scopes of requests and says so in their rows. The subject's key stands in each scope
    /// already.
    pub(in crate::erasure) fn resolve(self, requests: &[Uuid], lock: bool, limits: Limits) -> Option<String> {
        let statements = self.statements;
        let root = if lock {
            statements.lock_root()?
        } else {
            statements.find_root()?
        };
        let collected: Option<String> = (statements.plan.sources().into_iter())
            .map(|(place, keys)| {
                let insert = statements.collect(place, keys)?;
                Some(format!(
                    "{insert};\nGET DIAGNOSTICS pgreeve_rows = ROW_COUNT;\npgreeve_new := pgreeve_new + pgreeve_rows;\n"
                ))
            })
            .collect();
        let again = if statements.plan.is_straight() {
            "EXIT;"
        } else {
            "EXIT WHEN pgreeve_new = 0;"
        };
        let identifiers: Option<String> = (statements.plan.identifiers.iter())
            .map(|(place, column)| Some(format!("{};\n", statements.collect_identifiers(*place, column)?)))
            .collect();
        let body = format!(
            "PERFORM {root};
             pgreeve_found := FOUND;
             LOOP
                 pgreeve_new := 0;
                 {}{again}
                 IF {too_long} THEN
                     RAISE 'the rows in reach do not end soon';
                 END IF;
             END LOOP;
             {}{};",
            collected?,
            identifiers?,
            erasures::resolved_in(REQUEST, "pgreeve_found"),
            too_long = is_over(limits.time.saturating_mul(2)),
            root = root.strip_prefix("SELECT ")?,
        );
        let variables = "pgreeve_found boolean; pgreeve_new bigint; pgreeve_rows bigint;";
        Some(each(requests, variables, &body, limits))
    }

    /// Does all steps of requests that have few rows, writes a row for each, and makes sure that nothing
    /// is left. Legal holds must stand nowhere, and the rows must own no objects.
    pub(in crate::erasure) fn steps(self, requests: &[Uuid], run: RunId, lock: bool, limits: Limits) -> Option<String> {
        let (statements, plan) = (self.statements, self.statements.plan);
        let changing = || plan.steps().filter(|step| step.work != Work::Keep);
        let due = statements.counts(changing(), limits.rows.saturating_add(1))?;
        let left = statements.counts(changing(), 1)?;
        let lock = match statements.lock_root() {
            Some(root) if lock => format!("PERFORM {};", root.strip_prefix("SELECT ")?),
            _ => String::new(),
        };
        let stages: Option<String> = plan.stages.iter().map(|stage| self.stage(stage)).collect();
        let rows: Vec<(i32, String, &str)> = (plan.steps())
            .map(|step| {
                let table = plan.reach.nodes.get(step.node).map(|node| node.relation.display());
                (step.number, table.unwrap_or_default(), step.work.as_str())
            })
            .collect();
        let body = format!(
            "{lock}
             pgreeve_due := {};
             CONTINUE WHEN pgreeve_due > {most};
             EXIT WHEN pgreeve_sum + pgreeve_due > {most};
             pgreeve_rows := '{{}}';
             {}{};
             IF {} > 0 THEN
                 RAISE 'rows of the subject have come while it was erased';
             END IF;
             pgreeve_sum := pgreeve_sum + pgreeve_due;",
            sum(&due),
            stages?,
            erasures::steps_done_in(REQUEST, run, &rows, "pgreeve_rows"),
            sum(&left),
            most = limits.rows,
        );
        let variables = "pgreeve_due bigint; pgreeve_sum bigint := 0; pgreeve_rows bigint[]; pgreeve_counts bigint[];";
        Some(each(requests, variables, &body, limits))
    }

    /// One stage; its counts are put behind those of the stages before.
    fn stage(self, stage: &[Step]) -> Option<String> {
        let parts: Vec<(&Step, Restraint)> = stage.iter().map(|step| (step, Restraint::default())).collect();
        Some(format!(
            "{} INTO pgreeve_counts;\npgreeve_rows := pgreeve_rows || pgreeve_counts;\n",
            self.statements.apply_together(&parts)?
        ))
    }
}

/// A block that does the same for each request, in its own subtransaction.
fn each(requests: &[Uuid], variables: &str, body: &str, limits: Limits) -> String {
    let ids: Vec<String> = requests.iter().map(Uuid::to_string).collect();
    let block = format!(
        "DECLARE
             {REQUEST} uuid; {variables}
         BEGIN
             FOREACH {REQUEST} IN ARRAY '{{{}}}'::uuid[] LOOP
                 EXIT WHEN {};
                 BEGIN
                     {body}
                 EXCEPTION WHEN OTHERS THEN
                     NULL; -- no row of it stays: it is done by itself
                 END;
             END LOOP;
         END",
        ids.join(","),
        is_over(limits.time),
    );
    format!("DO LANGUAGE plpgsql {}", literal(&block))
}

/// Whether a script has run for so long.
fn is_over(time: Duration) -> String {
    format!(
        "pg_catalog.clock_timestamp() > pg_catalog.statement_timestamp() + interval '{} milliseconds'",
        time.as_millis()
    )
}

/// The sum of an array that a statement answers with.
fn sum(counts: &str) -> String {
    format!("(SELECT coalesce(sum(c.rows), 0) FROM pg_catalog.unnest(({counts})) AS c (rows))")
}
