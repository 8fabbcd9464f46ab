//! `[stores.NAME]`: where objects go.

use std::path::PathBuf;

use super::field::Field;
use super::paths;
use super::section::Section;
use super::surroundings::Surroundings;
use crate::store::{ObjectKey, S3Settings, StoreSettings};

/// Keys of the design that this version does not have.
const PLANNED: [&str; 2] = ["sse", "object_lock"];

const HELP: &str = "write \"s3://BUCKET/PREFIX\" or \"file:///DIRECTORY\"";

pub(super) fn read(field: &Field<'_>, surroundings: &Surroundings) -> Option<StoreSettings> {
    let mut section = field.section()?;
    let url = section.required("url");
    let of_s3 = S3Keys::take(&mut section);
    section.finish(&PLANNED);
    let url = url?;
    let text = url.text()?;
    if let Some(place) = text.strip_prefix("s3://") {
        let settings = of_s3.read(surroundings);
        let (bucket, prefix) = bucket_and_prefix(&url, place)?;
        Some(StoreSettings::S3(S3Settings {
            bucket,
            prefix,
            ..settings
        }))
    } else if text.starts_with("file:") {
        of_s3.refuse();
        directory(&url, text).map(StoreSettings::File)
    } else {
        url.error("this is not the url of a store", HELP);
        None
    }
}

/// The keys that make sense with `s3://` only.
struct S3Keys<'a> {
    region: Option<Field<'a>>,
    endpoint: Option<Field<'a>>,
    path_style: Option<Field<'a>>,
    profile: Option<Field<'a>>,
    credentials_file: Option<Field<'a>>,
}

impl<'a> S3Keys<'a> {
    fn take(section: &mut Section<'a>) -> Self {
        Self {
            region: section.optional("region"),
            endpoint: section.optional("endpoint"),
            path_style: section.optional("path_style"),
            profile: section.optional("profile"),
            credentials_file: section.optional("credentials_file"),
        }
    }

    fn read(&self, surroundings: &Surroundings) -> S3Settings {
        S3Settings {
            region: self.region.as_ref().and_then(word),
            endpoint: self.endpoint.as_ref().and_then(endpoint),
            path_style: self.path_style.as_ref().and_then(Field::boolean).unwrap_or(false),
            profile: self.profile.as_ref().and_then(word),
            credentials_file: self
                .credentials_file
                .as_ref()
                .and_then(|field| paths::secret_file(field, surroundings)),
            ..S3Settings::default()
        }
    }

    fn refuse(self) {
        let keys = [
            self.region,
            self.endpoint,
            self.path_style,
            self.profile,
            self.credentials_file,
        ];
        for field in keys.into_iter().flatten() {
            let message = format!("`{}` means nothing for a store of files", field.path);
            field
                .sink
                .error(&field.key, &message, "leave it out, or write an s3:// url");
        }
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
