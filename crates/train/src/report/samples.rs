//! What the model drew: images inside the page, texts as they are.

use super::base64;
use super::history::History;
use super::text::{count, escape};
use std::fmt::Write;
use std::path::{Path, PathBuf};

/// The most images, and the most texts.
const SHOWN: usize = 4;
/// Larger files would make the page slow.
const IMAGE_BYTES_MAX: usize = 8 << 20;
const TEXT_CHARACTERS_MAX: usize = 4000;

/// The newest images and texts; nothing where there are none.
pub(super) fn html(folder: &Path, history: &History) -> String {
    let mut out = images(folder);
    if let Some((step, texts)) = history.texts.last() {
        let _ = writeln!(out, "<p class=\"caption\">Texts after step {}.</p>", count(*step));
        for text in texts.iter().take(SHOWN) {
            let cut: String = text.chars().take(TEXT_CHARACTERS_MAX).collect();
            let more = if cut.len() < text.len() { " …" } else { "" };
            let _ = writeln!(out, "<pre class=\"sample\">{}{more}</pre>", escape(&cut));
        }
        if texts.len() > SHOWN {
            let left = count((texts.len() - SHOWN) as u64);
            let _ = writeln!(out, "<p class=\"caption\">{left} more in the samples folder.</p>");
        }
    }
    out
}

fn images(folder: &Path) -> String {
    let mut files: Vec<PathBuf> = std::fs::read_dir(folder)
        .into_iter()
        .flatten()
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.extension().is_some_and(|e| e == "png"))
        .collect();
    // Names end with the step, filled with zeros.
    files.sort();
    let mut out = String::new();
    let readable = files.iter().rev().filter_map(|path| {
        let bytes = std::fs::read(path).ok().filter(|b| b.len() <= IMAGE_BYTES_MAX)?;
        Some((path, size(&bytes)?, bytes))
    });
    for (path, (width, height), bytes) in readable.take(SHOWN) {
        let name = path.file_stem().map(|n| n.to_string_lossy()).unwrap_or_default();
        let title = escape(&title(&name));
        let _ = writeln!(
            out,
            "<figure><img width=\"{width}\" height=\"{height}\" alt=\"Samples, {title}\" \
             src=\"data:image/png;base64,{}\"><figcaption>{title}</figcaption></figure>",
            base64::encode(&bytes)
        );
    }
    if out.is_empty() { out } else { format!("<div class=\"images\">\n{out}</div>\n") }
}

/// `step-00000400` is step 400.
fn title(name: &str) -> String {
    match name.strip_prefix("step-").and_then(|n| n.parse().ok()) {
        Some(step) => format!("step {}", count(step)),
        None => name.to_owned(),
    }
}

/// Width and height as the header of a PNG file says them.
fn size(png: &[u8]) -> Option<(u32, u32)> {
    let header = png.strip_prefix(b"\x89PNG\r\n\x1a\n")?.get(8..16)?;
    let (width, height) = header.split_first_chunk::<4>()?;
    Some((u32::from_be_bytes(*width), u32::from_be_bytes(height.try_into().ok()?)))
}
