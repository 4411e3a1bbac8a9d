//! Floors: ARCHITECTURE.md says on which floor a crate stands, and no manifest points upward.

use std::collections::BTreeMap;

use toml::{Table, Value};

use crate::finding::{Finding, TidyError};
use crate::tree::{File, Tree};

const ARCHITECTURE: &str = "ARCHITECTURE.md";

/// Where a crate stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Floor {
    Number(u32),
    /// A tool of development: only tests may need it, and it may need every floor.
    Dev,
}

/// Crates with their floors, and the lines that say so.
type Floors = BTreeMap<String, (Floor, usize)>;

pub(super) fn find(tree: &Tree) -> Result<Vec<Finding>, TidyError> {
    let text = tree.text(ARCHITECTURE).ok_or(TidyError::Missing { path: ARCHITECTURE })?;
    let floors = floors(text)?;
    let mut findings = Vec::new();
    for (name, (_, line)) in &floors {
        if tree.crates().all(|(folder, _)| folder != name) {
            let message = format!("the table lists `{name}`, but there is no crates/{name}");
            findings.push(Finding::new("layer", ARCHITECTURE, *line, message));
        }
    }
    let mut manifests = BTreeMap::new();
    let mut folders = BTreeMap::new();
    for (folder, file) in tree.crates() {
        let manifest = manifest(file)?;
        if let Some(package) = manifest.get("package").and_then(|p| p.get("name")?.as_str()) {
            folders.insert(package.to_owned(), folder);
        }
        manifests.insert(folder, (file, manifest));
    }
    for (folder, (file, manifest)) in &manifests {
        let Some((floor, _)) = floors.get(*folder) else {
            let message = format!("crates/{folder} is not in the table of floors");
            findings.push(Finding::new("layer", ARCHITECTURE, 0, message));
            continue;
        };
        for (dependency, tests) in dependencies(manifest) {
            let Some(other) = folders.get(&dependency) else { continue };
            let Some((below, _)) = floors.get(*other) else { continue };
            if let Err(reason) = may_need(*floor, *below, tests) {
                let message = format!("`{folder}` must not need `{other}`: {reason}");
                findings.push(Finding::new("layer", &file.path, 0, message));
            }
        }
    }
    Ok(findings)
}

/// Whether a crate on floor `upper` may need one on floor `lower`, at all or for its tests.
fn may_need(upper: Floor, lower: Floor, tests: bool) -> Result<(), String> {
    match (upper, lower) {
        (_, Floor::Dev) if tests => Ok(()),
        (_, Floor::Dev) => Err("tools of development are for tests only".into()),
        (Floor::Dev, Floor::Number(_)) => Ok(()),
        (Floor::Number(u), Floor::Number(l)) if l < u || (tests && l == u) => Ok(()),
        (Floor::Number(u), Floor::Number(l)) => Err(format!("floor {l} is not below floor {u}")),
    }
}

/// The rows of the table whose header is `| floor | crate | ... |`.
fn floors(text: &str) -> Result<Floors, TidyError> {
    let cells = |line: &str| -> Vec<String> {
        line.trim().trim_matches('|').split('|').map(|cell| cell.trim().to_owned()).collect()
    };
    let mut rows = text.lines().enumerate().map(|(i, line)| (i + 1, line));
    let malformed =
        |line, message| TidyError::Malformed { path: ARCHITECTURE.into(), line, message };
    rows.find(|(_, line)| cells(line).starts_with(&["floor".into(), "crate".into()]))
        .ok_or_else(|| malformed(0, "no table with the header `| floor | crate | ... |`".into()))?;
    let mut floors = Floors::new();
    for (line, row) in rows.skip(1).take_while(|(_, row)| row.trim_start().starts_with('|')) {
        let cells = cells(row);
        let floor = match (cells[0].as_str(), cells[0].parse()) {
            ("dev", _) => Floor::Dev,
            (_, Ok(number)) => Floor::Number(number),
            _ => return Err(malformed(line, format!("`{}` is no floor", cells[0]))),
        };
        let names = cells.get(1).map(String::as_str).unwrap_or_default().split('`').skip(1);
        for name in names.step_by(2) {
            if floors.insert(name.into(), (floor, line)).is_some() {
                return Err(malformed(line, format!("`{name}` is in the table twice")));
            }
        }
    }
    Ok(floors)
}

