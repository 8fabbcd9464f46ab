//! The statements that make the sample's rows.
//!
//! Row `i` of a table is a function of `i`: `pick` hashes it, so the order of making does not
//! matter. Customer `n` has one identifier, tenant, membership and address everywhere.

use std::f64::consts::TAU;

use jiff::Timestamp;

use super::churn_saver::Size;

/// How far back the events go.
const EVENT_DAYS: f64 = 150.0;

/// How uneven a day is: events at noon are (1 + RHYTHM) / (1 - RHYTHM) times as frequent as at midnight.
const RHYTHM: f64 = 0.5;

/// The rows of one table. Of `insert`, $1 and $2 are the first and last row to make and $3 is how
/// many there are in all.
pub(super) struct Step {
    pub(super) table: &'static str,
    /// How many rows there will be; none for a statement that derives all its rows from other rows.
    pub(super) rows: Option<fn(&Size) -> u64>,
    pub(super) insert: &'static str,
}

/// What the statements share, as functions of the session. The server inlines them.
///
/// `near` puts row k of n beside an instant: four rows for each second, two of them on the second
/// and one a microsecond to either side; a fifth of them earlier, the rest later, so that a cutoff
/// taken some minutes after the build still falls between them.
pub(super) fn functions(anchor: Timestamp, size: &Size) -> String {
    let Size {
        companies, users, seed, ..
    } = size;
    // The events end at the anchor. Days begin at midnight, so the last one is a part of a day.
    let midnight = anchor.as_second().rem_euclid(86_400);
    #[expect(clippy::cast_precision_loss, reason = "fewer than 86400 seconds")]
    let span = EVENT_DAYS + midnight as f64 / 86_400.0;
    let scale = unwarp(span);
    let language = "LANGUAGE sql IMMUTABLE PARALLEL SAFE";
    format!(
        "CREATE FUNCTION pg_temp.anchor() RETURNS timestamptz {language}
             AS $$ SELECT timestamptz '{anchor}' $$;
         CREATE FUNCTION pg_temp.pick(i bigint, salt integer, bound bigint) RETURNS bigint {language}
             AS $$ SELECT (hashint8extended(i, {seed}::bigint * 1000 + salt) & 4611686018427387903) % bound $$;
         CREATE FUNCTION pg_temp.fraction(i bigint, salt integer) RETURNS float8 {language}
             AS $$ SELECT pg_temp.pick(i, salt, 1000000) / 1000000.0::float8 $$;
         CREATE FUNCTION pg_temp.hex(what text, i bigint) RETURNS text {language}
             AS $$ SELECT md5(what || ' {seed} ' || i::text) $$;
         CREATE FUNCTION pg_temp.token(i bigint, salt integer) RETURNS text {language}
             AS $$ SELECT to_hex(hashint8extended(i, {seed}::bigint * 1000 + salt)) $$;
         CREATE FUNCTION pg_temp.company(n bigint) RETURNS text {language}
             AS $$ SELECT 'biz_' || pg_temp.token(n % {companies}, 15) $$;
         CREATE FUNCTION pg_temp.person(i bigint, salt integer) RETURNS bigint {language}
             AS $$ SELECT pg_temp.pick(i, salt, {users}) $$;
         CREATE FUNCTION pg_temp.person_id(n bigint) RETURNS uuid {language}
             AS $$ SELECT pg_temp.hex('user', n)::uuid $$;
         CREATE FUNCTION pg_temp.membership(n bigint) RETURNS text {language}
             AS $$ SELECT 'mem_' || pg_temp.token(n, 16) $$;
         CREATE FUNCTION pg_temp.first_name(n bigint) RETURNS text {language}
             AS $$ SELECT ('{{Amina,Ben,Chloe,Dmitri,Elena,Farid,Grace,Hugo,Ines,Jonas,Kemi,Luca,Mara,Noor,Oskar,Priya,Quinn,Rosa,Sven,Tomas,Uma,Viktor,Wei,Yara,Zoe}}'::text[])[1 + pg_temp.pick(n, 11, 25)] $$;
         CREATE FUNCTION pg_temp.last_name(n bigint) RETURNS text {language}
             AS $$ SELECT ('{{Abbott,Becker,Costa,Dubois,Eriksen,Fischer,Garcia,Haddad,Ivanova,Jensen,Kowalski,Larsen,Moreau,Nakamura,Okafor,Patel,Quist,Rossi,Schmidt,Tanaka,Ueda,Vargas,Weber,Yilmaz,Zhang}}'::text[])[1 + pg_temp.pick(n, 12, 25)] $$;
         CREATE FUNCTION pg_temp.email(n bigint) RETURNS text {language}
             AS $$ SELECT lower(pg_temp.first_name(n) || '.' || pg_temp.last_name(n)) || n::text || '@example.'
                          || ('{{com,net,org}}'::text[])[1 + pg_temp.pick(n, 13, 3)] $$;
         CREATE FUNCTION pg_temp.joined(n bigint) RETURNS timestamptz {language}
             AS $$ SELECT pg_temp.anchor() - interval '240 hours' * (0.1::float8 + 365 * pg_temp.fraction(n, 14)) $$;
         CREATE FUNCTION pg_temp.event_time(i bigint, n bigint) RETURNS timestamptz {language}
             AS $$ SELECT pg_temp.anchor() - interval '24 hours' * ({span:?}::float8 - {scale:?}::float8 * i / n
                          - {warp:?}::float8 * sin({turns:?}::float8 * i / n)) $$;
         CREATE FUNCTION pg_temp.near(instant timestamptz, k bigint, n bigint) RETURNS timestamptz {language}
             AS $$ SELECT instant + interval '1 second' * (k / 4 - n / 20)
                          + interval '1 microsecond' * ('{{0,0,-1,1}}'::integer[])[1 + k % 4] $$;
        ",
        warp = RHYTHM / TAU,
        turns = TAU * scale,
    )
}

