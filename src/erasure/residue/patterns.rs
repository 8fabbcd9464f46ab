//! What of a person is looked for in a text, and when an occurrence means the person.

use std::collections::BTreeSet;
use std::fmt::Write;

use aho_corasick::AhoCorasick;

use crate::erasure::request::Identifiers;
use crate::postgres::sqlstate::DatabaseError;

/// From so many digits on a number is likely to be a key, also in a column of numbers.
const LONG_NUMBER: usize = 10;

/// All identifiers of all people, in every form in which they may stand in a text.
#[derive(Debug)]
pub(super) struct Patterns {
    matcher: Option<AhoCorasick>,
    /// What each pattern of the matcher stands for.
    forms: Vec<Form>,
    has_long_number: bool,
}

#[derive(Debug)]
struct Form {
    person: usize,
    /// Whether it means the person also inside of a longer word: a long random text does.
    anywhere: bool,
}

impl Patterns {
    /// Identifiers that are too short to tell anything are left out.
    pub(super) fn of<'a>(people: impl Iterator<Item = &'a Identifiers>) -> Result<Self, DatabaseError> {
        let (mut texts, mut forms, mut has_long_number) = (Vec::new(), Vec::new(), false);
        for (person, identifiers) in people.enumerate() {
            let mut known = BTreeSet::new();
            for identifier in identifiers.telling() {
                let text = identifier.expose();
                has_long_number |= text.len() >= LONG_NUMBER && is_number(text);
                for form in written_forms(text) {
                    if known.insert(form.clone()) {
                        let anywhere = is_random(text);
                        forms.push(Form { person, anywhere });
                        texts.push(form);
                    }
                }
            }
        }
        let matcher = if texts.is_empty() {
            None
        } else {
            let built = AhoCorasick::builder().ascii_case_insensitive(true).build(&texts);
            // Its error speaks of sizes only.
            Some(built.map_err(|error| DatabaseError::local(format!("build a search: {error}")))?)
        };
        Ok(Self {
            matcher,
            forms,
            has_long_number,
        })
    }

    pub(super) fn is_empty(&self) -> bool {
        self.matcher.is_none()
    }

    /// Whether columns of numbers are worth a look.
    pub(super) fn has_long_number(&self) -> bool {
        self.has_long_number
    }

    /// The people of whom a text holds something.
    pub(super) fn people(&self, text: &[u8]) -> BTreeSet<usize> {
        let mut people = BTreeSet::new();
        let Some(matcher) = &self.matcher else { return people };
        for found in matcher.find_overlapping_iter(text) {
            if let Some(form) = self.forms.get(found.pattern().as_usize())
                && (form.anywhere || stands_alone(text, found.start(), found.end()))
            {
                people.insert(form.person);
            }
        }
        people
    }
}

/// A text as it stands: plainly, inside JSON (with and without escapes of what is not ASCII), in a
/// URL, in XML.
fn written_forms(text: &str) -> Vec<String> {
    let mut forms = vec![text.to_owned()];
    if !text.is_ascii() {
        // The matcher folds ASCII only.
        forms.extend([text.to_lowercase(), text.to_uppercase()]);
    }
    for plain in forms.clone() {
        let json = serde_json::Value::from(plain.as_str()).to_string();
        let json = json.trim_matches('"').to_owned();
        forms.push(escape_like_php(&json));
        forms.push(json);
        forms.push(url::form_urlencoded::byte_serialize(plain.as_bytes()).collect());
        forms.push(plain.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;"));
    }
    forms
}

/// As encoders write that keep to ASCII and escape slashes.
fn escape_like_php(json: &str) -> String {
    let mut text = String::new();
    for c in json.chars() {
        match c {
            '/' => text.push_str("\\/"),
            c if c.is_ascii() => text.push(c),
            c => {
                let mut units = [0; 2];
                for unit in c.encode_utf16(&mut units) {
                    let _ = write!(text, "\\u{unit:04x}");
                }
            }
        }
    }
    text
}

fn is_number(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_digit())
}

/// A UUID, a session, a token: long, of letters and digits both, without what makes words.
fn is_random(text: &str) -> bool {
    text.len() >= 16
        && text
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
        && text.bytes().any(|byte| byte.is_ascii_digit())
        && !is_number(text)
}

