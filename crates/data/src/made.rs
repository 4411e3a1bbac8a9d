//! Small data with structure to learn, made from a seed: for tests and for tiny runs.

use std::fs;
use std::path::{Path, PathBuf};

use image::{ColorType, ImageFormat};

use crate::error::{DataError, Result};
use crate::index::ImageShape;
use crate::sampler::mix;
use crate::shard::BinLayout;
use crate::source::{MadeKind, Source};

/// Part of the fingerprint: made data changes only with this number.
pub const MADE_VERSION: u32 = 1;

/// Vocabulary of [`MadeKind::Bin`].
pub const BIN_VOCABULARY: u32 = 64;

/// Makes data of a kind in the folder `dir`, which is created. The source returned has paths
/// relative to `dir`, so `dir` is its root. The same kind and seed make the same bytes.
pub fn write(kind: MadeKind, dir: &Path, seed: u64) -> Result<Source> {
    fs::create_dir_all(dir).map_err(|e| DataError::write(dir, e))?;
    let mut draw = Draw(mix(seed ^ 0x6165_726f_6765_6c00 ^ kind as u64));
    match kind {
        MadeKind::Text => text(dir, &mut draw),
        MadeKind::Jsonl => jsonl(dir, &mut draw),
        MadeKind::Images => images(dir, &mut draw),
        MadeKind::CopyRowAbove => copy_row_above(dir, &mut draw),
        MadeKind::Cifar10 => cifar10(dir, &mut draw),
        MadeKind::Bin => bin(dir, &mut draw),
    }
}

/// splitmix64 (Steele et al. 2014).
struct Draw(u64);

impl Draw {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0)
    }

    fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }

    fn of<'a>(&mut self, words: &[&'a str]) -> &'a str {
        words[self.below(words.len())]
    }
}

fn put(path: &Path, bytes: &[u8]) -> Result<()> {
    fs::write(path, bytes).map_err(|e| DataError::write(path, e))
}

/// A sentence whose verb agrees with its subject, or a sum that is right.
fn sentence(draw: &mut Draw) -> String {
    const ADJECTIVES: [&str; 6] = ["quiet", "small", "bright", "heavy", "early", "warm"];
    const NOUNS: [&str; 8] = ["river", "stone", "bird", "ship", "lamp", "garden", "clock", "tree"];
    const VERBS: [&str; 6] = ["follow", "hold", "leave", "reach", "turn", "cover"];
    if draw.below(4) == 0 {
        let (a, b) = (draw.below(50), draw.below(50));
        return format!("{a} + {b} = {}.", a + b);
    }
    let (plural, adjective) = (draw.below(2) == 1, draw.of(&ADJECTIVES));
    let (subject, object) = (draw.of(&NOUNS), draw.of(&NOUNS));
    let (noun_end, verb_end) = if plural { ("s", "") } else { ("", "s") };
    let verb = match (draw.of(&VERBS), verb_end) {
        ("reach", "s") => "reaches".to_owned(),
        (verb, end) => format!("{verb}{end}"),
    };
    format!("The {adjective} {subject}{noun_end} {verb} the {object}.")
}

fn text(dir: &Path, draw: &mut Draw) -> Result<Source> {
    for number in 0..8 {
        let mut text = String::new();
        while text.len() < 8000 {
            text.push_str(&sentence(draw));
            text.push(if draw.below(6) == 0 { '\n' } else { ' ' });
        }
        text.push('\n');
        put(&dir.join(format!("{number}.txt")), text.as_bytes())?;
    }
    Ok(Source::Text { globs: vec!["*.txt".into()], exclude: Vec::new() })
}

fn jsonl(dir: &Path, draw: &mut Draw) -> Result<Source> {
    let mut lines = String::new();
    for id in 0..400 {
        let sentences: Vec<_> = (0..2 + draw.below(5)).map(|_| sentence(draw)).collect();
        let record = serde_json::json!({ "id": id, "text": sentences.join(" ") });
        lines.push_str(&format!("{record}\n"));
    }
    put(&dir.join("documents.jsonl"), lines.as_bytes())?;
    Ok(Source::Jsonl { globs: vec!["documents.jsonl".into()], field: "text".into() })
}

