-- How much an index takes when it is fresh: what later sizes are measured against.

CREATE TABLE pgreeve.index_size (
    schema_name text NOT NULL,          -- names, not OIDs: a rebuilt index is a new relation of the same name
    index_name  text NOT NULL,
    rows        double precision NOT NULL CHECK (rows > 0),
    bytes       bigint NOT NULL CHECK (bytes > 0),
    rebuilt     boolean NOT NULL,       -- measured after a rebuild; else the fewest bytes a row that were ever seen
    seen_at     timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp(),
    PRIMARY KEY (schema_name, index_name)
);
