//! The unit and what is installed with it, as systemd's own tools judge them.

use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// Runs a program of systemd on files of the source tree; `None`, and a line that is seen also when
/// the test passes, where the program is not installed.
fn systemd(program: &str, arguments: &[&str]) -> Option<Output> {
    match Command::new(program).args(arguments).current_dir(root()).output() {
        Ok(output) => Some(output),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            // Not eprintln!, which the test harness captures.
            let line = format!("SKIPPED: {program} is not installed\n");
            std::io::stderr().write_all(line.as_bytes()).unwrap();
            None
        }
        Err(error) => panic!("{program}: {error}"),
    }
}

fn text(output: &Output) -> String {
    format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

#[test]
fn the_unit_has_no_mistake() {
    let Some(output) = systemd("systemd-analyze", &["verify", "systemd/pgreeve.service"]) else {
        return;
    };
    // An unknown key is a warning, with exit status 0: nothing at all may be said.
    assert!(output.status.success(), "{}", text(&output));
    assert_eq!(text(&output), "");
}

#[test]
fn the_unit_is_confined() {
    let unit = "systemd/pgreeve.service";
    let arguments = ["security", "--offline=true", "--threshold=15", "--no-pager", unit];
    let Some(output) = systemd("systemd-analyze", &arguments) else {
        return;
    };
    assert!(output.status.success(), "{}", text(&output));
    // Where user namespaces are switched off, the unit must be good enough without.
    let directory = tempfile::tempdir().unwrap();
    let without = directory.path().join("pgreeve.service");
    let lines = fs::read_to_string(root().join(unit)).unwrap();
    assert!(lines.contains("\nPrivateUsers=yes\n"));
    fs::write(&without, lines.replace("\nPrivateUsers=yes\n", "\n")).unwrap();
    let arguments = [
        "security",
        "--offline=true",
        "--threshold=15",
        "--no-pager",
        without.to_str().unwrap(),
    ];
    let output = systemd("systemd-analyze", &arguments).unwrap();
    assert!(output.status.success(), "without PrivateUsers: {}", text(&output));
}

#[test]
fn the_unit_runs_as_the_user_that_is_made_for_it() {
    let conf = "systemd/pgreeve.sysusers.conf";
    let users = fs::read_to_string(root().join(conf)).unwrap();
    let unit = fs::read_to_string(root().join("systemd/pgreeve.service")).unwrap();
    let user = users.lines().find_map(|line| line.strip_prefix("u ")).unwrap();
    let name = user.split_whitespace().next().unwrap();
    assert!(unit.contains(&format!("\nUser={name}\n")));

    // An alternate root with the fewest files: what would be made there is only said.
    let directory = tempfile::tempdir().unwrap();
    let arguments = [
        "--dry-run",
        &format!("--root={}", directory.path().display()),
        &root().join(conf).display().to_string(),
    ];
    let Some(output) = systemd("systemd-sysusers", &arguments) else {
        return;
    };
    assert!(output.status.success(), "{}", text(&output));
    assert!(text(&output).contains(name), "{}", text(&output));
}

#[test]
fn an_install_brings_all_parts_and_keeps_the_configuration_of_the_operator() {
    let directory = tempfile::tempdir().unwrap();
    let install = || {
        let output = Command::new("make")
            .args(["--no-print-directory", "install", "prefix=/usr"])
            .arg(format!("DESTDIR={}", directory.path().display()))
            .arg(format!("PROGRAM={}", env!("CARGO_BIN_EXE_pgreeve")))
            .env_remove("MAKEFLAGS")
            .current_dir(root())
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", text(&output));
    };
    let mode = |file: &Path| fs::metadata(directory.path().join(file)).unwrap().permissions().mode() & 0o7777;
    install();
    let files = [
        ("usr/bin/pgreeve", 0o755),
        ("usr/lib/systemd/system/pgreeve.service", 0o644),
        ("usr/lib/sysusers.d/pgreeve.conf", 0o644),
        ("usr/share/doc/pgreeve/README.md", 0o644),
        ("usr/share/man/man1/pgreeve.1", 0o644),
        ("usr/share/man/man1/pgreeve-plan.1", 0o644),
        ("usr/share/bash-completion/completions/pgreeve", 0o644),
        ("usr/share/zsh/site-functions/_pgreeve", 0o644),
        ("usr/share/fish/vendor_completions.d/pgreeve.fish", 0o644),
        ("etc/pgreeve/config.toml", 0o644),
    ];
    for (file, wanted) in files {
        assert_eq!(mode(Path::new(file)), wanted, "{file}");
    }
    let config = directory.path().join("etc/pgreeve/config.toml");
    fs::write(&config, "# mine\n").unwrap();
    install();
    assert_eq!(fs::read_to_string(&config).unwrap(), "# mine\n");
}
