//! What tells that a server has enough to do without us.

use std::collections::BTreeMap;
use std::time::Duration;

use sqlx::PgConnection;
use sqlx::postgres::types::Oid;

use super::throttle::Throttle;
use crate::postgres::sqlstate::DatabaseError;

/// One thing that is looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Signal {
    /// A standby applies changes late.
    ReplicaLag,
    /// A replication slot retains WAL.
    SlotWal,
    /// WAL waits to be archived.
    ArchiveBacklog,
    /// A vacuum works on the table.
    Autovacuum,
    /// A snapshot keeps dead rows from being removed.
    OldestSnapshot,
    /// Other sessions work.
    Activity,
}

impl Signal {
    /// Its word, in the configuration too.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::ReplicaLag => "replica_lag",
            Self::SlotWal => "slot_wal",
            Self::ArchiveBacklog => "archive_backlog",
            Self::Autovacuum => "autovacuum",
            Self::OldestSnapshot => "oldest_snapshot",
            Self::Activity => "activity",
        }
    }

    /// Whether going on all the same does no more than leave work for later.
    pub(super) fn is_courtesy(self) -> bool {
        matches!(self, Self::Autovacuum | Self::OldestSnapshot)
    }
}

/// What a signal says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum State {
    /// Go on.
    Ok,
    /// It could not be seen, which is no "go on".
    Unknown,
    /// Wait; of the activity: go on slowly.
    Hold,
}

impl State {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Unknown => "unknown",
            Self::Hold => "hold",
        }
    }

    /// Whether a value is beyond its limit; a value that is hidden is unknown.
    fn of<T: PartialOrd>(value: Option<T>, limit: Option<T>, hidden: bool) -> Self {
        let Some(limit) = limit else { return Self::Ok };
        if value.is_some_and(|value| value > limit) {
            Self::Hold
        } else if hidden {
            Self::Unknown
        } else {
            Self::Ok
        }
    }
}

/// All signals at one moment.
pub(super) type Signals = BTreeMap<Signal, State>;

/// Reads the signals, and remembers what changes are measured against.
#[derive(Debug, Default)]
pub(super) struct Sampler {
    /// The database's time at the last sample, and its transactions so far.
    last: Option<(String, i64)>,
}

/// Lags and sizes are shown to members of `pg_read_all_stats` only; for anyone else they are null in
/// rows that are there. `state` is never null in a row that may be read.
const SAMPLE: &str = "
    SELECT clock_timestamp()::text,
           extract(epoch FROM (SELECT max(replay_lag) FROM pg_catalog.pg_stat_replication))::float8,
           EXISTS (SELECT FROM pg_catalog.pg_stat_replication WHERE state IS NULL),
           (SELECT max(pg_catalog.pg_wal_lsn_diff(pg_catalog.pg_current_wal_insert_lsn(), restart_lsn))::float8
            FROM pg_catalog.pg_replication_slots),
           EXISTS (SELECT FROM pg_catalog.pg_stat_progress_vacuum WHERE relid = $1),
           EXISTS (SELECT FROM pg_catalog.pg_stat_progress_vacuum WHERE relid IS NULL),
           extract(epoch FROM max(clock_timestamp() - xact_start)
                                  FILTER (WHERE backend_xmin IS NOT NULL AND pid <> pg_backend_pid()))::float8,
           count(*) FILTER (WHERE backend_type IS NULL) > 0,
           count(*) FILTER (WHERE backend_type = 'client backend' AND application_name NOT LIKE 'pgreeve:%'
                                  AND (state = 'active' OR state_change > coalesce($2::text::timestamptz, clock_timestamp() - interval '1 s'))),
           (SELECT coalesce(sum(xact_commit + xact_rollback), 0)::int8 FROM pg_catalog.pg_stat_database),
           current_setting('archive_mode') <> 'off'
               AND pg_catalog.has_function_privilege('pg_catalog.pg_ls_archive_statusdir()', 'EXECUTE'),
           current_setting('archive_mode') <> 'off'
    FROM pg_catalog.pg_stat_activity";

type SampleRow = (
    String,
    Option<f64>,
    bool,
    Option<f64>,
    bool,
    bool,
    Option<f64>,
    bool,
    i64,
    i64,
    bool,
    bool,
);

/// So many transactions of others since the last sample are no activity: where sessions are hidden,
/// our own cannot be told from theirs.
const OWN_TRANSACTIONS: i64 = 20;

impl Sampler {
    /// Reads the signals; again only outside of the transaction of the time before, which shows what it
    /// has seen.
    pub(super) async fn read(
        &mut self,
        connection: &mut PgConnection,
        throttle: &Throttle,
        leaf: Oid,
    ) -> Result<Signals, DatabaseError> {
        let since = self.last.as_ref().map(|(at, _)| at.as_str());
        let row: SampleRow = sqlx::query_as(SAMPLE)
            .bind(leaf)
            .bind(since)
            .fetch_one(&mut *connection)
            .await?;
        let (
            now,
            lag,
            lag_hidden,
            slot,
            vacuum,
            vacuum_hidden,
            snapshot,
            hidden,
            others,
            transactions,
            listable,
            archiving,
        ) = row;
        let seconds = |limit: Option<Duration>| limit.map(|limit| limit.as_secs_f64());
        #[expect(clippy::cast_precision_loss, reason = "a comparison of sizes")]
        let slot_limit = throttle.slot_wal.map(|bytes| bytes as f64);
        let backlog = if listable {
            archive_backlog(connection).await?
        } else {
            None
        };
        let archive = match throttle.archive_backlog {
            Some(limit) if archiving => State::of(backlog, Some(limit), backlog.is_none()),
            _ => State::Ok,
        };
        let vacuuming = throttle.autovacuum.then_some(0_u8);
        // Where sessions are hidden, transactions since the last sample tell.
        let more = self.last.as_ref().map(|(_, before)| transactions - before);
        let activity = if !throttle.yield_to_others {
            State::Ok
        } else if others > 0 || (hidden && more.is_some_and(|more| more > OWN_TRANSACTIONS)) {
            State::Hold
        } else if hidden {
            State::Unknown
        } else {
            State::Ok
        };
        self.last = Some((now, transactions));
        Ok(Signals::from([
            (
                Signal::ReplicaLag,
                State::of(lag, seconds(throttle.replica_lag), lag_hidden),
            ),
            (Signal::SlotWal, State::of(slot, slot_limit, false)),
            (Signal::ArchiveBacklog, archive),
            (
                Signal::Autovacuum,
                State::of(Some(u8::from(vacuum)), vacuuming, vacuum_hidden),
            ),
            (
                Signal::OldestSnapshot,
                State::of(snapshot, seconds(throttle.oldest_snapshot), hidden),
            ),
            (Signal::Activity, activity),
        ]))
    }
}

/// How many files wait to be archived.
async fn archive_backlog(connection: &mut PgConnection) -> Result<Option<u64>, DatabaseError> {
    let files: i64 =
        sqlx::query_scalar("SELECT count(*) FROM pg_catalog.pg_ls_archive_statusdir() WHERE name LIKE '%.ready'")
            .fetch_one(connection)
            .await?;
    Ok(Some(files.unsigned_abs()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_hidden_is_unknown_and_never_ok() {
        assert_eq!(State::of(Some(2), Some(1), true), State::Hold);
        assert_eq!(State::of(Some(1), Some(1), false), State::Ok);
        assert_eq!(State::of(None::<u8>, Some(1), true), State::Unknown);
        assert_eq!(State::of(None::<u8>, Some(1), false), State::Ok);
        assert_eq!(State::of(Some(2), None, true), State::Ok);
    }
}
