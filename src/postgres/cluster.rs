//! A throwaway PostgreSQL cluster: made by `initdb`, reached through a socket in its own directory
//! only, and gone when its owner is, however that ends.

use std::ffi::OsString;
use std::io;
use std::os::unix::fs::chown;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::connect::ConnectTarget;
use super::programs;
use super::sqlstate::DatabaseError;

/// Part of the socket's name; said everywhere, because `PGPORT` would be the default otherwise.
const PORT: u16 = 5432;
/// How long the server may take to accept its first connection.
const START_LIMIT: Duration = Duration::from_mins(1);

/// Stops the server and removes the directory as soon as its standard input ends: when the owner
/// drops it, exits, or is killed. `INT` is a fast shutdown.
const KEEPER: &str = r#"
trap '' INT TERM HUP
"$1/postgres" -D "$2/data" >"$2/server.log" 2>&1 </dev/null &
server=$!
cat >/dev/null
kill -INT "$server" 2>/dev/null
wait "$server"
rm -rf "$2"
"#;

/// A running server that nobody else uses. Its superuser is `postgres`, without a password.
pub struct Cluster {
    keeper: Child,
    directory: PathBuf,
    port: u16,
}

impl Cluster {
    /// Makes and starts a server with extra lines for its `postgresql.conf`. Blocks.
    ///
    /// PostgreSQL's server programs refuse to run as root, so for root they run as the user
    /// `postgres`, or `nobody` where there is none.
    ///
    /// # Errors
    /// When a program is missing, or says why it cannot start.
    pub fn start(settings: &str) -> Result<Self, DatabaseError> {
        Self::make("initdb", settings, |data| {
            let arguments = [
                "--username=postgres",
                "--auth=trust",
                "--encoding=UTF8",
                "--locale=C",
                "--no-sync",
                "--no-instructions",
                "-D",
            ];
            arguments.into_iter().map(Into::into).chain([data.into()]).collect()
        })
    }

    /// Makes and starts a standby that streams from another cluster, which must be running. It has a
    /// keeper of its own and goes on when the other ends. Blocks.
    ///
    /// # Errors
    /// As [`Cluster::start`].
    pub fn standby_of(primary: &Self, settings: &str) -> Result<Self, DatabaseError> {
        Self::make("pg_basebackup", settings, |data| {
            let mut arguments: Vec<OsString> = ["-h".into(), primary.directory.clone().into()].into();
            let others = [
                "-U",
                "postgres",
                "--checkpoint=fast",
                "--no-sync",
                "--wal-method=stream",
            ];
            arguments.extend(others.into_iter().map(Into::into));
            // Leaves standby.signal and the way to the primary behind.
            arguments.extend(["--write-recovery-conf".into(), "-D".into(), data.into()]);
            arguments
        })
    }

    /// Lets a program fill the data directory, then starts a server on it.
    fn make(
        program: &'static str,
        settings: &str,
        arguments: impl FnOnce(&Path) -> Vec<OsString>,
    ) -> Result<Self, DatabaseError> {
        let failed = |what: &str, error: io::Error| DatabaseError::local(format!("{what}: {error}"));
        let filler = programs::find(program)?;
        let bin = programs::find("initdb")?
            .parent()
            .map(Path::to_path_buf)
            .unwrap_or_default();
        let user = unprivileged_user();
        let directory = tempfile::Builder::new()
            .prefix("pgreeve-cluster-")
            .tempdir()
            .map_err(|error| failed("make a temporary directory", error))?;
        if let Some((uid, gid)) = user {
            chown(directory.path(), Some(uid), Some(gid)).map_err(|error| failed("give away the directory", error))?;
        }
        let mut command = Command::new(&filler);
        command.args(arguments(&directory.path().join("data")));
        let output = drop_privileges(&mut command, user)
            .current_dir(directory.path())
            .output()
            .map_err(|error| failed(&format!("run {program}"), error))?;
        if !output.status.success() {
            return Err(DatabaseError::local(format!(
                "{program} failed: {}",
                String::from_utf8_lossy(&output.stderr).trim()
            )));
        }
        let configuration = directory.path().join("data/postgresql.conf");
        let text = format!(
            "listen_addresses = ''\nport = {PORT}\nunix_socket_directories = '{}'\nfsync = off\nfull_page_writes = off\nmax_connections = 200\nshared_buffers = 128MB\njit = off\n{settings}\n",
            directory.path().display()
        );
        std::fs::write(&configuration, text).map_err(|error| failed("write postgresql.conf", error))?;
        let mut command = Command::new("/bin/sh");
        command
            .args(["-c", KEEPER, "pgreeve-cluster"])
            .arg(&bin)
            .arg(directory.path());
        let keeper = drop_privileges(&mut command, user)
            .current_dir("/")
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .map_err(|error| failed("start the server", error))?;
        // From here on the keeper removes the directory.
        let cluster = Self {
            keeper,
            directory: directory.keep(),
            port: PORT,
        };
        cluster.wait_until_ready(&bin, user)?;
        Ok(cluster)
    }

