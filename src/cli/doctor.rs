//! `doctor`: is the ground firm? Host, programs, servers, and the rights of each role. Reads only.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Instant;

use jiff::Timestamp;
use jiff_sqlx::Timestamp as SqlTimestamp;
use serde::Serialize;
use serde_json::json;

use super::run::job_failure;
use super::site::database_failure;
use super::{Exit, Failure, counted, output};
use crate::backup::program::{self, Programs};
use crate::config::{Config, DatabaseSettings, JobSettings};
use crate::daemon;
use crate::jobs::KindSettings;
use crate::postgres::connect::{Session, SessionSettings};
use crate::postgres::grant::{self, Grant};
use crate::postgres::sqlstate::DatabaseError;
use crate::values::Name;

/// How far the clocks of this host and of a server may be apart, in seconds.
const CLOCKS_APART: f64 = 5.0;

/// One thing that was looked at.
#[derive(Debug, Serialize)]
struct Answer {
    subject: String,
    check: &'static str,
    ok: bool,
    message: String,
    help: Option<String>,
}

/// One right that a role needs.
#[derive(Debug, Serialize)]
struct Right {
    database: String,
    statement: String,
    held: bool,
    /// For which jobs; none for the ledger.
    jobs: Vec<String>,
}

/// All that was found.
#[derive(Default)]
struct Found {
    checks: Vec<Answer>,
    rights: Vec<Right>,
    /// Whether everything that is wrong may pass by itself.
    passing: bool,
}

pub(super) async fn doctor(config: &Config, grants_only: bool, as_json: bool) -> Result<Exit, Failure> {
    let mut found = Found {
        passing: true,
        ..Found::default()
    };
    found.host(config).await;
    for (name, settings) in &config.databases {
        found.database(config, name, settings).await;
    }
    let bad = |check: &&Answer| !check.ok && (!grants_only || check.check != "programs" && check.check != "state_dir");
    let wrong = found.checks.iter().filter(bad).count();
    if as_json && grants_only {
        output::document(&json!({ "version": 1, "grants": found.rights }));
    } else if as_json {
        output::document(&json!({ "version": 1, "checks": found.checks, "grants": found.rights }));
    } else if grants_only {
        print_script(config, &found);
    } else {
        print_checks(&found.checks);
    }
    Ok(match wrong {
        0 => Exit::Green,
        _ if found.passing => Exit::TryAgain,
        _ => Exit::NotGreen,
    })
}

impl Found {
    fn note(&mut self, subject: &str, check: &'static str, result: Result<String, Failure>) {
        let (ok, message, help) = match result {
            Ok(message) => (true, message, None),
            Err(failure) => {
                self.passing &= failure.exit == Exit::TryAgain;
                (false, failure.message, failure.remedy)
            }
        };
        self.checks.push(Answer {
            subject: subject.to_owned(),
            check,
            ok,
            message,
            help,
        });
    }

    async fn host(&mut self, config: &Config) {
        self.note("host", "state_dir", writable(&config.daemon.state_dir));
        let dumps = |job: &JobSettings| matches!(job.kind, KindSettings::Backup(_));
        if config.jobs.values().any(dumps) {
            self.note("host", "programs", programs().await);
        }
    }

    async fn database(&mut self, config: &Config, name: &Name, settings: &DatabaseSettings) {
        let failed = |error: &DatabaseError| database_failure(&format!("database {name}"), error);
        let opened = Session::open(&settings.target, &SessionSettings::control("pgreeve:doctor")).await;
        let mut session = match opened {
            Ok(session) => session,
            Err(error) => return self.note(name.as_str(), "server", Err(failed(&error))),
        };
        let server = server(&mut session).await.map_err(|error| failed(&error));
        self.note(name.as_str(), "server", server);
        let clock = clock(&mut session).await.unwrap_or_else(|error| Err(failed(&error)));
        self.note(name.as_str(), "clock", clock);
        let rights = self.rights(config, name, &mut session).await;
        self.note(name.as_str(), "rights", rights);
        session.close().await;
    }

