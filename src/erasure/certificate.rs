//! The certificate of an erasure: a signed document that an outsider can check, offline, with the
//! public key of the audit log and nothing else. It holds no personal data.
//!
//! It is a text file of JSON. Its last line but one is the signature; what is signed are the bytes
//! before that line, exactly as they stand:
//!
//! ```text
//! head -n -2 certificate.json > signed
//! tail -n 2 certificate.json | head -n 1 | tr -dc 0-9a-f | tail -c 128 | xxd -r -p > signature
//! openssl pkeyutl -verify -pubin -inkey public.key -rawin -in signed -sigfile signature
//! ```
//!
//! What becomes known later (the second scan, acknowledgements, a restore) is an addendum of the same
//! form, which names the certificate by its digest.

mod page;

use std::fmt::Write;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

pub use self::page::{html, text};
use super::proof::{Account, Residue};
use crate::audit::{Digest, PublicKey, Signature, Signer};
use crate::backup::manifest::ErasureMark;

/// How a certificate begins. No other statement that the key signs begins so.
const FORMAT: &str = "pgreeve erasure certificate";

/// How an addendum begins.
const ADDENDUM: &str = "pgreeve erasure addendum";

/// The version of both formats.
const VERSION: u32 = 1;

/// What stands before the signature, and after it.
const SIGNATURE: (&str, &str) = ("  \"signature\": \"", "\"\n}\n");

/// What is certified. The order of the fields is the order in the file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Certificate {
    format: String,
    version: u32,
    /// When it was signed, by the host's clock.
    pub issued_at: Timestamp,
    /// The daemon that signed it.
    pub instance: String,
    /// pgreeve's version.
    pub pgreeve_version: String,
    /// The server's identity, where the role may read it.
    pub system_identifier: Option<String>,
    /// The request, its times, what was done, what was kept, what was found.
    pub erasure: Account,
    /// Where the entry of the erasure stands in the ledger outside the database.
    pub ledger: Option<ErasureMark>,
    /// The records of the audit log about it stand after the first and up to the second of these.
    pub audit_records: Option<(u64, u64)>,
    /// When everything is searched once more.
    pub second_scan_due_at: Option<Timestamp>,
    /// Copies that still hold the subject.
    pub copies: Copies,
    /// Who is told (Art. 19); their acknowledgements follow in an addendum.
    pub recipients: Vec<String>,
    /// What no statement of SQL reaches, and how it ages out.
    pub out_of_reach: Vec<String>,
    /// The key that it is signed with.
    pub public_key: PublicKey,
}

/// Copies that still hold the subject.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Copies {
    /// Backups whose snapshot is older than the end of the erasure.
    pub backups: Vec<HoldingBackup>,
    /// Exports from before the end of the erasure with rows of the tables in reach, whoever's they are.
    #[serde(default)]
    pub exports: Vec<HoldingExport>,
    /// Archives of rows that retention has deleted from the tables in reach.
    pub archives: Vec<HoldingArchive>,
    /// When the last of them is gone if the jobs go on as configured; `None` when that cannot be told,
    /// or there are none.
    pub gone_by: Option<Timestamp>,
    /// Which of them could not be listed, and why.
    pub unknown: Vec<String>,
}

/// A backup that still holds the subject.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HoldingBackup {
    /// Its identity.
    pub id: String,
    /// The job that made it.
    pub job: String,
    /// The store that it lies in.
    pub store: String,
    /// When its snapshot was taken.
    pub snapshot_at: Timestamp,
    /// When `keep` removes it; `None` when nothing does.
    pub gone_by: Option<Timestamp>,
}

/// An export that may hold the subject.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HoldingExport {
    /// Its identity.
    pub id: String,
    /// The job that made it.
    pub job: String,
    /// The store that it lies in.
    pub store: String,
    /// When its rows were read.
    pub as_of: Timestamp,
    /// The tables that it has rows of.
    pub tables: Vec<String>,
    /// When `keep` removes it; `None` when nothing does.
    pub gone_by: Option<Timestamp>,
}

/// An archive of deleted rows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HoldingArchive {
    /// The job that made it.
    pub job: String,
    /// The store that it lies in.
    pub store: String,
    /// The table whose rows it holds.
    pub table: String,
    /// How many archives of that table there are.
    pub archives: u64,
    /// When the youngest of them expires; `None` when nothing removes it.
    #[serde(default)]
    pub gone_by: Option<Timestamp>,
}

/// What became known after the certificate.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Addendum {
    format: String,
    version: u32,
    /// The request.
    pub request: uuid::Uuid,
    /// The SHA-256 of the certificate's file; `None` when the erasure was not certified.
    pub certificate: Option<Digest>,
    /// When it was signed.
    pub issued_at: Timestamp,
    /// What it tells.
    pub event: AddendumEvent,
    /// The key that it is signed with.
    pub public_key: PublicKey,
}

/// What an addendum tells.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AddendumEvent {
    /// Everything was searched once more, a day later.
    SecondScan {
        /// What was found.
        residue: Option<Residue>,
        /// Why nothing was searched, where that is so.
        not_searched: Option<String>,
        /// What recipients and stores answered.
        recipients: Vec<Answer>,
    },
    /// A database was restored, and the subject was erased again before it opened.
    Replay {
        /// The database that was restored.
        restored: String,
        /// The backup, where it was one of pgreeve's.
        backup: Option<String>,
        /// Whether the subject was in it.
        found: bool,
        /// What was done.
        steps: Vec<super::proof::StepAccount>,
        /// What was found afterwards.
        residue: Option<Residue>,
    },
}

