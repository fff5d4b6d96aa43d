//! The tiles chosen for linear layers and attention.

use std::collections::HashMap;

use vit_msn_tensor::Dtype;

use crate::kernels::attention::AttentionShape;

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
pub(crate) struct ChosenTiles {
    layers: HashMap<LayerShape, &'static str>,
    attention: HashMap<AttentionShape, &'static str>,
}

impl ChosenTiles {
    /// The tile chosen for layers of this shape.
    pub fn of(&self, shape: LayerShape) -> Option<&'static str> {
        self.layers.get(&shape).copied()
    }

    /// Chooses a tile for layers of this shape.
    pub fn choose(&mut self, shape: LayerShape, id: &'static str) {
        self.layers.insert(shape, id);
    }

    /// The tile chosen for attention of this shape.
    pub fn of_attention(&self, shape: &AttentionShape) -> Option<&'static str> {
        self.attention.get(&as_one_image(shape)).copied()
    }

    /// Chooses a tile for attention of this shape.
    pub fn choose_attention(&mut self, shape: AttentionShape, id: &'static str) {
        self.attention.insert(as_one_image(&shape), id);
    }
}

/// How heads are divided into images doesn't change a tile's time.
fn as_one_image(shape: &AttentionShape) -> AttentionShape {
    AttentionShape {
        batch: 1,
        heads: shape.batch * shape.heads,
        ..*shape
    }
}
