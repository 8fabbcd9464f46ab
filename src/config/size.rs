//! Sizes, as PostgreSQL writes them.

use crate::values::ValueError;

/// Units of bytes; each is 1024 of the one before.
const UNITS: [(&str, u32); 4] = [("kB", 10), ("MB", 20), ("GB", 30), ("TB", 40)];

/// `"16GB"`, in bytes; never 0. `also` ends the advice of what to write.
pub(super) fn bytes(text: &str, also: &str) -> Result<u64, ValueError> {
    let bad = || ValueError {
        problem: format!("`{text}` is not a size"),
        help: format!("write a whole number and kB, MB, GB or TB{also}"),
    };
    let (unit, shift) = UNITS
        .into_iter()
        .find(|(unit, _)| text.ends_with(unit))
        .ok_or_else(bad)?;
    let number: u64 = text.trim_end_matches(unit).trim().parse().map_err(|_| bad())?;
    number
        .checked_mul(1 << shift)
        .filter(|bytes| *bytes > 0)
        .ok_or_else(bad)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_the_units_of_postgresql() {
        assert_eq!(bytes("16GB", "").unwrap(), 16 << 30);
        assert_eq!(bytes("1 kB", "").unwrap(), 1024);
        for text in ["", "16", "GB", "0MB", "-1MB", "1.5GB", "99999999999TB", "1gb"] {
            assert!(bytes(text, "").is_err(), "{text}");
        }
    }
}
