//! A complete store in memory that can fail on demand.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures::FutureExt;
use futures::future::BoxFuture;
use jiff::Timestamp;
use pgreeve::store::{
    Capabilities, Deleted, ObjectInfo, ObjectKey, OpenUpload, Part, Store, StoreError, StoreErrorKind, Upload,
};
use tokio::io::AsyncRead;
use tokio::sync::Semaphore;
use tokio_util::bytes::Bytes;

/// Which request is to fail: the operation's name and what its key must contain.
type Fault = (&'static str, &'static str);

/// The store. Clones share their contents.
#[derive(Debug, Clone, Default)]
pub struct MemoryStore(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    state: Mutex<State>,
    parts_gate: Option<Semaphore>,
    starts_gate: Option<Semaphore>,
}

#[derive(Debug, Default)]
struct State {
    objects: BTreeMap<String, (Bytes, Timestamp)>,
    uploads: BTreeMap<String, BTreeMap<u32, Bytes>>,
    keys: BTreeMap<String, String>,
    next: u64,
    requests: Vec<String>,
    fault: Option<Fault>,
}

impl MemoryStore {
    /// A store whose parts are not acknowledged until [`MemoryStore::let_parts_pass`].
    pub fn with_held_parts() -> Self {
        Self(Arc::new(Inner {
            parts_gate: Some(Semaphore::new(0)),
            ..Inner::default()
        }))
    }

    pub fn let_parts_pass(&self) {
        self.0
            .parts_gate
            .as_ref()
            .unwrap()
            .add_permits(Semaphore::MAX_PERMITS / 2);
    }

    /// A store that does not say that an upload has begun until [`MemoryStore::let_starts_pass`].
    pub fn with_held_starts() -> Self {
        Self(Arc::new(Inner {
            starts_gate: Some(Semaphore::new(0)),
            ..Inner::default()
        }))
    }

    pub fn let_starts_pass(&self) {
        self.0
            .starts_gate
            .as_ref()
            .unwrap()
            .add_permits(Semaphore::MAX_PERMITS / 2);
    }

    /// Makes an object as old as objects become.
    pub fn written_long_ago(&self, key: &str) {
        self.state().objects.get_mut(key).unwrap().1 = Timestamp::UNIX_EPOCH;
    }

    /// From now on this operation fails for keys that contain the text.
    pub fn fail(&self, operation: &'static str, key: &'static str) {
        self.state().fault = Some((operation, key));
    }

    pub fn heal(&self) {
        self.state().fault = None;
    }

    pub fn keys(&self) -> Vec<String> {
        self.state().objects.keys().cloned().collect()
    }

    pub fn open_uploads(&self) -> usize {
        self.state().uploads.len()
    }

    pub fn requests(&self) -> Vec<String> {
        self.state().requests.clone()
    }

    pub fn body(&self, key: &str) -> Bytes {
        self.state().objects[key].0.clone()
    }

