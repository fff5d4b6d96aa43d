//! Element types and their little-endian bytes, as checkpoints store them.

use half::{bf16, f16};

use crate::{Error, Result, format_dims, format_number, try_vec};

/// How weights are stored. Activations and accumulators are always float32.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Dtype {
    /// IEEE 754 single precision.
    F32,
    /// IEEE 754 half precision.
    F16,
    /// bfloat16: the upper half of a float32.
    BF16,
    /// Signed bytes, for quantised weights.
    I8,
}

impl Dtype {
    /// Bytes of one element.
    pub fn size(self) -> usize {
        match self {
            Dtype::F32 => 4,
            Dtype::F16 | Dtype::BF16 => 2,
            Dtype::I8 => 1,
        }
    }

    /// The public name, as in `model.dtype`.
    pub fn name(self) -> &'static str {
        match self {
            Dtype::F32 => "float32",
            Dtype::F16 => "float16",
            Dtype::BF16 => "bfloat16",
            Dtype::I8 => "int8",
        }
    }

    /// The type with the given public name.
    ///
    /// # Errors
    /// INVALID_ARGUMENT, listing the accepted names.
    pub fn from_name(name: &str) -> Result<Self> {
        [Dtype::F32, Dtype::F16, Dtype::BF16, Dtype::I8].into_iter().find(|dtype| dtype.name() == name).ok_or_else(
            || {
                Error::InvalidArgument(format!(
                    "Unknown dtype {name:?}: use \"float32\", \"float16\", \"bfloat16\" or \"int8\"."
                ))
            },
        )
    }

    /// Widens little-endian `bytes` into `out`.
    ///
    /// # Errors
    /// INVALID_ARGUMENT if the lengths disagree, UNSUPPORTED for int8, whose values need scales.
    pub fn decode(self, bytes: &[u8], out: &mut [f32]) -> Result<()> {
        if Some(bytes.len()) != out.len().checked_mul(self.size()) {
            return Err(Error::InvalidArgument(format!(
                "{} bytes of {} don't fill the shape {}.",
                bytes.len(),
                self.name(),
                format_dims(&[out.len()])
            )));
        }
        match self {
            Dtype::F32 => decode_with(bytes, out, f32::from_le_bytes),
            Dtype::F16 => decode_with(bytes, out, |b| f16::from_le_bytes(b).to_f32()),
            Dtype::BF16 => decode_with(bytes, out, |b| bf16::from_le_bytes(b).to_f32()),
            Dtype::I8 => return Err(no_scales()),
        }
        Ok(())
    }

    /// Like [`Dtype::decode`], with every value rounded through `target`. `place(index)` names a value's position in
    /// errors.
    ///
    /// # Errors
    /// As `decode`, and INVALID_CHECKPOINT for a value that isn't finite or is too large for `target`.
    pub fn decode_rounded(
        self,
        bytes: &[u8],
        target: Dtype,
        out: &mut [f32],
        place: impl Fn(usize) -> String,
    ) -> Result<()> {
        self.decode(bytes, out)?;
        for (index, value) in out.iter_mut().enumerate() {
            let rounded = target.round(*value);
            if !rounded.is_finite() {
                return Err(target.unfit(&place(index), *value));
            }
            *value = rounded;
        }
        Ok(())
    }

    /// INVALID_CHECKPOINT for the value at `place`, which this type can't hold.
    pub fn unfit(self, place: &str, value: f32) -> Error {
        Error::InvalidCheckpoint(if value.is_finite() {
            format!(
                "{place} is {}, too large for {}: load it with dtype \"float32\".",
                format_number(value.into()),
                self.name()
            )
        } else {
            format!(
                "{place} is {}, which isn't finite: the checkpoint is damaged.",
                format_number(value.into())
            )
        })
    }

    /// `values` rounded to this type (nearest, ties to even) as little-endian bytes; too large ones become infinite.
    ///
    /// # Errors
    /// OUT_OF_MEMORY, UNSUPPORTED for int8.
    pub fn encode(self, values: &[f32]) -> Result<Vec<u8>> {
        let count = values
            .len()
            .checked_mul(self.size())
            .ok_or(Error::out_of_memory(values.len(), self.size()))?;
        let mut bytes = try_vec(count)?;
        self.encode_into(values, &mut bytes)?;
        Ok(bytes)
    }

    /// Like [`Dtype::encode`], into `bytes`, whose length must fit.
    ///
    /// # Errors
    /// UNSUPPORTED for int8.
    pub fn encode_into(self, values: &[f32], bytes: &mut [u8]) -> Result<()> {
        match self {
            Dtype::F32 => encode_with(values, bytes, f32::to_le_bytes),
            Dtype::F16 => encode_with(values, bytes, |v| f16::from_f32(v).to_le_bytes()),
            Dtype::BF16 => encode_with(values, bytes, |v| bf16::from_f32(v).to_le_bytes()),
            Dtype::I8 => return Err(no_scales()),
        }
        Ok(())
    }

    /// Whether all little-endian `bytes` of this type are finite numbers.
    pub fn are_finite(self, bytes: &[u8]) -> bool {
        // A number is finite unless all bits of its exponent are set.
        let halves = |exponent: u16| {
            let (values, _) = bytes.as_chunks::<2>();
            let finite = |&value| u16::from_le_bytes(value) & exponent != exponent;
            values.iter().fold(true, |all, value| all & finite(value))
        };
        match self {
            Dtype::F32 => {
                let (values, _) = bytes.as_chunks::<4>();
                let finite = |&value| f32::from_le_bytes(value).is_finite();
                values.iter().fold(true, |all, value| all & finite(value))
            }
            Dtype::F16 => halves(0x7c00),
            Dtype::BF16 => halves(0x7f80),
            Dtype::I8 => true,
        }
    }

    /// `value` rounded to this type and widened again; unchanged for int8.
    pub fn round(self, value: f32) -> f32 {
        match self {
            Dtype::F32 | Dtype::I8 => value,
            Dtype::F16 => f16::from_f32(value).to_f32(),
            Dtype::BF16 => bf16::from_f32(value).to_f32(),
        }
    }
}

