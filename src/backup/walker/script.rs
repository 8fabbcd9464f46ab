//! A dump in the plain format: a script of SQL. Its rows cannot be told from the text of a function
//! that looks like them, so only its beginning and its end are known.

use super::{WalkError, Walked};

const BEGINNING: &[u8] = b"--\n-- PostgreSQL database dump\n--\n";

/// What `pg_dump` writes when it has written all else; since 15.14 a line `\unrestrict` follows.
const END: &[u8] = b"\n--\n-- PostgreSQL database dump complete\n--\n";

/// How much is kept to look for the end in.
const KEPT: usize = 1024;

/// The plain format, as the walker's version.
pub const PLAIN: &str = "plain";

/// Looks at a script as it passes.
#[derive(Debug, Default)]
pub struct Script {
    offset: u64,
    beginning: Vec<u8>,
    tail: Vec<u8>,
}

impl Script {
    /// Takes the script's next bytes.
    ///
    /// # Errors
    /// When it is not a script of `pg_dump`.
    pub fn feed(&mut self, bytes: &[u8]) -> Result<(), WalkError> {
        let missing = BEGINNING.len().saturating_sub(self.beginning.len());
        self.beginning.extend(bytes.iter().take(missing));
        if !BEGINNING.starts_with(&self.beginning) {
            return Err(self.error("it is not a script of pg_dump"));
        }
        self.offset = self.offset.saturating_add(bytes.len() as u64);
        if bytes.len() >= KEPT {
            self.tail.clear();
        }
        let (_, new) = bytes.split_at(bytes.len().saturating_sub(KEPT));
        self.tail.extend_from_slice(new);
        let surplus = self.tail.len().saturating_sub(KEPT);
        self.tail.drain(..surplus);
        Ok(())
    }

    /// Says that it is whole, once its last byte was fed.
    ///
    /// # Errors
    /// When it does not end as `pg_dump` ends a script.
    pub fn finish(self) -> Result<Walked, WalkError> {
        let ends = memchr::memmem::rfind(&self.tail, END).and_then(|at| self.tail.get(at + END.len()..));
        let sound = |line: &[u8]| line.is_empty() || line.starts_with(b"\\unrestrict ");
        match ends {
            Some(after) if after.split(|byte| *byte == b'\n').all(sound) => Ok(Walked {
                version: PLAIN.to_owned(),
                contents: None,
            }),
            _ => Err(self.error("it ends too early")),
        }
    }

    fn error(&self, problem: &'static str) -> WalkError {
        WalkError {
            offset: self.offset,
            problem,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn script(rows: usize, end: &str) -> Vec<u8> {
        let mut text = BEGINNING.to_vec();
        text.extend(b"COPY t FROM stdin;\n".iter().chain(b"row\n".repeat(rows).iter()));
        text.extend(end.bytes());
        text
    }

    fn walk(text: &[u8], piece: usize) -> Result<Walked, WalkError> {
        let mut script = Script::default();
        for piece in text.chunks(piece) {
            script.feed(piece)?;
        }
        script.finish()
    }

    #[test]
    fn a_script_is_whole_when_it_ends_as_pg_dump_ends_it() {
        let complete = "\n--\n-- PostgreSQL database dump complete\n--\n\n";
        for end in [complete.to_owned(), format!("{complete}\\unrestrict abc\n\n")] {
            for rows in [0, 400, 3000] {
                for piece in [1, 7, 1023, 1024, 5000, 100_000] {
                    let text = script(rows, &end);
                    assert_eq!(walk(&text, piece).unwrap().version, PLAIN);
                    let marker = text.len() - end.len() + complete.len() - 1;
                    assert!(walk(&text[..marker - 1], piece).is_err());
                    assert!(walk(&[&text[..], b"DROP TABLE t;\n"].concat(), piece).is_err());
                }
            }
        }
        assert!(walk(b"PGDMP", 1).is_err() && walk(b"", 1).is_err());
    }
}
