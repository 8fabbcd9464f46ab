//! Random schemas: after an erasure nothing is left of the person, and nobody else has changed.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::atomic::{AtomicU32, Ordering};

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use pgreeve::backup::program::Programs;

use super::{ask, erase};
use crate::support::{Database, cluster};

const SUBJECTS: i32 = 4;
const ROWS: i32 = 3;

/// How a table refers to another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum How {
    /// A foreign key, whole.
    Key,
    /// A column of text.
    Text,
    /// A member of a JSON document.
    Json,
}

#[derive(Debug, Clone)]
struct Table {
    /// Whether its key has two columns.
    composite: bool,
    masked: bool,
    /// The table that its rows belong to, by place, always an earlier one; and how.
    parent: (usize, How),
    /// Another table, earlier or later, that its rows may refer to.
    other: Option<(usize, How)>,
    /// Whether rows refer to rows of the same table, of anybody.
    itself: bool,
}

fn tables() -> impl Strategy<Value = Vec<Table>> {
    let how = || prop_oneof![4 => Just(How::Key), 1 => Just(How::Text), 1 => Just(How::Json)];
    let table = (
        any::<bool>(),
        prop::bool::weighted(0.25),
        any::<prop::sample::Index>(),
        how(),
        prop::option::of((any::<prop::sample::Index>(), how())),
        any::<bool>(),
    );
    prop::collection::vec(table, 1..30).prop_map(|raw| {
        let count = raw.len() + 1;
        let mut tables = vec![Table {
            composite: false,
            masked: false,
            parent: (0, How::Key),
            other: None,
            itself: true,
        }];
        for (place, (composite, masked, parent, how, other, itself)) in raw.into_iter().enumerate() {
            tables.push(Table {
                composite,
                masked,
                parent: (parent.index(place + 1), how),
                other: other
                    .map(|(other, how)| (other.index(count), how))
                    .filter(|(other, _)| *other != place + 1),
                itself,
            });
        }
        tables
    })
}

