//! Circles: the top-level modules of a crate, as their `crate::` and `super::` paths connect them.
//!
//! Within a crate the compiler does not mind circles, and then nobody can read a module alone. The
//! crate's root is no module: a name that it re-exports counts as its module, and an item of its
//! own as nothing.

use std::collections::{BTreeMap, BTreeSet};

use crate::finding::Finding;
use crate::source::{Kind, Source, Token};
use crate::tree::{File, Tree};

/// Where a module uses another for the first time: path and line.
type Use = (String, usize);
/// For each module, the modules that it uses.
type Uses = BTreeMap<String, BTreeMap<String, Use>>;

pub(super) fn find(tree: &Tree) -> Vec<Finding> {
    tree.crates().filter_map(|(folder, _)| find_in(tree, folder)).collect()
}

/// The first circle of a crate.
fn find_in(tree: &Tree, folder: &str) -> Option<Finding> {
    let source = format!("crates/{folder}/src/");
    let files: Vec<(&str, &File)> = tree
        .rust()
        .filter_map(|file| Some((file.path.strip_prefix(&source)?.strip_suffix(".rs")?, file)))
        .collect();
    let is_root = |path: &str| path == "lib" || path == "main";
    let top = |path: &str| path.split('/').next().unwrap_or_default().to_owned();
    let names: BTreeSet<String> =
        files.iter().filter(|(path, _)| !is_root(path)).map(|(path, _)| top(path)).collect();

    let mut exports: BTreeMap<String, String> =
        names.iter().map(|name| (name.clone(), name.clone())).collect();
    for (_, file) in files.iter().filter(|(path, _)| is_root(path)) {
        exports.extend(re_exports(&file.text, &names));
    }
    let mut uses = Uses::new();
    for (path, file) in files.iter().filter(|(path, _)| !is_root(path)) {
        let module = top(path);
        // `tests.rs` in a module's folder is there for tests only.
        if path.ends_with("/tests") || module == "tests" {
            continue;
        }
        let depth = path.split('/').filter(|part| *part != "mod").count();
        for (name, line) in names_of_root(&file.text, depth) {
            if let Some(used) = exports.get(&name).filter(|used| **used != module) {
                let place = || (file.path.clone(), line);
                uses.entry(module.clone()).or_default().entry(used.clone()).or_insert_with(place);
            }
        }
    }
    circle(&uses).map(|circle| describe(&circle, &uses))
}

/// Names that the root re-exports from its modules.
fn re_exports(text: &str, modules: &BTreeSet<String>) -> Vec<(String, String)> {
    let tokens = Source::of(text).without_tests();
    let mut found = Vec::new();
    for start in (0..tokens.len()).filter(|i| tokens[*i].is("use")) {
        for path in paths(&tokens[start + 1..]).0 {
            let path: Vec<&str> =
                path.into_iter().skip_while(|s| ["crate", "self"].contains(s)).collect();
            if let (Some(first), Some(last)) = (path.first(), path.last())
                && modules.contains(*first)
            {
                found.push(((*last).to_owned(), (*first).to_owned()));
            }
        }
    }
    found
}

/// The names of the crate's root that a file uses, itself `depth` modules below it, with lines.
fn names_of_root(text: &str, depth: usize) -> Vec<(String, usize)> {
    let tokens = Source::of(text).without_tests();
    let (mut found, mut braces, mut inner) = (Vec::new(), 0_usize, Vec::new());
    for (i, token) in tokens.iter().enumerate() {
        match token.text {
            "{" if token.kind == Kind::Mark => {
                braces += 1;
                if i >= 2 && tokens[i - 2].is("mod") {
                    inner.push(braces);
                }
            }
            "}" if token.kind == Kind::Mark => {
                if inner.last() == Some(&braces) {
                    inner.pop();
                }
                braces = braces.saturating_sub(1);
            }
            "crate" | "super" if token.kind == Kind::Word => {
                // A path's later segment, or the scope in `pub(in crate::a)`.
                if i >= 1 && (tokens[i - 1].is(":") || tokens[i - 1].is("in")) {
                    continue;
                }
                for path in paths(&tokens[i..]).0 {
                    let supers = path.iter().take_while(|s| **s == "super").count();
                    let at_root = path[0] == "crate" || supers == depth + inner.len();
                    if let Some(name) = path.get(supers.max(1)).filter(|_| at_root) {
                        found.push(((*name).to_owned(), token.line));
                    }
                }
            }
            _ => {}
        }
    }
    found
}

/// The paths of a use tree (or the one of an expression) that starts here, and its tokens. With
/// `as`, the new name is appended, so that the last segment is the name that comes into scope.
fn paths<'a>(tokens: &[Token<'a>]) -> (Vec<Vec<&'a str>>, usize) {
    let (mut prefix, mut i) = (Vec::new(), 0);
    loop {
        match tokens.get(i) {
            Some(token) if token.kind == Kind::Word => prefix.push(token.text),
            Some(token) if token.is("{") => {
                let (paths, length) = group(&tokens[i + 1..], &prefix);
                return (paths, i + 1 + length);
            }
            _ => return (vec![prefix], i),
        }
        i += 1;
        if !(tokens.len() > i + 1 && tokens[i].is(":") && tokens[i + 1].is(":")) {
            break;
        }
        i += 2;
    }
    if tokens.get(i).is_some_and(|token| token.is("as")) {
        prefix.extend(tokens.get(i + 1).map(|token| token.text));
        i += 2;
    }
    (vec![prefix], i)
}

