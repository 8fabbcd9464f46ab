//! The one compiler: which rows are due, and every statement about them.
//!
//! The condition is compiled once; plan, batches and verification differ only in what stands around
//! it. Names come quoted from the catalog. Values are typed literals rather than parameters, so that
//! the planner prunes partitions by them and the text in the audit log is the text that ran.

mod bounds;
mod counts;
mod work;

use super::condition::{Condition, Group};
use super::cutoff::Cutoff;
use crate::ledger::holds::Standing;
use crate::postgres::catalog::Relation;
use crate::postgres::catalog::effects::IncomingKey;
use crate::postgres::quote::{array, identifier, literal};

/// The types an age column may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum AgeType {
    /// An instant.
    Timestamptz,
    /// A wall clock of a zone that the configuration must name.
    Timestamp,
    /// A calendar day of such a zone.
    Date,
}

impl AgeType {
    /// From the name of a column's base type.
    pub(super) fn from_base_type(name: &str) -> Option<Self> {
        Some(match name {
            "timestamp with time zone" => Self::Timestamptz,
            "timestamp without time zone" => Self::Timestamp,
            "date" => Self::Date,
            _ => return None,
        })
    }

    fn literal(self, value: &str) -> String {
        let name = match self {
            Self::Timestamptz => "timestamptz",
            Self::Timestamp => "timestamp",
            Self::Date => "date",
        };
        format!("{}::{name}", literal(value))
    }

    /// The present time as a value of this type, in a zone.
    pub(super) fn now(self, zone: &str) -> String {
        match self {
            Self::Timestamptz => "now()".to_owned(),
            Self::Timestamp => format!("now() AT TIME ZONE {}", literal(zone)),
            Self::Date => format!("(now() AT TIME ZONE {})::date", literal(zone)),
        }
    }
}

/// A part of one leaf table, for one batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Range {
    /// Rows of these ages; `None` is from the beginning, and up to the cutoff.
    Ages {
        /// Younger than this.
        after: Option<String>,
        /// Not younger than this.
        through: Option<String>,
    },
    /// Rows with these keys.
    Keys {
        /// The key's column.
        column: String,
        /// Greater than this.
        after: i64,
        /// Not greater than this.
        through: i64,
    },
    /// Rows stored at these places, which this transaction has locked.
    Places(Vec<String>),
    /// Rows stored in these blocks.
    Blocks {
        /// From this one,
        from: u32,
        /// to before this one.
        until: u32,
    },
}

/// What is needed to compile a rule.
pub(super) struct Input<'a> {
    /// The table of the rule.
    pub(super) root: &'a Relation,
    /// Its age column.
    pub(super) age_column: &'a str,
    /// The column that stands in for it where it is null.
    pub(super) age_fallback: Option<&'a str>,
    /// That column's type.
    pub(super) age_type: AgeType,
    /// The cutoff.
    pub(super) cutoff: &'a Cutoff,
    /// The rule's zone.
    pub(super) zone: &'a str,
    /// The operator's condition.
    pub(super) predicate: Option<&'a str>,
    /// For a change of state: the state's column, its type, and the values to move from.
    pub(super) from: Option<(&'a str, &'a str, &'a [String])>,
    /// For a change of state: column and expression; empty deletes.
    pub(super) assignments: Vec<(String, String)>,
    /// Of which groups the newest row stays.
    pub(super) keep_latest: Option<Group>,
    /// The foreign keys that keep the rows they point at.
    pub(super) keep_referenced: &'a [IncomingKey],
    /// The legal holds.
    pub(super) holds: &'a [Standing],
}

/// A compiled rule.
#[derive(Debug, Clone)]
pub(super) struct Statements {
    root: String,
    /// Every leaf goes by the root's name, so that the operator's condition may say `events.processed`.
    alias: String,
    age: String,
    /// Rows that would be asked for their age and have none.
    ageless: String,
    age_type: AgeType,
    zone: String,
    /// The cutoff as a literal, and as its bare text.
    cutoff: String,
    cutoff_value: String,
    condition: Condition,
    /// The condition as one text.
    eligible: String,
    /// `SET …`, or nothing for a deletion.
    assignments: Option<String>,
}

