//! Which backups stay. A pure function of what there is, the policy and the time.

use std::collections::BTreeSet;
use std::fmt;

use jiff::tz::TimeZone;
use jiff::{Timestamp, Zoned};
use serde::Serialize;

use super::digest::sha256_hex;
use crate::values::Period;

/// A policy: the newest backup of each period, for so many periods that have one; a backup that any
/// rule keeps stays.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Policy {
    /// The newest so many.
    pub last: u32,
    /// Days.
    pub daily: u32,
    /// Weeks, from Monday.
    pub weekly: u32,
    /// Months.
    pub monthly: u32,
    /// Years.
    pub yearly: u32,
    /// All that are younger than this.
    pub within: Option<Period>,
    /// Never fewer than this many.
    pub min: u32,
    /// No rule keeps what is older than this; only [`Reason::Newest`], [`Reason::NewestVerified`] and
    /// [`Reason::Min`] do.
    pub max_age: Option<Period>,
}

/// A backup, as far as the planner cares.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dated {
    /// Its identity.
    pub id: String,
    /// When its snapshot was taken.
    pub at: Timestamp,
    /// Whether it was proved by restoring it.
    pub verified: bool,
    /// Until when the store refuses to delete it, if it does.
    pub locked_until: Option<Timestamp>,
}

/// Why a backup stays.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// It is the newest.
    Newest,
    /// It is the newest that was proved.
    NewestVerified,
    /// It is among the newest so many.
    Last,
    /// It is the newest of its day.
    Daily,
    /// It is the newest of its week.
    Weekly,
    /// It is the newest of its month.
    Monthly,
    /// It is the newest of its year.
    Yearly,
    /// It is young enough.
    Within,
    /// Without it there would be too few.
    Min,
    /// The store does not let go of it yet.
    Locked,
}

/// What is to become of a backup.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Fate {
    /// It stays, for these reasons.
    Keep(BTreeSet<Reason>),
    /// No rule keeps it.
    Remove,
}

/// What is to become of every backup, newest first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// Each backup and its fate.
    pub fates: Vec<(Dated, Fate)>,
}

impl Plan {
    /// The backups to remove, oldest first.
    pub fn removals(&self) -> impl Iterator<Item = &Dated> {
        self.fates
            .iter()
            .rev()
            .filter(|(_, fate)| *fate == Fate::Remove)
            .map(|(backup, _)| backup)
    }

    /// Whether so many would go that somebody should look first: more than half.
    #[must_use]
    pub fn is_drastic(&self) -> bool {
        self.removals().count().saturating_mul(2) > self.fates.len()
    }

    /// Names exactly this set of removals, to confirm it.
    #[must_use]
    pub fn hash(&self) -> String {
        let ids: Vec<&str> = self.removals().map(|backup| backup.id.as_str()).collect();
        sha256_hex(ids.join("\n").as_bytes()).chars().take(12).collect()
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {} backups", self.removals().count(), self.fates.len())
    }
}

/// Decides what stays. The newest always does, and so does the newest that was proved.
#[must_use]
pub fn plan(backups: &[Dated], policy: &Policy, now: Timestamp, zone: &TimeZone) -> Plan {
    let mut newest_first = backups.to_vec();
    newest_first.sort_by(|a, b| (b.at, &b.id).cmp(&(a.at, &a.id)));
    let mut reasons = by_rules(&newest_first, policy, now, zone);
    if let Some(max_age) = &policy.max_age {
        let cutoff = max_age.before(&now.to_zoned(zone.clone()));
        reasons.forget(newest_first.iter().map(|backup| backup.at < cutoff));
    }
    reasons.add(0, Reason::Newest);
    if let Some(index) = newest_first.iter().position(|backup| backup.verified) {
        reasons.add(index, Reason::NewestVerified);
    }
    reasons.fill_up(policy.min as usize);
    // Last, so that a backup that only waits for its lock to end takes no other's place.
    for (index, backup) in newest_first.iter().enumerate() {
        if backup.locked_until.is_some_and(|until| until > now) {
            reasons.add(index, Reason::Locked);
        }
    }
    Plan {
        fates: newest_first.into_iter().zip(reasons.into_fates()).collect(),
    }
}

/// What the rules alone keep.
fn by_rules(newest_first: &[Dated], policy: &Policy, now: Timestamp, zone: &TimeZone) -> Reasons {
    let mut reasons = Reasons(vec![BTreeSet::new(); newest_first.len()]);
    for index in 0..newest_first.len().min(policy.last as usize) {
        reasons.add(index, Reason::Last);
    }
    for (reason, count) in [
        (Reason::Daily, policy.daily),
        (Reason::Weekly, policy.weekly),
        (Reason::Monthly, policy.monthly),
        (Reason::Yearly, policy.yearly),
    ] {
        let mut seen = BTreeSet::new();
        for (index, backup) in newest_first.iter().enumerate() {
            if seen.len() >= count as usize {
                break;
            }
            if seen.insert(period(reason, &backup.at.to_zoned(zone.clone()))) {
                reasons.add(index, reason);
            }
        }
    }
    if let Some(within) = &policy.within {
        let cutoff = within.before(&now.to_zoned(zone.clone()));
        for (index, _) in newest_first
            .iter()
            .enumerate()
            .filter(|(_, backup)| backup.at >= cutoff)
        {
            reasons.add(index, Reason::Within);
        }
    }
    reasons
}

/// Names the period of a rule that an instant falls into.
fn period(rule: Reason, at: &Zoned) -> (i16, i16) {
    match rule {
        Reason::Daily => (at.year(), at.day_of_year()),
        Reason::Weekly => {
            let week = at.date().iso_week_date();
            (week.year(), i16::from(week.week()))
        }
        Reason::Monthly => (at.year(), i16::from(at.month())),
        _ => (at.year(), 0),
    }
}

/// Why each backup stays, newest first.
struct Reasons(Vec<BTreeSet<Reason>>);

impl Reasons {
    fn add(&mut self, index: usize, reason: Reason) {
        if let Some(reasons) = self.0.get_mut(index) {
            reasons.insert(reason);
        }
    }

    /// Forgets why those are kept that are too old.
    fn forget(&mut self, too_old: impl Iterator<Item = bool>) {
        for (reasons, _) in self.0.iter_mut().zip(too_old).filter(|(_, old)| *old) {
            reasons.clear();
        }
    }

    /// Keeps the newest of what no rule keeps, until there are `min`.
    fn fill_up(&mut self, min: usize) {
        let kept = self.0.iter().filter(|reasons| !reasons.is_empty()).count();
        let unkept = self.0.iter_mut().filter(|reasons| reasons.is_empty());
        for reasons in unkept.take(min.saturating_sub(kept)) {
            reasons.insert(Reason::Min);
        }
    }

    fn into_fates(self) -> impl Iterator<Item = Fate> {
        self.0.into_iter().map(|reasons| {
            if reasons.is_empty() {
                Fate::Remove
            } else {
                Fate::Keep(reasons)
            }
        })
    }
}

#[cfg(test)]
mod tests;
