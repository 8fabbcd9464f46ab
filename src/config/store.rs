//! `[stores.NAME]`: where objects go.

use std::path::PathBuf;

use super::bucket::BucketKeys;
use super::field::Field;
use super::surroundings::Surroundings;
use crate::store::{ObjectKey, S3Settings, StoreSettings};

const HELP: &str = "write \"s3://BUCKET/PREFIX\" or \"file:///DIRECTORY\"";

pub(super) fn read(field: &Field<'_>, surroundings: &Surroundings) -> Option<StoreSettings> {
    let mut section = field.section()?;
    let url = section.required("url");
    let of_s3 = BucketKeys::take(&mut section);
    section.finish(&[]);
    let url = url?;
    let text = url.text()?;
    if let Some(place) = text.strip_prefix("s3://") {
        let settings = of_s3.read(surroundings);
        let (bucket, prefix) = bucket_and_prefix(&url, place)?;
        Some(StoreSettings::S3(Box::new(S3Settings {
            bucket,
            prefix,
            ..settings
        })))
    } else if text.starts_with("file:") {
        of_s3.refuse();
        directory(&url, text).map(StoreSettings::File)
    } else {
        url.error("this is not the url of a store", HELP);
        None
    }
}

fn bucket_and_prefix(url: &Field<'_>, place: &str) -> Option<(String, String)> {
    let (bucket, prefix) = place.split_once('/').unwrap_or((place, ""));
    let bucket_ok = (3..=63).contains(&bucket.len())
        && bucket
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_'))
        && bucket.starts_with(|c: char| c.is_ascii_alphanumeric());
    if !bucket_ok {
        let help =
            "a bucket's name has 3 to 63 letters, digits, `.`, `-` or `_`; credentials are never part of the url";
        url.error("the url names no bucket", help);
        return None;
    }
    let prefix = prefix.trim_end_matches('/');
    if !prefix.is_empty() && (prefix.contains(['?', '#']) || ObjectKey::new(prefix).is_err()) {
        let help = "write ASCII names joined by single slashes, such as \"s3://backups/database\"";
        url.error("the prefix cannot be part of an object's key", help);
        return None;
    }
    Some((bucket.to_owned(), prefix.to_owned()))
}

fn directory(url: &Field<'_>, text: &str) -> Option<PathBuf> {
    let path = url::Url::parse(text)
        .ok()
        .filter(|parsed| parsed.query().is_none() && parsed.fragment().is_none())
        .and_then(|parsed| parsed.to_file_path().ok())
        .filter(|path| path.parent().is_some() && text.starts_with("file:///"));
    if path.is_none() {
        url.error(
            "the url names no directory of this host",
            "write \"file:///var/lib/pgreeve/store\"",
        );
    }
    path
}
