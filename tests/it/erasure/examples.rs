//! The erasures of the shipped examples, each on the schema it is written for.

use std::path::Path;

use crate::support::process::Host;
use crate::support::{Database, cluster};

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

#[tokio::test]
async fn the_example_of_a_drizzle_application_erases_a_person_and_keeps_the_accounts() {
    let database = Database::create().await;
    database.execute(SUBSCRIPTIONS).await;
    let shipped = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/drizzle-subscriptions.toml");
    let url = cluster().await.url_as("postgres", &database.name);
    let host = Host::new("");
    let text = std::fs::read_to_string(shipped)
        .unwrap()
        .replace("postgresql:///app?host=/run/postgresql&user=pgreeve", &url)
        .replace("/var/lib/pgreeve/store", &host.path("store").display().to_string());
    host.configure(&text);
    let plan = host
        .run(&["erasure", "plan", "erase-users", "--json"])
        .expect_code(0)
        .json();
    host.run(&["approve", plan["plan"]["policy"].as_str().unwrap()])
        .expect_code(0);
    let jane: String = database
        .value("SELECT id::text FROM users WHERE first_name = 'Jane'")
        .await;
    host.run(&["erasure", "request", "--job", "erase-users", "--subject", &jane])
        .expect_code(0);
    let run = host.run(&["run", "erase-users", "--json"]).expect_code(0).json();
    assert_eq!(run["run"]["report"]["completed"], 1, "{run:#}");
    let left: Vec<String> = database
        .value(
            "SELECT array_agg(concat_ws(' ', first_name, last_name, password, amount) ORDER BY password)
             FROM users u JOIN subscriptions s ON s.user_id = u.id",
        )
        .await;
    assert_eq!(left, ["John Roe argon2:john 12.50", "erased 12.50"]);
    let named: i64 = database
        .value("SELECT count(*) FROM users WHERE email LIKE '%jane%' OR avatar IS NOT NULL")
        .await;
    assert_eq!(named, 0);
}
