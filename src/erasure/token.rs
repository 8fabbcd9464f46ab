//! Subject tokens: how a person is named where no personal data may stand.
//!
//! A token is HMAC-SHA256 over the subject's canonical identity. Whoever holds the key and a list of
//! identities can find the person again, so a token is pseudonymous, not anonymous. Hence a new key
//! each calendar year (UTC), and hence a key is destroyed when no backup is left that can hold a
//! subject whom it names: from then on its tokens name nobody.
//!
//! The keys lie in `state_dir/erasures/keys`, one file a key, mode 0600. A key never leaves that
//! directory: not into a database, a store, a log or a certificate.

use std::fmt;
use std::fs::{self, DirBuilder, File};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use hmac::{Hmac, KeyInit, Mac};
use jiff::Timestamp;
use jiff::tz::TimeZone;
use rustix::rand::{GetRandomFlags, getrandom};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sha2::Sha256;

use super::memory::MemoryError;
use crate::audit::digest::{Digest, from_hex, from_text, to_hex};
use crate::audit::file;
use crate::audit::lock::Lock;

/// Keeps a token from being the HMAC of anything else.
const DOMAIN: &str = "pgreeve-subject-v1";

/// Who is meant: a row of the subject's table, by its key as PostgreSQL writes it (`key::text`).
#[derive(Debug, Clone, Copy)]
pub struct Subject<'a> {
    /// The database's name in the configuration.
    pub database: &'a str,
    /// The subject's table, `schema.name`.
    pub table: &'a str,
    /// The value of its key column.
    pub key: &'a str,
}

/// What stands for a subject. Its text is 64 lowercase hexadecimal digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Token([u8; 32]);

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&to_hex(&self.0))
    }
}

/// The text is not a token, or not a key's name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not what pgreeve writes there")]
pub struct Malformed;

impl FromStr for Token {
    type Err = Malformed;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        from_hex(text).map(Self).ok_or(Malformed)
    }
}

impl Serialize for Token {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Token {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        from_text(deserializer)
    }
}

/// The name of a key: its year, and the first 16 digits of its SHA-256, so that two hosts' keys of
/// one year are told apart. `2026-0123456789abcdef`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeyId {
    /// The year in which it names subjects.
    pub year: i16,
    print: String,
}

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04}-{}", self.year, self.print)
    }
}

impl FromStr for KeyId {
    type Err = Malformed;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (year, print) = text.split_once('-').ok_or(Malformed)?;
        from_hex::<8>(print).ok_or(Malformed)?;
        if year.len() != 4 || !year.bytes().all(|digit| digit.is_ascii_digit()) {
            return Err(Malformed);
        }
        Ok(Self {
            year: year.parse().map_err(|_| Malformed)?,
            print: print.to_owned(),
        })
    }
}

impl Serialize for KeyId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for KeyId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        from_text(deserializer)
    }
}

/// A key that names subjects.
#[derive(Clone)]
pub struct TokenKey {
    /// Its name.
    pub id: KeyId,
    secret: [u8; 32],
}

impl TokenKey {
    fn of(year: i16, secret: [u8; 32]) -> Self {
        let print = Digest::of(&secret).to_string().chars().take(16).collect();
        let id = KeyId { year, print };
        Self { id, secret }
    }

    /// The token of a subject under this key. Lengths stand before the parts, so that no two
    /// subjects are the same text.
    #[must_use]
    pub fn token(&self, subject: &Subject<'_>) -> Token {
        // A key shorter than a block is filled up with zeros: that is how HMAC is defined.
        let mut block = [0_u8; 64];
        block.iter_mut().zip(self.secret).for_each(|(to, from)| *to = from);
        let mut mac = Hmac::<Sha256>::new(&block.into());
        for part in [DOMAIN, subject.database, subject.table, subject.key] {
            mac.update(&(part.len() as u64).to_be_bytes());
            mac.update(part.as_bytes());
        }
        Token(mac.finalize().into_bytes().into())
    }
}

impl fmt::Debug for TokenKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("TokenKey").field(&self.id).finish()
    }
}

/// The keys of one directory.
#[derive(Debug, Clone)]
pub struct Keys(PathBuf);

