//! What the second scan looks for, kept for a day without being anywhere.
//!
//! A scan needs the person's identifiers, and after the erasure nobody may have them: not the
//! database, whose next backup would hold them, and not the host. So they are split: random bytes go
//! into the database, and the identifiers, combined with those bytes (a one-time pad), into a file of
//! the host. Each half by itself is noise, also in a backup of either place. Both are destroyed when
//! the second scan is done.

use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use rustix::rand::{GetRandomFlags, getrandom};
use serde::{Deserialize, Serialize};
use sqlx::postgres::types::Oid;

use super::memory::MemoryError;
use super::proof::{ScanScope, Search};
use super::request::{Identifier, Identifiers, RequestId};
use crate::audit::file;

/// What is split.
#[derive(Serialize, Deserialize)]
struct Payload {
    /// Source and text of each identifier.
    identifiers: Vec<(String, String)>,
    /// Table and column in which one may stay.
    kept: Vec<(u32, Option<String>)>,
}

/// The halves that lie on the host.
#[derive(Debug, Clone)]
pub struct Sealed(PathBuf);

impl Sealed {
    /// Those beside a ledger of erasures.
    #[must_use]
    pub fn beside(ledger: &Path) -> Self {
        Self(ledger.join("rescan"))
    }

    /// Splits a search. The answer is the half for the database; the other is durable after
    /// [`Sealed::settle`]. Blocks.
    pub fn split(&self, request: RequestId, search: &Search) -> Result<Vec<u8>, MemoryError> {
        let path = self.path(request);
        let payload = Payload {
            identifiers: search
                .identifiers
                .0
                .iter()
                .map(|identifier| (identifier.source.clone(), identifier.expose().to_owned()))
                .collect(),
            kept: search
                .scope
                .kept
                .iter()
                .map(|(oid, column)| (oid.0, column.clone()))
                .collect(),
        };
        let bytes = serde_json::to_vec(&payload)
            .map_err(|_| MemoryError::io("write", &path, &io::ErrorKind::InvalidData.into()))?;
        let pad = random(bytes.len(), &path)?;
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&self.0)
            .map_err(|error| MemoryError::io("create the directory", &self.0, &error))?;
        // An earlier attempt may have left its half.
        self.destroy(request)?;
        file::write_unlisted(&self.0, &path, 0o600, &combine(&bytes, &pad))?;
        Ok(pad)
    }

    /// Makes the halves durable that were split before, with one wait for the device. Blocks.
    pub fn settle(&self) -> Result<(), MemoryError> {
        Ok(file::sync_directory(&self.0)?)
    }

    /// Joins the halves; `None` when ours is not on this host. Blocks.
    ///
    /// # Errors
    /// When the halves do not belong together.
    pub fn join(&self, request: RequestId, pad: &[u8]) -> Result<Option<Search>, MemoryError> {
        let path = self.path(request);
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(MemoryError::io("read", &path, &error)),
        };
        let joined = if bytes.len() == pad.len() {
            combine(&bytes, pad)
        } else {
            Vec::new()
        };
        // The parser's message would quote the text.
        let payload: Payload = serde_json::from_slice(&joined).map_err(|_| {
            MemoryError::new(
                format!("read {}", path.display()),
                "it does not belong to the half in the database",
                "search for the person by hand; the file can be removed",
            )
        })?;
        let identifiers = payload.identifiers.into_iter();
        Ok(Some(Search {
            scope: ScanScope {
                kept: payload
                    .kept
                    .into_iter()
                    .map(|(oid, column)| (Oid(oid), column))
                    .collect(),
                ..ScanScope::default()
            },
            identifiers: Identifiers(
                identifiers
                    .map(|(source, text)| Identifier::new(source, text))
                    .collect(),
            ),
        }))
    }

    /// Destroys the half of the host; the other one means nothing from then on. Blocks.
    pub fn destroy(&self, request: RequestId) -> Result<(), MemoryError> {
        let path = self.path(request);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(MemoryError::io("remove", &path, &error)),
            _ => Ok(()),
        }
    }

    fn path(&self, request: RequestId) -> PathBuf {
        self.0.join(request.to_string())
    }
}

fn combine(bytes: &[u8], pad: &[u8]) -> Vec<u8> {
    bytes.iter().zip(pad).map(|(byte, pad)| byte ^ pad).collect()
}

fn random(length: usize, place: &Path) -> Result<Vec<u8>, MemoryError> {
    let mut bytes = vec![0; length];
    // At most 256 bytes come whole, whatever signals arrive.
    for chunk in bytes.chunks_mut(256) {
        let drawn = getrandom(&mut *chunk, GetRandomFlags::empty())
            .map_err(|error| MemoryError::io("draw random bytes for", place, &error.into()))?;
        if drawn != chunk.len() {
            return Err(MemoryError::io(
                "draw random bytes for",
                place,
                &io::ErrorKind::UnexpectedEof.into(),
            ));
        }
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn search() -> Search {
        Search {
            scope: ScanScope {
                kept: vec![(Oid(7), None), (Oid(8), Some("id".to_owned()))],
                changed: Vec::new(),
            },
            identifiers: Identifiers(vec![Identifier::new(
                "public.users.email",
                "jane@example.org ".repeat(50),
            )]),
        }
    }

    #[test]
    fn two_halves_are_the_search_and_one_half_is_noise() {
        let dir = tempfile::tempdir().unwrap();
        let sealed = Sealed::beside(dir.path());
        let request = RequestId::new();
        let pad = sealed.split(request, &search()).unwrap();
        assert_eq!(sealed.join(request, &pad).unwrap(), Some(search()));
        let half = fs::read(dir.path().join("rescan").join(request.to_string())).unwrap();
        for bytes in [&half, &pad] {
            assert!(memchr::memmem::find(bytes, b"jane").is_none());
        }
        // A second attempt draws new halves, and the old one opens nothing.
        let other = sealed.split(request, &search()).unwrap();
        assert_ne!(other, pad);
        let error = sealed.join(request, &pad).unwrap_err();
        assert!(!format!("{error:?}").contains("jane"));
        sealed.destroy(request).unwrap();
        sealed.destroy(request).unwrap();
        assert_eq!(sealed.join(request, &other).unwrap(), None);
    }
}
