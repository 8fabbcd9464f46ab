use std::collections::BTreeMap;

use jiff::ToSpan;
use jiff::civil::Date;
use proptest::prelude::*;

use super::*;

fn backup(id: &str, at: &str) -> Dated {
    Dated {
        id: id.to_owned(),
        at: at.parse().unwrap(),
        verified: false,
        locked_until: None,
    }
}

fn kept(plan: &Plan) -> Vec<&str> {
    let kept = plan.fates.iter().filter(|(_, fate)| *fate != Fate::Remove);
    kept.map(|(backup, _)| backup.id.as_str()).collect()
}

#[test]
fn a_day_is_a_day_of_the_zone_and_its_newest_stays() {
    let backups = [
        backup("a", "2026-03-28T22:59:00Z"), // 23:59 in Berlin
        backup("b", "2026-03-28T23:00:00Z"), // 00:00 of the next day, the day of the clock change
        backup("c", "2026-03-29T21:59:00Z"), // 23:59 of that day, which has 23 hours
    ];
    let now = "2026-03-29T22:30:00Z".parse().unwrap();
    let policy = Policy {
        daily: 2,
        ..Policy::default()
    };
    let berlin = TimeZone::get("Europe/Berlin").unwrap();
    assert_eq!(kept(&plan(&backups, &policy, now, &berlin)), ["c", "a"]);
    assert_eq!(kept(&plan(&backups, &policy, now, &TimeZone::UTC)), ["c", "b"]);
}

#[test]
fn a_week_runs_over_the_new_year() {
    let backups = [
        backup("monday", "2025-12-29T03:00:00Z"),
        backup("sunday", "2026-01-04T03:00:00Z"),
        backup("next", "2026-01-05T03:00:00Z"),
    ];
    let policy = Policy {
        weekly: 3,
        ..Policy::default()
    };
    let plan = plan(
        &backups,
        &policy,
        "2026-01-06T00:00:00Z".parse().unwrap(),
        &TimeZone::UTC,
    );
    assert_eq!(kept(&plan), ["next", "sunday"]);
}

#[test]
fn within_reaches_to_its_boundary_and_not_further() {
    let backups = [
        backup("out", "2026-02-01T11:59:59.999Z"),
        backup("in", "2026-02-01T12:00:00Z"),
        backup("new", "2026-03-01T11:00:00Z"),
    ];
    let policy = Policy {
        within: Some("1mo".parse().unwrap()),
        ..Policy::default()
    };
    let plan = plan(
        &backups,
        &policy,
        "2026-03-01T12:00:00Z".parse().unwrap(),
        &TimeZone::UTC,
    );
    assert_eq!(kept(&plan), ["new", "in"]);
}

#[test]
fn the_newest_proved_backup_stays_even_when_no_rule_keeps_it() {
    let mut backups: Vec<Dated> = (1..=9)
        .map(|day| backup(&day.to_string(), &format!("2026-01-0{day}T03:00:00Z")))
        .collect();
    backups[1].verified = true;
    backups[3].verified = true;
    let policy = Policy {
        last: 2,
        ..Policy::default()
    };
    let plan = plan(
        &backups,
        &policy,
        "2026-01-10T00:00:00Z".parse().unwrap(),
        &TimeZone::UTC,
    );
    assert_eq!(kept(&plan), ["9", "8", "4"]);
    assert!(plan.is_drastic());
}

#[test]
fn two_backups_of_four_are_not_yet_drastic() {
    let backups: Vec<Dated> = (1..=4)
        .map(|day| backup(&day.to_string(), &format!("2026-01-0{day}T03:00:00Z")))
        .collect();
    let now = "2026-01-05T00:00:00Z".parse().unwrap();
    let with_min = |min| {
        let policy = Policy {
            min,
            ..Policy::default()
        };
        plan(&backups, &policy, now, &TimeZone::UTC)
    };
    assert!(!with_min(2).is_drastic());
    assert!(with_min(1).is_drastic());
    assert_ne!(with_min(2).hash(), with_min(1).hash());
}

