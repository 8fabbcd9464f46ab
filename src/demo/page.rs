//! The one page at the end.

use std::io::Write;

use super::proof::{Compared, Proved};
use super::stage::Stage;
use crate::audit::Verification;
use crate::job::Outcome;
use crate::ledger::runs::RunRecord;

/// Prints the page; answers whether all of it is green.
pub(super) fn print(
    stage: &Stage,
    runs: &[RunRecord],
    purged: &[Compared],
    proved: &Proved,
    log: &Verification,
) -> bool {
    let mut page = String::new();
    let mut green = true;
    let mut line = |text: &str| {
        page.push_str(text);
        page.push('\n');
    };
    line("");
    line(&format!(
        "{:<18} {:<22} {:>9} {:>9} {:>6}  {:<10} {}",
        "JOB", "SLOT", "DUE", "DONE", "LEFT", "OUTCOME", "PROOF"
    ));
    for run in runs {
        let compared = purged.iter().find(|compared| compared.job == run.job);
        green &= run.outcome() == Some(Outcome::Succeeded);
        let (due, done, left, proof) = match compared {
            Some(compared) => {
                let done = run.report["rows"].as_u64().unwrap_or(0);
                let equal = compared.differences == 0 && compared.naive == done;
                green &= equal;
                let proof = if equal {
                    "equal to one naive statement on a copy".to_owned()
                } else {
                    format!("DIFFERS from the naive statement in {} rows", compared.differences)
                };
                (
                    compared.naive,
                    done,
                    run.report["remaining"].as_u64().unwrap_or(u64::MAX),
                    proof,
                )
            }
            None => (
                proved.backup.manifest.rows(),
                proved.restored.rows,
                0,
                "restored, see below".to_owned(),
            ),
        };
        let slot = run.scheduled_for.map(|slot| slot.to_string()).unwrap_or_default();
        line(&format!(
            "{:<18} {slot:<22} {due:>9} {done:>9} {left:>6}  {:<10} {proof}",
            run.job,
            run.outcome.as_deref().unwrap_or("-")
        ));
        if let Some(reason) = &run.reason {
            line(&format!("  {reason}"));
        }
    }
    line("");
    line(&format!(
        "backup     {} in s3, {} bytes stored",
        proved.backup.id, proved.backup.bytes
    ));
    line(&format!(
        "restored   {} rows of {} tables into a new database in {:.1} s",
        proved.restored.rows,
        proved.restored.tables,
        proved.restored.elapsed.as_secs_f64()
    ));
    let equal = proved.verified.mismatches.is_empty();
    green &= equal;
    line(&format!(
        "digests    {} tables compared with the manifest by rows and SHA-256: {}",
        proved.verified.compared,
        if equal { "all equal" } else { "THEY DIFFER" }
    ));
    for mismatch in &proved.verified.mismatches {
        line(&format!("  {mismatch}"));
    }
    green &= log.ok && log.unfinished_runs.is_empty();
    line(&format!(
        "audit log  {} records, {} signed checkpoints: {}",
        log.records,
        log.checkpoints,
        if log.ok { "sound" } else { "NOT SOUND" }
    ));
    line("");
    line(if green {
        "All green. Nothing is left behind."
    } else {
        "NOT GREEN."
    });
    if !green {
        line(&stage.daemon_log());
    }
    let _ = std::io::stdout().lock().write_all(page.as_bytes());
    green
}
