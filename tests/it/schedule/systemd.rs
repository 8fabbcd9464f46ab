//! What `systemd-analyze calendar` says of the same schedules, where both can express them.

use std::process::Command;

use jiff::Timestamp;
use pgreeve::schedule::cron::Schedule;

/// How many elapses are compared after each start.
const ELAPSES: usize = 12;

/// The same schedule, in cron's words and in systemd's.
const SCHEDULES: &[(&str, &str)] = &[
    ("0 2 * * *", "*-*-* 02:00:00"),
    ("30 1 * * *", "*-*-* 01:30:00"),
    ("30 2 * * *", "*-*-* 02:30:00"),
    ("0 0 * * *", "*-*-* 00:00:00"),
    ("*/15 * * * *", "*-*-* *:00/15:00"),
    ("5 */6 * * *", "*-*-* 00/6:05:00"),
    ("30 3 * * Sun", "Sun *-*-* 03:30:00"),
    ("0 9-17 * * Mon-Fri", "Mon..Fri *-*-* 09..17:00:00"),
    ("0 4 1,15 * *", "*-*-1,15 04:00:00"),
    ("0 4 1 1,7 *", "*-1,7-1 04:00:00"),
    ("45 23 L * *", "*-*~1 23:45:00"),
    ("0 6 13 * +Fri", "Fri *-*-13 06:00:00"),
    ("0 6 29 2 *", "*-2-29 06:00:00"),
];

/// Zones, each with a start on a calm day and one shortly before each clock change of 2026.
const STARTS: &[(&str, &[&str])] = &[
    ("UTC", &["2026-06-10 12:00:00"]),
    (
        "America/New_York",
        &[
            "2026-06-10 12:00:00",
            "2026-03-07 12:00:00",
            "2026-10-31 12:00:00",
            "2026-11-01 04:40:00",
        ],
    ),
    (
        "Europe/London",
        &["2026-06-10 12:00:00", "2026-03-28 12:00:00", "2026-10-24 12:00:00"],
    ),
    (
        "America/Santiago",
        &["2026-06-10 12:00:00", "2026-04-04 12:00:00", "2026-09-05 12:00:00"],
    ),
    (
        "Africa/Cairo",
        &["2026-06-10 12:00:00", "2026-04-23 12:00:00", "2026-10-29 12:00:00"],
    ),
];

/// Where the two differ: schedule, zone, start, the slots that only we have, and why. An older
/// systemd gives up instead where the slots end with "fails". Ours are those of the table worked out
/// by hand, or follow from a row of it.
const DISAGREEMENTS: &[(&str, &str, &str, &[&str], &str)] = &[
    (
        "30 2 * * *",
        "America/New_York",
        "2026-03-07 12:00:00",
        &["2026-03-08T07:00:00Z"],
        GAP,
    ),
    (
        "0 2 * * *",
        "America/New_York",
        "2026-03-07 12:00:00",
        &["2026-03-08T07:00:00Z"],
        GAP,
    ),
    (
        "30 1 * * *",
        "Europe/London",
        "2026-03-28 12:00:00",
        &["2026-03-29T01:00:00Z"],
        GAP,
    ),
    (
        "0 0 * * *",
        "America/Santiago",
        "2026-09-05 12:00:00",
        &["2026-09-06T04:00:00Z"],
        GAP,
    ),
    (
        "0 0 * * *",
        "Africa/Cairo",
        "2026-04-23 12:00:00",
        &["2026-04-23T22:00:00Z"],
        GAP,
    ),
    (
        "*/15 * * * *",
        "America/New_York",
        "2026-11-01 04:40:00",
        &[
            "2026-11-01T06:00:00Z",
            "2026-11-01T06:15:00Z",
            "2026-11-01T06:30:00Z",
            "2026-11-01T06:45:00Z",
        ],
        FOLD,
    ),
    (
        "5 */6 * * *",
        "America/Santiago",
        "2026-09-05 12:00:00",
        &["fails"],
        MIDNIGHT,
    ),
    (
        "5 */6 * * *",
        "Africa/Cairo",
        "2026-04-23 12:00:00",
        &["fails"],
        MIDNIGHT,
    ),
];

const GAP: &str = "systemd skips a time that does not exist; a fixed job must not lose its day";
const FOLD: &str = "systemd skips the second pass; an interval job runs at every real occurrence";
const MIDNIGHT: &str = "systemd 252 finds no next elapse when the gap begins at midnight";

fn systemd(expression: &str, zone: &str, start: &str) -> Option<Result<Vec<Timestamp>, String>> {
    let output = Command::new("systemd-analyze")
        .env("TZ", "UTC")
        .env("LC_ALL", "C")
        .arg("calendar")
        .arg(format!("--iterations={ELAPSES}"))
        .arg(format!("--base-time={start} UTC"))
        .arg(format!("{expression} {zone}"))
        .output()
        .ok()?;
    let text = String::from_utf8(output.stdout).unwrap();
    if !output.status.success() {
        return Some(Err(String::from_utf8_lossy(&output.stderr).trim().to_owned()));
    }
    let elapse = |line: &str| {
        let line = line.trim();
        let rest = line
            .strip_prefix("Next elapse: ")
            .or_else(|| line.strip_prefix("Iter. #"))?;
        let words: Vec<&str> = rest.trim_end_matches(" UTC").split_whitespace().rev().take(2).collect();
        Some(format!("{}T{}Z", words.get(1)?, words.first()?).parse().unwrap())
    };
    Some(Ok(text.lines().filter_map(elapse).collect()))
}

#[test]
fn systemd_agrees_but_for_gaps_and_folds() {
    let mut compared = 0;
    for (zone, starts) in STARTS {
        for start in *starts {
            for (cron, expression) in SCHEDULES {
                let Some(theirs) = systemd(expression, zone, start) else {
                    println!("systemd-analyze is not installed; nothing was compared");
                    return;
                };
                let schedule = Schedule::parse(cron, zone.parse().unwrap()).unwrap();
                let after: Timestamp = format!("{}Z", start.replace(' ', "T")).parse().unwrap();
                let ours: Vec<Timestamp> = schedule
                    .between(after, Timestamp::MAX)
                    .map(|slot| slot.scheduled_for)
                    .take(ELAPSES)
                    .collect();
                let known = DISAGREEMENTS
                    .iter()
                    .find(|row| (row.0, row.1, row.2) == (*cron, *zone, *start));
                let context = format!("{cron} in {zone} from {start}");
                match (known, theirs) {
                    (None, theirs) => assert_eq!(Ok(ours), theirs, "{context}"),
                    (Some((.., only_ours, reason)), Ok(theirs)) => {
                        let extra = |at: &&Timestamp| !theirs.contains(at) && Some(*at) <= theirs.last();
                        let extra: Vec<String> = ours.iter().filter(extra).map(ToString::to_string).collect();
                        assert!(
                            extra.is_empty() || extra == *only_ours,
                            "{context}: {reason}: {extra:?}"
                        );
                    }
                    (Some((.., only_ours, reason)), Err(error)) => {
                        assert_eq!(*only_ours, ["fails"], "{context}: {reason}: {error}");
                    }
                }
                compared += 1;
            }
        }
    }
    assert_eq!(compared, 14 * SCHEDULES.len());
}