#[test]
fn a_year_of_nightly_backups_settles_at_what_the_policy_names() {
    let policy = Policy {
        daily: 7,
        weekly: 5,
        monthly: 12,
        min: 2,
        ..Policy::default()
    };
    let mut held: Vec<Dated> = Vec::new();
    for night in 0..400 {
        let date: Date = "2023-12-20".parse::<Date>().unwrap() + night.days();
        let at = date.at(3, 30, 0, 0).to_zoned(TimeZone::UTC).unwrap().timestamp();
        held.push(Dated {
            id: night.to_string(),
            at,
            verified: false,
            locked_until: None,
        });
        let plan = plan(&held, &policy, at, &TimeZone::UTC);
        assert!(night < 3 || !plan.is_drastic(), "night {night}");
        let removed: Vec<String> = plan.removals().map(|backup| backup.id.clone()).collect();
        assert!(removed.len() <= 3, "night {night} removes {removed:?}");
        held.retain(|backup| !removed.contains(&backup.id));
    }
    let months: BTreeSet<_> = held
        .iter()
        .map(|backup| backup.at.strftime("%Y-%m").to_string())
        .collect();
    assert_eq!(months.len(), 12);
    assert!((19..=24).contains(&held.len()), "{}", held.len());
}

/// The same rules, written the naive way: a backup is the newest of its period if no other one of
/// that period is newer, and its period counts if fewer than so many newer periods have a backup.
fn naive_daily(backups: &[Dated], count: u32) -> BTreeSet<String> {
    let day = |backup: &Dated| backup.at.to_zoned(TimeZone::UTC).date();
    let mut newest: BTreeMap<Date, &Dated> = BTreeMap::new();
    for backup in backups {
        let slot = newest.entry(day(backup)).or_insert(backup);
        if (backup.at, &backup.id) > (slot.at, &slot.id) {
            *slot = backup;
        }
    }
    newest
        .values()
        .rev()
        .take(count as usize)
        .map(|backup| backup.id.clone())
        .collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]
    #[test]
    fn a_plan_keeps_its_promises(
        hours in proptest::collection::vec(0_i64..2000, 0..40),
        verified in proptest::collection::vec(any::<bool>(), 40),
        (last, daily, weekly, monthly, yearly, min) in (0_u32..4, 0_u32..9, 0_u32..5, 0_u32..4, 0_u32..3, 0_u32..6),
        within in proptest::option::of(1_u64..1000),
    ) {
        let start: Timestamp = "2026-02-20T00:00:00Z".parse().unwrap();
        let backups: Vec<Dated> = hours
            .iter()
            .zip(verified)
            .enumerate()
            .map(|(id, (hours, verified))| Dated { id: id.to_string(), at: start + hours.hours(), verified, locked_until: None })
            .collect();
        let now = start + 2001.hours();
        let policy = Policy { last, daily, weekly, monthly, yearly, min, within: within.map(|hours| Period::seconds(hours * 3600)), max_age: None };
        let first = plan(&backups, &policy, now, &TimeZone::UTC);
        let kept: BTreeSet<String> = kept(&first).into_iter().map(str::to_owned).collect();

        prop_assert_eq!(first.fates.len(), backups.len());
        prop_assert!(kept.len() >= backups.len().min(min.max(1).max(last) as usize));
        if let Some(newest) = backups.iter().max_by_key(|backup| (backup.at, backup.id.clone())) {
            prop_assert!(kept.contains(&newest.id));
        }
        if let Some(proved) = backups.iter().filter(|backup| backup.verified).max_by_key(|backup| (backup.at, backup.id.clone())) {
            prop_assert!(kept.contains(&proved.id));
        }
        prop_assert!(naive_daily(&backups, daily).is_subset(&kept));
        if let Some(within) = within {
            let cutoff = now - i64::try_from(within).unwrap().hours();
            for backup in &backups {
                prop_assert!(backup.at < cutoff || kept.contains(&backup.id));
            }
        }
        // Planning again over what stays removes nothing more.
        let rest: Vec<Dated> = backups.iter().filter(|backup| kept.contains(&backup.id)).cloned().collect();
        prop_assert_eq!(plan(&rest, &policy, now, &TimeZone::UTC).removals().count(), 0);
    }
}

