//! The keys of `[stores.NAME]` that make sense with `s3://` only.

use std::time::Duration;

use super::field::Field;
use super::paths;
use super::section::Section;
use super::size::bytes;
use super::surroundings::Surroundings;
use crate::store::{Checksum, Encryption, LockMode, ObjectLock, S3Settings};

const KEYS: [&str; 12] = [
    "region",
    "endpoint",
    "path_style",
    "profile",
    "credentials_file",
    "checksum",
    "sse",
    "kms_key",
    "storage_class",
    "object_lock",
    "part_size",
    "max_parts",
];

const CHECKSUMS: [(&str, Checksum); 4] = [
    ("sha256", Checksum::Sha256),
    ("crc32", Checksum::Crc32),
    ("md5", Checksum::Md5),
    ("none", Checksum::None),
];

const MODES: [(&str, LockMode); 2] = [
    ("governance", LockMode::Governance),
    ("compliance", LockMode::Compliance),
];

/// The longest lock: a hundred years.
const LONGEST_LOCK: Duration = Duration::from_hours(24 * 36_525);

/// What parts may measure: AWS takes no smaller ones, and four of them are held in memory.
const PART_MIB: std::ops::RangeInclusive<u64> = 5..=512;

/// The most parts of an object on AWS.
const MOST_PARTS: u32 = 10_000;

/// The keys, taken but not read yet: whether they make sense depends on the url.
pub(super) struct BucketKeys<'a>(Vec<(&'static str, Field<'a>)>);

impl<'a> BucketKeys<'a> {
    pub(super) fn take(section: &mut Section<'a>) -> Self {
        Self(
            KEYS.into_iter()
                .filter_map(|key| section.optional(key).map(|field| (key, field)))
                .collect(),
        )
    }

    fn get(&self, key: &'static str) -> Option<&Field<'a>> {
        self.0.iter().find(|(name, _)| *name == key).map(|(_, field)| field)
    }

    /// The settings without bucket and prefix; what is wrong is reported and left out.
    pub(super) fn read(&self, surroundings: &Surroundings) -> S3Settings {
        let checksum = self.get("checksum").and_then(|field| field.word(&CHECKSUMS, &[]));
        let object_lock = self.get("object_lock").and_then(object_lock);
        if let (Some(field), Some(Checksum::None), Some(_)) = (self.get("checksum"), checksum, &object_lock) {
            let help = "leave `checksum` out, or write \"md5\"";
            field.error("S3 stores no locked object without a checksum", help);
        }
        S3Settings {
            region: self.get("region").and_then(word),
            endpoint: self.get("endpoint").and_then(endpoint),
            path_style: self.get("path_style").and_then(Field::boolean).unwrap_or(false),
            profile: self.get("profile").and_then(word),
            credentials_file: self
                .get("credentials_file")
                .and_then(|field| paths::secret_file(field, surroundings)),
            checksum: checksum.unwrap_or_default(),
            encryption: self.encryption(),
            storage_class: self.get("storage_class").and_then(storage_class),
            object_lock,
            part_bytes: self.get("part_size").and_then(part_bytes),
            max_parts: self.get("max_parts").and_then(|field| field.count(100..=MOST_PARTS)),
            ..S3Settings::default()
        }
    }

    fn encryption(&self) -> Option<Encryption> {
        let key = self.get("kms_key");
        let named = key.and_then(word);
        let kinds = [("AES256", 0_u8), ("aws:kms", 1), ("aws:kms:dsse", 2)];
        let kind = self.get("sse").and_then(|field| field.word(&kinds, &[]));
        match kind {
            Some(1) => return Some(Encryption::Kms(named)),
            Some(2) => return Some(Encryption::KmsTwice(named)),
            _ => {}
        }
        if let Some(field) = key {
            field.error(
                "a key of KMS means nothing here",
                "add sse = \"aws:kms\", or leave it out",
            );
        }
        kind.map(|_| Encryption::Aes256)
    }

    /// Reports each key, for a store of another kind.
    pub(super) fn refuse(self) {
        for (_, field) in self.0 {
            let message = format!("`{}` means nothing for a store of files", field.path);
            field
                .sink
                .error(&field.key, &message, "leave it out, or write an s3:// url");
        }
    }
}

fn object_lock(field: &Field<'_>) -> Option<ObjectLock> {
    let mut section = field.section()?;
    let mode = section.required("mode").and_then(|field| field.word(&MODES, &[]));
    let period = section
        .required("period")
        .and_then(|field| field.duration(LONGEST_LOCK));
    section.finish(&[]);
    Some(ObjectLock {
        mode: mode?,
        period: period?,
    })
}

fn part_bytes(field: &Field<'_>) -> Option<usize> {
    let size = field.checked(bytes(field.text()?, ", such as \"16MB\""))?;
    let mib = size >> 20;
    if !PART_MIB.contains(&mib) || mib << 20 != size {
        let help = format!("write whole MB from {} to {}", PART_MIB.start(), PART_MIB.end());
        field.error("this is no size for a part", &help);
        return None;
    }
    usize::try_from(size).ok()
}

/// A class whose objects can be read at once: a backup that cannot be read is not proved.
fn storage_class(field: &Field<'_>) -> Option<String> {
    let class = word(field)?;
    if matches!(class.as_str(), "GLACIER" | "DEEP_ARCHIVE") {
        let help = "write a class such as \"STANDARD_IA\" or \"GLACIER_IR\"; a lifecycle rule can move old backups on";
        field.error("objects of this class cannot be read when they are needed", help);
        return None;
    }
    if !class
        .chars()
        .all(|c| c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_')
    {
        field.error(
            "this is not a storage class",
            "write it as S3 has it, such as \"STANDARD_IA\"",
        );
        return None;
    }
    Some(class)
}

fn endpoint(field: &Field<'_>) -> Option<String> {
    let text = field.text()?;
    let sound = url::Url::parse(text).is_ok_and(|url| {
        matches!(url.scheme(), "http" | "https")
            && url.has_host()
            && url.username().is_empty()
            && url.password().is_none()
            && url.path() == "/"
            && url.query().is_none()
            && url.fragment().is_none()
    });
    if !sound {
        let help = "write the scheme, the host and the port only, such as \"https://s3.example.org:9000\"";
        field.error("this is not the address of a server", help);
        return None;
    }
    Some(text.trim_end_matches('/').to_owned())
}

fn word(field: &Field<'_>) -> Option<String> {
    let text = field.text()?;
    if text.is_empty() || !text.chars().all(|c| c.is_ascii_graphic()) {
        field.error("this is not a name", "write the name as AWS has it, without spaces");
        return None;
    }
    Some(text.to_owned())
}