/// The statements that make the schema and fill it, and the settings that erase.
#[expect(
    clippy::too_many_lines,
    reason = "the schema, its rows and its settings are made side by side"
)]
fn written(schema: &str, tables: &[Table]) -> (String, String) {
    let mut sql = format!("CREATE SCHEMA {schema};");
    let mut keys = String::new();
    let mut edges = Vec::new();
    let mut rules = String::new();
    let mut fills = String::new();
    for (place, table) in tables.iter().enumerate() {
        let name = format!("{schema}.t{place}");
        let key = if table.composite { "id, part" } else { "id" };
        write!(
            sql,
            "CREATE TABLE {name} (id int, part int, marker text, doc jsonb, self_id int, self_part int"
        )
        .unwrap();
        let mut references: Vec<(&str, usize, How)> = Vec::new();
        if place > 0 {
            references.push(("up", table.parent.0, table.parent.1));
        }
        references.extend(table.other.map(|(other, how)| ("side", other, how)));
        for (prefix, parent, how) in &references {
            write!(sql, ", {prefix}_id int, {prefix}_part int, {prefix}_text text").unwrap();
            let target = &tables[*parent];
            match how {
                How::Key if target.composite => {
                    write!(
                        keys,
                        "ALTER TABLE {name} ADD FOREIGN KEY ({prefix}_id, {prefix}_part) REFERENCES {schema}.t{parent}; CREATE INDEX ON {name} ({prefix}_id);"
                    ).unwrap();
                }
                How::Key => {
                    write!(
                        keys,
                        "ALTER TABLE {name} ADD FOREIGN KEY ({prefix}_id) REFERENCES {schema}.t{parent};"
                    )
                    .unwrap();
                }
                How::Text => edges.push(format!("{name}.{prefix}_text = {schema}.t{parent}.id")),
                How::Json => edges.push(format!("{name}.doc->'to'->>'{prefix}' = {schema}.t{parent}.id")),
            }
        }
        write!(sql, ", PRIMARY KEY ({key}));").unwrap();
        if table.itself {
            let from = if table.composite {
                "self_id, self_part"
            } else {
                "self_id"
            };
            write!(keys, "ALTER TABLE {name} ADD FOREIGN KEY ({from}) REFERENCES {name};").unwrap();
        }
        let rows = if place == 0 { 1 } else { ROWS };
        for subject in 0..SUBJECTS {
            for row in 0..rows {
                let id = id(subject, row);
                let mut columns = "id, part, marker, doc".to_owned();
                let mut to = Vec::new();
                let mut values = String::new();
                for (at, (prefix, parent, how)) in references.iter().enumerate() {
                    // A reference beside the first may be to nothing.
                    if at > 0 && row == 1 {
                        continue;
                    }
                    let target = if *parent == 0 {
                        self::id(subject, 0)
                    } else {
                        self::id(subject, (row + i32::try_from(place).unwrap()) % ROWS)
                    };
                    match how {
                        How::Key => {
                            write!(columns, ", {prefix}_id, {prefix}_part").unwrap();
                            write!(values, ", {target}, {}", target % 7).unwrap();
                        }
                        How::Text => {
                            write!(columns, ", {prefix}_text").unwrap();
                            write!(values, ", '{target}'").unwrap();
                        }
                        How::Json => to.push(format!("\"{prefix}\": {target}")),
                    }
                }
                if table.itself {
                    // Somebody else's row, as it may be.
                    let target = self::id((subject + row) % SUBJECTS, 0);
                    columns += ", self_id, self_part";
                    write!(values, ", {target}, {}", target % 7).unwrap();
                }
                write!(
fills,
                    "INSERT INTO {name} ({columns}) VALUES ({id}, {}, 'person-{subject}-of-t{place}-{row}', '{{\"who\": \"person-{subject}-doc\", \"to\": {{{}}}}}'{values});",
                    id % 7,
                    to.join(", ")
                ).unwrap();
            }
        }
        let action = if table.masked {
            "{ action = \"mask\", set = { marker = \"hmac(16)\", doc = \"json_scrub(who)\" } }"
        } else {
            "{ action = \"delete\" }"
        };
        writeln!(rules, "\"{name}\" = {action}").unwrap();
    }
    let edges: Vec<String> = edges.iter().map(|edge| format!("{edge:?}")).collect();
    let settings = format!(
        "subject = {{ table = \"{schema}.t0\", key = \"id\", identifiers = [\"marker\"] }}\nedges = [{}]\n[jobs.erase.erasure.tables]\n{rules}",
        edges.join(", ")
    );
    (sql + &fills + &keys, settings)
}

fn id(subject: i32, row: i32) -> i32 {
    1000 + subject * 100 + row
}

/// Every row of every table as text, without the columns that may be emptied because what they
/// refer to is gone; those beside.
async fn dump(database: &Database, schema: &str, tables: &[Table]) -> BTreeMap<(usize, i32), (String, Option<i32>)> {
    let mut rows = BTreeMap::new();
    let mut connection = database.connect().await;
    for place in 0..tables.len() {
        let found: Vec<(i32, String, Option<i32>)> = sqlx::query_as(sqlx::AssertSqlSafe(format!(
            "SELECT id, (to_jsonb(t) - 'self_id' - 'self_part')::text, self_id FROM {schema}.t{place} t"
        )))
        .fetch_all(&mut connection)
        .await
        .unwrap();
        rows.extend(
            found
                .into_iter()
                .map(|(id, text, itself)| ((place, id), (text, itself))),
        );
    }
    rows
}

