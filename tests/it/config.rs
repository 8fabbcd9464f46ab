//! The configuration: what it means, and every way it can be wrong.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use pgreeve::batch::predicate;
use pgreeve::config::{Config, Finding, Severity, Surroundings};
use pgreeve::job::{Approval, Kind};
use pgreeve::jobs::KindSettings;
use pgreeve::schedule::policy::{Missed, Overlap};
use pgreeve::store::{Checksum, Encryption, LockMode, ObjectLock, S3Settings, StoreSettings};
use pgreeve::values::Name;
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use sqlx::{AssertSqlSafe, PgConnection, Row};
use tempfile::TempDir;

use crate::support::Database;

const HEAD: &str = "[databases.d]\nurl = \"postgresql://u@h/d\"\n\n[stores.s]\nurl = \"file:///var/lib/s\"\n\n";

/// A directory with a configuration, and secrets beside it.
struct Files {
    directory: TempDir,
}

impl Files {
    fn new(main: &str) -> Self {
        let files = Self {
            directory: TempDir::new().unwrap(),
        };
        files.write("config.toml", main.as_bytes(), 0o640);
        files
    }

    fn write(&self, name: &str, bytes: &[u8], mode: u32) -> PathBuf {
        let path = self.directory.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, bytes).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        path
    }

    fn with(self, name: &str, text: &str) -> Self {
        self.write(name, text.as_bytes(), 0o640);
        self
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn surroundings(&self) -> Surroundings {
        Surroundings {
            host_name: "db1".to_owned(),
            credentials_directory: Some(self.path("credentials")),
            now: "2026-01-01T00:00:00Z".parse().unwrap(),
        }
    }

    fn load(&self) -> Result<(Config, Vec<Finding>), Vec<Finding>> {
        Config::load_in(&self.path("config.toml"), &self.surroundings())
    }

    /// Findings as `line:column severity message | help`, with the directory taken out.
    fn lines(&self) -> Vec<String> {
        let findings = match self.load() {
            Ok((_, warnings)) => warnings,
            Err(findings) => findings,
        };
        let directory = format!("{}/", self.directory.path().display());
        let line = |finding: &Finding| {
            let file = finding.file.replace(&directory, "").replace("config.toml", "");
            let text = format!(
                "{file}{}:{} {} {} | {}",
                finding.line,
                finding.column,
                finding.severity.as_str(),
                finding.message,
                finding.help.as_deref().unwrap_or_default()
            );
            text.replace(&directory, "")
        };
        findings.iter().map(line).collect()
    }
}

/// The findings of one job of a kind in an otherwise sound configuration, without the line numbers'
/// offset of the head.
fn lines_of_job(job: &str) -> Vec<String> {
    let text = format!("{HEAD}[jobs.j]\nschedule = \"0 2 * * *\"\n{job}\n");
    Files::new(&text).lines()
}

/// That a job has exactly one finding, and that it begins and reads so.
#[track_caller]
fn assert_one(job: &str, start: &str, part: &str) {
    let lines = lines_of_job(job);
    assert_eq!(lines.len(), 1, "{job}\n{lines:#?}");
    assert!(lines[0].starts_with(start), "{job}\n{lines:#?}");
    assert!(lines[0].contains(part), "{job}\n{lines:#?}");
}

fn name(text: &str) -> Name {
    text.parse().unwrap()
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The shipped configuration where its files can be found.
fn shipped() -> Files {
    let files = Files::new(&fs::read_to_string(root().join("config.toml")).unwrap());
    for secret in ["churn_saver", "percytech", "whatsapp", "aws", "age"] {
        files.write(&format!("credentials/{secret}"), b"hunter2\n", 0o600);
    }
    files
}

#[test]
fn the_shipped_configuration_loads_without_a_warning() {
    let (config, warnings) = shipped()
        .load()
        .unwrap_or_else(|findings| panic!("{}", report(&findings)));
    assert!(warnings.is_empty(), "{}", report(&warnings));
    assert_eq!(config.daemon.instance, "db1");
    let jobs: Vec<_> = config.jobs.keys().map(Name::as_str).collect();
    assert_eq!(
        jobs,
        [
            "abandon-sessions",
            "erase-users",
            "hourly-events",
            "nightly-backup",
            "prove-backup",
            "purge-consents",
            "purge-events",
            "purge-exports"
        ]
    );
    let consents = &config.jobs[&name("purge-consents")];
    let KindSettings::Retention(retention) = &consents.kind else {
        panic!("{consents:?}");
    };
    assert_eq!(
        (retention.age_column.as_str(), retention.keep.to_string().as_str()),
        ("revoked_at", "7y")
    );
    let events = &config.jobs[&name("purge-events")];
    assert_eq!(
        (events.missed, events.overlap, events.approval, events.retries),
        (Missed::RunOnce, Overlap::Skip, Approval::Required, 3)
    );
    assert_eq!(
        (events.catch_up_window, events.run_timeout, events.lock_timeout),
        (
            Duration::from_hours(24),
            Duration::from_hours(2),
            Duration::from_secs(2)
        )
    );
    let StoreSettings::S3(offsite) = &config.stores[&name("offsite")] else {
        panic!("offsite is not in S3");
    };
    assert_eq!(
        (offsite.bucket.as_str(), offsite.prefix.as_str()),
        ("churn-saver-backups", "database")
    );
    assert_eq!(config.jobs[&name("nightly-backup")].kind.kind(), Kind::Backup);
}

#[test]
fn the_keys_that_the_shipped_configuration_leaves_out_are_keys_too() {
    let files = shipped();
    let text = fs::read_to_string(files.path("config.toml")).unwrap();
    let opened: Vec<&str> = text
        .lines()
        .map(|line| {
            let key = line.strip_prefix("# ").filter(|rest| {
                rest.split_once(" = ")
                    .is_some_and(|(key, _)| key.chars().all(|c| c.is_ascii_lowercase() || c == '_'))
            });
            key.unwrap_or(line)
        })
        .collect();
    let open = opened.join("\n");
    assert!(open.contains("\nmax_rows = ") && open.contains("\npassword_file = "));
    files.write("config.toml", open.as_bytes(), 0o640);
    let (config, warnings) = files.load().unwrap_or_else(|findings| panic!("{}", report(&findings)));
    assert!(warnings.is_empty(), "{}", report(&warnings));
    let target = &config.databases[&name("churn_saver")].target;
    assert_eq!(target.password_file, Some(files.path("credentials/churn_saver")));
}

#[test]
fn the_jobs_that_the_shipped_configuration_only_shows_are_jobs_too() {
    let files = shipped();
    let text = fs::read_to_string(files.path("config.toml")).unwrap();
    let open: Vec<&str> = text
        .lines()
        .map(|line| line.strip_prefix("#   ").unwrap_or(line))
        .collect();
    files.write("config.toml", open.join("\n").as_bytes(), 0o640);
    let (config, warnings) = files.load().unwrap_or_else(|findings| panic!("{}", report(&findings)));
    assert!(warnings.is_empty(), "{}", report(&warnings));
    for job in [
        "daily-metrics",
        "refresh-reports",
        "make-partitions",
        "weekly-upkeep",
        "look-after",
        "process-events",
        "export-company",
    ] {
        assert!(config.jobs.contains_key(&job.parse().unwrap()), "{job}");
    }
}

#[test]
fn every_default_that_the_shipped_configuration_states_is_the_default() {
    let files = shipped();
    let stated = files.load().unwrap().0;
    let text = fs::read_to_string(files.path("config.toml")).unwrap();
    let from = text.find("[daemon]").unwrap();
    let to = text.find("[databases.churn_saver]").unwrap();
    let without_daemon = format!("{}{}", &text[..from], &text[to..]);
    let from = without_daemon.find("[defaults]").unwrap();
    let to = without_daemon.find("[jobs.purge-events]").unwrap();
    let bare = format!("{}{}", &without_daemon[..from], &without_daemon[to..])
        .replace("compress = \"gzip:4\"", "")
        .replace("format = \"custom\"", "")
        .replace("min = 2", "");
    files.write("config.toml", bare.as_bytes(), 0o640);
    assert_eq!(files.load().unwrap().0.fingerprint, stated.fingerprint);
}

#[test]
fn every_example_loads_without_a_warning() {
    let files = shipped();
    let mut count = 0;
    for entry in fs::read_dir(root().join("examples")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "toml") {
            let (config, warnings) = Config::load_in(&path, &files.surroundings())
                .unwrap_or_else(|findings| panic!("{}", report(&findings)));
            let findings: Vec<_> = warnings
                .iter()
                .filter(|finding| !finding.message.contains("can change"))
                .collect();
            assert!(findings.is_empty(), "{findings:#?}");
            assert!(!config.jobs.is_empty());
            count += 1;
        }
    }
    assert!(count >= 4, "{count} examples");
}

