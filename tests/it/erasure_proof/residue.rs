//! The residual scan: places and counts of what is left of a person, anywhere.

use std::time::{Duration, Instant};

use pgreeve::erasure::proof::Search;
use pgreeve::erasure::residue::scan;
use pgreeve::erasure::{Identifier, Identifiers, Residue, ScanScope};
use pgreeve::postgres::connect::{Session, SessionSettings};
use sqlx::postgres::types::Oid;

use crate::support::Database;

const ALICE: &str = "alice.liddell@example.org";
const ALICE_ID: &str = "8a0f1f3e-1111-4222-8333-944445555666";

fn alice() -> Identifiers {
    Identifiers(vec![
        Identifier::new("public.users.id", ALICE_ID.to_owned()),
        Identifier::new("public.users.email", ALICE.to_owned()),
    ])
}

async fn scan_for(database: &Database, scope: &ScanScope, identifiers: &Identifiers) -> Residue {
    let settings = SessionSettings::control("test");
    let mut session = Session::open(&database.target, &settings).await.unwrap();
    let search = Search {
        scope: scope.clone(),
        identifiers: identifiers.clone(),
    };
    let deadline = Instant::now() + Duration::from_mins(1);
    let mut found = scan(session.connection(), &[search], deadline).await.unwrap();
    session.close().await;
    found.pop().unwrap()
}

async fn scan_for_alice(database: &Database) -> Residue {
    scan_for(database, &ScanScope::default(), &alice()).await
}

/// Places as `schema.table.column what count`, with a star where they are kept.
fn places(residue: &Residue) -> Vec<String> {
    let places = residue.places.iter().map(|place| {
        let star = if place.kept { "*" } else { "" };
        format!("{}.{} {} {}{star}", place.table, place.column, place.what, place.count)
    });
    places.collect()
}

#[tokio::test]
async fn an_audit_copy_that_a_trigger_made_is_found() {
    let database = Database::create().await;
    database
        .execute(
            "CREATE TABLE users (id uuid PRIMARY KEY, email text);
             CREATE SCHEMA audit;
             CREATE TABLE audit.log (at timestamptz DEFAULT now(), what text, old jsonb);
             CREATE FUNCTION copy() RETURNS trigger LANGUAGE plpgsql AS
                 $$ BEGIN INSERT INTO audit.log (what, old) VALUES (TG_OP, to_jsonb(old)); RETURN old; END $$;
             CREATE TRIGGER copy BEFORE UPDATE OR DELETE ON users FOR EACH ROW EXECUTE FUNCTION copy()",
        )
        .await;
    database
        .execute(&format!(
            "INSERT INTO users VALUES ('{ALICE_ID}', '{ALICE}'), (gen_random_uuid(), 'bob@example.org');
             DELETE FROM users WHERE id = '{ALICE_ID}'"
        ))
        .await;
    let residue = scan_for_alice(&database).await;
    assert_eq!(places(&residue), ["audit.log.old rows 1"]);
    assert!(!residue.is_clean());
    let shown = serde_json::to_string(&residue).unwrap();
    assert!(!shown.contains("liddell") && !shown.contains("8a0f1f3e"), "{shown}");
    database.execute("DELETE FROM audit.log WHERE true").await;
    let residue = scan_for_alice(&database).await;
    assert!(residue.is_clean(), "{residue:?}");
    assert_eq!((residue.identifiers, residue.too_short), (2, 0));
}

