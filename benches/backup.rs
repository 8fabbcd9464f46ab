//! How fast and how small a backup is, beside what people write themselves, how fast it comes back,
//! and how much memory it takes.
//!
//! Everything runs on one machine, one after the other, on one throwaway server, to one S3 server in
//! a process of its own; what is printed is ratios. A program that is not installed is named and left
//! out. `PGREEVE_BENCH_MIB` sets the size of the dump, 1024 by default, `PGREEVE_BENCH_REPEATS` how
//! often each runs, 3 by default (in turn; the quickest counts), and `PGREEVE_BENCH_GIB` the size of the
//! synthetic dump whose memory is measured, 20 by default. With arguments only what contains one of
//! them in its name runs, `memory` being the last: `-- aws gzip:1 gzip:4`.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::cast_precision_loss,
    clippy::print_stdout,
    missing_docs,
    reason = "a benchmark fails by panicking, and rounds"
)]

#[path = "backup/ours.rs"]
mod ours;
#[path = "backup/sink.rs"]
mod sink;
#[path = "backup/synthetic.rs"]
mod synthetic;

use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use pgreeve::backup::compress::Packing;
use pgreeve::demo::s3_server::S3Server;
use pgreeve::ledger::migrate;
use pgreeve::postgres::cluster::Cluster;
use pgreeve::postgres::programs;
use pgreeve::store::{Checksum, S3Settings};
use sqlx::{AssertSqlSafe, Connection, Executor};
use tempfile::TempDir;

use self::ours::{How, Ours};

/// Set for a child that is the S3 server: the directory of its bucket.
const SERVER: &str = "PGREEVE_BENCH_SERVER";
/// A row of the dump, about.
const ROW: u64 = 300;

fn main() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    if let Ok(directory) = std::env::var(SERVER) {
        return runtime.block_on(serve(Path::new(&directory)));
    }
    if synthetic::is_child() {
        return runtime.block_on(synthetic::child());
    }
    let bench = runtime.block_on(Bench::set_up());
    bench.dumps(&runtime);
    bench.restores(&runtime);
    if wanted("memory") {
        synthetic::measure(&bench.cluster.target("app"));
    }
}

/// Whether an argument asks for it, or none for anything.
fn wanted(name: &str) -> bool {
    let mut asked = std::env::args()
        .skip(1)
        .filter(|argument| !argument.starts_with('-'))
        .peekable();
    asked.peek().is_none() || asked.any(|part| name.contains(&part))
}

fn line(text: &str) {
    println!("{text}");
}

fn number(variable: &str, default: u64) -> u64 {
    std::env::var(variable).map_or(default, |text| text.parse().unwrap())
}

/// Is the S3 server until its standard input ends.
async fn serve(directory: &Path) {
    let server = S3Server::start(directory).await.unwrap();
    println!("{}", server.endpoint());
    tokio::task::spawn_blocking(|| std::io::stdin().read_to_end(&mut Vec::new()))
        .await
        .unwrap()
        .unwrap();
}

struct Bench {
    cluster: Cluster,
    directory: TempDir,
    settings: S3Settings,
    server: Child,
}

impl Drop for Bench {
    fn drop(&mut self) {
        drop(self.server.stdin.take());
        let _ = self.server.wait();
    }
}

/// What one way to make a backup took.
#[derive(Clone, Copy)]
struct Ran {
    seconds: f64,
    bytes: u64,
}

