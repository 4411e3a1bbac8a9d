//! Images: order of bytes, splits, pictures out.

use std::fs;

use aerogel_data::{
    Dataset, ImageShape, MadeKind, Request, Source, image_grid_png, made, read_image,
};
use tempfile::tempdir;

use crate::common::{all_bytes, fails, put, request, run};

const RGB: ImageShape = ImageShape { height: 4, width: 5, channels: 3 };

fn image(seed: usize) -> Vec<u8> {
    (0..RGB.tokens()).map(|i| (i * 31 + seed * 57) as u8).collect()
}

#[test]
fn cifar_planes_become_rows_of_pixels() {
    let dir = tempdir().unwrap();
    // One record whose byte says its channel, row and column.
    let value = |c: usize, y: usize, x: usize| (c * 80 + y * 2 + x % 2) as u8;
    let mut record = vec![9];
    for c in 0..3 {
        record.extend((0..1024).map(|p| value(c, p / 32, p % 32)));
    }
    put(&dir.path().join("c/data_batch_1.bin"), record.repeat(2));
    put(&dir.path().join("c/test_batch.bin"), &record);
    let request = request(Source::Cifar10Binary { dir: "c".into() }, dir.path());
    let index = run(&request).index;
    assert_eq!(index.image.unwrap().row_tokens(), 96);
    let train = all_bytes(&request.out, "train");
    assert_eq!((train.len(), index.splits["test"].documents), (2 * 3072, 1));
    for t in 0..3072 {
        let (y, x, c) = (t / 96, t % 96 / 3, t % 3);
        assert_eq!(train[t], value(c, y, x), "byte {t}");
        // One stride back lies the same column and channel, one row up.
        if t >= 96 {
            assert_eq!(train[t - 96], value(c, y - 1, x));
        }
    }
}

#[test]
fn folders_come_out_in_path_order_as_rows_of_pixels() {
    let dir = tempdir().unwrap();
    for (number, name) in ["b/2", "a/9", "b/1"].into_iter().enumerate() {
        let path = dir.path().join(format!("train/{name}.png"));
        made::write_image(&path, &image(number), RGB).unwrap();
    }
    made::write_image(&dir.path().join("test/a/1.png"), &image(7), RGB).unwrap();
    put(&dir.path().join("train/a/notes.txt"), "not an image");
    let (train, test) = ("train".into(), Some("test".into()));
    let request = request(Source::ImageFolders { train, test, size: RGB }, dir.path());
    let index = run(&request).index;
    assert_eq!(all_bytes(&request.out, "train"), [image(1), image(2), image(0)].concat());
    assert_eq!(all_bytes(&request.out, "test"), image(7));
    assert_eq!(index.skipped.other_files, 1);
    assert_eq!(index.splits["train"].bytes, Some(3 * 60));
}

#[test]
fn shards_end_between_images() {
    let dir = tempdir().unwrap();
    let source = Source::Made { kind: MadeKind::Images, seed: 0 };
    let mut request = Request::new(source, dir.path(), dir.path().join("out"));
    request.shard_tokens = 1000;
    let index = run(&request).index;
    let shards = &index.splits["train"].shards;
    assert!(shards.len() > 10 && shards.iter().all(|s| s.tokens % 192 == 0));
    let documents = |s: &str| index.splits[s].documents;
    assert_eq!(documents("train") + documents("validation"), 120);
    assert_eq!(documents("test"), 24);
}

#[test]
fn jpeg_and_gray_are_decoded() {
    let dir = tempdir().unwrap();
    let gray = ImageShape { channels: 1, ..RGB };
    let path = dir.path().join("g.png");
    let bytes: Vec<u8> = (0..20).map(|i| i * 10).collect();
    made::write_image(&path, &bytes, gray).unwrap();
    assert_eq!(read_image(&path, gray).unwrap(), bytes);
    let tripled: Vec<u8> = bytes.iter().flat_map(|&b| [b, b, b]).collect();
    assert_eq!(read_image(&path, RGB).unwrap(), tripled);
    let jpeg = dir.path().join("j.jpg");
    made::write_image(&jpeg, &[200; 60], RGB).unwrap();
    assert!(read_image(&jpeg, RGB).unwrap().iter().all(|b| b.abs_diff(200) < 4));
}

#[test]
fn wrong_images_are_named() {
    let dir = tempdir().unwrap();
    let path = dir.path().join("train/x.png");
    let source = Source::ImageFolders { train: "train".into(), test: None, size: RGB };
    let request = request(source, dir.path());

    let other = ImageShape { height: 5, ..RGB };
    made::write_image(&path, &[0; 75], other).unwrap();
    let error = fails(&request).to_string();
    assert!(error.contains("x.png is 5x5x3, the source says 4x5x3"), "{error}");

    let alpha = ImageShape { channels: 4, ..RGB };
    made::write_image(&path, &[0; 80], alpha).unwrap();
    let error = fails(&request).to_string();
    assert!(error.contains("x.png is 4x5x4"), "{error}");

    made::write_image(&path, &image(1), RGB).unwrap();
    let good = fs::read(&path).unwrap();
    for bytes in [&good[..good.len() / 2], &[0; 30], b"", &good[..20]] {
        put(&path, bytes);
        let error = fails(&request);
        assert!(error.to_string().contains("x.png cannot be decoded"), "{error}");
        assert_eq!(error.exit_code(), 22);
    }
}

#[test]
fn a_grid_shows_images_in_rows() {
    let images: Vec<_> = (0..5).map(image).collect();
    let png = image_grid_png(&images, RGB, 3).unwrap();
    assert_eq!(png, image_grid_png(&images, RGB, 3).unwrap());
    let dir = tempdir().unwrap();
    let path = dir.path().join("grid.png");
    fs::write(&path, png).unwrap();
    let whole = ImageShape { height: 9, width: 17, channels: 3 };
    let bytes = read_image(&path, whole).unwrap();
    for (number, image) in images.iter().enumerate() {
        for y in 0..4 {
            let start = ((number / 3 * 5 + y) * 17 + number % 3 * 6) * 3;
            assert_eq!(bytes[start..start + 15], image[y * 15..y * 15 + 15]);
        }
    }
    assert!(image_grid_png(&[], RGB, 3).is_err());
    assert!(image_grid_png(&images, RGB, 0).is_err());
    assert!(image_grid_png(&[vec![0; 3]], RGB, 1).is_err());
}

#[test]
fn made_data_repeats_and_serves_every_kind() {
    for kind in MadeKind::ALL {
        let dir = tempdir().unwrap();
        let mut hashes = Vec::new();
        for (out, seed) in [("a", 1), ("b", 1), ("c", 2)] {
            let source = Source::Made { kind, seed };
            let mut request = Request::new(source, dir.path(), dir.path().join(out));
            if kind == MadeKind::Bin {
                let vocabulary = made::BIN_VOCABULARY;
                request.tokenizer = aerogel_data::TokenizerSpec::None { vocabulary };
            }
            let index = run(&request).index;
            assert_eq!(index.image, kind.image_shape());
            assert!(index.splits.contains_key("validation"), "{kind:?}");
            Dataset::open(&request.out).unwrap();
            hashes.push(index.splits["train"].shards[0].blake3.clone());
        }
        assert_eq!(hashes[0], hashes[1]);
        assert_ne!(hashes[0], hashes[2]);
    }
}
