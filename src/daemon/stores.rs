//! What the stores of the configuration are capable of: tried once at the start, so that somebody is
//! told before the first backup is due.

use serde_json::{Value, json};

use crate::audit::{AuditLog, Entry, RecordKind};
use crate::config::Config;
use crate::store::{Capabilities, StoreError, StoreSettings};
use crate::values::Name;

/// Tries each store that a job uses, and writes down what was found. A store that fails holds up
/// nothing: each run tries its store again.
pub(super) async fn probe(config: Config, audit: AuditLog, actor: String) {
    for name in config.used_stores() {
        let Some(settings) = config.stores.get(name) else {
            continue;
        };
        let body = match try_one(settings).await {
            Ok((place, capabilities)) => {
                tracing::info!(
                    store.name = %name,
                    store.place = %place,
                    store.conditional_create = capabilities.conditional_create,
                    store.conditional_complete = capabilities.conditional_complete,
                    store.checksum = capabilities.checksum,
                    store.versioned = capabilities.versioned,
                    store.object_lock = capabilities.object_lock,
                    store.clock_ahead_s = capabilities.clock_ahead_s,
                    "the store {name} is usable"
                );
                json!({ "store": name, "place": place, "usable": true, "capabilities": capabilities })
            }
            Err(error) => failed(name, &error),
        };
        if let Err(error) = audit
            .append(Entry::new(RecordKind::StoreProbed, body).actor(&actor))
            .await
        {
            tracing::error!(store.name = %name, %error, "what a store is capable of is not in the audit log");
        }
    }
}

async fn try_one(settings: &StoreSettings) -> Result<(String, Capabilities), StoreError> {
    let store = settings.open_attended().await?;
    let capabilities = store.probe().await?;
    Ok((store.describe(), capabilities))
}

fn failed(name: &Name, error: &StoreError) -> Value {
    let remedy = error.remedy.as_deref();
    tracing::warn!(store.name = %name, store.error = %error, remedy, "the store {name} cannot be used");
    json!({ "store": name, "usable": false, "reason": error.to_string(), "remedy": remedy })
}
