//! The verbs of the audit log.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use super::{Exit, Failure, load, output};
use crate::audit::{self, PublicKey, Verification};

pub(super) fn verify(
    config: &Path,
    dir: Option<PathBuf>,
    public_key: Option<&Path>,
    json: bool,
) -> Result<Exit, Failure> {
    // With --dir no configuration is needed: an auditor has the files and the key, nothing else.
    let dir = match dir {
        Some(dir) => dir,
        None => load(config)?.daemon.state_dir.join("audit"),
    };
    if let Err(error) = std::fs::read_dir(&dir) {
        let (cause, remedy) = match error.kind() {
            ErrorKind::NotFound => (
                "there is no such directory".to_owned(),
                "name the log's directory with --dir",
            ),
            ErrorKind::NotADirectory => (
                "it is not a directory".to_owned(),
                "name the directory that holds the log's files",
            ),
            ErrorKind::PermissionDenied => (
                "this user may not read it".to_owned(),
                "run as a member of the group of pgreeve's user, or as root",
            ),
            _ => (error.to_string(), "check the device under it"),
        };
        let message = format!("read the audit log in {}: {cause}", dir.display());
        return Err(Failure::new(Exit::Failed, message).with_remedy(remedy));
    }
    let key = public_key
        .map(PublicKey::read)
        .transpose()
        .map_err(|error| Failure::new(Exit::Failed, error.to_string()).with_remedy(error.remedy))?;
    let verification = audit::verify(&dir, key.as_ref(), &[])
        .map_err(|error| Failure::new(Exit::Failed, error.to_string()).with_remedy(error.remedy))?;
    if json {
        output::document(&verification);
    } else {
        print(&dir, &verification);
    }
    Ok(if verification.ok { Exit::Green } else { Exit::Tampered })
}

fn print(dir: &Path, verification: &Verification) {
    match &verification.first_bad {
        None => output::line(&format!("{} is sound", dir.display())),
        Some(bad) => {
            output::line(&format!("{} HAS BEEN TAMPERED WITH OR IS DAMAGED", dir.display()));
            output::line(&format!(
                "  first bad record {} at {}:{}: {}",
                bad.seq, bad.file, bad.line, bad.problem
            ));
        }
    }
    output::line(&format!(
        "  records      {} in {} segments",
        verification.records, verification.segments
    ));
    output::line(&format!(
        "  checkpoints  {}, signed through record {}",
        verification.checkpoints, verification.signed_through
    ));
    output::line(&format!("  head         {}", verification.head_hash));
    for run in &verification.unfinished_runs {
        output::line(&format!(
            "  unfinished   run {} of {}",
            run.run,
            run.job.as_deref().unwrap_or("an unknown job")
        ));
    }
    for warning in &verification.warnings {
        output::line(&format!("  warning      {warning}"));
    }
}
