//! The files of the repository.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::finding::TidyError;

/// Folders with nothing of the project's own; named for the case that there is no git to ask.
const SKIPPED: [&str; 5] = [".git", "target", "runs", "data", "node_modules"];

/// A text file.
pub struct File {
    /// From the root, with `/`.
    pub path: String,
    /// Its content.
    pub text: String,
    /// Whether it is part of the project, not a note that lies about in somebody's clone.
    pub tracked: bool,
}

/// The text files of a repository, by path.
pub struct Tree {
    /// The folder that paths start from; empty for a made-up tree.
    pub root: PathBuf,
    /// In the order of their paths.
    pub files: Vec<File>,
}

impl Tree {
    /// Reads what git tracks and what stands under `crates/`; all files where there is no git.
    ///
    /// # Errors
    /// A file or folder cannot be read.
    pub fn read(root: &Path) -> Result<Tree, TidyError> {
        let sources = walk(root, &root.join("crates"))?;
        let tracked = match tracked(root) {
            Some(paths) => paths,
            None => walk(root, root)?,
        };
        let mut files = Vec::new();
        for path in sources.union(&tracked) {
            // A tracked file may have been removed and not committed yet.
            let Some(bytes) = read(&root.join(path))? else { continue };
            let Ok(text) = String::from_utf8(bytes) else { continue };
            if !text.contains('\0') {
                let tracked = tracked.contains(path);
                files.push(File { path: path.clone(), text, tracked });
            }
        }
        Ok(Tree { root: root.to_owned(), files })
    }

    /// The text of a file.
    pub fn text(&self, path: &str) -> Option<&str> {
        self.files.iter().find(|file| file.path == path).map(|file| file.text.as_str())
    }

    /// The Rust files of all crates.
    pub fn rust(&self) -> impl Iterator<Item = &File> {
        self.files.iter().filter(|f| f.path.starts_with("crates/") && f.path.ends_with(".rs"))
    }

    /// The folders of `crates/` that are crates, with the text of their manifests.
    pub fn crates(&self) -> impl Iterator<Item = (&str, &File)> {
        self.files.iter().filter_map(|file| {
            let folder = file.path.strip_prefix("crates/")?.strip_suffix("/Cargo.toml")?;
            (!folder.contains('/')).then_some((folder, file))
        })
    }

    /// A made-up tree, to show that a rule can fail.
    #[cfg(test)]
    pub(crate) fn of(files: &[(&str, &str)]) -> Tree {
        let files = files
            .iter()
            .map(|(path, text)| File { path: (*path).into(), text: (*text).into(), tracked: true })
            .collect();
        Tree { root: PathBuf::new(), files }
    }
}

/// The content of a file, if it is one.
fn read(path: &Path) -> Result<Option<Vec<u8>>, TidyError> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(_) if !path.is_file() => Ok(None),
        Err(error) => Err(TidyError::Read { path: path.to_owned(), error }),
    }
}

/// What git tracks; nothing where the root is not a work tree, as in an unpacked archive.
fn tracked(root: &Path) -> Option<BTreeSet<String>> {
    let output = Command::new("git").args(["ls-files", "-z"]).current_dir(root).output().ok()?;
    let names = String::from_utf8(output.stdout).ok()?;
    let paths: BTreeSet<String> =
        names.split('\0').filter(|name| !name.is_empty()).map(str::to_owned).collect();
    // An archive unpacked inside another work tree has no tracked files.
    (output.status.success() && paths.contains("Cargo.toml")).then_some(paths)
}

/// All files below a folder.
fn walk(root: &Path, folder: &Path) -> Result<BTreeSet<String>, TidyError> {
    let failed = |error| TidyError::Read { path: folder.to_owned(), error };
    let mut paths = BTreeSet::new();
    for entry in fs::read_dir(folder).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let (path, kind) = (entry.path(), entry.file_type().map_err(failed)?);
        if kind.is_dir() {
            // `crates/data` is a crate, `data` is a download.
            let skipped = folder == root && SKIPPED.iter().any(|name| entry.file_name() == *name);
            if !skipped {
                paths.extend(walk(root, &path)?);
            }
        } else if kind.is_file() {
            let relative = path.strip_prefix(root).expect("the walk started at the root");
            paths.insert(relative.to_string_lossy().replace('\\', "/"));
        }
    }
    Ok(paths)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_git_everything_counts_but_builds_and_binaries() {
        let folder = tempfile::tempdir().unwrap();
        let put = |path: &str, bytes: &[u8]| {
            let path = folder.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, bytes).unwrap();
        };
        put("README.md", b"text");
        put("picture.png", b"\x89PNG\0\xff");
        put("target/debug/out.rs", b"built");
        put("data/shard.txt", b"downloaded");
        put("crates/data/src/lib.rs", b"//! Data.");
        let tree = Tree::read(folder.path()).unwrap();
        let found: Vec<_> = tree.files.iter().map(|f| (f.path.as_str(), f.tracked)).collect();
        assert_eq!(found, [("README.md", true), ("crates/data/src/lib.rs", true)]);
        assert_eq!(tree.rust().count(), 1);
    }
}
