//! The binary version of CIFAR-10 (Krizhevsky 2009).

use std::io::{BufReader, Read};
use std::path::Path;

use super::piece::{Assign, Content, Listed, Listing, Piece, Sink, given};
use crate::error::{DataError, Result};
use crate::files;
use crate::index::ImageShape;
use crate::split::Split;

pub(super) const SHAPE: ImageShape = ImageShape { height: 32, width: 32, channels: 3 };
/// Pixels of one channel plane.
const PLANE: usize = 32 * 32;
/// A label and three planes.
pub(super) const RECORD_BYTES: usize = 1 + 3 * PLANE;

pub(super) fn list(root: &Path, dir: &Path) -> Result<Listing> {
    let folder = glob::Pattern::escape(&dir.to_string_lossy());
    let mut found =
        given(files::matching(root, &[format!("{folder}/data_batch_*.bin")], &[])?, None);
    if root.join(dir).join("test_batch.bin").is_file() {
        let test = files::matching(root, &[format!("{folder}/test_batch.bin")], &[])?;
        found.extend(given(test, Some(Split::Test)));
    }
    Ok(Listing { files: found, other_files: 0 })
}

pub(super) fn read(listed: &Listed, sink: &mut Sink<'_>) -> Result<()> {
    let path = &listed.file.path;
    let size = listed.file.size_bytes;
    if !size.is_multiple_of(RECORD_BYTES as u64) {
        let reason = format!(
            "{size} bytes are no whole number of {RECORD_BYTES}-byte CIFAR-10 records; the file \
             is cut off, fetch it again"
        );
        return Err(DataError::bad_file(path, reason));
    }
    let mut reader = BufReader::with_capacity(1 << 18, listed.file.open()?);
    let mut record = [0; RECORD_BYTES];
    let mut image = [0; 3 * PLANE];
    for number in 0..size / RECORD_BYTES as u64 {
        reader.read_exact(&mut record).map_err(|e| DataError::read(path, e))?;
        interleave(&record[1..], &mut image);
        let identity = format!("{}#{number}", listed.file.name);
        sink(Piece {
            content: Content::Bytes(&image),
            assign: listed.split.map_or(Assign::Hash(identity.as_bytes()), Assign::Given),
            ends: true,
            path,
            offset: number * RECORD_BYTES as u64,
            units: 1,
        })?;
    }
    Ok(())
}

/// Channel planes (CHW) to rows of pixels (HWC): the order in which one row is 96 bytes.
fn interleave(planes: &[u8], image: &mut [u8]) {
    for (at, byte) in planes.iter().enumerate() {
        image[at % PLANE * 3 + at / PLANE] = *byte;
    }
}
