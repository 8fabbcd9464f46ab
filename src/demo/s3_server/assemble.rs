//! Puts the parts of an upload together. `s3s-fs` reads and hashes all of them once more, and holds up who
//! waits for as long as the upload took; S3 knows the digest of each part since it came.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::path::{Component, Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use md5::{Digest, Md5};
use s3s::dto::{CompleteMultipartUploadInput, CompleteMultipartUploadOutput, ETag, ETagCondition};
use s3s::{S3Result, s3_error};

use super::service::Bucket;

/// Where `s3s-fs` has an upload, and where it looks for the object.
struct Assembly {
    root: PathBuf,
    id: String,
    parts: usize,
    /// What the names of its files about the object start with.
    about: String,
    object: PathBuf,
    tag: String,
}

impl Bucket {
    /// Completes an upload that is checked. Nothing where only `s3s-fs` knows how.
    pub(super) async fn assemble(
        &self,
        input: &CompleteMultipartUploadInput,
    ) -> S3Result<Option<CompleteMultipartUploadOutput>> {
        let Some(assembly) = self.plan(input) else {
            return Ok(None);
        };
        let exclusive = input.if_none_match.as_ref().is_some_and(ETagCondition::is_any);
        if exclusive && assembly.object.exists() {
            return Err(s3_error!(PreconditionFailed, "Object already exists"));
        }
        let tag = assembly.tag.clone();
        let done = tokio::task::spawn_blocking(move || assembly.carry_out()).await;
        done.map_err(io::Error::other)
            .flatten()
            .map_err(|error| s3_error!(error, InternalError))?;
        Ok(Some(CompleteMultipartUploadOutput {
            bucket: Some(input.bucket.clone()),
            key: Some(input.key.clone()),
            e_tag: Some(ETag::Strong(tag)),
            ..CompleteMultipartUploadOutput::default()
        }))
    }

    fn plan(&self, input: &CompleteMultipartUploadInput) -> Option<Assembly> {
        let plain = Path::new(&input.key)
            .components()
            .all(|component| matches!(component, Component::Normal(_)));
        let parts = input.multipart_upload.as_ref()?.parts.as_ref()?.len();
        if input.if_match.is_some() || !plain || parts == 0 {
            return None;
        }
        let digests: Vec<[u8; 16]> = self.uploaded(&input.upload_id, |upload| {
            let digests = upload
                .parts
                .values()
                .take(parts)
                .map(|part| digest(part.e_tag.as_deref()?));
            digests.collect::<Option<_>>()
        })??;
        let tag = Md5::digest(digests.concat());
        let name = |text: &str| URL_SAFE_NO_PAD.encode(text);
        Some(Assembly {
            root: self.root.clone(),
            id: input.upload_id.clone(),
            parts,
            about: format!(".bucket-{}.object-{}", name(&input.bucket), name(&input.key)),
            object: self.root.join(&input.bucket).join(&input.key),
            tag: format!("{:032x}-{parts}", u128::from_be_bytes(tag.into())),
        })
    }
}

/// The MD5 that a part's tag is.
fn digest(tag: &str) -> Option<[u8; 16]> {
    Some(u128::from_str_radix(tag, 16).ok()?.to_be_bytes())
}

impl Assembly {
    fn carry_out(&self) -> io::Result<()> {
        let whole = self.root.join(format!(".upload_id-{}.whole", self.id));
        fs::rename(self.part(1), &whole)?;
        let mut file = OpenOptions::new().write(true).open(&whole)?;
        file.seek(SeekFrom::End(0))?;
        for number in 2..=self.parts {
            io::copy(&mut File::open(self.part(number))?, &mut file)?;
            fs::remove_file(self.part(number))?;
        }
        let about = |rest: &str| self.root.join(format!("{}{rest}", self.about));
        let metadata = about(&format!(".upload-{}.metadata.json", self.id));
        if metadata.exists() {
            fs::rename(metadata, about(".metadata.json"))?;
        }
        let information = serde_json::json!({ "e_tag": self.tag });
        fs::write(about(".internal.json"), information.to_string())?;
        if let Some(directory) = self.object.parent() {
            fs::create_dir_all(directory)?;
        }
        fs::rename(whole, &self.object)?;
        fs::remove_file(self.root.join(format!(".upload-{}.json", self.id)))
    }

    fn part(&self, number: usize) -> PathBuf {
        self.root.join(format!(".upload_id-{}.part-{number}", self.id))
    }
}