fn report(findings: &[Finding]) -> String {
    findings.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
}

#[test]
fn ten_mistakes_are_ten_findings_in_order() {
    let text = r#"[daemon]
listen = "localhost"
colour = "blue"

[databases.main]
url = "postgresql://u@h/d"

[defaults]
retries = 11

[jobs.one]
schedule = "0 0 31 2 *"
retention = { tabel = "events", age_column = "created_at", keep = 90 }

[jobs.two]
schedule = "0 2 * * *"
database = "mian"
approval = "requird"
retention = { table = "events", age_column = "created_at", keep = "90d", where = "a) OR (b" }

[jobs.three]
schedule = "0 2 * * *"
"#;
    assert_eq!(
        Files::new(text).lines(),
        [
            "2:10 error `daemon.listen`: `localhost` is not an address with a port | write an address and a port, such as \"127.0.0.1:9847\" or \"[::1]:9847\", or \"off\"",
            "3:1 error unknown key `daemon.colour` | the keys here are instance, state_dir, runtime_dir, listen, timezone, history_keep",
            "9:11 error `defaults.retries`: 11 is out of range | write a whole number from 0 to 10",
            "12:12 error `jobs.one.schedule`: `0 0 31 2 *` never fires | write a date that exists, such as \"0 0 28 2 *\"",
            "13:15 error unknown key `jobs.one.retention.tabel` | did you mean `table`?",
            "13:67 error `jobs.one.retention.keep`: must be a string, not an integer | write a number and a unit, such as \"90d\", \"2h\" or \"1h30m\"; units: y mo w d h m s ms",
            "17:12 error `jobs.two.database`: there is no database `mian` | did you mean `main`?",
            "18:12 error `jobs.two.approval`: `requird` is not one of \"required\", \"none\" | did you mean `required`?",
            "19:82 error `jobs.two.retention.where`: a `)` closes nothing | write one condition, such as \"status = 'completed'\", with every bracket and quote closed",
            "21:7 error `jobs.three` does not say what it does | add one of retention, transition, erasure, rollup, refresh, backup, export, partitions, upkeep, health, call and restore_check",
        ]
    );
}

#[test]
fn a_finding_shows_the_line_with_a_caret() {
    let files = Files::new("[jobs.a]\nshedule = \"0 2 * * *\"\n");
    let findings = files.load().unwrap_err();
    let shown = report(&findings);
    let expected = "\n  |\n2 | shedule = \"0 2 * * *\"\n  | ^^^^^^^\n  = help: did you mean `schedule`?\n";
    assert!(shown.contains(expected), "{shown}");
    let json = serde_json::to_value(&findings[0]).unwrap();
    let keys: Vec<_> = json.as_object().unwrap().keys().map(String::as_str).collect();
    assert_eq!(keys, ["column", "file", "help", "line", "message", "severity"]);
}

#[test]
fn mistakes_in_the_syntax_do_not_hide_the_others() {
    let text = format!(
        "{HEAD}[jobs.a]\nschedule = \"hello\"\nretries = = 1\n\n[jobs.b]\nmissed = \"sometimes\"\nkeep = 90d\n"
    );
    let lines = Files::new(&text).lines();
    let places: Vec<_> = lines.iter().map(|line| line.split(' ').next().unwrap()).collect();
    assert_eq!(places, ["8:12", "9:11", "12:10", "13:8"], "{lines:#?}");
    // What may only be unread is not called missing.
    assert!(!lines.iter().any(|line| line.contains("missing")), "{lines:#?}");
}

#[test]
fn what_makes_no_rollup_is_named_with_its_remedy() {
    let rollup = |changes: &str| {
        let mut keys: Vec<(&str, &str)> = vec![
            ("source", "\"events\""),
            ("time_column", "\"created_at\""),
            ("bucket", "\"1h\""),
            ("target", "\"hours\""),
            ("measures", "{ events = \"count(*)\" }"),
        ];
        keys.retain(|(key, _)| !changes.starts_with(&format!("{key} ")));
        let keys: Vec<String> = keys.iter().map(|(key, value)| format!("{key} = {value}")).collect();
        format!("rollup = {{ {}, {changes} }}", keys.join(", "))
    };
    for (changes, part) in [
        (
            "bucket = \"7m\"",
            "7 minutes do not divide an hour evenly | write minutes that divide an hour",
        ),
        ("bucket = \"2d\"", "divides neither a week nor a month evenly"),
        ("timezone = \"Europe/Nowhere\"", "Europe/Nowhere"),
        ("measures = {}", "names no measure | write at least one"),
        ("measures = { events = \"count(*\" }", "is never closed"),
        (
            "measures = { bucket = \"count(*)\" }",
            "the column `bucket` would be there twice",
        ),
        ("mode = \"exactly\"", "did you mean `exact`?"),
        ("lateness = \"1mo\"", "whose length depends on the date"),
        ("key = [\"x\"]", "unknown key `jobs.j.rollup.key`"),
    ] {
        assert_one(&rollup(changes), "", part);
    }
    let query = "rollup = { target = \"t\", bucket = \"1d\", ";
    for (rest, part) in [
        ("query = \"DELETE FROM users\", key = [\"id\"] }", "is not a SELECT"),
        ("query = \"SELECT 1\", key = [] }", "names no key"),
        ("query = \"SELECT 1\" }", "the key `key` of `jobs.j.rollup` is missing"),
        (
            "query = \"SELECT 1\", key = [\"id\"], source = \"events\" }",
            "does not go with a `query`",
        ),
    ] {
        assert_one(&format!("{query}{rest}"), "", part);
    }
}

#[test]
fn views_to_refresh_are_named_once_and_concurrently_is_yes_or_no() {
    for (refresh, part) in [
        ("{}", "the key `views` of `jobs.j.refresh` is missing"),
        ("{ views = [] }", "names no view"),
        ("{ views = [\"days\", \"days\"] }", "`days` is named twice"),
        (
            "{ views = [\"days\"], concurrently = \"yes\" }",
            "must be a boolean, not a string",
        ),
        (
            "{ views = [\"days\"], concurently = true }",
            "did you mean `concurrently`?",
        ),
    ] {
        assert_one(&format!("refresh = {refresh}"), "", part);
    }
}

#[test]
fn upkeep_names_its_tables_once_and_only_what_it_can_do() {
    for (upkeep, part) in [
        ("{ tables = [] }", "names no table"),
        ("{ tables = [\"events\", \"events\"] }", "`events` is named twice"),
        ("{ actions = [] }", "names no action"),
        ("{ actions = [\"vacum\"] }", "did you mean `vacuum`?"),
        ("{ bloat_fraction = 0 }", "0 is not greater than 0 and at most 1"),
        ("{ dead_fraction = 1.5 }", "1.5 is not greater than 0 and at most 1"),
        ("{ min_index_size = \"16MiB\" }", "`16MiB` is not a size"),
        ("{ window = \"25h\" }", "is too long"),
        ("{ window = \"1mo\" }", "has months or years"),
        ("{ windows = \"2h\" }", "did you mean `window`?"),
    ] {
        assert_one(&format!("upkeep = {upkeep}"), "", part);
    }
    let bare = format!("{HEAD}[jobs.j]\nschedule = \"0 2 * * *\"\nupkeep = {{}}\n");
    assert!(Files::new(&bare).load().is_ok());
}

