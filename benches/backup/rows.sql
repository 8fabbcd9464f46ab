CREATE TABLE users (id uuid PRIMARY KEY, email text UNIQUE, name text, created_at timestamptz, settings jsonb);
INSERT INTO users
SELECT gen_random_uuid(), 'user' || n || '@' || (ARRAY['example.com', 'example.org', 'mail.example.net'])[n % 3 + 1],
       initcap(substr(md5(n::text), 1, 6)) || ' ' || initcap(substr(md5((n / 7)::text), 1, 8)),
       timestamptz '2024-01-01' + n * interval '73 seconds', jsonb_build_object('locale', (ARRAY['en', 'de', 'fr'])[n % 3 + 1], 'beta', n % 5 = 0)
FROM generate_series(1, $rows / 20) n;
CREATE TABLE events (id bigint, company int NOT NULL, kind text NOT NULL, created_at timestamptz NOT NULL, session uuid, payload jsonb);
CREATE TABLE metrics (at timestamptz NOT NULL, host text NOT NULL, name text NOT NULL, value float8);
INSERT INTO events
SELECT n, (random() * 800)::int, (ARRAY['page.viewed', 'membership.created', 'payment.failed', 'payment.succeeded', 'message.sent', 'login'])[1 + (random() * 5)::int],
       timestamptz '2025-01-01' + n * interval '9 seconds' + random() * interval '9 seconds', gen_random_uuid(),
       jsonb_build_object('user_id', md5((random() * $rows / 20)::int::text), 'path', '/app/' || (ARRAY['billing', 'members', 'reports/weekly', 'settings/team'])[1 + (random() * 3)::int],
           'agent', (ARRAY['Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36', 'Mozilla/5.0 (iPhone; CPU iPhone OS 18_1 like Mac OS X)', 'okhttp/4.12.0'])[1 + (random() * 2)::int],
           'amount', round((random() * 200)::numeric, 2), 'retries', (random() * 3)::int, 'ok', random() < 0.93)
FROM generate_series(1, $rows) n;
INSERT INTO metrics
SELECT timestamptz '2026-01-01' + n * interval '1 second', 'db' || n % 7, (ARRAY['cpu.user', 'cpu.system', 'disk.read', 'net.out'])[n % 4 + 1], random() * 100
FROM generate_series(1, $rows / 2) n;
ALTER TABLE events ADD PRIMARY KEY (id);
CREATE INDEX ON events (company, created_at);
CREATE INDEX ON metrics (at);
