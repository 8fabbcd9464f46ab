//! The lexical guard of a `where`: a text that stands inside parentheses of a larger statement must
//! not be able to leave them.
//!
//! PostgreSQL's own lexer decides where quotes, comments and parentheses end; this one follows it
//! (`src/backend/parser/scan.l`) and refuses whatever two servers, or two settings of one server,
//! could read differently. Names, types and privileges are the server's business.

use std::iter::Peekable;
use std::str::Chars;

use crate::values::ValueError;

/// Words that begin a clause. An expression never starts with one of them.
const CLAUSES: [&str; 8] = ["where", "and", "or", "order", "limit", "returning", "using", "set"];

/// Checks that a text is lexically one balanced SQL expression: every quote, comment and bracket it
/// opens it also closes, it closes none that it did not open, and it holds no `;`, no parameter
/// (`$1`) and no list.
///
/// # Errors
/// Says what is wrong. The server may still refuse the expression.
pub fn check(text: &str) -> Result<(), ValueError> {
    balanced(text, false)
}

/// Checks that a text can stand between brackets as a query: as [`check`], but it may be a list and
/// begin with any word.
///
/// # Errors
/// Says what is wrong. The server may still refuse the query.
pub fn check_query(text: &str) -> Result<(), ValueError> {
    balanced(text, true)
}

fn balanced(text: &str, query: bool) -> Result<(), ValueError> {
    let mut lexer = Lexer {
        rest: text.chars().peekable(),
        open: Vec::new(),
        tokens: 0,
        query,
    };
    while lexer.token()? {}
    match lexer.open.pop() {
        Some(bracket) => Err(bad(format!("a `{bracket}` is never closed"), BALANCE)),
        None if lexer.tokens == 0 => Err(bad("the condition is empty", "leave `where` out, or write a condition")),
        None => Ok(()),
    }
}

const BALANCE: &str = "write one condition, such as \"status = 'completed'\", with every bracket and quote closed";

fn bad(problem: impl Into<String>, help: &str) -> ValueError {
    ValueError {
        problem: problem.into(),
        help: help.to_owned(),
    }
}

fn starts_word(c: char) -> bool {
    c.is_ascii_alphabetic() || c == '_' || !c.is_ascii()
}

fn continues_word(c: char) -> bool {
    starts_word(c) || c.is_ascii_digit() || c == '$'
}

struct Lexer<'a> {
    rest: Peekable<Chars<'a>>,
    /// The brackets that are open, outermost first.
    open: Vec<char>,
    /// How many tokens were read that are not white space or comments.
    tokens: usize,
    /// Whether it is a query and not one condition.
    query: bool,
}

