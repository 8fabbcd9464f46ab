//! Ends detaches that were interrupted: until then their rows are hidden and belong to nobody.

use sqlx::AssertSqlSafe;

use super::Gone;
use crate::batch::fenced;
use crate::job::{JobContext, JobError};
use crate::postgres::catalog::leaves::PendingDetach;

/// Finalizes pending detaches. The tables are no partitions any more, and hold their rows: that stays
/// the operator's business. One that cannot be finalized stays pending and is reported as such.
pub(in crate::batch) async fn finalize(context: &mut JobContext, pending: &[PendingDetach], gone: &mut Gone) {
    for detach in pending {
        match once(context, detach).await {
            Ok(()) => {
                tracing::warn!(batch.relation = %detach.partition, "an interrupted detach is final now; its rows are still stored");
                gone.finalized.push(detach.partition.clone());
            }
            Err(error) => {
                tracing::warn!(batch.relation = %detach.partition, %error, "an interrupted detach could not be brought to its end");
            }
        }
    }
}

async fn once(context: &mut JobContext, detach: &PendingDetach) -> Result<(), JobError> {
    let operation = format!("finalize the detach of {}", detach.partition);
    let database = |error: sqlx::Error| JobError::database(operation.clone(), &error.into());
    let fence = context.fence;
    let mut transaction = fenced::begin(context.session.connection(), fence, &operation).await?;
    sqlx::query("SELECT set_config('lock_timeout', '1s', true), set_config('statement_timeout', '15s', true)")
        .execute(&mut *transaction)
        .await
        .map_err(database)?;
    sqlx::query(AssertSqlSafe(detach.remedy.clone()))
        .persistent(false)
        .execute(&mut *transaction)
        .await
        .map_err(database)?;
    fenced::commit(transaction, &operation).await
}
