//! Every statement of a rollup with a source. Names come quoted from the catalog; instants are
//! literals, so that the planner prunes partitions by them.

use jiff::{SignedDuration, Timestamp};

use super::spec::Source;
use crate::postgres::catalog::Relation;
use crate::postgres::quote::{identifier, literal};
use crate::values::Timezone;

/// The types a time column may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TimeType {
    /// An instant.
    Timestamptz,
    /// A wall clock of a zone that the configuration names.
    Timestamp,
    /// A calendar day of such a zone.
    Date,
}

impl TimeType {
    pub(super) fn from_base_type(name: &str) -> Option<Self> {
        Some(match name {
            "timestamp with time zone" => Self::Timestamptz,
            "timestamp without time zone" => Self::Timestamp,
            "date" => Self::Date,
            _ => return None,
        })
    }
}

/// How the target's column keeps the beginning of a bucket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum BucketType {
    /// As an instant.
    Instant,
    /// As the day on the calendar of the buckets' zone.
    Date,
}

/// The compiled rollup of a table's rows.
#[derive(Debug, Clone)]
pub(super) struct Fresh {
    /// The source, which goes by its own name.
    from: String,
    /// When a row happened, as an instant.
    instant: String,
    /// The column as it is stored.
    stored: String,
    time_type: TimeType,
    column_zone: Timezone,
    zone: Timezone,
    bucket_column: String,
    bucket_type: BucketType,
    /// Quoted names of the source's columns, as their own expressions.
    groups: Vec<(String, String)>,
    /// Quoted names with the aggregates.
    measures: Vec<(String, String)>,
    predicate: Option<String>,
}

impl Fresh {
    pub(super) fn new(
        source: &Source,
        relation: &Relation,
        time_type: TimeType,
        column_zone: &Timezone,
        zone: &Timezone,
        bucket_type: BucketType,
    ) -> Self {
        let alias = identifier(&relation.name);
        let stored = format!("{alias}.{}", identifier(&source.time_column));
        let at_zone = literal(column_zone.name());
        let instant = match time_type {
            TimeType::Timestamptz => stored.clone(),
            TimeType::Timestamp => format!("({stored} AT TIME ZONE {at_zone})"),
            TimeType::Date => format!("({stored}::timestamp AT TIME ZONE {at_zone})"),
        };
        Self {
            from: format!("{} AS {alias}", relation.quoted()),
            instant,
            stored,
            time_type,
            column_zone: column_zone.clone(),
            zone: zone.clone(),
            bucket_column: identifier(&source.bucket_column),
            bucket_type,
            groups: source
                .group_by
                .iter()
                .map(|column| (identifier(column), format!("{alias}.{}", identifier(column))))
                .collect(),
            measures: source
                .measures
                .iter()
                .flat_map(super::measure::Measure::columns)
                .map(|(name, expression)| (identifier(&name), format!("(\n{expression}\n)")))
                .collect(),
            predicate: source.predicate.as_ref().map(|text| format!("(\n{text}\n)")),
        }
    }

    /// The columns of the target that are written, quoted: the bucket first, then groups and measures.
    pub(super) fn columns(&self) -> Vec<&str> {
        let named = self.groups.iter().chain(&self.measures).map(|(name, _)| name.as_str());
        std::iter::once(self.bucket_column.as_str()).chain(named).collect()
    }

    /// The rows of some buckets: each begins where the one before ends, and the last bound only ends.
    pub(super) fn select(&self, bounds: &[Timestamp]) -> String {
        self.select_as(bounds, |expression, _| expression.to_owned())
    }

    /// The same, with each column made into what `form` says of its expression and name.
    pub(super) fn select_as(&self, bounds: &[Timestamp], form: impl Fn(&str, &str) -> String) -> String {
        let starts = bounds.split_last().map_or(bounds, |(_, starts)| starts);
        let slot = format!("width_bucket({}, {})", self.instant, instants(starts));
        let begins = match self.bucket_type {
            BucketType::Instant => instants(starts),
            BucketType::Date => {
                let days: Vec<String> = starts.iter().map(|start| self.day(*start)).collect();
                format!("'{{{}}}'::date[]", days.join(","))
            }
        };
        let begin = format!("({begins})[{slot}]");
        let mut columns = vec![format!(
            "{} AS {}",
            form(&begin, &self.bucket_column),
            self.bucket_column
        )];
        for (name, expression) in self.groups.iter().chain(&self.measures) {
            columns.push(format!("{} AS {name}", form(expression, name)));
        }
        let by: Vec<&str> = std::iter::once(slot.as_str())
            .chain(self.groups.iter().map(|(_, expression)| expression.as_str()))
            .collect();
        format!(
            "SELECT {} FROM {} WHERE {} GROUP BY {}",
            columns.join(", "),
            self.from,
            self.within(bounds),
            by.join(", ")
        )
    }

    /// Adds the rows of some buckets to the target.
    pub(super) fn insert(&self, target: &Relation, bounds: &[Timestamp]) -> String {
        format!(
            "INSERT INTO {} ({}) {}",
            target.quoted(),
            self.columns().join(", "),
            self.select(bounds)
        )
    }

