//! What the configuration takes from the process it is read in.

use std::path::PathBuf;

use jiff::Timestamp;

/// What a configuration may refer to, or is checked against, besides its own text.
#[derive(Debug, Clone)]
pub struct Surroundings {
    /// The host's name: the default of `daemon.instance`.
    pub host_name: String,
    /// What `${CREDENTIALS_DIRECTORY}` stands for; systemd sets it for a service with credentials.
    pub credentials_directory: Option<PathBuf>,
    /// When a schedule must fire after.
    pub now: Timestamp,
}

impl Surroundings {
    /// Those of this process, now.
    #[must_use]
    pub fn of_this_process() -> Self {
        let host_name = rustix::system::uname().nodename().to_string_lossy().into_owned();
        Self {
            host_name: if host_name.is_empty() {
                "localhost".to_owned()
            } else {
                host_name
            },
            credentials_directory: std::env::var_os("CREDENTIALS_DIRECTORY")
                .filter(|value| !value.is_empty())
                .map(PathBuf::from),
            now: Timestamp::now(),
        }
    }
}