/// What a recipient, or the store of an object, answered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// `notify` or `object`.
    pub kind: String,
    /// Its name in the configuration.
    pub name: String,
    /// `pending`, `sent`, `acknowledged` or `failed`.
    pub state: String,
    /// When it acknowledged.
    pub acknowledged_at: Option<Timestamp>,
}

/// A document that somebody signed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Signed(String);

/// Why a document proves nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotProven {
    /// It has not the form of a signed document.
    #[error("it is not a certificate or addendum of pgreeve: {0}")]
    Form(&'static str),
    /// The key did not sign these bytes.
    #[error("its signature is not that of the key {0}: it was changed, or another host signed it")]
    Signature(PublicKey),
}

/// What a certificate says beside the account of the request.
#[derive(Debug, Clone)]
pub struct Circumstances {
    /// When it is signed.
    pub issued_at: Timestamp,
    /// The daemon that signs it.
    pub instance: String,
    /// See [`Certificate::system_identifier`].
    pub system_identifier: Option<String>,
    /// See [`Certificate::ledger`].
    pub ledger: Option<ErasureMark>,
    /// See [`Certificate::audit_records`].
    pub audit_records: Option<(u64, u64)>,
    /// See [`Certificate::second_scan_due_at`].
    pub second_scan_due_at: Option<Timestamp>,
    /// See [`Certificate::copies`].
    pub copies: Copies,
    /// See [`Certificate::recipients`].
    pub recipients: Vec<String>,
}

impl Certificate {
    /// A certificate of an account, to be signed with a key.
    #[must_use]
    pub fn new(account: Account, circumstances: Circumstances, key: PublicKey) -> Self {
        Self {
            format: FORMAT.to_owned(),
            version: VERSION,
            issued_at: circumstances.issued_at,
            instance: circumstances.instance,
            pgreeve_version: env!("CARGO_PKG_VERSION").to_owned(),
            system_identifier: circumstances.system_identifier,
            erasure: account,
            ledger: circumstances.ledger,
            audit_records: circumstances.audit_records,
            second_scan_due_at: circumstances.second_scan_due_at,
            copies: circumstances.copies,
            recipients: circumstances.recipients,
            out_of_reach: OUT_OF_REACH.map(str::to_owned).to_vec(),
            public_key: key,
        }
    }
}

/// What every certificate has to admit.
const OUT_OF_REACH: [&str; 3] = [
    "dead rows on the server's disk, until VACUUM has passed and their space is used again",
    "the server's write-ahead log, its archive and standbys, until they are recycled or have replayed it",
    "logs of the server and of applications, and backups that others than pgreeve make",
];

impl Addendum {
    /// An addendum, to be signed with a key.
    #[must_use]
    pub fn new(
        request: uuid::Uuid,
        certificate: Option<Digest>,
        issued_at: Timestamp,
        event: AddendumEvent,
        key: PublicKey,
    ) -> Self {
        Self {
            format: ADDENDUM.to_owned(),
            version: VERSION,
            request,
            certificate,
            issued_at,
            event,
            public_key: key,
        }
    }
}

/// Signs a [`Certificate`] or an [`Addendum`].
///
/// # Errors
/// When it cannot be written as JSON.
pub fn sign(document: &impl Serialize, signer: &Signer) -> Result<Signed, String> {
    let text = serde_json::to_string_pretty(document).map_err(|error| error.to_string())?;
    // Pretty JSON ends with a newline and a brace; the signature becomes one more member.
    let Some(body) = text.strip_suffix("\n}") else {
        return Err("the document is not an object".to_owned());
    };
    let mut text = format!("{body},\n");
    let signature = signer.sign(text.as_bytes());
    let _ = write!(text, "{}{signature}{}", SIGNATURE.0, SIGNATURE.1);
    Ok(Signed(text))
}

impl Signed {
    /// Takes a file as it was found; nothing is checked.
    #[must_use]
    pub fn found(text: String) -> Self {
        Self(text)
    }

    /// The file.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.0
    }

    /// What an addendum names it by.
    #[must_use]
    pub fn digest(&self) -> Digest {
        Digest::of(self.0.as_bytes())
    }

    /// Checks every byte of it.
    ///
    /// # Errors
    /// Says why it proves nothing.
    pub fn verify(&self, key: &PublicKey) -> Result<(), NotProven> {
        let bad = NotProven::Form;
        let body = self
            .0
            .strip_suffix(SIGNATURE.1)
            .ok_or(bad("its end is not as pgreeve writes it"))?;
        let (signed, signature) = body
            .rsplit_once(SIGNATURE.0)
            .ok_or(bad("it has no signature at its end"))?;
        let begins = [FORMAT, ADDENDUM]
            .iter()
            .any(|format| signed.starts_with(&format!("{{\n  \"format\": \"{format}\",\n  \"version\": ")));
        if !begins {
            return Err(bad("its beginning is another"));
        }
        let signature: Signature = signature
            .parse()
            .map_err(|_| bad("its signature is not 128 lowercase hexadecimal digits"))?;
        if key.has_signed(signed.as_bytes(), &signature) {
            Ok(())
        } else {
            Err(NotProven::Signature(*key))
        }
    }
}

#[cfg(test)]
mod tests;
