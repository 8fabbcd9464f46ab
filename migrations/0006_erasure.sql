-- Erasure of data subjects. What is needed to find a subject (its key, its identifiers) stands here
-- only while the request is open; what stays are keyed digests, counts and times.

-- One row per request, whoever asked. The row is the lease, too.
CREATE TABLE pgreeve.erasure_request (
    request_id        uuid PRIMARY KEY,
    job               text NOT NULL,
    source            text NOT NULL CHECK (source IN ('table', 'operator')),
    source_id         text,                 -- the key of the application's own row, where that asked
    requested_by      text NOT NULL,        -- an operating system user, or the requests' table
    subject_key       text,                 -- while open; null afterwards
    subject_token     text NOT NULL,        -- HMAC-SHA256 of the subject, hexadecimal
    token_key         text NOT NULL,        -- which key made the token; the key is on the host
    state             text NOT NULL DEFAULT 'received' CHECK (state IN (
                          'received', 'awaiting_identity', 'planned', 'approved', 'processing', 'verifying',
                          'completed', 'completed_with_exceptions', 'on_hold', 'retry', 'failed', 'rejected',
                          'canceled')),
    reason            text,                 -- of the state; no personal data
    policy            text,                 -- fingerprint of the job's settings that it ran under
    schema_digest     text,                 -- of the part of the schema that was in reach
    found             boolean,              -- whether the subject's row was there when the work began

    received_at       timestamptz NOT NULL,
    due_at            timestamptz NOT NULL, -- one calendar month later, or as extended
    warned            smallint NOT NULL DEFAULT 0 CHECK (warned IN (0, 50, 80, 100)), -- per cent of the time
    extended_months   smallint NOT NULL DEFAULT 0 CHECK (extended_months BETWEEN 0 AND 2),
    extended_at       timestamptz,
    extended_by       text,
    extension_reason  text,

    attempt           integer NOT NULL DEFAULT 0,
    not_before        timestamptz NOT NULL DEFAULT '-infinity',
    worker            text,                 -- server process and its start
    lease_until       timestamptz,
    run_id            uuid,                 -- the run that worked on it last
    mask_key          bytea,                -- of this request's tokens in masks; null once it is over
    resolved_at       timestamptz,          -- its scope is known
    started_at        timestamptz,          -- before the first row went
    finished_at       timestamptz,

    remembered_at     timestamptz,          -- it stands in the ledger on the host
    audit_from        bigint,               -- its records in the audit log
    audit_to          bigint,
    residue           jsonb,                -- of the first scan: tables, columns, counts
    scanned_at        timestamptz,
    rescan_due_at     timestamptz,          -- when the second scan is due
    rescan_share      bytea,                -- half of what the second scan looks for; random by itself; null once done
    rescan            jsonb,
    rescanned_at      timestamptz,
    certificate       jsonb,
    certificate_sha256 text,
    CHECK ((state IN ('completed', 'completed_with_exceptions', 'failed', 'rejected', 'canceled')) = (finished_at IS NOT NULL)),
    CHECK (subject_key IS NOT NULL OR finished_at IS NOT NULL)
);
-- One open request for each row of the application; a row that is set to pending again is a new one.
CREATE UNIQUE INDEX erasure_request_source ON pgreeve.erasure_request (job, source_id) WHERE finished_at IS NULL;
CREATE INDEX erasure_request_open ON pgreeve.erasure_request (job, due_at) WHERE finished_at IS NULL;
CREATE INDEX erasure_request_token ON pgreeve.erasure_request (subject_token);
CREATE INDEX erasure_request_rescan ON pgreeve.erasure_request (rescan_due_at)
    WHERE rescan_due_at IS NOT NULL AND rescanned_at IS NULL;

-- One row per step of a request, written in the transaction that did the step: what stands here is
-- gone, what does not stand here is not, also after a crash.
CREATE TABLE pgreeve.erasure_step (
    request_id   uuid NOT NULL REFERENCES pgreeve.erasure_request ON DELETE CASCADE,
    step         integer NOT NULL,
    relation     text NOT NULL,             -- schema.table
    action       text NOT NULL CHECK (action IN ('delete', 'mask', 'unlink', 'keep')),
    state        text NOT NULL CHECK (state IN ('open', 'done', 'held')),
    rows         bigint NOT NULL DEFAULT 0,
    held         bigint NOT NULL DEFAULT 0, -- rows that a hold keeps, or that such rows reference
    holds        uuid[] NOT NULL DEFAULT '{}',
    run_id       uuid NOT NULL,
    committed_at timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp(),
    PRIMARY KEY (request_id, step)
);

