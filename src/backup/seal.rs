//! Encryption to age recipients. Who makes backups needs no secret; who reads them needs an identity.

use std::fmt;
use std::io::{self, BufRead, Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::str::FromStr;
use std::sync::Arc;

use age::stream::{StreamReader, StreamWriter};
use age::x25519;
use age::{DecryptError, Decryptor, Encryptor};
use serde::{Serialize, Serializer};

use crate::values::ValueError;

/// What an encrypted object's name ends with: by it, `age -d` knows what it gets.
pub const SUFFIX: &str = ".age";

/// What a secret key starts with. One that was written where a recipient belongs is not repeated.
const SECRET: &str = "AGE-SECRET-KEY-";

/// The largest file of identities that is read.
const LIMIT: u64 = 1024 * 1024;

/// Somebody who can read what is encrypted: `age1…`.
#[derive(Clone, PartialEq, Eq)]
pub struct Recipient(x25519::Recipient);

impl fmt::Display for Recipient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for Recipient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl Serialize for Recipient {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&self.0)
    }
}

impl FromStr for Recipient {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.to_ascii_uppercase().starts_with(SECRET) {
            return Err(ValueError {
                problem: "is an identity, which is a secret".to_owned(),
                help: "write its recipient (`age-keygen -y FILE` shows it), and make a new identity: this one was written into a file".to_owned(),
            });
        }
        text.parse().map(Self).map_err(|problem: &str| ValueError {
            problem: format!("`{text}` is not an age recipient: {problem}"),
            help: "write what `age-keygen` shows as the public key: age1 and 58 characters".to_owned(),
        })
    }
}

/// Encrypts what is written to it, if there are recipients, and writes that on.
pub enum Sealer<W: Write> {
    /// To recipients.
    Age(Box<StreamWriter<W>>),
    /// As it is.
    Open(W),
}

impl<W: Write> Sealer<W> {
    /// A sealer before the first byte; with recipients it writes the header at once.
    ///
    /// # Errors
    /// When the output fails.
    pub fn new(recipients: &[Recipient], output: W) -> io::Result<Self> {
        if recipients.is_empty() {
            return Ok(Self::Open(output));
        }
        let recipients = recipients.iter().map(|recipient| &recipient.0 as &dyn age::Recipient);
        let encryptor = Encryptor::with_recipients(recipients).map_err(io::Error::other)?;
        Ok(Self::Age(Box::new(encryptor.wrap_output(output)?)))
    }

    /// Ends the stream: only now can it be told from one that was cut off.
    ///
    /// # Errors
    /// When the output fails.
    pub fn finish(self) -> io::Result<W> {
        match self {
            Self::Age(writer) => writer.finish(),
            Self::Open(output) => Ok(output),
        }
    }
}

impl<W: Write> Write for Sealer<W> {
    fn write(&mut self, piece: &[u8]) -> io::Result<usize> {
        match self {
            Self::Age(writer) => writer.write(piece),
            Self::Open(output) => output.write(piece),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Age(writer) => writer.flush(),
            Self::Open(output) => output.flush(),
        }
    }
}

/// The secret keys that open what is encrypted. Shared, never shown.
#[derive(Clone, Default)]
pub struct Identities(Arc<Vec<x25519::Identity>>);

impl fmt::Debug for Identities {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} identities", self.0.len())
    }
}

/// Why something encrypted cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum UnsealError {
    /// No identity is among its recipients. It may be whole.
    #[error("none of the identities given is among its recipients")]
    Stranger,
    /// It is damaged.
    #[error("{0}")]
    Damaged(String),
}

impl Identities {
    /// Reads a file as `age-keygen` writes it.
    ///
    /// # Errors
    /// Says what is wrong with the file; its contents are never part of the message.
    pub fn read(path: &Path) -> Result<Self, ValueError> {
        let bad = |problem: String, help: &str| ValueError {
            problem: format!("the identity file {}: {problem}", path.display()),
            help: help.to_owned(),
        };
        let unreadable = |error: io::Error| bad(error.to_string(), "name a file that `age-keygen -o FILE` made");
        let file = std::fs::File::open(path).map_err(unreadable)?;
        if file.metadata().map_err(unreadable)?.mode() & 0o004 != 0 {
            return Err(bad(
                "everybody on this host can read it".to_owned(),
                "chmod 600 the file",
            ));
        }
        let mut identities = Vec::new();
        for (number, line) in (1..).zip(io::BufReader::new(file.take(LIMIT)).lines()) {
            let line = line.map_err(|_| bad("it is not a text".to_owned(), "decrypt it first, with `age -d`"))?;
            let line = line.trim();
            if line.starts_with("age-encryption.org/") || line.starts_with("-----BEGIN AGE") {
                return Err(bad(
                    "it is encrypted with a passphrase".to_owned(),
                    "decrypt it first, with `age -d`",
                ));
            }
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let identity = line.parse().map_err(|problem: &str| {
                bad(
                    format!("line {number} is not an age identity: {problem}"),
                    "each line is AGE-SECRET-KEY-1…, empty, or a remark after #",
                )
            })?;
            identities.push(identity);
        }
        if identities.is_empty() {
            return Err(bad(
                "it holds no identity".to_owned(),
                "name a file that `age-keygen -o FILE` made",
            ));
        }
        Ok(Self(Arc::new(identities)))
    }

