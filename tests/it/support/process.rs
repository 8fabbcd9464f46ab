//! The real `pgreeve` program, with a clean environment and directories of its own.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

/// How long anything may take before a test gives up on it.
pub const PATIENCE: Duration = Duration::from_mins(1);

/// A host of the program: a configuration, a state directory, a runtime directory.
pub struct Host {
    directory: TempDir,
}

impl Host {
    /// Writes a configuration; `[daemon]` with directories of its own is put before `text`.
    pub fn new(text: &str) -> Self {
        let directory = tempfile::Builder::new().prefix("pgreeve-test-").tempdir().unwrap();
        let host = Self { directory };
        host.configure(text);
        host
    }

    /// A host whose daemon has another name in the records.
    pub fn named(instance: &str, text: &str) -> Self {
        let host = Self::new(text);
        let file = host.path("config.toml");
        let text = std::fs::read_to_string(&file).unwrap();
        std::fs::write(
            file,
            text.replacen("instance = \"test\"", &format!("instance = \"{instance}\""), 1),
        )
        .unwrap();
        host
    }

    /// Writes another configuration for the same state.
    pub fn configure(&self, text: &str) {
        let root = self.directory.path().display();
        let text = format!(
            "[daemon]\ninstance = \"test\"\nstate_dir = \"{root}/state\"\nruntime_dir = \"{root}/run\"\nlisten = \"off\"\n\n{text}"
        );
        std::fs::create_dir_all(self.path("state")).unwrap();
        std::fs::create_dir_all(self.path("run")).unwrap();
        std::fs::write(self.path("config.toml"), text).unwrap();
        std::fs::set_permissions(self.path("config.toml"), std::fs::Permissions::from_mode(0o600)).unwrap();
    }

    /// A path below the host's directory.
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// The audit log's directory.
    pub fn audit(&self) -> PathBuf {
        self.path("state/audit")
    }

    /// A verb, ready to run.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_pgreeve"));
        command
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("PGREEVE_CONFIG", self.path("config.toml"))
            .args(arguments)
            .stdin(Stdio::null());
        command
    }

    /// Runs a verb to its end.
    pub fn run(&self, arguments: &[&str]) -> Finished {
        Finished::from(self.command(arguments).output().unwrap())
    }

    /// Starts the daemon; its log goes to a file.
    pub fn daemon(&self) -> Daemon {
        self.daemon_with(|_| {})
    }

    /// Starts the daemon with changes to its command.
    pub fn daemon_with(&self, change: impl FnOnce(&mut Command)) -> Daemon {
        let log = self.path("daemon.log");
        let file = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(&log)
            .unwrap();
        let mut command = self.command(&["daemon"]);
        command.stdout(Stdio::null()).stderr(file);
        change(&mut command);
        Daemon {
            child: command.spawn().unwrap(),
            log,
        }
    }

    /// The records of the audit log, in order.
    pub fn audit_records(&self) -> Vec<serde_json::Value> {
        let mut files: Vec<PathBuf> = std::fs::read_dir(self.audit())
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .filter(|path| path.extension().is_some_and(|extension| extension == "jsonl"))
            .collect();
        files.sort();
        files
            .iter()
            .flat_map(|file| {
                std::fs::read_to_string(file)
                    .unwrap()
                    .lines()
                    .map(str::to_owned)
                    .collect::<Vec<_>>()
            })
            .map(|line| serde_json::from_str(&line).unwrap())
            .collect()
    }
}

/// A verb that has ended.
pub struct Finished {
    /// Its exit code.
    pub code: i32,
    /// What it printed.
    pub stdout: String,
    /// What it said beside.
    pub stderr: String,
}

impl From<Output> for Finished {
    fn from(output: Output) -> Self {
        Self {
            code: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }
}

impl Finished {
    /// Its one JSON document.
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("{error}: {}{}", self.stdout, self.stderr))
    }

    /// Fails the test unless the exit code is this one.
    #[track_caller]
    pub fn expect_code(self, code: i32) -> Self {
        assert_eq!(self.code, code, "{}{}", self.stdout, self.stderr);
        self
    }
}

/// A daemon that runs. It is killed when dropped.
pub struct Daemon {
    child: Child,
    log: PathBuf,
}

impl Daemon {
    /// Its process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it has logged so far.
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Sends a signal by its number.
    pub fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_raw(i32::try_from(self.child.id()).unwrap()).unwrap();
        rustix::process::kill_process(pid, signal).unwrap();
    }

    /// `kill -9`, and waits until it is gone.
    pub fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// SIGTERM, and waits for the exit code.
    pub fn stop(mut self) -> i32 {
        self.signal(rustix::process::Signal::TERM);
        self.wait()
    }

    /// Waits for the exit code.
    pub fn wait(&mut self) -> i32 {
        let started = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status.code().unwrap_or(-1);
            }
            assert!(started.elapsed() < PATIENCE, "the daemon does not end:\n{}", self.log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Waits until a state holds; fails the test when it never does.
pub async fn until(what: &str, holds: impl AsyncFnMut() -> bool) {
    until_within(PATIENCE, what, holds).await;
}

/// The same with another patience, where what is waited for has limits of its own that are longer.
pub async fn until_within(patience: Duration, what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let started = Instant::now();
    while !holds().await {
        assert!(started.elapsed() < patience, "never came true: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// The peak memory a process has had, in KiB; `None` once it is gone.
pub fn peak_memory(pid: u32) -> Option<u64> {
    let status = std::fs::read_to_string(Path::new("/proc").join(pid.to_string()).join("status")).ok()?;
    let line = status.lines().find(|line| line.starts_with("VmHWM:"))?;
    line.split_whitespace().nth(1)?.parse().ok()
}
