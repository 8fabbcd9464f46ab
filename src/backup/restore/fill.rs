//! Fills a new database from a backup, in the way its archives ask for.

use std::fs::File;
use std::path::Path;

use futures::future::BoxFuture;
use futures::{StreamExt, TryStreamExt, stream};
use tokio::io::AsyncWriteExt;
use tokio::process::ChildStdin;
use tokio::sync::mpsc;
use tokio_util::bytes::Bytes;

use super::{Restore, spool};
use crate::backup::form::Format;
use crate::backup::manifest::{Archive, OPAQUE, Role};
use crate::backup::program::{Input, Program, dbname_argument};
use crate::backup::read::{Reading, Sink};
use crate::backup::walker::Walked;
use crate::job::JobError;

/// Up to how many entries a restore is one transaction: each may need a lock until the end, and a
/// server has room for a few thousand.
const ONE_TRANSACTION: u64 = 2000;

/// Restores all archives; each is compared with the manifest before its last byte counts.
pub(super) async fn fill(request: &Restore<'_>, operation: &str) -> Result<(), JobError> {
    let reading = Reading::new(
        &request.store,
        request.manifest,
        &request.progress,
        request.identities.as_ref(),
    );
    let fill = Fill {
        request,
        reading,
        operation,
    };
    let archives = request.manifest.archives();
    let schema = archives.iter().find(|archive| archive.role == Role::Schema);
    let walked = match (request.manifest.format, schema, archives.as_slice()) {
        (Format::Plain, _, [script]) => vec![fill.script(script).await?],
        (Format::Custom, Some(schema), _) => fill.sections(schema, &archives).await?,
        (Format::Custom, None, [archive]) if request.jobs < 2 => vec![fill.stream(archive, true).await?],
        (Format::Custom, None, [archive])
            if !is_lopsided(request.manifest.tables.iter().map(|table| table.bytes))
                && spool::has_room(&request.spool_directory, archive.bytes_raw()) =>
        {
            vec![fill.file(archive).await?]
        }
        (Format::Custom, None, [archive]) => vec![fill.stream_and_build(archive).await?],
        _ => return Err(fill.failed("its manifest lists archives that do not belong together")),
    };
    fill.compare(&walked)
}

/// Whether one process that loads rows as they come is done before several that wait for the last of them:
/// rows take about four times as long to load as to unpack, and the largest table is loaded by one process
/// in any case.
fn is_lopsided(tables: impl Iterator<Item = u64>) -> bool {
    let (largest, all) = tables.fold((0, 0), |(largest, all): (u64, u64), bytes| {
        (largest.max(bytes), all.saturating_add(bytes))
    });
    largest > 0 && largest >= all - all / 4
}

struct Fill<'a> {
    request: &'a Restore<'a>,
    reading: Reading<'a>,
    operation: &'a str,
}

