//! The memory of a backup of a dump as large as one likes, from a `pg_dump` that needs no database as
//! large, to a slow store.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use pgreeve::backup::compress::Packing;
use pgreeve::backup::program::Programs;
use pgreeve::postgres::connect::ConnectTarget;
use pgreeve::store::S3Settings;
use sqlx::{AssertSqlSafe, Executor};

use super::ours::{How, Ours};
use super::{line, number, sink};

/// Set for the child that makes the backup: the host of its server, and the endpoint of its store.
const CHILD: &str = "PGREEVE_BENCH_CHILD";
/// Where its `pg_dump` is, and the credentials.
const DIRECTORY: &str = "PGREEVE_BENCH_DIRECTORY";

/// What all connections to the store take together, a second.
const RATE: u64 = 256 * 1024 * 1024;

/// The one row of the database's table.
const ROW: &str = "here the rows of the synthetic dump go";

/// How many bytes are repeated. Noise, so that no packing makes it small.
const NOISE: usize = 64 * 1024 * 1024;

pub(crate) fn is_child() -> bool {
    std::env::var_os(CHILD).is_some()
}

/// Makes the backup, and says how much memory it took at most, in KiB.
pub(crate) async fn child() {
    let directory = std::env::var(DIRECTORY).unwrap();
    let directory = Path::new(&directory);
    let text = std::env::var(CHILD).unwrap();
    let [url, endpoint, packing] = text.split('|').collect::<Vec<_>>()[..] else {
        panic!("{text}")
    };
    let settings = S3Settings {
        bucket: "bench".to_owned(),
        region: Some("us-east-1".to_owned()),
        endpoint: Some(endpoint.to_owned()),
        path_style: true,
        credentials_file: Some(directory.join("credentials")),
        ..S3Settings::default()
    };
    let target = ConnectTarget::parse(url).unwrap();
    let how = How {
        packing: packing.parse().unwrap(),
        threads: 1,
        parallel: 1,
    };
    let mut ours = Ours::new(target.clone(), target, settings, how);
    let mut programs = Programs::find().unwrap();
    programs.pg_dump = directory.join("pg_dump");
    ours.job.programs = Some(programs);
    let report = ours.back_up().await;
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    let peak: u64 = peak.trim().trim_end_matches(" kB").parse().unwrap();
    println!("{peak} {}", report["bytes_raw"]);
}

pub(crate) fn measure(target: &ConnectTarget) {
    let gib = number("PGREEVE_BENCH_GIB", 20);
    let directory = tempfile::tempdir().unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let mut connection = target.connect("bench").await.unwrap();
        let sql = format!("DROP TABLE IF EXISTS synthetic; CREATE TABLE synthetic AS SELECT '{ROW}' AS text");
        connection.execute(AssertSqlSafe(sql)).await.unwrap();
    });
    pieces(target, directory.path(), gib);
    let credentials = "[default]\naws_access_key_id = a\naws_secret_access_key = b\n";
    std::fs::write(directory.path().join("credentials"), credentials).unwrap();
    let address = runtime.block_on(sink::start(RATE));
    line("");
    line(&format!(
        "peak memory of a dump of {gib} GiB to a store that takes {} MiB/s",
        RATE >> 20
    ));
    for packing in [Packing::None, Packing::Zstd(3), Packing::Gzip(1)] {
        let url = format!("postgresql:///{}?host={}&user=postgres", target.dbname, target.host);
        let output = Command::new(std::env::current_exe().unwrap())
            .env(CHILD, format!("{url}|http://{address}|{packing}"))
            .env(DIRECTORY, directory.path())
            .stderr(Stdio::inherit())
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", output.status);
        let text = String::from_utf8(output.stdout).unwrap();
        let (peak, raw) = text.trim().split_once(' ').unwrap();
        let (peak, raw): (u64, u64) = (peak.parse().unwrap(), raw.parse().unwrap());
        assert!(raw >> 30 == gib, "{raw}");
        line(&format!("{:<48} {:>8} MiB", format!("pgreeve, {packing}"), peak / 1024));
    }
}

/// A `pg_dump` that writes a real archive, in which one chunk of rows is repeated.
fn pieces(target: &ConnectTarget, directory: &Path, gib: u64) {
    let real = Programs::find().unwrap().pg_dump;
    let archive = Command::new(&real)
        .args([
            "-Fc",
            "-Z0",
            "-h",
            &target.host,
            "-U",
            "postgres",
            "-t",
            "synthetic",
            &target.dbname,
        ])
        .output()
        .unwrap()
        .stdout;
    let row = format!("{ROW}\n");
    // A chunk is its length, as a sign and four bytes, and its bytes.
    let length = u32::try_from(row.len()).unwrap().to_le_bytes();
    let chunk = [&[0], &length[..], row.as_bytes()].concat();
    let at = archive.windows(chunk.len()).position(|window| window == chunk).unwrap();
    std::fs::write(directory.join("head"), &archive[..at]).unwrap();
    std::fs::write(directory.join("tail"), &archive[at + chunk.len()..]).unwrap();
    let mut rows = std::fs::File::create(directory.join("rows")).unwrap();
    rows.write_all(&[0]).unwrap();
    rows.write_all(&u32::try_from(NOISE).unwrap().to_le_bytes()).unwrap();
    rows.write_all(&noise()).unwrap();
    let times = (gib << 30) / NOISE as u64 + 1;
    let script = format!(
        "#!/bin/sh\n[ \"$1\" = --version ] && exec {} --version\ncd {}\nexec cat head $(yes rows | head -n {times}) tail\n",
        real.display(),
        directory.display()
    );
    let file = directory.join("pg_dump");
    std::fs::write(&file, script).unwrap();
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(&file, mode).unwrap();
}

/// Letters at random, in lines.
fn noise() -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut letter = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"[(state >> 40) as usize % 64]
    };
    (1..=NOISE)
        .map(|n| if n % 200 == 0 || n == NOISE { b'\n' } else { letter() })
        .collect()
}
