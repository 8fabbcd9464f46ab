//! Erasure of data subjects: a person is gone everywhere, on time, with a proof, and stays gone.
//!
//! # The map
//!
//! | file | what it is |
//! |---|---|
//! | `rule` | what the configuration asks for |
//! | `reach` | the tables that foreign keys and soft edges lead to, read from the catalog |
//! | `plan` | what happens to each of them, in which order; refuses what nobody decided |
//! | `preflight` | rights, row security, and each mask tried on one row |
//! | `mask` | the masks |
//! | `prepare` | what a run would do, as operators see it |
//! | `statement` | the one place where statements on user tables are built |
//! | `intake` | the application's requests become the ledger's |
//! | `run` | all that waits: taken, resolved, announced, stepped, searched, closed |
//! | `attempt`, `scope`, `steps`, `close` | the parts of that for one request |
//! | `single` | one person at once, in a database that was restored |
//! | `deadline` | one calendar month, warned of, extended once |
//! | `proof` | the way to what proves it: token, ledger on the host, residual scan, certificate |
//!
//! # One request
//!
//! `received → planned → approved → processing → verifying → completed`. Before the first row goes,
//! the request stands in the audit log and in the ledger on the host, so that a restore from an older
//! backup knows of it. The steps of a request with few rows are one transaction, those of one with many
//! are one each; it holds the leader's fence, the request's lease and the legal holds, does their work
//! and writes their rows, and a step that is done is not done again. What waits for the disk (the
//! announcement, the certificate, the end) is done for some requests at a time.

pub mod afterwards;
mod attempt;
pub mod certificate;
mod close;
pub mod copies;
pub mod deadline;
pub mod desk;
mod drift;
pub mod entry;
pub mod execute;
pub mod host;
pub mod init;
pub mod intake;
pub mod mask;
pub mod memory;
pub mod objects;
mod order;
pub mod outbox;
pub mod plan;
mod preflight;
pub mod prepare;
pub mod proof;
pub mod reach;
pub mod recall;
pub mod replay;
pub mod request;
pub mod residue;
pub mod rule;
pub mod run;
mod scope;
pub mod sealed;
mod single;
mod statement;
mod steps;
mod tally;
pub mod token;
pub mod witnesses;

pub use proof::{
    Account, Kept, Proof, ProofError, Residue, ResiduePlace, ScanScope, Search, StepAccount, Subject, SubjectToken,
};
pub use request::{Identifier, Identifiers, RequestId, RequestState, SubjectKey};
