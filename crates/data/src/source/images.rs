//! Folders of PNG and JPEG images.

use std::fs::File;
use std::io::BufReader;
use std::path::Path;
use std::thread;

use image::{ColorType, DynamicImage, ImageDecoder, ImageReader, Limits};

use super::piece::{Assign, Content, Listed, Listing, Piece, Sink, given};
use crate::error::{DataError, Result};
use crate::files;
use crate::index::ImageShape;
use crate::split::Split;

/// Images that one thread decodes before the batch is handed on.
const BATCH: usize = 128;
/// More threads than this wait for the disk.
const MAX_THREADS: usize = 8;

pub(super) fn list(root: &Path, train: &Path, test: Option<&Path>) -> Result<Listing> {
    let mut listing = Listing { files: Vec::new(), other_files: 0 };
    for (dir, split) in [(Some(train), None), (test, Some(Split::Test))] {
        let Some(dir) = dir else { continue };
        let all = files::below(root, dir)?;
        let count = all.len();
        let images: Vec<_> = all.into_iter().filter(|f| is_image(&f.path)).collect();
        listing.other_files += (count - images.len()) as u64;
        if images.is_empty() {
            let patterns = vec![format!("{}/**/*.{{png,jpg,jpeg}}", dir.display())];
            return Err(DataError::NoMatch { patterns, root: root.to_owned() });
        }
        listing.files.extend(given(images, split));
    }
    Ok(listing)
}

fn is_image(path: &Path) -> bool {
    let extension = path.extension().unwrap_or_default().to_string_lossy().to_ascii_lowercase();
    matches!(extension.as_str(), "png" | "jpg" | "jpeg")
}

/// Decodes on several threads; images come out in the order of `files`.
pub(super) fn read(files: &[Listed], shape: ImageShape, sink: &mut Sink<'_>) -> Result<()> {
    let threads = thread::available_parallelism().map_or(1, usize::from).min(MAX_THREADS);
    for batch in files.chunks(BATCH * threads) {
        let decoded: Vec<Result<Vec<u8>>> = thread::scope(|scope| {
            let workers: Vec<_> = batch
                .chunks(batch.len().div_ceil(threads))
                .map(|part| {
                    let work = move || part.iter().map(|f| decode(&f.file.path, shape)).collect();
                    (part, scope.spawn(work))
                })
                .collect();
            let join = |(part, worker): (&[Listed], thread::ScopedJoinHandle<'_, Vec<_>>)| {
                worker.join().unwrap_or_else(|_| {
                    let path = part[0].file.path.clone();
                    let reason = "the decoder failed on this file or one after it".to_owned();
                    vec![Err(DataError::BadImage { path, reason })]
                })
            };
            workers.into_iter().flat_map(join).collect()
        });
        for (listed, image) in batch.iter().zip(decoded) {
            let identity = listed.file.name.as_bytes();
            sink(Piece {
                content: Content::Bytes(&image?),
                assign: listed.split.map_or(Assign::Hash(identity), Assign::Given),
                ends: true,
                path: &listed.file.path,
                offset: 0,
                units: 1,
            })?;
        }
    }
    Ok(())
}

/// The bytes of an image, row by row, pixel by pixel, channel by channel.
///
/// Gray may become RGB and RGB may gain a full alpha; whatever would lose something (alpha,
/// 16 bits, color to gray) is refused.
pub(crate) fn decode(path: &Path, shape: ImageShape) -> Result<Vec<u8>> {
    let bad = |reason: String| DataError::BadImage { path: path.to_owned(), reason };
    let file = File::open(path).map_err(|e| DataError::read(path, e))?;
    let mut reader = ImageReader::new(BufReader::new(file))
        .with_guessed_format()
        .map_err(|e| DataError::read(path, e))?;
    // A hostile header may promise a huge image: nothing beyond this is ever allocated.
    let mut limits = Limits::default();
    limits.max_alloc = Some(1 << 28);
    reader.limits(limits);
    let decoder = reader.into_decoder().map_err(|e| bad(e.to_string()))?;
    let (width, height) = decoder.dimensions();
    let color = decoder.color_type();
    let wanted = |got: String| DataError::WrongImageSize {
        path: path.to_owned(),
        got,
        wanted: shape.to_string(),
    };
    let fits = match shape.channels {
        1 => color == ColorType::L8,
        3 => matches!(color, ColorType::L8 | ColorType::Rgb8),
        _ => matches!(color, ColorType::L8 | ColorType::Rgb8 | ColorType::Rgba8),
    };
    if !fits || (height, width) != (shape.height, shape.width) {
        let bits = color.bits_per_pixel() / u16::from(color.channel_count());
        let note = if bits == 8 { String::new() } else { format!(" of {bits} bits") };
        return Err(wanted(format!("{height}x{width}x{}{note}", color.channel_count())));
    }
    let image = DynamicImage::from_decoder(decoder).map_err(|e| bad(e.to_string()))?;
    Ok(match shape.channels {
        1 => image.into_luma8().into_raw(),
        3 => image.into_rgb8().into_raw(),
        _ => image.into_rgba8().into_raw(),
    })
}
