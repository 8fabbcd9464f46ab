//! The Ed25519 key pair that signs checkpoints.
//!
//! Both halves are PEM as OpenSSL reads it, so that a signature can be checked without pgreeve.

use std::fmt;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::str::FromStr;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use ed25519_dalek::{Signer as _, SigningKey, VerifyingKey};
use rustix::rand::{GetRandomFlags, getrandom};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::AuditError;
use super::checkpoint::Signature;
use super::digest::{from_hex, from_text, to_hex};
use super::file;

const PRIVATE_FILE: &str = "signing.key";
const PUBLIC_FILE: &str = "public.key";

/// What stands before the 32 bytes of a key in DER (RFC 8410): PKCS #8 and `SubjectPublicKeyInfo`.
const PRIVATE_PREFIX: &[u8] = &[0x30, 0x2e, 2, 1, 0, 0x30, 5, 6, 3, 0x2b, 0x65, 0x70, 4, 0x22, 4, 0x20];
const PUBLIC_PREFIX: &[u8] = &[0x30, 0x2a, 0x30, 5, 6, 3, 0x2b, 0x65, 0x70, 3, 0x21, 0];

/// The private half and what follows from it.
pub(super) struct KeyPair(SigningKey);

impl KeyPair {
    /// Reads the pair of a log, or makes one for a log that has no records yet.
    pub(super) fn open(dir: &Path, log_is_new: bool) -> Result<Self, AuditError> {
        let path = dir.join(PRIVATE_FILE);
        let pair = match read_private(&path)? {
            Some(pair) => pair,
            None if log_is_new => Self::create(dir, &path)?,
            None => {
                return Err(AuditError::new(
                    format!("open the signing key {}", path.display()),
                    "the log has records, but its key is gone",
                    "put the key back from a copy, or move the whole directory aside to begin a new log; the old one stays verifiable with its public key",
                ));
            }
        };
        pair.publish(dir)?;
        Ok(pair)
    }

    /// The public half.
    pub(super) fn public(&self) -> PublicKey {
        PublicKey(self.0.verifying_key())
    }

    /// Signs a message, which must carry its own domain.
    pub(super) fn sign(&self, message: &[u8]) -> [u8; 64] {
        self.0.sign(message).to_bytes()
    }

    fn create(dir: &Path, path: &Path) -> Result<Self, AuditError> {
        let mut seed = [0_u8; 32];
        // 32 bytes are never cut short by a signal; waits for the kernel's entropy early at boot.
        let drawn = getrandom(&mut seed, GetRandomFlags::empty())
            .map_err(|error| AuditError::io("draw random bytes for", path, &error.into()))?;
        if drawn != seed.len() {
            return Err(AuditError::io(
                "draw random bytes for",
                path,
                &io::ErrorKind::UnexpectedEof.into(),
            ));
        }
        let pair = Self(SigningKey::from_bytes(&seed));
        let text = to_pem("PRIVATE KEY", PRIVATE_PREFIX, &seed);
        file::write_new(dir, path, 0o600, text.as_bytes())?;
        Ok(pair)
    }

    /// Writes the public half beside the private one, unless it is there.
    fn publish(&self, dir: &Path) -> Result<(), AuditError> {
        let path = dir.join(PUBLIC_FILE);
        if !path.exists() {
            let text = self.public().to_pem();
            file::write_new(dir, &path, 0o644, text.as_bytes())?;
            return Ok(());
        }
        if PublicKey::read(&path)? == self.public() {
            return Ok(());
        }
        Err(AuditError::new(
            format!("open the public key {}", path.display()),
            format!("it does not belong to {PRIVATE_FILE}"),
            format!("find out who replaced a key; if it is {PUBLIC_FILE}, remove it and it is written anew"),
        ))
    }
}

impl fmt::Debug for KeyPair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("KeyPair").field(&self.public()).finish()
    }
}

/// Signs statements about the log's host that are not part of the log: certificates of erasures.
#[derive(Debug)]
pub struct Signer(KeyPair);

impl Signer {
    /// Reads the key of a log that exists. Blocks.
    ///
    /// # Errors
    /// When there is no key, or others may read it.
    pub fn open(dir: &Path) -> Result<Self, AuditError> {
        KeyPair::open(dir, false).map(Self)
    }

    /// What the signatures are checked with.
    #[must_use]
    pub fn public(&self) -> PublicKey {
        self.0.public()
    }

    /// Signs a statement, which must begin with words that no other kind of statement begins with.
    #[must_use]
    pub fn sign(&self, statement: &[u8]) -> Signature {
        Signature::new(self.0.sign(statement))
    }
}

/// What a reader of the log needs: the key that its checkpoints are signed with.
///
/// Its text is 64 lowercase hexadecimal digits; PEM is read as well.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct PublicKey(VerifyingKey);

impl PublicKey {
    /// Reads a key file: PEM, or 64 hexadecimal digits.
    pub fn read(path: &Path) -> Result<Self, AuditError> {
        let text = fs::read(path).map_err(|error| AuditError::io("read the public key", path, &error))?;
        String::from_utf8_lossy(&text).parse().map_err(|error: NotAPublicKey| {
            AuditError::new(
                format!("read the public key {}", path.display()),
                error.to_string(),
                format!("give the file {PUBLIC_FILE} of the log's directory, or a copy of it"),
            )
        })
    }

    /// Reads the key that lies beside a log.
    pub(super) fn beside(dir: &Path) -> Result<Option<Self>, AuditError> {
        let path = dir.join(PUBLIC_FILE);
        match fs::symlink_metadata(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            _ => Self::read(&path).map(Some),
        }
    }

