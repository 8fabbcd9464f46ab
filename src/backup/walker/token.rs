//! The archive's primitives, read across the borders of the pieces it arrives in.

use super::Malformed;

/// The longest text that is kept; names are shorter, the rest of a longer text is passed over.
const KEPT_TEXT: usize = 1024;

/// A signed integer: a sign byte, then four bytes, lowest first.
const INT_BYTES: usize = 5;

/// A text: its start is kept if wanted, `None` stands for the archive's NULL.
pub(super) type Text = Option<Vec<u8>>;

/// A primitive that may have arrived in part. Every reader answers `None` when the input is used
/// up before the primitive is whole, and is then to be asked for the same again.
#[derive(Debug, Default)]
pub(super) struct Tokens {
    fixed: [u8; 16],
    filled: usize,
    text: Option<PartialText>,
}

#[derive(Debug)]
struct PartialText {
    remaining: u64,
    kept: Vec<u8>,
}

impl Tokens {
    /// The next `N` bytes; `N` is at most 16.
    pub(super) fn bytes<const N: usize>(&mut self, input: &mut &[u8]) -> Option<[u8; N]> {
        const { assert!(N <= 16) };
        while self.filled < N {
            let (byte, rest) = input.split_first()?;
            if let Some(slot) = self.fixed.get_mut(self.filled) {
                *slot = *byte;
            }
            self.filled += 1;
            *input = rest;
        }
        self.filled = 0;
        self.fixed.first_chunk().copied()
    }

    /// The next integer.
    pub(super) fn int(&mut self, input: &mut &[u8]) -> Result<Option<i64>, Malformed> {
        let Some([sign, magnitude @ ..]) = self.bytes::<INT_BYTES>(input) else {
            return Ok(None);
        };
        let magnitude = i64::from(u32::from_le_bytes(magnitude));
        match sign {
            0 => Ok(Some(magnitude)),
            1 => Ok(Some(-magnitude)),
            _ => Err(Malformed("an integer has no sign")),
        }
    }

    /// The next text; with `keep` its first bytes, without it an empty one.
    pub(super) fn text(&mut self, input: &mut &[u8], keep: bool) -> Result<Option<Text>, Malformed> {
        let mut text = match self.text.take() {
            Some(text) => text,
            None => match self.int(input)?.map(u64::try_from) {
                None => return Ok(None),
                Some(Err(_)) => return Ok(Some(None)),
                Some(Ok(remaining)) => PartialText {
                    remaining,
                    kept: Vec::new(),
                },
            },
        };
        let piece = take(input, &mut text.remaining);
        if keep {
            let room = KEPT_TEXT.saturating_sub(text.kept.len()).min(piece.len());
            text.kept.extend(piece.iter().take(room));
        }
        if text.remaining > 0 {
            self.text = Some(text);
            return Ok(None);
        }
        Ok(Some(Some(text.kept)))
    }
}

/// Cuts off the front of the input as much as `remaining` allows, and counts it off.
pub(super) fn take<'a>(input: &mut &'a [u8], remaining: &mut u64) -> &'a [u8] {
    let length = usize::try_from(*remaining).unwrap_or(usize::MAX).min(input.len());
    let (piece, rest) = input.split_at(length);
    *input = rest;
    *remaining -= length as u64;
    piece
}
