//! What the tests share.

use std::fs;
use std::path::Path;

use aerogel_data::{
    DataError, Dataset, NoProgress, Prepared, Request, Source, SplitSpec, TokenizerSpec, prepare,
};

/// Writes a file, creating its folder.
pub fn put(path: &Path, bytes: impl AsRef<[u8]>) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, bytes).unwrap();
}

pub fn text(glob: &str) -> Source {
    Source::Text { globs: vec![glob.into()], exclude: vec![] }
}

pub fn jsonl(glob: &str) -> Source {
    Source::Jsonl { globs: vec![glob.into()], field: "text".into() }
}

/// A request from `dir` to `dir/out` without held-out data.
pub fn request(source: Source, dir: &Path) -> Request {
    let split = SplitSpec { validation: Some(0.0), ..SplitSpec::default() };
    Request { split, ..Request::new(source, dir, dir.join("out")) }
}

pub fn bpe(vocabulary: u32) -> TokenizerSpec {
    TokenizerSpec::Bpe { vocabulary }
}

pub fn run(request: &Request) -> Prepared {
    prepare(request, &mut NoProgress).unwrap()
}

/// The error of a request that has to fail without leaving anything behind.
pub fn fails(request: &Request) -> DataError {
    let error = prepare(request, &mut NoProgress).unwrap_err();
    assert!(!request.out.join("index.json").exists(), "half a folder was left");
    if let Some(parent) = request.out.parent().filter(|p| p.is_dir()) {
        let left = fs::read_dir(parent).unwrap().flatten();
        let names = left.map(|e| e.file_name().to_string_lossy().into_owned());
        let mut names = names.filter(|n| n.contains(".tmp-"));
        assert_eq!(names.next(), None, "a temporary folder was left");
    }
    error
}

/// All tokens of a split.
pub fn all(folder: &Path, split: &str) -> Vec<u32> {
    let dataset = Dataset::open(folder).unwrap();
    let tokens = dataset.split(split).unwrap();
    tokens.tokens(0..tokens.len()).unwrap()
}

/// All tokens of a split of bytes, as bytes.
pub fn all_bytes(folder: &Path, split: &str) -> Vec<u8> {
    all(folder, split).into_iter().map(|t| u8::try_from(t).unwrap()).collect()
}
