//! Which partitions are missing: from the present one on, so many ahead, without gaps.

use jiff::civil::DateTime;
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, Connection, PgConnection};

use super::create::Creation;
use super::grid::{Covered, Grid, bound_text, point};
use super::{bound_type, describe};
use crate::batch::preflight::{self, reading};
use crate::batch::report::COUNT_LIMIT;
use crate::batch::statement::AgeType;
use crate::job::{JobContext, JobError, Plan};
use crate::postgres::catalog::partitions::{self, Partition, RangeKey};
use crate::postgres::catalog::{Relation, columns};
use crate::postgres::quote::{identifier, literal};
use crate::postgres::sqlstate::DatabaseError;
use crate::values::{Period, TableName, Timezone};

/// The most partitions that one run makes.
const MOST: usize = 1000;

/// What is to be made.
#[derive(Debug, Clone)]
pub struct PremakeRule {
    /// The table.
    pub table: TableName,
    /// How many partitions lie ahead of the present one.
    pub premake: u32,
    /// How much one holds.
    pub interval: Period,
    /// The zone in which days and months begin.
    pub timezone: Option<Timezone>,
}

/// A partition that is missing.
#[derive(Debug, Clone)]
pub(super) struct Missing {
    /// The name it will have.
    pub(super) name: String,
    /// Where it begins.
    pub(super) from: String,
    /// Before which it ends.
    pub(super) to: String,
}

impl Missing {
    /// As plans and reports show it.
    pub(super) fn body(&self, schema: &str) -> Value {
        json!({ "partition": format!("{schema}.{}", self.name), "from": self.from, "to": self.to })
    }
}