#[test]
fn a_call_names_its_function_and_arguments_that_are_values() {
    for (call, part) in [
        ("{}", "the key `function` of `jobs.j.call` is missing"),
        ("{ function = \"a.b.c\" }", "`a.b.c` is not a function's name"),
        (
            "{ function = \"f\", arguments = [[1]] }",
            "must be a string, an integer or a boolean",
        ),
        ("{ function = \"f\", search_path = [] }", "names no schema"),
        (
            "{ function = \"f\", repeat = true }",
            "unknown key `jobs.j.call.repeat`",
        ),
    ] {
        assert_one(&format!("call = {call}"), "", part);
    }
}

#[test]
fn health_has_limits_in_the_unit_of_each_check_that_make_sense() {
    for (checks, part) in [
        ("{}", "names no check"),
        ("{ backend = {} }", "did you mean `backends`?"),
        ("{ backends = { warning = \"80\" } }", "must be a number"),
        (
            "{ backends = { warning = 11 } }",
            "11 is not greater than 0 and at most 10",
        ),
        (
            "{ longest_query = { warning = 3600 } }",
            "must be a string, not an integer",
        ),
        ("{ replication_slots = { critical = \"10\" } }", "`10` is not a size"),
        ("{ invalid_indexes = { warning = 0 } }", "0 is out of range"),
        (
            "{ longest_query = { warning = \"5h\" } }",
            "it is critical from 4.0 h on and warns from 5.0 h on",
        ),
    ] {
        assert_one(&format!("health = {{ checks = {checks} }}"), "", part);
    }
    let all = format!("{HEAD}[jobs.j]\nschedule = \"0 2 * * *\"\nhealth = {{}}\n");
    assert!(Files::new(&all).load().is_ok());
}

#[test]
fn limits_of_a_backup_that_cannot_be_kept_are_refused() {
    for (keys, part) in [
        ("bandwidth = \"1\"", "`1` is not a size"),
        ("bandwidth = \"63kB\"", "too little to finish a part"),
        ("max_duration = \"0s\"", "must be longer than zero"),
        ("max_duration = \"31d\"", "is too long"),
        ("keep = { daily = 7, max_age = \"12h\" }", "this is less than a day"),
        ("keep = { monthly = 14, max_age = \"1y\" }", ""),
        (
            "keep = { yearly = 3, max_age = \"1y\" }",
            "`yearly` keeps backups for 730 days or more, and `max_age` for 372 at most",
        ),
        (
            "keep = { within = \"2y\", max_age = \"1y\" }",
            "`within` keeps backups for 672 days or more",
        ),
    ] {
        let job = format!("backup = {{ store = \"s\", {keys} }}");
        if part.is_empty() {
            let text = format!("{HEAD}[jobs.j]\nschedule = \"0 2 * * *\"\n{job}\n");
            assert!(Files::new(&text).load().is_ok(), "{keys}");
        } else {
            assert_one(&job, "", part);
        }
    }
}

#[test]
fn a_job_has_exactly_one_kind() {
    let backup = "backup = { store = \"s\" }";
    assert_one("", "7:7 error", "does not say what it does");
    let retention = "retention = { table = \"t\", age_column = \"a\", keep = \"1d\" }";
    assert_one(
        &format!("{retention}\n{backup}"),
        "10:1 error",
        "two kinds, retention and backup",
    );
    assert_one(
        "retension = { table = \"t\" }",
        "9:1 error",
        "did you mean `retention`?",
    );
    assert_one("backup = 5", "9:10 error", "must be a table, not an integer");
    assert_one("[[jobs.j.backup]]", "9:1 error", "must be a table, not an array");
}

#[test]
fn a_schedule_must_be_one_that_fires() {
    let job = |keys: &str| {
        let text = format!("{HEAD}[jobs.j]\nbackup = {{ store = \"s\" }}\n{keys}\n");
        Files::new(&text).lines()
    };
    for (keys, start, part) in [
        ("", "7:7 error", "the key `schedule` of `jobs.j` is missing"),
        ("schedule = \"0 2 * *\"", "9:12 error", "has 4 fields instead of five"),
        (
            "schedule = \"0 2 * * * *\"",
            "9:12 error",
            "has 6 fields instead of five",
        ),
        (
            "schedule = \"61 2 * * *\"",
            "9:12 error",
            "`61` is not a minute: 61 is not between 0 and 59",
        ),
        ("schedule = \"0 0 * MON *\"", "9:12 error", "`MON` is not a month"),
        ("schedule = \"@often\"", "9:12 error", "not a nickname"),
        ("schedule = \"0 0 30 2 *\"", "9:12 error", "never fires"),
        ("schedule = 5", "9:12 error", "must be a string, not an integer"),
        (
            "schedule = \"0 2 * * *\"\ntimezone = \"Mars/Olympus\"",
            "10:12 error",
            "not a time zone",
        ),
        (
            "schedule = \"*/7 * * * *\"",
            "9:12 warning",
            "and 4 at the end | write a step that divides 60",
        ),
        (
            "schedule = \"0 0 29 2 *\"",
            "9:12 warning",
            "on 2028-02-29, then on 2032-02-29",
        ),
        (
            "schedule = \"0 0 29 2 +Sun\"",
            "9:12 warning",
            "within the next five years",
        ),
        (
            "timezone = \"America/New_York\"\nschedule = \"30 2 * * *\"",
            "10:12 warning",
            "2026-03-08 does not exist there, and the job runs when the clock has been set (America/New_York) | 03:00 is",
        ),
        (
            "schedule = \"0 2 1 * mon\"",
            "9:12 warning",
            "and also on the days of the week",
        ),
    ] {
        let lines = job(keys);
        assert_eq!(lines.len(), 1, "{lines:#?}");
        assert!(lines[0].starts_with(start) && lines[0].contains(part), "{lines:#?}");
    }
    for sound in ["0 0 28 2 *", "@midnight", "0 0 13 * +Fri", "0 0 L * *"] {
        assert!(job(&format!("schedule = \"{sound}\"")).is_empty(), "{sound}");
    }
    // An unknown zone does not hide what is wrong with the schedule.
    assert_eq!(job("schedule = \"x\"\ntimezone = \"x\"").len(), 2);
}

#[test]
fn the_zone_of_a_schedule_is_the_daemons_unless_the_job_says_otherwise() {
    let text = format!(
        "[daemon]\ntimezone = \"Europe/Berlin\"\n{HEAD}[jobs.a]\nschedule = \"0 2 * * *\"\nbackup.store = \"s\"\n[jobs.b]\nschedule = \"0 2 * * *\"\ntimezone = \"utc\"\nbackup.store = \"s\"\n"
    );
    let (config, _) = Files::new(&text)
        .load()
        .unwrap_or_else(|findings| panic!("{}", report(&findings)));
    let zone = |job: &str| config.jobs[&name(job)].schedule.timezone().name().to_owned();
    assert_eq!((zone("a").as_str(), zone("b").as_str()), ("Europe/Berlin", "UTC"));
}