fn manifest(file: &File) -> Result<Table, TidyError> {
    file.text.parse().map_err(|error: toml::de::Error| TidyError::Malformed {
        path: file.path.clone(),
        line: 0,
        message: error.message().to_owned(),
    })
}

/// Every package that a manifest names, those of single platforms included, and whether only
/// tests need it.
fn dependencies(manifest: &Table) -> Vec<(String, bool)> {
    let platforms = manifest.get("target").and_then(Value::as_table);
    let platforms = platforms.into_iter().flat_map(Table::values).filter_map(Value::as_table);
    let mut found = Vec::new();
    for table in std::iter::once(manifest).chain(platforms) {
        for (section, tests) in
            [("dependencies", false), ("build-dependencies", false), ("dev-dependencies", true)]
        {
            let entries = table.get(section).and_then(Value::as_table);
            for (key, value) in entries.into_iter().flatten() {
                let package = value.get("package").and_then(Value::as_str).unwrap_or(key);
                found.push((package.to_owned(), tests));
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &str = "# Floors\n\n| floor | crate | what |\n|---|---|---|\n\
        | 0 | `graph` | graphs |\n| 1 | `data` | data |\n| 1 | `store` | files |\n\
        | 2 | `cpu` | kernels |\n| dev | `kit`, `xtask` | tools |\n\ntext\n";

    /// Findings of a house in which `folder` has these lines under its package.
    fn check(folder: &str, lines: &str) -> Vec<String> {
        let text = |name: &str| {
            let lines = if name == folder { lines } else { "" };
            format!("[package]\nname = \"aerogel-{name}\"\n{lines}")
        };
        let names = ["graph", "data", "store", "cpu", "kit", "xtask"];
        let files: Vec<_> =
            names.iter().map(|n| (format!("crates/{n}/Cargo.toml"), text(n))).collect();
        let mut tree = vec![(ARCHITECTURE, TABLE)];
        tree.extend(files.iter().map(|(path, text)| (path.as_str(), text.as_str())));
        find(&Tree::of(&tree)).unwrap().iter().map(ToString::to_string).collect()
    }

    #[test]
    fn downward_is_allowed() {
        let lines = "[dependencies]\naerogel-graph.workspace = true\nserde = \"1\"\n\
            [dev-dependencies]\naerogel-store = { workspace = true }\naerogel-kit.workspace = true";
        assert_eq!(check("data", lines), [""; 0]);
        assert_eq!(check("kit", "[dependencies]\naerogel-cpu.workspace = true"), [""; 0]);
    }

    #[test]
    fn upward_and_sideways_are_found_in_every_section() {
        for (lines, part) in [
            ("[dependencies]\naerogel-cpu.workspace = true", "floor 2 is not below floor 1"),
            ("[dependencies]\nx = { package = \"aerogel-store\" }", "`data` must not need `store`"),
            ("[build-dependencies]\naerogel-cpu.workspace = true", "`cpu`"),
            ("[dev-dependencies]\naerogel-cpu.workspace = true", "`cpu`"),
            ("[dependencies.aerogel-kit]\nworkspace = true", "for tests only"),
            ("[target.'cfg(unix)'.dependencies]\naerogel-store.workspace = true", "`store`"),
        ] {
            let found = check("data", lines);
            assert!(found.len() == 1 && found[0].contains(part), "{lines}: {found:?}");
        }
    }

    #[test]
    fn table_and_folders_agree() {
        let tree = Tree::of(&[
            (ARCHITECTURE, TABLE),
            ("crates/graph/Cargo.toml", "[package]\nname = \"aerogel-graph\""),
            ("crates/new/Cargo.toml", "[package]\nname = \"aerogel-new\""),
        ]);
        let found: Vec<_> = find(&tree).unwrap().into_iter().map(|f| (f.line, f.message)).collect();
        assert_eq!(found.len(), 6, "{found:?}");
        assert!(found.contains(&(0, "crates/new is not in the table of floors".into())));
        let absent = "the table lists `kit`, but there is no crates/kit".into();
        assert!(found.contains(&(9, absent)), "{found:?}");
    }

    #[test]
    fn a_document_without_the_table_is_an_error() {
        for text in ["# Floors", "| floor | crate |\n|---|---|\n| high | `graph` |"] {
            assert!(find(&Tree::of(&[(ARCHITECTURE, text)])).is_err(), "{text}");
        }
        assert!(find(&Tree::of(&[])).is_err());
    }
}
