//! Development tasks: `cargo run -p xtask -- tidy`.

use std::process::ExitCode;

const USAGE: &str = "usage: cargo run -p xtask -- tidy

    tidy    check layers, module circles, dependencies, sizes, words, docs and unsafe code";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments != ["tidy"] {
        eprintln!("{USAGE}");
        return ExitCode::from(2);
    }
    match tidy() {
        Ok(0) => ExitCode::SUCCESS,
        Ok(findings) => {
            eprintln!("tidy: {findings} findings");
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("tidy: {error}");
            ExitCode::from(2)
        }
    }
}

/// Prints what every rule finds, and gives the number of findings.
fn tidy() -> Result<usize, xtask::TidyError> {
    let tree = xtask::Tree::read(xtask::repository())?;
    let mut total = 0;
    for rule in &xtask::RULES {
        let findings = xtask::check(rule, &tree)?;
        let verdict = if findings.is_empty() { "ok" } else { "FAILED" };
        println!("{:13} {verdict:7} {}", rule.name, rule.claim);
        findings.iter().for_each(|finding| println!("    {finding}"));
        total += findings.len();
    }
    Ok(total)
}
