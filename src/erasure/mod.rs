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
//! | `group` | the same for several requests in few exchanges |
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
//! and writes their rows, and a step that is done is not done again.
//!
//! # Many requests
//!
//! Requests are worked on in groups. A group is resolved, announced, stepped and closed in few exchanges
//! with the server and few waits for the disk (`group`): a script on the server does what each request by
//! itself would do, one after the other, in one transaction that is cut by rows and by time, each request
//! in a subtransaction of its own. So a step, its row in the ledger and the request's state are together
//! there or not, as before, two people who share a row come out as they would one after the other, and
//! what a group does not bring to its end (many rows, a legal hold, rows that come late, an error) is
//! done by itself, with its own stated result.

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
mod exports;
mod group;
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
