-- Legal holds: rows that no run deletes or changes while the hold stands. A hold is never deleted,
-- only released.

CREATE TABLE pgreeve.hold (
    hold_id        uuid PRIMARY KEY,
    table_oid      oid NOT NULL,         -- the table as it was found
    table_name     text NOT NULL,        -- schema.table then: after a restore the OID is another one
    predicate      text NOT NULL,        -- which rows, in SQL
    reason         text NOT NULL,
    placed_at      timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp(),
    placed_by      text NOT NULL,
    released_at    timestamptz,
    released_by    text,
    release_reason text,
    CHECK ((released_at IS NULL) = (released_by IS NULL) AND (released_at IS NULL) = (release_reason IS NULL))
);
CREATE INDEX hold_active ON pgreeve.hold (table_oid) WHERE released_at IS NULL;
