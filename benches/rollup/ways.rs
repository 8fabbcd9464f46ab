//! A rollup of one of the tables, run as the program runs it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::future::BoxFuture;
use pgreeve::job::{Job, JobContext, Outcome, Progress, RecordError, Recorder};
use pgreeve::jobs::rollup::RollupJob;
use pgreeve::ledger::leader::Fence;
use pgreeve::postgres::connect::{Session, SessionSettings};
use pgreeve::rollup::measure::Measure;
use pgreeve::rollup::spec::{Form, Mode, Source};
use pgreeve::rollup::{Rollup, init};
use pgreeve::values::{JobName, RunId};
use sqlx::Connection;
use tokio_util::sync::CancellationToken;

use crate::ground::{Ground, QUERY};

/// A rollup that is kept.
pub(crate) struct Kept {
    rollup: Rollup,
    job: JobName,
    table: &'static str,
    mode: Mode,
}

impl Kept {
    /// Makes the rollup and computes what is there.
    pub(crate) async fn fill(ground: &Ground, table: &'static str, mode: Mode) -> Self {
        let job = match mode {
            Mode::Recompute => format!("{table}-recompute"),
            Mode::Exact => format!("{table}-exact"),
        };
        let measure = |name, expression| Measure::new(name, expression).unwrap();
        let kept = Self {
            rollup: Rollup {
                bucket: "1h".parse().unwrap(),
                timezone: None,
                target: job.replace('-', "_").parse().unwrap(),
                lateness: "10m".parse().unwrap(),
                form: Form::Source(Source {
                    source: table.parse().unwrap(),
                    time_column: "created_at".to_owned(),
                    column_timezone: None,
                    bucket_column: "bucket".to_owned(),
                    group_by: vec!["company_id".to_owned(), "type".to_owned()],
                    measures: vec![measure("events", "count(*)"), measure("total", "sum(amount)")],
                    predicate: None,
                    mode,
                }),
            },
            job: job.parse().unwrap(),
            table,
            mode,
        };
        let mut connection = ground.target.connect("bench").await.unwrap();
        let mut transaction = connection.begin().await.unwrap();
        init::init(&mut transaction, &kept.rollup, &kept.job, "bench", false)
            .await
            .unwrap();
        transaction.commit().await.unwrap();
        connection.close().await.unwrap();
        kept.refresh(ground).await;
        ground.execute(&format!("ANALYZE {}", kept.rollup.target)).await;
        kept
    }

    pub(crate) fn name(&self) -> String {
        let what = if self.table == "recent" {
            ", a tenth of the history"
        } else {
            ""
        };
        format!("pgreeve, {}{what}", self.rollup.mode())
    }

    /// Puts the ledger back to where a run a day ago left it: the seal, or what writers noted since.
    pub(crate) async fn as_it_was_a_day_ago(&self, ground: &Ground) {
        let job = &self.job;
        let sql = match self.mode {
            Mode::Recompute => {
                format!("UPDATE pgreeve.rollup SET sealed_until = (SELECT at FROM day_ago) WHERE job = '{job}'")
            }
            Mode::Exact => format!(
                "DELETE FROM pgreeve.rollup_dirty WHERE job = '{job}';
                 INSERT INTO pgreeve.rollup_dirty SELECT DISTINCT '{job}', date_trunc('hour', created_at, 'UTC')
                     FROM {} WHERE created_at >= (SELECT at FROM day_ago)",
                self.table
            ),
        };
        ground.execute(&sql).await;
    }

    /// Brings it up to date; answers with the seconds, from the plan to the report.
    pub(crate) async fn refresh(&self, ground: &Ground) -> f64 {
        let run = RunId::new();
        let mut connection = ground.target.connect("bench").await.unwrap();
        sqlx::query(
            "INSERT INTO pgreeve.run (run_id, job, kind, timezone, trigger, actor, instance, epoch, policy, attempt, started_at)
             VALUES ($1, $2, 'rollup', 'UTC', 'manual', 'bench', 'bench', 0, 'bench', 1, now())",
        )
        .bind(run.0)
        .bind(self.job.as_str())
        .execute(&mut connection)
        .await
        .unwrap();
        connection.close().await.unwrap();
        let (lock, statement) = (Duration::from_secs(2), Duration::from_mins(10));
        let settings = SessionSettings::run(format!("pgreeve:{}:{run}", self.job), lock, statement);
        let mut context = JobContext {
            run,
            attempt: 1,
            job: self.job.clone(),
            database: "bench".to_owned(),
            target: ground.target.clone(),
            session: Session::open(&ground.target, &settings).await.unwrap(),
            fence: Fence { epoch: 0 },
            stop: CancellationToken::new(),
            deadline: Instant::now() + Duration::from_hours(1),
            recorder: Arc::new(Nowhere),
            progress: Progress::new(),
        };
        let job = RollupJob::new(self.rollup.clone());
        let started = Instant::now();
        let plan = job.plan(&mut context).await.unwrap();
        let report = plan.execute(&mut context).await.unwrap();
        let seconds = started.elapsed().as_secs_f64();
        assert_eq!(report.outcome, Outcome::Succeeded, "{report:?}");
        context.session.close().await;
        seconds
    }

    /// Fails the benchmark unless the rollup holds what its query says.
    pub(crate) async fn assert_equals_its_query(&self, ground: &Ground) {
        let query = QUERY.replace("{table}", self.table);
        let kept = format!(
            "SELECT bucket, company_id, type, events, total FROM {}",
            self.rollup.target
        );
        let differ = ground
            .count(format!(
                "SELECT count(*) FROM (({query} EXCEPT ALL {kept}) UNION ALL ({kept} EXCEPT ALL {query})) AS d"
            ))
            .await;
        assert_eq!(differ, 0, "{}", self.name());
    }
}

struct Nowhere;

impl Recorder for Nowhere {
    fn record<'a>(&'a self, _: &'static str, _: serde_json::Value) -> BoxFuture<'a, Result<(), RecordError>> {
        Box::pin(std::future::ready(Ok(())))
    }
}
