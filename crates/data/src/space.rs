//! Free space of a disk.

use std::path::Path;

/// Bytes that this user may still write on the disk of `path`, where the system tells.
pub(crate) fn free_bytes(path: &Path) -> Option<u64> {
    let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
    let facts = rustix::fs::statvfs(path).ok()?;
    Some(facts.f_bavail.saturating_mul(facts.f_frsize))
}
