use super::*;
use crate::audit::AuditLog;
use crate::erasure::proof::{Kept, ResiduePlace, StepAccount, SubjectToken};
use crate::erasure::request::{RequestId, RequestState};

fn at(text: &str) -> Timestamp {
    text.parse().unwrap()
}

const KEY: &str = "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a";

fn example(key: PublicKey) -> Certificate {
    let account = Account {
        request: RequestId("01936f3e-0000-7000-8000-000000000000".parse().unwrap()),
        job: "erase-users".to_owned(),
        database: "churn_saver".to_owned(),
        subject_table: "public.users".to_owned(),
        subject_column: "id".to_owned(),
        subject: SubjectToken {
            key_id: "2026-0123456789abcdef".to_owned(),
            token: "11".repeat(32),
        },
        state: RequestState::CompletedWithExceptions,
        reason: Some("1 column still holds an identifier".to_owned()),
        requested_by: "public.user_deletion_requests".to_owned(),
        extended_months: 0,
        found: Some(true),
        received_at: at("2026-11-01T08:00:00Z"),
        due_at: at("2026-12-01T08:00:00Z"),
        started_at: Some(at("2026-11-21T09:00:00Z")),
        finished_at: Some(at("2026-11-21T09:00:01Z")),
        policy: "sha256:ab".to_owned(),
        approved_by: Some("dba".to_owned()),
        schema_digest: "sha256:cd".to_owned(),
        steps: vec![StepAccount {
            step: 1,
            table: "public.events".to_owned(),
            action: "delete".to_owned(),
            rows: 12,
            held: 0,
            objects: 3,
            object_versions: 0,
        }],
        holds: Vec::new(),
        kept: vec![Kept {
            table: "public.consent_records".to_owned(),
            basis: "Art. 17(3)(b)".to_owned(),
            until: Some("7y".to_owned()),
            rows: 2,
        }],
        residue: Some(Residue {
            places: vec![ResiduePlace {
                table: "audit.log".to_owned(),
                column: "old".to_owned(),
                what: "rows".to_owned(),
                count: 1,
                kept: false,
                remedy: None,
            }],
            unsearched: Vec::new(),
            tables: 20,
            columns: 61,
            identifiers: 2,
            too_short: 0,
        }),
    };
    let circumstances = Circumstances {
        issued_at: at("2026-11-21T09:00:02Z"),
        instance: "db1".to_owned(),
        system_identifier: Some("7439000000000000000".to_owned()),
        ledger: Some(ErasureMark {
            ledger: "0123456789abcdef".to_owned(),
            entries: 3,
            head: Digest::of(b"line"),
        }),
        audit_records: Some((7, 12)),
        second_scan_due_at: Some(at("2026-11-22T09:00:01Z")),
        copies: Copies {
            backups: vec![HoldingBackup {
                id: "01JDQ0000000000000000000AB".to_owned(),
                job: "nightly-backup".to_owned(),
                store: "offsite".to_owned(),
                snapshot_at: at("2026-11-21T03:30:00Z"),
                gone_by: Some(at("2027-11-30T03:30:00Z")),
            }],
            exports: vec![HoldingExport {
                id: "01JQZJ8W3K5V7N2M4P6R8T0XYZ".to_owned(),
                job: "tenant-copy".to_owned(),
                store: "offsite".to_owned(),
                as_of: at("2026-11-20T02:00:00Z"),
                tables: vec!["public.orders".to_owned()],
                gone_by: Some(at("2026-12-20T02:00:00Z")),
            }],
            archives: vec![HoldingArchive {
                job: "purge-events".to_owned(),
                store: "offsite".to_owned(),
                table: "public.events".to_owned(),
                archives: 4,
                gone_by: Some(at("2033-11-21T02:00:00Z")),
            }],
            gone_by: None,
            unknown: Vec::new(),
        },
        recipients: vec!["mailer".to_owned()],
    };
    let mut certificate = Certificate::new(account, circumstances, key);
    "0.1.0".clone_into(&mut certificate.pgreeve_version);
    certificate
}

