//! An archive with longer chunks. `pg_dump` makes a chunk of each row: the five bytes of its length, which
//! are hardly ever the same twice, keep the rows around them from being packed well. And `pg_restore` sends
//! each chunk to the server as a message of its own; of a few hundred bytes that costs more than the rows
//! in it.

use super::Passed;

/// A length, or an empty chunk's: a sign, then four bytes, lowest first.
const LENGTH: [u8; 5] = [0; 5];

/// A piece of the archive, in which what followed each other in chunks is one chunk.
#[derive(Debug, Default)]
pub struct Joined {
    bytes: Vec<u8>,
    /// Where the length of the chunk stands that is not complete.
    open: Option<usize>,
}

impl Joined {
    /// Adds what passed.
    pub fn add(&mut self, passed: Passed<'_>) {
        match passed {
            Passed::Data(rows) => {
                if self.open.is_none() {
                    self.open = Some(self.bytes.len());
                    self.bytes.extend_from_slice(&LENGTH);
                }
                self.bytes.extend_from_slice(rows);
            }
            Passed::DataEnd => {
                self.complete();
                self.bytes.extend_from_slice(&LENGTH);
            }
            Passed::Other(bytes) => self.bytes.extend_from_slice(bytes),
        }
    }

    /// A piece in the room of another one, for `bytes` bytes of an archive.
    #[must_use]
    pub fn within(mut room: Vec<u8>, bytes: usize) -> Self {
        room.clear();
        // A length whose beginning was in the piece before, and one for what goes on from there.
        room.reserve(bytes + 2 * LENGTH.len());
        Self {
            bytes: room,
            open: None,
        }
    }

    /// Completes the piece. The data may go on in the next one.
    #[must_use]
    pub fn into_bytes(mut self) -> Vec<u8> {
        self.complete();
        self.bytes
    }

    /// Completes the piece and answers with it, as [`Joined::into_bytes`].
    pub fn close(&mut self) -> &[u8] {
        self.complete();
        &self.bytes
    }

    /// Forgets the piece, and keeps its room.
    pub fn clear(&mut self) {
        self.bytes.clear();
    }

    fn complete(&mut self) {
        let Some(at) = self.open.take() else { return };
        let (_, chunk) = self.bytes.split_at_mut(at);
        // A piece is never as long as four bytes can say.
        let length = u32::try_from(chunk.len() - LENGTH.len()).unwrap_or(u32::MAX);
        if let Some(room) = chunk.get_mut(1..LENGTH.len()) {
            room.copy_from_slice(&length.to_le_bytes());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_that_follow_each_other_are_one_and_all_else_stays() {
        let mut joined = Joined::default();
        for passed in [
            Passed::Other(b"\x01\x00\x09\x00\x00\x00"),
            Passed::Data(b"one\n"),
            Passed::Data(b"two\n"),
            Passed::DataEnd,
            Passed::Other(b"\x01"),
        ] {
            joined.add(passed);
        }
        let whole: &[u8] = b"\x01\x00\x09\x00\x00\x00\x00\x08\x00\x00\x00one\ntwo\n\x00\x00\x00\x00\x00\x01";
        assert_eq!(joined.close(), whole);
        joined.clear();
        joined.add(Passed::Data(b"three\n"));
        assert_eq!(joined.close(), b"\x00\x06\x00\x00\x00three\n");
        joined.clear();
        joined.add(Passed::DataEnd);
        assert_eq!(joined.close(), b"\x00\x00\x00\x00\x00", "ended in the next piece");
    }
}
