//! Random schemas: after an erasure nothing is left of the person, and nobody else has changed.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::atomic::{AtomicU32, Ordering};

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use pgreeve::backup::program::Programs;

use super::holds::release;
use super::{ask, erase};
use crate::retention::holds::place;
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

/// A schema, and who asks.
#[derive(Debug, Clone)]
struct Case {
    tables: Vec<Table>,
    /// Whether rows that two people share are masked, and not deleted.
    pairs_masked: bool,
    /// Who asks at once, each once.
    asking: Vec<i32>,
    /// Whose own row a hold keeps at first, by place.
    held: Option<prop::sample::Index>,
}

fn cases() -> impl Strategy<Value = Case> {
    let asking = prop::sample::subsequence((0..SUBJECTS).collect::<Vec<_>>(), 1..=3);
    let held = prop::option::weighted(0.3, any::<prop::sample::Index>());
    (tables(), any::<bool>(), asking, held).prop_map(|(tables, pairs_masked, asking, held)| Case {
        tables,
        pairs_masked,
        asking,
        held,
    })
}

/// The statements that make the schema and fill it, and the settings that erase.
#[expect(
    clippy::too_many_lines,
    reason = "the schema, its rows and its settings are made side by side"
)]
fn written(schema: &str, tables: &[Table], pairs_masked: bool) -> (String, String) {
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
    write!(
        sql,
        "CREATE TABLE {schema}.pairs (id int PRIMARY KEY, one int, other int, marker text);"
    )
    .unwrap();
    for (one, other) in (0..SUBJECTS).flat_map(|one| (one + 1..SUBJECTS).map(move |other| (one, other))) {
        write!(
            fills,
            "INSERT INTO {schema}.pairs VALUES ({}, {}, {}, 'person-{one}-with person-{other}-too');",
            one * 10 + other,
            id(one, 0),
            id(other, 0)
        )
        .unwrap();
    }
    for column in ["one", "other"] {
        write!(
            keys,
            "ALTER TABLE {schema}.pairs ADD FOREIGN KEY ({column}) REFERENCES {schema}.t0; CREATE INDEX ON {schema}.pairs ({column});"
        )
        .unwrap();
    }
    let action = if pairs_masked {
        "{ action = \"mask\", set = { marker = \"hmac(16)\" } }"
    } else {
        "{ action = \"delete\" }"
    };
    writeln!(rules, "\"{schema}.pairs\" = {action}").unwrap();
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

/// Every row of every table as text, the pairs last, without the columns that may be emptied because what
/// they refer to is gone; those beside.
async fn dump(database: &Database, schema: &str, tables: &[Table]) -> BTreeMap<(usize, i32), (String, Option<i32>)> {
    let mut rows = BTreeMap::new();
    let mut connection = database.connect().await;
    let names = (0..tables.len()).map(|place| format!("t{place}"));
    for (place, name) in names.chain(["pairs".to_owned()]).enumerate() {
        let found: Vec<(i32, String, Option<i32>)> = sqlx::query_as(sqlx::AssertSqlSafe(format!(
            "SELECT id, (to_jsonb(t) - 'self_id' - 'self_part')::text, (to_jsonb(t) ->> 'self_id')::int FROM {schema}.{name} t"
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

/// Lines of a dump of the whole database, the ledger with it, that tell one of the people: an identifying
/// text anywhere, or the number of one of their rows where no row is kept.
async fn found_in_a_dump(database: &Database, schema: &str, tables: &[Table], subjects: &[i32]) -> Vec<String> {
    let url = cluster().await.url_as("postgres", &database.name);
    let dump = Programs::find().unwrap().pg_dump;
    let dumped = std::process::Command::new(dump)
        .args(["--dbname", &url])
        .output()
        .unwrap();
    assert!(dumped.status.success(), "{}", String::from_utf8_lossy(&dumped.stderr));
    let text = String::from_utf8(dumped.stdout).unwrap();
    let people: Vec<String> = subjects.iter().map(|subject| format!("person-{subject}-")).collect();
    let rows_of = |subject: &i32| (0..ROWS).map(|row| id(*subject, row).to_string()).collect::<Vec<_>>();
    let ids: Vec<String> = subjects.iter().flat_map(rows_of).collect();
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
        let tells = people.iter().any(|person| line.contains(person))
            || deleted_from && line.split(|c: char| !c.is_ascii_alphanumeric()).any(is_number_of);
        if tells {
            found.push(line.to_owned());
        }
    }
    assert!(rows > 0 || tables.iter().all(|table| table.masked), "the dump was read");
    found
}

async fn holds_for(database: &Database, case: &Case) {
    static CASE: AtomicU32 = AtomicU32::new(0);
    let schema = format!("c{}", CASE.fetch_add(1, Ordering::Relaxed));
    let tables = &case.tables;
    let (sql, settings) = written(&schema, tables, case.pairs_masked);
    database.execute(&sql).await;
    let before = dump(database, &schema, tables).await;
    for subject in &case.asking {
        ask(database, &settings, &id(*subject, 0).to_string()).await;
    }
    if let Some(held) = case.held {
        all_but_what_a_hold_keeps(database, &schema, case, *held.get(&case.asking), &settings, &before).await;
    }
    let report = erase(database, &settings)
        .await
        .0
        .unwrap_or_else(|error| panic!("{error:?}\n{settings}"));
    let left = if case.held.is_some() { 1 } else { case.asking.len() };
    assert_eq!(report.body["completed"], left, "{report:?}\n{settings}");
    let after = dump(database, &schema, tables).await;
    let asked = |subject: i32| case.asking.contains(&subject);
    let own = |id: i32| asked((id - 1000) / 100);
    for (key @ (place, id), (text, itself)) in &before {
        let now = after.get(key);
        let (gone, masked) = match tables.get(*place) {
            Some(table) => (own(*id), table.masked),
            None => (asked(id / 10) || asked(id % 10), case.pairs_masked),
        };
        if gone {
            assert_eq!(now.is_some(), masked, "{key:?} of the person\n{settings}");
            continue;
        }
        let (now, now_itself) = now.unwrap_or_else(|| panic!("{key:?} of somebody else is gone\n{settings}"));
        assert_eq!(now, text, "{key:?} of somebody else has changed\n{settings}");
        let gone = itself.is_some_and(|to| own(to) && !masked);
        assert_eq!(*now_itself, itself.filter(|_| !gone), "{key:?}\n{settings}");
    }
    let found = found_in_a_dump(database, &schema, tables, &case.asking).await;
    assert!(found.is_empty(), "{found:#?}\n{settings}");
    database
        .execute(&format!(
            "DROP SCHEMA {schema} CASCADE; DELETE FROM pgreeve.erasure_request; DELETE FROM pgreeve.policy; DELETE FROM pgreeve.hold"
        ))
        .await;
}

/// Runs while a hold keeps one person's own row: the others are done, and that row is as it was. Then
/// releases the hold.
async fn all_but_what_a_hold_keeps(
    database: &Database,
    schema: &str,
    case: &Case,
    held: i32,
    settings: &str,
    before: &BTreeMap<(usize, i32), (String, Option<i32>)>,
) {
    let row = id(held, 0);
    let standing = place(database, &format!("{schema}.t0"), &format!("id = {row}")).await;
    let report = erase(database, settings)
        .await
        .0
        .unwrap_or_else(|error| panic!("{error:?}\n{settings}"));
    assert_eq!(
        (&report.body["completed"], &report.body["on_hold"]),
        (&(case.asking.len() - 1).into(), &1.into()),
        "{report:?}\n{settings}"
    );
    let now = dump(database, schema, &case.tables).await;
    assert_eq!(
        now.get(&(0, row)),
        before.get(&(0, row)),
        "what the hold keeps\n{settings}"
    );
    release(database, standing).await;
}

#[test]
fn nothing_is_left_of_those_who_asked_and_nobody_else_has_changed() {
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
        .run(&cases(), |case| {
            let held = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                runtime.block_on(holds_for(&database, &case));
            }));
            held.map_err(|panic| {
                let text = panic.downcast_ref::<String>().cloned().unwrap_or_default();
                TestCaseError::fail(text)
            })
        })
        .unwrap();
}
