//! What is in a bucket: objects and open uploads, page by page.

use super::S3Store;
use super::limits::attempts;
use super::object::{info, instant};
use crate::store::{ObjectInfo, OpenUpload, StoreError};

impl S3Store {
    pub(super) async fn list_objects(&self, prefix: &str) -> Result<Vec<ObjectInfo>, StoreError> {
        let start = self.listed(prefix);
        let operation = format!("list s3://{}/{start}", self.0.name);
        let mut found = Vec::new();
        let mut token = None;
        loop {
            let page = attempts(&operation, self.limits().of_call(), || async {
                self.client()
                    .list_objects_v2()
                    .bucket(self.bucket())
                    .prefix(&start)
                    .set_continuation_token(token.clone())
                    .send()
                    .await
                    .map_err(|error| self.failure(&operation, &error))
            })
            .await
            .map_err(|failed| failed.error)?;
            for object in page.contents() {
                if let Some(key) = object.key().and_then(|key| self.own_key(key)) {
                    found.push(info(key, object.size, object.last_modified.as_ref()));
                }
            }
            if page.is_truncated != Some(true) {
                break;
            }
            let next = page.next_continuation_token;
            if next.is_none() || next == token {
                return Err(StoreError::permanent(
                    &operation,
                    "the store does not say where its list goes on",
                ));
            }
            token = next;
        }
        found.sort_by(|a, b| a.key.cmp(&b.key));
        Ok(found)
    }

    pub(super) async fn list_open(&self, prefix: &str) -> Result<Vec<OpenUpload>, StoreError> {
        let start = self.listed(prefix);
        let operation = format!("list the open uploads of s3://{}/{start}", self.0.name);
        let mut found = Vec::new();
        let mut marker = (None, None);
        loop {
            let page = attempts(&operation, self.limits().of_call(), || async {
                self.client()
                    .list_multipart_uploads()
                    .bucket(self.bucket())
                    .prefix(&start)
                    .set_key_marker(marker.0.clone())
                    .set_upload_id_marker(marker.1.clone())
                    .send()
                    .await
                    .map_err(|error| self.failure(&operation, &error))
            })
            .await
            .map_err(|failed| failed.error)?;
            for upload in page.uploads() {
                let key = upload.key().and_then(|key| self.own_key(key));
                if let (Some(key), Some(id)) = (key, upload.upload_id()) {
                    found.push(OpenUpload {
                        key,
                        id: id.to_owned(),
                        started: upload.initiated().and_then(instant),
                    });
                }
            }
            if page.is_truncated != Some(true) {
                return Ok(found);
            }
            let next = (page.next_key_marker, page.next_upload_id_marker);
            if next.0.is_none() || next == marker {
                return Err(StoreError::permanent(
                    &operation,
                    "the store does not say where its list goes on",
                ));
            }
            marker = next;
        }
    }
}
