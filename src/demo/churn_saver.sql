-- The sample database: a multi-tenant service that wins back customers whose payments fail.
-- Roles, tables, row security and grants. Keys between tables and indexes are in
-- churn_saver_keys.sql: they are made after the rows, which is several times as fast.

-- Roles belong to the whole server: one that exists already is left as it is. None has a password.
-- Two builds at once may both find a role missing, so a duplicate is no error.
DO $$
DECLARE
    statement text;
    statements constant text[] := ARRAY[
        -- Owns the schema and cannot log in: nothing runs as the owner from day to day.
        'CREATE ROLE migration_role NOLOGIN',
        'CREATE ROLE app_role LOGIN',
        'CREATE ROLE analytics_readonly NOLOGIN',
        -- BYPASSRLS: row security would hide due rows from a purge and let it report success.
        -- pg_read_all_data: a backup must read every table, also those made later.
        'CREATE ROLE pgreeve LOGIN BYPASSRLS IN ROLE pg_read_all_data'
    ];
BEGIN
    FOREACH statement IN ARRAY statements LOOP
        BEGIN
            IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = split_part(statement, ' ', 3)) THEN
                EXECUTE statement;
            END IF;
        EXCEPTION WHEN duplicate_object OR unique_violation THEN
            NULL;
        END;
    END LOOP;
END
$$;

