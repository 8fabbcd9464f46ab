//! What the catalog or the role does not allow: refused before anything is changed, with the
//! statement that mends it.

use super::{NIGHTLY, PURGE, application, as_role, assert_says, directory_store, findings, line_of, role, superuser};
use crate::support::Database;
use crate::support::process::Host;

async fn rows(database: &Database) -> i64 {
    database.value("SELECT count(*) FROM events").await
}

#[tokio::test]
async fn a_table_or_column_that_does_not_fit_is_refused_at_its_line() {
    let database = application().await;
    let cases = [
        (
            "table = \"events\"",
            "table = \"evnets\"",
            "table",
            "there is no table of this name",
            "did you mean public.events",
        ),
        (
            "created_at",
            "create_at",
            "age_column",
            "there is no column create_at",
            "did you mean created_at?",
        ),
        (
            "created_at",
            "email",
            "age_column",
            "email is of type text, which tells no time",
            "timestamptz, timestamp or date",
        ),
        ("\"processed\"", "\"procesed\"", "where", "procesed", ""),
    ];
    for (from, to, key, cause, remedy) in cases {
        let config = format!("{}{}", superuser(&database).await, PURGE.replace(from, to));
        let host = Host::new(&config);
        assert_says(&host.run(&["check"]).expect_code(0), &["makes sense"]);
        let planned = host.run(&["plan", "purge"]).expect_code(3);
        assert_says(&planned, &[cause, remedy]);
        let checked = host.run(&["check", "--connect", "--json"]).expect_code(78).json();
        assert_eq!(checked["findings"].as_array().unwrap().len(), 1, "{checked:#}");
        assert_eq!(checked["findings"][0]["line"], line_of(&host, to), "{key}: {checked:#}");
        assert!(findings(&checked)[0].contains(cause), "{checked:#}");
        assert_says(
            &host.run(&["check", "--connect"]).expect_code(78),
            &[cause, remedy, "1 problem"],
        );
        let run = host.run(&["run", "purge", "--json"]).expect_code(3).json();
        assert_eq!(run["run"]["outcome"], "refused", "{run:#}");
        assert!(run["run"]["reason"].as_str().unwrap().contains(cause), "{run:#}");
    }
    assert_eq!(rows(&database).await, 100);
}

#[tokio::test]
async fn a_role_without_rights_is_told_the_statements_and_with_them_it_works() {
    let database = application().await;
    let role = role(&database).await;
    let host = Host::new(&format!("{}{PURGE}", as_role(&database, &role).await));
    let run = host.run(&["run", "purge"]).expect_code(3);
    assert_says(&run, &["refused", "lacks", "SELECT, DELETE", "GRANT DELETE ON"]);
    assert_eq!(rows(&database).await, 100);

    let doctor = host.run(&["doctor"]).expect_code(3);
    assert_says(&doctor, &["BAD  rights", "2 rights missing", "pgreeve doctor --grants"]);
    let before: i64 = database.value("SELECT count(*) FROM pg_catalog.pg_class").await;
    let script = host.run(&["doctor", "--grants"]).expect_code(3);
    assert_eq!(script.stderr, "");
    assert_eq!(
        before,
        database.value::<i64>("SELECT count(*) FROM pg_catalog.pg_class").await
    );
    // What doctor prints is a script as it stands, comments and all.
    database.execute(&script.stdout).await;
    let mended = host.run(&["doctor", "--grants"]).expect_code(0);
    assert!(
        mended.stdout.lines().all(|line| line.starts_with("--")),
        "{}",
        mended.stdout
    );
    host.run(&["doctor"]).expect_code(0);
    host.run(&["run", "purge"]).expect_code(0);
    assert_eq!(rows(&database).await, 10);
}

#[tokio::test]
async fn a_role_that_row_security_filters_is_refused_until_it_bypasses_it() {
    let database = application().await;
    let role = role(&database).await;
    database
        .execute(&format!(
            "GRANT SELECT, DELETE ON events TO {role};
             GRANT pg_read_all_data TO {role};
             ALTER TABLE events ENABLE ROW LEVEL SECURITY;
             CREATE POLICY none ON events USING (false)"
        ))
        .await;
    let host = Host::new("");
    host.configure(&format!(
        "{}{}{PURGE}{NIGHTLY}",
        as_role(&database, &role).await,
        directory_store(&host)
    ));
    for job in ["purge", "nightly"] {
        let run = host.run(&["run", job]).expect_code(3);
        assert_says(&run, &["refused", "would hide rows", "events", "BYPASSRLS"]);
    }
    assert_eq!(rows(&database).await, 100);
    let listed = host.run(&["backup", "list", "--json"]).expect_code(0).json();
    assert_eq!(listed["backups"].as_array().unwrap().len(), 0);
    let checked = host.run(&["check", "--connect", "--json"]).expect_code(78).json();
    assert_eq!(findings(&checked).len(), 2, "{checked:#}");

    let script = host.run(&["doctor", "--grants"]).expect_code(3).stdout;
    let missing: Vec<&str> = script.lines().filter(|line| !line.starts_with("--")).collect();
    assert_eq!(
        missing,
        [format!("ALTER ROLE \"{role}\" BYPASSRLS; -- for nightly, purge")],
        "{script}"
    );
    database.execute(&script).await;
    host.run(&["check", "--connect"]).expect_code(0);
    host.run(&["run", "nightly"]).expect_code(0);
    host.run(&["run", "purge"]).expect_code(0);
    assert_eq!(rows(&database).await, 10);
}

