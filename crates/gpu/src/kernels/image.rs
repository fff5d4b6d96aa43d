//! The image processor: 8-bit images to pixel values, bit-identical to Pillow's resampling.

use bytemuck::NoUninit;
use vit_msn_tensor::{Error, Result, check_len};

use super::cost;
use crate::buffers::{Binding, DeviceBuffer, GpuTensor, size_class};
use crate::pipelines::{Constants, Kernel};
use crate::stream::{Op, Stream};

const IMAGE: Kernel = Kernel {
    name: "resample",
    sources: &[include_str!("image.wgsl")],
    entry_point: "main",
};
const CONSTANTS: Constants = &["CHANNELS", "VERTICAL", "LAST"];

/// The side of a workgroup.
const SIDE: usize = 8;
/// Bytes per pixel between the passes.
const PACKED: usize = 4;
/// The row alignment of a copied texture.
const PITCH: usize = wgpu::COPY_BYTES_PER_ROW_ALIGNMENT as usize;

/// An 8-bit image on the device.
pub struct GpuImage {
    buffer: DeviceBuffer,
    width: usize,
    height: usize,
    channels: usize,
    /// Bytes per row.
    pitch: usize,
}

impl GpuImage {
    /// An image to be filled by [`GpuImage::write`]: width, height and 1 to 4 channels (grey, grey and alpha, RGB,
    /// RGBA).
    ///
    /// # Errors
    /// INVALID_ARGUMENT, UNSUPPORTED for an image that exceeds a binding, OUT_OF_MEMORY, ENGINE_DEAD.
    pub fn new(stream: &Stream, [width, height, channels]: [usize; 3]) -> Result<Self> {
        if width == 0 || height == 0 || !(1..=4).contains(&channels) {
            return Err(Error::InvalidArgument(format!(
                "There is no image of {width}×{height} pixels and {channels} channels."
            )));
        }
        let pitch = width.saturating_mul(channels);
        Self::uninit(stream, [width, height, channels], pitch)
    }

    /// Uploads bytes of the image, starting at `offset`, a multiple of 4. Only the last upload's length may not be a
    /// multiple of 4.
    ///
    /// # Errors
    /// INVALID_ARGUMENT if the bytes exceed the image, ENGINE_DEAD.
    pub fn write(&self, stream: &mut Stream, offset: usize, bytes: &[u8]) -> Result<()> {
        let end = offset.checked_add(bytes.len());
        if !offset.is_multiple_of(4) || end.is_none_or(|end| end > self.pitch * self.height) {
            return Err(Error::InvalidArgument(format!(
                "{} bytes at offset {offset} don't fit an image of {}×{} pixels.",
                bytes.len(),
                self.width,
                self.height
            )));
        }
        let (words, rest) = bytes.as_chunks::<4>();
        let (words, buffer) = (words.as_flattened(), self.buffer.buffer());
        stream.write(buffer, offset as u64, words)?;
        if rest.is_empty() {
            return Ok(());
        }
        let mut last = [0; 4];
        last[..rest.len()].copy_from_slice(rest);
        stream.write(buffer, (offset + words.len()) as u64, &last)
    }

    /// Copies an rgba8unorm texture, which may be destroyed once this returns.
    ///
    /// # Errors
    /// As [`GpuImage::new`].
    pub fn from_texture(stream: &mut Stream, texture: &wgpu::Texture) -> Result<Self> {
        let size = [texture.width() as usize, texture.height() as usize, PACKED];
        let pitch = (size[0] * PACKED).next_multiple_of(PITCH);
        let image = Self::uninit(stream, size, pitch)?;
        stream.copy_texture(texture, image.buffer.buffer(), pitch as u32)?;
        Ok(image)
    }

    /// [`GpuImage::from_texture`] of a web page's texture with this width and height.
    #[cfg(target_arch = "wasm32")]
    pub fn from_page(
        stream: &mut Stream,
        texture: wgpu::webgpu::GpuTexture,
        [width, height]: [u32; 2],
    ) -> Result<Self> {
        let descriptor = wgpu::TextureDescriptor {
            label: None,
            size: wgpu::Extent3d {
                width,
                height,
                depth_or_array_layers: 1,
            },
            mip_level_count: 1,
            sample_count: 1,
            dimension: wgpu::TextureDimension::D2,
            format: wgpu::TextureFormat::Rgba8Unorm,
            usage: wgpu::TextureUsages::COPY_SRC,
            view_formats: &[],
        };
        let device = stream.context().device();
        let texture = device.create_texture_from_webgpu_handle(texture, &descriptor, None);
        Self::from_texture(stream, &texture)
    }