impl Keys {
    /// The keys beside a ledger of erasures. Nothing is read or made yet.
    #[must_use]
    pub fn beside(ledger: &Path) -> Self {
        Self(ledger.join("keys"))
    }

    /// The key in whose name subjects are written down now; made when the year has none yet. Blocks.
    pub fn current(&self, now: Timestamp) -> Result<TokenKey, MemoryError> {
        let year = now.to_zoned(TimeZone::UTC).year();
        if let Some(key) = self.of_year(year)? {
            return Ok(key);
        }
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&self.0)
            .map_err(|error| MemoryError::io("create the directory", &self.0, &error))?;
        // Of two processes at the turn of the year, the second finds what the first has made.
        let _lock = Lock::exclusive(&self.0)?;
        if let Some(key) = self.of_year(year)? {
            return Ok(key);
        }
        let key = TokenKey::of(year, draw(&self.0)?);
        let text = format!("{}\n", to_hex(&key.secret));
        file::write_new(&self.0, &self.path(&key.id), 0o600, text.as_bytes())?;
        Ok(key)
    }

    /// A key by its name; `None` when it is not here, or no more. Blocks.
    pub fn find(&self, id: &KeyId) -> Result<Option<TokenKey>, MemoryError> {
        let path = self.path(id);
        let operation = "read the subject key";
        let failed = |error: io::Error| MemoryError::io(operation, &path, &error);
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(failed(error)),
        };
        let mode = file.metadata().map_err(failed)?.permissions().mode();
        if mode & 0o077 != 0 {
            return Err(MemoryError::new(
                format!("{operation} {}", path.display()),
                format!(
                    "its mode is {:04o}: who reads it can find the erased again",
                    mode & 0o7777
                ),
                format!("chmod 600 {}", path.display()),
            ));
        }
        let text = io::read_to_string(file).map_err(failed)?;
        let key = from_hex(text.trim_end()).map(|secret| TokenKey::of(id.year, secret));
        match key.filter(|key| key.id == *id) {
            Some(key) => Ok(Some(key)),
            None => Err(MemoryError::new(
                format!("{operation} {}", path.display()),
                "it does not hold the key of that name",
                "put the key back from a copy of the directory",
            )),
        }
    }

    /// The names of all keys, oldest first. Blocks.
    pub fn list(&self) -> Result<Vec<KeyId>, MemoryError> {
        if !self.0.exists() {
            return Ok(Vec::new());
        }
        let names = file::names(&self.0)?;
        let mut ids: Vec<KeyId> = names
            .iter()
            .filter_map(|name| name.strip_suffix(".key")?.parse().ok())
            .collect();
        ids.sort_unstable();
        Ok(ids)
    }

    /// Destroys a key: its bytes are overwritten, then its name goes. From then on its tokens name
    /// nobody. Nothing happens when there is no such key. Blocks.
    ///
    /// What copies of the file system keep (snapshots, backups of the host) is out of reach.
    pub fn destroy(&self, id: &KeyId) -> Result<(), MemoryError> {
        let path = self.path(id);
        let failed = |error: io::Error| MemoryError::io("destroy the subject key", &path, &error);
        let mut key = match File::options().write(true).open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(failed(error)),
        };
        key.write_all(&[b'0'; 64])
            .and_then(|()| key.sync_all())
            .and_then(|()| fs::remove_file(&path))
            .map_err(failed)?;
        Ok(file::sync_directory(&self.0)?)
    }

    fn of_year(&self, year: i16) -> Result<Option<TokenKey>, MemoryError> {
        // Another host's key may have been put here as well; the first by name is ours as well as any.
        match self.list()?.into_iter().find(|id| id.year == year) {
            Some(id) => self.find(&id),
            None => Ok(None),
        }
    }

    fn path(&self, id: &KeyId) -> PathBuf {
        self.0.join(format!("{id}.key"))
    }
}