impl Lexer<'_> {
    /// Reads one token; `false` at the end of the text.
    fn token(&mut self) -> Result<bool, ValueError> {
        let Some(c) = self.rest.next() else {
            return Ok(false);
        };
        match c {
            ' ' | '\t' | '\n' | '\r' | '\x0b' | '\x0c' => return Ok(true),
            '-' if self.rest.next_if_eq(&'-').is_some() => return self.line_comment(),
            '/' if self.rest.next_if_eq(&'*').is_some() => return self.block_comment(),
            '\'' => self.plain_string()?,
            '"' => self.quoted_name()?,
            '$' => self.dollar_string()?,
            '(' | '[' => self.open.push(c),
            ')' | ']' => self.close(c)?,
            ';' => return Err(bad("a `;` would end the statement", BALANCE)),
            ',' if self.open.is_empty() && !self.query => {
                return Err(bad(
                    "a `,` makes a list, not one condition",
                    "join conditions with AND or OR",
                ));
            }
            '\0' => return Err(bad("a NUL character cannot be part of SQL", BALANCE)),
            _ if starts_word(c) => self.word(c)?,
            _ => {}
        }
        self.tokens += 1;
        Ok(true)
    }

    fn close(&mut self, bracket: char) -> Result<(), ValueError> {
        let wanted = if bracket == ')' { '(' } else { '[' };
        match self.open.pop() {
            Some(open) if open == wanted => Ok(()),
            _ => Err(bad(format!("a `{bracket}` closes nothing"), BALANCE)),
        }
    }

    /// A name, a keyword, or the prefix of an escape string.
    fn word(&mut self, first: char) -> Result<(), ValueError> {
        let mut word = String::from(first);
        while let Some(c) = self.rest.next_if(|c| continues_word(*c)) {
            word.push(c);
        }
        if word.eq_ignore_ascii_case("e") && self.rest.next_if_eq(&'\'').is_some() {
            return self.escape_string();
        }
        if self.tokens == 0 && !self.query && CLAUSES.iter().any(|clause| word.eq_ignore_ascii_case(clause)) {
            return Err(bad(
                format!("a condition does not begin with {}", word.to_ascii_uppercase()),
                "write the condition alone, such as \"status = 'completed'\"",
            ));
        }
        Ok(())
    }

    /// `'…'`. Whether a backslash escapes depends on `standard_conforming_strings`, so one that would
    /// decide where the string ends is refused.
    fn plain_string(&mut self) -> Result<(), ValueError> {
        let mut escaping = false;
        while let Some(c) = self.rest.next() {
            match c {
                '\'' if escaping => {
                    return Err(bad(
                        "a backslash before a quote reads differently from server to server",
                        "double a quote inside a string, or write the string as E'…'",
                    ));
                }
                '\'' if self.rest.next_if_eq(&'\'').is_some() => {}
                '\'' => return Ok(()),
                '\0' => break,
                _ => {}
            }
            escaping = c == '\\' && !escaping;
        }
        Err(bad("a string is never closed", BALANCE))
    }

    /// `E'…'`. A literal on the next line goes on with its escapes; read as a plain string, that refuses
    /// every backslash that could make a difference.
    fn escape_string(&mut self) -> Result<(), ValueError> {
        loop {
            match self.rest.next() {
                None | Some('\0') => return Err(bad("a string is never closed", BALANCE)),
                Some('\\') => {
                    self.rest.next();
                }
                Some('\'') if self.rest.next_if_eq(&'\'').is_some() => {}
                Some('\'') => return Ok(()),
                Some(_) => {}
            }
        }
    }

    /// `"…"`.
    fn quoted_name(&mut self) -> Result<(), ValueError> {
        while let Some(c) = self.rest.next() {
            match c {
                '"' if self.rest.next_if_eq(&'"').is_some() => {}
                '"' => return Ok(()),
                '\0' => break,
                _ => {}
            }
        }
        Err(bad("a quoted name is never closed", BALANCE))
    }

    /// `$tag$…$tag$`. A `$` inside a word never comes here.
    fn dollar_string(&mut self) -> Result<(), ValueError> {
        let mut delimiter = String::from('$');
        if let Some(c) = self.rest.next_if(|c| starts_word(*c)) {
            delimiter.push(c);
            while let Some(c) = self.rest.next_if(|c| *c != '$' && continues_word(*c)) {
                delimiter.push(c);
            }
        }
        if self.rest.next_if_eq(&'$').is_none() {
            return Err(bad(
                "a `$` that quotes nothing",
                "parameters such as $1 cannot be used; write the value itself",
            ));
        }
        delimiter.push('$');
        let mut body = String::new();
        for c in self.rest.by_ref() {
            body.push(c);
            if c == '$' && body.ends_with(&delimiter) {
                return Ok(());
            }
            if c == '\0' {
                break;
            }
        }
        Err(bad(
            format!("a string that begins with {delimiter} is never closed"),
            BALANCE,
        ))
    }

    fn line_comment(&mut self) -> Result<bool, ValueError> {
        match self.rest.by_ref().find(|c| matches!(c, '\n' | '\r')) {
            Some(_) => Ok(true),
            // It would hide what the statement goes on with.
            None => Err(bad(
                "a comment with -- is never closed",
                "end the comment with a new line, or write it as /* … */",
            )),
        }
    }

    /// `/* … */`; they nest.
    fn block_comment(&mut self) -> Result<bool, ValueError> {
        let mut depth = 1_usize;
        while let Some(c) = self.rest.next() {
            if c == '/' && self.rest.next_if_eq(&'*').is_some() {
                depth += 1;
            } else if c == '*' && self.rest.next_if_eq(&'/').is_some() {
                depth -= 1;
                if depth == 0 {
                    return Ok(true);
                }
            }
        }
        Err(bad("a comment with /* is never closed", BALANCE))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn one_balanced_expression_passes() {
        for text in [
            "processed",
            "status = 'completed'",
            "name = 'O''Hara; --'",
            "\"odd \"\" name;\" IS NOT NULL",
            "payload->>'user_id' = ANY (ARRAY['a', 'b'])",
            "note = $$it's; (fine$$",
            "note = $tag$ $$ ) $ $tag$",
            "a /* (; /* nested ' */ */ = 1",
            "a -- ( it's\n = 1",
            "a = E'it\\'s; (' and b",
            "path ~ '^\\d+$'",
            "price_in_$ > 1",
            "e'\\\\' = x",
            "x = 1e5 AND y - -1 < 2 AND z / 2 > 1",
            "(a, b) = (1, 2)",
            "naïve = 'ü'",
        ] {
            assert_eq!(check(text), Ok(()), "{text}");
        }
    }

    #[test]
    fn a_text_that_could_leave_its_parentheses_is_refused() {
        for text in [
            "",
            "   ",
            "/* nothing */",
            "a; DROP TABLE users",
            "a) OR (b",
            "(a",
            "a)",
            "(a]",
            "f(a[1)]",
            "'open",
            "'it''s",
            "\"open",
            "E'open\\'",
            "E'open\\",
            "$$open$",
            "$a$open$b$",
            "a /* open",
            "a /* /* */",
            "a -- the rest is hidden",
            "a = $1",
            "a = 'x\\' OR b --'\n",
            "E'a'\n'\\' ; --'\n",
            "E'a' -- go on\n '\\''",
            "a, b",
            "WHERE a",
            "a\0",
            "'\0'",
        ] {
            assert!(check(text).is_err(), "{text}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(256))]

        #[test]
        fn any_text_is_answered(text in any::<String>()) {
            let _ = check(&text);
        }

        /// Quoting is what makes any text harmless: the reference is PostgreSQL's rule to double quotes.
        #[test]
        fn any_quoted_text_is_one_expression(text in "[^\\\\\0]*", tag in "[a-z]{1,3}") {
            prop_assert!(check(&crate::postgres::quote::literal(&text)).is_ok());
            prop_assert!(check(&crate::postgres::quote::identifier(&text)).is_ok());
            let block = text.replace(['/', '*'], "");
            let comment = format!("a /* {block} */");
            prop_assert!(check(&comment).is_ok());
            let dollar = text.replace('$', "");
            let quoted = format!("${tag}${dollar}${tag}$");
            prop_assert!(check(&quoted).is_ok());
        }

        /// What passes can stand between parentheses, and two that pass can stand side by side.
        #[test]
        fn what_passes_composes(text in "['\"$a();/*\\- \n\\\\e]{0,12}", other in "['\"$a();/*\\- \n\\\\e]{0,12}") {
            if check(&text).is_ok() {
                let wrapped = format!("({text}\n)");
                prop_assert!(check(&wrapped).is_ok());
                if check(&other).is_ok() {
                    let both = format!("({text}\n) AND ({other}\n)");
                    prop_assert!(check(&both).is_ok());
                }
            }
        }
    }
}