/// How many evenly spread days give `days` days of the rhythm t(p) = p + `RHYTHM` / τ · sin(τ p).
fn unwarp(days: f64) -> f64 {
    let (mut low, mut high) = (days - 1.0, days + 1.0);
    for _ in 0..60 {
        let middle = f64::midpoint(low, high);
        if middle + RHYTHM / TAU * (TAU * middle).sin() < days {
            low = middle;
        } else {
            high = middle;
        }
    }
    low
}

/// All tables, those that others refer to first.
pub(super) const STEPS: [Step; 11] = [
    Step {
        table: "companies",
        rows: Some(|size| size.companies.into()),
        insert: "
INSERT INTO companies (id, name, created_at)
SELECT pg_temp.company(i), pg_temp.last_name(i) || ' ' || (ARRAY['Academy','Signals','Studio','Coaching'])[1 + i % 4],
       pg_temp.anchor() - interval '1 day' * (4000 - i % 300)
FROM generate_series($1, $2) i WHERE $3 > 0",
    },
    Step {
        table: "creator_settings",
        rows: Some(|size| size.companies.into()),
        insert: "
INSERT INTO creator_settings (company_id, incentive_days, sender_name, updated_at)
SELECT pg_temp.company(i), pg_temp.pick(i, 21, 15), pg_temp.first_name(i), pg_temp.anchor() - interval '1 day' * (i % 90)
FROM generate_series($1, $2) i WHERE $3 > 0",
    },
    Step {
        table: "users",
        rows: Some(|size| size.users.into()),
        insert: "
INSERT INTO users (id, company_id, email, full_name, created_at, last_seen_at)
SELECT pg_temp.person_id(i), pg_temp.company(i), pg_temp.email(i), pg_temp.first_name(i) || ' ' || pg_temp.last_name(i),
       pg_temp.joined(i), pg_temp.anchor() - (pg_temp.anchor() - pg_temp.joined(i)) * power(pg_temp.fraction(i, 22), 3)
FROM generate_series($1, $2) i WHERE $3 > 0",
    },
    Step {
        table: "memberships",
        rows: Some(|size| size.users.into()),
        insert: "
INSERT INTO memberships (id, company_id, user_id, plan, price_cents, status, started_at, current_period_end)
SELECT pg_temp.membership(i), pg_temp.company(i), pg_temp.person_id(i), (ARRAY['monthly','quarterly','yearly'])[1 + i % 3],
       (ARRAY[2900,7900,24900])[1 + i % 3],
       (ARRAY['active','active','active','active','past_due','cancelled','expired'])[1 + pg_temp.pick(i, 31, 7)],
       pg_temp.joined(i), pg_temp.anchor() + interval '1 day' * (pg_temp.pick(i, 32, 60) - 30)
FROM generate_series($1, $2) i WHERE $3 > 0",
    },
    Step {
        table: "events",
        rows: Some(|size| size.events.into()),
        insert: EVENTS,
    },
    Step {
        table: "recovery_cases",
        rows: None,
        insert: CASES,
    },
    Step {
        table: "recovery_actions",
        rows: None,
        insert: "
INSERT INTO recovery_actions (company_id, case_id, type, note, created_at)
SELECT c.company_id, c.id, (ARRAY['email_sent','message_sent','incentive_granted','call_made'])[1 + a % 4],
       CASE WHEN a = 3 THEN 'Spoke with ' || u.full_name || ', asked to retry on payday' END,
       c.first_failure_at + interval '1 day' * a
FROM recovery_cases c JOIN users u ON u.id = c.user_id CROSS JOIN LATERAL generate_series(0, c.attempts - 1) a
WHERE c.first_failure_at + interval '1 day' * a <= pg_temp.anchor()
ORDER BY c.first_failure_at, c.id, a",
    },
    Step {
        table: "data_exports",
        rows: Some(|size| u64::from(size.users) / 5),
        insert: EXPORTS,
    },
    Step {
        table: "consent_records",
        rows: Some(|size| u64::from(size.users) * 3 / 2),
        insert: CONSENTS,
    },
    Step {
        table: "user_deletion_requests",
        rows: Some(|size| u64::from(size.users) / 200),
        insert: "
INSERT INTO user_deletion_requests (id, company_id, user_id, status, created_at, completed_at)
SELECT pg_temp.hex('deletion', i)::uuid, pg_temp.company(n), pg_temp.person_id(n),
       CASE WHEN age < 3 THEN 'pending' ELSE 'completed' END, pg_temp.anchor() - interval '1 day' * age,
       CASE WHEN age >= 3 THEN pg_temp.anchor() - interval '1 day' * (age - 2) END
FROM generate_series($1, $2) i
CROSS JOIN LATERAL (SELECT pg_temp.person(i, 81) AS n, 60 * pg_temp.fraction(i, 82) AS age OFFSET 0) a
WHERE $3 > 0",
    },
    Step {
        table: "onboarding.sessions",
        rows: Some(|size| size.sessions.into()),
        insert: SESSIONS,
    },
];

