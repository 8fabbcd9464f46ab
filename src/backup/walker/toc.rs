//! The table of contents: what the archive says it holds.

use std::collections::{BTreeSet, HashMap};

use super::Malformed;
use super::token::Tokens;

/// What the data of an entry is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Content {
    /// The rows of a table.
    Rows {
        /// Its schema.
        schema: String,
        /// Its name.
        name: String,
    },
    /// Large objects.
    LargeObjects,
    /// Data of a kind that a later `pg_dump` may have; walked, not counted.
    Other,
}

/// `K_OFFSET_POS_SET`.
const POSITION_SET: u8 = 2;

/// The table of contents, as far as it was read.
#[derive(Debug, Default)]
pub(super) struct Toc {
    entries: u64,
    remaining: u64,
    field: Field,
    entry: Entry,
    awaited: HashMap<i64, Content>,
    positions: bool,
    owners: BTreeSet<String>,
}

#[derive(Debug, Default)]
struct Entry {
    id: i64,
    has_data: bool,
    has_copy: bool,
    tag: Vec<u8>,
    kind: Vec<u8>,
    schema: Vec<u8>,
}

/// The fields of an entry, in their order.
#[derive(Debug, Default, Clone, Copy)]
enum Field {
    #[default]
    Id,
    HasData,
    CatalogOid,
    Oid,
    Tag,
    Kind,
    Section,
    Definition,
    DropStatement,
    CopyStatement,
    Schema,
    Tablespace,
    AccessMethod,
    RelationKind,
    Owner,
    WithOids,
    Dependencies,
    Offset,
}

impl Toc {
    /// How many entries follow.
    pub(super) fn expect(&mut self, count: i64) -> Result<(), Malformed> {
        self.entries = u64::try_from(count).map_err(|_| Malformed("the table of contents has a negative length"))?;
        self.remaining = self.entries;
        Ok(())
    }

    /// Whether all entries were read.
    pub(super) fn is_complete(&self) -> bool {
        self.remaining == 0
    }

    /// How many entries there are.
    pub(super) fn entries(&self) -> u64 {
        self.entries
    }

    /// Whether an entry's data has not come yet.
    pub(super) fn awaits_data(&self) -> bool {
        !self.awaited.is_empty()
    }

    /// What the data of an entry is, once.
    pub(super) fn take_data(&mut self, id: i64) -> Option<Content> {
        self.awaited.remove(&id)
    }

    /// Whether it says where in the archive some data begins: `pg_dump` had a file to write to, not a pipe.
    pub(super) fn has_positions(&self) -> bool {
        self.positions
    }

    /// All roles that own an entry.
    pub(super) fn into_owners(self) -> BTreeSet<String> {
        self.owners
    }

    /// Reads one field, if it is there whole; answers whether that was the last one of an entry.
    pub(super) fn read(&mut self, tokens: &mut Tokens, input: &mut &[u8], minor: u8) -> Result<bool, Malformed> {
        let next = match self.field {
            Field::Id | Field::HasData | Field::Section | Field::RelationKind => {
                let Some(value) = tokens.int(input)? else {
                    return Ok(false);
                };
                self.number(value)?
            }
            Field::Offset => {
                // A flag, then eight bytes; in a stream that cannot be rewound they say nothing.
                let Some([flag, ..]) = tokens.bytes::<9>(input) else {
                    return Ok(false);
                };
                self.positions |= flag == POSITION_SET;
                self.end_entry()?;
                return Ok(true);
            }
            _ => {
                let keep = matches!(self.field, Field::Tag | Field::Kind | Field::Schema | Field::Owner);
                let Some(text) = tokens.text(input, keep)? else {
                    return Ok(false);
                };
                self.text(text, minor)
            }
        };
        self.field = next;
        Ok(false)
    }

    fn number(&mut self, value: i64) -> Result<Field, Malformed> {
        Ok(match self.field {
            Field::Id if value <= 0 => return Err(Malformed("an entry has no number")),
            Field::Id => {
                self.entry.id = value;
                Field::HasData
            }
            Field::HasData => {
                self.entry.has_data = value != 0;
                Field::CatalogOid
            }
            Field::Section => Field::Definition,
            _ => Field::Owner,
        })
    }

    fn text(&mut self, text: Option<Vec<u8>>, minor: u8) -> Field {
        match self.field {
            Field::CatalogOid => Field::Oid,
            Field::Oid => Field::Tag,
            Field::Tag => {
                self.entry.tag = text.unwrap_or_default();
                Field::Kind
            }
            Field::Kind => {
                self.entry.kind = text.unwrap_or_default();
                Field::Section
            }
            Field::Definition => Field::DropStatement,
            Field::DropStatement => Field::CopyStatement,
            Field::CopyStatement => {
                self.entry.has_copy = text.is_some();
                Field::Schema
            }
            Field::Schema => {
                self.entry.schema = text.unwrap_or_default();
                Field::Tablespace
            }
            Field::Tablespace => Field::AccessMethod,
            Field::AccessMethod if minor >= 16 => Field::RelationKind,
            Field::AccessMethod => Field::Owner,
            Field::Owner => {
                let owner = text.unwrap_or_default();
                if !owner.is_empty() {
                    self.owners.insert(String::from_utf8_lossy(&owner).into_owned());
                }
                Field::WithOids
            }
            // A list of texts, ended by NULL.
            Field::Dependencies if text.is_none() => Field::Offset,
            _ => Field::Dependencies,
        }
    }

    fn end_entry(&mut self) -> Result<(), Malformed> {
        let entry = std::mem::take(&mut self.entry);
        self.field = Field::default();
        self.remaining = self.remaining.saturating_sub(1);
        if !entry.has_data {
            return Ok(());
        }
        let name = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let content = match entry.kind.as_slice() {
            b"TABLE DATA" if entry.has_copy => Content::Rows {
                schema: name(&entry.schema),
                name: name(&entry.tag),
            },
            b"TABLE DATA" => return Err(Malformed("a table's rows are not in the form of COPY")),
            b"BLOBS" => Content::LargeObjects,
            _ => Content::Other,
        };
        match self.awaited.insert(entry.id, content) {
            None => Ok(()),
            Some(_) => Err(Malformed("two entries have one number")),
        }
    }
}
