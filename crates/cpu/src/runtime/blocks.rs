//! Division of a length into blocks.

use std::ops::Range;

/// The length of blocks that are as even as whole `unit`s allow and at most `max` before rounding up to a whole
/// unit.
pub(crate) fn block_size(len: usize, max: usize, unit: usize) -> usize {
    len.div_ceil(len.div_ceil(max).max(1))
        .next_multiple_of(unit)
}

/// The blocks of a length; the last may be shorter.
pub(crate) fn blocks(len: usize, size: usize) -> impl Iterator<Item = Range<usize>> {
    (0..len)
        .step_by(size)
        .map(move |first| first..len.min(first + size))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_even_and_cover_all() {
        assert_eq!(block_size(197, 320, 8), 200);
        assert_eq!(block_size(3072, 1024, 8), 1024);
        assert_eq!(block_size(1000, 999, 1), 500);
        assert_eq!(block_size(0, 5, 4), 0);
        let found: Vec<_> = blocks(10, 4).collect();
        assert_eq!(found, [0..4, 4..8, 8..10]);
        assert_eq!(blocks(0, 4).count(), 0);
    }
}