#[tokio::test]
async fn a_person_is_found_in_every_type_that_can_hold_text() {
    let database = Database::create().await;
    database
        .execute(&format!(
            r#"CREATE DOMAIN mail AS text; CREATE DOMAIN document AS json; CREATE TYPE pair AS (a int, b text);
               CREATE TABLE "Odd ""Table" (
                   "a b" varchar(60), c char(40), t text, j json, jb jsonb, x xml, ts tsvector, m mail, d document,
                   ta text[], ja jsonb[], p pair, pa pair[], id uuid, ids uuid[], n name, i inet, untouched int, b bytea);
               INSERT INTO "Odd ""Table" VALUES ('{ALICE}', '{ALICE}', 'x <{ALICE}>', '{{"a": "{ALICE}"}}', '{{"{ALICE}": 1}}',
                   '<a>{ALICE}</a>', to_tsvector('simple', '{ALICE}'), '{ALICE}', '{{"a": ["{ALICE}"]}}', ARRAY['', '{ALICE}'],
                   ARRAY['{{"a": "{ALICE}"}}'::jsonb], (1, '{ALICE}'), ARRAY[(1, '{ALICE}')::pair], '{ALICE_ID}', ARRAY['{ALICE_ID}'::uuid],
                   '{ALICE}', '10.0.0.1', 7, 'x');
               INSERT INTO "Odd ""Table" (t) VALUES (NULL), ('malice.liddell@example.org');
               CREATE MATERIALIZED VIEW seen AS SELECT t FROM "Odd ""Table" WHERE t IS NOT NULL;
               CREATE TABLE parted (id int, t text) PARTITION BY LIST (id);
               CREATE TABLE parted_1 PARTITION OF parted FOR VALUES IN (1); CREATE TABLE parted_2 PARTITION OF parted FOR VALUES IN (2);
               INSERT INTO parted VALUES (1, '{ALICE}'), (2, 'urn:{ALICE_ID}'), (2, 'other')"#
        ))
        .await;
    let residue = scan_for_alice(&database).await;
    let columns = [
        "a b", "c", "d", "i", "id", "ids", "j", "ja", "jb", "m", "n", "p", "pa", "t", "ta", "ts", "x",
    ];
    let mut expected: Vec<String> = columns
        .iter()
        .filter(|column| **column != "i")
        .map(|column| format!("public.Odd \"Table.{column} rows 1"))
        .collect();
    expected.push("public.parted.t rows 2".to_owned());
    expected.push("public.seen.t rows 1".to_owned());
    assert_eq!(places(&residue), expected);
    assert_eq!(residue.unsearched, [""; 0]);
    assert_eq!(
        residue.columns,
        columns.len() as u64 + 2 + 1,
        "of the table, the partitions, the view"
    );
}

#[tokio::test]
async fn what_is_kept_on_purpose_is_listed_and_is_clean() {
    let database = Database::create().await;
    database
        .execute(&format!(
            "CREATE TABLE consents (who text, note text) PARTITION BY LIST (note);
             CREATE TABLE consents_1 PARTITION OF consents DEFAULT; CREATE TABLE masked (id uuid, who text);
             INSERT INTO consents VALUES ('{ALICE}', 'x'); INSERT INTO masked VALUES ('{ALICE_ID}', 'erased')"
        ))
        .await;
    let consents: Oid = database.value("SELECT 'consents'::regclass::oid").await;
    let masked: Oid = database.value("SELECT 'masked'::regclass::oid").await;
    let scope = ScanScope {
        kept: vec![(consents, None), (masked, Some("id".to_owned()))],
        ..ScanScope::default()
    };
    let residue = scan_for(&database, &scope, &alice()).await;
    assert_eq!(
        places(&residue),
        ["public.consents.who rows 1*", "public.masked.id rows 1*"]
    );
    assert!(residue.is_clean());
    database.execute(&format!("UPDATE masked SET who = '{ALICE}'")).await;
    let residue = scan_for(&database, &scope, &alice()).await;
    assert!(
        !residue.is_clean(),
        "a masked row keeps its key, not its text: {residue:?}"
    );
}

#[tokio::test]
async fn what_statistics_keep_is_found_and_analysed_away() {
    let database = Database::create().await;
    database
        .execute(&format!(
            "CREATE TABLE visits (who text) WITH (autovacuum_enabled = off);
             INSERT INTO visits SELECT CASE WHEN n % 2 = 0 THEN '{ALICE}' ELSE 'bob' || n % 5 END FROM generate_series(1, 500) n;
             ANALYZE visits; DELETE FROM visits WHERE who = '{ALICE}'"
        ))
        .await;
    let kept = format!("SELECT count(*) FROM pg_stats WHERE most_common_vals::text LIKE '%{ALICE}%'");
    assert_eq!(
        database.value::<i64>(&kept).await,
        1,
        "deleting rows leaves their statistics"
    );
    let residue = scan_for_alice(&database).await;
    assert!(residue.is_clean(), "{residue:?}");
    assert_eq!(database.value::<i64>(&kept).await, 0);
}