impl Bench {
    async fn set_up() -> Self {
        let settings = "autovacuum = off\nshared_buffers = 512MB\nmax_wal_size = 16GB\ncheckpoint_timeout = 1h\nmaintenance_work_mem = 256MB";
        let cluster = tokio::task::spawn_blocking(move || Cluster::start(settings).unwrap())
            .await
            .unwrap();
        let mut admin = cluster.target("postgres").connect("bench").await.unwrap();
        admin.execute("CREATE DATABASE app").await.unwrap();
        migrate::apply(&cluster.target("app")).await.unwrap();
        let rows = number("PGREEVE_BENCH_MIB", 1024) * 1024 * 1024 / ROW;
        let mut app = cluster.target("app").connect("bench").await.unwrap();
        app.execute(AssertSqlSafe(
            include_str!("backup/rows.sql").replace("$rows", &rows.to_string()),
        ))
        .await
        .unwrap();
        app.execute("VACUUM (FREEZE, ANALYZE)").await.unwrap();
        app.execute("CHECKPOINT").await.unwrap();
        app.close().await.unwrap();
        admin.close().await.unwrap();
        let directory = tempfile::tempdir().unwrap();
        let mut server = Command::new(std::env::current_exe().unwrap())
            .env(SERVER, directory.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut endpoint = String::new();
        BufReader::new(server.stdout.take().unwrap())
            .read_line(&mut endpoint)
            .unwrap();
        let settings = S3Settings {
            bucket: "pgreeve-demo".to_owned(),
            prefix: "bench".to_owned(),
            region: Some("us-east-1".to_owned()),
            endpoint: Some(endpoint.trim().to_owned()),
            path_style: true,
            // As on AWS; the server knows it.
            checksum: Checksum::Sha256,
            credentials_file: Some(directory.path().join("s3-credentials")),
            ..S3Settings::default()
        };
        Self {
            cluster,
            directory,
            settings,
            server,
        }
    }

    /// Runs a pipeline in bash, where `$DUMP` is `pg_dump` with its server, `$AWS` copies its standard
    /// input to the S3 server, and `$RCLONE` too.
    fn shell(&self, script: &str) -> f64 {
        let target = self.cluster.target("app");
        let endpoint = self.settings.endpoint.as_ref().unwrap();
        let credentials = std::fs::read_to_string(self.directory.path().join("s3-credentials")).unwrap();
        let value = |key: &str| {
            let found = credentials
                .lines()
                .find_map(|line| line.strip_prefix(key)?.trim_start().strip_prefix('='));
            found.unwrap().trim().to_owned()
        };
        let bin = |name: &str| programs::find(name).unwrap().display().to_string();
        let started = Instant::now();
        let status = Command::new("bash")
            .args(["-c", &format!("set -euo pipefail; {script}")])
            .envs([
                ("PGHOST", target.host.as_str()),
                ("PGUSER", "postgres"),
                ("PGDATABASE", "app"),
            ])
            .env("DUMP", bin("pg_dump"))
            .env("RESTORE", bin("pg_restore"))
            .env("CREATEDB", bin("createdb"))
            .env(
                "AWS",
                format!("aws --endpoint-url {endpoint} s3 cp --quiet - s3://pgreeve-demo/other"),
            )
            .env("RCLONE", "rclone rcat --quiet bench:pgreeve-demo/other")
            .env("AWS_ACCESS_KEY_ID", value("aws_access_key_id"))
            .env("AWS_SECRET_ACCESS_KEY", value("aws_secret_access_key"))
            .env_remove("AWS_CA_BUNDLE")
            .env("AWS_DEFAULT_REGION", "us-east-1")
            .env("AWS_REQUEST_CHECKSUM_CALCULATION", "when_required")
            .env("RCLONE_CONFIG", "/dev/null")
            .env("RCLONE_CONFIG_BENCH_TYPE", "s3")
            .env("RCLONE_CONFIG_BENCH_PROVIDER", "Other")
            .env("RCLONE_CONFIG_BENCH_ENDPOINT", endpoint)
            .env("RCLONE_CONFIG_BENCH_ACCESS_KEY_ID", value("aws_access_key_id"))
            .env("RCLONE_CONFIG_BENCH_SECRET_ACCESS_KEY", value("aws_secret_access_key"))
            .env("RCLONE_CONFIG_BENCH_REGION", "us-east-1")
            .env("RCLONE_CONFIG_BENCH_NO_CHECK_BUCKET", "true")
            .current_dir(self.directory.path())
            .status()
            .unwrap();
        assert!(status.success(), "{script}: {status}");
        started.elapsed().as_secs_f64()
    }

    fn dumps(&self, runtime: &tokio::runtime::Runtime) {
        let mut ways = vec![Way::new("pg_dump to nowhere", || Ran {
            seconds: self.shell("$DUMP -Fc -Z0 >/dev/null"),
            bytes: 0,
        })];
        for (name, needs, pack, send) in [
            ("pg_dump | gzip -6 | aws s3 cp", &["gzip", "aws"][..], "gzip -6", "$AWS"),
            ("pg_dump -Fc to a file", &[], "", ""),
            ("pg_dump | pigz | rclone rcat", &["pigz", "rclone"], "pigz", "$RCLONE"),
            ("pg_dump | zstd to a file", &["zstd"], "zstd -q", ""),
        ] {
            let missing: Vec<&&str> = needs.iter().filter(|program| !installed(program)).collect();
            if !wanted(name) {
                continue;
            }
            if !missing.is_empty() {
                line(&format!("{name:<48} left out: {missing:?} not installed"));
                continue;
            }
            ways.push(Way::new(name, move || self.others(pack, send)));
        }
        let others = ways.len() > 1;
        for (packing, threads, parallel) in [
            (Packing::Gzip(1), 1, 1),
            (Packing::Gzip(2), 1, 1),
            (Packing::Gzip(3), 1, 1),
            (Packing::Gzip(4), 1, 1),
            (Packing::Gzip(4), 2, 1),
            (Packing::Gzip(4), 2, 2),
            (Packing::Zstd(3), 1, 1),
            (Packing::Zstd(1), 1, 1),
            (Packing::Zstd(1), 2, 2),
        ] {
            let name = format!("pgreeve, {packing}, threads = {threads}, parallel = {parallel}");
            if !wanted(&name) {
                continue;
            }
            let ours = self.ours(How {
                packing,
                threads,
                parallel,
            });
            ways.push(Way::new(name, move || {
                let started = Instant::now();
                let report = runtime.block_on(ours.back_up());
                Ran {
                    seconds: started.elapsed().as_secs_f64(),
                    bytes: report["bytes"].as_u64().unwrap(),
                }
            }));
        }
        let ran = best(&mut ways);
        let mib = self.raw() as f64 / 1024.0 / 1024.0;
        line(&format!(
            "a dump of {mib:.0} MiB; time by that of pg_dump to nowhere ({:.1} s)",
            ran[0].seconds
        ));
        line(&format!("{:<48} {:>8} {:>8} {:>8}", "", "time", "MiB", "MiB/s"));
        for (way, its) in ways.iter().zip(&ran) {
            line(&format!(
                "{:<48} {:>8.2} {:>8.0} {:>8.0}",
                way.name,
                its.seconds / ran[0].seconds,
                its.bytes as f64 / 1024.0 / 1024.0,
                mib / its.seconds
            ));
            if others && way.name.starts_with("pgreeve") {
                line(&format!(
                    "{:<48} {:>8} {:>8}",
                    "  by the first of the others",
                    format!("{:.2}x", ran[1].seconds / its.seconds),
                    format!("{:+.1} %", (its.bytes as f64 / ran[1].bytes as f64 - 1.0) * 100.0)
                ));
            }
        }
    }

    /// What people write.
    fn others(&self, pack: &str, send: &str) -> Ran {
        let seconds = self.shell(&match (pack, send) {
            ("", _) => "$DUMP -Fc >size".to_owned(),
            (pack, "") => format!("$DUMP | {pack} >size"),
            (pack, send) => format!("$DUMP | {pack} | {send}"),
        });
        let stored = if send.is_empty() {
            "size"
        } else {
            "s3/pgreeve-demo/other"
        };
        let bytes = self.directory.path().join(stored).metadata().unwrap().len();
        Ran { seconds, bytes }
    }

    /// How large the dump is before it is packed.
    fn raw(&self) -> u64 {
        self.shell("$DUMP | wc -c >size");
        let text = std::fs::read_to_string(self.directory.path().join("size")).unwrap();
        text.trim().parse().unwrap()
    }

    fn ours(&self, how: How) -> Ours {
        Ours::new(
            self.cluster.target("app"),
            self.cluster.target("postgres"),
            self.settings.clone(),
            how,
        )
    }

    fn restores(&self, runtime: &tokio::runtime::Runtime) {
        let ways = [(Packing::Gzip(4), 1), (Packing::Zstd(3), 1), (Packing::Zstd(3), 2)];
        let name =
            |packing: Packing, parallel: u32| format!("pgreeve restores from S3, {packing}, parallel = {parallel}");
        if !ways
            .iter()
            .any(|(packing, parallel)| wanted(&name(*packing, *parallel)))
        {
            return;
        }
        self.shell("$DUMP -Fc -f local.dump");
        let admin = self.cluster.target("postgres");
        let mut all = vec![Way::new("pg_restore -j2 from a local file", || {
            runtime.block_on(ours::drop_database(&admin));
            Ran {
                seconds: self.shell("$CREATEDB -T template0 restored; $RESTORE -j2 -e -d restored local.dump"),
                bytes: 0,
            }
        })];
        for (packing, parallel) in ways {
            let name = name(packing, parallel);
            if !wanted(&name) {
                continue;
            }
            let ours = self.ours(How {
                packing,
                threads: 1,
                parallel,
            });
            let backup = runtime.block_on(ours.back_up());
            let id: String = backup["backup_id"].as_str().unwrap().to_owned();
            let admin = &admin;
            all.push(Way::new(name, move || {
                runtime.block_on(ours::drop_database(admin));
                let started = Instant::now();
                runtime.block_on(ours.restore(&id, 2));
                Ran {
                    seconds: started.elapsed().as_secs_f64(),
                    bytes: 0,
                }
            }));
        }
        let ran = best(&mut all);
        line("");
        line(&format!(
            "restore by two processes; time by pg_restore -j2 from a local file ({:.1} s)",
            ran[0].seconds
        ));
        for (way, its) in all.iter().zip(&ran).skip(1) {
            line(&format!("{:<48} {:>8.2}", way.name, its.seconds / ran[0].seconds));
        }
    }
}

/// One way to make a backup, or to restore it.
struct Way<'a> {
    name: String,
    run: Box<dyn FnMut() -> Ran + 'a>,
}

impl<'a> Way<'a> {
    fn new(name: impl Into<String>, run: impl FnMut() -> Ran + 'a) -> Self {
        Self {
            name: name.into(),
            run: Box::new(run),
        }
    }
}

/// The quickest of some runs of each: what other work on the machine adds is noise. They run in turn, so that a
/// machine that becomes slow does so for all.
fn best(ways: &mut [Way<'_>]) -> Vec<Ran> {
    let mut quickest: Vec<Option<Ran>> = vec![None; ways.len()];
    for _ in 0..number("PGREEVE_BENCH_REPEATS", 3) {
        for (way, quickest) in ways.iter_mut().zip(&mut quickest) {
            let ran = (way.run)();
            if quickest.is_none_or(|before| ran.seconds < before.seconds) {
                *quickest = Some(ran);
            }
        }
    }
    quickest.into_iter().flatten().collect()
}

fn installed(program: &str) -> bool {
    let found = Command::new("bash")
        .args(["-c", &format!("command -v {program}")])
        .stdout(Stdio::null())
        .status();
    found.is_ok_and(|status| status.success())
}
