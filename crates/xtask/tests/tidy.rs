//! The rules over this repository, one test each.

use xtask::{RULES, Tree, check, repository};

/// One test for each rule, and one that no rule is without.
macro_rules! rules {
    ($($name:ident)*) => {
        $(#[test]
        fn $name() {
            holds(stringify!($name));
        })*

        #[test]
        fn every_rule_has_its_test() {
            assert_eq!(RULES.map(|rule| rule.name), [$(stringify!($name)),*]);
        }
    };
}

rules! { layers modules dependencies sizes words docs unsafety }

fn holds(name: &str) {
    let rule = RULES.iter().find(|rule| rule.name == name).expect("the rule is listed");
    let tree = Tree::read(repository()).unwrap_or_else(|error| panic!("{error}"));
    assert!(tree.rust().count() > 50, "the tree was not found at {}", tree.root.display());
    let findings = check(rule, &tree).unwrap_or_else(|error| panic!("{error}"));
    let list: String = findings.iter().map(|finding| format!("\n    {finding}")).collect();
    assert!(findings.is_empty(), "not so: {}{list}", rule.claim);
}