#[test]
fn limits_are_of_fixed_length_and_in_order() {
    let backup = "\nbackup = { store = \"s\" }";
    for (keys, start, part) in [
        ("run_timeout = \"1mo\"", "9:15", "has months or years"),
        ("lock_timeout = \"1y\"", "9:16", "has months or years"),
        ("catch_up_window = \"2mo\"", "9:19", "has months or years"),
        ("run_timeout = \"25d\"", "9:15", "too long"),
        ("catch_up_window = \"4000d\"", "9:19", "too long"),
        ("run_timeout = \"0s\"", "9:15", "longer than zero"),
        ("run_timeout = 30", "9:15", "must be a string"),
        ("lock_timeout = \"2h\"", "9:16", "may not take as long as the whole run"),
        ("run_timeout = \"2s\"", "9:15", "may not take as long as the whole run"),
        ("start_deadline = \"8d\"", "9:18", "too long"),
        ("jitter = \"25h\"", "9:10", "too long"),
        ("groups = \"dumps\"", "9:10", "must be an array"),
        ("groups = [\"Big Dumps\"]", "9:11", "is not a name"),
        ("retries = 11", "9:11", "out of range"),
        ("retries = -1", "9:11", "out of range"),
        ("retries = 99999999999999999999999", "9:11", "out of range"),
        (
            "retries = 1.5",
            "9:11",
            "must be an integer, not a number with a fraction",
        ),
        (
            "missed = \"run_twice\"",
            "9:10",
            "is not one of \"skip\", \"run_once\", \"run_all\"",
        ),
        ("missed = true", "9:10", "must be a string, not a boolean"),
    ] {
        assert_one(&format!("{keys}{backup}"), start, part);
    }
    for keys in [
        "retries = 10",
        "retries = 0x0A",
        "run_timeout = \"24d\"",
        "lock_timeout = \"119m\"",
        "run_timeout = \"2001ms\"",
    ] {
        assert_eq!(lines_of_job(&format!("{keys}{backup}")), [""; 0], "{keys}");
    }
    // A mistake in the defaults is one mistake, however many jobs there are.
    let text = format!(
        "{HEAD}[defaults]\nrun_timeout = \"1s\"\n[jobs.a]\nschedule = \"0 2 * * *\"{backup}\n[jobs.b]\nschedule = \"0 2 * * *\"{backup}\n"
    );
    let lines = Files::new(&text).lines();
    assert_eq!(lines.len(), 1, "{lines:#?}");
    assert!(lines[0].starts_with("8:15"), "{lines:#?}");
}

#[test]
fn a_retention_that_makes_no_sense_is_refused() {
    let with = |keys: &str| format!("retention = {{ table = \"t\", age_column = \"a\", keep = \"1d\"{keys} }}");
    for (keys, part) in [
        (", max_fraction = 0", "0 is not greater than 0"),
        (", max_fraction = 0.0", "0.0 is not greater than 0"),
        (", max_fraction = 1.01", "1.01 is not greater than 0 and at most 1"),
        (", max_fraction = nan", "nan is not greater than 0"),
        (", max_fraction = \"10%\"", "must be a number, not a string"),
        (", max_rows = 0", "0 is out of range"),
        (", max_rows = -5", "-5 is out of range"),
        (", timezone = \"Berlin\"", "`Berlin` is not a time zone"),
        (", where = \"a; DELETE FROM users\"", "would end the statement"),
        (", where = \"(a\"", "never closed"),
        (", where = \"a = 'x\"", "a string is never closed"),
        (", where = \"a /* x\"", "a comment with /* is never closed"),
        (", where = \"a -- x\"", "a comment with -- is never closed"),
        (", where = \"a = $$x\"", "is never closed"),
        (", where = \"\"", "the condition is empty"),
        (", where = true", "must be a string, not a boolean"),
        (", where = \"WHERE a\"", "does not begin with WHERE"),
    ] {
        assert_one(&with(keys), "9:", part);
    }
    for keys in [
        ", max_fraction = 1",
        ", max_fraction = 1.0",
        ", max_fraction = 0.001",
        ", max_rows = 1",
    ] {
        assert_eq!(lines_of_job(&with(keys)), [""; 0], "{keys}");
    }
    for (job, start, part) in [
        (
            "retention = { age_column = \"a\", keep = \"1d\" }",
            "9:1 ",
            "the key `table` of `jobs.j.retention` is missing",
        ),
        (
            "retention = { table = \"a.b.c\", age_column = \"a\", keep = \"1d\" }",
            "9:23 ",
            "is not a table's name",
        ),
        (
            "retention = { table = \"t\", age_column = \" a\", keep = \"1d\" }",
            "9:41 ",
            "is not a column's name",
        ),
        (
            "retention = { table = \"t\", age_column = \"a\", keep = \"0d\" }",
            "9:53 ",
            "longer than zero",
        ),
        (
            "retention = { table = \"t\", age_column = \"a\", keep = \"90\" }",
            "9:53 ",
            "number without a unit",
        ),
        (
            "retention = { table = \"t\", age_column = \"a\", keep = \"9x\" }",
            "9:53 ",
            "`x` is not a unit of time",
        ),
    ] {
        assert_one(job, start, part);
    }
}

#[test]
fn a_transition_that_makes_no_sense_is_refused() {
    let with = |keys: &str| format!("transition = {{ table = \"t\", age_column = \"a\", after = \"2h\", {keys} }}");
    for (keys, part) in [
        ("from = {}, set = { s = \"x\" }", "names 0 columns instead of one"),
        (
            "from = { s = [\"a\"], r = [\"b\"] }, set = { s = \"x\" }",
            "names 2 columns instead of one",
        ),
        ("from = { s = [] }, set = { s = \"x\" }", "names no state"),
        (
            "from = { s = \"a\" }, set = { s = \"x\" }",
            "must be an array, not a string",
        ),
        (
            "from = { s = [1.5] }, set = { s = \"x\" }",
            "must be a string, an integer or a boolean",
        ),
        ("from = { s = [\"a\"] }, set = {}", "sets nothing"),
        ("from = { s = [\"a\"] }, set = { r = \"x\" }", "does not set `s`"),
        (
            "from = { s = [\"a\", \"x\"] }, set = { s = \"x\" }",
            "moves rows to `x`",
        ),
        (
            "from = { s = [\"a\"] }, set = { s = [\"x\"] }",
            "must be a string, an integer or a boolean",
        ),
        (
            "from = { s = [\"a\"] }, set = { s = \"x\" }, stamp = \"at\"",
            "must be an array, not a string",
        ),
        (
            "from = { s = [\"a\"] }, set = { s = \"x\" }, stamp = [\"s\"]",
            "`s` is set already",
        ),
        (
            "from = { s = [\"a\"] }, set = { s = \"x\" }, stamp = [\"b\", \"b\"]",
            "`b` is set already",
        ),
        (
            "from = { s = [\"a\"] }",
            "the key `set` of `jobs.j.transition` is missing",
        ),
    ] {
        assert_one(&with(keys), "9:", part);
    }
    let files = Files::new(&format!(
        "{HEAD}[jobs.j]\nschedule = \"0 2 * * *\"\n{}\n",
        with("from = { active = [true, 1] }, set = { active = false, n = -3 }")
    ));
    let (config, _) = files.load().unwrap_or_else(|findings| panic!("{}", report(&findings)));
    let KindSettings::Transition(transition) = &config.jobs[&name("j")].kind else {
        panic!("not a transition");
    };
    assert_eq!(transition.from.values, ["true", "1"]);
    let set: Vec<_> = transition.set.values().collect();
    assert_eq!(set, ["false", "-3"]);
}

