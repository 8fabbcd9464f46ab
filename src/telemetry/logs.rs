//! The log: the narration of what the audit log records. Lines to standard error, readable on a
//! terminal and in the journal; never a secret, never a row's value.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::FmtSpan;

/// What is logged when `PGREEVE_LOG` does not say otherwise.
const DEFAULT_FILTER: &str = "info,tokio_cron_scheduler=warn,aws_config=warn,aws_smithy_runtime=warn,sqlx=warn";

/// What PostgreSQL's functions and triggers say beside their results is the application's text.
const NOTICES_OFF: &str = "sqlx::postgres::notice=off";

/// Sets up the log. `PGREEVE_LOG` holds a filter such as `debug` or `pgreeve::runner=debug`;
/// `PGREEVE_LOG_FORMAT=json` writes a JSON object per line.
pub fn start(default_level: Option<&str>) {
    let filter = EnvFilter::try_from_env("PGREEVE_LOG")
        .unwrap_or_else(|_| EnvFilter::new(default_level.unwrap_or(DEFAULT_FILTER)));
    // Whatever the operator asks for: a trigger may put a row's values into a NOTICE or WARNING.
    let filter = match NOTICES_OFF.parse() {
        Ok(off) => filter.add_directive(off),
        Err(_) => EnvFilter::new("off"),
    };
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_span_events(FmtSpan::NONE)
        .with_target(false)
        .with_ansi(std::io::stderr().is_terminal());
    let in_journal = std::env::var_os("JOURNAL_STREAM").is_some();
    let json = std::env::var_os("PGREEVE_LOG_FORMAT").is_some_and(|format| format == "json");
    // Setting it twice can only happen in tests of the library; the first one stays.
    let _ = match (json, in_journal) {
        (true, _) => builder.json().try_init(),
        (false, true) => builder.without_time().try_init(),
        (false, false) => builder.try_init(),
    };
    quiet_panics();
}

/// A panic's message may hold anything; the log gets its place only. The run it happened in is
/// closed as failed by the runner.
fn quiet_panics() {
    std::panic::set_hook(Box::new(|panic| {
        let place = panic
            .location()
            .map_or_else(|| "an unknown place".to_owned(), ToString::to_string);
        tracing::error!(place, "a panic: this is a defect of pgreeve");
    }));
}