#[tokio::test]
async fn an_emptied_table_keeps_its_statistics_and_the_remedy_works() {
    let database = Database::create().await;
    database
        .execute(&format!(
            "CREATE TABLE \"Visits\" (who varchar(80)) WITH (autovacuum_enabled = off);
             INSERT INTO \"Visits\" SELECT '{ALICE}' FROM generate_series(1, 500); ANALYZE \"Visits\"; DELETE FROM \"Visits\""
        ))
        .await;
    let residue = scan_for_alice(&database).await;
    assert_eq!(places(&residue), ["public.Visits.who statistics 1"]);
    let remedy = residue.places[0].remedy.clone().unwrap();
    let (why, statement) = remedy.split_once(": ").unwrap();
    assert!(why.contains("empty"), "{remedy}");
    assert_eq!(
        statement,
        "ALTER TABLE \"public\".\"Visits\" ALTER COLUMN \"who\" TYPE character varying(80);"
    );
    database.execute(statement).await;
    let residue = scan_for_alice(&database).await;
    assert!(residue.is_clean(), "{residue:?}");
}

#[tokio::test]
async fn what_cannot_be_searched_is_said_and_is_not_clean() {
    let database = Database::create().await;
    let role = format!("scanner_{}", database.name);
    database
        .execute(&format!(
            "CREATE TABLE closed (t text); CREATE TABLE half (open text, shut text); CREATE TABLE filtered (t text);
             CREATE TABLE busy (t text); ALTER TABLE filtered ENABLE ROW LEVEL SECURITY;
             CREATE ROLE {role} LOGIN; GRANT SELECT ON filtered, busy TO {role}; GRANT SELECT (open) ON half TO {role}"
        ))
        .await;
    let mut holder = database.connect().await;
    sqlx::raw_sql("BEGIN; LOCK TABLE busy IN ACCESS EXCLUSIVE MODE")
        .execute(&mut holder)
        .await
        .unwrap();
    let target = pgreeve::postgres::connect::ConnectTarget {
        user: role.clone(),
        ..database.target.clone()
    };
    let mut session = Session::open(&target, &SessionSettings::control("test")).await.unwrap();
    let searches = [Search {
        scope: ScanScope::default(),
        identifiers: alice(),
    }];
    let deadline = Instant::now() + Duration::from_mins(1);
    let found = scan(session.connection(), &searches, deadline).await.unwrap();
    assert_eq!(
        found[0].unsearched,
        [
            "public.busy: somebody has locked it",
            "public.closed.t: the role may not read it",
            "public.filtered: the role may not read all of it",
            "public.half.shut: the role may not read it",
        ]
    );
    assert!(!found[0].is_clean());
    // A scan without time says so at once, and the session is fit for use after each of these.
    let found = scan(session.connection(), &searches, Instant::now()).await.unwrap();
    assert!(
        found[0]
            .unsearched
            .iter()
            .any(|cause| cause == "public.half: there was no time left"),
        "{found:?}"
    );
    let one: i32 = sqlx::query_scalar("SELECT 1")
        .fetch_one(session.connection())
        .await
        .unwrap();
    assert_eq!(one, 1);
    session.close().await;
    drop(holder);
    database
        .execute(&format!("DROP OWNED BY {role}; DROP ROLE {role}"))
        .await;
}

#[tokio::test]
async fn one_pass_tells_many_people_apart_and_only_reads() {
    let database = Database::create().await;
    database
        .execute(
            "CREATE TABLE notes (id bigint, t text);
             INSERT INTO notes SELECT 10000000000 + n, 'mail of person' || n || '@example.org' FROM generate_series(1, 300) n",
        )
        .await;
    let people = (1..=200).map(|n| {
        Identifiers(vec![
            Identifier::new("public.users.email", format!("person{n}@example.org")),
            Identifier::new("public.users.number", format!("{}", 10_000_000_000_u64 + n)),
            Identifier::new("public.users.id", n.to_string()),
        ])
    });
    let searches: Vec<Search> = people
        .map(|identifiers| Search {
            scope: ScanScope::default(),
            identifiers,
        })
        .collect();
    let mut session = Session::open(&database.target, &SessionSettings::control("test"))
        .await
        .unwrap();
    let deadline = Instant::now() + Duration::from_mins(1);
    let found = scan(session.connection(), &searches, deadline).await.unwrap();
    session.close().await;
    assert_eq!(found.len(), 200);
    for residue in &found {
        assert_eq!(places(residue), ["public.notes.id rows 1", "public.notes.t rows 1"]);
        assert_eq!((residue.identifiers, residue.too_short), (2, 1));
    }
}
