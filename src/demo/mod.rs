//! The demonstration: a throwaway server, a throwaway S3 and the Churn Saver database; the daemon
//! as a process of its own; and one page of proof at the end.

pub mod churn_saver;
mod churn_saver_rows;
pub mod naive;
mod page;
mod proof;
pub mod s3_server;
mod stage;
mod watch;

use std::io::Write;

use tokio::signal::unix::{SignalKind, signal};

pub use stage::DemoError;

use self::churn_saver::Size;
use self::stage::{DATABASE, Stage};

/// Builds, runs, proves. Answers whether all of it is green. Whatever ends it, a signal too,
/// nothing is left behind.
///
/// # Errors
/// When a part of the stage cannot be set up, or the daemon fails.
pub async fn run(events: u32) -> Result<bool, DemoError> {
    let mut terminate = signal(SignalKind::terminate()).map_err(DemoError::of("listen to signals"))?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(DemoError::of("listen to signals"))?;
    tokio::select! {
        green = play(events) => green,
        _ = terminate.recv() => Err(DemoError("ended by a signal; everything is cleaned up".to_owned())),
        _ = interrupt.recv() => Err(DemoError("ended by Ctrl-C; everything is cleaned up".to_owned())),
    }
}

async fn play(events: u32) -> Result<bool, DemoError> {
    say("Starting a PostgreSQL cluster and an S3 server of their own …");
    let mut stage = Stage::set_up().await?;
    say(&format!(
        "  PostgreSQL in {}, S3 at {}",
        stage.directory().display(),
        stage.s3_endpoint()
    ));

    stage.create_database().await?;
    let size = Size {
        events,
        ..Size::default()
    };
    let mut line = watch::Line::new();
    let sample = churn_saver::build(&stage.superuser(DATABASE), &size, |what, done, total| {
        line.show(&watch::amount(
            &format!("  Building the Churn Saver database: {what}"),
            done,
            total,
        ));
    })
    .await
    .map_err(DemoError::of("build the sample"))?;
    line.end(&format!(
        "  Built {} rows, {} MB, row security on for all tables",
        sample.rows.iter().map(|(_, rows)| rows).sum::<u64>(),
        sample.bytes / 1_000_000
    ));
    // The reference copies are made before anything runs.
    let mut reference = proof::Reference::copy(&stage.superuser(DATABASE)).await?;

    let [purges, backup] = stage.configure()?;
    stage.start_daemon()?;
    say(&format!(
        "Started `pgreeve daemon`; four purges and sweeps are due at {purges}, the backup at {backup}"
    ));
    let runs = watch::until_done(&mut stage, backup).await?;
    stage.stop_daemon().await?;

    say("Proving it …");
    let compared = reference.compare(&runs).await?;
    say("  every purge was compared with one naive statement on a copy");
    let restored = proof::restore(&stage).await?;
    say("  the backup was restored into a new database and compared by digest");
    let log = proof::audit(&stage)?;
    Ok(page::print(&stage, &runs, &compared, &restored, &log))
}

/// A line of the narration.
fn say(text: &str) {
    let _ = writeln!(std::io::stderr().lock(), "{text}");
}
