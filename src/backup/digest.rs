//! SHA-256 of a stream, and how long it was.

use std::fmt::Write;

use sha2::{Digest, Sha256};

/// What went through a [`Meter`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Measure {
    /// How many bytes.
    pub bytes: u64,
    /// Their SHA-256, in lowercase hexadecimal digits.
    pub sha256: String,
}

/// Measures bytes as they pass.
#[derive(Debug, Clone, Default)]
pub struct Meter {
    hasher: Sha256,
    bytes: u64,
}

impl Meter {
    /// A meter that has seen nothing.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds the next bytes of the stream.
    pub fn update(&mut self, bytes: &[u8]) {
        self.hasher.update(bytes);
        self.bytes = self.bytes.saturating_add(bytes.len() as u64);
    }

    /// How many bytes passed so far.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The measure of the whole stream.
    #[must_use]
    pub fn finish(self) -> Measure {
        Measure {
            bytes: self.bytes,
            sha256: hex(&self.hasher.finalize()),
        }
    }
}

/// The SHA-256 of one text.
#[must_use]
pub fn sha256_hex(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(64), |mut text, byte| {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_measure_does_not_depend_on_how_the_stream_was_cut() {
        let mut meter = Meter::new();
        meter.update(b"a");
        meter.update(b"");
        meter.update(b"bc");
        let measure = meter.finish();
        assert_eq!(measure.bytes, 3);
        assert_eq!(
            measure.sha256,
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        );
        assert_eq!(measure.sha256, sha256_hex(b"abc"));
    }
}
