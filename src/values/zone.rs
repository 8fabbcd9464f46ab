//! A time zone of the operating system's tz data.

use std::str::FromStr;

use jiff::tz::TimeZone;
use serde::{Deserialize, Serialize};

use super::ValueError;

/// An IANA time zone of the operating system's tz data, such as `Europe/Berlin`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Timezone(TimeZone, String);

impl Timezone {
    /// Coordinated universal time.
    #[must_use]
    pub fn utc() -> Self {
        Self(TimeZone::UTC, "UTC".to_owned())
    }

    /// The zone's rules.
    #[must_use]
    pub fn rules(&self) -> &TimeZone {
        &self.0
    }

    /// The zone's IANA name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.1
    }
}

impl FromStr for Timezone {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.eq_ignore_ascii_case("utc") {
            return Ok(Self::utc());
        }
        match TimeZone::get(text) {
            Ok(rules) => {
                let name = rules.iana_name().unwrap_or(text).to_owned();
                Ok(Self(rules, name))
            }
            Err(_) => Err(ValueError::new(
                format!("`{text}` is not a time zone of this system"),
                "write an IANA name such as \"UTC\" or \"Europe/Berlin\"; the names come from the operating system's tzdata package",
            )),
        }
    }
}

impl TryFrom<String> for Timezone {
    type Error = ValueError;
    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<Timezone> for String {
    fn from(zone: Timezone) -> Self {
        zone.1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_zone_is_refused() {
        assert!("Mars/Olympus".parse::<Timezone>().is_err());
        assert_eq!("Europe/Berlin".parse::<Timezone>().unwrap().name(), "Europe/Berlin");
    }
}
