-- What operators ask of a job or a run while it is on schedule.

-- One row per pause. It covers the slots from "since" until it is lifted, at the latest until
-- "until"; rows stay for a while after, so that a slot that is evaluated late finds its reason.
CREATE TABLE pgreeve.pause (
    job       text NOT NULL,
    since     timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp(),
    until     timestamptz NOT NULL,
    reason    text NOT NULL,
    placed_by text NOT NULL,
    lifted_at timestamptz,
    lifted_by text,
    PRIMARY KEY (job, since),
    CHECK (until > since),
    CHECK ((lifted_at IS NULL) = (lifted_by IS NULL))
);

-- A run that is to end: whoever runs it, on whichever host, looks here every few seconds.
ALTER TABLE pgreeve.run
    ADD COLUMN cancel_requested_at timestamptz,
    ADD COLUMN cancel_requested_by text;
