//! "Did you mean": the names most like a misspelt one.

/// The names that are likely meant by `wanted`, nearest first, each once; at most `limit`. Letter
/// case counts for nothing: `User` is the nearest name to `user`.
#[must_use]
pub fn nearest<'a>(wanted: &str, names: impl IntoIterator<Item = &'a str>, limit: usize) -> Vec<&'a str> {
    let wanted: Vec<char> = wanted.to_lowercase().chars().collect();
    // One typo in a short word, up to a third of a long one.
    let most = (wanted.len() / 3).max(1);
    let mut ranked: Vec<(usize, &str)> = names
        .into_iter()
        .map(|name| (distance(&wanted, name), name))
        .filter(|(distance, _)| *distance <= most)
        .collect();
    ranked.sort_unstable();
    ranked.dedup();
    ranked.truncate(limit);
    ranked.into_iter().map(|(_, name)| name).collect()
}

/// How many letters must be inserted, removed or replaced to get from one to the other.
fn distance(wanted: &[char], name: &str) -> usize {
    let mut row: Vec<usize> = (0..=wanted.len()).collect();
    for (i, letter) in name.to_lowercase().chars().enumerate() {
        let mut diagonal = i;
        let mut left = i + 1;
        for (cell, other) in row.iter_mut().skip(1).zip(wanted) {
            let replaced = diagonal + usize::from(letter != *other);
            diagonal = *cell;
            left = replaced.min(diagonal + 1).min(left + 1);
            *cell = left;
        }
        if let Some(first) = row.first_mut() {
            *first = i + 1;
        }
    }
    row.last().copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_distance_is_the_number_of_edits() {
        let of = |a: &str, b: &str| distance(&a.chars().collect::<Vec<_>>(), b);
        assert_eq!(of("kitten", "sitting"), 3);
        assert_eq!(of("", "abc"), 3);
        assert_eq!(of("abc", ""), 3);
        assert_eq!(of("same", "Same"), 0);
    }

    #[test]
    fn only_likely_names_are_offered() {
        let names = ["events", "event_hourly", "users", "User", "x"];
        assert_eq!(nearest("evnts", names, 3), ["events"]);
        assert_eq!(nearest("user", names, 3), ["User", "users"]);
        assert!(nearest("payments", names, 3).is_empty());
        assert_eq!(nearest("cancelled", ["canceled", "active"], 1), ["canceled"]);
    }
}