    fn wait_until_ready(&self, bin: &Path, user: Option<(u32, u32)>) -> Result<(), DatabaseError> {
        let started = Instant::now();
        loop {
            let mut command = Command::new(bin.join("pg_isready"));
            command.arg("-q").arg("-h").arg(&self.directory).args([
                "-p",
                &self.port.to_string(),
                "-U",
                "postgres",
                "-d",
                "postgres",
            ]);
            let ready = drop_privileges(&mut command, user)
                .status()
                .is_ok_and(|status| status.success());
            if ready {
                return Ok(());
            }
            if started.elapsed() > START_LIMIT {
                let log = std::fs::read_to_string(self.server_log()).unwrap_or_default();
                return Err(DatabaseError::local(format!(
                    "the server does not start: {}",
                    log.trim()
                )));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// How to connect to one of its databases as the superuser.
    #[must_use]
    pub fn target(&self, dbname: &str) -> ConnectTarget {
        self.target_as("postgres", dbname)
    }

    /// How to connect as a role.
    #[must_use]
    pub fn target_as(&self, user: &str, dbname: &str) -> ConnectTarget {
        ConnectTarget {
            host: self.directory.display().to_string(),
            port: self.port,
            user: user.to_owned(),
            dbname: dbname.to_owned(),
            sslmode: "disable".to_owned(),
            sslrootcert: None,
            sslcert: None,
            sslkey: None,
            connect_timeout: Duration::from_secs(10),
            password: None,
            password_file: None,
        }
    }

    /// The same as a URL for a configuration file.
    #[must_use]
    pub fn url_as(&self, user: &str, dbname: &str) -> String {
        format!(
            "postgresql:///{dbname}?host={}&user={user}&sslmode=disable",
            self.directory.display()
        )
    }

    /// What the server wrote to its log so far.
    #[must_use]
    pub fn server_log(&self) -> PathBuf {
        self.directory.join("server.log")
    }

    /// The directory that holds the server's socket and all its files.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        drop(self.keeper.stdin.take());
        // The keeper ends when the server has; an error here means it is gone already.
        let _ = self.keeper.wait();
    }
}

fn drop_privileges(command: &mut Command, user: Option<(u32, u32)>) -> &mut Command {
    if let Some((uid, gid)) = user {
        command.uid(uid).gid(gid);
    }
    command
}

/// Whom to run the server as, when this process is root.
fn unprivileged_user() -> Option<(u32, u32)> {
    if !rustix::process::geteuid().is_root() {
        return None;
    }
    let passwd = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    let find = |user: &str| {
        passwd.lines().find_map(|line| {
            let mut fields = line.split(':');
            (fields.next() == Some(user)).then_some(())?;
            let uid = fields.nth(1)?.parse().ok()?;
            Some((uid, fields.next()?.parse().ok()?))
        })
    };
    find("postgres").or_else(|| find("nobody")).or(Some((65534, 65534)))
}
