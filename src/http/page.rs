//! The status page: one self-contained table, no script.

use jiff::Timestamp;

use super::Sight;

const HEAD: &str = "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\"><meta http-equiv=\"refresh\" content=\"10\">\
<title>pgreeve</title><style>body{font:15px system-ui,sans-serif;margin:2em;color:#222}table{border-collapse:collapse}\
td,th{padding:.35em 1em .35em 0;text-align:left;border-bottom:1px solid #ddd}code{font-size:14px}</style></head><body>";

/// The page as of an instant.
pub(super) fn render(sight: &Sight, now: Timestamp) -> String {
    let mut page = String::from(HEAD);
    page.push_str("<h1>pgreeve on ");
    page.push_str(&escape(&sight.instance));
    page.push_str("</h1><table><tr><th>Database</th><th>Standing</th><th>Running</th></tr>");
    let view = (sight.view)();
    for status in &view.states {
        let running: Vec<&str> = status.running.iter().map(crate::values::Name::as_str).collect();
        push_row(
            &mut page,
            &[
                status.database.as_str(),
                &String::from(&status.standing),
                &running.join(", "),
            ],
        );
    }
    page.push_str(
        "</table><h2>Jobs</h2><table><tr><th>Job</th><th>Database</th><th>Schedule</th><th>Next (UTC)</th></tr>",
    );
    for (job, database, schedule) in &view.jobs {
        let text = format!("{schedule} {}", schedule.timezone().name());
        let next = schedule
            .next_after(now)
            .map(|slot| slot.scheduled_for.to_string())
            .unwrap_or_default();
        push_row(&mut page, &[job.as_str(), database.as_str(), &text, &next]);
    }
    page.push_str("</table><p><code>pgreeve history</code> and <code>pgreeve status</code> tell what ran. <a href=\"/metrics\">Metrics</a></p></body></html>");
    page
}

fn push_row(page: &mut String, cells: &[&str]) {
    page.push_str("<tr>");
    for cell in cells {
        page.push_str("<td>");
        page.push_str(&escape(cell));
        page.push_str("</td>");
    }
    page.push_str("</tr>");
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

    #[test]
    fn text_of_others_cannot_become_markup() {
        assert_eq!(escape("<b a=\"&\">"), "&lt;b a=&quot;&amp;&quot;&gt;");
    }
}
