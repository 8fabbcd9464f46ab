//! The erasures of the shipped examples, each on the schema it is written for.

use std::path::Path;

use pgreeve::backup::program::Programs;

use crate::support::process::Host;
use crate::support::{Database, cluster};

/// A shipped configuration on a database of its schema.
struct Example {
    database: Database,
    host: Host,
    job: &'static str,
}

impl Example {
    /// Of all that the file says, only where things lie is changed.
    async fn new(name: &str, schema: &str, job: &'static str) -> Self {
        let database = Database::create().await;
        database.execute(schema).await;
        let shipped = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples").join(name);
        let mut settings: toml::Table = std::fs::read_to_string(shipped).unwrap().parse().unwrap();
        let url = cluster().await.url_as("postgres", &database.name);
        let host = Host::new("");
        settings.remove("daemon");
        for (part, url) in [
            ("databases", url),
            ("stores", format!("file://{}", host.path("store").display())),
        ] {
            for (_, place) in settings[part].as_table_mut().unwrap() {
                *place = toml::Table::from_iter([("url".to_owned(), url.clone().into())]).into();
            }
        }
        host.configure(&settings.to_string());
        Self { database, host, job }
    }

    /// Plans, approves, asks for a person and runs; answers with the report and the certificate.
    async fn erase(&self, person: &str) -> (serde_json::Value, serde_json::Value) {
        let plan = self
            .host
            .run(&["erasure", "plan", self.job, "--json"])
            .expect_code(0)
            .json();
        self.host
            .run(&["approve", plan["plan"]["policy"].as_str().unwrap()])
            .expect_code(0);
        self.host
            .run(&["erasure", "request", "--job", self.job, "--subject", person])
            .expect_code(0);
        let run = self.host.run(&["run", self.job, "--json"]).expect_code(0).json();
        let request: String = self
            .database
            .value("SELECT request_id::text FROM pgreeve.erasure_request")
            .await;
        let certificate = self
            .host
            .run(&["erasure", "certificate", &request, "--format", "json"])
            .expect_code(0)
            .json();
        (run["run"]["report"].clone(), certificate["erasure"].clone())
    }

    /// The lines of a dump of the whole database, the ledger with it, that hold one of some texts.
    async fn lines_with(&self, texts: &[&str]) -> Vec<String> {
        let url = cluster().await.url_as("postgres", &self.database.name);
        let dumped = std::process::Command::new(Programs::find().unwrap().pg_dump)
            .args(["--dbname", &url])
            .output()
            .unwrap();
        assert!(dumped.status.success(), "{}", String::from_utf8_lossy(&dumped.stderr));
        let dump = String::from_utf8(dumped.stdout).unwrap();
        assert!(dump.contains("john"), "the dump was read");
        let holds = |line: &&str| texts.iter().any(|text| line.to_lowercase().contains(text));
        dump.lines().filter(holds).map(str::to_owned).collect()
    }

    /// The rows of tables that a condition picks, as text.
    async fn rows(&self, of: &[(&str, &str)]) -> Vec<String> {
        let mut rows = Vec::new();
        for (table, condition) in of {
            let found: Option<Vec<String>> = self
                .database
                .value(&format!(
                    "SELECT array_agg(t::text ORDER BY t::text) FROM {table} t WHERE {condition}"
                ))
                .await;
            let found = found.unwrap_or_default();
            assert!(!found.is_empty(), "{table} WHERE {condition}");
            rows.extend(found);
        }
        rows
    }
}