/// Whether an occurrence is not a part of a longer word or number: `bob@example.org` in
/// `jacob@example.org` is somebody else.
fn stands_alone(text: &[u8], start: usize, end: usize) -> bool {
    let is_word = |at: Option<usize>| at.and_then(|at| text.get(at)).is_some_and(u8::is_ascii_alphanumeric);
    let before = text.get(..start).unwrap_or_default();
    let joined_before = is_word(Some(start)) && before.last().is_some_and(u8::is_ascii_alphanumeric);
    let joined_after = is_word(end.checked_sub(1)) && is_word(Some(end));
    !joined_after && (!joined_before || ends_with_escape(before))
}

/// `\n`, `\u000a` or `%20`: what looks like a part of the word is a character before it.
fn ends_with_escape(before: &[u8]) -> bool {
    let is_hex = |bytes: &[u8]| bytes.iter().all(u8::is_ascii_hexdigit);
    let last = |length: usize| before.len().checked_sub(length).and_then(|at| before.get(at..));
    matches!(before, [.., b'\\', b'b' | b'f' | b'n' | b'r' | b't'])
        || matches!(last(3), Some([b'%', rest @ ..]) if is_hex(rest))
        || matches!(last(6), Some([b'\\', b'u', rest @ ..]) if is_hex(rest))
}

#[cfg(test)]
mod tests {
    use super::super::super::request::Identifier;
    use super::*;

    fn patterns(people: &[&[&str]]) -> Patterns {
        let people: Vec<Identifiers> = people
            .iter()
            .map(|texts| {
                let identifiers = texts.iter().map(|text| Identifier::new("t.c", (*text).to_owned()));
                Identifiers(identifiers.collect())
            })
            .collect();
        Patterns::of(people.iter()).unwrap()
    }

    fn finds(identifier: &str, text: &str) -> bool {
        !patterns(&[&[identifier]]).people(text.as_bytes()).is_empty()
    }

    #[test]
    fn a_person_is_found_however_the_text_is_written() {
        for text in [
            "bob@example.org",
            "From: <BOB@Example.ORG>",
            r#"{"email": "bob@example.org"}"#,
            r#"{"text": "Hi\nbob@example.org"}"#,
            r#"{"text": "Hi\u000abob@example.org"}"#,
            "https://x.test/?mail=bob%40example.org&x=1",
            "https://x.test/?q=to%20bob@example.org",
            "bob@example.org.",
            "“bob@example.org”",
        ] {
            assert!(finds("bob@example.org", text), "{text}");
        }
        let jose = "josé/maría";
        for text in [
            "JOSÉ/MARÍA",
            r"jos\u00e9\/mar\u00eda",
            "jos%C3%A9%2Fmar%C3%ADa",
            "josé/maría",
        ] {
            assert!(finds(jose, text), "{text}");
        }
        assert!(finds("O\"Brien & <Sons>", r#"{"name":"O\"Brien & <Sons>"}"#));
        assert!(finds("O\"Brien & <Sons>", "<n>O\"Brien &amp; &lt;Sons&gt;</n>"));
    }

    #[test]
    fn somebody_else_is_not_taken_for_the_person() {
        for text in ["jacobbob@example.org", "bob@example.organic", "bob@example.com", ""] {
            assert!(!finds("bob@example.org", text), "{text}");
        }
        assert!(!finds("123456", "91234567"));
        assert!(finds("123456", "user:123456,"));
        // What is random means the person inside of anything.
        assert!(finds(
            "8a0f1f3e-1111-4222-8333-944445555666",
            "sess8a0f1f3e-1111-4222-8333-944445555666x"
        ));
    }

    #[test]
    fn an_overlapped_occurrence_is_not_missed() {
        // The first occurrence is a part of a word, the second, which overlaps it, is not.
        assert!(finds("ab-ab-ab", "xab-ab-ab-ab"));
    }

    #[test]
    fn each_person_is_told_apart_and_short_texts_are_left_out() {
        let patterns = patterns(&[&["bob@example.org", "42"], &["eve@example.org"], &["42"]]);
        let people = |text: &str| patterns.people(text.as_bytes()).into_iter().collect::<Vec<_>>();
        assert_eq!(people("bob@example.org eve@example.org bob@example.org"), [0, 1]);
        assert_eq!(people("42"), [0; 0]);
        assert!(!patterns.has_long_number());
    }
}
