//! One vector per image.

use bytemuck::NoUninit;
use vit_msn_tensor::{Error, Pooling, Result, format_dims};

use super::{LINE, cost};
use crate::buffers::GpuTensor;
use crate::pipelines::{Constants, Kernel};
use crate::stream::{Op, Stream};

const POOL: Kernel = Kernel {
    name: "pool",
    sources: &[include_str!("pool.wgsl")],
    entry_point: "main",
};
const CONSTANTS: Constants = &["MEAN"];

#[repr(C)]
#[derive(Clone, Copy, NoUninit)]
struct Params {
    tokens: u32,
    width: u32,
}

/// x `[batch, tokens, width]` to `[batch, width]`.
///
/// # Errors
/// INVALID_ARGUMENT for another rank or the mean of zero patches, UNSUPPORTED, OUT_OF_MEMORY, ENGINE_DEAD.
pub fn pool(stream: &mut Stream, x: &GpuTensor, pooling: Pooling) -> Result<GpuTensor> {
    let names = ["batch", "tokens", "width"];
    let [batch, tokens, width] = x.shape("The input of pooling", names)?;
    if pooling == Pooling::Mean && tokens < 2 {
        return Err(Error::InvalidArgument(format!(
            "Mean pooling needs at least one patch in addition to the CLS token, but the shape {} has none.",
            format_dims(x.dims())
        )));
    }
    let y = stream.uninit(&[batch, width])?;
    stream.record(Op {
        kernel: POOL,
        // The values of Pooling are the kernel's MEAN.
        constants: (CONSTANTS, &[pooling as u32]),
        uniforms: Params {
            tokens: tokens as u32,
            width: width as u32,
        },
        reads: &[x.binding()],
        writes: &[y.binding()],
        workgroups: [width.div_ceil(LINE), batch, 1],
        cost: cost(
            match pooling {
                Pooling::Cls => 2 * y.len() as u64,
                Pooling::Mean => x.len() as u64 + y.len() as u64,
            },
            x.len() as u64,
        ),
    })?;
    Ok(y)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_support::{assert_close, code, on_shapes, random, read, stream};

    #[test]
    fn odd_shapes_match_the_definition() {
        let shapes = [1usize..5, 2usize..40, 1usize..150];
        on_shapes(shapes, |stream, [batch, tokens, width]| {
            let (x, x_gpu) = random(stream, &[batch, tokens, width], 1);
            let cls: Vec<f64> = x
                .chunks(tokens * width)
                .flat_map(|sample| sample[..width].iter().map(|&v| f64::from(v)))
                .collect();
            let mean: Vec<f64> = x
                .chunks(tokens * width)
                .flat_map(|sample| {
                    (0..width).map(|column| {
                        let patches = sample[width..].iter().skip(column).step_by(width);
                        patches.map(|&v| f64::from(v)).sum::<f64>() / (tokens - 1) as f64
                    })
                })
                .collect();
            for (pooling, expected) in [(Pooling::Cls, cls), (Pooling::Mean, mean)] {
                let y = pool(stream, &x_gpu, pooling).unwrap();
                assert_eq!(y.dims(), [batch, width]);
                assert_close(&read(stream, &y), &expected, 1e-6);
            }
        });
    }

    #[test]
    fn shapes_that_do_not_fit_are_errors() {
        let Some(mut stream) = stream() else { return };
        let (_, cls_only) = random(&mut stream, &[2, 1, 3], 1);
        let (_, flat) = random(&mut stream, &[2, 3], 1);
        assert!(pool(&mut stream, &cls_only, Pooling::Cls).is_ok());
        for x in [&cls_only, &flat] {
            assert_eq!(
                code(pool(&mut stream, x, Pooling::Mean)),
                "INVALID_ARGUMENT"
            );
        }
    }
}