    /// Gathers the rights that the ledger and every job of a database need, each once.
    async fn rights(&mut self, config: &Config, name: &Name, session: &mut Session) -> Result<String, Failure> {
        let ledger = grant::for_ledger(session.connection())
            .await
            .map_err(|error| database_failure("read the rights on the ledger", &error))?;
        let mut rights: BTreeMap<String, Right> = BTreeMap::new();
        let mut order = Vec::new();
        let mut add = |grants: Vec<Grant>, job: Option<&str>| {
            for grant in grants {
                let right = rights.entry(grant.statement.clone()).or_insert_with(|| {
                    order.push(grant.statement.clone());
                    Right {
                        database: name.to_string(),
                        statement: grant.statement,
                        held: true,
                        jobs: Vec::new(),
                    }
                });
                right.held &= grant.held;
                right.jobs.extend(job.map(str::to_owned));
            }
        };
        add(ledger, None);
        for job in config.jobs.values().filter(|job| job.database == *name) {
            let grants = daemon::runnable(config, job).job.grants(session.connection()).await;
            let subject = format!("{name}, job {}", job.name);
            match grants {
                Ok(Some(grants)) => add(grants, Some(job.name.as_str())),
                Ok(None) => {}
                Err(error) => self.note(&subject, "table", Err(job_failure(&error))),
            }
        }
        self.rights
            .extend(order.iter().filter_map(|statement| rights.remove(statement)));
        let of_database = || self.rights.iter().filter(|right| right.database == name.as_str());
        let missing = of_database().filter(|right| !right.held).count();
        if missing == 0 {
            return Ok(format!("the role has all {} that its jobs need", of_database().count()));
        }
        Err(
            Failure::new(Exit::NotGreen, format!("{} missing", counted(missing, "right")))
                .with_remedy("`pgreeve doctor --grants` prints the statements; run them as a superuser"),
        )
    }
}

fn writable(dir: &Path) -> Result<String, Failure> {
    let existing = dir.ancestors().find(|path| path.exists()).unwrap_or(dir);
    let access = rustix::fs::Access::WRITE_OK | rustix::fs::Access::EXEC_OK;
    match rustix::fs::access(existing, access) {
        Ok(()) => Ok(format!("{} may be written to", dir.display())),
        Err(error) => {
            let uid = rustix::process::getuid().as_raw();
            let failure = Failure::new(Exit::NotGreen, format!("write to {}: {error}", existing.display()));
            Err(failure.with_remedy(format!("give it to the user that runs pgreeve (here: id {uid})")))
        }
    }
}

async fn programs() -> Result<String, Failure> {
    let missing = |error: DatabaseError| Failure::new(Exit::NotGreen, error.to_string());
    let programs = Programs::find().map_err(missing)?;
    let version = program::version(&programs.pg_dump).await.map_err(missing)?;
    Ok(format!("{} is version {}", programs.pg_dump.display(), version.text))
}

async fn server(session: &mut Session) -> Result<String, DatabaseError> {
    let (version, standby): (String, bool) =
        sqlx::query_as("SELECT pg_catalog.current_setting('server_version'), pg_catalog.pg_is_in_recovery()")
            .fetch_one(session.connection())
            .await?;
    let state = if standby {
        ", a standby: jobs wait until it is promoted"
    } else {
        ""
    };
    Ok(format!("PostgreSQL {version}{state}"))
}

async fn clock(session: &mut Session) -> Result<Result<String, Failure>, DatabaseError> {
    let asked = Instant::now();
    let there: SqlTimestamp = sqlx::query_scalar("SELECT pg_catalog.clock_timestamp()")
        .fetch_one(session.connection())
        .await?;
    let way = asked.elapsed().as_secs_f64() / 2.0;
    let apart = Timestamp::now().duration_since(there.to_jiff()).as_secs_f64() - way;
    let message = format!("{:.1} s apart from this host's", apart.abs());
    Ok(if apart.abs() <= CLOCKS_APART {
        Ok(message)
    } else {
        let failure = Failure::new(Exit::NotGreen, message);
        Err(failure.with_remedy("set both by NTP: schedules follow this host's clock, cutoffs the server's"))
    })
}

fn print_checks(checks: &[Answer]) {
    for check in checks {
        let mark = if check.ok { "ok " } else { "BAD" };
        output::line(&format!(
            "{mark}  {:10}  {}: {}",
            check.check, check.subject, check.message
        ));
        if let Some(help) = &check.help {
            output::line(&format!("     help: {help}"));
        }
    }
}

/// A script for `psql`: what is missing as statements, what is held as comments.
fn print_script(config: &Config, found: &Found) {
    for check in found
        .checks
        .iter()
        .filter(|check| !check.ok && matches!(check.check, "server" | "table"))
    {
        output::note(&format!("pgreeve: {}: {}", check.subject, check.message));
        if let Some(help) = &check.help {
            output::note(&format!("  help: {help}"));
        }
    }
    for (name, settings) in &config.databases {
        let mut rights = found
            .rights
            .iter()
            .filter(|right| right.database == name.as_str())
            .peekable();
        if rights.peek().is_some() {
            output::line(&format!("-- {name}: {}", settings.target.describe()));
        }
        for right in rights {
            let purpose = if right.jobs.is_empty() {
                "the ledger".to_owned()
            } else {
                right.jobs.join(", ")
            };
            let lead = if right.held { "-- held: " } else { "" };
            output::line(&format!("{lead}{}; -- for {purpose}", right.statement));
        }
    }
}