/// As the application's first migration makes it.
const SUBSCRIPTIONS: &str = r#"
    CREATE TYPE "user_role" AS ENUM ('admin', 'user', 'moderator');
    CREATE TYPE "subscription_status" AS ENUM ('active', 'canceled', 'past_due', 'unpaid');
    CREATE TYPE "subscription_plan" AS ENUM ('free', 'basic', 'pro', 'enterprise');
    CREATE TABLE "users" (
        "id" uuid PRIMARY KEY DEFAULT gen_random_uuid() NOT NULL, "email" varchar(255) UNIQUE NOT NULL,
        "password" varchar(255) NOT NULL, "first_name" varchar(100), "last_name" varchar(100), "avatar" text,
        "role" "user_role" DEFAULT 'user' NOT NULL, "is_active" boolean DEFAULT true NOT NULL,
        "is_email_verified" boolean DEFAULT false NOT NULL, "created_at" timestamp DEFAULT now() NOT NULL,
        "updated_at" timestamp DEFAULT now() NOT NULL);
    CREATE TABLE "subscriptions" (
        "id" uuid PRIMARY KEY DEFAULT gen_random_uuid() NOT NULL, "user_id" uuid NOT NULL,
        "stripe_customer_id" varchar(255), "stripe_subscription_id" varchar(255),
        "plan" "subscription_plan" DEFAULT 'free' NOT NULL, "status" "subscription_status" DEFAULT 'active' NOT NULL,
        "price_id" varchar(255), "amount" numeric(10, 2), "currency" varchar(3) DEFAULT 'usd', "interval" varchar(20),
        "interval_count" integer DEFAULT 1, "trial_start" timestamp, "trial_end" timestamp,
        "current_period_start" timestamp, "current_period_end" timestamp,
        "cancel_at_period_end" boolean DEFAULT false, "canceled_at" timestamp,
        "created_at" timestamp DEFAULT now() NOT NULL, "updated_at" timestamp DEFAULT now() NOT NULL);
    ALTER TABLE "subscriptions" ADD CONSTRAINT "subscriptions_user_id_users_id_fk"
        FOREIGN KEY ("user_id") REFERENCES "users" ("id") ON DELETE CASCADE ON UPDATE NO ACTION;
    CREATE INDEX "subscriptions_user_id_idx" ON "subscriptions" ("user_id");
    INSERT INTO "users" ("email", "password", "first_name", "last_name")
        VALUES ('jane@example.com', 'argon2:jane', 'Jane', 'Doe'), ('john@example.com', 'argon2:john', 'John', 'Roe');
    INSERT INTO "subscriptions" ("user_id", "amount", "currency") SELECT "id", 12.50, 'eur' FROM "users";
"#;

/// As its documentation says, with the types that it forgets, and `messages` without a brand.
const BRANDS: &str = "
    CREATE TYPE brand_id AS ENUM ('gnymble', 'percymd', 'percytext');
    CREATE TYPE customer_stage AS ENUM ('lead', 'marketing', 'trial', 'active', 'churned', 'dormant');
    CREATE TYPE customer_source AS ENUM ('website', 'sms_campaign', 'email_campaign', 'referral', 'organic', 'paid_ads', 'social', 'other');
    CREATE TYPE conversation_status AS ENUM ('active', 'paused', 'completed', 'archived');
    CREATE TYPE message_direction AS ENUM ('inbound', 'outbound');
    CREATE TYPE message_status AS ENUM ('pending', 'sent', 'delivered', 'failed', 'undelivered');
    CREATE TABLE customers (
        id uuid PRIMARY KEY DEFAULT gen_random_uuid(), brand_id brand_id NOT NULL, email varchar(255) NOT NULL, phone varchar(20),
        first_name varchar(100), last_name varchar(100), stage customer_stage NOT NULL DEFAULT 'lead',
        source customer_source NOT NULL DEFAULT 'website', marketing_qualified_at timestamptz, trial_started_at timestamptz,
        subscribed_at timestamptz, churned_at timestamptz, metadata jsonb, tags text[],
        created_at timestamptz NOT NULL DEFAULT now(), updated_at timestamptz NOT NULL DEFAULT now(),
        CONSTRAINT customers_brand_email_unique UNIQUE (brand_id, email),
        CONSTRAINT customers_brand_phone_unique UNIQUE (brand_id, phone));
    CREATE TABLE conversations (
        id uuid PRIMARY KEY DEFAULT gen_random_uuid(), brand_id brand_id NOT NULL, customer_id uuid NOT NULL REFERENCES customers (id),
        customer_phone varchar(20) NOT NULL, brand_phone varchar(20) NOT NULL, status conversation_status NOT NULL DEFAULT 'active',
        campaign_id uuid, campaign_name varchar(255), message_count integer NOT NULL DEFAULT 0, last_message_at timestamptz,
        last_inbound_at timestamptz, last_outbound_at timestamptz, opted_out_at timestamptz, opt_out_reason text, metadata jsonb,
        tags text[], created_at timestamptz NOT NULL DEFAULT now(), updated_at timestamptz NOT NULL DEFAULT now(),
        CONSTRAINT conversations_brand_phones_unique UNIQUE (brand_id, customer_phone, brand_phone));
    CREATE TABLE messages (
        id uuid PRIMARY KEY DEFAULT gen_random_uuid(), conversation_id uuid NOT NULL REFERENCES conversations (id),
        direction message_direction NOT NULL, content text NOT NULL, media_urls text[], status message_status,
        external_id varchar(255), sent_at timestamptz NOT NULL DEFAULT now(), delivered_at timestamptz,
        created_at timestamptz NOT NULL DEFAULT now(), metadata jsonb);
    CREATE INDEX idx_conversations_customer_id ON conversations (customer_id);
    CREATE INDEX idx_messages_conversation_id ON messages (conversation_id);
    CREATE INDEX idx_customers_search ON customers USING gin (
        to_tsvector('english', COALESCE(first_name, '') || ' ' || COALESCE(last_name, '') || ' ' || email));
    ALTER TABLE customers ENABLE ROW LEVEL SECURITY;
    CREATE POLICY customers_brand_isolation ON customers FOR ALL USING (brand_id = current_setting('app.current_brand')::brand_id);
    INSERT INTO customers (brand_id, email, phone, first_name, last_name, metadata, tags) VALUES
        ('percymd', 'jane.doe@example.com', '+15550100', 'Jane', 'Doebrandt', '{\"notes\": \"Jane rang\"}', '{jane}'),
        ('percymd', 'john.roe@example.com', '+15550200', 'John', 'Roebrandt', NULL, NULL);
    INSERT INTO conversations (brand_id, customer_id, customer_phone, brand_phone, status, opted_out_at)
        SELECT brand_id, id, phone, '+15559999', 'archived', now() FROM customers;
    INSERT INTO messages (conversation_id, direction, content)
        SELECT c.id, 'inbound', 'STOP, says ' || first_name FROM conversations c JOIN customers u ON u.id = customer_id, generate_series(1, 3);
