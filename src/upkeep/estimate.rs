//! How much a btree index would take if it were built now, from the planner's statistics: entries times
//! their size, after `storage/bufpage.h`, `access/itup.h` and `access/nbtree.h` of PostgreSQL. What it
//! takes more is bloat. The way is that of ioguix' `pgsql-bloat-estimation`, and counts duplicates too.

use super::indexes::{Attribute, Shape};

/// A page's header, and what a btree keeps at its end.
const PAGE_OVERHEAD: f64 = 24.0 + 16.0;
/// The pointer to an entry.
const ITEM: f64 = 4.0;
/// An entry's header; with the bitmap that says which values are null.
const HEADER: f64 = 8.0;
const HEADER_WITH_NULLS: f64 = 16.0;
/// The place of a row in its table.
const ROW_POINTER: f64 = 6.0;
/// So many rows of equal keys are in one entry at most, when an index is built: a tenth of a page.
const MOST_EQUAL: f64 = 130.0;
/// A text longer than this is stored with a header of four bytes, at an address that four divides.
const SHORT_TEXT: f64 = 127.0;

/// The bytes of a fresh index of so many entries; nothing where a column was never analyzed.
pub(super) fn fresh_bytes(shape: &Shape, rows: f64, block: f64) -> Option<f64> {
    let mut key = 0.0;
    for attribute in &shape.attributes {
        let statistics = attribute.statistics.as_ref()?;
        key = aligned(key, alignment(attribute, statistics.width)) + statistics.width * (1.0 - statistics.nulls);
    }
    let nulls = shape
        .attributes
        .iter()
        .filter_map(|attribute| attribute.statistics.as_ref());
    let header = if nulls.into_iter().any(|statistics| statistics.nulls > 0.0) {
        HEADER_WITH_NULLS
    } else {
        HEADER
    };
    let alone = header + aligned(key, 8.0) + ITEM;
    let equal = (rows / distinct(shape, rows)).min(MOST_EQUAL);
    // Where most keys are there once, most entries have one row.
    let row = if shape.joins_equal_keys && equal >= 2.0 {
        alone / equal + ROW_POINTER
    } else {
        alone
    };
    let leaves = (rows * row / ((block - PAGE_OVERHEAD) * shape.fill)).ceil();
    // One page says where the root is, and pages of pointers lead to the leaves.
    Some((1.0 + leaves * (1.0 + alone / block)) * block)
}

/// How many different keys there are at most.
fn distinct(shape: &Shape, rows: f64) -> f64 {
    let mut product = 1.0;
    for attribute in &shape.attributes {
        product *= match attribute
            .statistics
            .as_ref()
            .map_or(-1.0, |statistics| statistics.distinct)
        {
            part if part < 0.0 => -part * rows,
            number => number,
        };
    }
    product.clamp(1.0, rows.max(1.0))
}

fn alignment(attribute: &Attribute, width: f64) -> f64 {
    match attribute.alignment {
        _ if attribute.varies && width <= SHORT_TEXT => 1.0,
        's' => 2.0,
        'i' => 4.0,
        'd' => 8.0,
        _ => 1.0,
    }
}

fn aligned(length: f64, to: f64) -> f64 {
    (length / to).ceil() * to
}

#[cfg(test)]
mod tests {
    use super::super::indexes::Statistics;
    use super::*;

    fn shape(attributes: &[(f64, f64, f64, char)]) -> Shape {
        Shape {
            attributes: attributes
                .iter()
                .map(|(width, nulls, distinct, alignment)| Attribute {
                    statistics: Some(Statistics {
                        width: *width,
                        nulls: *nulls,
                        distinct: *distinct,
                    }),
                    alignment: *alignment,
                    varies: false,
                })
                .collect(),
            joins_equal_keys: true,
            fill: 0.9,
        }
    }

    /// Within a twentieth of what PostgreSQL 15 made of a million rows.
    fn about(shape: &Shape, pages: f64) {
        let bytes = fresh_bytes(shape, 1_000_000.0, 8192.0).unwrap();
        let ratio = bytes / 8192.0 / pages;
        assert!((0.95..1.05).contains(&ratio), "{ratio}");
    }

    #[test]
    fn indexes_are_as_large_as_postgresql_builds_them() {
        about(&shape(&[(8.0, 0.0, -1.0, 'd')]), 2745.0);
        about(&shape(&[(16.0, 0.0, -1.0, 'c')]), 3853.0);
        about(&shape(&[(4.0, 0.0, -1.0, 'i'), (8.0, 0.0, -1.0, 'd')]), 3849.0);
        about(&shape(&[(4.0, 0.0, 100.0, 'i')]), 849.0);
    }

    #[test]
    fn what_was_never_analyzed_is_not_guessed() {
        let mut shape = shape(&[(8.0, 0.0, -1.0, 'd'), (8.0, 0.0, -1.0, 'd')]);
        shape.attributes[1].statistics = None;
        assert_eq!(fresh_bytes(&shape, 1000.0, 8192.0), None);
    }

    #[test]
    fn no_rows_are_hardly_any_bytes() {
        let bytes = fresh_bytes(&shape(&[(8.0, 0.0, 0.0, 'd')]), 0.0, 8192.0).unwrap();
        assert!(bytes <= 2.0 * 8192.0, "{bytes}");
    }
}
