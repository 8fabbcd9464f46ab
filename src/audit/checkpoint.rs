//! Checkpoints: the log signs its own end, and what of that is kept elsewhere.

use jiff::Timestamp;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::digest::{Digest, from_hex, from_text, to_hex};
use super::key::{KeyPair, PublicKey};
use super::kind::RecordKind;
use super::record::{Link, Record, microseconds};

/// Keeps a signature of a checkpoint from standing for anything else.
const DOMAIN: &str = "pgreeve-checkpoint-v1";

/// A signed statement that the log, at `ts`, ended with record `seq`, whose line has the digest
/// `hash`. Since records are numbered from 1 without gaps, `seq` is also how many there are.
///
/// It is the body of a `checkpoint` record. A copy kept where the log's writer can not change it is
/// what shows a cut-off tail or a rewritten log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Anchor {
    /// The last record before the checkpoint.
    pub seq: u64,
    /// The digest of its line.
    pub hash: Digest,
    /// When it was signed.
    #[serde(with = "microseconds")]
    pub ts: Timestamp,
    /// The key it was signed with.
    pub public_key: PublicKey,
    /// Ed25519 over `pgreeve-checkpoint-v1`, `seq`, `hash` and `ts` as they stand here, each followed
    /// by a NUL byte.
    pub signature: Signature,
}

impl Anchor {
    pub(super) fn sign(key: &KeyPair, seq: u64, hash: Digest, ts: Timestamp) -> Self {
        Self {
            seq,
            hash,
            ts,
            public_key: key.public(),
            signature: Signature(key.sign(&message(seq, hash, ts))),
        }
    }

    /// Says why this is not a statement of the holder of `key`.
    pub(super) fn check(&self, key: &PublicKey) -> Result<(), String> {
        if self.public_key != *key {
            return Err(format!("it names the key {}, not {key}", self.public_key));
        }
        if key.verifies(&message(self.seq, self.hash, self.ts), &self.signature.0) {
            Ok(())
        } else {
            Err("its signature is wrong".to_owned())
        }
    }

    /// The record that carries it: nothing in that line is free to choose, so that a changed byte of
    /// a checkpoint is found even when no record follows it.
    pub(super) fn record(&self, link: Link) -> Record<'static, &Self> {
        Record::new(link, RecordKind::Checkpoint, self)
    }
}

/// The bytes of an Ed25519 signature; its text is 128 lowercase hexadecimal digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Signature([u8; 64]);

impl Signature {
    pub(super) fn new(bytes: [u8; 64]) -> Self {
        Self(bytes)
    }

    pub(super) fn bytes(&self) -> &[u8; 64] {
        &self.0
    }
}

impl std::str::FromStr for Signature {
    type Err = NotASignature;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        from_hex(text).map(Self).ok_or(NotASignature)
    }
}

impl std::fmt::Display for Signature {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&to_hex(&self.0))
    }
}

impl Serialize for Signature {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Signature {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        from_text(deserializer)
    }
}

/// The text is not 128 lowercase hexadecimal digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not 128 lowercase hexadecimal digits")]
pub struct NotASignature;

/// No field can hold a NUL, so no two statements have the same bytes.
fn message(seq: u64, hash: Digest, ts: Timestamp) -> Vec<u8> {
    format!("{DOMAIN}\0{seq}\0{hash}\0{ts:.6}\0").into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn signed() -> (Anchor, PublicKey) {
        let dir = tempfile::tempdir().unwrap();
        let key = KeyPair::open(dir.path(), true).unwrap();
        let ts = "2026-01-02T03:04:05.000006Z".parse().unwrap();
        (Anchor::sign(&key, 9, Digest::of(b"line"), ts), key.public())
    }

    #[test]
    fn an_anchor_survives_its_text() {
        let (anchor, key) = signed();
        let text = serde_json::to_string(&anchor).unwrap();
        let read: Anchor = serde_json::from_str(&text).unwrap();
        assert_eq!(read, anchor);
        assert_eq!(read.check(&key), Ok(()));
    }

    #[test]
    fn each_field_of_an_anchor_is_signed() {
        let (anchor, key) = signed();
        let (other, _) = signed();
        let changed = [
            Anchor {
                seq: 10,
                ..anchor.clone()
            },
            Anchor {
                hash: Digest::GENESIS,
                ..anchor.clone()
            },
            Anchor {
                ts: "2026-01-02T03:04:05.000007Z".parse().unwrap(),
                ..anchor.clone()
            },
            Anchor {
                public_key: other.public_key,
                ..anchor.clone()
            },
            Anchor {
                signature: other.signature,
                ..anchor.clone()
            },
            other,
        ];
        for anchor in changed {
            assert!(anchor.check(&key).is_err(), "{anchor:?}");
        }
    }
}