";

#[tokio::test]
async fn the_example_of_a_service_for_brands_erases_a_customer_and_keeps_the_opt_out() {
    let example = Example::new("percytech-brands.toml", BRANDS, "erase-customers").await;
    let others = [
        ("customers", "first_name = 'John'"),
        ("conversations", "true"),
        ("messages", "content LIKE '%John'"),
    ];
    let before = example.rows(&others).await;
    let jane: String = example
        .database
        .value("SELECT id::text FROM customers WHERE first_name = 'Jane'")
        .await;
    let (report, certificate) = example.erase(&jane).await;
    assert_eq!(report["completed"], 1, "{report:#}");
    assert_eq!(example.rows(&others).await, before);
    let named = example.lines_with(&["jane", "doebrandt"]).await;
    assert!(named.is_empty(), "{named:#?}");
    let numbers = example.lines_with(&["15550100"]).await;
    assert_eq!(numbers.len(), 1, "only the opt-out: {numbers:#?}");
    assert_eq!(certificate["kept"][0]["table"], "public.conversations");
    assert_eq!(certificate["kept"][0]["rows"], 1);
    let messages = certificate["steps"]
        .as_array()
        .unwrap()
        .iter()
        .find(|step| step["table"] == "public.messages");
    assert_eq!(messages.unwrap()["rows"], 3);
}

