//! Reads an archive of `pg_dump -Fc -Z0` as it streams past, in memory that grows with the number
//! of its tables and never with their size.
//!
//! The archive is a header, a table of contents, then one block of data for each entry that has
//! some. A block is a list of chunks, ended by an empty one; the rows of a table are the text of
//! `COPY`. There is no trailer: the archive is whole when every entry with data had its block.
//!
//! Known are the archive versions 1.14 (PostgreSQL 12 to 15), 1.15 (16) and 1.16 (17 and later).
//! Another version is walked `opaque`: nothing is known of it but its version.

mod contents;
mod inspector;
mod joined;
mod script;
mod table;
mod toc;
mod token;

pub use self::contents::{Contents, LargeObjects, TableDigest, Walked};
pub use self::inspector::Inspector;
pub use self::joined::Joined;
pub use self::script::{PLAIN, Script};
use self::table::Rows;
use self::toc::{Content, Toc};
use self::token::{Tokens, take};

/// Why an archive is not one, and where.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the archive is damaged at byte {offset}: {problem}")]
pub struct WalkError {
    /// How many bytes of the archive were read before.
    pub offset: u64,
    /// What is wrong there.
    pub problem: &'static str,
}

/// What is wrong, where the place is known to the caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Malformed(&'static str);

