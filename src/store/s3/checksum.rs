//! What the server compares a body with. The sums are made here and sent as headers: what the SDK
//! would add by itself is refused by other servers than AWS.

use aws_sdk_s3::types::ChecksumAlgorithm;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use flate2::Crc;
use md5::Md5;
use sha2::{Digest, Sha256};
use tokio_util::bytes::Bytes;

use super::S3Store;
use crate::store::{Checksum, StoreError};

/// The sum of one body, by the name of its header; at most one is set.
#[derive(Debug, Clone, Default)]
pub(super) struct Sum {
    pub(super) sha256: Option<String>,
    pub(super) crc32: Option<String>,
    pub(super) md5: Option<String>,
}

impl Sum {
    fn of(checksum: Checksum, body: &[u8]) -> Self {
        let mut sum = Self::default();
        match checksum {
            Checksum::Sha256 => sum.sha256 = Some(STANDARD.encode(Sha256::digest(body))),
            Checksum::Crc32 => {
                let mut crc = Crc::new();
                crc.update(body);
                sum.crc32 = Some(STANDARD.encode(crc.sum().to_be_bytes()));
            }
            Checksum::ByEndpoint | Checksum::Md5 => sum.md5 = Some(STANDARD.encode(Md5::digest(body))),
            Checksum::None => {}
        }
        sum
    }
}

impl S3Store {
    /// Digests away from the runtime's threads: a part takes tens of milliseconds.
    pub(super) async fn sum(&self, operation: &str, body: Bytes) -> Result<Sum, StoreError> {
        let checksum = self.0.checksum;
        tokio::task::spawn_blocking(move || Sum::of(checksum, &body))
            .await
            .map_err(|error| StoreError::permanent(operation, format!("the digest was broken off: {error}")))
    }

    /// What an upload announces of its parts' sums, which AWS refuses otherwise.
    pub(super) fn announced(&self) -> Option<ChecksumAlgorithm> {
        match self.0.checksum {
            Checksum::Sha256 => Some(ChecksumAlgorithm::Sha256),
            Checksum::Crc32 => Some(ChecksumAlgorithm::Crc32),
            Checksum::ByEndpoint | Checksum::Md5 | Checksum::None => None,
        }
    }

    /// What bodies are compared with, for the record.
    pub(super) fn checksum_word(&self) -> &'static str {
        match self.0.checksum {
            Checksum::Sha256 => "sha256",
            Checksum::Crc32 => "crc32",
            Checksum::ByEndpoint | Checksum::Md5 => "md5",
            Checksum::None => "none",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_sum_is_the_one_that_its_header_names() {
        // The check value of CRC-32 is cbf43926.
        let crc32 = Sum::of(Checksum::Crc32, b"123456789").crc32.unwrap();
        assert_eq!(STANDARD.decode(crc32).unwrap(), [0xcb, 0xf4, 0x39, 0x26]);
        assert_eq!(
            Sum::of(Checksum::Md5, b"").md5.as_deref(),
            Some("1B2M2Y8AsgTpgAmY7PhCfg==")
        );
        let none = Sum::of(Checksum::None, b"x");
        assert!(none.sha256.is_none() && none.crc32.is_none() && none.md5.is_none());
    }
}
