//! The tiles chosen for linear layers.

use std::collections::HashMap;

use vit_msn_tensor::Dtype;

/// Rows and columns of the largest tile of any linear layer. The sides of the others divide it.
pub(crate) const MAX_SIDE: usize = 128;

/// The properties of a layer that determine how fast a tile computes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct LayerShape {
    /// Rows of x.
    pub rows: usize,
    /// K: the number of inputs.
    pub inputs: usize,
    /// N: the number of outputs.
    pub outputs: usize,
    /// The weight's storage type.
    pub dtype: Dtype,
}

/// The tiles that were measured to be the fastest, by id.
#[derive(Default)]
pub(crate) struct ChosenTiles(HashMap<LayerShape, &'static str>);

impl ChosenTiles {
    /// The tile chosen for layers of this shape.
    pub fn of(&self, shape: LayerShape) -> Option<&'static str> {
        self.0.get(&shape).copied()
    }

    /// Chooses a tile for layers of this shape.
    pub fn choose(&mut self, shape: LayerShape, id: &'static str) {
        self.0.insert(shape, id);
    }
}