    /// Replaces an object's bytes behind everybody's back.
    pub fn damage(&self, key: &str, change: impl FnOnce(&mut Vec<u8>)) {
        let mut state = self.state();
        let object = state.objects.get_mut(key).unwrap();
        let mut bytes = object.0.to_vec();
        change(&mut bytes);
        object.0 = bytes.into();
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn request(&self, operation: &'static str, key: &str) -> Result<MutexGuard<'_, State>, StoreError> {
        let mut state = self.state();
        state.requests.push(format!("{operation} {key}"));
        match state.fault {
            Some((failing, part)) if failing == operation && key.contains(part) => Err(StoreError::new(
                StoreErrorKind::Transient,
                format!("{operation} {key}"),
                "the store is out of order",
            )),
            _ => Ok(state),
        }
    }

    fn put(&self, operation: &'static str, key: &ObjectKey, body: Bytes) -> Result<(), StoreError> {
        let mut state = self.request(operation, key.as_str())?;
        if state.objects.contains_key(key.as_str()) {
            return Err(StoreError::new(
                StoreErrorKind::Exists,
                format!("create {key}"),
                "it exists",
            ));
        }
        state.objects.insert(key.to_string(), (body, Timestamp::now()));
        Ok(())
    }
}

fn below(key: &str, prefix: &str) -> bool {
    prefix.is_empty() || key.strip_prefix(prefix).is_some_and(|rest| rest.starts_with('/'))
}

impl Store for MemoryStore {
    fn describe(&self) -> String {
        "memory:".to_owned()
    }

    fn probe(&self) -> BoxFuture<'_, Result<Capabilities, StoreError>> {
        async {
            let capabilities = Capabilities {
                conditional_create: true,
                conditional_complete: true,
                checksum: "none",
                versioned: Some(false),
                object_lock: Some(false),
                clock_ahead_s: 0,
            };
            self.request("probe", "").map(|_| capabilities)
        }
        .boxed()
    }

    fn create<'a>(
        &'a self,
        key: &'a ObjectKey,
        body: Bytes,
        _content_type: &'static str,
    ) -> BoxFuture<'a, Result<(), StoreError>> {
        async move { self.put("create", key, body) }.boxed()
    }

    fn start_upload<'a>(
        &'a self,
        key: &'a ObjectKey,
        _content_type: &'static str,
    ) -> BoxFuture<'a, Result<Arc<dyn Upload>, StoreError>> {
        async move {
            let id = {
                let mut state = self.request("start_upload", key.as_str())?;
                state.next += 1;
                let id = format!("upload-{}", state.next);
                state.uploads.insert(id.clone(), BTreeMap::new());
                state.keys.insert(id.clone(), key.to_string());
                id
            };
            if let Some(gate) = &self.0.starts_gate {
                gate.acquire().await.unwrap().forget();
            }
            let upload: Arc<dyn Upload> = Arc::new(MemoryUpload {
                store: self.clone(),
                key: key.clone(),
                id,
            });
            Ok(upload)
        }
        .boxed()
    }

    fn head<'a>(&'a self, key: &'a ObjectKey) -> BoxFuture<'a, Result<Option<ObjectInfo>, StoreError>> {
        async move {
            let state = self.request("head", key.as_str())?;
            Ok(state.objects.get(key.as_str()).map(|(body, modified)| ObjectInfo {
                key: key.clone(),
                bytes: body.len() as u64,
                modified: *modified,
            }))
        }
        .boxed()
    }

    fn open<'a>(&'a self, key: &'a ObjectKey) -> BoxFuture<'a, Result<Box<dyn AsyncRead + Send + Unpin>, StoreError>> {
        async move {
            let state = self.request("open", key.as_str())?;
            let (body, _) = state.objects.get(key.as_str()).ok_or_else(|| {
                StoreError::new(
                    StoreErrorKind::NotFound,
                    format!("open {key}"),
                    "there is no such object",
                )
            })?;
            let reader: Box<dyn AsyncRead + Send + Unpin> = Box::new(std::io::Cursor::new(body.clone()));
            Ok(reader)
        }
        .boxed()
    }

    fn list<'a>(&'a self, prefix: &'a str) -> BoxFuture<'a, Result<Vec<ObjectInfo>, StoreError>> {
        async move {
            let state = self.request("list", prefix)?;
            let objects = state.objects.iter().filter(|(key, _)| below(key, prefix));
            objects
                .map(|(key, (body, modified))| {
                    Ok(ObjectInfo {
                        key: ObjectKey::new(key.as_str())?,
                        bytes: body.len() as u64,
                        modified: *modified,
                    })
                })
                .collect()
        }
        .boxed()
    }

    fn delete<'a>(&'a self, key: &'a ObjectKey) -> BoxFuture<'a, Result<Deleted, StoreError>> {
        async move {
            self.request("delete", key.as_str())?.objects.remove(key.as_str());
            Ok(Deleted::Gone)
        }
        .boxed()
    }

    fn list_uploads<'a>(&'a self, prefix: &'a str) -> BoxFuture<'a, Result<Vec<OpenUpload>, StoreError>> {
        async move {
            let state = self.request("list_uploads", prefix)?;
            let open = state.uploads.keys().filter(|id| below(&state.keys[*id], prefix));
            open.map(|id| {
                Ok(OpenUpload {
                    key: ObjectKey::new(state.keys[id].as_str())?,
                    id: id.clone(),
                    started: None,
                })
            })
            .collect()
        }
        .boxed()
    }

    fn abort_upload<'a>(&'a self, upload: &'a OpenUpload) -> BoxFuture<'a, Result<(), StoreError>> {
        async move {
            self.request("abort", upload.key.as_str())?.uploads.remove(&upload.id);
            Ok(())
        }
        .boxed()
    }
}

#[derive(Debug)]
struct MemoryUpload {
    store: MemoryStore,
    key: ObjectKey,
    id: String,
}

impl Upload for MemoryUpload {
    fn open_upload(&self) -> OpenUpload {
        OpenUpload {
            key: self.key.clone(),
            id: self.id.clone(),
            started: None,
        }
    }

    fn put_part(&self, number: u32, body: Bytes) -> BoxFuture<'_, Result<Part, StoreError>> {
        async move {
            if let Some(gate) = &self.store.0.parts_gate {
                gate.acquire().await.unwrap().forget();
            }
            let bytes = body.len() as u64;
            let mut state = self.store.request("put_part", self.key.as_str())?;
            let parts = state
                .uploads
                .get_mut(&self.id)
                .ok_or_else(|| StoreError::new(StoreErrorKind::NotFound, "put a part", "there is no such upload"))?;
            parts.insert(number, body);
            Ok(Part {
                number,
                tag: format!("{number}"),
                bytes,
            })
        }
        .boxed()
    }

    fn complete(&self, parts: Vec<Part>) -> BoxFuture<'_, Result<(), StoreError>> {
        async move {
            let held = self
                .store
                .request("complete", self.key.as_str())?
                .uploads
                .get(&self.id)
                .cloned()
                .unwrap_or_default();
            let sizes: Vec<u64> = parts.iter().map(|part| part.bytes).collect();
            assert!(
                sizes.windows(2).all(|pair| pair[0] >= pair[1])
                    && sizes.iter().rev().skip(1).all(|size| *size == sizes[0]),
                "all parts but the last have one size: {sizes:?}"
            );
            let mut body = Vec::new();
            for part in parts {
                body.extend_from_slice(&held[&part.number]);
            }
            self.store.put("complete", &self.key, body.into())?;
            self.store.state().uploads.remove(&self.id);
            Ok(())
        }
        .boxed()
    }

    fn abort(&self) -> BoxFuture<'_, Result<(), StoreError>> {
        async move {
            self.store.request("abort", self.key.as_str())?.uploads.remove(&self.id);
            Ok(())
        }
        .boxed()
    }
}
