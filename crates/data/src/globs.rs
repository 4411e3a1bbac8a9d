//! Files by glob patterns. Folders that are excluded as a whole are not looked into: beside a
//! corpus of sources there is often a folder of build products with a hundred times as many files.

use std::collections::BTreeSet;
use std::fs;
use std::io::ErrorKind;
use std::path::{Component, Path, PathBuf};

use glob::{MatchOptions, Pattern, PatternError};

use crate::error::{DataError, Result};

/// The files that match any of `patterns` and none of `exclude`. Relative patterns start at `root`;
/// hidden files and folders match only if named; links are followed.
///
/// # Errors
/// A pattern makes no sense, or a folder cannot be read.
pub(crate) fn matching(
    root: &Path,
    patterns: &[String],
    exclude: &[String],
) -> Result<BTreeSet<PathBuf>> {
    let unwanted =
        exclude.iter().map(|p| Unwanted::new(root, p)).collect::<Result<Vec<Unwanted>>>()?;
    let mut walk = Walk { unwanted, found: BTreeSet::new() };
    for pattern in patterns {
        let parts = parts(pattern).map_err(|e| bad_pattern(pattern, &e))?;
        walk.go(root, &parts)?;
    }
    Ok(walk.found)
}

/// One component of a pattern.
enum Part {
    /// `**`: this folder and all below.
    Below,
    /// A name as it stands, or the start of an absolute path.
    Named(PathBuf),
    Like(Pattern),
}

fn parts(pattern: &str) -> std::result::Result<Vec<Part>, PatternError> {
    Pattern::new(pattern)?;
    let components = Path::new(pattern).components().filter(|c| *c != Component::CurDir);
    let part = |component: Component<'_>| {
        let name = component.as_os_str().to_string_lossy();
        Ok(match component {
            Component::Normal(_) if name == "**" => Part::Below,
            Component::Normal(_) if name.contains(['*', '?', '[']) => {
                Part::Like(Pattern::new(&name)?)
            }
            _ => Part::Named(PathBuf::from(name.as_ref())),
        })
    };
    components.map(part).collect()
}

/// What is left out.
struct Unwanted {
    files: Pattern,
    /// A folder all of whose files are left out.
    folder: Option<Pattern>,
}

impl Unwanted {
    fn new(root: &Path, pattern: &str) -> Result<Unwanted> {
        let bad = |e: PatternError| bad_pattern(pattern, &e);
        let whole = absolute(root, pattern);
        let folder = whole.strip_suffix("/**").map(Pattern::new).transpose().map_err(bad)?;
        Ok(Unwanted { files: Pattern::new(&whole).map_err(bad)?, folder })
    }

    fn has(&self, file: &Path) -> bool {
        self.files.matches_path(file)
    }

    fn has_all_of(&self, folder: &Path) -> bool {
        self.folder.as_ref().is_some_and(|f| f.matches_path(folder))
    }
}

struct Walk {
    unwanted: Vec<Unwanted>,
    found: BTreeSet<PathBuf>,
}

impl Walk {
    /// Finds what matches `parts` from `at` on.
    fn go(&mut self, at: &Path, parts: &[Part]) -> Result<()> {
        let doubled = parts.iter().take_while(|part| matches!(part, Part::Below)).count();
        let (below, rest) = parts.split_at(doubled);
        let Some((first, rest)) = rest.split_first() else {
            // `**` at the end means folders, and this is about files.
            if below.is_empty() && at.is_file() && !self.unwanted.iter().any(|u| u.has(at)) {
                self.found.insert(at.to_owned());
            }
            return Ok(());
        };
        if let Part::Named(name) = first {
            self.go(&at.join(name), rest)?;
            if below.is_empty() {
                return Ok(());
            }
        }
        if self.unwanted.iter().any(|u| u.has_all_of(at)) {
            return Ok(());
        }
        for entry in entries(at)? {
            let name = entry.file_name();
            let name = name.to_string_lossy();
            if name.starts_with('.') {
                continue;
            }
            let path = at.join(entry.file_name());
            if matches!(first, Part::Like(pattern) if pattern.matches_with(&name, STRICT)) {
                self.go(&path, rest)?;
            }
            if !below.is_empty() && is_folder(&entry) {
                self.go(&path, parts)?;
            }
        }
        Ok(())
    }
}

/// Patterns here are single components, whose names are not hidden.
const STRICT: MatchOptions = MatchOptions {
    case_sensitive: true,
    require_literal_separator: true,
    require_literal_leading_dot: true,
};

/// What is in a folder; nothing is in a file, and in what is not there.
fn entries(folder: &Path) -> Result<Vec<fs::DirEntry>> {
    let here = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
    match fs::read_dir(here).and_then(Iterator::collect) {
        Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => Ok(vec![]),
        entries => entries.map_err(|e| DataError::read(folder, e)),
    }
}

/// Asks the file system about links alone: it told the kind of all else with the name.
fn is_folder(entry: &fs::DirEntry) -> bool {
    match entry.file_type() {
        Ok(kind) if !kind.is_symlink() => kind.is_dir(),
        _ => entry.path().is_dir(),
    }
}

fn absolute(root: &Path, pattern: &str) -> String {
    if Path::new(pattern).is_absolute() {
        return pattern.to_owned();
    }
    // The root is a path, not a pattern: a folder named `[x]` has to mean itself.
    let root = Pattern::escape(&root.to_string_lossy());
    if root.is_empty() { pattern.to_owned() } else { format!("{root}/{pattern}") }
}

fn bad_pattern(pattern: &str, e: &PatternError) -> DataError {
    DataError::BadPattern { pattern: pattern.to_owned(), reason: e.msg.to_owned() }
}
