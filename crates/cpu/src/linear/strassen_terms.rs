//! Strassen's algorithm: products of matrices divided into two by two blocks, with seven multiplications of
//! blocks instead of eight (Strassen, "Gaussian elimination is not optimal", 1969).

/// An operand of a product, made of blocks: 0 and 1 are the upper two, 2 and 3 the lower.
#[derive(Clone, Copy)]
pub(crate) enum Operand {
    Block(usize),
    Sum(usize, usize),
    Difference(usize, usize),
}

impl Operand {
    /// Whether the operand is a single block, unchanged.
    pub const fn is_block(self) -> bool {
        matches!(self, Self::Block(_))
    }
}

/// A product of blocks of A and B, and the blocks of C to which it is added or, if negative, from which it is
/// subtracted.
pub(crate) struct Term {
    pub a: Operand,
    pub b: Operand,
    pub c: &'static [Share],
}

pub(crate) struct Share {
    pub block: usize,
    pub negative: bool,
}

use Operand::{Block, Difference, Sum};

const fn plus(block: usize) -> Share {
    Share {
        block,
        negative: false,
    }
}

const fn minus(block: usize) -> Share {
    Share {
        block,
        negative: true,
    }
}

const fn term(a: Operand, b: Operand, c: &'static [Share]) -> Term {
    Term { a, b, c }
}

/// The seven terms whose shares add up to C = A · B.
pub(crate) const TERMS: [Term; 7] = [
    term(Sum(0, 3), Sum(0, 3), &[plus(0), plus(3)]),
    term(Sum(2, 3), Block(0), &[plus(2), minus(3)]),
    term(Block(0), Difference(1, 3), &[plus(1), plus(3)]),
    term(Block(3), Difference(2, 0), &[plus(0), plus(2)]),
    term(Sum(0, 1), Block(3), &[minus(0), plus(1)]),
    term(Difference(2, 0), Sum(0, 1), &[plus(3)]),
    term(Difference(1, 3), Sum(2, 3), &[plus(0)]),
];

/// The single term of an undivided matrix.
pub(crate) const WHOLE: [Term; 1] = [term(Block(0), Block(0), &[plus(0)])];