    /// As PEM, for OpenSSL.
    #[must_use]
    pub fn to_pem(&self) -> String {
        to_pem("PUBLIC KEY", PUBLIC_PREFIX, self.0.as_bytes())
    }

    /// Whether a statement was signed by the holder of this key; see [`Signer::sign`].
    #[must_use]
    pub fn has_signed(&self, statement: &[u8], signature: &Signature) -> bool {
        self.verifies(statement, signature.bytes())
    }

    /// Whether the signature over the message is this key's.
    pub(super) fn verifies(&self, message: &[u8], signature: &[u8; 64]) -> bool {
        self.0
            .verify_strict(message, &ed25519_dalek::Signature::from_bytes(signature))
            .is_ok()
    }
}

/// The text is not an Ed25519 public key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not an Ed25519 public key in PEM or 64 hexadecimal digits")]
pub struct NotAPublicKey;

impl FromStr for PublicKey {
    type Err = NotAPublicKey;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let text = text.trim();
        let bytes = from_hex(text)
            .or_else(|| from_pem("PUBLIC KEY", PUBLIC_PREFIX, text))
            .ok_or(NotAPublicKey)?;
        let key = VerifyingKey::from_bytes(&bytes).map_err(|_| NotAPublicKey)?;
        // Under a weak key more than one message can have the same signature.
        if key.is_weak() {
            Err(NotAPublicKey)
        } else {
            Ok(Self(key))
        }
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&to_hex(self.0.as_bytes()))
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for PublicKey {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for PublicKey {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        from_text(deserializer)
    }
}

fn read_private(path: &Path) -> Result<Option<KeyPair>, AuditError> {
    let operation = "read the signing key";
    let text = match File::open(path) {
        Ok(file) => {
            let metadata = file
                .metadata()
                .map_err(|error| AuditError::io(operation, path, &error))?;
            if metadata.permissions().mode() & 0o077 != 0 {
                return Err(AuditError::new(
                    format!("{operation} {}", path.display()),
                    format!(
                        "its mode is {:04o}: others may read or replace it and sign in our name",
                        metadata.permissions().mode() & 0o7777
                    ),
                    format!("chmod 600 {}", path.display()),
                ));
            }
            io::read_to_string(file).map_err(|error| AuditError::io(operation, path, &error))?
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(AuditError::io(operation, path, &error)),
    };
    match from_pem("PRIVATE KEY", PRIVATE_PREFIX, text.trim()) {
        Some(seed) => Ok(Some(KeyPair(SigningKey::from_bytes(&seed)))),
        None => Err(AuditError::new(
            format!("{operation} {}", path.display()),
            "not an Ed25519 private key in PKCS #8 PEM",
            "put the key back from a copy",
        )),
    }
}

fn to_pem(label: &str, prefix: &[u8], key: &[u8; 32]) -> String {
    let body = BASE64_STANDARD.encode([prefix, key].concat());
    format!("-----BEGIN {label}-----\n{body}\n-----END {label}-----\n")
}

fn from_pem(label: &str, prefix: &[u8], text: &str) -> Option<[u8; 32]> {
    let body = text
        .strip_prefix(&format!("-----BEGIN {label}-----"))?
        .strip_suffix(&format!("-----END {label}-----"))?;
    let der = BASE64_STANDARD.decode(body.trim()).ok()?;
    der.strip_prefix(prefix)?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pair_is_made_once_and_found_again() {
        let dir = tempfile::tempdir().unwrap();
        let made = KeyPair::open(dir.path(), true).unwrap();
        let found = KeyPair::open(dir.path(), false).unwrap();
        assert_eq!(made.public(), found.public());
        assert_eq!(PublicKey::beside(dir.path()).unwrap(), Some(made.public()));
        assert_eq!(made.public().to_string().parse(), Ok(made.public()));
        let permissions = fs::metadata(dir.path().join(PRIVATE_FILE)).unwrap().permissions();
        assert_eq!(permissions.mode() & 0o7777, 0o600);
    }

    #[test]
    fn two_logs_have_two_keys() {
        let (one, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let one = KeyPair::open(one.path(), true).unwrap().public();
        assert_ne!(one, KeyPair::open(other.path(), true).unwrap().public());
    }

    #[test]
    fn a_lost_key_is_not_replaced_in_silence() {
        let dir = tempfile::tempdir().unwrap();
        let error = KeyPair::open(dir.path(), false).unwrap_err();
        assert!(error.cause.contains("gone"), "{error}");
        assert!(!dir.path().join(PRIVATE_FILE).exists());
    }

    #[test]
    fn a_key_that_others_may_read_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        KeyPair::open(dir.path(), true).unwrap();
        fs::set_permissions(dir.path().join(PRIVATE_FILE), fs::Permissions::from_mode(0o640)).unwrap();
        let error = KeyPair::open(dir.path(), false).unwrap_err();
        assert!(error.remedy.starts_with("chmod 600"), "{error}");
    }

    #[test]
    fn a_public_key_that_is_not_ours_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        KeyPair::open(dir.path(), true).unwrap();
        let other = KeyPair(SigningKey::from_bytes(&[7; 32])).public();
        fs::write(dir.path().join(PUBLIC_FILE), other.to_pem()).unwrap();
        assert!(KeyPair::open(dir.path(), false).is_err());
    }

    #[test]
    fn what_is_no_key_is_refused() {
        let identity = format!("01{}", "0".repeat(62));
        for text in [
            "",
            "00",
            &identity,
            "-----BEGIN PUBLIC KEY-----\n-----END PUBLIC KEY-----",
        ] {
            assert!(text.parse::<PublicKey>().is_err(), "{text}");
        }
    }
}
