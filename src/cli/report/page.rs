//! A report as text, as CSV and as a page that needs nothing else. All three are made of the same parts.

use super::super::output;

/// A table with its heading.
pub(super) struct Part {
    pub(super) title: &'static str,
    pub(super) columns: Vec<&'static str>,
    pub(super) rows: Vec<Vec<String>>,
}

/// As text for a terminal.
pub(super) fn text(title: &str, parts: &[Part]) {
    output::line(title);
    for part in parts {
        output::line("");
        output::line(&part.title.to_uppercase());
        if part.rows.is_empty() {
            output::line("none");
        } else {
            output::table(&part.columns, &part.rows);
        }
    }
}

/// One line a value, so that parts with different columns share a file: part, row, column, value.
pub(super) fn csv(parts: &[Part]) -> String {
    let mut text = "part,row,column,value\r\n".to_owned();
    for part in parts {
        for (number, row) in (1_usize..).zip(&part.rows) {
            for (column, value) in part.columns.iter().zip(row) {
                let number = number.to_string();
                let fields = [part.title, number.as_str(), *column, value.as_str()].map(quoted);
                text.push_str(&fields.join(","));
                text.push_str("\r\n");
            }
        }
    }
    text
}

/// As RFC 4180 has it; and no value can become a formula of a spreadsheet.
fn quoted(value: &str) -> String {
    let guard = if value.starts_with(['=', '+', '-', '@', '\t', '\r']) {
        "'"
    } else {
        ""
    };
    format!("\"{guard}{}\"", value.replace('"', "\"\""))
}

/// A page without scripts, and without anything to be loaded.
pub(super) fn html(title: &str, parts: &[Part]) -> String {
    let mut page = format!(
        "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\"><title>{0}</title><style>\
         body{{font:15px/1.5 sans-serif;margin:2em;max-width:80em}}table{{border-collapse:collapse}}\
         td,th{{border-bottom:1px solid #bbb;padding:.2em .8em .2em 0;text-align:left;vertical-align:top;overflow-wrap:anywhere}}\
         </style></head><body><h1>{0}</h1>",
        escape(title)
    );
    for part in parts {
        element(&mut page, "h2", part.title);
        if part.rows.is_empty() {
            page.push_str("<p>none</p>");
            continue;
        }
        page.push_str("<table>");
        line(&mut page, "th", part.columns.iter().copied());
        for row in &part.rows {
            line(&mut page, "td", row.iter().map(String::as_str));
        }
        page.push_str("</table>");
    }
    page.push_str("</body></html>\n");
    page
}

fn line<'a>(page: &mut String, tag: &str, cells: impl Iterator<Item = &'a str>) {
    page.push_str("<tr>");
    for cell in cells {
        element(page, tag, cell);
    }
    page.push_str("</tr>");
}

fn element(page: &mut String, tag: &str, text: &str) {
    for part in ["<", tag, ">", &escape(text), "</", tag, ">"] {
        page.push_str(part);
    }
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts() -> Vec<Part> {
        vec![Part {
            title: "jobs",
            columns: vec!["job", "reason"],
            rows: vec![vec!["purge".to_owned(), "=1+1 \"<script>\", & more".to_owned()]],
        }]
    }

    #[test]
    fn text_of_others_becomes_neither_markup_nor_a_formula() {
        assert_eq!(
            csv(&parts()),
            "part,row,column,value\r\n\"jobs\",\"1\",\"job\",\"purge\"\r\n\"jobs\",\"1\",\"reason\",\"'=1+1 \"\"<script>\"\", & more\"\r\n"
        );
        let page = html("a < b", &parts());
        assert!(page.contains("&lt;script&gt;") && !page.contains("<script"), "{page}");
        assert!(page.contains("<title>a &lt; b</title>"), "{page}");
    }
}