impl Statements {
    /// Compiles a rule.
    pub(super) fn compile(input: &Input<'_>) -> Self {
        let alias = identifier(&input.root.name);
        let own_age = format!("{alias}.{}", identifier(input.age_column));
        let age = match input.age_fallback {
            Some(column) => format!("COALESCE({own_age}, {alias}.{})", identifier(column)),
            None => own_age,
        };
        let cutoff = input.age_type.literal(&input.cutoff.value);
        let mut standing = format!("{age} < {cutoff}");
        let mut ageless = format!("{age} IS NULL");
        if let Some((column, type_name, values)) = input.from {
            let values: Vec<String> = values.iter().map(|value| typed(value, type_name)).collect();
            let from = format!(" AND {alias}.{} IN ({})", identifier(column), values.join(", "));
            standing.push_str(&from);
            ageless.push_str(&from);
        }
        let mut condition = Condition::new(&alias, standing, input.predicate);
        if let Some(group) = &input.keep_latest {
            condition.keep_latest(input.root, input.age_column, group);
        }
        condition.keep_referenced(input.keep_referenced);
        condition.hold(input.holds);
        let assignments: Vec<String> = input
            .assignments
            .iter()
            .map(|(column, value)| format!("{} = {value}", identifier(column)))
            .collect();
        Self {
            root: format!("{} AS {alias}", input.root.quoted()),
            alias,
            age,
            ageless,
            age_type: input.age_type,
            zone: literal(input.zone),
            cutoff,
            cutoff_value: input.cutoff.value.clone(),
            eligible: condition.eligible(),
            condition,
            assignments: (!assignments.is_empty()).then(|| assignments.join(", ")),
        }
    }

    /// The same rule under other legal holds.
    pub(super) fn hold(&mut self, holds: &[Standing]) {
        self.condition.hold(holds);
        self.eligible = self.condition.eligible();
    }

    /// The condition that a row must meet to be due, for people and records: a hold is named, not
    /// quoted.
    pub(super) fn shown(&self) -> String {
        self.condition.shown()
    }

    /// Whether rows stay that others reference.
    pub(super) fn keeps_referenced(&self) -> bool {
        self.condition.keeps_referenced()
    }

    /// Whether a row is due by its age alone.
    pub(super) fn is_by_age_alone(&self) -> bool {
        self.eligible == format!("{} < {}", self.age, self.cutoff)
    }

    /// Keeps rows that do not meet a further condition, which is never null: what they own is not
    /// within reach.
    pub(super) fn require(&mut self, condition: String) {
        self.condition.require(condition);
        self.eligible = self.condition.eligible();
    }

    /// A column of the table, by the alias that every statement uses.
    pub(super) fn column(&self, name: &str) -> String {
        format!("{}.{}", self.alias, identifier(name))
    }

    /// The age column's type.
    pub(super) fn age_type(&self) -> AgeType {
        self.age_type
    }

    /// The cutoff as a value of the age column's type: where the last range ends.
    pub(super) fn last_age(&self) -> &str {
        &self.cutoff_value
    }

    fn only(&self, leaf: &Relation) -> String {
        format!("ONLY {} AS {}", leaf.quoted(), self.alias)
    }

    fn within(&self, range: &Range) -> String {
        let Self { alias, age, .. } = self;
        match range {
            Range::Ages { after, through } => {
                let after = self.after(after.as_deref());
                let Some(through) = through else { return after };
                format!("{after}{age} <= {} AND ", self.age_type.literal(through))
            }
            Range::Keys { column, after, through } => {
                let key = format!("{alias}.{}", identifier(column));
                format!("{key} > '{after}'::int8 AND {key} <= '{through}'::int8 AND ")
            }
            Range::Places(places) => {
                format!("{alias}.ctid = ANY ({}::tid[]) AND ", literal(&array(places)))
            }
            Range::Blocks { from, until } => {
                format!("{alias}.ctid >= '({from},0)'::tid AND {alias}.ctid < '({until},0)'::tid AND ")
            }
        }
    }