#[tokio::test]
async fn a_backup_by_a_role_that_may_not_read_everything_is_refused_and_leaves_nothing() {
    let database = application().await;
    let role = role(&database).await;
    let host = Host::new("");
    host.configure(&format!(
        "{}{}{NIGHTLY}",
        as_role(&database, &role).await,
        directory_store(&host)
    ));
    let run = host.run(&["run", "nightly"]).expect_code(3);
    assert_says(&run, &["refused", "may not read", "events", "GRANT pg_read_all_data"]);
    let objects = std::fs::read_dir(host.path("store")).map_or(0, |entries| {
        entries
            .filter(|entry| !entry.as_ref().unwrap().file_name().to_string_lossy().starts_with('.'))
            .count()
    });
    assert_eq!(objects, 0);
    let script = host.run(&["doctor", "--grants"]).expect_code(3).stdout;
    database.execute(&script).await;
    host.run(&["run", "nightly"]).expect_code(0);
}

#[tokio::test]
async fn a_transition_is_told_the_columns_it_must_be_allowed_to_change() {
    let database = Database::create().await;
    database
        .execute("CREATE SCHEMA web; CREATE TABLE web.sessions (id int PRIMARY KEY, status text NOT NULL, seen timestamptz NOT NULL)")
        .await;
    let role = role(&database).await;
    let host = Host::new(&format!(
        "{}[jobs.sweep]\nschedule = \"* * * * *\"\napproval = \"none\"\ntransition = {{ table = \"web.sessions\", age_column = \"seen\", after = \"2h\", from = {{ status = [\"open\"] }}, set = {{ status = \"gone\" }} }}\n",
        as_role(&database, &role).await
    ));
    let script = host.run(&["doctor", "--grants"]).expect_code(3).stdout;
    for statement in [
        "GRANT USAGE ON SCHEMA \"web\"",
        "GRANT SELECT ON \"web\".\"sessions\"",
        "GRANT UPDATE (\"status\") ON \"web\".\"sessions\"",
    ] {
        assert!(
            script.lines().any(|line| line.starts_with(statement)),
            "{statement}:\n{script}"
        );
    }
    database.execute(&script).await;
    host.run(&["doctor"]).expect_code(0);
    host.run(&["check", "--connect"]).expect_code(0);
}

#[tokio::test]
async fn to_drop_partitions_their_owner_is_asked_for_and_only_where_they_are_to_be_dropped() {
    let database = Database::create().await;
    let role = role(&database).await;
    let owner = format!("owner_{}", database.name);
    database
        .execute(&format!(
            "CREATE ROLE {owner};
             CREATE TABLE visits (at timestamptz NOT NULL) PARTITION BY RANGE (at);
             CREATE TABLE visits_old PARTITION OF visits FOR VALUES FROM ('2020-01-01') TO ('2020-02-01');
             CREATE TABLE visits_new PARTITION OF visits FOR VALUES FROM ('2020-02-01') TO ('2120-01-01');
             ALTER TABLE visits OWNER TO {owner}; ALTER TABLE visits_old OWNER TO {owner}; ALTER TABLE visits_new OWNER TO {owner};
             INSERT INTO visits VALUES ('2020-01-10'), (now())"
        ))
        .await;
    let config = |partitions: &str| {
        format!(
            "[jobs.purge]\nschedule = \"* * * * *\"\napproval = \"none\"\n\
             retention = {{ table = \"visits\", age_column = \"at\", keep = \"90d\", max_fraction = 1.0{partitions} }}\n"
        )
    };
    let database_section = as_role(&database, &role).await;
    let host = Host::new(&format!("{database_section}{}", config("")));
    let membership = format!("GRANT \"{owner}\" TO");
    let script = host.run(&["doctor", "--grants"]).expect_code(3).stdout;
    assert!(!script.contains(&membership), "{script}");
    host.configure(&format!("{database_section}{}", config(", partitions = \"drop\"")));
    let script = host.run(&["doctor", "--grants"]).expect_code(3).stdout;
    assert!(script.contains(&membership), "{script}");
    database.execute(&script).await;
    host.run(&["doctor", "--grants"]).expect_code(0);
    host.run(&["run", "purge"]).expect_code(0);
    assert_eq!(
        database
            .value::<String>("SELECT string_agg(relid::text, ' ') FROM pg_partition_tree('visits') WHERE isleaf")
            .await,
        "visits_new"
    );
}