    fn uninit(
        stream: &Stream,
        [width, height, channels]: [usize; 3],
        pitch: usize,
    ) -> Result<Self> {
        let bytes = (pitch as u64)
            .checked_mul(height as u64)
            .ok_or(Error::out_of_memory(pitch, height))?;
        let what = || format!("An image of {width}×{height} pixels");
        Ok(Self {
            buffer: stream.buffer(bytes.next_multiple_of(4), size_class, what)?,
            width,
            height,
            channels,
            pitch,
        })
    }
}

/// How one axis is resampled: for each result the first pixel, the number of pixels and their weights in fixed point
/// with 22 fractional bits, `stride` numbers in total.
#[derive(Clone, Copy)]
pub struct Axis<'a> {
    /// The numbers of all results in sequence.
    pub table: &'a [i32],
    /// Numbers per result.
    pub stride: usize,
}

impl Axis<'_> {
    /// The number of results along the axis.
    ///
    /// # Errors
    /// INVALID_ARGUMENT if the table isn't a whole number of rows, or refers to pixels beyond `size`.
    fn check(&self, size: usize) -> Result<usize> {
        let is_inside = |row: &[i32]| {
            let [first, count] = [i64::from(row[0]), i64::from(row[1])];
            first >= 0
                && (0..=self.stride as i64 - 2).contains(&count)
                && first + count <= size as i64
        };
        if self.stride < 3
            || self.table.is_empty()
            || !self.table.len().is_multiple_of(self.stride)
            || !self.table.chunks(self.stride).all(is_inside)
        {
            return Err(Error::InvalidArgument(format!(
                "The resampling weights don't fit {size} pixels."
            )));
        }
        Ok(self.table.len() / self.stride)
    }
}

/// How an image is preprocessed.
#[derive(Clone, Copy)]
pub struct ImagePlan<'a> {
    /// How the width is resampled.
    pub columns: Axis<'a>,
    /// How the height is resampled.
    pub rows: Axis<'a>,
    /// Whether the height is resampled before the width.
    pub rows_first: bool,
    /// The left edge of the result in the resampled image. The result may extend past the image, which is black
    /// there.
    pub left: i32,
    /// The top edge; see `left`.
    pub top: i32,
    /// The value of each of 256 bytes, for each of three channels.
    pub values: &'a [f32],
}

#[repr(C)]
#[derive(Clone, Copy, NoUninit)]
struct Params {
    width: u32,
    height: u32,
    full_width: u32,
    full_height: u32,
    left: i32,
    top: i32,
    pitch: u32,
    stride: u32,
    offset: u32,
}

/// One pass over a source.
struct Pass<'a> {
    source: Binding,
    channels: usize,
    pitch: usize,
    axis: Axis<'a>,
    vertical: bool,
    /// Width and height of its output.
    full: [usize; 2],
}

/// Pixel values `[batch, 3, height, width]` to be filled by [`preprocess`].
///
/// # Errors
/// UNSUPPORTED, OUT_OF_MEMORY, ENGINE_DEAD.
pub fn empty_pixels(stream: &mut Stream, dims: &[usize]) -> Result<GpuTensor> {
    stream.uninit(dims)
}

