//! Connections: where to connect ([`ConnectTarget`]), and a session whose settings are known
//! ([`Session`]).
//!
//! Every connection is direct and belongs to one owner. There is no pool: a pool may hand out a
//! connection inside somebody else's open transaction after a cancelled `begin`
//! (sqlx issue 4385), and session locks do not survive one.

mod session;
mod target;

pub use self::session::{Session, SessionSettings};
pub use self::target::ConnectTarget;