#[test]
fn a_backup_that_makes_no_sense_is_refused() {
    for (job, part) in [
        ("backup = { store = \"offsite\" }", "there is no store `offsite`"),
        ("backup = {}", "the key `store` of `jobs.j.backup` is missing"),
        (
            "backup = { store = \"s\", compress = \"gzip:10\" }",
            "`gzip:10` is not a compression",
        ),
        (
            "backup = { store = \"s\", compress = \"zstd:20\" }",
            "`zstd:20` is not a compression",
        ),
        ("backup = { store = \"s\", threads = 0 }", "0 is out of range"),
        (
            "backup = { store = \"s\", parallel = 2, schema_only = true }",
            "there is only one dump to run",
        ),
        (
            "backup = { store = \"s\", parallel = 2, format = \"plain\" }",
            "there is only one dump to run",
        ),
        ("backup = { store = \"s\", encrypt = [] }", "is empty"),
        (
            "backup = { store = \"s\", encrypt = [\"age1x\"] }",
            "`age1x` is not an age recipient",
        ),
        (
            "backup = { store = \"s\", encrypt = [\"AGE-SECRET-KEY-1ABC\"] }",
            "is an identity, which is a secret",
        ),
        (
            "backup = { store = \"s\", exclude = [\"a.b.c\"] }",
            "`a.b.c` is not a table's name",
        ),
        (
            "backup = { store = \"s\", standby = { url = \"nowhere\" } }",
            "not a connection URL",
        ),
        (
            "backup = { store = \"s\", format = \"tar\" }",
            "`tar` is not one of \"custom\"",
        ),
        ("backup = { store = \"s\", keep = {} }", "no rule keeps a backup"),
        (
            "backup = { store = \"s\", keep = { daily = 0 } }",
            "no rule keeps a backup",
        ),
        (
            "backup = { store = \"s\", keep = { daily = 7, min = 1 } }",
            "1 is out of range",
        ),
        (
            "backup = { store = \"s\", keep = { dialy = 7, last = 1 } }",
            "did you mean `daily`?",
        ),
        (
            "backup = { store = \"s\", keep = 7 }",
            "must be a table, not an integer",
        ),
        (
            "backup = { store = \"s\", keep = { within = 7 } }",
            "must be a string, not an integer",
        ),
    ] {
        assert_one(job, "9:", part);
    }
    for job in [
        "backup = { store = \"s\", keep = { within = \"2d\", min = 2 } }",
        "backup = { store = \"s\" }",
    ] {
        assert_eq!(lines_of_job(job), [""; 0], "{job}");
    }
}

#[test]
fn a_misspelt_store_is_recognised() {
    let text = format!(
        "{HEAD}[stores.offsite]\nurl = \"s3://bucket\"\n[jobs.j]\nschedule = \"0 2 * * *\"\nbackup.store = \"ofsite\"\n"
    );
    assert_eq!(
        Files::new(&text).lines(),
        ["11:16 error `jobs.j.backup.store`: there is no store `ofsite` | did you mean `offsite`?"]
    );
}

#[test]
fn a_bucket_may_be_written_to_in_many_manners_and_none_is_misread() {
    let store = |keys: &str| Files::new(&format!("[stores.x]\n{keys}\n[jobs]\n")).lines();
    for (keys, part) in [
        ("url = \"s3://bucket\"\nobject_lock = true", "must be a table"),
        (
            "url = \"s3://bucket\"\nobject_lock = { mode = \"compliance\" }",
            "the key `period` of `stores.x.object_lock` is missing",
        ),
        (
            "url = \"s3://bucket\"\nobject_lock = { mode = \"legal\", period = \"30d\" }",
            "not one of \"governance\", \"compliance\"",
        ),
        (
            "url = \"s3://bucket\"\nchecksum = \"none\"\nobject_lock = { mode = \"compliance\", period = \"30d\" }",
            "no locked object without a checksum",
        ),
        ("url = \"s3://bucket\"\nchecksum = \"sha1\"", "`sha1` is not one of"),
        ("url = \"s3://bucket\"\nsse = \"kms\"", "`kms` is not one of"),
        ("url = \"s3://bucket\"\nkms_key = \"alias/x\"", "means nothing here"),
        (
            "url = \"s3://bucket\"\nsse = \"AES256\"\nkms_key = \"alias/x\"",
            "means nothing here",
        ),
        ("url = \"s3://bucket\"\nstorage_class = \"GLACIER\"", "cannot be read"),
        (
            "url = \"s3://bucket\"\nstorage_class = \"cheap\"",
            "not a storage class",
        ),
        ("url = \"s3://bucket\"\npart_size = \"4MB\"", "no size for a part"),
        ("url = \"s3://bucket\"\npart_size = \"5121kB\"", "no size for a part"),
        ("url = \"s3://bucket\"\nmax_parts = 10001", "out of range"),
        (
            "url = \"file:///var/store\"\nsse = \"AES256\"",
            "means nothing for a store of files",
        ),
    ] {
        let lines = store(keys);
        let errors: Vec<_> = lines.iter().filter(|line| line.contains(" error ")).collect();
        assert_eq!(errors.len(), 1, "{keys}: {lines:#?}");
        assert!(errors[0].contains(part), "{keys}: {lines:#?}");
    }
    let text = "[stores.a]\nurl = \"s3://bucket/\"\nsse = \"aws:kms\"\nkms_key = \"alias/x\"\nchecksum = \"md5\"\nstorage_class = \"GLACIER_IR\"\npart_size = \"64MB\"\nmax_parts = 1000\nobject_lock = { mode = \"governance\", period = \"30d\" }\n";
    let (config, _) = Files::new(text).load().unwrap();
    let wanted = S3Settings {
        bucket: "bucket".to_owned(),
        checksum: Checksum::Md5,
        encryption: Some(Encryption::Kms(Some("alias/x".to_owned()))),
        storage_class: Some("GLACIER_IR".to_owned()),
        object_lock: Some(ObjectLock {
            mode: LockMode::Governance,
            period: Duration::from_hours(720),
        }),
        part_bytes: Some(64 << 20),
        max_parts: Some(1000),
        ..S3Settings::default()
    };
    assert_eq!(config.stores[&name("a")], StoreSettings::S3(Box::new(wanted)));
}

#[test]
fn a_store_is_a_bucket_or_a_directory() {
    let store = |keys: &str| Files::new(&format!("[stores.x]\n{keys}\n[jobs]\n")).lines();
    for (keys, part) in [
        ("", "the key `url` of `stores.x` is missing"),
        ("url = \"gs://b\"", "not the url of a store"),
        ("url = \"s3://\"", "names no bucket"),
        ("url = \"s3://ab\"", "names no bucket"),
        ("url = \"s3://key:hunter2@bucket/x\"", "names no bucket"),
        ("url = \"s3://bucket/a//b\"", "the prefix cannot be part"),
        ("url = \"s3://bucket/../b\"", "the prefix cannot be part"),
        ("url = \"s3://bucket/a?x=1\"", "the prefix cannot be part"),
        ("url = \"file://relative/x\"", "names no directory"),
        ("url = \"file:x\"", "names no directory"),
        ("url = \"file:///\"", "names no directory"),
        (
            "url = \"file:///x\"\nregion = \"eu\"",
            "means nothing for a store of files",
        ),
        (
            "url = \"file:///x\"\npath_style = true",
            "means nothing for a store of files",
        ),
        (
            "url = \"s3://bucket\"\nendpoint = \"localhost:9000\"",
            "not the address of a server",
        ),
        (
            "url = \"s3://bucket\"\nendpoint = \"https://u:hunter2@h\"",
            "not the address of a server",
        ),
        (
            "url = \"s3://bucket\"\npath_style = \"yes\"",
            "must be a boolean, not a string",
        ),
        ("url = \"s3://bucket\"\nregion = \"\"", "not a name"),
        (
            "url = \"s3://bucket\"\nsecret_key = \"hunter2\"",
            "unknown key `stores.x.secret_key`",
        ),
    ] {
        let lines = store(keys);
        let errors: Vec<_> = lines.iter().filter(|line| line.contains(" error ")).collect();
        assert_eq!(errors.len(), 1, "{keys}: {lines:#?}");
        assert!(errors[0].contains(part), "{keys}: {lines:#?}");
        assert!(!errors[0].contains("hunter2"), "{lines:#?}");
    }
    let text = "[stores.a]\nurl = \"s3://bucket/a/b/\"\nendpoint = \"http://127.0.0.1:9000/\"\n[stores.b]\nurl = \"file:///var/my%20store\"\n";
    let (config, _) = Files::new(text).load().unwrap();
    let StoreSettings::S3(a) = &config.stores[&name("a")] else {
        panic!("a is not in S3");
    };
    assert_eq!(
        (a.prefix.as_str(), a.endpoint.as_deref()),
        ("a/b", Some("http://127.0.0.1:9000"))
    );
    assert_eq!(config.stores[&name("b")], StoreSettings::File("/var/my store".into()));
}

