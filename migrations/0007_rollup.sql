-- Rollups: what each keeps, how far it is final, and how far its source is purged.

CREATE TABLE pgreeve.rollup (
    job          text PRIMARY KEY,
    definition   text NOT NULL,         -- digest of what is computed; another one must be adopted first
    mode         text NOT NULL CHECK (mode IN ('recompute', 'exact', 'query')),
    sources      oid[] NOT NULL,        -- what it reads, as it was found
    source_names text[] NOT NULL,       -- schema.table then: after a restore the OIDs are other ones
    time_column  text,                  -- of the source
    target       text NOT NULL,
    bucket       text NOT NULL,
    timezone     text NOT NULL,
    created_at   timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp(),
    created_by   text NOT NULL,
    filled       boolean NOT NULL DEFAULT false,    -- what the source held at first is in the target
    sealed_until timestamptz,           -- buckets before are final, and no run computes them again
    purged_until timestamptz,           -- rows before may be gone from the source
    refreshed_at timestamptz,
    run_id       uuid
);

-- Buckets that writers changed, in the exact mode. One row for each statement and hour, or bucket
-- where that is shorter; no key, so that writers never wait for each other here.
CREATE TABLE pgreeve.rollup_dirty (
    job  text NOT NULL,
    cell timestamptz NOT NULL           -- its beginning
) WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000, autovacuum_vacuum_insert_scale_factor = 0);
CREATE INDEX rollup_dirty_of_job ON pgreeve.rollup_dirty (job, cell);

-- A purge that was begun may have deleted rows before it is verified.
ALTER TABLE pgreeve.purge ADD COLUMN begun_until timestamptz;
