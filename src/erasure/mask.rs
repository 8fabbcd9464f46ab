//! Masks: what takes the place of a value. Each is a word of the configuration; the statement that
//! applies it is built in `statement`.

use std::fmt;
use std::str::FromStr;

use serde::{Serialize, Serializer};

use crate::values::ValueError;

/// What takes the place of a value. A value that is null stays null.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Mask {
    /// Null.
    Null,
    /// The same text for everybody.
    Constant(String),
    /// So many hexadecimal digits of an HMAC of the value, 8 to 64. Its key is drawn for the request
    /// and forgotten with it: equal values of one person stay equal, and nobody can find them again.
    Hmac(u8),
    /// An address that nobody has, one for each value: `erased+…@invalid.invalid`.
    EmailToken,
    /// The beginning of its `day`, `month`, `quarter`, `year` or `decade`.
    TruncateDate(String),
    /// A member of a JSON document, by its path, goes.
    JsonRemove(Vec<String>),
    /// Members of these names become null, at any depth of a JSON document.
    JsonScrub(Vec<String>),
    /// The same, but only in objects that name the subject, and below them: for documents about
    /// several people.
    JsonScrubOwn(Vec<String>),
    /// Each of the subject's identifiers in a text or JSON document becomes `[erased]`.
    TextReplace,
    /// Elements of an array that are an identifier of the subject go.
    ArrayRemove,
}

const UNITS: [&str; 5] = ["day", "month", "quarter", "year", "decade"];

const HELP: &str = "the masks are null, constant(TEXT), hmac(LENGTH), email_token, truncate_date(UNIT), json_remove(a.b), \
                    json_scrub(a, b), json_scrub_own(a, b), text_replace and array_remove";

impl Mask {
    /// Whether its result shows whether a value was masked before, so that nothing need be
    /// remembered.
    #[must_use]
    pub fn is_idempotent(&self) -> bool {
        !matches!(self, Self::Hmac(_) | Self::EmailToken)
    }
}

impl FromStr for Mask {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let bad = |problem: String| ValueError {
            problem,
            help: HELP.to_owned(),
        };
        let (word, argument) = match text.split_once('(') {
            Some((word, rest)) => {
                let argument = rest
                    .strip_suffix(')')
                    .ok_or_else(|| bad(format!("`{text}` lacks its closing parenthesis")))?;
                (word, Some(argument))
            }
            None => (text, None),
        };
        if text.contains('\0') {
            return Err(bad(
                "a mask holds a NUL character, which PostgreSQL cannot store".to_owned()
            ));
        }
        let names = |argument: &str, separator: char| -> Result<Vec<String>, ValueError> {
            let names: Vec<String> = argument.split(separator).map(|name| name.trim().to_owned()).collect();
            if names.iter().any(String::is_empty) {
                return Err(bad(format!("`{text}` has an empty name")));
            }
            Ok(names)
        };
        Ok(match (word, argument) {
            ("null", None) => Self::Null,
            ("constant", Some(constant)) => Self::Constant(constant.to_owned()),
            ("hmac", Some(length)) => {
                let length = length.trim().parse().ok().filter(|length| (8..=64).contains(length));
                Self::Hmac(length.ok_or_else(|| bad(format!("`{text}`: a length is 8 to 64")))?)
            }
            ("email_token", None) => Self::EmailToken,
            ("truncate_date", Some(unit)) if UNITS.contains(&unit.trim()) => Self::TruncateDate(unit.trim().to_owned()),
            ("truncate_date", _) => return Err(bad(format!("`{text}`: the units are {}", UNITS.join(", ")))),
            ("json_remove", Some(path)) => Self::JsonRemove(names(path, '.')?),
            ("json_scrub", Some(keys)) => Self::JsonScrub(names(keys, ',')?),
            ("json_scrub_own", Some(keys)) => Self::JsonScrubOwn(names(keys, ',')?),
            ("text_replace", None) => Self::TextReplace,
            ("array_remove", None) => Self::ArrayRemove,
            _ => return Err(bad(format!("`{text}` is not a mask"))),
        })
    }
}

impl fmt::Display for Mask {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Null => f.write_str("null"),
            Self::Constant(text) => write!(f, "constant({text})"),
            Self::Hmac(length) => write!(f, "hmac({length})"),
            Self::EmailToken => f.write_str("email_token"),
            Self::TruncateDate(unit) => write!(f, "truncate_date({unit})"),
            Self::JsonRemove(path) => write!(f, "json_remove({})", path.join(".")),
            Self::JsonScrub(keys) => write!(f, "json_scrub({})", keys.join(", ")),
            Self::JsonScrubOwn(keys) => write!(f, "json_scrub_own({})", keys.join(", ")),
            Self::TextReplace => f.write_str("text_replace"),
            Self::ArrayRemove => f.write_str("array_remove"),
        }
    }
}

impl Serialize for Mask {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_mask_is_read_and_written_the_same() {
        for text in [
            "null",
            "constant(Erased (by request))",
            "constant()",
            "hmac(12)",
            "email_token",
            "truncate_date(year)",
            "json_remove(customer.email)",
            "json_scrub(email, name)",
            "json_scrub_own(username, comment)",
            "text_replace",
            "array_remove",
        ] {
            assert_eq!(text.parse::<Mask>().unwrap().to_string(), text);
        }
        for text in [
            "",
            "nul",
            "null()",
            "constant",
            "constant(x",
            "hmac",
            "hmac(7)",
            "hmac(65)",
            "hmac(x)",
            "truncate_date(week)",
            "json_remove()",
            "json_scrub(a,)",
            "email_token(1)",
            "constant(\0)",
        ] {
            assert!(text.parse::<Mask>().is_err(), "{text:?}");
        }
    }
}