/// The last tenth of the events, 3600 at most, came late: they stand around the cutoff of 90 days. One
/// event in 250 was never processed, however old, and half of the last five minutes' are not yet.
/// `OFFSET 0` keeps the server from evaluating a hash again wherever it is used.
const EVENTS: &str = r#"
INSERT INTO events (id, company_id, whop_event_id, type, payload, processed, processed_at, created_at)
SELECT pg_temp.hex('event', i)::uuid, pg_temp.company(n), 'evt_' || code, type,
       ('{"id":"evt_' || code || '","action":"' || type || '","api_version":"v5","data":{"user_id":"'
        || pg_temp.person_id(n)::text || '","membership_id":"' || pg_temp.membership(n) || '","email":"' || pg_temp.email(n)
        || '","plan":"' || (ARRAY['monthly','quarterly','yearly'])[1 + n % 3]
        || '"' || CASE WHEN t < 58 THEN ',"payment":{"id":"pay_' || pg_temp.token(i, 47) || '","amount":'
            || (ARRAY['2900','7900','24900'])[1 + n % 3] || ',"currency":"usd","card":{"brand":"'
            || (ARRAY['visa','mastercard','amex'])[1 + n % 3] || '","last4":"' || lpad((n % 10000)::text, 4, '0') || '"}'
            || CASE WHEN t >= 46 THEN ',"failure_code":"'
                || (ARRAY['card_declined','insufficient_funds','expired_card','processing_error'])[1 + t % 4]
                || '","attempt":' || (1 + pg_temp.pick(i, 45, 4))::text ELSE '' END || '}'
            ELSE ',"reason":"' || (ARRAY['too_expensive','missing_features','switched','unused','other'])[1 + pg_temp.pick(i, 46, 5)]
                || '","device":"' || pg_temp.token(n, 48) || '"' END
        || '}}')::jsonb,
       handled, CASE WHEN handled THEN created_at + interval '1 second' * pg_temp.fraction(i, 44) END, created_at