-- A tenant. The identifier is the platform's own, and a text: row security compares it with a
-- setting, which is a text too.
CREATE TABLE companies (
    id         text PRIMARY KEY,
    name       text NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE creator_settings (
    company_id      text PRIMARY KEY,
    reminder_hours  integer[] NOT NULL DEFAULT '{24,72,168}',
    incentive_days  integer NOT NULL DEFAULT 3 CHECK (incentive_days BETWEEN 0 AND 90),
    sender_name     text NOT NULL,
    updated_at      timestamptz NOT NULL DEFAULT now()
);

-- A customer of one company. The same person at two companies is two rows, so that neither learns
-- of the other.
CREATE TABLE users (
    id           uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    company_id   text NOT NULL,
    email        text NOT NULL,
    full_name    text NOT NULL,
    created_at   timestamptz NOT NULL DEFAULT now(),
    last_seen_at timestamptz
);

CREATE TABLE memberships (
    id                 text PRIMARY KEY,
    company_id         text NOT NULL,
    user_id            uuid NOT NULL,
    plan               text NOT NULL,
    price_cents        integer NOT NULL CHECK (price_cents >= 0),
    status             text NOT NULL CHECK (status IN ('active', 'past_due', 'cancelled', 'expired')),
    started_at         timestamptz NOT NULL,
    current_period_end timestamptz NOT NULL
);

-- What the payment platform sent, and the memory that it was handled: whop_event_id is unique, so a
-- repeated delivery is recognised as long as the row is kept.
CREATE TABLE events (
    id            uuid NOT NULL DEFAULT gen_random_uuid(),
    company_id    text NOT NULL,
    whop_event_id text NOT NULL,
    type          text NOT NULL,
    payload       jsonb NOT NULL,
    processed     boolean NOT NULL DEFAULT false,
    processed_at  timestamptz,
    created_at    timestamptz NOT NULL DEFAULT now()
);

-- A payment that failed and what became of it. It repeats what it needs of its event, because the
-- event is purged while the case may still be open.
CREATE TABLE recovery_cases (
    id               uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    company_id       text NOT NULL,
    user_id          uuid NOT NULL,
    membership_id    text NOT NULL,
    caused_by        uuid,
    status           text NOT NULL DEFAULT 'open' CHECK (status IN ('open', 'recovered', 'churned')),
    failure_code     text NOT NULL,
    attempts         integer NOT NULL DEFAULT 0,
    first_failure_at timestamptz NOT NULL,
    closed_at        timestamptz,
    CHECK ((status = 'open') = (closed_at IS NULL))
);

CREATE TABLE recovery_actions (
    id         bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    company_id text NOT NULL,
    case_id    uuid NOT NULL,
    type       text NOT NULL,
    note       text,
    created_at timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE data_exports (
    id           uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    request_id   text NOT NULL,
    company_id   text NOT NULL,
    user_id      uuid NOT NULL,
    status       text NOT NULL DEFAULT 'pending' CHECK (status IN ('pending', 'processing', 'completed', 'failed')),
    object_key   text,
    created_at   timestamptz NOT NULL DEFAULT now(),
    completed_at timestamptz
);

-- Evidence of consent. How long it is kept counts from its revocation, not from its creation: a
-- consent of eight years that was revoked yesterday is evidence for seven years more.
CREATE TABLE consent_records (
    id         uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    company_id text NOT NULL,
    user_id    uuid NOT NULL,
    purpose    text NOT NULL,
    source     text NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    revoked_at timestamptz,
    CHECK (revoked_at >= created_at)
);

CREATE TABLE user_deletion_requests (
    id           uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    company_id   text NOT NULL,
    user_id      uuid NOT NULL,
    status       text NOT NULL DEFAULT 'pending' CHECK (status IN ('pending', 'processing', 'completed', 'failed')),
    created_at   timestamptz NOT NULL DEFAULT now(),
    completed_at timestamptz
);

CREATE SCHEMA onboarding;
CREATE TYPE onboarding.session_status AS ENUM ('in_progress', 'completed', 'abandoned');

-- last_activity_at is the heartbeat; it is null until the first answer. A session that was abandoned
-- and taken up again keeps its first abandoned_at.
CREATE TABLE onboarding.sessions (
    id               uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    company_id       text NOT NULL,
    user_id          uuid NOT NULL,
    status           onboarding.session_status NOT NULL DEFAULT 'in_progress',
    step             text NOT NULL,
    started_at       timestamptz NOT NULL DEFAULT now(),
    last_activity_at timestamptz,
    completed_at     timestamptz,
    abandoned_at     timestamptz,
    updated_at       timestamptz NOT NULL DEFAULT now()
);

-- Every table: a tenant sees and writes its own rows. The setting's second argument makes an unset
-- setting null instead of an error, and null, like '', is nobody's tenant. FORCE binds the owner too.
DO $$
DECLARE
    item record;
BEGIN
    FOR item IN
        SELECT oid::regclass AS name, CASE relname WHEN 'companies' THEN 'id' ELSE 'company_id' END AS tenant
        FROM pg_class
        WHERE relkind = 'r' AND relnamespace IN ('public'::regnamespace, 'onboarding'::regnamespace)
    LOOP
        EXECUTE format('ALTER TABLE %s OWNER TO migration_role', item.name);
        EXECUTE format('ALTER TABLE %s ENABLE ROW LEVEL SECURITY', item.name);
        EXECUTE format('ALTER TABLE %s FORCE ROW LEVEL SECURITY', item.name);
        EXECUTE format('CREATE POLICY company_isolation ON %s TO app_role
                            USING (%I = current_setting(''app.current_company_id'', true))
                            WITH CHECK (%2$I = current_setting(''app.current_company_id'', true))',
                       item.name, item.tenant);
        EXECUTE format('GRANT SELECT, INSERT, UPDATE, DELETE ON %s TO app_role', item.name);
    END LOOP;
END
$$;
ALTER SCHEMA onboarding OWNER TO migration_role;
ALTER TYPE onboarding.session_status OWNER TO migration_role;
GRANT USAGE ON SCHEMA onboarding TO app_role;

-- Figures over all tenants, and no personal data.
CREATE POLICY analytics ON recovery_cases FOR SELECT TO analytics_readonly USING (true);
GRANT SELECT (id, company_id, status, failure_code, attempts, first_failure_at, closed_at) ON recovery_cases
    TO analytics_readonly;

-- What pgreeve may do, and nothing else: make its own schema, delete from what is purged, and change
-- the three columns that a sweep sets.
DO $$
BEGIN
    EXECUTE format('GRANT CONNECT, CREATE ON DATABASE %I TO pgreeve', current_database());
END
$$;
GRANT USAGE ON SCHEMA public, onboarding TO pgreeve;
GRANT SELECT, DELETE ON events, data_exports, consent_records TO pgreeve;
GRANT SELECT, UPDATE (status, abandoned_at, updated_at) ON onboarding.sessions TO pgreeve;