/// As far as its documentation shows; a session knows its lead by the address, the rest by its token.
const LEADS: &str = "
    CREATE SCHEMA marketing; CREATE SCHEMA onboarding; CREATE SCHEMA analytics; CREATE SCHEMA experiments; CREATE SCHEMA whatsapp;
    CREATE TABLE marketing.leads (
        id uuid PRIMARY KEY DEFAULT gen_random_uuid(), email text NOT NULL UNIQUE, company_name text, source text,
        status text NOT NULL DEFAULT 'new', created_at timestamptz NOT NULL DEFAULT now());
    CREATE TABLE marketing.lead_interactions (
        id uuid PRIMARY KEY DEFAULT gen_random_uuid(), lead_id uuid NOT NULL REFERENCES marketing.leads ON DELETE CASCADE,
        notes text, created_at timestamptz NOT NULL DEFAULT now());
    CREATE TABLE onboarding.sessions (
        id uuid PRIMARY KEY DEFAULT gen_random_uuid(), session_token text NOT NULL UNIQUE, email text, current_step text,
        status text NOT NULL DEFAULT 'in_progress', progress_percentage int, started_at timestamptz NOT NULL DEFAULT now(),
        last_activity_at timestamptz, abandoned_at timestamptz, business_info_completed_at timestamptz);
    CREATE TABLE onboarding.step_activities (
        id uuid PRIMARY KEY DEFAULT gen_random_uuid(), session_id uuid NOT NULL REFERENCES onboarding.sessions ON DELETE CASCADE,
        step text, details jsonb, created_at timestamptz NOT NULL DEFAULT now());
    CREATE TABLE analytics.events (
        id uuid PRIMARY KEY DEFAULT gen_random_uuid(), type text NOT NULL, name text NOT NULL, session_id text, properties jsonb,
        created_at timestamptz NOT NULL DEFAULT now());
    CREATE TABLE experiments.experiments (id uuid PRIMARY KEY DEFAULT gen_random_uuid(), name text NOT NULL);
    CREATE TABLE experiments.assignments (
        id uuid PRIMARY KEY DEFAULT gen_random_uuid(), experiment_id uuid NOT NULL REFERENCES experiments.experiments,
        session_id text NOT NULL, variant text NOT NULL);
    CREATE TABLE whatsapp.accounts (
        id uuid PRIMARY KEY DEFAULT gen_random_uuid(), lead_id uuid REFERENCES marketing.leads ON DELETE SET NULL,
        business_name text NOT NULL);
    CREATE INDEX ON marketing.lead_interactions (lead_id);
    CREATE INDEX ON onboarding.step_activities (session_id);
    CREATE INDEX ON whatsapp.accounts (lead_id);
    INSERT INTO marketing.leads (email, company_name)
        VALUES ('jane.doe@example.com', 'Doe Incorporated'), ('john.roe@example.com', 'Roe Incorporated');
    INSERT INTO marketing.lead_interactions (lead_id, notes) SELECT id, email || ' was rung' FROM marketing.leads;
    INSERT INTO onboarding.sessions (session_token, email)
        SELECT 'sess_' || split_part(email, '.', 1) || '_token_' || n, email FROM marketing.leads, generate_series(1, 2) n;
    INSERT INTO onboarding.step_activities (session_id, step, details)
        SELECT id, 'bot_setup', jsonb_build_object('typed', email) FROM onboarding.sessions, generate_series(1, 3);
    INSERT INTO analytics.events (type, name, session_id, properties)
        SELECT 'user_action', 'demo_request', session_token, jsonb_build_object('email', email) FROM onboarding.sessions, generate_series(1, 4);
    INSERT INTO experiments.experiments (name) VALUES ('a colour');
    INSERT INTO experiments.assignments (experiment_id, session_id, variant)
        SELECT e.id, session_token, 'blue' FROM experiments.experiments e, onboarding.sessions;
    INSERT INTO whatsapp.accounts (lead_id, business_name) SELECT id, 'A customer' FROM marketing.leads;
";

#[tokio::test]
async fn the_example_of_a_whatsapp_service_erases_a_lead_through_sessions_and_keeps_the_figures() {
    let example = Example::new("whatsapp-supabase.toml", LEADS, "erase-leads").await;
    let others = [
        ("marketing.leads", "email LIKE 'john%'"),
        ("marketing.lead_interactions", "notes LIKE 'john%'"),
        ("onboarding.sessions", "email LIKE 'john%'"),
        ("onboarding.step_activities", "details ->> 'typed' LIKE 'john%'"),
        ("analytics.events", "properties ->> 'email' LIKE 'john%'"),
        ("experiments.assignments", "session_id LIKE 'sess_john%'"),
        (
            "whatsapp.accounts",
            "lead_id = (SELECT id FROM marketing.leads WHERE email LIKE 'john%')",
        ),
    ];
    let before = example.rows(&others).await;
    let jane: String = example
        .database
        .value("SELECT id::text FROM marketing.leads WHERE email LIKE 'jane%'")
        .await;
    let (report, certificate) = example.erase(&jane).await;
    assert_eq!(report["completed"], 1, "{report:#}");
    assert_eq!(example.rows(&others).await, before);
    let named = example.lines_with(&["jane", "doe incorporated", &jane]).await;
    assert!(named.is_empty(), "{named:#?}");
    assert_eq!(certificate["residue"]["places"], serde_json::json!([]));
    let figures: String = example
        .database
        .value("SELECT count(*) || ' ' || count(DISTINCT session_id) FROM analytics.events")
        .await;
    assert_eq!(figures, "16 4", "as many events, of as many sessions");
    let accounts: i64 = example.database.value("SELECT count(*) FROM whatsapp.accounts").await;
    assert_eq!(accounts, 2);
}