    /// An instant as a value of the age column's type.
    fn value_at(&self, instant: &str) -> String {
        match self.age_type {
            AgeType::Timestamptz => instant.to_owned(),
            AgeType::Timestamp => format!("({instant} AT TIME ZONE {})", self.zone),
            AgeType::Date => format!("({instant} AT TIME ZONE {})::date", self.zone),
        }
    }

    /// A value of the age column as an instant.
    fn instant(&self, value: &str) -> String {
        match self.age_type {
            AgeType::Timestamptz => value.to_owned(),
            AgeType::Timestamp => format!("({value} AT TIME ZONE {})", self.zone),
            AgeType::Date => format!("({value}::timestamp AT TIME ZONE {})", self.zone),
        }
    }
}

/// A value of a column, as a literal of the column's type.
pub(super) fn typed(value: &str, type_name: &str) -> String {
    format!("CAST({} AS {type_name})", literal(value))
}

#[cfg(test)]
mod tests {
    use sqlx::postgres::types::Oid;

    use super::*;
    use crate::postgres::catalog::RelationKind;

    fn relation(name: &str) -> Relation {
        Relation {
            oid: Oid(1),
            schema: "public".to_owned(),
            name: name.to_owned(),
            kind: RelationKind::Table,
            owner: "app".to_owned(),
            permanent: true,
            rows: 0.0,
            pages: 0,
        }
    }

    fn cutoff(value: &str) -> Cutoff {
        Cutoff {
            instant: "2026-01-01 00:00:00+00".to_owned(),
            value: value.to_owned(),
        }
    }

    fn deletion(predicate: Option<&str>) -> Statements {
        Statements::compile(&Input {
            root: &relation("events"),
            age_column: "created_at",
            age_fallback: None,
            age_type: AgeType::Timestamptz,
            cutoff: &cutoff("2026-01-01 00:00:00+00"),
            zone: "UTC",
            predicate,
            from: None,
            assignments: Vec::new(),
            keep_latest: None,
            keep_referenced: &[],
            holds: &[],
        })
    }

    fn transition() -> Statements {
        Statements::compile(&Input {
            root: &relation("Say \"x\""),
            age_column: "last",
            age_fallback: None,
            age_type: AgeType::Timestamp,
            cutoff: &cutoff("2026-01-01 01:00:00"),
            zone: "Europe/Berlin",
            predicate: Some("NOT pinned -- never those"),
            from: Some(("status", "app.state", &["in_progress".to_owned(), "it's".to_owned()])),
            assignments: vec![
                ("status".to_owned(), typed("abandoned", "app.state")),
                (
                    "left_at".to_owned(),
                    format!("COALESCE(x, {})", AgeType::Timestamp.now("Europe/Berlin")),
                ),
            ],
            keep_latest: None,
            keep_referenced: &[],
            holds: &[],
        })
    }

    const OLD: &str = r#""events"."created_at" < '2026-01-01 00:00:00+00'::timestamptz"#;

