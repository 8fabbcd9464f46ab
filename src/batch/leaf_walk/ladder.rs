//! One batch, and what its end means for the next: the size halved, rows of others left out, the walk ended.

use super::{Halt, Walk};
use crate::batch::attempt::{Attempt, Failure, Part, Patience, Slice};
use crate::batch::outside::Trouble;
use crate::batch::pace::Pace;
use crate::batch::statement::Range;
use crate::batch::throttle::Weight;
use crate::batch::transaction;
use crate::job::{Disposition, JobError};
use crate::postgres::catalog::RelationKind;
use crate::postgres::catalog::leaves::Leaf;

/// How often a batch is tried anew, smaller, before rows that others hold are left out.
pub(super) const TRIES: u32 = 3;

/// The state of the ladder of retries within one leaf.
pub(super) struct Ladder {
    pub(super) tries: u32,
    /// Once the ladder was climbed in vain, later batches climb one step only.
    pub(super) patience: u32,
    pub(super) lockable: bool,
    /// The last batch.
    pub(super) last: Weight,
}

/// What to do after one attempt at a batch.
pub(super) enum Next {
    /// The batch is done: go on after its range.
    After(Range),
    /// Try again, smaller.
    Again,
    /// Too many rows of one age.
    Crowded,
}

impl Walk<'_> {
    /// One attempt at a batch, and what it means for the next.
    pub(super) async fn batch(
        &mut self,
        leaf: &Leaf,
        slice: &Slice,
        pace: &mut Pace,
        ladder: &mut Ladder,
    ) -> Result<Next, Halt> {
        self.may_go_on()?;
        let last = std::mem::take(&mut ladder.last);
        let (until, hurry) = (self.limits.until, self.must_hurry());
        self.yielding
            .before_batch(self.context, leaf.relation.oid, last, until, hurry)
            .await;
        self.may_go_on()?;
        let patience = match (ladder.tries < ladder.patience, ladder.lockable) {
            (true, _) => Patience::Wait,
            (false, true) => Patience::Leave,
            (false, false) => Patience::Count,
        };
        let allowed = self.limits.rows.map(|most| most.saturating_sub(self.tally.rows));
        let (relation, holds) = (&leaf.relation, self.held.holds());
        let part = Part {
            statements: self.statements,
            holds,
            leaf: relation,
            slice,
            patience,
            allowed,
        };
        match transaction::run(self.context, &part, self.outside).await {
            Ok(Attempt::Crowded) => Ok(Next::Crowded),
            Ok(Attempt::Done {
                rows,
                locked,
                range,
                weight,
            }) => {
                if patience != Patience::Wait {
                    ladder.patience = 1;
                }
                ladder.tries = 0;
                self.count(rows, locked, weight.elapsed);
                if weight.footprint.waiters > 0 {
                    pace.halve();
                } else {
                    let (elapsed, aim) = self.outside.paced(weight.elapsed, self.yielding.aim());
                    pace.took(elapsed, weight.footprint.wal, aim);
                }
                ladder.last = weight;
                Ok(Next::After(range))
            }
            Err(Failure::HoldsChanged) => {
                self.held.refresh(self.context.session.connection()).await?;
                self.statements.hold(&self.held.holds().standing);
                tracing::info!(
                    batch.relation = %leaf.relation.display(), holds = self.held.ids().len(),
                    "legal holds have changed; going on under those that stand now"
                );
                Ok(Next::Again)
            }
            Err(Failure::TimedOut(_)) if slice.is_guessed() => {
                pace.halve();
                Ok(Next::Again)
            }
            Err(failure) => self.yield_to(failure, leaf, patience, pace, ladder),
        }
    }

    /// Decides whether a failed batch is tried again.
    fn yield_to(
        &self,
        failure: Failure,
        leaf: &Leaf,
        patience: Patience,
        pace: &mut Pace,
        ladder: &mut Ladder,
    ) -> Result<Next, Halt> {
        let operation = format!("run a batch on {}", leaf.relation.display());
        match failure {
            Failure::TimedOut(error) => {
                if pace.halve() {
                    tracing::info!(
                        batch.relation = %leaf.relation.display(), batch.size = pace.size(),
                        "a batch ran into its time limit; trying again with a smaller one"
                    );
                    return Ok(Next::Again);
                }
                // A lock on another server is waited for until the statement ends.
                if leaf.relation.kind == RelationKind::Foreign && patience == Patience::Wait {
                    ladder.tries = ladder.patience;
                    return Ok(Next::Again);
                }
                Err(Halt::Failed(JobError::database(operation, &error).with_remedy(
                    "even the smallest batch takes too long: look for a foreign key without an index or a slow trigger \
                     in `pgreeve plan`, or raise `statement_timeout`",
                )))
            }
            // The last step of the ladder waits for no row: what it meets is a lock of the table.
            Failure::Contended(error) if patience != Patience::Wait && ladder.tries > ladder.patience + TRIES => {
                Err(Halt::Failed(JobError::database(operation, &error)))
            }
            Failure::Contended(error) => {
                ladder.tries += 1;
                pace.halve();
                tracing::info!(
                    batch.relation = %leaf.relation.display(), batch.tries = ladder.tries, %error,
                    "a batch met another session's lock; trying again with a smaller one"
                );
                Ok(Next::Again)
            }
            Failure::TooMany => {
                if pace.halve() {
                    Ok(Next::Again)
                } else {
                    Err(Halt::Brake)
                }
            }
            Failure::Outside(trouble) => self.outside_trouble(trouble, operation, pace),
            // Only the caller can read them anew.
            Failure::HoldsChanged => Ok(Next::Again),
            Failure::Superseded(error) => Err(Halt::Failed(JobError::database(operation, &error.into()))),
            Failure::Unanswered(error) => Err(Halt::Failed(JobError::at_commit(operation, &error))),
            Failure::Other(error) if error.is("57014") && self.context.stop.is_cancelled() => Err(Halt::Cancelled),
            Failure::Other(error) => {
                let remedy = error.is("23503").then_some(
                    "rows of another table still reference these: delete those first, or leave referenced rows out by `where`",
                );
                let error = JobError::database(operation, &error);
                Err(Halt::Failed(match remedy {
                    Some(remedy) => error.with_remedy(remedy),
                    None => error,
                }))
            }
        }
    }

    /// Decides about a batch whose work outside the database failed.
    fn outside_trouble(&self, trouble: Trouble, operation: String, pace: &mut Pace) -> Result<Next, Halt> {
        let error = match trouble {
            Trouble::TooLarge | Trouble::TooMany | Trouble::Slow(_) if pace.halve() => return Ok(Next::Again),
            Trouble::TooMany => return Err(Halt::Brake),
            Trouble::Slow(error) | Trouble::Store(error) => return Err(Halt::Store(error)),
            Trouble::TooLarge => JobError::permanent(
                operation,
                "the rows of the smallest batch are larger than an object of an archive may be",
            )
            .with_remedy("leave `archive` out for this table, or move its large values elsewhere"),
            Trouble::Lost(error) if error.is("57014") && self.context.stop.is_cancelled() => {
                return Err(Halt::Cancelled);
            }
            Trouble::Lost(error) | Trouble::Database(error) => JobError {
                // The session is out of step; another attempt has another one.
                disposition: Disposition::Transient,
                ..JobError::database(operation, &error)
            },
            Trouble::Unequal(cause) => JobError::permanent(operation, cause)
                .with_remedy("nothing of this batch was deleted; correct the trigger or `where`"),
        };
        Err(Halt::Failed(error))
    }
}