/// What passed of an archive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Passed<'a> {
    /// Data of a block, or a piece of it: what the chunks hold, without their lengths. Not of an archive
    /// whose contents say where a block begins: nothing of it may be moved.
    Data(&'a [u8]),
    /// The data has ended: the empty chunk.
    DataEnd,
    /// Anything else.
    Other(&'a [u8]),
}

/// The walker. Feed it the archive in pieces of any size, then [`Walker::finish`] it.
#[derive(Debug)]
pub struct Walker {
    state: State,
    offset: u64,
    tokens: Tokens,
    version: [u8; 3],
    toc: Toc,
    tables: Vec<TableDigest>,
    large_objects: LargeObjects,
    rows_before: u64,
    block: Option<Content>,
    rows: Option<Rows>,
}

/// What the next bytes are.
#[derive(Debug, Clone, Copy)]
enum State {
    Magic,
    Version,
    Sizes,
    Compression,
    Date(u8),
    HeaderText(u8),
    TocCount,
    Entry,
    BlockStart,
    BlockId(u8),
    ObjectId,
    ChunkLength,
    Chunk(u64),
    Opaque,
    Failed(&'static str),
}

const MAGIC: [u8; 5] = *b"PGDMP";
const BLOCK_OF_ROWS: u8 = 1;
const BLOCK_OF_LARGE_OBJECTS: u8 = 3;

impl Default for Walker {
    fn default() -> Self {
        Self::new()
    }
}

impl Walker {
    /// A walker before the first byte.
    #[must_use]
    pub fn new() -> Self {
        Self {
            state: State::Magic,
            offset: 0,
            tokens: Tokens::default(),
            version: [0; 3],
            toc: Toc::default(),
            tables: Vec::new(),
            large_objects: LargeObjects::default(),
            rows_before: 0,
            block: None,
            rows: None,
        }
    }

    /// How many rows passed so far.
    #[must_use]
    pub fn rows(&self) -> u64 {
        self.rows_before
            .saturating_add(self.rows.as_ref().map_or(0, Rows::rows))
    }

    /// Whether the table of contents has passed: what follows are rows.
    #[must_use]
    pub fn is_past_contents(&self) -> bool {
        matches!(
            self.state,
            State::BlockStart | State::BlockId(_) | State::ObjectId | State::ChunkLength | State::Chunk(_)
        )
    }

    /// Takes the archive's next bytes.
    ///
    /// # Errors
    /// When they cannot be part of an archive; every later call fails too.
    pub fn feed(&mut self, bytes: &[u8]) -> Result<(), WalkError> {
        self.feed_and_tell(bytes, |_| {})
    }

    /// Takes the archive's next bytes, and tells what they are.
    ///
    /// # Errors
    /// As [`Walker::feed`].
    pub fn feed_and_tell(&mut self, bytes: &[u8], mut tell: impl FnMut(Passed<'_>)) -> Result<(), WalkError> {
        let mut input = bytes;
        while !input.is_empty() {
            let (before, state) = (input, self.state);
            // Every step uses up at least one byte, or fails.
            let result = self.step(&mut input);
            let (used, _) = before.split_at(before.len() - input.len());
            self.offset = self.offset.saturating_add(used.len() as u64);
            result.map_err(|Malformed(problem)| self.fail(problem))?;
            match (state, self.state) {
                _ if self.toc.has_positions() => tell(Passed::Other(used)),
                (State::Chunk(_), _) => tell(Passed::Data(used)),
                (State::ChunkLength, State::ChunkLength | State::Chunk(_)) => {}
                (State::ChunkLength, _) => tell(Passed::DataEnd),
                _ => tell(Passed::Other(used)),
            }
        }
        Ok(())
    }

    /// Says what the archive held, once its last byte was fed.
    ///
    /// # Errors
    /// When it is cut off, or an entry that has data came without it.
    pub fn finish(self) -> Result<Walked, WalkError> {
        let version = format!("{}.{}", self.version[0], self.version[1]);
        let error = |problem| WalkError {
            offset: self.offset,
            problem,
        };
        match self.state {
            State::Opaque => Ok(Walked {
                version,
                contents: None,
            }),
            State::Failed(problem) => Err(error(problem)),
            State::BlockStart if self.toc.awaits_data() => Err(error("the data of an entry is missing")),
            State::BlockStart => Ok(Walked {
                version,
                contents: Some(Contents {
                    toc_entries: self.toc.entries(),
                    tables: self.tables,
                    large_objects: self.large_objects,
                    owners: self.toc.into_owners(),
                }),
            }),
            _ => Err(error("it ends too early")),
        }
    }

    fn fail(&mut self, problem: &'static str) -> WalkError {
        self.state = State::Failed(problem);
        WalkError {
            offset: self.offset,
            problem,
        }
    }

    /// Reads one primitive, if it is there whole, and decides what comes next.
    fn step(&mut self, input: &mut &[u8]) -> Result<(), Malformed> {
        let next = match self.state {
            State::Magic | State::Version | State::Sizes | State::Compression | State::Date(_) => self.header(input)?,
            State::HeaderText(left) => self.tokens.text(input, false)?.map(|_| match left {
                0 | 1 => State::TocCount,
                _ => State::HeaderText(left - 1),
            }),
            State::TocCount => match self.tokens.int(input)? {
                None => None,
                Some(count) => {
                    self.toc.expect(count)?;
                    Some(self.after_entry())
                }
            },
            State::Entry => self
                .toc
                .read(&mut self.tokens, input, self.version[1])?
                .then(|| self.after_entry()),
            State::BlockStart => self.tokens.bytes::<1>(input).map(|[kind]| State::BlockId(kind)),
            State::BlockId(kind) => match self.tokens.int(input)? {
                None => None,
                Some(id) => Some(self.begin_block(kind, id)?),
            },
            State::ObjectId => self.tokens.int(input)?.map(|oid| self.begin_large_object(oid)),
            State::ChunkLength => match self.tokens.int(input)? {
                None => None,
                Some(0) => Some(self.end_data()?),
                Some(length) => Some(State::Chunk(
                    u64::try_from(length).map_err(|_| Malformed("a chunk has a negative length"))?,
                )),
            },
            State::Chunk(mut remaining) => {
                let piece = take(input, &mut remaining);
                self.data(piece);
                Some(if remaining == 0 {
                    State::ChunkLength
                } else {
                    State::Chunk(remaining)
                })
            }
            State::Opaque => {
                *input = &[];
                None
            }
            State::Failed(problem) => return Err(Malformed(problem)),
        };
        if let Some(next) = next {
            self.state = next;
        }
        Ok(())
    }

    fn header(&mut self, input: &mut &[u8]) -> Result<Option<State>, Malformed> {
        Ok(match self.state {
            State::Magic => match self.tokens.bytes(input) {
                None => None,
                Some(MAGIC) => Some(State::Version),
                Some(_) => return Err(Malformed("it is not an archive of pg_dump in the custom format")),
            },
            State::Version => self.tokens.bytes(input).map(|version: [u8; 3]| {
                self.version = version;
                match version {
                    [1, 14..=16, _] => State::Sizes,
                    _ => State::Opaque,
                }
            }),
            State::Sizes => match self.tokens.bytes(input) {
                None => None,
                // Integers of 4 bytes, offsets of 8, format 1: custom.
                Some([4, 8, 1]) => Some(State::Compression),
                Some(_) => return Err(Malformed("it has unusual sizes, or is not in the custom format")),
            },
            State::Compression => {
                let method = if self.version[1] >= 15 {
                    self.tokens.bytes(input).map(|[algorithm]| i64::from(algorithm))
                } else {
                    self.tokens.int(input)?
                };
                match method {
                    None => None,
                    Some(0) => Some(State::Date(7)),
                    Some(_) => return Err(Malformed("it is compressed within; it must be made with -Z0")),
                }
            }
            State::Date(left) => self.tokens.int(input)?.map(|_| match left {
                0 | 1 => State::HeaderText(3),
                _ => State::Date(left - 1),
            }),
            other => Some(other),
        })
    }

    fn after_entry(&self) -> State {
        if self.toc.is_complete() {
            State::BlockStart
        } else {
            State::Entry
        }
    }

    fn begin_block(&mut self, kind: u8, id: i64) -> Result<State, Malformed> {
        let content = self
            .toc
            .take_data(id)
            .ok_or(Malformed("a block belongs to no entry, or comes twice"))?;
        let next = match (&content, kind) {
            (Content::Rows { schema, name }, BLOCK_OF_ROWS) => {
                self.rows = Some(Rows::new(schema.clone(), name.clone()));
                State::ChunkLength
            }
            (Content::Other, BLOCK_OF_ROWS) => State::ChunkLength,
            (Content::LargeObjects, BLOCK_OF_LARGE_OBJECTS) => State::ObjectId,
            _ => return Err(Malformed("a block is not of its entry's kind")),
        };
        self.block = Some(content);
        Ok(next)
    }

    fn begin_large_object(&mut self, oid: i64) -> State {
        if oid == 0 {
            self.block = None;
            return State::BlockStart;
        }
        self.large_objects.count = self.large_objects.count.saturating_add(1);
        State::ChunkLength
    }

    fn data(&mut self, piece: &[u8]) {
        match (&mut self.rows, &self.block) {
            (Some(rows), _) => rows.update(piece),
            (None, Some(Content::LargeObjects)) => {
                self.large_objects.bytes = self.large_objects.bytes.saturating_add(piece.len() as u64);
            }
            _ => {}
        }
    }

    fn end_data(&mut self) -> Result<State, Malformed> {
        if matches!(self.block, Some(Content::LargeObjects)) {
            return Ok(State::ObjectId);
        }
        if let Some(rows) = self.rows.take() {
            let table = rows.finish()?;
            self.rows_before = self.rows_before.saturating_add(table.rows);
            self.tables.push(table);
        }
        self.block = None;
        Ok(State::BlockStart)
    }
}

#[cfg(test)]
mod tests;