FROM generate_series($1, $2) i
CROSS JOIN LATERAL (SELECT pg_temp.person(i, 41) AS n, pg_temp.pick(i, 42, 100) AS t, pg_temp.pick(i, 43, 250) AS p,
                           pg_temp.token(i, 49) AS code, least(3600, $3 / 10) AS edge OFFSET 0) a
CROSS JOIN LATERAL (SELECT CASE WHEN i >= $3 - edge THEN pg_temp.near(pg_temp.anchor() - interval '90 days', i - ($3 - edge), edge)
                                ELSE pg_temp.event_time(i, $3 - edge) END AS created_at,
                           CASE WHEN t < 46 THEN 'payment.succeeded' WHEN t < 58 THEN 'payment.failed'
                                WHEN t < 74 THEN 'membership.went_valid' WHEN t < 86 THEN 'membership.went_invalid'
                                ELSE 'membership.cancel_at_period_end_changed' END AS type OFFSET 0) b
CROSS JOIN LATERAL (SELECT p > 0 AND (created_at < pg_temp.anchor() - interval '5 minutes' OR p % 2 = 0) AS handled) c"#;

/// Every tenth failed payment opened a case. Old cases may still be open.
const CASES: &str = "
INSERT INTO recovery_cases (id, company_id, user_id, membership_id, caused_by, status, failure_code, attempts,
                            first_failure_at, closed_at)