-- What finds a subject's rows, while the request is open: the values that its rows are referenced
-- by, and its identifiers. Emptied in the transaction that closes the request.
CREATE TABLE pgreeve.erasure_scope (
    request_id uuid NOT NULL REFERENCES pgreeve.erasure_request ON DELETE CASCADE,
    source     text NOT NULL,               -- 'schema.table (columns)', 'identifier COLUMN' or 'token COLUMN'
    value      text[] NOT NULL
);
CREATE INDEX erasure_scope_source ON pgreeve.erasure_scope (request_id, source);

-- What must happen outside the database: recipients to tell, objects to delete. The key of an object
-- may be about a person; it is emptied once the object is gone.
CREATE TABLE pgreeve.erasure_outbox (
    request_id      uuid NOT NULL REFERENCES pgreeve.erasure_request ON DELETE CASCADE,
    seq             integer NOT NULL,
    kind            text NOT NULL CHECK (kind IN ('notify', 'object')),
    target          text NOT NULL,          -- the recipient's or the store's name in the configuration
    object_key      text,
    idempotency_key text NOT NULL UNIQUE,
    state           text NOT NULL DEFAULT 'pending' CHECK (state IN ('pending', 'sent', 'acknowledged', 'failed')),
    attempts        integer NOT NULL DEFAULT 0,
    not_before      timestamptz NOT NULL DEFAULT '-infinity',
    sent_at         timestamptz,
    acknowledged_at timestamptz,
    reason          text,
    PRIMARY KEY (request_id, seq)
);
CREATE INDEX erasure_outbox_pending ON pgreeve.erasure_outbox (not_before) WHERE state = 'pending';

-- Masks of JSON. A key of an object that is listed becomes null: everywhere (identifiers is null), or
-- in objects that name the subject and below them. An object names the subject when one of its own
-- members is one of the identifiers.
CREATE FUNCTION pgreeve.erasure_json_scrub(document jsonb, keys text[], identifiers text[]) RETURNS jsonb
LANGUAGE plpgsql IMMUTABLE SET search_path = pg_catalog AS $$
DECLARE
    inside text[] := identifiers;
    result jsonb;
BEGIN
    CASE jsonb_typeof(document)
    WHEN 'object' THEN
        IF identifiers IS NOT NULL AND EXISTS (
            SELECT FROM jsonb_each_text(document) AS member
            WHERE lower(member.value) = ANY (SELECT lower(i) FROM unnest(identifiers) AS i)
        ) THEN
            inside := NULL;
        END IF;
        SELECT coalesce(jsonb_object_agg(member.key,
                   CASE WHEN inside IS NULL AND member.key = ANY (keys) THEN 'null'::jsonb
                        ELSE pgreeve.erasure_json_scrub(member.value, keys, inside) END), '{}')
        INTO result FROM jsonb_each(document) AS member;
        RETURN result;
    WHEN 'array' THEN
        SELECT coalesce(jsonb_agg(pgreeve.erasure_json_scrub(item.value, keys, identifiers) ORDER BY item.place), '[]')
        INTO result FROM jsonb_array_elements(document) WITH ORDINALITY AS item (value, place);
        RETURN result;
    ELSE
        RETURN document;
    END CASE;
END
$$;

-- Every text inside a document, member names left as they are, with what matches the pattern replaced;
-- a number that is an identifier as a whole becomes null.
CREATE FUNCTION pgreeve.erasure_json_replace(document jsonb, pattern text, identifiers text[]) RETURNS jsonb
LANGUAGE plpgsql IMMUTABLE SET search_path = pg_catalog AS $$
DECLARE
    result jsonb;
BEGIN
    CASE jsonb_typeof(document)
    WHEN 'object' THEN
        SELECT coalesce(jsonb_object_agg(member.key,
                   pgreeve.erasure_json_replace(member.value, pattern, identifiers)), '{}')
        INTO result FROM jsonb_each(document) AS member;
        RETURN result;
    WHEN 'array' THEN
        SELECT coalesce(jsonb_agg(pgreeve.erasure_json_replace(item.value, pattern, identifiers) ORDER BY item.place), '[]')
        INTO result FROM jsonb_array_elements(document) WITH ORDINALITY AS item (value, place);
        RETURN result;
    WHEN 'string' THEN
        RETURN to_jsonb(regexp_replace(document #>> '{}', pattern, '[erased]', 'gi'));
    WHEN 'number' THEN
        RETURN CASE WHEN document #>> '{}' = ANY (identifiers) THEN 'null'::jsonb ELSE document END;
    ELSE
        RETURN document;
    END CASE;
END
$$;
