//! Images out of samples, and a single image in.

use std::path::Path;

use image::codecs::png::PngEncoder;
use image::{ExtendedColorType, ImageEncoder};

use crate::error::{DataError, Result};
use crate::index::ImageShape;
use crate::source::images;

/// The largest picture side that is drawn.
const MAX_SIDE: usize = 1 << 15;

/// A PNG of `images` (bytes in the order of [`ImageShape`]) in rows of `columns`, one black
/// pixel apart. The last row may be short. The same images give the same bytes.
///
/// # Errors
/// No image, an image of another length than the shape says, or a picture of over 32,768 pixels
/// a side.
pub fn image_grid_png(images: &[Vec<u8>], shape: ImageShape, columns: usize) -> Result<Vec<u8>> {
    let color = match shape.channels {
        1 => ExtendedColorType::L8,
        3 => ExtendedColorType::Rgb8,
        4 => ExtendedColorType::Rgba8,
        n => return Err(DataError::option("channels", n, "1, 3 or 4")),
    };
    if images.is_empty() || columns == 0 {
        let got = format!("{} images in {columns} columns", images.len());
        return Err(DataError::option("the image grid", got, "one image and one column at least"));
    }
    if let Some(wrong) = images.iter().find(|i| i.len() != shape.tokens()) {
        let wanted = format!("{} bytes each, for {shape}", shape.tokens());
        return Err(DataError::option("images", format!("{} bytes", wrong.len()), wanted));
    }
    let columns = columns.min(images.len());
    let rows = images.len().div_ceil(columns);
    let (height, width) = (shape.height as usize, shape.width as usize);
    let channels = shape.channels as usize;
    let total_width = columns.saturating_mul(width + 1).saturating_sub(1);
    let total_height = rows.saturating_mul(height + 1).saturating_sub(1);
    if total_width.max(total_height) > MAX_SIDE || total_width == 0 || total_height == 0 {
        let got = format!("{total_height}x{total_width}");
        return Err(DataError::option("the image grid", got, "1 to 32768 pixels a side"));
    }
    let mut canvas = vec![0; total_height * total_width * channels];
    for (number, image) in images.iter().enumerate() {
        let (top, left) = (number / columns * (height + 1), number % columns * (width + 1));
        for (y, row) in image.chunks_exact(shape.row_tokens()).enumerate() {
            let start = ((top + y) * total_width + left) * channels;
            canvas[start..start + row.len()].copy_from_slice(row);
        }
    }
    let mut png = Vec::new();
    PngEncoder::new(&mut png)
        .write_image(&canvas, total_width as u32, total_height as u32, color)
        .map_err(|e| DataError::option("the image grid", "not encodable", e.to_string()))?;
    Ok(png)
}

/// Reads one PNG or JPEG file to its bytes in the order of `shape`.
///
/// # Errors
/// An unreadable file, a corrupt image, or another size or number of channels.
pub fn read_image(path: &Path, shape: ImageShape) -> Result<Vec<u8>> {
    images::decode(path, shape)
}