    #[test]
    fn a_deletion_by_age_is_bounded_on_both_sides_and_by_the_cutoff() {
        let range = Range::Ages {
            after: Some("-infinity".to_owned()),
            through: Some("2025-06-01 12:00:00.000001+00".to_owned()),
        };
        assert_eq!(
            deletion(None).apply(&relation("events_2025"), &range),
            format!(
                r#"DELETE FROM ONLY "public"."events_2025" AS "events" WHERE "events"."created_at" > '-infinity'::timestamptz AND "events"."created_at" <= '2025-06-01 12:00:00.000001+00'::timestamptz AND {OLD}"#
            )
        );
        let whole = Range::Ages {
            after: None,
            through: None,
        };
        assert_eq!(
            deletion(None).apply(&relation("events"), &whole),
            format!(r#"DELETE FROM ONLY "public"."events" AS "events" WHERE {OLD}"#)
        );
    }

    #[test]
    fn a_condition_stands_on_lines_of_its_own_in_every_statement() {
        let statements = deletion(Some("processed -- only those\nOR kind = 'x'"));
        let eligible = format!("{OLD} AND (\nprocessed -- only those\nOR kind = 'x'\n)");
        assert_eq!(statements.eligible, eligible);
        let blocks = Range::Blocks { from: 3, until: 7 };
        let leaf = relation("events");
        for text in [
            statements.probe(),
            statements.count_by_leaf(&[]),
            statements.remaining(),
            statements.oldest_remaining(),
            statements.apply(&leaf, &blocks),
            statements.apply_unlocked(&leaf, &blocks),
            statements.count_within(&leaf, &blocks),
            statements.count_referencing("\"a\".\"b\"", &[("event_id".to_owned(), "id".to_owned())]),
        ] {
            assert!(text.contains(&eligible), "{text}");
        }
        assert_eq!(
            statements.apply(&leaf, &blocks),
            format!(
                r#"DELETE FROM ONLY "public"."events" AS "events" WHERE "events".ctid >= '(3,0)'::tid AND "events".ctid < '(7,0)'::tid AND {eligible}"#
            )
        );
    }

    #[test]
    fn exempt_rows_are_old_ones_for_which_the_condition_is_false_or_null() {
        assert_eq!(deletion(None).staying(), [None, None, None]);
        assert_eq!(
            deletion(Some("processed")).staying()[0].clone().unwrap(),
            format!(
                "SELECT count(*) FROM (SELECT 1 FROM \"public\".\"events\" AS \"events\" WHERE {OLD} AND (\nprocessed\n) IS NOT TRUE LIMIT 10001) AS bounded"
            )
        );
    }

    #[test]
    fn a_transition_repeats_its_whole_condition_where_rows_are_locked() {
        let condition = concat!(
            r#""Say ""x"""."last" < '2026-01-01 01:00:00'::timestamp AND "Say ""x"""."status" IN "#,
            r#"(CAST('in_progress' AS app.state), CAST('it''s' AS app.state)) AND ("#,
            "\nNOT pinned -- never those\n)"
        );
        let set = concat!(
            r#"SET "status" = CAST('abandoned' AS app.state), "#,
            r#""left_at" = COALESCE(x, now() AT TIME ZONE 'Europe/Berlin')"#
        );
        let only = r#"ONLY "public"."leaf" AS "Say ""x""""#;
        let blocks = Range::Blocks { from: 0, until: 1 };
        let within = r#""Say ""x""".ctid >= '(0,0)'::tid AND "Say ""x""".ctid < '(1,0)'::tid AND "#;
        assert_eq!(
            transition().apply(&relation("leaf"), &blocks),
            format!("UPDATE {only} {set} WHERE {within}{condition}")
        );
        assert_eq!(
            transition().apply_unlocked(&relation("leaf"), &blocks),
            format!(
                r#"UPDATE {only} {set} WHERE "Say ""x""".ctid = ANY (ARRAY(SELECT "Say ""x""".ctid FROM {only} WHERE {within}{condition} FOR NO KEY UPDATE OF "Say ""x""" SKIP LOCKED)) AND {condition}"#
            )
        );
    }

    #[test]
    fn the_end_of_a_batch_is_looked_up_without_the_condition() {
        assert_eq!(
            deletion(Some("processed")).upper_bound(&relation("events"), Some("2025-01-01 00:00:00+00"), 500, 9),
            format!(
                r#"SELECT upper.age::text, (SELECT count(*) FROM (SELECT 1 FROM ONLY "public"."events" AS "events" WHERE "events"."created_at" = upper.age LIMIT 9) AS bounded) FROM (SELECT "events"."created_at" AS age FROM ONLY "public"."events" AS "events" WHERE "events"."created_at" > '2025-01-01 00:00:00+00'::timestamptz AND {OLD} ORDER BY "events"."created_at" OFFSET 499 LIMIT 1) AS upper"#
            )
        );
    }

    #[test]
    fn an_age_without_a_zone_is_shown_as_the_instant_it_was() {
        assert!(
            transition()
                .oldest_remaining()
                .starts_with(r#"SELECT (min("Say ""x"""."last") AT TIME ZONE 'Europe/Berlin')::text FROM"#)
        );
    }
}