#[test]
fn the_daemons_keys_are_checked() {
    for (keys, part) in [
        ("instance = \"\"", "cannot be an instance's name"),
        ("instance = \"a b\"", "cannot be an instance's name"),
        ("state_dir = \"state\"", "`state` is not an absolute path"),
        ("runtime_dir = \"/run/../x\"", "is not an absolute path"),
        ("state_dir = \"${HOME}/x\"", "variables are not expanded here"),
        ("listen = \"127.0.0.1\"", "is not an address with a port"),
        ("listen = \"127.0.0.1:99999\"", "is not an address with a port"),
        ("listen = 9847", "must be a string, not an integer"),
        ("timezone = \"Mars/Olympus\"", "is not a time zone"),
        ("timezone = 2026-01-01", "must be a string, not a date or time"),
    ] {
        let lines = Files::new(&format!("[daemon]\n{keys}\n")).lines();
        let errors: Vec<_> = lines.iter().filter(|line| line.contains(" error ")).collect();
        assert_eq!(errors.len(), 1, "{lines:#?}");
        assert!(errors[0].starts_with("2:") && errors[0].contains(part), "{lines:#?}");
    }
    let (config, _) = Files::new("[daemon]\nlisten = \"off\"\ninstance = \"a\"\n")
        .load()
        .unwrap();
    assert_eq!((config.daemon.listen, config.daemon.instance.as_str()), (None, "a"));
}

#[test]
fn the_host_is_the_instance_where_none_is_named() {
    let files = Files::new("");
    let (config, _) = Config::load(&files.path("config.toml")).unwrap();
    let host = fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
    assert_eq!(config.daemon.instance, host.trim());
}

#[test]
fn a_name_is_checked_and_what_is_below_it_too() {
    let text = format!("{HEAD}[jobs.\"Purge Events\"]\nschedule = \"x\"\nbackup = {{ store = \"s\" }}\n");
    let lines = Files::new(&text).lines();
    assert_eq!(lines.len(), 2, "{lines:#?}");
    assert!(
        lines[0].starts_with("7:7 error `Purge Events` is not a name"),
        "{lines:#?}"
    );
    assert!(lines[1].starts_with("8:12 error"), "{lines:#?}");
}

#[test]
fn a_database_may_be_left_out_only_while_there_is_one() {
    let job = "[jobs.j]\nschedule = \"0 2 * * *\"\nretention = { table = \"t\", age_column = \"a\", keep = \"1d\" }\n";
    let lines = Files::new(job).lines();
    assert_eq!(lines.len(), 1, "{lines:#?}");
    assert!(
        lines[0].starts_with("1:7 error `jobs.j` does not say on which database"),
        "{lines:#?}"
    );
    assert!(lines[0].contains("add a [databases.NAME]"), "{lines:#?}");
    let two = format!("{HEAD}[databases.e]\nurl = \"postgresql://u@h/e\"\n{job}");
    let lines = Files::new(&two).lines();
    assert_eq!(lines.len(), 1, "{lines:#?}");
    assert!(lines[0].contains("there is: d, e"), "{lines:#?}");
}

#[test]
fn a_password_in_a_file_for_everybody_is_refused_and_never_shown() {
    let text = "[databases.d]\nurl = \"postgresql://u:hunter2@h/d\"\n";
    let files = Files::new(text);
    assert!(files.load().is_ok());
    files.write("config.toml", text.as_bytes(), 0o644);
    let findings = files.load().unwrap_err();
    let error = findings
        .iter()
        .find(|finding| finding.severity == Severity::Error)
        .unwrap();
    assert_eq!((error.line, error.column), (2, 7));
    assert!(error.message.contains("everybody on this host can read"), "{error}");
    assert!(error.help.as_deref().unwrap().contains("password_file"), "{error}");
    assert!(!report(&findings).contains("hunter2"));
    assert!(!serde_json::to_string(&findings).unwrap().contains("hunter2"));
    // Without a password the same mode is fine.
    files.write("config.toml", b"[databases.d]\nurl = \"postgresql://u@h/d\"\n", 0o644);
    assert!(files.load().is_ok());
}

#[test]
fn no_mistake_in_a_url_shows_its_password() {
    for url in [
        "postgresql://u:hunter2@h:port/d",
        "postgresql://u:hunter2@h/d?sslmod=require",
        "postgresql://u:1?hunter2@h/d",
        "mysql://u:hunter2@h/d",
        "postgresql://:hunter2@h/d",
        "u:hunter2@h",
    ] {
        let files = Files::new(&format!("[databases.d]\nurl = \"{url}\"\n"));
        let findings = files.load().unwrap_err();
        assert!(!report(&findings).contains("hunter2"), "{}", report(&findings));
    }
}

#[test]
fn a_password_file_must_be_there_and_be_private() {
    let database = |file: &str| format!("[databases.d]\nurl = \"postgresql://u@h/d\"\npassword_file = \"{file}\"\n");
    let files = Files::new(&database("${CREDENTIALS_DIRECTORY}/d"));
    let only = |part: &str, severity: &str| {
        let lines: Vec<_> = files
            .lines()
            .into_iter()
            .filter(|line| !line.contains("no jobs"))
            .collect();
        assert_eq!(lines.len(), 1, "{lines:#?}");
        assert!(
            lines[0].starts_with(&format!("3:17 {severity}")) && lines[0].contains(part),
            "{lines:#?}"
        );
    };
    only("there is no file credentials/d", "error");
    files.write("credentials/d", b"", 0o600);
    only("is empty", "error");
    files.write("credentials/d", b"hunter2\n", 0o604);
    only("everybody on this host can read", "warning");
    files.write("credentials/d", b"hunter2\n", 0o640);
    let (config, _) = files.load().unwrap();
    let target = &config.databases[&name("d")].target;
    assert_eq!(target.password_file, Some(files.path("credentials/d")));
    files.write("config.toml", database("${CREDENTIALS_DIRECTORY}").as_bytes(), 0o640);
    only("is not a file", "error");
    files.write("config.toml", database("${HOME}/d").as_bytes(), 0o640);
    only("holds a variable that is not expanded", "error");
    files.write("config.toml", database("secret").as_bytes(), 0o640);
    only("is not an absolute path", "error");
    files.write("config.toml", database("/x").replace("u@", "u:p@").as_bytes(), 0o640);
    let lines = files.lines();
    assert!(
        lines
            .iter()
            .any(|line| line.contains("the url holds a password as well")),
        "{lines:#?}"
    );
}

#[test]
fn an_unset_credentials_directory_is_named() {
    let files =
        Files::new("[databases.d]\nurl = \"postgresql://u@h/d\"\npassword_file = \"${CREDENTIALS_DIRECTORY}/d\"\n");
    let surroundings = Surroundings {
        credentials_directory: None,
        ..files.surroundings()
    };
    let findings = Config::load_in(&files.path("config.toml"), &surroundings).unwrap_err();
    let shown = report(&findings);
    assert!(
        shown.contains("CREDENTIALS_DIRECTORY is not set") && shown.contains(":3:17"),
        "{shown}"
    );
}

