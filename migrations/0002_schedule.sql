-- What the ledger has forgotten: one row for each day on which rows past their keep period were
-- looked for, also when there were none. It is forgotten itself in the same way.
CREATE TABLE pgreeve.forgotten (
    forgotten_at timestamptz PRIMARY KEY DEFAULT pg_catalog.clock_timestamp(),
    cutoff       timestamptz NOT NULL,  -- runs made before it went, with their attempts and batches
    runs         bigint NOT NULL,
    instance     text NOT NULL,
    epoch        bigint NOT NULL
);

-- The newest run of a job, and a job's history.
CREATE INDEX run_of_job ON pgreeve.run (job, created_at);
