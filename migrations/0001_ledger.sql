-- The ledger: what was due, what ran, and what each run did. Everything pgreeve keeps inside a
-- managed database lives in the schema "pgreeve"; the audit log lives outside, on the host.

-- One row. Whoever holds the leader lock raises the epoch; every transaction of a run that writes
-- first takes the row FOR SHARE at its own epoch, so a writer of an older epoch finds no row.
CREATE TABLE pgreeve.leader (
    one       boolean PRIMARY KEY DEFAULT true CHECK (one),
    epoch     bigint NOT NULL,
    instance  text NOT NULL,
    since     timestamptz NOT NULL
);
INSERT INTO pgreeve.leader (epoch, instance, since) VALUES (0, '', pg_catalog.clock_timestamp());

-- How far each job's schedule has been evaluated: slots up to and including this instant have rows.
CREATE TABLE pgreeve.schedule (
    job             text PRIMARY KEY,
    schedule        text NOT NULL,      -- as it was read then: a changed one starts anew
    timezone        text NOT NULL,
    evaluated_until timestamptz NOT NULL
);

-- One row per occurrence that came due, and one per manual run (scheduled_for IS NULL).
CREATE TABLE pgreeve.run (
    run_id        uuid PRIMARY KEY,
    job           text NOT NULL,
    kind          text NOT NULL,
    scheduled_for timestamptz,          -- the slot, as an instant
    timezone      text NOT NULL,        -- the zone its schedule was read in
    adjusted      text CHECK (adjusted IN ('gap', 'fold')),
    trigger       text NOT NULL CHECK (trigger IN ('schedule', 'catch_up', 'manual')),
    actor         text NOT NULL,        -- who asked: the daemon's instance, or an operating system user
    instance      text NOT NULL,
    epoch         bigint NOT NULL,
    policy        text NOT NULL,        -- fingerprint of the job's settings
    attempt       integer NOT NULL DEFAULT 0,
    backend_pid   integer,              -- of the running attempt
    created_at    timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp(),
    started_at    timestamptz,
    finished_at   timestamptz,
    outcome       text CHECK (outcome IN ('succeeded', 'partial', 'gated', 'refused', 'failed', 'timed_out',
                                          'cancelled', 'skipped', 'missed', 'abandoned', 'unknown')),
    reason        text,
    sqlstate      text,
    report        jsonb NOT NULL DEFAULT '{}',
    UNIQUE (job, scheduled_for),
    CHECK ((outcome IS NULL) = (finished_at IS NULL))
);
CREATE INDEX run_open ON pgreeve.run (job) WHERE outcome IS NULL;
CREATE INDEX run_by_time ON pgreeve.run (created_at);

-- Every try of a run, also those that were followed by another.
CREATE TABLE pgreeve.run_attempt (
    run_id      uuid NOT NULL REFERENCES pgreeve.run ON DELETE CASCADE,
    attempt     integer NOT NULL,
    started_at  timestamptz NOT NULL,
    finished_at timestamptz,
    outcome     text,
    reason      text,
    sqlstate    text,
    PRIMARY KEY (run_id, attempt)
);

-- Written in the same transaction as the batch's own work: what stands here is gone from the
-- table, what does not stand here is not, also after a crash.
CREATE TABLE pgreeve.run_batch (
    run_id       uuid NOT NULL REFERENCES pgreeve.run ON DELETE CASCADE,
    seq          integer NOT NULL,
    relation     text NOT NULL,         -- the leaf table, qualified
    rows         bigint NOT NULL,
    low          text NOT NULL,         -- where the batch began and ended: instants or block numbers, never keys
    high         text NOT NULL,
    milliseconds integer NOT NULL,
    committed_at timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp(),
    PRIMARY KEY (run_id, seq)
);

-- Up to where a table's rows are verified to be purged.
CREATE TABLE pgreeve.purge (
    relation     text NOT NULL,
    job          text NOT NULL,
    purged_until timestamptz NOT NULL,
    run_id       uuid NOT NULL,
    PRIMARY KEY (relation, job)
);

-- Destructive policies: a job's settings, by fingerprint, as first planned and as approved.
CREATE TABLE pgreeve.policy (
    policy      text PRIMARY KEY,
    job         text NOT NULL,
    planned_at  timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp(),
    plan        jsonb NOT NULL,
    approved_at timestamptz,
    approved_by text
);

-- Backups under way and made. A journal while one is written (so that what a crash leaves in a
-- store can be swept exactly), and a cache afterwards: the store's manifests are the truth.
CREATE TABLE pgreeve.backup (
    backup_id    text PRIMARY KEY,
    run_id       uuid NOT NULL,
    job          text NOT NULL,
    store        text NOT NULL,         -- the store's name in the configuration
    prefix       text NOT NULL,         -- of all its keys in the store
    state        text NOT NULL CHECK (state IN ('streaming', 'committed', 'aborted', 'swept')),
    started_at   timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp(),
    finished_at  timestamptz,
    bytes        bigint
);
CREATE INDEX backup_streaming ON pgreeve.backup (store) WHERE state = 'streaming';