#[test]
fn parts_are_merged_in_the_order_of_their_names() {
    let job = |name: &str| format!("[jobs.{name}]\nschedule = \"0 2 * * *\"\nbackup.store = \"s\"\n");
    let files = Files::new(&format!("{HEAD}{}", job("a")))
        .with("conf.d/20-c.toml", &format!("[daemon]\ninstance = \"x\"\n{}", job("c")))
        .with("conf.d/10-b.toml", &job("b"))
        .with("conf.d/.hidden.toml", "nonsense")
        .with("conf.d/README", "nonsense");
    let (config, warnings) = files.load().unwrap_or_else(|findings| panic!("{}", report(&findings)));
    assert!(warnings.is_empty());
    assert_eq!(config.jobs.len(), 3);
    assert_eq!(config.daemon.instance, "x");
    let names: Vec<_> = config
        .files
        .iter()
        .map(|file| file.file_name().unwrap().to_str().unwrap())
        .collect();
    assert_eq!(names, ["config.toml", "10-b.toml", "20-c.toml"]);
    assert!(config.jobs[&name("c")].place.file.ends_with("conf.d/20-c.toml"));
}

#[test]
fn a_name_or_key_in_two_files_prints_both_places() {
    let files = Files::new(&format!("[daemon]\nlisten = \"off\"\n{HEAD}")).with(
        "conf.d/a.toml",
        "[daemon]\nlisten = \"off\"\n[databases.d]\nurl = \"postgresql://u@h/d\"\n[stores]\ns.url = \"file:///x\"\n[jobs]\n",
    );
    let lines: Vec<_> = files
        .lines()
        .into_iter()
        .filter(|line| !line.contains("no jobs"))
        .collect();
    let help = "keep one of the two, or give one another name";
    assert_eq!(
        lines,
        [
            format!("conf.d/a.toml2:1 error `daemon.listen` is already set at config.toml:2:1 | {help}"),
            format!("conf.d/a.toml3:12 error `databases.d` is already set at config.toml:3:12 | {help}"),
            format!("conf.d/a.toml6:1 error `stores.s` is already set at config.toml:6:9 | {help}"),
        ]
    );
}

#[test]
fn a_name_twice_in_one_file_prints_both_places() {
    let lines = Files::new(&format!("{HEAD}[jobs.a]\n[jobs.a]\n")).lines();
    assert!(
        lines[0].starts_with("8:7 error `a` stands here a second time; it was first set at config.toml:7:7"),
        "{lines:#?}"
    );
}

#[test]
fn a_file_that_cannot_be_read_is_one_clear_finding() {
    let files = Files::new("");
    files.write("bytes.toml", b"a = 1\nb = \"\xff\"\n", 0o640);
    fs::write(files.path("large.toml"), vec![b'#'; (4 << 20) + 1]).unwrap();
    fs::create_dir(files.path("dir.toml")).unwrap();
    for (file, place, part) in [
        ("none.toml", (1, 1), "there is no such file"),
        ("dir.toml", (1, 1), "this is a directory"),
        ("bytes.toml", (2, 6), "not UTF-8"),
        ("large.toml", (1, 1), "larger than 4 MiB"),
    ] {
        let findings = Config::load_in(&files.path(file), &files.surroundings()).unwrap_err();
        assert_eq!(findings.len(), 1, "{findings:#?}");
        assert_eq!((findings[0].line, findings[0].column), place, "{findings:#?}");
        assert!(findings[0].message.contains(part), "{findings:#?}");
        assert!(
            findings[0].file.ends_with(file) && findings[0].help.is_some(),
            "{findings:#?}"
        );
    }
    let files = Files::new("").with("conf.d", "a file");
    assert!(
        files.lines()[0].contains("the directory cannot be read"),
        "{:#?}",
        files.lines()
    );
}

#[test]
fn an_empty_file_is_a_configuration_without_jobs() {
    for text in ["", "\n# nothing\n", "\u{feff}"] {
        let (config, warnings) = Files::new(text).load().unwrap();
        assert!(config.jobs.is_empty());
        assert_eq!(warnings.len(), 1, "{warnings:#?}");
        assert!(warnings[0].message.contains("no jobs"), "{warnings:#?}");
    }
}

#[test]
fn a_file_that_everybody_can_change_is_pointed_out() {
    let files = Files::new("");
    files.write("config.toml", HEAD.as_bytes(), 0o646);
    let (_, warnings) = files.load().unwrap();
    assert!(
        warnings[0].message.contains("everybody on this host can change"),
        "{warnings:#?}"
    );
}

#[test]
fn the_fingerprint_is_of_the_meaning() {
    let job = "[jobs.j]\nschedule = \"0 2 * * *\"\nbackup = { store = \"s\" }\n";
    let fingerprint = |text: &str| Files::new(text).load().unwrap().0.fingerprint;
    let reference = fingerprint(&format!("{HEAD}{job}"));
    assert!(reference.starts_with("sha256:") && reference.len() == 71, "{reference}");
    let same = [
        format!("# a comment\n{job}\n{HEAD}"),
        format!("{HEAD}{job}missed = \"run_once\"\nrun_timeout = \"120m\"\ndatabase = \"d\"\n").replace(
            "backup = { store = \"s\" }\nmissed",
            "backup.store = \"s\"\nbackup.format = \"custom\"\nmissed",
        ),
        format!("{HEAD}{job}").replace("u@h", "u:secret@h"),
    ];
    for text in same {
        assert_eq!(fingerprint(&text), reference, "{text}");
    }
    let other = [
        format!("{HEAD}{job}retries = 2\n"),
        format!("{HEAD}{job}timezone = \"Europe/Berlin\"\n"),
        format!("{HEAD}{job}").replace("u@h", "v@h"),
        format!("{HEAD}{job}").replace("/var/lib/s", "/var/lib/t"),
        format!("{HEAD}{job}").replace("\"0 2", "\"0 3"),
    ];
    for text in other {
        assert_ne!(fingerprint(&text), reference, "{text}");
    }
}

#[test]
fn the_place_of_a_key_can_be_asked_for_later() {
    let (config, _) = shipped().load().unwrap();
    let text = fs::read_to_string(root().join("config.toml")).unwrap();
    let place = |job: &str, key: &str| {
        let place = config.jobs[&name(job)].place_of(key).clone();
        let line = text.lines().nth(place.line - 1).unwrap();
        line.chars().skip(place.column - 1).collect::<String>()
    };
    assert_eq!(place("purge-events", "table"), "\"events\"");
    assert_eq!(place("purge-events", "schedule"), "\"0 2 * * *\"");
    assert_eq!(place("purge-events", "max_rows"), "purge-events]");
    assert!(place("purge-exports", "where").starts_with("\"status = 'completed'\""));
    let events = &config.jobs[&name("purge-events")];
    let finding = Finding::error(
        events.place_of("table").clone(),
        "there is no table public.events",
        "name one",
    );
    assert!(finding.to_string().contains("| table = \"events\"\n"), "{finding}");
}

/// What a server makes of a text between parentheses: rows and columns; one row of two columns means
/// that the text stayed between them.
async fn shape(connection: &mut PgConnection, text: &str, conforming: &str) -> Option<(usize, usize)> {
    let setting = format!("SET standard_conforming_strings = {conforming}");
    sqlx::raw_sql(AssertSqlSafe(setting))
        .execute(&mut *connection)
        .await
        .unwrap();
    let sql = format!("SELECT (\n{text}\n) AS value, 'sentinel'::text AS sentinel");
    let rows = sqlx::raw_sql(AssertSqlSafe(sql)).fetch_all(connection).await.ok()?;
    let columns = rows.iter().map(|row| row.columns().len()).max().unwrap_or(0);
    Some((rows.len(), columns))
}

