//! In which order views are refreshed: each after those that it reads.

/// Places in the order in which they come, each after all of `after[place]`; of several that could be
/// next, the one that was written first.
///
/// # Errors
/// The places that wait for each other.
pub(super) fn order(after: &[Vec<usize>]) -> Result<Vec<usize>, Vec<usize>> {
    let mut ordered: Vec<usize> = Vec::with_capacity(after.len());
    let mut left: Vec<usize> = (0..after.len()).collect();
    while !left.is_empty() {
        let ready = left.iter().position(|place| {
            let waits_for = after.get(*place).into_iter().flatten();
            waits_for.into_iter().all(|other| !left.contains(other))
        });
        let Some(ready) = ready else { return Err(left) };
        ordered.push(left.remove(ready));
    }
    Ok(ordered)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_is_written_first_comes_first_unless_it_reads_another() {
        assert_eq!(order(&[vec![], vec![], vec![]]), Ok(vec![0, 1, 2]));
        assert_eq!(order(&[vec![2], vec![], vec![1]]), Ok(vec![1, 2, 0]));
        assert_eq!(order(&[]), Ok(vec![]));
    }

    #[test]
    fn views_that_read_each_other_have_no_order() {
        assert_eq!(order(&[vec![], vec![2], vec![1]]), Err(vec![1, 2]));
        assert_eq!(order(&[vec![0]]), Err(vec![0]));
    }

    proptest! {
        #[test]
        fn each_comes_once_and_after_what_it_reads(
            edges in prop::collection::vec((0_usize..12, 0_usize..12), 0..40),
        ) {
            let mut after = vec![Vec::new(); 12];
            // Only to smaller places, so that there is an order.
            for (one, other) in edges.into_iter().filter(|(one, other)| other < one) {
                after[one].push(other);
            }
            // Written the other way round, so that the order is not the one of the text.
            let reversed: Vec<Vec<usize>> = (0..12)
                .map(|place| after[11 - place].iter().map(|other| 11 - other).collect())
                .collect();
            let ordered = order(&reversed).unwrap();
            let at = |place: usize| ordered.iter().position(|other| *other == place);
            for (place, waits_for) in reversed.iter().enumerate() {
                prop_assert!(at(place).is_some());
                for other in waits_for {
                    prop_assert!(at(*other) < at(place));
                }
            }
            prop_assert_eq!(ordered.len(), 12);
        }
    }
}