SELECT md5('case ' || whop_event_id)::uuid, company_id, (payload #>> '{data,user_id}')::uuid,
       payload #>> '{data,membership_id}', id, status, payload #>> '{data,payment,failure_code}', 1 + h / 100 % 4,
       created_at, CASE WHEN status <> 'open' THEN least(created_at + interval '1 hour' * (h / 1000 % 200), pg_temp.anchor()) END
FROM (SELECT *, (ARRAY['open','recovered','recovered','churned','churned'])[1 + h / 10 % 5] AS status
      FROM (SELECT *, hashtext(whop_event_id) & 1073741823 AS h FROM events WHERE type = 'payment.failed') e
      WHERE h % 10 = 0) e
ORDER BY created_at, id";

/// A tenth stands around the cutoff of 30 days; those of the last hour are not finished; one in ten
/// failed.
const EXPORTS: &str = "
INSERT INTO data_exports (id, request_id, company_id, user_id, status, object_key, created_at, completed_at)
SELECT pg_temp.hex('export', i)::uuid, 'req_' || pg_temp.token(i, 64), pg_temp.company(n),
       pg_temp.person_id(n), status,
       CASE WHEN status = 'completed' THEN 'exports/' || pg_temp.hex('object', i) || '.zip' END, created_at,
       CASE WHEN status = 'completed' THEN created_at + interval '1 minute' END
FROM generate_series($1, $2) i
CROSS JOIN LATERAL (SELECT pg_temp.person(i, 61) AS n, least(3600, $3 / 10) AS edge OFFSET 0) a
CROSS JOIN LATERAL (SELECT CASE WHEN i < edge THEN pg_temp.near(pg_temp.anchor() - interval '30 days', i, edge)
                                ELSE pg_temp.anchor() - interval '24 hours' * 120 * pg_temp.fraction(i, 62)
                           END AS created_at OFFSET 0) b
CROSS JOIN LATERAL (SELECT CASE WHEN created_at > pg_temp.anchor() - interval '1 hour' THEN 'pending'
                                WHEN pg_temp.pick(i, 63, 10) = 0 THEN 'failed'
                                WHEN pg_temp.pick(i, 63, 400) = 1 THEN 'processing'
                                ELSE 'completed' END AS status OFFSET 0) c";

/// Three in ten are revoked, at any time since they were given. A tenth were given eight years ago
/// and revoked around seven years ago; as many again given as long ago were revoked within a month.
const CONSENTS: &str = "
INSERT INTO consent_records (id, company_id, user_id, purpose, source, created_at, revoked_at)
SELECT pg_temp.hex('consent', i)::uuid, pg_temp.company(n), pg_temp.person_id(n),
       (ARRAY['marketing','analytics','data_sharing'])[1 + i % 3],
       (ARRAY['sign_up','settings','import'])[1 + pg_temp.pick(i, 71, 3)], created_at,
       CASE WHEN i < edge THEN around
            WHEN i < 2 * edge THEN pg_temp.anchor() - interval '24 hours' * 30 * pg_temp.fraction(i, 72)
            WHEN pg_temp.pick(i, 73, 10) < 3 THEN created_at + (pg_temp.anchor() - created_at) * pg_temp.fraction(i, 74) END
FROM generate_series($1, $2) i
CROSS JOIN LATERAL (SELECT i % greatest(1, $3 * 2 / 3) AS n, least(3600, $3 / 10) AS edge,
                           pg_temp.near(pg_temp.anchor() - interval '7 years', i, least(3600, $3 / 10)) AS around OFFSET 0) a
CROSS JOIN LATERAL (SELECT CASE WHEN i < edge THEN around - interval '1 year'
                                WHEN i < 2 * edge THEN pg_temp.anchor() - interval '8 years'
                                ELSE pg_temp.joined(n) END AS created_at OFFSET 0) b";

/// Of 100 sessions 68 are complete and 20 abandoned. Of those in progress, a part were active within
/// two hours, a part long ago, a part never, and a part stand around the cutoff of two hours; some
/// were abandoned once before.
const SESSIONS: &str = "
INSERT INTO onboarding.sessions (id, company_id, user_id, status, step, started_at, last_activity_at, completed_at,
                                 abandoned_at, updated_at)
SELECT pg_temp.hex('session', i)::uuid, pg_temp.company(n), pg_temp.person_id(n), status::onboarding.session_status,
       (ARRAY['profile','connect','settings','preview'])[1 + pg_temp.pick(i, 91, 4)], started_at, active_at,
       CASE WHEN status = 'completed' THEN active_at END,
       CASE WHEN status = 'abandoned' THEN active_at + interval '2 hours'
            WHEN status = 'in_progress' AND i % 50 = 0 THEN started_at + interval '2 hours' END,
       coalesce(active_at, started_at)
FROM generate_series($1, $2) i
CROSS JOIN LATERAL (SELECT pg_temp.person(i, 92) AS n, pg_temp.pick(i, 93, 100) AS s, least(3600, $3 / 50) AS edge OFFSET 0) a
CROSS JOIN LATERAL (SELECT CASE WHEN i < edge THEN 'in_progress' WHEN s < 68 THEN 'completed' WHEN s < 88 THEN 'abandoned'
                                ELSE 'in_progress' END AS status OFFSET 0) b
CROSS JOIN LATERAL (SELECT CASE WHEN i < edge THEN pg_temp.near(pg_temp.anchor() - interval '2 hours', i, edge)
                                WHEN s >= 99 THEN NULL
                                WHEN s >= 94 THEN pg_temp.anchor() - interval '2 hours' * pg_temp.fraction(i, 94)
                                ELSE pg_temp.anchor() - interval '3 hours' - interval '24 hours' * 60 * pg_temp.fraction(i, 94)
                           END AS active_at OFFSET 0) c
CROSS JOIN LATERAL (SELECT coalesce(active_at, pg_temp.anchor() - interval '4 hours') - interval '1 hour' * pg_temp.fraction(i, 95)
                           AS started_at OFFSET 0) d";