impl Fill<'_> {
    fn failed(&self, cause: impl Into<String>) -> JobError {
        JobError::permanent(self.operation, cause.into())
    }

    fn compare(&self, walked: &[Walked]) -> Result<(), JobError> {
        let compared = self.reading.compare(walked);
        compared.map_err(|error| self.failed(error.to_string()))
    }

    /// A script, in one transaction that is committed when its input ends.
    async fn script(&self, archive: &Archive<'_>) -> Result<Walked, JobError> {
        let arguments = [
            "--no-psqlrc",
            "--quiet",
            "--single-transaction",
            "--set=ON_ERROR_STOP=1",
            "--no-password",
        ];
        let mut arguments: Vec<String> = arguments.map(str::to_owned).into();
        arguments.push(self.database());
        let psql = crate::postgres::programs::find("psql").map_err(|error| self.failed(error.to_string()))?;
        let program = self.start(&psql, arguments, Input::Pipe)?;
        self.feed(program, archive, Sink::Pieces).await
    }

    /// An archive into the standard input of `pg_restore`.
    async fn stream(&self, archive: &Archive<'_>, one_transaction: bool) -> Result<Walked, JobError> {
        let mut arguments = self.arguments();
        if one_transaction && self.request.manifest.toc_entries <= ONE_TRANSACTION {
            arguments.push("--single-transaction".to_owned());
        }
        let program = self.start(&self.request.programs.pg_restore, arguments, Input::Pipe)?;
        self.feed(program, archive, Sink::Pieces).await
    }

    /// A file, which several processes can read; nothing is restored before all of it was right.
    async fn file(&self, archive: &Archive<'_>) -> Result<Walked, JobError> {
        let (file, walked) = self.spool(archive, &self.request.spool_directory).await?;
        self.compare(std::slice::from_ref(&walked))?;
        self.restore_file(&file, &[format!("--jobs={}", self.request.jobs)])
            .await?;
        Ok(walked)
    }

    /// Rows as they come, out of one stream, which several processes cannot read. What is built after
    /// them needs the table of contents only: that lies in a file, and several processes read it.
    async fn stream_and_build(&self, archive: &Archive<'_>) -> Result<Walked, JobError> {
        let bytes = if self.request.manifest.archive_version == OPAQUE {
            archive.bytes_raw()
        } else {
            0
        };
        let file = spool::make(self.operation, &std::env::temp_dir(), bytes)?;
        let writer = self.same(&file)?;
        let mut arguments = self.arguments();
        arguments.extend(["--section=pre-data".to_owned(), "--section=data".to_owned()]);
        // A server that keeps no WAL for others writes none for rows of a table made in the same transaction.
        if self.request.manifest.toc_entries <= ONE_TRANSACTION {
            arguments.push("--single-transaction".to_owned());
        }
        let program = self.start(&self.request.programs.pg_restore, arguments, Input::Pipe)?;
        let sink = |pieces| Sink::PiecesAndContents(pieces, writer);
        let walked = self.feed(program, archive, sink).await?;
        let arguments = [
            "--section=post-data".to_owned(),
            format!("--jobs={}", self.request.jobs),
        ];
        self.restore_file(&file, &arguments).await?;
        Ok(walked)
    }

    /// Definitions, then all rows at the same time, then indexes and constraints.
    async fn sections(&self, schema: &Archive<'_>, all: &[Archive<'_>]) -> Result<Vec<Walked>, JobError> {
        let (file, walked) = self.spool(schema, &std::env::temp_dir()).await?;
        self.restore_file(&file, &["--section=pre-data".to_owned()]).await?;
        let jobs = self.request.jobs.max(1);
        let rows = all.iter().filter(|archive| archive.role != Role::Schema);
        let at_once = usize::try_from(jobs).unwrap_or(1);
        // Boxed: of a future that borrows, the compiler cannot tell that it may move to another thread.
        let streams: Vec<BoxFuture<'_, Result<Walked, JobError>>> = rows
            .map(|archive| Box::pin(self.stream(archive, false)) as BoxFuture<'_, _>)
            .collect();
        let restored: Vec<Walked> = stream::iter(streams).buffered(at_once).try_collect().await?;
        let arguments = ["--section=post-data".to_owned(), format!("--jobs={jobs}")];
        self.restore_file(&file, &arguments).await?;
        Ok([vec![walked], restored].concat())
    }

    async fn spool(&self, archive: &Archive<'_>, directory: &Path) -> Result<(File, Walked), JobError> {
        let file = spool::make(self.operation, directory, archive.bytes_raw())?;
        let writer = self.same(&file)?;
        let walked = self.reading.archive(archive, Sink::File(writer)).await;
        Ok((file, walked.map_err(|error| self.failed(error.to_string()))?))
    }

    /// The same file by another descriptor, to be given away.
    fn same(&self, file: &File) -> Result<File, JobError> {
        let same = file.try_clone();
        same.map_err(|error| self.failed(format!("open the unpacked dump once more: {error}")))
    }

    async fn restore_file(&self, file: &File, more: &[String]) -> Result<(), JobError> {
        let mut arguments = self.arguments();
        arguments.extend_from_slice(more);
        // Under this name each process of pg_restore opens the file anew, from its beginning.
        arguments.push("/dev/stdin".to_owned());
        let input = Input::File(self.same(file)?);
        let mut program = self.start(&self.request.programs.pg_restore, arguments, input)?;
        self.ended(&mut program).await
    }

    fn start(&self, program: &Path, arguments: Vec<String>, input: Input) -> Result<Program, JobError> {
        let target = self.request.admin.with_dbname(self.request.into);
        Program::start(program, arguments, &target, "pgreeve:restore", input)
            .map_err(|error| self.failed(error.to_string()))
    }

    fn database(&self) -> String {
        format!("--dbname={}", dbname_argument(self.request.into))
    }

    fn arguments(&self) -> Vec<String> {
        let mut arguments = vec![
            "--exit-on-error".to_owned(),
            "--no-password".to_owned(),
            self.database(),
        ];
        if self.request.no_owner {
            arguments.extend(["--no-owner".to_owned(), "--no-acl".to_owned()]);
        }
        arguments
    }

    async fn feed(
        &self,
        mut program: Program,
        archive: &Archive<'_>,
        sink: impl FnOnce(mpsc::Sender<Bytes>) -> Sink,
    ) -> Result<Walked, JobError> {
        let stdin = program.stdin();
        let (to_program, pieces) = mpsc::channel(8);
        let (read, stdin) = tokio::join!(self.reading.archive(archive, sink(to_program)), feed(stdin, pieces));
        let walked = match read {
            Ok(walked) => walked,
            Err(error) => {
                // Its input is still open, so it waits and has not committed the rest.
                program.terminate().await;
                return Err(self.failed(error.to_string()));
            }
        };
        drop(stdin);
        self.ended(&mut program).await?;
        Ok(walked)
    }

    async fn ended(&self, program: &mut Program) -> Result<(), JobError> {
        let ended = program.wait().await.map_err(|error| self.failed(error.to_string()))?;
        if ended.status.success() {
            return Ok(());
        }
        Err(self.failed(format!("{} ended with {}", program.name(), ended.cause())))
    }
}

/// Passes pieces on, and hands the input back still open. When the program is gone its exit status
/// says why.
async fn feed(mut stdin: Option<ChildStdin>, mut pieces: mpsc::Receiver<Bytes>) -> Option<ChildStdin> {
    while let Some(piece) = pieces.recv().await {
        stdin.as_mut()?.write_all(&piece).await.ok()?;
    }
    stdin
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_loaded_as_they_come_where_three_quarters_are_of_one_table() {
        for (tables, lopsided) in [
            (&[75, 20, 5][..], true),
            (&[74, 21, 5], false),
            (&[1], true),
            (&[0, 0], false),
            (&[], false),
        ] {
            assert_eq!(is_lopsided(tables.iter().copied()), lopsided, "{tables:?}");
        }
    }
}
