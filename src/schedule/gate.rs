//! Which of the runs that wait may start now: one of each job, none beside a run that uses the same
//! thing, no more than the database may carry, the most urgent first.
//!
//! What is decided here keeps this daemon's runs from waiting in open sessions. The locks that each
//! run takes on its own session are what really keeps runs apart, also those of other processes.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use jiff::Timestamp;

use crate::values::JobName;

/// A run that waits.
#[derive(Debug, Clone)]
pub struct Waiting {
    /// Its job.
    pub job: JobName,
    /// Its urgency; the smallest goes first.
    pub priority: u8,
    /// Its slot; of equal urgency the oldest goes first.
    pub slot: Timestamp,
    /// What no other run may use meanwhile.
    pub resources: Vec<String>,
}

/// A run that is under way.
#[derive(Debug, Clone)]
pub struct Running {
    /// Its job.
    pub job: JobName,
    /// What no other run may use meanwhile.
    pub resources: Vec<String>,
}

/// Why a run does not start yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Held {
    /// An earlier run of the same job goes first.
    SameJob,
    /// Another run uses something, or waits for it with more urgency.
    Resource {
        /// What it is.
        name: String,
        /// The other job.
        job: JobName,
    },
    /// As many runs are under way as the database may carry.
    Budget(usize),
}

impl fmt::Display for Held {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::SameJob => f.write_str("an earlier run of the job"),
            Self::Resource { name, job } => write!(f, "the {name}, which {job} has"),
            Self::Budget(most) => write!(f, "one of the {most} runs of the database to end (max_runs)"),
        }
    }
}

/// Decides about every run that waits: `None` starts, in the order of `waiting`.
#[must_use]
pub fn decide(waiting: &[Waiting], running: &[Running], max_runs: usize) -> Vec<Option<Held>> {
    let mut order: Vec<usize> = (0..waiting.len()).collect();
    order.sort_by_key(|index| {
        let run = &waiting[*index];
        (run.priority, run.slot, &run.job)
    });
    let mut jobs: BTreeSet<&JobName> = running.iter().map(|run| &run.job).collect();
    let mut taken: BTreeMap<&str, &JobName> = BTreeMap::new();
    for run in running {
        taken.extend(run.resources.iter().map(|name| (name.as_str(), &run.job)));
    }
    let mut room = max_runs.saturating_sub(running.len());
    let mut decisions = vec![None; waiting.len()];
    for index in order {
        let run = &waiting[index];
        decisions[index] = if jobs.contains(&run.job) {
            Some(Held::SameJob)
        } else {
            // A run that is held keeps what it waits for from less urgent ones, else a stream of
            // these could hold it for ever.
            let conflict = conflict(&run.resources, &taken);
            for name in &run.resources {
                taken.entry(name).or_insert(&run.job);
            }
            jobs.insert(&run.job);
            if conflict.is_some() {
                conflict
            } else if room == 0 {
                Some(Held::Budget(max_runs))
            } else {
                room -= 1;
                None
            }
        };
    }
    decisions
}

fn conflict(wanted: &[String], taken: &BTreeMap<&str, &JobName>) -> Option<Held> {
    wanted.iter().find_map(|name| {
        let job = taken.get(name.as_str())?;
        Some(Held::Resource {
            name: name.clone(),
            job: (*job).clone(),
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> JobName {
        text.parse().unwrap()
    }

    fn waiting(job: &str, priority: u8, minute: i64, resources: &[&str]) -> Waiting {
        Waiting {
            job: name(job),
            priority,
            slot: Timestamp::from_second(minute * 60).unwrap(),
            resources: resources.iter().map(ToString::to_string).collect(),
        }
    }

    fn running(job: &str, resources: &[&str]) -> Running {
        Running {
            job: name(job),
            resources: resources.iter().map(ToString::to_string).collect(),
        }
    }

    fn started(waiting: &[Waiting], running: &[Running], max_runs: usize) -> Vec<String> {
        let decisions = decide(waiting, running, max_runs);
        let started = waiting.iter().zip(decisions).filter(|(_, held)| held.is_none());
        started.map(|(run, _)| run.job.to_string()).collect()
    }

    #[test]
    fn the_most_urgent_start_first_and_no_more_than_there_is_room_for() {
        let all = [
            waiting("sweep", 3, 1, &[]),
            waiting("purge", 2, 2, &[]),
            waiting("dump", 1, 3, &[]),
        ];
        assert_eq!(started(&all, &[], 4), ["sweep", "purge", "dump"]);
        assert_eq!(started(&all, &[], 2), ["purge", "dump"]);
        assert_eq!(started(&all, &[running("other", &[])], 2), ["dump"]);
        assert_eq!(decide(&all, &[running("other", &[])], 2)[0], Some(Held::Budget(2)));
    }

    #[test]
    fn one_run_of_a_job_at_a_time_the_oldest_first() {
        let all = [waiting("purge", 2, 2, &[]), waiting("purge", 2, 1, &[])];
        assert_eq!(decide(&all, &[], 4), [Some(Held::SameJob), None]);
        assert_eq!(started(&all, &[running("purge", &[])], 4), Vec::<String>::new());
    }

    #[test]
    fn jobs_of_a_group_never_run_together() {
        let all = [
            waiting("daily", 1, 1, &["group dumps"]),
            waiting("weekly", 1, 2, &["group dumps"]),
        ];
        assert_eq!(started(&all, &[], 4), ["daily"]);
        let held = decide(&all, &[], 4)[1].clone().unwrap();
        assert_eq!(held.to_string(), "the group dumps, which daily has");
        assert!(started(&all, &[running("hourly", &["group dumps"])], 4).is_empty());
    }

    #[test]
    fn what_an_urgent_run_waits_for_is_not_given_to_another() {
        let all = [waiting("dump", 1, 2, &["a", "b"]), waiting("sweep", 3, 1, &["b"])];
        assert!(started(&all, &[running("purge", &["a"])], 4).is_empty());
        assert_eq!(started(&all, &[], 4), ["dump"]);
    }
}