/// Computes image `index` of `pixels` `[batch, 3, height, width]`: resamples, crops, and maps bytes to values. Alpha
/// is dropped, grey is repeated.
///
/// # Errors
/// INVALID_ARGUMENT if shapes don't match, UNSUPPORTED, OUT_OF_MEMORY, ENGINE_DEAD.
pub fn preprocess(
    stream: &mut Stream,
    image: &GpuImage,
    plan: &ImagePlan,
    pixels: &GpuTensor,
    index: usize,
) -> Result<()> {
    let names = ["batch", "3", "height", "width"];
    let [batch, channels, height, width] = pixels.shape("The pixels", names)?;
    if channels != 3 || index >= batch {
        return Err(Error::InvalidArgument(format!(
            "Image {index} doesn't fit into pixel values of {batch} images with {channels} channels."
        )));
    }
    check_len("The table of byte values", plan.values.len(), &[3, 256])?;
    let (new_width, new_height) = (
        plan.columns.check(image.width)?,
        plan.rows.check(image.height)?,
    );
    let full = [new_width, new_height];
    let (first_axis, last_axis, first_full) = if plan.rows_first {
        (plan.rows, plan.columns, [image.width, new_height])
    } else {
        (plan.columns, plan.rows, [new_width, image.height])
    };
    let values = stream.upload_table(plan.values, "The table of byte values")?;
    let packed = stream.uninit(&[first_full[1], first_full[0]])?;
    let first = Pass {
        source: image.buffer.binding(),
        channels: image.channels,
        pitch: image.pitch,
        axis: first_axis,
        vertical: plan.rows_first,
        full: first_full,
    };
    let everything = Params {
        width: first_full[0] as u32,
        height: first_full[1] as u32,
        ..first.params([0, 0])
    };
    first.record(
        stream,
        everything,
        values.binding(),
        packed.binding(),
        false,
    )?;
    let last = Pass {
        source: packed.binding(),
        channels: PACKED,
        pitch: first_full[0] * PACKED,
        axis: last_axis,
        vertical: !plan.rows_first,
        full,
    };
    let part = Params {
        width: width as u32,
        height: height as u32,
        offset: (index * channels * height * width) as u32,
        ..last.params([plan.left, plan.top])
    };
    last.record(stream, part, values.binding(), pixels.binding(), true)
}