#[test]
fn the_29th_of_february_is_a_day_and_the_end_of_its_month() {
    let backups = [
        backup("january", "2028-01-31T03:00:00Z"),
        backup("28th", "2028-02-28T03:00:00Z"),
        backup("29th", "2028-02-29T03:00:00Z"),
        backup("march", "2028-03-01T03:00:00Z"),
    ];
    let now = "2028-03-01T04:00:00Z".parse().unwrap();
    let policy = |daily, monthly| Policy {
        daily,
        monthly,
        ..Policy::default()
    };
    assert_eq!(
        kept(&plan(&backups, &policy(2, 0), now, &TimeZone::UTC)),
        ["march", "29th"]
    );
    let months = plan(&backups, &policy(0, 3), now, &TimeZone::UTC);
    assert_eq!(kept(&months), ["march", "29th", "january"]);
}

#[test]
fn what_is_older_than_max_age_goes_but_never_the_last_ones() {
    let mut backups = vec![
        backup("out", "2027-02-28T11:59:59Z"),
        backup("in", "2027-02-28T12:00:00Z"),
        backup("new", "2028-02-29T11:00:00Z"),
    ];
    let now = "2028-02-29T12:00:00Z".parse().unwrap();
    let policy = Policy {
        last: 9,
        yearly: 9,
        min: 2,
        max_age: Some("1y".parse().unwrap()),
        ..Policy::default()
    };
    assert_eq!(kept(&plan(&backups, &policy, now, &TimeZone::UTC)), ["new", "in"]);
    // The last that is known to be sound is not given up for its age, nor the last two of all.
    backups[0].verified = true;
    assert_eq!(
        kept(&plan(&backups, &policy, now, &TimeZone::UTC)),
        ["new", "in", "out"]
    );
    let years_later = "2040-01-01T00:00:00Z".parse().unwrap();
    backups[0].verified = false;
    assert_eq!(
        kept(&plan(&backups, &policy, years_later, &TimeZone::UTC)),
        ["new", "in"]
    );
}

#[test]
fn a_locked_backup_stays_until_its_lock_ends_and_takes_no_others_place() {
    let mut backups: Vec<Dated> = (1..=5)
        .map(|day| backup(&day.to_string(), &format!("2026-01-0{day}T03:00:00Z")))
        .collect();
    let now: Timestamp = "2026-01-06T00:00:00Z".parse().unwrap();
    backups[0].locked_until = Some(now);
    backups[1].locked_until = Some(now + 1.second());
    let policy = Policy {
        min: 2,
        ..Policy::default()
    };
    let plan = plan(&backups, &policy, now, &TimeZone::UTC);
    assert_eq!(kept(&plan), ["5", "4", "2"]);
    assert_eq!(plan.fates[3].1, Fate::Keep(BTreeSet::from([Reason::Locked])));
}

