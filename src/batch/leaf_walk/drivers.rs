//! The ways through a leaf: by age, by a key that counts up, block by block.

use super::ladder::{Ladder, Next};
use super::{Halt, Walk};
use crate::batch::attempt::Slice;
use crate::batch::pace::Pace;
use crate::batch::statement::Range;
use crate::batch::stride::{End, Stride};
use crate::batch::{blocks, key_walk};
use crate::postgres::catalog::RelationKind;
use crate::postgres::catalog::leaves::Leaf;

/// Rows of the first batch, and the bounds of all.
const ROWS: (u64, u64, u64) = (1000, 100, 50_000);

/// The most blocks of a batch.
const MOST_BLOCKS: u64 = 16_384;

/// The most bytes that the rows of a batch should have.
const BYTES: u64 = 8 << 20;

impl Walk<'_> {
    pub(super) async fn by_age(&mut self, leaf: &Leaf, ladder: &mut Ladder) -> Result<(), Halt> {
        let (first, least, most) = self.outside.rows(of_size(leaf));
        let mut pace = Pace::new(first, least, most);
        let mut stride = Stride::new(self.statements.age_type(), self.statements.last_age());
        let mut low: Option<String> = None;
        loop {
            let (size, so_far) = (pace.size(), self.tally.rows);
            // Of objects outside, and of what another server does, too little is known to guess.
            let end = if self.outside.is_busy() || leaf.relation.kind != RelationKind::Table {
                End::Searched { rows: size }
            } else {
                stride.next(size)
            };
            let slice = Slice::Ages {
                after: low.clone(),
                end: end.clone(),
            };
            match self.batch(leaf, &slice, &mut pace, ladder).await? {
                Next::After(Range::Ages {
                    after,
                    through: Some(through),
                }) => {
                    let (rows, elapsed) = (self.tally.rows - so_far, ladder.last.elapsed);
                    stride.took((after.as_deref(), &through), size, &end, rows, elapsed);
                    low = Some(through);
                }
                Next::After(_) => return Ok(()),
                Next::Again => stride.stumbled(),
                Next::Crowded => {
                    let connection = self.context.session.connection();
                    let (from, until) =
                        blocks::of_rows(connection, self.statements, &leaf.relation, low.as_deref()).await?;
                    tracing::debug!(
                        batch.relation = %leaf.relation.display(), batch.from = from, batch.until = until,
                        "too many rows share one age for a batch by age; going on block by block"
                    );
                    return self.by_block(leaf, from, until, ladder).await;
                }
            }
        }
    }

    pub(super) async fn by_key(&mut self, leaf: &Leaf, ladder: &mut Ladder) -> Result<(), Halt> {
        let Some(column) = leaf.key.clone() else { return Ok(()) };
        let connection = self.context.session.connection();
        let Some((from, to)) = key_walk::bounds(connection, self.statements, &leaf.relation, &column).await? else {
            return Ok(());
        };
        let (first, least, most) = self.outside.rows(of_size(leaf));
        let mut pace = Pace::new(first, least, most);
        let mut after = from.saturating_sub(1);
        while after < to {
            let slice = Slice::Keys {
                column: column.clone(),
                after,
                last: to,
                rows: pace.size(),
            };
            if let Next::After(Range::Keys { through, .. }) = self.batch(leaf, &slice, &mut pace, ladder).await? {
                after = through;
            }
        }
        Ok(())
    }

    pub(super) async fn by_block(
        &mut self,
        leaf: &Leaf,
        from: u32,
        until: u32,
        ladder: &mut Ladder,
    ) -> Result<(), Halt> {
        let (first, _, most) = self.outside.rows(of_size(leaf));
        let most = if self.outside.is_busy() {
            blocks::holding(&leaf.relation, most)
        } else {
            MOST_BLOCKS
        };
        let mut pace = Pace::new(blocks::holding(&leaf.relation, first), 1, most);
        let mut block = from;
        while block < until {
            let end = u32::try_from(pace.size()).map_or(until, |blocks| block.saturating_add(blocks).min(until));
            let slice = Slice::Blocks {
                from: block,
                until: end,
            };
            if let Next::After(_) = self.batch(leaf, &slice, &mut pace, ladder).await? {
                block = end;
            }
        }
        Ok(())
    }
}

/// The bounds of batches where rows may be large.
fn of_size(leaf: &Leaf) -> (u64, u64, u64) {
    let (first, least, most) = ROWS;
    let fitting = leaf.row_bytes.map_or(most, |bytes| BYTES / bytes.max(1));
    let most = fitting.clamp(least, most);
    (first.min(most), least, most)
}
