//! Three proofs: each purge against one naive statement, the backup against its restore, the audit
//! log against its own chain.

use std::sync::Arc;

use sqlx::{AssertSqlSafe, PgConnection};
use tokio_util::sync::CancellationToken;

use super::naive::{NAIVE, Naive};
use super::stage::{DATABASE, DemoError, Stage};
use crate::audit::{self, PublicKey, Verification};
use crate::backup::catalog::{self, Entry, Filter};
use crate::backup::program::Programs;
use crate::backup::restore::{Restore, Restored, restore as restore_backup};
use crate::backup::verify::{Verified, verify_against};
use crate::job::Progress;
use crate::ledger::runs::RunRecord;
use crate::postgres::connect::ConnectTarget;
use crate::store::StoreSettings;

/// Where the backup is restored to.
const RESTORED: &str = "churn_saver_restored";

/// Copies of the tables, on which the naive statements run. They end with the session.
pub(super) struct Reference {
    connection: PgConnection,
}

/// A purge beside its reference.
pub(super) struct Compared {
    pub(super) job: String,
    /// Rows the naive statement deleted or changed.
    pub(super) naive: u64,
    /// Rows that differ afterwards; 0 proves the purge.
    pub(super) differences: i64,
}

impl Reference {
    pub(super) async fn copy(target: &ConnectTarget) -> Result<Self, DemoError> {
        let mut connection = target
            .connect("pgreeve:demo")
            .await
            .map_err(DemoError::of("copy the tables"))?;
        for naive in &NAIVE {
            sqlx::raw_sql(AssertSqlSafe(naive.copy()))
                .execute(&mut connection)
                .await
                .map_err(DemoError::of("copy the tables"))?;
        }
        Ok(Self { connection })
    }

    pub(super) async fn compare(&mut self, runs: &[RunRecord]) -> Result<Vec<Compared>, DemoError> {
        let mut compared = Vec::new();
        for run in runs {
            let Some(naive) = Naive::of(&run.job) else { continue };
            let cutoff = run.report["cutoff"].as_str().ok_or_else(|| {
                DemoError(format!(
                    "{} has no cutoff in its report: {}",
                    run.job,
                    run.reason.as_deref().unwrap_or("no reason")
                ))
            })?;
            let done = sqlx::raw_sql(AssertSqlSafe(naive.apply(cutoff)))
                .execute(&mut self.connection)
                .await
                .map_err(DemoError::of("run the naive statement"))?;
            let differences: i64 = sqlx::query_scalar(AssertSqlSafe(naive.differences()))
                .fetch_one(&mut self.connection)
                .await
                .map_err(DemoError::of("compare with the naive statement"))?;
            compared.push(Compared {
                job: run.job.clone(),
                naive: done.rows_affected(),
                differences,
            });
        }
        Ok(compared)
    }
}

/// A restored backup.
pub(super) struct Proved {
    pub(super) backup: Entry,
    pub(super) restored: Restored,
    pub(super) verified: Verified,
}

pub(super) async fn restore(stage: &Stage) -> Result<Proved, DemoError> {
    let failed = "restore the backup";
    let store = StoreSettings::S3(Box::new(stage.store()))
        .open()
        .await
        .map_err(DemoError::of(failed))?;
    let filter = Filter {
        database: Some(DATABASE),
        job: None,
    };
    let listed = catalog::list(store.as_ref(), filter)
        .await
        .map_err(DemoError::of(failed))?;
    let backup = listed
        .backups
        .into_iter()
        .next_back()
        .ok_or_else(|| DemoError("there is no backup".to_owned()))?;
    let programs = Programs::find().map_err(DemoError::of(failed))?;
    let admin = stage.superuser("postgres");
    let request = Restore {
        store: Arc::clone(&store),
        manifest: &backup.manifest,
        programs: &programs,
        admin: &admin,
        into: RESTORED,
        no_owner: false,
        before_open: None,
        create_roles: false,
        jobs: 1,
        spool_directory: std::env::temp_dir(),
        identities: None,
        progress: Progress::new(),
        stop: CancellationToken::new(),
    };
    let restored = restore_backup(request).await.map_err(DemoError::of(failed))?;
    let verified = verify_against(&programs, &backup.manifest, &stage.superuser(RESTORED))
        .await
        .map_err(DemoError::of(failed))?;
    Ok(Proved {
        backup,
        restored,
        verified,
    })
}

pub(super) fn audit(stage: &Stage) -> Result<Verification, DemoError> {
    let directory = stage.directory().join("state/audit");
    let key = PublicKey::read(&directory.join("public.key")).map_err(DemoError::of("read the public key"))?;
    audit::verify(&directory, Some(&key), &[]).map_err(DemoError::of("verify the audit log"))
}
