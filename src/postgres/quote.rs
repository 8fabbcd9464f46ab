//! The one place where names and literals are made safe for SQL text.

/// A name in double quotes, as `quote_ident` would write it if it always quoted.
#[must_use]
pub fn identifier(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// `"schema"."table"`.
#[must_use]
pub fn qualified(schema: &str, name: &str) -> String {
    format!("{}.{}", identifier(schema), identifier(name))
}

/// A string literal that reads the same whatever `standard_conforming_strings` is.
#[must_use]
pub fn literal(text: &str) -> String {
    if text.contains('\\') {
        format!("E'{}'", text.replace('\\', "\\\\").replace('\'', "''"))
    } else {
        format!("'{}'", text.replace('\'', "''"))
    }
}

/// Texts as PostgreSQL writes an array of them; to be quoted as a [`literal`] in its turn.
#[must_use]
pub fn array<T: AsRef<str>>(items: &[T]) -> String {
    let items: Vec<String> = (items.iter())
        .map(|item| format!("\"{}\"", item.as_ref().replace('\\', "\\\\").replace('"', "\\\"")))
        .collect();
    format!("{{{}}}", items.join(","))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quotes_inside_names_and_literals_are_doubled() {
        assert_eq!(qualified("a", "say \"x\""), "\"a\".\"say \"\"x\"\"\"");
        assert_eq!(literal("O'Hara"), "'O''Hara'");
        assert_eq!(literal("a\\'b"), "E'a\\\\''b'");
        assert_eq!(array(&["a,\"b", "\\", ""]), r#"{"a,\"b","\\",""}"#);
    }
}
