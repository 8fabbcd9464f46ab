//! The certificate for people: a text, and a page that needs nothing but itself.

use std::fmt::Write;

use super::{Addendum, AddendumEvent, Certificate};
use crate::erasure::proof::Residue;

/// A heading and its lines, each a label and a value.
type Part = (&'static str, Vec<(String, String)>);

/// The certificate and what was added to it, as text.
#[must_use]
pub fn text(certificate: &Certificate, addenda: &[Addendum]) -> String {
    let mut text = format!("Certificate of erasure {}\n", certificate.erasure.request);
    for (heading, lines) in parts(certificate, addenda) {
        let _ = writeln!(text, "\n{heading}");
        for (label, value) in lines {
            let _ = writeln!(text, "  {label:24}  {value}");
        }
    }
    text
}

/// The same as a page of HTML without scripts, styles or images from elsewhere.
#[must_use]
pub fn html(certificate: &Certificate, addenda: &[Addendum]) -> String {
    let title = format!("Certificate of erasure {}", certificate.erasure.request);
    let mut page = format!(
        "<!doctype html>\n<html lang=\"en\">\n<meta charset=\"utf-8\">\n<title>{title}</title>\n<style>\n\
         body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }}\n\
         th {{ text-align: left; vertical-align: top; padding-right: 2rem; font-weight: normal; color: #555; }}\n\
         td {{ overflow-wrap: anywhere; }}\n</style>\n<h1>{title}</h1>\n"
    );
    for (heading, lines) in parts(certificate, addenda) {
        let _ = writeln!(page, "<h2>{heading}</h2>\n<table>");
        for (label, value) in lines {
            let _ = writeln!(page, "<tr><th>{}<td>{}", escape(&label), escape(&value));
        }
        page.push_str("</table>\n");
    }
    page
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
}

fn line(label: &str, value: impl std::fmt::Display) -> (String, String) {
    (label.to_owned(), value.to_string())
}

fn parts(certificate: &Certificate, addenda: &[Addendum]) -> Vec<Part> {
    let mut parts = vec![
        ("Request", request(certificate)),
        ("What was done", steps(certificate)),
        ("What is kept", kept(certificate)),
        (
            "What was found afterwards",
            residue(certificate.erasure.residue.as_ref()),
        ),
        ("Copies that still hold the subject", copies(certificate)),
        (
            "Recipients",
            certificate
                .recipients
                .iter()
                .map(|name| line(name, "is told"))
                .collect(),
        ),
        (
            "Out of reach",
            certificate
                .out_of_reach
                .iter()
                .map(|what| line("ages out", what))
                .collect(),
        ),
        ("Record", record(certificate)),
    ];
    parts.extend(addenda.iter().map(addendum));
    parts.retain(|(_, lines)| !lines.is_empty());
    parts
}

fn request(certificate: &Certificate) -> Vec<(String, String)> {
    let erasure = &certificate.erasure;
    let mut lines = vec![
        line("request", erasure.request),
        line("subject (keyed digest)", &erasure.subject.token),
        line("key of the digest", &erasure.subject.key_id),
        line("database", &erasure.database),
        line("job", &erasure.job),
        line("outcome", erasure.state.as_str()),
    ];
    if erasure.found == Some(false) {
        lines.push(line("note", "the subject was not in the database"));
    }
    lines.extend(erasure.reason.as_ref().map(|reason| line("reason", reason)));
    lines.push(line("requested by", &erasure.requested_by));
    lines.push(line("received", erasure.received_at));
    lines.push(line("due", erasure.due_at));
    if erasure.extended_months > 0 {
        lines.push(line("extended by months", erasure.extended_months));
    }
    lines.extend(erasure.finished_at.map(|at| line("finished", at)));
    lines.extend(erasure.approved_by.as_ref().map(|who| line("policy approved by", who)));
    lines
}

fn steps(certificate: &Certificate) -> Vec<(String, String)> {
    let steps = certificate.erasure.steps.iter().map(|step| {
        let held = if step.held > 0 {
            format!(", {} held", step.held)
        } else {
            String::new()
        };
        let objects = match (step.objects, step.object_versions) {
            (0, _) => String::new(),
            (gone, 0) => format!(", with {gone} objects"),
            (gone, stay) => format!(", with {gone} objects, of which the store keeps {stay} older versions"),
        };
        line(
            &step.table,
            format!("{} {} rows{objects}{held}", step.action, step.rows),
        )
    });
    let holds = certificate.erasure.holds.iter().map(|hold| line("legal hold", hold));
    steps.chain(holds).collect()
}

fn kept(certificate: &Certificate) -> Vec<(String, String)> {
    let kept = certificate.erasure.kept.iter().map(|kept| {
        let until = kept
            .until
            .as_ref()
            .map(|until| format!(", for {until}"))
            .unwrap_or_default();
        line(&kept.table, format!("{} rows, {}{until}", kept.rows, kept.basis))
    });
    kept.collect()
}

fn residue(residue: Option<&Residue>) -> Vec<(String, String)> {
    let Some(residue) = residue else {
        return vec![line("search", "none yet")];
    };
    let mut lines = vec![line(
        "searched",
        format!(
            "{} identifiers in {} columns of {} tables; {} identifiers are too short to mean anybody",
            residue.identifiers, residue.columns, residue.tables, residue.too_short
        ),
    )];
    if residue.is_clean() {
        lines.push(line("result", "nothing but what is kept"));
    }
    for place in &residue.places {
        let kept = if place.kept { ", kept" } else { "" };
        let what = format!("{} {}{kept}", place.count, place.what);
        lines.push(line(&format!("{}.{}", place.table, place.column), what));
        lines.extend(place.remedy.as_ref().map(|remedy| line("remedy", remedy)));
    }
    lines.extend(residue.unsearched.iter().map(|what| line("not searched", what)));
    lines
}

fn copies(certificate: &Certificate) -> Vec<(String, String)> {
    let copies = &certificate.copies;
    let mut lines = Vec::new();
    for backup in &copies.backups {
        let gone = backup
            .gone_by
            .map_or_else(|| "no date is known".to_owned(), |at| format!("gone by {at}"));
        let what = format!(
            "of {} in {}, snapshot of {}: {gone}",
            backup.job, backup.store, backup.snapshot_at
        );
        lines.push(line(&format!("backup {}", backup.id), what));
    }
    for export in &copies.exports {
        let gone = export
            .gone_by
            .map_or_else(|| "no date is known".to_owned(), |at| format!("gone by {at}"));
        let what = format!(
            "of {} in {}, rows of {} as of {}: {gone}",
            export.job,
            export.store,
            export.tables.join(", "),
            export.as_of
        );
        lines.push(line(&format!("export {}", export.id), what));
    }
    for archive in &copies.archives {
        let gone = archive
            .gone_by
            .map_or("kept for ever".to_owned(), |at| format!("the last is gone by {at}"));
        let what = format!(
            "{} of {} by {} in {}, {gone}",
            archive.archives, archive.table, archive.job, archive.store
        );
        lines.push(line("archives", what));
    }
    lines.extend(copies.unknown.iter().map(|what| line("not known", what)));
    if lines.is_empty() {
        lines.push(line("copies", "none that pgreeve has made"));
    }
    lines.extend(copies.gone_by.map(|at| line("the last is gone by", at)));
    lines
}

fn record(certificate: &Certificate) -> Vec<(String, String)> {
    let mut lines = vec![
        line("policy", &certificate.erasure.policy),
        line("schema in reach", &certificate.erasure.schema_digest),
    ];
    lines.extend(certificate.system_identifier.as_ref().map(|id| line("server", id)));
    lines.extend(
        certificate
            .audit_records
            .map(|(from, to)| line("audit records", format!("after {from}, up to {to}"))),
    );
    lines.extend(
        certificate
            .ledger
            .as_ref()
            .map(|mark| line("ledger of erasures", format!("{}, entry {}", mark.ledger, mark.entries))),
    );
    lines.push(line("issued", certificate.issued_at));
    lines.push(line(
        "issued by",
        format!("pgreeve {} on {}", certificate.pgreeve_version, certificate.instance),
    ));
    lines.push(line("signed with", certificate.public_key));
    lines
}

fn addendum(addendum: &Addendum) -> Part {
    match &addendum.event {
        AddendumEvent::SecondScan {
            residue: found,
            not_searched,
            recipients,
        } => {
            let mut lines = vec![line("issued", addendum.issued_at)];
            match not_searched {
                Some(cause) => lines.push(line("not searched", cause)),
                None => lines.extend(residue(found.as_ref())),
            }
            for answer in recipients {
                let at = answer.acknowledged_at.map(|at| format!(" at {at}")).unwrap_or_default();
                lines.push(line(
                    &format!("{} {}", answer.kind, answer.name),
                    format!("{}{at}", answer.state),
                ));
            }
            ("Addendum: the second search", lines)
        }
        AddendumEvent::Replay {
            restored,
            backup,
            found,
            steps,
            residue: left,
        } => {
            let mut lines = vec![line("issued", addendum.issued_at), line("restored", restored)];
            lines.extend(backup.as_ref().map(|id| line("backup", id)));
            lines.push(line(
                "the subject was in it",
                if *found {
                    "yes, and was erased before it opened"
                } else {
                    "no"
                },
            ));
            lines.extend(
                steps
                    .iter()
                    .map(|step| line(&step.table, format!("{} {} rows", step.action, step.rows))),
            );
            if *found {
                lines.extend(residue(left.as_ref()));
            }
            ("Addendum: a restore", lines)
        }
    }
}