impl Pass<'_> {
    fn params(&self, [left, top]: [i32; 2]) -> Params {
        Params {
            width: 0,
            height: 0,
            full_width: self.full[0] as u32,
            full_height: self.full[1] as u32,
            left,
            top,
            pitch: self.pitch as u32,
            stride: self.axis.stride as u32,
            offset: 0,
        }
    }

    fn record(
        &self,
        stream: &mut Stream,
        params: Params,
        values: Binding,
        results: Binding,
        last: bool,
    ) -> Result<()> {
        let table = stream.upload_table(self.axis.table, "The resampling weights")?;
        let [width, height] = [params.width, params.height].map(|size| size as usize);
        let taps = (self.axis.stride - 2) as u64;
        let results_count = (width * height) as u64;
        stream.record(Op {
            kernel: IMAGE,
            constants: (
                CONSTANTS,
                &[
                    self.channels as u32,
                    u32::from(self.vertical),
                    u32::from(last),
                ],
            ),
            uniforms: params,
            reads: &[self.source.clone(), table.binding(), values],
            writes: &[results],
            workgroups: [width.div_ceil(SIDE), height.div_ceil(SIDE), 1],
            cost: cost(results_count * (taps + 1), 6 * taps * results_count),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_support::{code, on_shapes, read, stream};

    const CROP: [usize; 2] = [7, 9];

    /// A table of overlapping windows whose weights have both signs and sum to about one.
    fn table(size: usize, results: usize) -> (Vec<i32>, usize) {
        let taps = size.min(3);
        let rows = (0..results).flat_map(|i| {
            let first = (i * (size - taps + 1) / results) as i32;
            let one = 1 << 22;
            let weights = [one + one / 3, -one / 2, one / 5 + i as i32];
            let count = taps - i % taps;
            [first, count as i32]
                .into_iter()
                .chain(weights.into_iter().take(taps))
        });
        (rows.collect(), taps + 2)
    }

    /// One pass over `[height, width]` pixels.
    fn naive(
        source: &[[i32; 3]],
        [width, height]: [usize; 2],
        axis: Axis,
        vertical: bool,
    ) -> Vec<[i32; 3]> {
        let places = axis.table.len() / axis.stride;
        let [new_width, new_height] = if vertical {
            [width, places]
        } else {
            [places, height]
        };
        let pixel = |x: usize, y: usize| {
            let row = &axis.table[if vertical { y } else { x } * axis.stride..][..axis.stride];
            std::array::from_fn(|c| {
                let sum = (0..row[1] as usize).fold(1i32 << 21, |sum, k| {
                    let at = row[0] as usize + k;
                    let from = if vertical {
                        at * width + x
                    } else {
                        y * width + at
                    };
                    sum.wrapping_add(source[from][c].wrapping_mul(row[2 + k]))
                });
                (sum >> 22).clamp(0, 255)
            })
        };
        (0..new_height)
            .flat_map(|y| (0..new_width).map(move |x| (x, y)))
            .map(|(x, y)| pixel(x, y))
            .collect()
    }

    /// Uploaded in two pieces.
    fn image_of(stream: &mut Stream, bytes: &[u8], size: [usize; 3]) -> GpuImage {
        let image = GpuImage::new(stream, size).unwrap();
        let half = bytes.len() / 8 * 4;
        image.write(stream, 0, &bytes[..half]).unwrap();
        image.write(stream, half, &bytes[half..]).unwrap();
        image
    }

    fn values() -> Vec<f32> {
        (0..768).map(|i| i as f32 / 7.0 - 3.0).collect()
    }

    fn bytes(count: usize) -> Vec<u8> {
        (0..count).map(|i| (i * 89 % 251 + i / 256) as u8).collect()
    }

    #[test]
    fn odd_shapes_match_the_definition() {
        let shapes = (
            [1usize..40, 1usize..40, 1usize..5],
            [1usize..20, 1usize..20],
            0i32..8,
        );
        on_shapes(
            shapes,
            |stream, ([width, height, channels], [new_width, new_height], shift)| {
                let data = bytes(width * height * channels);
                let pixels: Vec<[i32; 3]> = data
                    .chunks(channels)
                    .map(|pixel| {
                        std::array::from_fn(|c| i32::from(pixel[if channels < 3 { 0 } else { c }]))
                    })
                    .collect();
                let ((columns, column_stride), (rows, row_stride)) =
                    (table(width, new_width), table(height, new_height));
                let values = values();
                let plan = ImagePlan {
                    columns: Axis {
                        table: &columns,
                        stride: column_stride,
                    },
                    rows: Axis {
                        table: &rows,
                        stride: row_stride,
                    },
                    rows_first: shift % 2 == 0,
                    left: shift - 4,
                    top: 3 - shift,
                    values: &values,
                };
                let resampled = if plan.rows_first {
                    let first = naive(&pixels, [width, height], plan.rows, true);
                    naive(&first, [width, new_height], plan.columns, false)
                } else {
                    let first = naive(&pixels, [width, height], plan.columns, false);
                    naive(&first, [new_width, height], plan.rows, true)
                };
                let [crop_height, crop_width] = CROP;
                let expected: Vec<f32> = (0..3 * crop_height * crop_width)
                    .map(|i| {
                        let (c, y, x) = (
                            i / crop_width / crop_height,
                            i / crop_width % crop_height,
                            i % crop_width,
                        );
                        let (x, y) = (x as i32 + plan.left, y as i32 + plan.top);
                        let inside = (0..new_width as i32).contains(&x)
                            && (0..new_height as i32).contains(&y);
                        let byte = if inside {
                            resampled[y as usize * new_width + x as usize][c]
                        } else {
                            0
                        };
                        values[256 * c + byte as usize]
                    })
                    .collect();
                let image = image_of(stream, &data, [width, height, channels]);
                let result = empty_pixels(stream, &[2, 3, crop_height, crop_width]).unwrap();
                for index in [1, 0] {
                    preprocess(stream, &image, &plan, &result, index).unwrap();
                }
                assert_eq!(read(stream, &result), [&expected[..], &expected].concat());
            },
        );
    }

    #[test]
    fn a_texture_is_as_good_as_its_bytes() {
        let Some(mut stream) = stream() else { return };
        let (width, height) = (21, 10);
        let size = wgpu::Extent3d {
            width,
            height,
            depth_or_array_layers: 1,
        };
        let texture = stream
            .context()
            .device()
            .create_texture(&wgpu::TextureDescriptor {
                label: None,
                size,
                mip_level_count: 1,
                sample_count: 1,
                dimension: wgpu::TextureDimension::D2,
                format: wgpu::TextureFormat::Rgba8Unorm,
                usage: wgpu::TextureUsages::COPY_DST | wgpu::TextureUsages::COPY_SRC,
                view_formats: &[],
            });
        let data = bytes((4 * width * height) as usize);
        let layout = wgpu::TexelCopyBufferLayout {
            offset: 0,
            bytes_per_row: Some(4 * width),
            rows_per_image: None,
        };
        stream
            .context()
            .queue()
            .write_texture(texture.as_image_copy(), &data, layout, size);
        let size = [width as usize, height as usize, 4];
        let images = [
            GpuImage::from_texture(&mut stream, &texture).unwrap(),
            image_of(&mut stream, &data, size),
        ];
        texture.destroy();
        let ((columns, column_stride), (rows, row_stride)) = (table(size[0], 5), table(size[1], 6));
        let values = values();
        let plan = ImagePlan {
            columns: Axis {
                table: &columns,
                stride: column_stride,
            },
            rows: Axis {
                table: &rows,
                stride: row_stride,
            },
            rows_first: false,
            left: 0,
            top: 0,
            values: &values,
        };
        let result = empty_pixels(&mut stream, &[2, 3, 6, 5]).unwrap();
        for (index, image) in images.iter().enumerate() {
            preprocess(&mut stream, image, &plan, &result, index).unwrap();
        }
        let found = read(&mut stream, &result);
        assert_eq!(found[..90], found[90..]);
    }

    #[test]
    fn what_does_not_fit_is_an_error() {
        let Some(mut stream) = stream() else { return };
        let image = image_of(&mut stream, &[0; 12], [2, 2, 3]);
        let pixels = empty_pixels(&mut stream, &[1, 3, 1, 1]).unwrap();
        let good = Axis {
            table: &[0, 2, 1 << 21, 1 << 21],
            stride: 4,
        };
        let beyond = Axis {
            table: &[1, 2, 1 << 21, 1 << 21],
            stride: 4,
        };
        let negative = Axis {
            table: &[-1, 2, 1 << 21, 1 << 21],
            stride: 4,
        };
        let long = Axis {
            table: &[0, 3, 1 << 21, 1 << 21],
            stride: 4,
        };
        let ragged = Axis {
            table: &[0, 1, 1 << 22],
            stride: 4,
        };
        let values = values();
        let plan = |columns, rows, values| ImagePlan {
            columns,
            rows,
            rows_first: false,
            left: 0,
            top: 0,
            values,
        };
        for bad in [beyond, negative, long, ragged] {
            for (columns, rows) in [(bad, good), (good, bad)] {
                let plan = plan(columns, rows, &values);
                assert_eq!(
                    code(preprocess(&mut stream, &image, &plan, &pixels, 0)),
                    "INVALID_ARGUMENT"
                );
            }
        }
        let short = plan(good, good, &values[1..]);
        assert_eq!(
            code(preprocess(&mut stream, &image, &short, &pixels, 0)),
            "INVALID_ARGUMENT"
        );
        let fine = plan(good, good, &values);
        assert_eq!(
            code(preprocess(&mut stream, &image, &fine, &pixels, 1)),
            "INVALID_ARGUMENT"
        );
        preprocess(&mut stream, &image, &fine, &pixels, 0).unwrap();
        assert_eq!(
            read(&mut stream, &pixels),
            [values[0], values[256], values[512]]
        );
        for (offset, bytes) in [(0, 13), (4, 9), (2, 4), (usize::MAX - 3, 4)] {
            let written = image.write(&mut stream, offset, &vec![0; bytes]);
            assert_eq!(code(written), "INVALID_ARGUMENT");
        }
        for size in [[2, 2, 5], [0, 2, 3], [2, 0, 3], [2, 2, 0]] {
            assert_eq!(code(GpuImage::new(&stream, size)), "INVALID_ARGUMENT");
        }
        let huge = GpuImage::new(&stream, [usize::MAX, 2, 3]);
        assert_eq!(code(huge), "OUT_OF_MEMORY");
        assert_eq!(
            code(GpuImage::new(&stream, [1 << 15, 1 << 15, 4])),
            "UNSUPPORTED"
        );
    }
}