/// As Prisma makes it from the models of its documentation: every foreign key cascades.
const DRAWS: &str = r#"
    CREATE TABLE "User" ("id" text PRIMARY KEY, "email" text NOT NULL UNIQUE, "password_hash" text NOT NULL, "name" text,
        "email_verified" boolean NOT NULL DEFAULT false, "verification_token" text, "created_at" timestamp(3) NOT NULL DEFAULT CURRENT_TIMESTAMP);
    CREATE TABLE "Credit" ("id" text PRIMARY KEY, "user_id" text NOT NULL REFERENCES "User" ON DELETE CASCADE, "amount" int NOT NULL,
        "balance" int NOT NULL, "transaction_type" text NOT NULL, "metadata" jsonb, "created_at" timestamp(3) NOT NULL DEFAULT CURRENT_TIMESTAMP);
    CREATE TABLE "Subscription" ("id" text PRIMARY KEY, "user_id" text NOT NULL REFERENCES "User" ON DELETE CASCADE, "plan_type" text,
        "status" text NOT NULL, "stripe_subscription_id" text UNIQUE, "apple_subscription_id" text UNIQUE, "auto_renew" boolean NOT NULL DEFAULT true,
        "end_date" timestamp(3));
    CREATE TABLE "SocialAccount" ("id" text PRIMARY KEY, "user_id" text NOT NULL REFERENCES "User" ON DELETE CASCADE, "platform" text NOT NULL,
        "platform_user_id" text NOT NULL, "username" text NOT NULL, "access_token" text NOT NULL, "refresh_token" text, UNIQUE ("user_id", "platform"));
    CREATE TABLE "Draw" ("id" text PRIMARY KEY, "user_id" text NOT NULL REFERENCES "User" ON DELETE CASCADE, "platform" text NOT NULL,
        "status" text NOT NULL, "config" jsonb, "winners" jsonb, "certificate_hash" text, "video_url" text,
        "created_at" timestamp(3) NOT NULL DEFAULT CURRENT_TIMESTAMP, "executed_at" timestamp(3));
    CREATE TABLE "DrawHistory" ("id" text PRIMARY KEY, "draw_id" text NOT NULL REFERENCES "Draw" ON DELETE CASCADE,
        "user_id" text NOT NULL REFERENCES "User" ON DELETE CASCADE, "action" text NOT NULL, "details" jsonb, "metadata" jsonb,
        "created_at" timestamp(3) NOT NULL DEFAULT CURRENT_TIMESTAMP);
    CREATE TABLE "Blacklist" ("id" text PRIMARY KEY, "user_id" text NOT NULL REFERENCES "User" ON DELETE CASCADE, "username" text NOT NULL,
        "platform" text NOT NULL, "reason" text, "is_active" boolean NOT NULL DEFAULT true, UNIQUE ("user_id", "username", "platform"));
    CREATE TABLE "SystemMetrics" ("id" text PRIMARY KEY, "metric_type" text NOT NULL, "value" float8 NOT NULL, "metadata" jsonb,
        "created_at" timestamp(3) NOT NULL DEFAULT CURRENT_TIMESTAMP);
    CREATE INDEX ON "Credit" ("user_id"); CREATE INDEX ON "Subscription" ("user_id"); CREATE INDEX ON "SocialAccount" ("user_id");
    CREATE INDEX ON "Draw" ("user_id"); CREATE INDEX ON "DrawHistory" ("draw_id"); CREATE INDEX ON "DrawHistory" ("user_id");
    CREATE INDEX ON "Blacklist" ("user_id");
    INSERT INTO "User" VALUES ('cjld2cjxh0000', 'jane@example.com', '$2b$10$jane', 'Jane Doe', true, 'verify-jane'),
                              ('cjld2cjxh0001', 'john@example.com', '$2b$10$john', 'John Roe', true, NULL);
    INSERT INTO "Credit" SELECT md5('credit' || id), id, 10, 10, 'purchase' FROM "User";
    INSERT INTO "Subscription" ("id", "user_id", "status") SELECT md5('sub' || id), id, 'active' FROM "User";
    INSERT INTO "SocialAccount" SELECT md5('social' || id), id, 'instagram', 'insta-' || split_part(email, '@', 1), split_part(email, '@', 1) || '_gram', 'token', NULL FROM "User";
    INSERT INTO "Draw" ("id", "user_id", "platform", "status", "winners", "certificate_hash") SELECT md5('draw' || id), id, 'instagram', 'completed',
        '[{"username": "somebody", "user_id": "insta-other", "comment": "Amazing!"},
          {"username": "jane_gram", "user_id": "insta-jane", "comment": "It is me, Jane", "selected_at": "2025-01-05T12:00:00Z"}]', 'hash' FROM "User";
    INSERT INTO "DrawHistory" ("id", "draw_id", "user_id", "action", "details", "metadata")
        SELECT md5('history' || d.id), d.id, u.id, 'completed', jsonb_build_object('by', u.email), '{"ip": "203.0.113.7"}' FROM "Draw" d JOIN "User" u ON u.id = d.user_id;
    INSERT INTO "Blacklist" SELECT md5('black' || id), id, 'a_bot', 'instagram', split_part(name, ' ', 1) || ' says so' FROM "User";
