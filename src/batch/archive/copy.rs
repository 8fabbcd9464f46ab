//! Rows out of the server, packed into the body of one object.

use std::io::{self, Write};

use futures::TryStreamExt;
use sqlx::{AssertSqlSafe, PgConnection};
use tokio_util::bytes::Bytes;

use super::{ArchiveFormat, ArchiveRule};
use crate::backup::compress::Encoder;
use crate::backup::digest::{Measure, Meter};
use crate::batch::statement::{Range, Statements};
use crate::postgres::catalog::Relation;
use crate::postgres::catalog::columns::Column;
use crate::postgres::quote::identifier;
use crate::postgres::sqlstate::DatabaseError;
use crate::store::StoreError;

/// The largest object, packed: it is held in memory. A batch whose rows need more is cut smaller.
const MOST_BYTES: usize = 64 << 20;

/// What one object holds.
#[derive(Debug)]
pub(super) struct Copied {
    /// Its rows.
    pub(super) rows: u64,
    /// Before it was packed.
    pub(super) raw: Measure,
    /// As it is stored.
    pub(super) packed: Measure,
}

/// What is to be copied.
#[derive(Debug)]
pub(super) struct Summary {
    /// How many rows.
    pub(super) rows: u64,
    /// The time of the oldest, as PostgreSQL writes a `timestamptz`; none without rows.
    pub(super) oldest: Option<String>,
    /// The time of the youngest.
    pub(super) youngest: Option<String>,
}

/// Why rows could not be copied. Their transaction is to be rolled back.
#[derive(Debug)]
pub(in crate::batch) enum CopyError {
    /// They are more than one object takes.
    TooLarge,
    /// They are more than the run may touch.
    TooMany,
    /// Not as many were copied as were counted.
    Unequal(String),
    /// The store took too long.
    Slow(StoreError),
    /// The store refused.
    Store(StoreError),
    /// The server refused.
    Database(DatabaseError),
    /// The server refused before the first byte. What the session answers next may belong to this
    /// question, so it must not be asked any more.
    Lost(DatabaseError),
    /// They could not be packed.
    Pack(io::Error),
}

/// Counts the rows of a part of a leaf that are due.
pub(super) async fn summary(
    transaction: &mut PgConnection,
    statements: &Statements,
    leaf: &Relation,
    range: &Range,
) -> Result<Summary, CopyError> {
    let (rows, oldest, youngest): (i64, _, _) = sqlx::query_as(AssertSqlSafe(statements.summary(leaf, range)))
        .persistent(false)
        .fetch_one(transaction)
        .await
        .map_err(|error| CopyError::Database(error.into()))?;
    Ok(Summary {
        rows: rows.unsigned_abs(),
        oldest,
        youngest,
    })
}

/// Copies the rows of a part of a leaf that are due.
pub(super) async fn rows(
    transaction: &mut PgConnection,
    statements: &Statements,
    leaf: &Relation,
    range: &Range,
    columns: &[Column],
    rule: &ArchiveRule,
) -> Result<(Copied, Bytes), CopyError> {
    let sql = statement(statements, leaf, range, columns, rule.format);
    let mut body = Body::new(rule).map_err(CopyError::Pack)?;
    if rule.format == ArchiveFormat::Csv {
        body.push(header(columns).as_bytes()).map_err(CopyError::Pack)?;
    }
    // One message of the protocol is one row.
    let mut stream = transaction
        .copy_out_raw(&sql)
        .await
        .map_err(|error| CopyError::Lost(error.into()))?;
    let mut rows = 0_u64;
    let mut packed = Ok(());
    while let Some(row) = stream
        .try_next()
        .await
        .map_err(|error| CopyError::Database(error.into()))?
    {
        rows += 1;
        // What is too large is read to its end all the same: the session must be left in good order.
        if packed.is_ok() && body.encoder.get_ref().len() <= MOST_BYTES {
            packed = body.push(&row);
        }
    }
    drop(stream);
    packed.map_err(CopyError::Pack)?;
    let (raw, body) = body.finish().map_err(CopyError::Pack)?;
    if body.len() > MOST_BYTES {
        return Err(CopyError::TooLarge);
    }
    let mut meter = Meter::new();
    meter.update(&body);
    let copied = Copied {
        rows,
        raw,
        packed: meter.finish(),
    };
    Ok((copied, Bytes::from(body)))
}

/// An object's body while it grows.
struct Body {
    encoder: Encoder<Vec<u8>>,
    raw: Meter,
}

impl Body {
    fn new(rule: &ArchiveRule) -> io::Result<Self> {
        Ok(Self {
            encoder: Encoder::new(rule.packing, 1, Vec::new())?,
            raw: Meter::new(),
        })
    }

    fn push(&mut self, piece: &[u8]) -> io::Result<()> {
        self.raw.update(piece);
        self.encoder.write_all(piece)
    }

    fn finish(self) -> io::Result<(Measure, Vec<u8>)> {
        Ok((self.raw.finish(), self.encoder.finish()?))
    }
}

fn statement(
    statements: &Statements,
    leaf: &Relation,
    range: &Range,
    columns: &[Column],
    format: ArchiveFormat,
) -> String {
    match format {
        ArchiveFormat::Csv => {
            let list: Vec<String> = columns.iter().map(|column| statements.column(&column.name)).collect();
            let rows = statements.select(leaf, range, &list.join(", "));
            format!("COPY ({rows}) TO STDOUT (FORMAT csv, ENCODING 'UTF8')")
        }
        ArchiveFormat::Jsonl => {
            let list: Vec<String> = columns.iter().map(|column| json_value(statements, column)).collect();
            let rows = statements.select(leaf, range, &list.join(", "));
            // JSON escapes control characters, so with these as its marks CSV leaves each line as it is;
            // the text format would double backslashes.
            format!(
                "COPY (SELECT row_to_json(pgreeve_row)::text FROM ({rows}) AS pgreeve_row) TO STDOUT \
                 (FORMAT csv, DELIMITER E'\\x02', QUOTE E'\\x01', ENCODING 'UTF8')"
            )
        }
    }
}

/// A column as a value of JSON that becomes the same value again. The texts of `json` may hold line
/// breaks, and a scalar of `jsonb` could not be told from a string or from NULL: these are written
/// as texts.
fn json_value(statements: &Statements, column: &Column) -> String {
    let value = statements.column(&column.name);
    let name = identifier(&column.name);
    match column.base_type.as_str() {
        "smallint" | "integer" | "bigint" | "numeric" | "real" | "double precision" | "boolean" => {
            format!("{value} AS {name}")
        }
        "jsonb" => format!(
            "CASE WHEN jsonb_typeof({value}) IN ('object', 'array') THEN {value}::jsonb::json \
             ELSE to_json({value}::text) END AS {name}"
        ),
        _ => format!("{value}::text AS {name}"),
    }
}

/// The first line of CSV.
fn header(columns: &[Column]) -> String {
    let names: Vec<String> = columns.iter().map(|column| identifier(&column.name)).collect();
    format!("{}\n", names.join(","))
}