/// Writes an image file; the format follows from the extension.
pub fn write_image(path: &Path, bytes: &[u8], shape: ImageShape) -> Result<()> {
    let color = match shape.channels {
        1 => ColorType::L8,
        3 => ColorType::Rgb8,
        4 => ColorType::Rgba8,
        n => return Err(DataError::option("channels", n, "1, 3 or 4")),
    };
    if bytes.len() != shape.tokens() {
        let wanted = format!("{} for {shape}", shape.tokens());
        return Err(DataError::option("the image's bytes", bytes.len(), wanted));
    }
    let format = ImageFormat::from_path(path).map_err(|e| {
        DataError::option("the image's path", path.display(), format!("*.png or *.jpg ({e})"))
    })?;
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).map_err(|e| DataError::write(folder, e))?;
    }
    image::save_buffer_with_format(path, bytes, shape.width, shape.height, color, format)
        .map_err(|e| DataError::write(path, std::io::Error::other(e)))
}

fn folders(
    dir: &Path,
    kind: MadeKind,
    mut image: impl FnMut(&str, usize) -> Vec<u8>,
) -> Result<Source> {
    let size = kind.image_shape().expect("called for kinds of images only");
    let (classes, counts): (&[&str], _) = match kind {
        MadeKind::CopyRowAbove => (&["rows"], [512, 64]),
        _ => (&["checkered", "horizontal", "vertical"], [40, 8]),
    };
    for (part, count) in ["train", "test"].into_iter().zip(counts) {
        for class in classes {
            for number in 0..count {
                let path = dir.join(part).join(class).join(format!("{number:04}.png"));
                write_image(&path, &image(class, number), size)?;
            }
        }
    }
    let (train, test) = (PathBuf::from("train"), Some(PathBuf::from("test")));
    Ok(Source::ImageFolders { train, test, size })
}

fn images(dir: &Path, draw: &mut Draw) -> Result<Source> {
    folders(dir, MadeKind::Images, |class, _| {
        let (dark, light) = (draw.below(100) as u8, 155 + draw.below(100) as u8);
        let phase = draw.below(4);
        let pixel = |at: usize| {
            let (y, x) = (at / 8 + phase, at % 8 + phase);
            let on = match class {
                "horizontal" => y / 2 % 2 == 0,
                "vertical" => x / 2 % 2 == 0,
                _ => (y / 2 + x / 2) % 2 == 0,
            };
            if on { [light, dark, light] } else { [dark, light, dark] }
        };
        (0..64).flat_map(pixel).collect()
    })
}

fn copy_row_above(dir: &Path, draw: &mut Draw) -> Result<Source> {
    folders(dir, MadeKind::CopyRowAbove, |_, _| {
        let row: Vec<u8> = (0..16).map(|_| draw.below(256) as u8).collect();
        row.repeat(16)
    })
}

fn cifar10(dir: &Path, draw: &mut Draw) -> Result<Source> {
    for number in 0..6 {
        let name = match number {
            5 => "test_batch.bin".to_owned(),
            n => format!("data_batch_{}.bin", n + 1),
        };
        let mut bytes = Vec::new();
        for _ in 0..16 {
            bytes.push(draw.below(10) as u8);
            for _ in 0..3 {
                let (base, down, right) = (draw.below(100), draw.below(3), draw.below(3));
                bytes.extend((0..1024).map(|p| (base + p / 32 * down + p % 32 * right) as u8));
            }
        }
        put(&dir.join(name), &bytes)?;
    }
    Ok(Source::Cifar10Binary { dir: PathBuf::from(".") })
}

fn bin(dir: &Path, draw: &mut Draw) -> Result<Source> {
    for (name, count) in [("train.bin", 20_000), ("val.bin", 2000)] {
        let mut token = 0;
        let mut bytes = Vec::new();
        for _ in 0..count {
            let random = draw.below(BIN_VOCABULARY as usize);
            token = if draw.below(4) == 0 { random } else { (5 * token + 3) % 64 };
            bytes.extend((token as u16).to_le_bytes());
        }
        put(&dir.join(name), &bytes)?;
    }
    let (train, validation) = (vec!["train.bin".into()], vec!["val.bin".into()]);
    Ok(Source::Bin { train, validation, layout: BinLayout::NanoGpt })
}