fn draw(place: &Path) -> Result<[u8; 32], MemoryError> {
    let mut secret = [0_u8; 32];
    let failed = |error: io::Error| MemoryError::io("draw random bytes for a key in", place, &error);
    let drawn = getrandom(&mut secret, GetRandomFlags::empty()).map_err(|error| failed(error.into()))?;
    if drawn != secret.len() {
        return Err(failed(io::ErrorKind::UnexpectedEof.into()));
    }
    Ok(secret)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALICE: Subject<'_> = Subject {
        database: "main",
        table: "public.users",
        key: "42",
    };

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    #[test]
    fn a_token_is_the_hmac_that_openssl_computes() {
        // printf '\0\0\0\0\0\0\0\x12pgreeve-subject-v1\0…\4main\0…\x0cpublic.users\0…\x0242' |
        //   openssl dgst -sha256 -mac HMAC -macopt hexkey:0707…
        let token = TokenKey::of(2026, [7; 32]).token(&ALICE);
        assert_eq!(
            token.to_string(),
            "53c39dfb8568db2fa649f05186ec9d0cf241c18e255ccaa010425e9f6c7f893f"
        );
        assert_eq!(token.to_string().parse(), Ok(token));
    }

    #[test]
    fn parts_of_a_subject_cannot_flow_into_each_other() {
        let key = TokenKey::of(2026, [7; 32]);
        let other = Subject {
            table: "public.user",
            key: "s42",
            ..ALICE
        };
        assert_ne!(key.token(&ALICE), key.token(&other));
        let other = Subject {
            database: "staging",
            ..ALICE
        };
        assert_ne!(key.token(&ALICE), key.token(&other));
    }

    #[test]
    fn a_year_has_one_key_and_the_next_year_another() {
        let dir = tempfile::tempdir().unwrap();
        let keys = Keys::beside(dir.path());
        let first = keys.current(at("2026-01-01T00:00:00Z")).unwrap();
        let same = keys.current(at("2026-12-31T23:59:59.999Z")).unwrap();
        assert_eq!(first.token(&ALICE), same.token(&ALICE));
        let next = keys.current(at("2027-01-01T00:00:00Z")).unwrap();
        assert_ne!(next.token(&ALICE), same.token(&ALICE));
        assert_eq!(keys.list().unwrap(), [first.id.clone(), next.id]);
        let permissions = fs::metadata(keys.path(&first.id)).unwrap().permissions();
        assert_eq!(permissions.mode() & 0o7777, 0o600);
    }

    #[test]
    fn a_destroyed_key_is_gone_and_its_bytes_are_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        let keys = Keys::beside(dir.path());
        let key = keys.current(at("2026-06-01T00:00:00Z")).unwrap();
        let other_name = dir.path().join("seen");
        fs::hard_link(keys.path(&key.id), &other_name).unwrap();
        keys.destroy(&key.id).unwrap();
        keys.destroy(&key.id).unwrap();
        assert!(keys.find(&key.id).unwrap().is_none());
        assert_eq!(fs::read_to_string(other_name).unwrap().trim_end(), "0".repeat(64));
    }

    #[test]
    fn a_key_that_others_may_read_or_that_was_changed_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let keys = Keys::beside(dir.path());
        let key = keys.current(at("2026-06-01T00:00:00Z")).unwrap();
        let path = keys.path(&key.id);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        assert!(keys.find(&key.id).unwrap_err().remedy.starts_with("chmod 600"));
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        fs::write(&path, "0".repeat(64)).unwrap();
        let error = keys.find(&key.id).unwrap_err();
        assert!(error.cause.contains("does not hold"), "{error}");
    }

    #[test]
    fn a_key_has_one_name_only() {
        let id: KeyId = "2026-0123456789abcdef".parse().unwrap();
        assert_eq!(id.to_string(), "2026-0123456789abcdef");
        for bad in [
            "2026",
            "2026-",
            "26-0123456789abcdef",
            "+026-0123456789abcdef",
            "2026-0123456789ABCDEF",
            "2026-../../etc",
        ] {
            assert_eq!(bad.parse::<KeyId>(), Err(Malformed), "{bad}");
        }
    }

    #[test]
    fn a_key_does_not_show_itself() {
        let shown = format!("{:?}", TokenKey::of(2026, [7; 32]));
        assert!(
            !shown.contains("07, 7") && !shown.contains("0707") && !shown.contains("7, 7"),
            "{shown}"
        );
    }
}
