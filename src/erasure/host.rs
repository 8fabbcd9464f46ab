//! The proof of erasures on this host: keys, ledger, scans, certificates and the copies that still
//! hold a subject, behind the one way that the engine knows ([`Proof`]).

use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures::FutureExt;
use futures::future::BoxFuture;
use jiff::{SignedDuration, Timestamp};
use serde::Serialize;
use serde_json::{Value, json};
use sqlx::PgConnection;
use tokio::sync::OnceCell;

use super::afterwards;
use super::certificate::{self, Certificate, Circumstances, Signed};
use super::copies::{self, ArchiveKeeps, Holdings, Source};
use super::entry::Begun;
use super::memory::{Memory, MemoryError};
use super::objects::{self, ObjectStores, Removed};
use super::outbox::Recipients;
use super::proof::{Account, Proof, ProofError, Residue, Search, Subject, SubjectToken};
use super::recall::Recall;
use super::request::RequestId;
use super::residue;
use super::sealed::Sealed;
use super::token::{self, Malformed};
use crate::audit::{self, PublicKey, Signer, file};
use crate::job::{JobContext, JobError};
use crate::postgres::sqlstate::DatabaseError;
use crate::store::ObjectKey;
use crate::values::Name;

/// How long one pass over the database may take.
const SCAN_TIME: Duration = Duration::from_mins(30);

/// How long after the first scan the second is due: queues and sessions that were under way may have
/// written the subject again by then.
pub const SECOND_SCAN_AFTER: SignedDuration = SignedDuration::from_hours(24);

/// Where the proof of a host lies and what it is told.
#[derive(Debug, Clone)]
pub struct HostSettings {
    /// The daemon's directory; the ledger lies in `erasures` below it, the audit log in `audit`.
    pub state_dir: PathBuf,
    /// The daemon's instance.
    pub instance: String,
    /// Where backups of the job's database lie.
    pub backups: Vec<Source>,
    /// Where exports of it lie.
    pub exports: Vec<Source>,
    /// Who is told of each erasure.
    pub recipients: Recipients,
    /// How long archives of the database's rows are kept, by job.
    pub archive_keeps: ArchiveKeeps,
    /// Where objects lie that rows own.
    pub stores: ObjectStores,
}

/// The proof of erasures on this host. Opened for a run.
#[derive(Debug)]
pub struct HostProof {
    settings: HostSettings,
    memory: Memory,
    signer: Signer,
    sealed: Sealed,
    /// What the scan learned of the server.
    server: Mutex<Server>,
    /// The backups and exports, listed once a run.
    holdings: OnceCell<Holdings>,
}

#[derive(Debug, Clone, Default)]
struct Server {
    system_identifier: Option<String>,
    archives: Vec<certificate::HoldingArchive>,
}

/// The directory of the ledger of erasures.
#[must_use]
pub fn ledger_dir(state_dir: &Path) -> PathBuf {
    state_dir.join("erasures")
}

impl HostProof {
    /// Opens the ledger and the signing key, which the audit log has made. Blocks.
    ///
    /// # Errors
    /// When one of them is damaged, gone or open to others.
    pub fn open(settings: HostSettings) -> Result<Self, MemoryError> {
        let dir = ledger_dir(&settings.state_dir);
        Ok(Self {
            memory: Memory::open(&dir, &settings.instance)?,
            signer: Signer::open(&settings.state_dir.join("audit"))?,
            sealed: Sealed::beside(&dir),
            server: Mutex::default(),
            holdings: OnceCell::new(),
            settings,
        })
    }

    /// The ledger.
    #[must_use]
    pub fn memory(&self) -> &Memory {
        &self.memory
    }

    /// What certificates are checked with.
    #[must_use]
    pub fn public_key(&self) -> PublicKey {
        self.signer.public()
    }

    /// The halves of second scans.
    #[must_use]
    pub fn sealed(&self) -> &Sealed {
        &self.sealed
    }

    /// Who is told of each erasure.
    #[must_use]
    pub fn recipients(&self) -> &Recipients {
        &self.settings.recipients
    }

    /// Where backups of the job's database lie.
    #[must_use]
    pub fn backups(&self) -> &[Source] {
        &self.settings.backups
    }