fn second_scan() -> AddendumEvent {
    AddendumEvent::SecondScan {
        residue: Some(Residue::default()),
        not_searched: None,
        recipients: vec![Answer {
            kind: "notify".to_owned(),
            name: "mailer".to_owned(),
            state: "acknowledged".to_owned(),
            acknowledged_at: Some(at("2026-11-21T09:05:00Z")),
        }],
    }
}

fn signer() -> (tempfile::TempDir, Signer) {
    let dir = tempfile::tempdir().unwrap();
    AuditLog::open(dir.path(), "db1").unwrap();
    let signer = Signer::open(dir.path()).unwrap();
    (dir, signer)
}

#[test]
fn the_stored_form_is_the_published_one() {
    let certificate = example(KEY.parse().unwrap());
    let text = serde_json::to_string_pretty(&certificate).unwrap() + "\n";
    assert_eq!(text, include_str!("certificate_v1.json"));
    assert_eq!(serde_json::from_str::<Certificate>(&text).unwrap(), certificate);
}

#[test]
fn a_certificate_is_checked_with_the_public_key_alone_and_every_byte_counts() {
    let (dir, signer) = signer();
    let key = PublicKey::read(&dir.path().join("public.key")).unwrap();
    for signed in [
        sign(&example(signer.public()), &signer).unwrap(),
        sign(
            &Addendum::new(uuid::Uuid::nil(), None, at("2026-11-22T09:00:00Z"), second_scan(), key),
            &signer,
        )
        .unwrap(),
    ] {
        signed.verify(&key).unwrap();
        serde_json::from_str::<serde_json::Value>(signed.text()).unwrap();
        let bytes = signed.text().as_bytes();
        for place in 0..bytes.len() {
            for bit in [1, 0x20] {
                let mut changed = bytes.to_vec();
                changed[place] ^= bit;
                let Ok(text) = String::from_utf8(changed) else { continue };
                assert!(Signed::found(text).verify(&key).is_err(), "byte {place}, bit {bit}");
            }
        }
        assert!(Signed::found(format!("{}\n", signed.text())).verify(&key).is_err());
        let (_other_dir, other) = super::tests::signer();
        assert!(matches!(signed.verify(&other.public()), Err(NotProven::Signature(_))));
    }
}

#[test]
fn openssl_agrees() {
    let (dir, signer) = signer();
    let document = sign(&example(signer.public()), &signer).unwrap();
    let path = dir.path().join("certificate.json");
    std::fs::write(&path, document.text()).unwrap();
    let script = "head -n -2 certificate.json > signed
        tail -n 2 certificate.json | head -n 1 | tr -dc 0-9a-f | tail -c 128 | xxd -r -p > signature
        openssl pkeyutl -verify -pubin -inkey public.key -rawin -in signed -sigfile signature";
    let Ok(output) = std::process::Command::new("sh")
        .arg("-c")
        .arg(script)
        .current_dir(dir.path())
        .output()
    else {
        panic!("there is no shell");
    };
    let missing = String::from_utf8_lossy(&output.stderr).contains("not found");
    assert!(missing || output.status.success(), "{output:?}");
}

#[test]
fn the_page_says_all_that_the_certificate_says() {
    let certificate = example(KEY.parse().unwrap());
    let addendum = Addendum::new(
        uuid::Uuid::nil(),
        None,
        at("2026-11-22T09:00:00Z"),
        second_scan(),
        KEY.parse().unwrap(),
    );
    for page in [
        text(&certificate, std::slice::from_ref(&addendum)),
        html(&certificate, &[addendum]),
    ] {
        for word in [
            "01936f3e-0000-7000-8000-000000000000",
            "completed_with_exceptions",
            "delete 12 rows",
            "Art. 17(3)(b), for 7y",
            "audit.log.old",
            "01JDQ0000000000000000000AB",
            "gone by 2027-11-30T03:30:00Z",
            "4 of public.events",
            "acknowledged at 2026-11-21T09:05:00Z",
            KEY,
        ] {
            assert!(page.contains(word), "{word} is missing:\n{page}");
        }
    }
    let mut certificate = certificate;
    certificate.erasure.job = "<script>\"&".to_owned();
    let page = html(&certificate, &[]);
    assert!(
        !page.contains("<script>") && page.contains("&lt;script&gt;&quot;&amp;"),
        "{page}"
    );
}
