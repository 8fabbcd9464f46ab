//! The instant before which rows are due: fixed once per run, from the database's clock.

use sqlx::PgConnection;

use super::statement::AgeType;
use crate::job::JobError;
use crate::postgres::sqlstate::DatabaseError;
use crate::values::{Period, Timezone};

/// The cutoff as an instant and as the age column sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Cutoff {
    /// As PostgreSQL writes a `timestamptz` in UTC.
    pub(super) instant: String,
    /// As PostgreSQL writes a value of the age column's type.
    pub(super) value: String,
}

/// Days and months are counted on the calendar of the zone, where a day may have 23 or 25 hours;
/// hours and below are absolute time, so that two hours are two hours on every day of the year.
const CUTOFF: &str = "
    SELECT instant::text, (instant AT TIME ZONE zone)::text, ((instant AT TIME ZONE zone)::date)::text,
           extract(year FROM instant)::int4
    FROM (SELECT zone, (((at AT TIME ZONE zone) - date_trunc('day', period)) AT TIME ZONE zone)
                       - (period - date_trunc('day', period)) AS instant
          FROM (SELECT coalesce($3::text::timestamptz, now()) AS at, $1::text::interval AS period, $2::text AS zone) asked
         ) computed";

/// Computes the cutoff at the start of the current transaction.
pub(super) async fn fix(
    connection: &mut PgConnection,
    period: &Period,
    zone: &Timezone,
    age_type: AgeType,
) -> Result<Cutoff, JobError> {
    at(connection, period, zone, age_type, None).await
}

async fn at(
    connection: &mut PgConnection,
    period: &Period,
    zone: &Timezone,
    age_type: AgeType,
    now: Option<&str>,
) -> Result<Cutoff, JobError> {
    let operation = "compute the cutoff";
    let row: Result<(String, String, String, i32), sqlx::Error> = sqlx::query_as(CUTOFF)
        .bind(period.to_interval())
        .bind(zone.name())
        .bind(now)
        .fetch_one(connection)
        .await;
    let (instant, local, date, _) = match row.map_err(DatabaseError::from) {
        Ok(row) if row.3 >= 1 => row,
        Err(error) if error.is("22023") => {
            return Err(JobError::refused(
                operation,
                format!("the server does not know the time zone {}", zone.name()),
                "write a zone of the server's view pg_timezone_names",
            ));
        }
        Err(error) if !error.is("22008") => return Err(JobError::database(operation, &error)),
        Ok(_) | Err(_) => {
            return Err(JobError::refused(
                operation,
                format!("{period} before now is before the year 1"),
                "write a shorter period",
            ));
        }
    };
    let value = match age_type {
        AgeType::Timestamptz => instant.clone(),
        AgeType::Timestamp => local,
        AgeType::Date => date,
    };
    Ok(Cutoff { instant, value })
}

/// A cutoff at a given instant; before everything without one.
pub(super) async fn at_instant(
    connection: &mut PgConnection,
    instant: Option<jiff::Timestamp>,
    zone: &Timezone,
    age_type: AgeType,
) -> Result<Cutoff, JobError> {
    let instant = instant.map_or_else(|| "-infinity".to_owned(), |instant| instant.to_string());
    let (instant, local, date): (String, String, String) = sqlx::query_as(
        "SELECT instant::text, (instant AT TIME ZONE zone)::text, ((instant AT TIME ZONE zone)::date)::text
         FROM (SELECT $1::text::timestamptz AS instant, $2::text AS zone) AS given",
    )
    .bind(instant)
    .bind(zone.name())
    .fetch_one(connection)
    .await
    .map_err(|error| JobError::database("compute the cutoff", &error.into()))?;
    let value = match age_type {
        AgeType::Timestamptz => instant.clone(),
        AgeType::Timestamp => local,
        AgeType::Date => date,
    };
    Ok(Cutoff { instant, value })
}

/// An instant as PostgreSQL writes it in UTC, as RFC 3339; a text that has no such form (infinity, a
/// year before 1) stays as it is.
pub(super) fn rfc3339(instant: &str) -> String {
    instant
        .parse::<jiff::Timestamp>()
        .map_or_else(|_| instant.to_owned(), |instant| instant.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_instant_is_shown_as_rfc_3339() {
        assert_eq!(rfc3339("2026-03-01 01:02:03.000004+00"), "2026-03-01T01:02:03.000004Z");
        assert_eq!(rfc3339("-infinity"), "-infinity");
        assert_eq!(rfc3339("0044-03-15 00:00:00+00 BC"), "0044-03-15 00:00:00+00 BC");
    }

    #[tokio::test]
    async fn days_are_counted_on_the_calendar_and_hours_by_the_clock() {
        let cluster = tokio::task::spawn_blocking(|| crate::postgres::cluster::Cluster::start("").unwrap())
            .await
            .unwrap();
        let mut connection = cluster.target("postgres").connect("test").await.unwrap();
        for setting in ["SET search_path = pg_catalog", "SET TimeZone = UTC"] {
            sqlx::query(setting).execute(&mut connection).await.unwrap();
        }
        let cases = [
            // A day of 23 hours, and the same 24 hours.
            (
                "America/New_York",
                "1d",
                "2026-03-08T16:00:00Z",
                "2026-03-07 17:00:00+00",
                "2026-03-07 12:00:00",
            ),
            (
                "America/New_York",
                "24h",
                "2026-03-08T16:00:00Z",
                "2026-03-07 16:00:00+00",
                "2026-03-07 11:00:00",
            ),
            // A day of 25 hours.
            (
                "America/New_York",
                "1d",
                "2026-11-01T17:00:00Z",
                "2026-10-31 16:00:00+00",
                "2026-10-31 12:00:00",
            ),
            // Two hours across the gap are two hours.
            (
                "America/New_York",
                "2h",
                "2026-03-08T07:30:00Z",
                "2026-03-08 05:30:00+00",
                "2026-03-08 00:30:00",
            ),
            // A zone without clock changes, on another day than UTC.
            (
                "Asia/Tokyo",
                "1d",
                "2026-03-08T16:00:00Z",
                "2026-03-07 16:00:00+00",
                "2026-03-08 01:00:00",
            ),
            (
                "Asia/Tokyo",
                "1mo",
                "2026-03-30T20:00:00Z",
                "2026-02-27 20:00:00+00",
                "2026-02-28 05:00:00",
            ),
            (
                "UTC",
                "1y1d12h",
                "2026-03-01T00:00:00Z",
                "2025-02-27 12:00:00+00",
                "2025-02-27 12:00:00",
            ),
        ];
        for (zone, period, now, instant, local) in cases {
            let (period, zone) = (period.parse().unwrap(), zone.parse().unwrap());
            for (age_type, value) in [
                (AgeType::Timestamptz, instant),
                (AgeType::Timestamp, local),
                (AgeType::Date, &local[..10]),
            ] {
                let cutoff = at(&mut connection, &period, &zone, age_type, Some(now)).await.unwrap();
                assert_eq!(
                    (cutoff.instant.as_str(), cutoff.value.as_str()),
                    (instant, value),
                    "{now} {period}"
                );
            }
        }
        let (long, utc) = ("3000y".parse().unwrap(), Timezone::utc());
        let error = fix(&mut connection, &long, &utc, AgeType::Date).await.unwrap_err();
        assert_eq!(error.disposition, crate::job::Disposition::Refused);
        drop(connection);
        tokio::task::spawn_blocking(|| drop(cluster)).await.unwrap();
    }
}
