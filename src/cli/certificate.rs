//! `erasure certificate`: shows a certificate, and checks it.

use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use uuid::Uuid;

use super::{Exit, Failure, load, output};
use crate::audit::{AuditError, PublicKey};
use crate::config::Config;
use crate::erasure::certificate::{self, Addendum, Certificate, Signed};
use crate::erasure::host::{CERTIFICATES, ledger_dir};
use crate::ledger::notices;

#[derive(Debug, Args)]
pub(super) struct CertificateArguments {
    /// The request's id.
    #[arg(required_unless_present = "files")]
    id: Option<Uuid>,
    /// Read these files instead, the certificate first, then its addenda; no configuration is needed.
    #[arg(long = "file", value_name = "FILE", conflicts_with = "id", requires = "public_key")]
    files: Vec<PathBuf>,
    /// The public key to trust; default: the one beside this host's audit log.
    #[arg(long, value_name = "FILE")]
    public_key: Option<PathBuf>,
    /// How to show it: `json` is the signed file itself.
    #[arg(long, value_enum, default_value_t = Format::Text)]
    format: Format,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    Json,
    Text,
    Html,
}

pub(super) async fn show(config: &Path, arguments: &CertificateArguments, as_json: bool) -> Result<Exit, Failure> {
    let (mut documents, beside) = match arguments.id {
        Some(id) => {
            let config = load(config)?;
            let key = config.daemon.state_dir.join("audit/public.key");
            (of_request(&config, id).await?, Some(key))
        }
        None => (of_files(&arguments.files)?, None),
    };
    let key = arguments.public_key.as_ref().or(beside.as_ref());
    let key = key.ok_or_else(|| Failure::new(Exit::Usage, "there is no key to check with"))?;
    let key = PublicKey::read(key)
        .map_err(|error: AuditError| Failure::new(Exit::Failed, error.to_string()).with_remedy(error.remedy))?;
    for (place, document) in &documents {
        document.verify(&key).map_err(|error| {
            Failure::new(Exit::Tampered, format!("{place}: {error}"))
                .with_remedy("compare with the copy that is kept elsewhere, and check the audit log")
        })?;
    }
    if documents.is_empty() {
        return Err(Failure::new(Exit::Usage, "there is no certificate"));
    }
    let (place, signed) = documents.remove(0);
    if arguments.format == Format::Json && !as_json {
        output::bytes(signed.text().as_bytes());
        return Ok(Exit::Green);
    }
    let certificate: Certificate = read(&place, &signed)?;
    let addenda = documents
        .iter()
        .map(|(place, document)| read::<Addendum>(place, document))
        .collect::<Result<Vec<_>, _>>()?;
    if let Some(addendum) = addenda
        .iter()
        .find(|addendum| addendum.request != certificate.erasure.request.0)
    {
        let message = format!(
            "an addendum is about the request {}, not about this one",
            addendum.request
        );
        return Err(Failure::new(Exit::Usage, message));
    }
    if as_json {
        output::document(&json!({
            "version": 1, "signature": "sound", "certificate": certificate, "sha256": signed.digest(), "addenda": addenda,
        }));
    } else if arguments.format == Format::Html {
        output::bytes(certificate::html(&certificate, &addenda).as_bytes());
    } else {
        output::bytes(certificate::text(&certificate, &addenda).as_bytes());
        output::line("\nThe signatures are sound.");
    }
    Ok(Exit::Green)
}

fn read<T: DeserializeOwned>(place: &str, signed: &Signed) -> Result<T, Failure> {
    serde_json::from_str(signed.text()).map_err(|error| {
        Failure::new(Exit::Failed, format!("{place} is signed and cannot be read: {error}"))
            .with_remedy("show it with --format json, or with the pgreeve that wrote it")
    })
}

fn of_files(files: &[PathBuf]) -> Result<Vec<(String, Signed)>, Failure> {
    files
        .iter()
        .map(|file| {
            let place = file.display().to_string();
            let text = std::fs::read_to_string(file)
                .map_err(|error| Failure::new(Exit::Failed, format!("read {place}: {error}")))?;
            Ok((place, Signed::found(text)))
        })
        .collect()
}

/// The certificate and its addenda: from this host's directory, else the certificate from the
/// database that knows the request.
async fn of_request(config: &Config, id: Uuid) -> Result<Vec<(String, Signed)>, Failure> {
    let dir = ledger_dir(&config.daemon.state_dir).join(CERTIFICATES);
    let first = dir.join(format!("{id}.json"));
    let mut found = if first.exists() {
        of_files(&[first])?
    } else {
        vec![("the database".to_owned(), of_database(config, id).await?)]
    };
    let mut addenda: Vec<PathBuf> = std::fs::read_dir(&dir)
        .into_iter()
        .flatten()
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            name.starts_with(&format!("{id}.")) && name != format!("{id}.json") && name.ends_with(".json")
        })
        .collect();
    addenda.sort();
    found.extend(of_files(&addenda)?);
    Ok(found)
}

async fn of_database(config: &Config, id: Uuid) -> Result<Signed, Failure> {
    let mut problem = None;
    for database in config.databases.values() {
        let looked = async {
            let mut connection = database.target.connect("pgreeve:certificate").await?;
            notices::certificate(&mut connection, id).await
        };
        match looked.await {
            Ok(Some(stored)) => {
                // As a text: signed are its bytes.
                if let Value::String(text) = stored {
                    return Ok(Signed::found(text));
                }
            }
            Ok(None) => {}
            Err(error) => problem = problem.or(Some(error.to_string())),
        }
    }
    Err(match problem {
        Some(problem) => Failure::new(Exit::TryAgain, format!("look for the certificate of {id}: {problem}")),
        None => Failure::new(Exit::Usage, format!("there is no certificate of a request {id}"))
            .with_remedy("`pgreeve erasure list` shows the requests; one that is open has none yet"),
    })
}