#[tokio::test]
async fn a_where_that_would_leave_its_parentheses_on_a_real_server_is_refused() {
    let mut connection = Database::create().await.connect().await;
    for (text, conforming) in [
        ("1), (1", "on"),
        ("1), 's'; SELECT (1", "on"),
        // A backslash escapes the quote where the server is set so.
        ("'\\' || '), (1 || ' -- '\n", "off"),
        // The escapes of E'…' go on in the literal on the next line, also behind a comment.
        ("E'a'\n'\\' || '), (1 || ' -- '\n", "on"),
        ("E'a' -- x\n '\\' || '), (1 || ' -- '\n", "on"),
    ] {
        let left = shape(&mut connection, text, conforming).await;
        assert!(left.is_some_and(|shape| shape != (1, 2)), "{text}: {left:?}");
        assert!(predicate::check(text).is_err(), "{text}");
    }
}

/// The guard of a `where` against the server's own lexer: what passes stays one value between the
/// parentheses it is put in, under both meanings of a backslash, or the server refuses it.
#[tokio::test]
async fn a_where_that_passes_cannot_leave_its_parentheses() {
    let pieces = [
        "'", "'", "''", "\"", "$$", "$a$", "$", "(", ")", "[", "]", ",", ";", "--", "/*", "*/", "\\", "E'", "e", "U&'",
        "B'", "1", "a", "\n", "\r", " ", "||", "-", "*", "/",
    ];
    let piece = prop::sample::select(pieces.to_vec());
    let strategy = prop::collection::vec(piece, 1..10).prop_map(|pieces| pieces.concat());
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let mut connection = Database::create().await.connect().await;
    let (mut passed, mut run) = (0, 0);
    for _ in 0..6000 {
        let text = strategy.new_tree(&mut runner).unwrap().current();
        if predicate::check(&text).is_err() {
            continue;
        }
        passed += 1;
        for conforming in ["on", "off"] {
            if let Some(shape) = shape(&mut connection, &text, conforming).await {
                run += 1;
                assert_eq!(shape, (1, 2), "{text}");
            }
        }
    }
    // The texts must be near enough to SQL to say something.
    assert!(passed > 500 && run > 100, "{passed} passed, {run} run");
}

#[test]
fn a_terminal_is_not_written_to_by_a_key() {
    let lines = Files::new("\"a\\u001b[31mb\" = 1\n").load().unwrap_err();
    assert!(!report(&lines).contains('\u{1b}'));
    let lines = Files::new("a = \u{1b}[31m\n").load().unwrap_err();
    assert!(!report(&lines).contains('\u{1b}'));
}

#[test]
fn deep_nesting_is_a_finding() {
    let dotted = "a.".repeat(500);
    for text in [
        format!("a = {}", "[".repeat(1_000_000)),
        format!("a = {}", "{a=".repeat(1_000_000)),
        format!("{}b = 1", "a.".repeat(1_000_000)),
        format!("[{}b]", "a.".repeat(1_000_000)),
        format!("{dotted}b = 1\n{dotted}b = 1\n"),
        format!("{dotted}b = {{\n").repeat(70),
    ] {
        assert!(Files::new(&text).load().is_err());
    }
}

/// Pieces of a configuration, so that random texts come near real ones.
fn piece() -> impl Strategy<Value = String> {
    let words = [
        "[jobs.a]\n",
        "[jobs.a.retention]\n",
        "[jobs]\n",
        "[[jobs]]\n",
        "[daemon]\n",
        "[stores.s]\n",
        "[databases.d]\n",
        "[defaults]\n",
        "schedule",
        "retention",
        "transition",
        "backup",
        "keep",
        "where",
        "from",
        "set",
        "stamp",
        "url",
        " = ",
        "\"",
        "'",
        "\"\"\"",
        "{",
        "}",
        "[",
        "]",
        ", ",
        "\n",
        ".",
        "#",
        "1",
        "-1.5",
        "true",
        "\"90d\"",
        "\"0 2 * * *\"",
        "\"s3://b\"",
        "\"postgresql://u:p@h/d\"",
        "2026-01-01",
        "\u{feff}",
        "\r",
        "\t",
        "ü",
        "\0",
    ];
    prop_oneof![4 => prop::sample::select(words.to_vec()).prop_map(str::to_owned), 1 => ".{0,6}"]
}

/// What loading must hold to, whatever the text.
fn check_any(files: &Files, text: &str) {
    files.write("config.toml", text.as_bytes(), 0o640);
    let result = files.load();
    let lines = text.split('\n').count();
    let (findings, failed) = match &result {
        Ok((_, warnings)) => (warnings, false),
        Err(findings) => (findings, true),
    };
    assert_eq!(
        failed,
        findings.iter().any(|finding| finding.severity == Severity::Error)
    );
    for finding in findings {
        assert!((1..=lines).contains(&finding.line) && finding.column >= 1, "{finding}");
        assert!(
            !finding.message.is_empty() && !finding.to_string().contains("hunter2"),
            "{finding}"
        );
    }
    let places: Vec<_> = findings.iter().map(|finding| (finding.line, finding.column)).collect();
    assert!(places.is_sorted(), "{places:?}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn no_text_is_too_strange(pieces in prop::collection::vec(piece(), 0..40)) {
        check_any(&Files::new(""), &pieces.concat());
    }

    #[test]
    fn no_change_of_the_shipped_configuration_is_too_strange(
        edits in prop::collection::vec((any::<prop::sample::Index>(), 0_usize..12, piece()), 1..6),
    ) {
        let files = shipped();
        let mut text: Vec<char> = fs::read_to_string(files.path("config.toml")).unwrap().chars().collect();
        for (at, cut, new) in edits {
            let at = at.index(text.len());
            let end = (at + cut).min(text.len());
            text.splice(at..end, new.chars());
        }
        check_any(&files, &text.into_iter().collect::<String>());
    }
}

#[test]
fn a_restore_check_names_a_backup_job_and_asserts_at_level_3_only() {
    let text = |check: &str| {
        format!(
            "{HEAD}[jobs.nightly]\nschedule = \"0 3 * * *\"\nbackup = {{ store = \"s\" }}\n[jobs.check]\nschedule = \"0 6 * * *\"\nrestore_check = {{ {check} }}\n"
        )
    };
    for (check, part) in [
        ("level = 2", "the key `backup` of `jobs.check.restore_check` is missing"),
        (
            "backup = \"nightle\"",
            "there is no backup job `nightle` | did you mean `nightly`",
        ),
        ("backup = \"check\"", "there is no backup job `check`"),
        ("backup = \"nightly\", level = 4", "out of range"),
        ("backup = \"nightly\", level = 3", "there are none"),
        ("backup = \"nightly\", assert = []", "nothing to assert"),
        (
            "backup = \"nightly\", level = 2, assert = [{ query = \"SELECT 1\", expect = 1 }]",
            "asked at level 3 only",
        ),
        (
            "backup = \"nightly\", assert = [{ query = \"\", expect = 1 }]",
            "no query",
        ),
        ("backup = \"nightly\", assert = [{ query = \"SELECT 1\" }]", "`expect`"),
    ] {
        let lines = Files::new(&text(check)).lines();
        let errors: Vec<_> = lines.iter().filter(|line| line.contains(" error ")).collect();
        assert_eq!(errors.len(), 1, "{check}: {lines:#?}");
        assert!(errors[0].contains(part), "{check}: {lines:#?}");
    }
    let good = "backup = \"nightly\", assert = [{ query = \"SELECT true\", expect = true }]";
    let (config, _) = Files::new(&text(good)).load().unwrap();
    let KindSettings::RestoreCheck(check) = &config.jobs[&name("check")].kind else {
        panic!("no restore_check");
    };
    assert_eq!(
        (check.level, check.store.as_str(), check.assertions[0].expect.as_str()),
        (3, "s", "true")
    );
}