/// Looks up what is missing.
///
/// # Errors
/// Refused, with cause and remedy, when partitions cannot be made, or when rows of the default
/// partition stand in the way of all of them.
pub async fn premake(rule: PremakeRule, context: &mut JobContext) -> Result<Box<dyn Plan>, JobError> {
    let operation = format!("plan the partitions of {}", rule.table);
    let mut reading = context
        .session
        .connection()
        .begin_with("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
        .await
        .map_err(|error| JobError::database(operation, &error.into()))?;
    let result = draw_up(&mut reading, &rule).await;
    if let Err(error) = reading.rollback().await {
        tracing::debug!(error = %DatabaseError::from(error), "the plan's transaction did not end in good order");
    }
    Ok(Box::new(result?))
}

async fn draw_up(connection: &mut PgConnection, rule: &PremakeRule) -> Result<Creation, JobError> {
    let relation = preflight::named(connection, &rule.table).await?;
    let table = relation.display();
    let (key, age_type) = check(connection, &relation, rule).await?;
    let zone = rule.timezone.clone().unwrap_or_else(Timezone::utc);
    let grid = Grid {
        age_type,
        zone: zone.name().to_owned(),
        interval: rule.interval,
    };
    let now: String = ask(
        connection,
        &table,
        &format!("SELECT ({})::text", age_type.now(zone.name())),
    )
    .await?;
    let all = partitions::of(connection, relation.oid, &key.column, bound_type(age_type), &now)
        .await
        .map_err(reading(&table))?;
    let (defaults, existing): (Vec<Partition>, Vec<Partition>) = all
        .into_iter()
        .filter(|partition| partition.parent == relation.oid)
        .partition(Partition::is_default);
    if let Some(divided) = existing.iter().find(|partition| partition.is_divided()) {
        return Err(preflight::refuse(
            &table,
            format!(
                "its partition {} is divided itself, and how is not known for new ones",
                divided.display()
            ),
            "make the partitions of this table by other means",
        ));
    }
    let covered = Covered::new(&existing, &now);
    let wanted = missing(connection, &table, &grid, &covered, rule.premake).await?;
    let mut named: Vec<Missing> = Vec::new();
    for (from, to) in wanted {
        let name = name(connection, &relation, &grid, &from, &named).await?;
        named.push(Missing { name, from, to });
    }
    let mut blocked = Vec::new();
    let mut free = Vec::new();
    for missing in named {
        let rows = match defaults.first() {
            Some(default) => rows_between(connection, &table, default, &key.column, age_type, &missing).await?,
            None => 0,
        };
        if rows == 0 {
            free.push(missing);
            continue;
        }
        let mut entry = missing.body(&relation.schema);
        entry["rows"] = json!(rows);
        entry["default"] = json!(defaults.first().map(Partition::display));
        blocked.push(entry);
    }
    if let (Some(first), true) = (blocked.first(), free.is_empty()) {
        return Err(preflight::refuse(&table, blocking(first), MOVE_ROWS));
    }
    Ok(Creation {
        gaps: covered.gaps(age_type),
        existing: existing.iter().rev().take(3).map(describe).collect(),
        relation,
        owner: key.owner,
        tablespace: key.tablespace,
        age_type,
        free,
        blocked,
    })
}

/// What an operator can do about rows of the default partition.
pub(super) const MOVE_ROWS: &str =
    "move those rows out of the default partition, make the partition, and insert them again";

/// A refusal in words.
pub(super) fn blocking(entry: &Value) -> String {
    format!(
        "rows in the default partition {} stand in the way of the partition from {} to {}: {}",
        entry["default"].as_str().unwrap_or_default(),
        entry["from"].as_str().unwrap_or_default(),
        entry["to"].as_str().unwrap_or_default(),
        entry["rows"]
    )
}

async fn check(
    connection: &mut PgConnection,
    relation: &Relation,
    rule: &PremakeRule,
) -> Result<(RangeKey, AgeType), JobError> {
    let table = relation.display();
    let key = partitions::range_key(connection, relation.oid)
        .await
        .map_err(reading(&table))?
        .ok_or_else(|| {
            preflight::refuse(
                &table,
                "it is not divided by ranges of one column",
                "name a table that was made with PARTITION BY RANGE (column)",
            )
        })?;
    let columns = columns::of(connection, relation.oid).await.map_err(reading(&table))?;
    let column = columns.iter().find(|column| column.name == key.column);
    let base_type = column.map_or("", |column| column.base_type.as_str());
    let age_type = AgeType::from_base_type(base_type).ok_or_else(|| {
        preflight::refuse(
            &table,
            format!("its ranges are of {}, whose type {base_type} tells no time", key.column),
            "only ranges of timestamptz, timestamp or date can be made ahead",
        )
    })?;
    if age_type != AgeType::Timestamptz && rule.timezone.is_none() {
        return Err(preflight::refuse(
            &table,
            format!(
                "its ranges are of {}, whose type {base_type} has no time zone",
                key.column
            ),
            "set `timezone` to the zone its values were written in, such as \"UTC\" or \"Europe/Berlin\"",
        ));
    }
    let (_, _, millis) = rule.interval.parts();
    if age_type == AgeType::Date && millis > 0 {
        return Err(preflight::refuse(
            &table,
            format!("its ranges are of dates, and {} is no number of days", rule.interval),
            "write `interval` in days, weeks, months or years",
        )
        .about("interval"));
    }
    if !key.owned {
        return Err(preflight::refuse(
            &table,
            "only its owner can make partitions",
            format!(
                "GRANT {} TO the role of pgreeve, and CREATE ON SCHEMA {}",
                identifier(&key.owner),
                identifier(&relation.schema)
            ),
        ));
    }
    Ok((key, age_type))
}

/// The bounds of what is missing, oldest first.
async fn missing(
    connection: &mut PgConnection,
    table: &str,
    grid: &Grid,
    covered: &Covered,
    premake: u32,
) -> Result<Vec<(String, String)>, JobError> {
    let started = covered.ranges.iter().rev().find(|(from, _, _)| *from <= covered.now);
    let mut cursor = match started {
        // Without an end there is nothing ahead of it.
        Some((_, _, None)) => return Ok(Vec::new()),
        Some((_, _, Some(end))) => end.clone(),
        None => first(connection, table, grid, &covered.now_text).await?,
    };
    let (mut anchor, mut steps) = (cursor.clone(), 0_u64);
    let mut wanted = Vec::new();
    let mut ahead = 0;
    while ahead < premake {
        let at = point(&cursor, DateTime::MAX);
        let next = covered.from(at);
        if at > covered.now {
            ahead += 1;
        }
        if let Some((from, _, end)) = next
            && *from == at
        {
            let Some(end) = end else { break };
            (cursor, anchor, steps) = (end.clone(), end.clone(), 0);
            continue;
        }
        steps += 1;
        let mut end: String = ask(connection, table, &grid.after(&anchor, steps)).await?;
        if let Some((from, _, _)) = next
            && *from < point(&end, DateTime::MAX)
        {
            // What is left of a hole is smaller than an interval.
            end = bound_text(grid.age_type, *from);
            (anchor, steps) = (end.clone(), 0);
        }
        wanted.push((cursor, end.clone()));
        cursor = end;
        if wanted.len() > MOST {
            return Err(preflight::refuse(
                table,
                format!("more than {MOST} partitions are missing up to now and ahead"),
                "make the first of them by hand, or write a longer `interval`",
            )
            .about("interval"));
        }
    }
    Ok(wanted)
}

/// Where the partition that holds now would begin, when there is none before it.
async fn first(connection: &mut PgConnection, table: &str, grid: &Grid, now: &str) -> Result<String, JobError> {
    let floor: String = ask(connection, table, &grid.floor(now)).await?;
    let now = point(now, DateTime::MAX);
    let (mut begin, mut steps) = (floor.clone(), 0_u64);
    loop {
        steps += 1;
        let next: String = ask(connection, table, &grid.after(&floor, steps)).await?;
        if point(&next, DateTime::MAX) > now || steps > 100_000 {
            return Ok(begin);
        }
        begin = next;
    }
}

/// A name that nothing in the schema has: the table's, then where the partition begins.
async fn name(
    connection: &mut PgConnection,
    relation: &Relation,
    grid: &Grid,
    from: &str,
    others: &[Missing],
) -> Result<String, JobError> {
    let table = relation.display();
    let label: String = ask(connection, &table, &grid.label(from)).await?;
    for number in 1..=MOST {
        let suffix = match number {
            1 => format!("_p{label}"),
            _ => format!("_p{label}_{number}"),
        };
        let mut room = 63_usize.saturating_sub(suffix.len()).min(relation.name.len());
        while !relation.name.is_char_boundary(room) {
            room = room.saturating_sub(1);
        }
        let name = format!("{}{suffix}", relation.name.get(..room).unwrap_or_default());
        let sql = format!(
            "SELECT EXISTS (SELECT 1 FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
                            WHERE n.nspname = {} AND c.relname = {})",
            literal(&relation.schema),
            literal(&name)
        );
        if others.iter().all(|other| other.name != name) && !ask::<bool>(connection, &table, &sql).await? {
            return Ok(name);
        }
    }
    Err(preflight::refuse(
        &table,
        format!("every name for its partition from {from} is taken"),
        "rename the tables that are called like its partitions and are none",
    ))
}

/// How many rows of the default partition belong into a partition, up to a limit.
async fn rows_between(
    connection: &mut PgConnection,
    table: &str,
    default: &Partition,
    column: &str,
    age_type: AgeType,
    missing: &Missing,
) -> Result<i64, JobError> {
    let (column, kind) = (identifier(column), bound_type(age_type).name());
    let sql = format!(
        "SELECT count(*) FROM (SELECT 1 FROM {} WHERE {column} >= {}::{kind} AND {column} < {}::{kind} LIMIT {COUNT_LIMIT}) AS bounded",
        default.quoted(),
        literal(&missing.from),
        literal(&missing.to)
    );
    ask(connection, table, &sql).await
}

async fn ask<T>(connection: &mut PgConnection, table: &str, sql: &str) -> Result<T, JobError>
where
    T: Send + Unpin + for<'r> sqlx::Decode<'r, sqlx::Postgres> + sqlx::Type<sqlx::Postgres>,
{
    sqlx::query_scalar(AssertSqlSafe(sql.to_owned()))
        .persistent(false)
        .fetch_one(connection)
        .await
        .map_err(|error| reading(table)(error.into()))
}