    /// Signs a document and keeps it under a name. Blocks.
    pub(crate) fn keep(&self, name: &str, document: &impl Serialize) -> Result<Signed, MemoryError> {
        let signed = self.sign(name, document)?;
        write(&self.certificates(), name, signed.text())?;
        file::sync_directory(&self.certificates())?;
        Ok(signed)
    }

    fn certificates(&self) -> PathBuf {
        ledger_dir(&self.settings.state_dir).join(CERTIFICATES)
    }

    fn sign(&self, name: &str, document: &impl Serialize) -> Result<Signed, MemoryError> {
        certificate::sign(document, &self.signer).map_err(|cause| {
            MemoryError::new(
                format!("sign {}", self.certificates().join(name).display()),
                cause,
                "this is a fault of pgreeve, please report it",
            )
        })
    }

    async fn certify_all(&self, accounts: &[Account]) -> Result<Vec<Value>, MemoryError> {
        let ends = accounts
            .iter()
            .map(|account| (account.request.0, account.state.as_str().to_owned()))
            .collect();
        let begun_after = self.memory.finish_all(ends).await?;
        let mark = self.memory.mark().await?;
        let mut closed = None;
        let mut froms = Vec::with_capacity(accounts.len());
        for (account, from) in accounts.iter().zip(begun_after) {
            // An attempt that died before the request was closed has closed the entry.
            froms.push(match (from, &mut closed) {
                (Some(from), _) => Some(from),
                (None, Some(recall)) => begun_in(recall, account),
                (None, none) => begun_in(none.insert(self.recall().await?), account),
            });
        }
        let audit = self.settings.state_dir.join("audit");
        let to = blocking(move || Ok(audit::last_record(&audit)?)).await?;
        let server = self.server.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let listing = || copies::list(&self.settings.backups, &self.settings.exports);
        let holdings = self.holdings.get_or_init(listing).await;
        let documents = accounts.iter().zip(froms).map(|(account, from)| {
            let circumstances = Circumstances {
                issued_at: Timestamp::now(),
                instance: self.settings.instance.clone(),
                system_identifier: server.system_identifier.clone(),
                ledger: Some(mark.clone()),
                audit_records: from.map(|from| (from, to)),
                second_scan_due_at: account
                    .finished_at
                    .and_then(|at| at.checked_add(SECOND_SCAN_AFTER).ok()),
                copies: holdings.of(account, &server.archives),
                recipients: self.settings.recipients.keys().map(ToString::to_string).collect(),
            };
            let document = Certificate::new(account.clone(), circumstances, self.signer.public());
            let (dir, name) = (self.certificates(), format!("{}.json", account.request));
            let signed = self.sign(&name, &document);
            blocking(move || {
                let signed = signed?;
                write(&dir, &name, signed.text())?;
                Ok(json!({ "sha256": signed.digest(), "document": signed.text() }))
            })
        });
        // At the same time: the filesystem makes many files durable for the price of a few, and their names
        // for that of one.
        let certified = futures::future::try_join_all(documents).await?;
        let dir = self.certificates();
        if !certified.is_empty() {
            blocking(move || Ok(file::sync_directory(&dir)?)).await?;
        }
        Ok(certified)
    }

    async fn recall(&self) -> Result<Recall, MemoryError> {
        let dir = self.memory.dir().to_path_buf();
        blocking(move || Recall::load(&[dir])).await
    }
}

/// Keeps a signed document under a name, in the place of an earlier one; the name is durable when the
/// directory was synced. Blocks.
fn write(dir: &Path, name: &str, text: &str) -> Result<(), MemoryError> {
    let path = dir.join(name);
    std::fs::create_dir_all(dir).map_err(|error| MemoryError::io("create the directory", dir, &error))?;
    // An attempt that died before the request was closed may have left one.
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(MemoryError::io("replace", &path, &error));
        }
        _ => {}
    }
    file::write_unlisted(dir, &path, file::MODE, text.as_bytes())?;
    Ok(())
}

/// The last record of the audit log when a request was begun first.
fn begun_in(recall: &Recall, account: &Account) -> Option<u64> {
    let mut begun = recall.begun().filter(|begun| begun.request == account.request.0);
    begun.next().map(|begun| begun.audit)
}

/// The directory of certificates and addenda, below the ledger's.
pub const CERTIFICATES: &str = "certificates";

/// Runs what waits for files apart from the runtime's own threads.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, MemoryError> + Send + 'static,
) -> Result<T, MemoryError> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|error| {
        Err(MemoryError::new(
            "work on the ledger of erasures",
            error.to_string(),
            "this is a fault of pgreeve, please report it",
        ))
    })
}

