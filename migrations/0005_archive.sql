-- Archives of deleted rows. A row of archive_object is written in the transaction that deletes the
-- rows it tells of: an object of a run that does not stand here holds rows that are still in their
-- table, and is removed before the job's next run begins.
CREATE TABLE pgreeve.archive (
    run_id      uuid PRIMARY KEY,
    job         text NOT NULL,
    store       text NOT NULL,          -- the store's name in the configuration
    prefix      text NOT NULL,          -- of all its keys in the store
    relation    text NOT NULL,          -- the table of the rule, qualified
    table_oid   oid NOT NULL,           -- the same, should it be renamed
    cutoff      timestamptz NOT NULL,
    format      text NOT NULL,
    compress    text NOT NULL,
    state       text NOT NULL CHECK (state IN ('open', 'closed', 'expired')),
    started_at  timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp(),
    finished_at timestamptz
);
CREATE INDEX archive_open ON pgreeve.archive (job) WHERE state = 'open';

CREATE TABLE pgreeve.archive_object (
    run_id       uuid NOT NULL REFERENCES pgreeve.archive ON DELETE CASCADE,
    seq          integer NOT NULL,
    key          text NOT NULL,
    relation     text NOT NULL,         -- the leaf table, qualified
    columns      text[] NOT NULL,
    oldest       timestamptz NOT NULL,  -- the times of its rows
    youngest     timestamptz NOT NULL,
    rows         bigint NOT NULL,
    bytes        bigint NOT NULL,       -- of the object
    sha256       text NOT NULL,
    bytes_raw    bigint NOT NULL,       -- before it was packed
    sha256_raw   text NOT NULL,
    committed_at timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp(),
    PRIMARY KEY (run_id, seq)
);