fn decode_with<const SIZE: usize>(
    bytes: &[u8],
    out: &mut [f32],
    widen: impl Fn([u8; SIZE]) -> f32,
) {
    let (chunks, _) = bytes.as_chunks::<SIZE>();
    for (value, chunk) in out.iter_mut().zip(chunks) {
        *value = widen(*chunk);
    }
}

fn encode_with<const SIZE: usize>(
    values: &[f32],
    bytes: &mut [u8],
    narrow: impl Fn(f32) -> [u8; SIZE],
) {
    let (chunks, _) = bytes.as_chunks_mut::<SIZE>();
    for (chunk, &value) in chunks.iter_mut().zip(values) {
        *chunk = narrow(value);
    }
}

fn no_scales() -> Error {
    Error::Unsupported("int8 values can't be converted without their scales.".to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn names_and_sizes() {
        for (dtype, name, size) in [
            (Dtype::F32, "float32", 4),
            (Dtype::F16, "float16", 2),
            (Dtype::BF16, "bfloat16", 2),
            (Dtype::I8, "int8", 1),
        ] {
            assert_eq!((dtype.name(), dtype.size()), (name, size));
            assert_eq!(Dtype::from_name(name), Ok(dtype));
        }
        assert!(
            Dtype::from_name("float64")
                .unwrap_err()
                .to_string()
                .contains("float64")
        );
    }

    #[test]
    fn every_half_survives_the_round_trip() {
        let bytes: Vec<u8> = (0..=u16::MAX).flat_map(u16::to_le_bytes).collect();
        for dtype in [Dtype::F16, Dtype::BF16] {
            let mut values = vec![0.0; 1 << 16];
            dtype.decode(&bytes, &mut values).unwrap();
            let back = dtype.encode(&values).unwrap();
            for (index, value) in values
                .iter()
                .enumerate()
                .filter(|(_, value)| !value.is_nan())
            {
                assert_eq!(
                    bytes[2 * index..2 * index + 2],
                    back[2 * index..2 * index + 2],
                    "{value}"
                );
                assert_eq!(dtype.round(*value), *value);
            }
        }
    }

    #[test]
    fn known_values() {
        let mut out = [0.0];
        Dtype::F16.decode(&[0x00, 0x3c], &mut out).unwrap();
        assert_eq!(out, [1.0]);
        Dtype::BF16.decode(&[0x80, 0xbf], &mut out).unwrap();
        assert_eq!(out, [-1.0]);
        assert_eq!(
            Dtype::F16.encode(&[65504.0, 1e6]).unwrap(),
            [0xff, 0x7b, 0x00, 0x7c]
        );
    }

    #[test]
    fn ties_round_to_even() {
        // One unit in the last place at 1 is 2^-10 in float16 and 2^-7 in bfloat16.
        for (dtype, unit) in [(Dtype::F16, 1.0 / 1024.0), (Dtype::BF16, 1.0 / 128.0)] {
            for (units, rounded) in [
                (0.5, 0.0),
                (1.5, 2.0),
                (2.5, 2.0),
                (0.501, 1.0),
                (0.499, 0.0),
            ] {
                assert_eq!(dtype.round(1.0 + units * unit), 1.0 + rounded * unit);
                let bytes = dtype.encode(&[-1.0 - units * unit]).unwrap();
                let mut back = [0.0];
                dtype.decode(&bytes, &mut back).unwrap();
                assert_eq!(back, [-1.0 - rounded * unit]);
            }
        }
    }

    #[test]
    fn wrong_lengths_and_int8_are_errors() {
        assert_eq!(
            Dtype::F32
                .decode(&[0; 7], &mut [0.0; 2])
                .unwrap_err()
                .code(),
            "INVALID_ARGUMENT"
        );
        assert_eq!(
            Dtype::I8.decode(&[0; 2], &mut [0.0; 2]).unwrap_err().code(),
            "UNSUPPORTED"
        );
        assert_eq!(Dtype::I8.encode(&[0.0]).unwrap_err().code(), "UNSUPPORTED");
    }

    #[test]
    fn bytes_are_finite_where_their_values_are() {
        for value in [
            0.0,
            -1.0,
            6e4,
            f32::MAX,
            f32::INFINITY,
            -f32::INFINITY,
            f32::NAN,
        ] {
            for dtype in [Dtype::F32, Dtype::F16, Dtype::BF16] {
                let bytes = dtype.encode(&[1.0, value, 2.0]).unwrap();
                assert_eq!(dtype.are_finite(&bytes), dtype.round(value).is_finite());
            }
        }
    }

    proptest! {
        #[test]
        fn float32_bytes_are_exact(values in prop::collection::vec(any::<f32>(), 0..50)) {
            let bytes = Dtype::F32.encode(&values).unwrap();
            let mut back = vec![0.0; values.len()];
            Dtype::F32.decode(&bytes, &mut back).unwrap();
            prop_assert!(values.iter().zip(&back).all(|(a, b)| a.to_bits() == b.to_bits()));
        }

        #[test]
        fn halves_round_to_nearest(value in -6e4f32..6e4) {
            prop_assert!((Dtype::F16.round(value) - value).abs() <= value.abs() / 2048.0 + 6e-8);
            prop_assert!((Dtype::BF16.round(value) - value).abs() <= value.abs() / 256.0);
        }
    }
}