"#;

#[tokio::test]
async fn the_example_of_prize_draws_erases_a_user_also_as_a_winner_of_somebody_elses_draw() {
    let example = Example::new("cleack-prisma.toml", DRAWS, "erase-users").await;
    let others = [
        ("\"User\"", "name = 'John Roe'"),
        ("\"Credit\"", "true"),
        ("\"Subscription\"", "true"),
        ("\"SocialAccount\"", "user_id = 'cjld2cjxh0001'"),
        ("\"DrawHistory\"", "user_id = 'cjld2cjxh0001'"),
        ("\"Blacklist\"", "user_id = 'cjld2cjxh0001'"),
    ];
    let before = example.rows(&others).await;
    let (report, certificate) = example.erase("cjld2cjxh0000").await;
    assert_eq!(report["completed"], 1, "{report:#}");
    assert_eq!(example.rows(&others).await, before);
    let named = example.lines_with(&["jane"]).await;
    assert!(named.is_empty(), "{named:#?}");
    let winners: Vec<String> = example
        .database
        .value(r#"SELECT array_agg(concat_ws(' ', d.user_id, w ->> 'username', w ->> 'comment', w ->> 'selected_at') ORDER BY d.user_id, place)
                  FROM "Draw" d, jsonb_array_elements(winners) WITH ORDINALITY AS w (w, place)"#)
        .await;
    assert_eq!(
        winners,
        [
            "cjld2cjxh0000 somebody Amazing!",
            "cjld2cjxh0000 2025-01-05T12:00:00Z",
            "cjld2cjxh0001 somebody Amazing!",
            "cjld2cjxh0001 2025-01-05T12:00:00Z"
        ]
    );
    let trail: String = example
        .database
        .value(
            r#"SELECT string_agg(concat_ws(' ', action, details, metadata), ', ' ORDER BY user_id) FROM "DrawHistory""#,
        )
        .await;
    assert!(trail.starts_with("completed, completed {"), "{trail}");
    let kept: Vec<&str> = certificate["kept"]
        .as_array()
        .unwrap()
        .iter()
        .map(|kept| kept["table"].as_str().unwrap())
        .collect();
    assert_eq!(kept.len(), 2, "{kept:?}");
}

#[tokio::test]
async fn the_example_of_a_drizzle_application_erases_a_person_and_keeps_the_accounts() {
    let example = Example::new("drizzle-subscriptions.toml", SUBSCRIPTIONS, "erase-users").await;
    let database = &example.database;
    let jane: String = database
        .value("SELECT id::text FROM users WHERE first_name = 'Jane'")
        .await;
    let (report, _) = example.erase(&jane).await;
    assert_eq!(report["completed"], 1, "{report:#}");
    let left: Vec<String> = database
        .value(
            "SELECT array_agg(concat_ws(' ', first_name, last_name, password, amount) ORDER BY password)
             FROM users u JOIN subscriptions s ON s.user_id = u.id",
        )
        .await;
    assert_eq!(left, ["John Roe argon2:john 12.50", "erased 12.50"]);
    let named = example.lines_with(&["jane", "doe"]).await;
    assert!(named.is_empty(), "{named:#?}");
}
