//! What is compiled: a kernel's text with constants, and the headers that it includes.

use crate::error::CudaError;
use crate::gpu::Architecture;
use std::borrow::Cow;

/// Headers that kernels include, by the names that they include them by.
pub(crate) const HEADERS: &[(&str, &str)] = &[];

/// One compilation: a text and its constants. Equal sources give equal machine code.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Source {
    /// `norm.cu`; generated texts have names, too, which error messages show.
    pub file: String,
    /// The text.
    pub text: Cow<'static, str>,
    /// Constants, `NAME=VALUE`.
    pub defines: Vec<String>,
}

impl Source {
    /// What the compiler is told.
    pub(crate) fn options(&self, architecture: Architecture) -> Vec<String> {
        let fixed = [
            format!("-arch={architecture}"),
            "--std=c++17".to_owned(),
            // A fused multiply-add is written where it is meant: the same expression has the same
            // bits in every kernel.
            "--fmad=false".to_owned(),
            "-default-device".to_owned(),
            "--ptxas-options=-v".to_owned(),
        ];
        fixed.into_iter().chain(self.defines.iter().map(|d| format!("-D{d}"))).collect()
    }

    /// Names what a compilation depends on: text, headers, options, and the compiler's version.
    pub(crate) fn key(&self, architecture: Architecture, compiler: (i32, i32)) -> String {
        let mut hash = blake3::Hasher::new();
        let mut add = |part: &str| {
            hash.update(&(part.len() as u64).to_le_bytes());
            hash.update(part.as_bytes());
        };
        add(&format!("nvrtc {}.{}", compiler.0, compiler.1));
        add(&self.text);
        for (name, text) in HEADERS {
            add(name);
            add(text);
        }
        self.options(architecture).iter().for_each(|option| add(option));
        hash.finalize().to_hex().as_str()[..32].to_owned()
    }

    pub(crate) fn failed(&self, architecture: Architecture, log: String) -> CudaError {
        CudaError::Compile {
            file: self.file.clone(),
            architecture: architecture.to_string(),
            defines: self.defines.clone(),
            log,
        }
    }
}

/// A source with the architectures that it exists for: a line of `kernels/variants.txt`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Variant {
    /// The kernel in the file.
    pub entry: String,
    /// What is compiled.
    pub source: Source,
    /// Every architecture that it is compiled for.
    pub architectures: Vec<Architecture>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(text: &'static str, defines: &[&str]) -> Source {
        let defines = defines.iter().map(|d| (*d).to_owned()).collect();
        Source { file: "k.cu".to_owned(), text: text.into(), defines }
    }

    #[test]
    fn a_key_tells_everything_apart() {
        let keys = [
            source("a", &[]).key(Architecture::SM80, (13, 0)),
            source("b", &[]).key(Architecture::SM80, (13, 0)),
            source("a", &["X=1"]).key(Architecture::SM80, (13, 0)),
            source("a", &[]).key(Architecture::SM90A, (13, 0)),
            source("a", &[]).key(Architecture::SM80, (13, 1)),
        ];
        for (i, key) in keys.iter().enumerate() {
            assert_eq!(keys.iter().position(|k| k == key), Some(i));
        }
    }
}
