//! Runs the binary in a folder of its own.

use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// A working directory that is removed at the end.
pub struct Place {
    dir: tempfile::TempDir,
}

/// How a command ended.
#[derive(Debug)]
pub struct Ended {
    pub code: i32,
    pub out: String,
    pub err: String,
    pub took: Duration,
}

/// A recipe on text files in `text/`, small enough for a moment.
pub const SMALL: &str = r#"
[model]
family = "gpt2"
layers = 1
heads = 2
embed = 16
context = 32

[data]
kind = "text"
paths = ["text/*.txt"]
validation = 0.5

[optimizer]
kind = "adamw"
learning_rate = 1e-2

[schedule]
kind = "constant"

[train]
steps = 4
batch = 2
seed = 1
"#;

impl Place {
    pub fn new() -> Place {
        Place { dir: tempfile::tempdir().unwrap() }
    }

    /// With [`SMALL`] as `small.toml`, and text for it.
    pub fn small() -> Place {
        let place = Place::new();
        place.write("small.toml", SMALL);
        for n in 0..8 {
            place.write(
                &format!("text/{n}.txt"),
                &format!("{n} plus {n} is {}. ", 2 * n).repeat(40),
            );
        }
        place
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn write(&self, name: &str, text: &str) {
        let path = self.path(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }

    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_aerogel"));
        command.args(args).current_dir(self.dir.path());
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    pub fn run(&self, args: &[&str]) -> Ended {
        let started = Instant::now();
        let output = self.command(args).output().unwrap();
        Ended {
            // A process that a signal ended has no code, which no test expects.
            code: output.status.code().unwrap_or(-1),
            out: String::from_utf8(output.stdout).unwrap(),
            err: String::from_utf8(output.stderr).unwrap(),
            took: started.elapsed(),
        }
    }

    /// Runs a command that has to end well.
    pub fn good(&self, args: &[&str]) -> Ended {
        let ended = self.run(args);
        assert_eq!(ended.code, 0, "{args:?}: {}", ended.err);
        ended
    }

    /// Marks a run as one that was killed at its end.
    pub fn unfinish(&self, run: &str) {
        let path = self.path(run).join("run.json");
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.contains("\"done\""));
        std::fs::write(path, text.replace("\"done\"", "\"running\"")).unwrap();
    }
}

impl Ended {
    /// The lines of stdout, all of them JSON objects.
    pub fn events(&self) -> Vec<Value> {
        self.out.lines().map(|l| serde_json::from_str(l).unwrap()).collect()
    }

    /// The only line of stdout.
    pub fn object(&self) -> Value {
        serde_json::from_str(&self.out).unwrap()
    }

    /// The last event of a kind.
    pub fn event(&self, kind: &str) -> Value {
        let found = self.events().into_iter().rfind(|e| e["event"] == kind);
        found.unwrap_or_else(|| panic!("no {kind} in {}", self.out))
    }
}

/// A recipe of the repository.
pub fn recipe(name: &str) -> String {
    recipes().join(format!("{name}.toml")).display().to_string()
}

/// The folder of recipes.
pub fn recipes() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../recipes")
}

/// Changes one byte in the middle of a file.
pub fn damage(path: &Path) {
    let mut bytes = std::fs::read(path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0x40;
    std::fs::write(path, bytes).unwrap();
}
