//! Mistakes in the configuration: each names its line and its remedy, and nothing is started.

use std::os::unix::fs::PermissionsExt;

use super::{NOBODY, PURGE, as_nobody, assert_says, is_root, keys, line_of};
use crate::support::process::{Finished, Host};

const DATABASE: &str = "[databases.app]\nurl = \"postgresql:///app?host=/nowhere&user=nobody\"\n";

/// What is wrong: the lines of a job, the text whose line is named, the message, the remedy.
const MISTAKES: [(&str, &str, &str, &str); 14] = [
    (
        "schedule = \"0 2 * * *\"\nretention = { tabel = \"t\", age_column = \"c\", keep = \"1d\" }",
        "tabel",
        "unknown key `jobs.x.retention.tabel`",
        "did you mean `table`?",
    ),
    (
        "schedule = \"0 2 * * *\"\nretention = { table = \"t\", age_column = \"c\", keep = 90 }",
        "keep",
        "`jobs.x.retention.keep`: must be a string, not an integer",
        "such as",
    ),
    (
        "schedule = 5\nretention = { table = \"t\", age_column = \"c\", keep = \"1d\" }",
        "schedule = 5",
        "must be a string, not an integer",
        "write the value in double quotes",
    ),
    (
        "schedule = \"0 2 * * *\"\nretries = \"3\"\nretention = { table = \"t\", age_column = \"c\", keep = \"1d\" }",
        "retries",
        "`jobs.x.retries`: must be an integer, not a string",
        "from 0 to 10",
    ),
    (
        "schedule = \"0 2 * * *\"\nretention = { table = \"t\", age_column = \"c\", keep = \"1d\" }\nbackup = { store = \"offsite\" }",
        "backup",
        "`jobs.x` has two kinds, retention and backup",
        "write one job for each",
    ),
    (
        "schedule = \"0 0 31 2 *\"\nretention = { table = \"t\", age_column = \"c\", keep = \"1d\" }",
        "0 0 31 2 *",
        "`0 0 31 2 *` never fires",
        "write a date that exists",
    ),
    (
        "schedule = \"0 2 * *\"\nretention = { table = \"t\", age_column = \"c\", keep = \"1d\" }",
        "0 2 * *",
        "`jobs.x.schedule`",
        "five fields",
    ),
    (
        "schedule = \"0 2 * * *\"\ntimezone = \"Europe/Berlni\"\nretention = { table = \"t\", age_column = \"c\", keep = \"1d\" }",
        "Berlni",
        "`jobs.x.timezone`",
        "Europe/Berlin",
    ),
    (
        "schedule = \"0 2 * * *\"\ndatabase = \"ap\"\nretention = { table = \"t\", age_column = \"c\", keep = \"1d\" }",
        "database = \"ap\"",
        "there is no database `ap`",
        "did you mean `app`?",
    ),
    (
        "schedule = \"0 2 * * *\"\nbackup = { store = \"offsit\" }",
        "offsit",
        "there is no store `offsit`",
        "[stores.offsit]",
    ),
    (
        "schedule = \"0 2 * * *\"",
        "[jobs.x]",
        "does not say what it does",
        "add one of",
    ),
    (
        "schedule = \"0 2 * * *\"\nretention = { table = \"t\", age_column = \"c\", keep = \"1d\", where = \"a) OR (b\" }",
        "where = ",
        "`jobs.x.retention.where`",
        "with every bracket and quote closed",
    ),
    (
        "schedule = \"0 2 * * *\"\nvacuum = { table = \"t\" }",
        "vacuum",
        "unknown key `jobs.x.vacuum`",
        "the keys here are",
    ),
    (
        "schedule = \"0 2 * * *\nretention = { table = \"t\", age_column = \"c\", keep = \"1d\" }",
        "schedule",
        "this is not TOML",
        "",
    ),
];

#[test]
fn every_mistake_names_its_line_and_its_remedy_and_starts_nothing() {
    for (job, at, message, help) in MISTAKES {
        let host = Host::new(&format!("{DATABASE}[jobs.x]\n{job}\n"));
        let checked = host.run(&["check", "--json"]).expect_code(78).json();
        assert_eq!(keys(&checked), ["findings", "version"]);
        let found = checked["findings"].as_array().unwrap();
        let meant = |finding: &&serde_json::Value| finding["message"].as_str().unwrap().contains(message);
        let finding = found.iter().find(meant).unwrap_or_else(|| panic!("{job}: {checked:#}"));
        assert_eq!(keys(finding), ["column", "file", "help", "line", "message", "severity"]);
        assert_eq!(finding["severity"], "error", "{checked:#}");
        assert_eq!(finding["line"], line_of(&host, at), "{job}: {checked:#}");
        assert!(
            finding["file"].as_str().unwrap().ends_with("config.toml"),
            "{checked:#}"
        );
        assert!(
            finding["help"].as_str().unwrap_or_default().contains(help),
            "{job}: {checked:#}"
        );
        let run = host.run(&["run", "x"]).expect_code(78);
        let place = format!("config.toml:{}:", line_of(&host, at));
        assert_says(&run, &[&place, message, help, "nothing was started"]);
        assert_eq!(run.stdout, "");
        assert!(!host.audit().exists(), "{job}: something was started");
    }
}

