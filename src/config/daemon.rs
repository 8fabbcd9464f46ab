//! `[daemon]`: what holds for the whole process.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use serde::Serialize;

use super::field::Field;
use super::paths;
use super::section::Section;
use super::surroundings::Surroundings;
use crate::values::Timezone;

/// `[daemon]`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct DaemonSettings {
    /// The name of this daemon in records. Default: the host's name.
    pub instance: String,
    /// The directory of the audit log. Default `/var/lib/pgreeve`.
    pub state_dir: PathBuf,
    /// The directory of the control socket. Default `/run/pgreeve`.
    pub runtime_dir: PathBuf,
    /// Where metrics and the status page are served; `None` for `off`. Default `127.0.0.1:9847`.
    pub listen: Option<SocketAddr>,
    /// The zone of schedules that name none. Default `UTC`.
    pub timezone: Timezone,
    /// How long the ledger keeps what ended; the newest run of each job stays. Default 400 days.
    pub history_keep: Duration,
}

const DEFAULT_HISTORY: Duration = Duration::from_hours(24 * 400);
/// Slots are caught up and holds explained from the ledger; a shorter one would forget its reasons.
const SHORTEST_HISTORY: Duration = Duration::from_hours(24 * 30);
const LONGEST_HISTORY: Duration = Duration::from_hours(24 * 3660);

const DEFAULT_LISTEN: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 9847);

pub(super) fn read(mut section: Section<'_>, surroundings: &Surroundings) -> DaemonSettings {
    let settings = DaemonSettings {
        instance: section
            .optional("instance")
            .and_then(|field| instance(&field))
            .unwrap_or_else(|| surroundings.host_name.clone()),
        state_dir: section
            .optional("state_dir")
            .and_then(|field| paths::directory(&field))
            .unwrap_or_else(|| PathBuf::from("/var/lib/pgreeve")),
        runtime_dir: section
            .optional("runtime_dir")
            .and_then(|field| paths::directory(&field))
            .unwrap_or_else(|| PathBuf::from("/run/pgreeve")),
        listen: section
            .optional("listen")
            .map_or(Some(DEFAULT_LISTEN), |field| listen(&field)),
        timezone: section
            .optional("timezone")
            .and_then(|field| field.parse())
            .unwrap_or_else(Timezone::utc),
        history_keep: section
            .optional("history_keep")
            .and_then(|field| history(&field))
            .unwrap_or(DEFAULT_HISTORY),
    };
    section.finish(&[]);
    settings
}

fn instance(field: &Field<'_>) -> Option<String> {
    let text = field.text()?;
    let sound = !text.is_empty() && text.len() <= 255 && text.chars().all(|c| c.is_ascii_graphic());
    if !sound {
        let help = "write a host's name, such as \"db1\": up to 255 ASCII characters without spaces";
        field.error("this cannot be an instance's name", help);
        return None;
    }
    Some(text.to_owned())
}

fn history(field: &Field<'_>) -> Option<Duration> {
    let keep = field.duration(LONGEST_HISTORY)?;
    if keep < SHORTEST_HISTORY {
        field.error("the ledger would forget too soon", "keep at least \"30d\"");
        return None;
    }
    Some(keep)
}

fn listen(field: &Field<'_>) -> Option<SocketAddr> {
    let text = field.text()?;
    if text == "off" {
        return None;
    }
    let address = text.parse().ok();
    if address.is_none() {
        let help = "write an address and a port, such as \"127.0.0.1:9847\" or \"[::1]:9847\", or \"off\"";
        field.error(&format!("`{text}` is not an address with a port"), help);
    }
    address
}