/// Lines of a dump of the whole database, the ledger with it, that tell the person: an identifying text
/// anywhere, or the number of one of their rows where no row is kept.
async fn found_in_a_dump(database: &Database, schema: &str, tables: &[Table], subject: i32) -> Vec<String> {
    let url = cluster().await.url_as("postgres", &database.name);
    let dump = Programs::find().unwrap().pg_dump;
    let dumped = std::process::Command::new(dump)
        .args(["--dbname", &url])
        .output()
        .unwrap();
    assert!(dumped.status.success(), "{}", String::from_utf8_lossy(&dumped.stderr));
    let text = String::from_utf8(dumped.stdout).unwrap();
    let person = format!("person-{subject}-");
    let ids: Vec<String> = (0..ROWS).map(|row| id(subject, row).to_string()).collect();
    let is_number_of = |word: &str| ids.iter().any(|id| id == word);
    let mut deleted_from = false;
    let mut found = Vec::new();
    let mut rows = 0;
    for line in text.lines() {
        if let Some(table) = line.strip_prefix(&format!("COPY {schema}.t")) {
            let place: usize = table.split(' ').next().unwrap().parse().unwrap();
            deleted_from = !tables[place].masked;
        } else if line == "\\." {
            deleted_from = false;
        } else if deleted_from {
            rows += 1;
        }
        let tells = line.contains(&person)
            || deleted_from && line.split(|c: char| !c.is_ascii_alphanumeric()).any(is_number_of);
        if tells {
            found.push(line.to_owned());
        }
    }
    assert!(rows > 0 || tables.iter().all(|table| table.masked), "the dump was read");
    found
}

async fn holds_for(database: &Database, tables: &[Table]) {
    static CASE: AtomicU32 = AtomicU32::new(0);
    let schema = format!("c{}", CASE.fetch_add(1, Ordering::Relaxed));
    let (sql, settings) = written(&schema, tables);
    database.execute(&sql).await;
    let before = dump(database, &schema, tables).await;
    let subject = 1;
    ask(database, &settings, &id(subject, 0).to_string()).await;
    let report = erase(database, &settings)
        .await
        .0
        .unwrap_or_else(|error| panic!("{error:?}\n{settings}"));
    assert_eq!(report.body["completed"], 1, "{report:?}\n{settings}");
    let after = dump(database, &schema, tables).await;
    let own = |id: i32| (id - 1000) / 100 == subject;
    for (key @ (place, id), (text, itself)) in &before {
        let now = after.get(key);
        if own(*id) {
            assert_eq!(
                now.is_some(),
                tables[*place].masked,
                "{key:?} of the person\n{settings}"
            );
            continue;
        }
        let (now, now_itself) = now.unwrap_or_else(|| panic!("{key:?} of somebody else is gone\n{settings}"));
        assert_eq!(now, text, "{key:?} of somebody else has changed\n{settings}");
        let gone = itself.is_some_and(|to| own(to) && !tables[*place].masked);
        assert_eq!(*now_itself, itself.filter(|_| !gone), "{key:?}\n{settings}");
    }
    let found = found_in_a_dump(database, &schema, tables, subject).await;
    assert!(found.is_empty(), "{found:#?}\n{settings}");
    database
        .execute(&format!(
            "DROP SCHEMA {schema} CASCADE; DELETE FROM pgreeve.erasure_request; DELETE FROM pgreeve.policy"
        ))
        .await;
}

#[test]
fn nothing_is_left_of_the_person_and_nobody_else_has_changed() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let database = runtime.block_on(async {
        let database = Database::create().await;
        pgreeve::ledger::migrate::apply(&database.target).await.unwrap();
        database
    });
    let mut runner = TestRunner::new(Config {
        cases: 24,
        failure_persistence: None,
        max_shrink_iters: 60,
        ..Config::default()
    });
    runner
        .run(&tables(), |tables| {
            let held = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                runtime.block_on(holds_for(&database, &tables));
            }));
            held.map_err(|panic| {
                let text = panic.downcast_ref::<String>().cloned().unwrap_or_default();
                TestCaseError::fail(text)
            })
        })
        .unwrap();
}