#[test]
fn after_67_nights_there_is_what_the_policy_names_and_nothing_else() {
    let policy = Policy {
        daily: 7,
        weekly: 4,
        monthly: 3,
        min: 2,
        ..Policy::default()
    };
    let berlin = TimeZone::get("Europe/Berlin").unwrap();
    let mut held: Vec<Dated> = Vec::new();
    for night in 0..67 {
        let date: Date = "2026-01-01".parse::<Date>().unwrap() + night.days();
        let at = date.at(3, 30, 0, 0).to_zoned(berlin.clone()).unwrap().timestamp();
        held.push(Dated {
            id: date.to_string(),
            at,
            verified: false,
            locked_until: None,
        });
        let plan = plan(&held, &policy, at, &berlin);
        let kept: BTreeSet<String> = kept(&plan).into_iter().map(str::to_owned).collect();
        held.retain(|backup| kept.contains(&backup.id));
    }
    let left: Vec<&str> = held.iter().map(|backup| backup.id.as_str()).collect();
    let of_march = [
        "2026-03-01",
        "2026-03-02",
        "2026-03-03",
        "2026-03-04",
        "2026-03-05",
        "2026-03-06",
        "2026-03-07",
        "2026-03-08",
    ];
    assert_eq!(left[..4], ["2026-01-31", "2026-02-15", "2026-02-22", "2026-02-28"]);
    assert_eq!(left[4..], of_march);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]
    #[test]
    fn time_alone_keeps_no_backup_that_it_did_not_keep_before(
        hours in proptest::collection::vec(0_i64..2000, 0..30),
        (last, daily, weekly, monthly, min) in (0_u32..4, 0_u32..9, 0_u32..5, 0_u32..4, 0_u32..6),
        within in proptest::option::of(1_u64..1000),
        later in 0_i64..3000,
        zone in proptest::sample::select(vec!["UTC", "Europe/Berlin", "Australia/Lord_Howe"]),
    ) {
        // A leap day and the clock changes of both hemispheres lie in the range.
        let start: Timestamp = "2028-02-20T00:00:00Z".parse().unwrap();
        let zone = TimeZone::get(zone).unwrap();
        let backups: Vec<Dated> = hours
            .iter()
            .enumerate()
            .map(|(id, hours)| Dated { id: id.to_string(), at: start + hours.hours(), verified: false, locked_until: None })
            .collect();
        let policy = Policy { last, daily, weekly, monthly, min, within: within.map(|hours| Period::seconds(hours * 3600)), ..Policy::default() };
        let now = start + 2001.hours();
        let before = plan(&backups, &policy, now, &zone);
        let after = plan(&backups, &policy, now + later.hours(), &zone);
        let before: BTreeSet<&str> = kept(&before).into_iter().collect();
        for id in kept(&after) {
            prop_assert!(before.contains(id), "{id} is kept only later");
        }
    }

    #[test]
    fn max_age_leaves_what_it_must_and_nothing_more(
        hours in proptest::collection::vec((0_i64..2000, any::<bool>()), 0..30),
        (last, daily, weekly, min) in (0_u32..4, 0_u32..9, 0_u32..5, 0_u32..6),
        max_days in 1_u64..90,
        zone in proptest::sample::select(vec!["UTC", "Europe/Berlin", "Australia/Lord_Howe"]),
    ) {
        let start: Timestamp = "2028-02-20T00:00:00Z".parse().unwrap();
        let zone = TimeZone::get(zone).unwrap();
        let backups: Vec<Dated> = hours
            .iter()
            .enumerate()
            .map(|(id, (hours, verified))| Dated { id: id.to_string(), at: start + hours.hours(), verified: *verified, locked_until: None })
            .collect();
        let max_age = Period::seconds(max_days * 86_400);
        let policy = Policy { last, daily, weekly, min, max_age: Some(max_age), ..Policy::default() };
        let now = start + 2001.hours();
        let first = plan(&backups, &policy, now, &zone);
        let floor = [Reason::Newest, Reason::NewestVerified, Reason::Min];
        for (backup, fate) in &first.fates {
            let old = backup.at < max_age.before(&now.to_zoned(zone.clone()));
            if let (true, Fate::Keep(reasons)) = (old, fate) {
                prop_assert!(reasons.iter().all(|reason| floor.contains(reason)), "{backup:?} {reasons:?}");
            }
        }
        let left = kept(&first);
        prop_assert!(left.len() >= backups.len().min(min.max(1) as usize));
        let rest: Vec<Dated> = backups.iter().filter(|backup| left.contains(&backup.id.as_str())).cloned().collect();
        prop_assert_eq!(plan(&rest, &policy, now, &zone).removals().count(), 0);
    }
}