    /// Removes the rows of a range of buckets from the target.
    pub(super) fn delete(&self, target: &Relation, low: Timestamp, high: Timestamp) -> String {
        format!("DELETE FROM {} WHERE {}", target.quoted(), self.kept_within(low, high))
    }

    /// Which of the target's rows are of a range of buckets.
    pub(super) fn kept_within(&self, low: Timestamp, high: Timestamp) -> String {
        let (column, value) = (&self.bucket_column, |at| self.begin(at));
        format!("{column} >= {} AND {column} < {}", value(low), value(high))
    }

    fn begin(&self, at: Timestamp) -> String {
        match self.bucket_type {
            BucketType::Instant => format!("'{at}'::timestamptz"),
            BucketType::Date => format!("'{}'::date", self.day(at)),
        }
    }

    fn day(&self, at: Timestamp) -> String {
        self.zone.rules().to_datetime(at).date().to_string()
    }

    /// Whether a beginning that the target keeps, a day as its midnight in UTC, belongs to the bucket
    /// between two bounds.
    pub(super) fn is_of(&self, begin: Timestamp, pair: &[Timestamp]) -> bool {
        let [low, high] = pair else { return false };
        match self.bucket_type {
            BucketType::Instant => *low <= begin && begin < *high,
            BucketType::Date => {
                let day = jiff::tz::TimeZone::UTC.to_datetime(begin).date().to_string();
                self.day(*low) <= day && day < self.day(*high)
            }
        }
    }

    /// How the target keeps a bucket's beginning.
    pub(super) fn bucket_type(&self) -> BucketType {
        self.bucket_type
    }

    /// A statement whose plan shows whether the condition makes sense.
    pub(super) fn try_condition(&self) -> String {
        let condition = self.predicate.as_deref().unwrap_or("true");
        format!("SELECT 1 FROM {} WHERE {condition}", self.from)
    }

    /// A statement whose plan shows whether an aggregate makes sense.
    pub(super) fn try_measure(&self, bounds: &[Timestamp], expression: &str) -> String {
        let one = Self {
            measures: vec![("pgreeve_measure".to_owned(), format!("(\n{expression}\n)"))],
            predicate: None,
            ..self.clone()
        };
        one.select(bounds)
    }

    /// The oldest row from an instant on.
    pub(super) fn first_row(&self, from: Option<Timestamp>) -> String {
        let low = from.map_or_else(
            || format!("{} > '-infinity'", self.stored),
            |from| self.stored_from(from),
        );
        let instant = self.instant.replace(&self.stored, "pgreeve_first");
        format!(
            "SELECT {instant} FROM (SELECT min({}) AS pgreeve_first FROM {} WHERE {low} AND {} < 'infinity') AS first",
            self.stored, self.from, self.stored
        )
    }

    /// The newest row.
    pub(super) fn last_row(&self) -> String {
        let instant = self.instant.replace(&self.stored, "pgreeve_last");
        format!(
            "SELECT {instant} FROM (SELECT max({}) AS pgreeve_last FROM {} WHERE {} < 'infinity') AS last",
            self.stored, self.from, self.stored
        )
    }

    /// Rows of a range of buckets, by the stored column as an index has it, and exactly.
    fn within(&self, bounds: &[Timestamp]) -> String {
        let (Some(low), Some(high)) = (bounds.first(), bounds.last()) else {
            return "false".to_owned();
        };
        let mut conditions = vec![self.stored_from(*low), self.stored_until(*high)];
        if self.time_type != TimeType::Timestamptz {
            conditions.push(format!("{} >= '{low}'::timestamptz", self.instant));
            conditions.push(format!("{} < '{high}'::timestamptz", self.instant));
        }
        conditions.extend(self.predicate.clone());
        conditions.join(" AND ")
    }

    fn stored_from(&self, at: Timestamp) -> String {
        format!("{} >= {}", self.stored, self.stored_value(at, -1))
    }

    fn stored_until(&self, at: Timestamp) -> String {
        let sign = if self.time_type == TimeType::Timestamptz {
            "<"
        } else {
            "<="
        };
        format!("{} {sign} {}", self.stored, self.stored_value(at, 1))
    }

    /// An instant as the column stores it. A wall clock that is set back shows some times twice: a day
    /// more on the side of `way` misses none.
    fn stored_value(&self, at: Timestamp, way: i64) -> String {
        let aside = at.checked_add(SignedDuration::from_hours(24 * way)).unwrap_or(at);
        let local = |at| self.column_zone.rules().to_datetime(at);
        match self.time_type {
            TimeType::Timestamptz => format!("'{at}'::timestamptz"),
            TimeType::Timestamp if self.column_zone.name() == "UTC" => format!("'{}'::timestamp", local(at)),
            TimeType::Timestamp => format!("'{}'::timestamp", local(aside)),
            TimeType::Date => format!("'{}'::date", local(aside).date()),
        }
    }

    /// The instant of a row of a transition table, for a trigger.
    pub(super) fn instant_of(&self, row: &str, time_column: &str) -> String {
        let column = format!("{row}.{}", identifier(time_column));
        self.instant.replace(&self.stored, &column)
    }
}

/// Instants as an array, read once.
pub(super) fn instants(at: &[Timestamp]) -> String {
    let texts: Vec<String> = at.iter().map(Timestamp::to_string).collect();
    format!("'{{{}}}'::timestamptz[]", texts.join(","))
}
