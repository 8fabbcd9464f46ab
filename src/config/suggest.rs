//! Did you mean …?

/// The longest word that is compared; longer ones are no slips of the finger.
const LONGEST: usize = 64;

/// The word that is nearest to another, when it is near enough: one slip in three letters.
pub(super) fn nearest<'w>(word: &str, words: impl IntoIterator<Item = &'w str>) -> Option<&'w str> {
    let word: Vec<char> = word.to_lowercase().chars().collect();
    if word.len() > LONGEST {
        return None;
    }
    words
        .into_iter()
        .map(|candidate| {
            let letters: Vec<char> = candidate.to_lowercase().chars().collect();
            (distance(&word, &letters), word.len().max(letters.len()), candidate)
        })
        .filter(|(distance, length, _)| distance * 3 <= *length)
        .min_by_key(|(distance, _, _)| *distance)
        .map(|(_, _, candidate)| candidate)
}

/// How many letters must be added, left out, changed or swapped with their neighbour (optimal string
/// alignment).
fn distance(left: &[char], right: &[char]) -> usize {
    let mut before: Vec<usize> = Vec::new();
    let mut above: Vec<usize> = (0..=right.len()).collect();
    for (row, l) in left.iter().enumerate() {
        let mut current = vec![row + 1];
        for (column, r) in right.iter().enumerate() {
            let swapped = row > 0 && column > 0 && left.get(row - 1) == Some(r) && right.get(column - 1) == Some(l);
            let cost = |line: &[usize], at: usize| line.get(at).copied().unwrap_or(usize::MAX / 2);
            let best = (cost(&above, column) + usize::from(l != r))
                .min(cost(&above, column + 1) + 1)
                .min(cost(&current, column) + 1);
            current.push(if swapped {
                best.min(cost(&before, column - 1) + 1)
            } else {
                best
            });
        }
        before = std::mem::replace(&mut above, current);
    }
    above.last().copied().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slips_are_counted() {
        let count =
            |left: &str, right: &str| distance(&left.chars().collect::<Vec<_>>(), &right.chars().collect::<Vec<_>>());
        assert_eq!(count("tabel", "table"), 1);
        assert_eq!(count("", "abc"), 3);
        assert_eq!(count("abc", ""), 3);
        assert_eq!(count("kitten", "sitting"), 3);
        assert_eq!(count("same", "same"), 0);
    }

    #[test]
    fn only_a_near_word_is_suggested() {
        let words = ["table", "age_column", "keep", "where"];
        assert_eq!(nearest("tabel", words), Some("table"));
        assert_eq!(nearest("age-column", words), Some("age_column"));
        assert_eq!(nearest("Keep", words), Some("keep"));
        assert_eq!(nearest("colour", words), None);
        assert_eq!(nearest("", words), None);
        assert_eq!(nearest(&"x".repeat(100_000), words), None);
    }
}
