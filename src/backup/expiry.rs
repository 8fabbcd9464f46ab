//! When each backup will be gone, if the jobs go on as they are configured.

use std::collections::{BTreeMap, BTreeSet};

use jiff::tz::TimeZone;
use jiff::{Span, Timestamp};

use super::keep::{Dated, Fate, Policy, Reason, plan};

/// How far the forecast looks: longer than any `keep` that somebody means.
const DAYS: u32 = 40 * 366;

/// The end of each backup, by its identity: the policy is applied day by day to what there is and a
/// backup more each day. `None` for one that nothing removes: also for the newest that was proved,
/// which stays until a later one is proved, and nobody knows when that will be.
#[must_use]
pub fn forecast(
    backups: &[Dated],
    policy: &Policy,
    now: Timestamp,
    zone: &TimeZone,
) -> BTreeMap<String, Option<Timestamp>> {
    let mut ends: BTreeMap<String, Option<Timestamp>> =
        backups.iter().map(|backup| (backup.id.clone(), None)).collect();
    let mut left: BTreeSet<String> = ends.keys().cloned().collect();
    let mut held = backups.to_vec();
    let mut day = now.to_zoned(zone.clone());
    for number in 0..DAYS {
        if number > 0 {
            let Ok(next) = day.checked_add(Span::new().days(1)) else {
                break;
            };
            day = next;
            held.push(Dated {
                // Sorts after every identity of a backup.
                id: format!("~{number:05}"),
                at: day.timestamp(),
                verified: false,
                locked_until: None,
            });
        }
        let mut lasting = true;
        let fates = plan(&held, policy, day.timestamp(), zone).fates;
        held = Vec::with_capacity(fates.len());
        for (backup, fate) in fates {
            match fate {
                Fate::Keep(reasons) => {
                    lasting &= !left.contains(&backup.id) || reasons == BTreeSet::from([Reason::NewestVerified]);
                    held.push(backup);
                }
                Fate::Remove => {
                    if left.remove(&backup.id) {
                        ends.insert(backup.id, Some(day.timestamp()));
                    }
                }
            }
        }
        if left.is_empty() || (lasting && number > 0) {
            break;
        }
    }
    ends
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    fn backup(id: &str, time: &str, verified: bool) -> Dated {
        Dated {
            id: id.to_owned(),
            at: at(time),
            verified,
            locked_until: None,
        }
    }

    #[test]
    fn each_backup_goes_when_the_last_rule_lets_it_go() {
        let policy = Policy {
            daily: 7,
            monthly: 3,
            min: 2,
            ..Policy::default()
        };
        let backups = [
            backup("a", "2026-01-31T03:00:00Z", false),
            backup("b", "2026-02-10T03:00:00Z", false),
        ];
        let ends = forecast(&backups, &policy, at("2026-02-10T12:00:00Z"), &TimeZone::UTC);
        // January's backup stays until a backup of April exists, February's until its day is the eighth.
        assert_eq!(ends["a"], Some(at("2026-04-01T12:00:00Z")));
        assert_eq!(ends["b"], Some(at("2026-02-17T12:00:00Z")));
    }

    #[test]
    fn nobody_knows_when_the_newest_proved_backup_goes() {
        let policy = Policy {
            last: 2,
            ..Policy::default()
        };
        let backups = [
            backup("a", "2026-01-01T03:00:00Z", true),
            backup("b", "2026-01-02T03:00:00Z", false),
        ];
        let ends = forecast(&backups, &policy, at("2026-01-02T12:00:00Z"), &TimeZone::UTC);
        assert_eq!(ends["a"], None);
        assert_eq!(ends["b"], Some(at("2026-01-04T12:00:00Z")));
    }

    #[test]
    fn a_policy_of_centuries_ends_the_forecast_and_not_the_program() {
        let policy = Policy {
            yearly: 100,
            ..Policy::default()
        };
        let backups = [backup("a", "2026-01-01T03:00:00Z", false)];
        let ends = forecast(&backups, &policy, at("2026-01-02T12:00:00Z"), &TimeZone::UTC);
        assert!(ends["a"].is_none_or(|end| end > at("2026-01-02T12:00:00Z")));
    }
}
