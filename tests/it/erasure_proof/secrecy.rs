//! Whatever the server says when an erasure fails, nothing of the person is repeated.

use pgreeve::backup::program::Programs;

use super::{JANE, JANE_ID, ask, assert_nothing_of_jane, files, host, shop};
use crate::support::http::{free_address, http_get};
use crate::support::process::until;
use crate::support::{Database, cluster};

/// Ways in which a deletion of Jane's rows fails, each with her data in the server's message, and the
/// SQLSTATE that the request's reason must name.
const PROVOKED: [(&str, &str, &str); 5] = [
    (
        "a trigger says whose row it is",
        "CREATE FUNCTION provoke() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
             RAISE EXCEPTION 'the order of % stays', old.note USING DETAIL = old.user_id::text, HINT = old.note; END $$;
         CREATE TRIGGER provoke BEFORE DELETE ON orders FOR EACH ROW EXECUTE FUNCTION provoke()",
        "P0001",
    ),
    (
        "a copy is there twice",
        "CREATE TABLE gone (email text UNIQUE);
         CREATE FUNCTION provoke() RETURNS trigger LANGUAGE plpgsql AS
             $$ BEGIN INSERT INTO public.gone VALUES (old.email), (old.email); RETURN old; END $$;
         CREATE TRIGGER provoke BEFORE DELETE ON users FOR EACH ROW EXECUTE FUNCTION provoke()",
        "23505",
    ),
    (
        "a copy breaks a check",
        "CREATE TABLE gone (email text CONSTRAINT short CHECK (length(email) < 5));
         CREATE FUNCTION provoke() RETURNS trigger LANGUAGE plpgsql AS
             $$ BEGIN INSERT INTO public.gone VALUES (old.email); RETURN old; END $$;
         CREATE TRIGGER provoke BEFORE DELETE ON users FOR EACH ROW EXECUTE FUNCTION provoke()",
        "23514",
    ),
    (
        "a text is no number",
        "CREATE FUNCTION provoke() RETURNS trigger LANGUAGE plpgsql AS
             $$ BEGIN PERFORM old.email::int; RETURN old; END $$;
         CREATE TRIGGER provoke BEFORE DELETE ON users FOR EACH ROW EXECUTE FUNCTION provoke()",
        "22P02",
    ),
    (
        "a column is too short",
        "CREATE TABLE gone (email varchar(3));
         CREATE FUNCTION provoke() RETURNS trigger LANGUAGE plpgsql AS
             $$ BEGIN INSERT INTO public.gone VALUES (old.email); RETURN old; END $$;
         CREATE TRIGGER provoke BEFORE DELETE ON users FOR EACH ROW EXECUTE FUNCTION provoke()",
        "22001",
    ),
];

#[tokio::test]
async fn provoked_errors_repeat_nothing_of_the_person_anywhere() {
    for (what, provocation, sqlstate) in PROVOKED {
        let database = shop().await;
        database.execute(provocation).await;
        let host = host(&database, "").await;
        ask(&database).await;
        let mut run = host.command(&["run", "erase", "--json"]);
        let run = run.env("PGREEVE_LOG", "trace").output().unwrap();
        assert_nothing_of_jane(what, &run.stdout);
        assert_nothing_of_jane(what, &run.stderr);
        let reason: String = database.value("SELECT reason FROM pgreeve.erasure_request").await;
        assert!(reason.contains(sqlstate), "{what}: {reason}");
        assert_nothing_of_jane(what, reason.as_bytes());
        for verb in [
            &["erasure", "list", "--json"][..],
            &["status", "--json"],
            &["history", "--json"],
            &[
                "audit",
                "report",
                "--from",
                "2000-01-01T00:00:00Z",
                "--to",
                "2999-01-01T00:00:00Z",
            ],
        ] {
            let shown = host.run(verb);
            assert_nothing_of_jane(what, (shown.stdout + &shown.stderr).as_bytes());
        }
        for (place, bytes) in files(&host.path("state")) {
            assert_nothing_of_jane(&place, &bytes);
        }
        let ledger = of_the_ledger(&database).await;
        assert_nothing_of_jane(what, ledger.as_bytes());
        assert_eq!(
            database
                .value::<i64>(&format!(
                    "SELECT count(*) FROM users WHERE id = '{JANE_ID}' AND email = '{JANE}'"
                ))
                .await,
            1,
            "{what}"
        );
    }
}

#[tokio::test]
async fn metrics_and_the_status_page_of_a_failed_erasure_name_nobody() {
    let database = shop().await;
    database.execute(PROVOKED[0].1).await;
    let host = host(&database, "").await;
    ask(&database).await;
    assert_eq!(super::run(&host, "erase")["report"]["failed"], 1);
    let address = free_address();
    let file = host.path("config.toml");
    let config = std::fs::read_to_string(&file).unwrap();
    std::fs::write(
        &file,
        config.replace("listen = \"off\"", &format!("listen = \"{address}\"")),
    )
    .unwrap();
    let daemon = host.daemon();
    until("the metrics tell of the job", async || {
        std::net::TcpStream::connect(address).is_ok() && http_get(address, "/metrics").contains("job=\"erase\"")
    })
    .await;
    for page in ["/metrics", "/", "/healthz", "/readyz"] {
        assert_nothing_of_jane(page, http_get(address, page).as_bytes());
    }
    let log = daemon.log();
    assert_eq!(daemon.stop(), 0);
    assert_nothing_of_jane("the daemon's log", log.as_bytes());
}

/// Every row that pgreeve keeps in the database of a request that has ended.
async fn of_the_ledger(database: &Database) -> String {
    let url = cluster().await.url_as("postgres", &database.name);
    let dump = Programs::find().unwrap().pg_dump;
    let dumped = std::process::Command::new(dump)
        .args(["--schema", "pgreeve", "--dbname", &url])
        .output()
        .unwrap();
    assert!(dumped.status.success(), "{}", String::from_utf8_lossy(&dumped.stderr));
    let text = String::from_utf8(dumped.stdout).unwrap();
    assert!(text.contains("COPY pgreeve.erasure_request"));
    text
}