/// The paths in braces after a prefix, and their tokens.
fn group<'a>(tokens: &[Token<'a>], prefix: &[&'a str]) -> (Vec<Vec<&'a str>>, usize) {
    let (mut found, mut i) = (Vec::new(), 0);
    while let Some(token) = tokens.get(i) {
        if token.is("}") {
            return (found, i + 1);
        }
        let (inner, length) = paths(&tokens[i..]);
        found.extend(inner.into_iter().map(|path| [prefix, &path].concat()));
        // A comma or a star is no path; it has no tokens and is stepped over.
        i += length.max(1);
    }
    (found, i)
}

/// The modules of a circle in the order in which they use each other.
fn circle(uses: &Uses) -> Option<Vec<String>> {
    fn visit(
        uses: &Uses,
        module: &str,
        way: &mut Vec<String>,
        done: &mut BTreeSet<String>,
    ) -> bool {
        if let Some(start) = way.iter().position(|seen| seen == module) {
            way.drain(..start);
            return true;
        }
        if !done.insert(module.to_owned()) {
            return false;
        }
        way.push(module.to_owned());
        if uses.get(module).is_some_and(|next| next.keys().any(|n| visit(uses, n, way, done))) {
            return true;
        }
        way.pop();
        false
    }
    let mut done = BTreeSet::new();
    uses.keys().find_map(|module| {
        let mut way = Vec::new();
        visit(uses, module, &mut way, &mut done).then_some(way)
    })
}

fn describe(circle: &[String], uses: &Uses) -> Finding {
    let next = |i: usize| &circle[(i + 1) % circle.len()];
    let edges = circle.iter().enumerate().map(|(i, module)| {
        let (path, line) = &uses[module][next(i)];
        format!("\n        {module} uses {} at {path}:{line}", next(i))
    });
    let names = circle.iter().chain(circle.first()).map(String::as_str);
    let message = format!(
        "modules form a circle: {}{}",
        names.collect::<Vec<_>>().join(" -> "),
        edges.collect::<String>()
    );
    let (path, line) = &uses[&circle[0]][next(0)];
    Finding::new("module", path, *line, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The circle that is found in a crate of these files.
    fn check(files: &[(&str, &str)]) -> Option<String> {
        let mut tree = vec![("crates/x/Cargo.toml".to_owned(), "")];
        tree.extend(files.iter().map(|(path, text)| (format!("crates/x/src/{path}.rs"), *text)));
        let tree: Vec<_> = tree.iter().map(|(path, text)| (path.as_str(), *text)).collect();
        let found = find(&Tree::of(&tree));
        found.first().map(|f| f.message.lines().next().unwrap_or_default().to_owned())
    }

    const AB: &str = "modules form a circle: a -> b -> a";

    #[test]
    fn circles_are_found_however_the_path_is_written() {
        for (a, b) in [
            ("use crate::b::B;", "use crate::a::A;"),
            ("use crate::{c, b::{self, B}};", "fn f() -> crate::a::A { todo() }"),
            ("use super::b;", "pub use super::{a as c};"),
            ("mod m { use super::super::b; }", "macro_rules! m { () => { $crate::a::A } }"),
        ] {
            assert_eq!(check(&[("a", a), ("b", b)]).as_deref(), Some(AB), "{a} {b}");
        }
    }

    #[test]
    fn folders_are_one_module_and_longer_circles_are_found() {
        let files = [
            ("a/mod", "mod deep;"),
            ("a/deep", "use super::super::b;"),
            ("b", "mod inner;"),
            ("b/inner", "use crate::c::C;"),
            ("c", "use crate::a;"),
        ];
        let wanted = "modules form a circle: a -> b -> c -> a";
        assert_eq!(check(&files).as_deref(), Some(wanted));
    }

    #[test]
    fn a_name_that_the_root_re_exports_counts_as_its_module() {
        let root = ("lib", "mod a; mod b; pub use b::{Inner as B, C}; pub fn own() {}");
        assert_eq!(
            check(&[root, ("a", "use crate::B;"), ("b", "use crate::a;")]).as_deref(),
            Some(AB)
        );
        assert_eq!(check(&[root, ("a", "use crate::own;"), ("b", "use crate::a;")]), None);
    }

    #[test]
    fn tests_comments_strings_and_own_modules_do_not_count() {
        for a in [
            "#[cfg(test)] mod tests { use crate::b; use super::super::b; }",
            "// use crate::b\n/// crate::b\nfn f() {} const X: &str = \"crate::b\";",
            "mod m { use super::b; } use self::b; use other::crate_b;",
            "pub(in crate::b) fn f() {}",
        ] {
            assert_eq!(check(&[("a", a), ("b", "use crate::a;")]), None, "{a}");
        }
        assert_eq!(check(&[("a/mod", ""), ("a/c", "use super::b;"), ("b", "use crate::a;")]), None);
    }
}