impl From<MemoryError> for ProofError {
    fn from(error: MemoryError) -> Self {
        Self {
            operation: error.operation,
            cause: error.cause,
            remedy: error.remedy,
            transient: false,
        }
    }
}

fn scan_failed(error: &DatabaseError) -> ProofError {
    ProofError {
        operation: "search what is left of the erased".to_owned(),
        cause: error.to_string(),
        remedy: error
            .remedy()
            .unwrap_or_else(|| "check the server and its log".to_owned()),
        transient: error.is_transient(),
    }
}

fn malformed(_: Malformed) -> MemoryError {
    MemoryError::new(
        "read the token of a request",
        "it is not one that pgreeve made",
        "somebody has changed pgreeve.erasure_request; `pgreeve audit verify` and the ledger of erasures tell what was asked for",
    )
}

impl Proof for HostProof {
    fn token(&self, subject: &Subject<'_>) -> Result<SubjectToken, ProofError> {
        let key = self.memory.keys().current(Timestamp::now())?;
        let subject = token::Subject {
            database: subject.database,
            table: subject.table,
            key: subject.key.expose(),
        };
        Ok(SubjectToken {
            key_id: key.id.to_string(),
            token: key.token(&subject).to_string(),
        })
    }

    fn remember<'a>(&'a self, accounts: &'a [Account]) -> BoxFuture<'a, Result<Vec<Value>, ProofError>> {
        async move {
            let audit = self.settings.state_dir.join("audit");
            let audit = blocking(move || Ok(audit::last_record(&audit)?)).await?;
            let begun = accounts.iter().map(|account| {
                Ok(Begun {
                    request: account.request.0,
                    job: account.job.clone(),
                    database: account.database.clone(),
                    table: account.subject_table.clone(),
                    policy: account.policy.clone(),
                    key: account.subject.key_id.parse().map_err(malformed)?,
                    token: account.subject.token.parse().map_err(malformed)?,
                    audit,
                })
            });
            let begun = begun.collect::<Result<Vec<Begun>, MemoryError>>()?;
            let marks = self.memory.begin_all(begun).await?;
            Ok(marks.into_iter().map(|mark| json!(mark)).collect())
        }
        .boxed()
    }

    fn scan<'a>(
        &'a self,
        connection: &'a mut PgConnection,
        searches: &'a [Search],
    ) -> BoxFuture<'a, Result<Vec<Residue>, ProofError>> {
        async move {
            let server = Server {
                system_identifier: copies::system_identifier(connection)
                    .await
                    .map_err(|error| scan_failed(&error))?,
                archives: copies::archives(connection, &self.settings.archive_keeps)
                    .await
                    .map_err(|error| scan_failed(&error))?,
            };
            *self.server.lock().unwrap_or_else(PoisonError::into_inner) = server;
            residue::scan(connection, searches, Instant::now() + SCAN_TIME)
                .await
                .map_err(|error| scan_failed(&error))
        }
        .boxed()
    }

    fn seal<'a>(
        &'a self,
        searches: &'a [(RequestId, &'a Search)],
    ) -> BoxFuture<'a, Result<Vec<Option<Vec<u8>>>, ProofError>> {
        async move {
            let halves = searches.iter().map(|(request, search)| {
                let (sealed, request, search) = (self.sealed.clone(), *request, (*search).clone());
                blocking(move || sealed.split(request, &search).map(Some))
            });
            let shares = futures::future::try_join_all(halves).await?;
            let sealed = self.sealed.clone();
            if !shares.is_empty() {
                blocking(move || sealed.settle()).await?;
            }
            Ok(shares)
        }
        .boxed()
    }

    fn remove<'a>(&'a self, store: &'a Name, keys: Vec<ObjectKey>) -> BoxFuture<'a, Result<Removed, ProofError>> {
        objects::delete(&self.settings.stores, store, keys).boxed()
    }

    fn certify<'a>(&'a self, accounts: &'a [Account]) -> BoxFuture<'a, Result<Vec<Value>, ProofError>> {
        async move { Ok(self.certify_all(accounts).await?) }.boxed()
    }

    fn attend<'a>(&'a self, context: &'a mut JobContext) -> BoxFuture<'a, Result<Value, JobError>> {
        afterwards::attend(self, context).boxed()
    }
}