    /// Decrypts a stream. The reader fails where a byte is not the one that was encrypted, and where
    /// the stream ends too early.
    ///
    /// # Errors
    /// When it cannot be opened.
    pub fn open<R: Read>(&self, source: R) -> Result<StreamReader<R>, UnsealError> {
        let keys = self.0.iter().map(|identity| identity as &dyn age::Identity);
        Decryptor::new(source)
            .and_then(|decryptor| decryptor.decrypt(keys))
            .map_err(|error| match error {
                DecryptError::NoMatchingKeys => UnsealError::Stranger,
                error => UnsealError::Damaged(error.to_string()),
            })
    }
}

#[cfg(test)]
mod tests {
    use age::secrecy::ExposeSecret;

    use super::*;

    fn key() -> (Recipient, String) {
        let identity = x25519::Identity::generate();
        let secret = identity.to_string().expose_secret().to_owned();
        (Recipient(identity.to_public()), secret)
    }

    fn file(text: &str, mode: u32) -> tempfile::NamedTempFile {
        use std::os::unix::fs::PermissionsExt;
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        std::fs::set_permissions(file.path(), std::fs::Permissions::from_mode(mode)).unwrap();
        file
    }

    fn sealed(recipients: &[Recipient], text: &[u8]) -> Vec<u8> {
        let mut sealer = Sealer::new(recipients, Vec::new()).unwrap();
        sealer.write_all(text).unwrap();
        sealer.finish().unwrap()
    }

    #[test]
    fn every_recipient_can_open_it_and_nobody_else() {
        let ((ours, our_secret), (theirs, their_secret), (_, strange)) = (key(), key(), key());
        let text = b"row\n".repeat(50_000);
        let sealed = sealed(&[ours, theirs], &text);
        for secret in [our_secret, their_secret] {
            let identities = Identities::read(file(&format!("# a remark\n\n{secret}\n"), 0o600).path()).unwrap();
            let mut opened = Vec::new();
            identities
                .open(sealed.as_slice())
                .unwrap()
                .read_to_end(&mut opened)
                .unwrap();
            assert!(opened == text);
            // Not one byte less, not one byte other.
            let cut = &sealed[..sealed.len() - 1];
            assert!(identities.open(cut).unwrap().read_to_end(&mut Vec::new()).is_err());
            let mut flipped = sealed.clone();
            flipped[sealed.len() / 2] ^= 1;
            assert!(
                identities
                    .open(flipped.as_slice())
                    .unwrap()
                    .read_to_end(&mut Vec::new())
                    .is_err()
            );
        }
        let identities = Identities::read(file(&strange, 0o600).path()).unwrap();
        assert!(matches!(identities.open(sealed.as_slice()), Err(UnsealError::Stranger)));
    }

    #[test]
    fn a_secret_in_the_wrong_place_is_not_repeated() {
        let (recipient, secret) = key();
        assert_eq!(recipient.to_string().parse::<Recipient>().unwrap(), recipient);
        let error = secret.parse::<Recipient>().unwrap_err();
        assert!(!format!("{error:?}").contains(&secret[16..]), "{error:?}");
        let error = Identities::read(file(&secret.replace("KEY-1", "KEY-2"), 0o600).path()).unwrap_err();
        assert!(
            error.problem.contains("line 1") && !format!("{error:?}").contains(&secret[20..]),
            "{error:?}"
        );
        for (text, mode, problem) in [
            (secret.as_str(), 0o644, "everybody on this host"),
            ("# nothing\n", 0o600, "no identity"),
            ("age-encryption.org/v1\n-> scrypt", 0o600, "passphrase"),
        ] {
            let error = Identities::read(file(text, mode).path()).unwrap_err();
            assert!(error.problem.contains(problem), "{error:?}");
        }
    }
}