#[test]
fn all_mistakes_are_told_at_once() {
    let jobs: Vec<String> = MISTAKES
        .iter()
        .take(6)
        .enumerate()
        .map(|(number, (job, ..))| format!("[jobs.j{number}]\n{job}\n"))
        .collect();
    let host = Host::new(&format!("{DATABASE}{}", jobs.concat()));
    let checked = host.run(&["check"]).expect_code(78);
    for (_, _, message, _) in MISTAKES.iter().take(6) {
        let (_, rest) = message.split_once("`: ").unwrap_or(("", message));
        if !rest.contains("jobs.x") {
            assert_says(&checked, &[rest]);
        }
    }
    assert_says(&checked, &["config.toml has 7 mistakes"]);
}

#[test]
fn a_password_in_a_file_that_everybody_may_read_is_refused_and_not_shown() {
    let host = Host::new(&format!(
        "[databases.app]\nurl = \"postgresql://u:hunter2@localhost/app\"\n{PURGE}"
    ));
    let readable = std::fs::Permissions::from_mode(0o644);
    std::fs::set_permissions(host.path("config.toml"), readable).unwrap();
    for arguments in [
        ["check"].as_slice(),
        &["check", "--json"],
        &["run", "purge"],
        &["status"],
    ] {
        let finished = host.run(arguments).expect_code(78);
        assert_says(
            &finished,
            &[
                "holds a password in a file that everybody on this host can read",
                "password_file",
            ],
        );
        assert!(!format!("{}{}", finished.stdout, finished.stderr).contains("hunter2"));
    }
    assert!(!host.audit().exists());
}

#[test]
fn a_configuration_that_is_not_there_says_how_to_name_one() {
    let host = Host::new("");
    let missing = host.path("none.toml").display().to_string();
    for arguments in [
        ["check"].as_slice(),
        &["run", "purge"],
        &["daemon"],
        &["status", "--json"],
        &["doctor"],
    ] {
        let mut all = vec!["--config", missing.as_str()];
        all.extend(arguments);
        let finished = host.run(&all).expect_code(78);
        assert_says(&finished, &["there is no such file", "none.toml", "--config FILE"]);
    }
    let directory = host.path("").display().to_string();
    assert_says(
        &host.run(&["--config", &directory, "check"]).expect_code(78),
        &["this is a directory"],
    );
}

#[test]
fn a_configuration_that_may_not_be_read_says_so() {
    if !is_root() {
        return;
    }
    let host = Host::new("");
    // The directory may be entered, the file may not be read.
    std::fs::set_permissions(host.path(""), std::fs::Permissions::from_mode(0o755)).unwrap();
    let finished = Finished::from(as_nobody(&mut host.command(&["check"])).output().unwrap()).expect_code(78);
    assert_says(
        &finished,
        &["the file may not be read by this user", "config.toml:1:1", "chmod 640"],
    );
    assert_ne!(NOBODY, 0);
}

#[test]
fn arguments_that_make_no_sense_end_with_2_and_name_what_there_is() {
    let host = Host::new(&format!("{DATABASE}{PURGE}"));
    let cases: [(&[&str], &[&str]); 16] = [
        (&[], &["requires a subcommand", "daemon, check, plan"]),
        (&["frobnicate"], &["unrecognized subcommand 'frobnicate'"]),
        (&["backup"], &["list, verify, restore, prune"]),
        (&["run"], &["<JOB>"]),
        (&["run", "nope"], &["there is no job `nope`", "the jobs are purge"]),
        (&["plan", "nope"], &["there is no job `nope`", "the jobs are purge"]),
        (&["next", "nope"], &["there is no job `nope`", "the jobs are purge"]),
        (&["run", "Not A Name"], &["`Not A Name` is not a name", "lowercase"]),
        (
            &["history", "--outcome", "fine"],
            &["the outcomes are succeeded, partial"],
        ),
        (&["history", "--since", "yesterday"], &["2026-03-29T02:00:00Z"]),
        (&["next", "-n", "0"], &["1..=1000"]),
        (&["approve", "1234"], &["is not a policy's hash", "first eight digits"]),
        (&["approve", "nothexdigits"], &["is not a policy's hash"]),
        (
            &["approve", "0123456789"],
            &["no job of the configuration has the policy", "pgreeve plan JOB"],
        ),
        (&["backup", "list"], &["no job of the kind `backup`"]),
        (&["backup", "verify", "x", "--level", "7"], &["0..=3"]),
    ];
    for (arguments, words) in cases {
        let finished = host.run(arguments);
        assert_eq!(
            finished.code, 2,
            "{arguments:?}: {}{}",
            finished.stdout, finished.stderr
        );
        assert_says(&finished, words);
        assert_eq!(finished.stdout, "", "{arguments:?}");
    }
    assert!(!host.audit().exists());
}
