//! What is compiled: a kernel's text with constants, and the headers that it includes.
//!
//! Texts lie in `kernels/` and are part of the binary. `kernels/variants.*.txt` list every
//! compilation that a program may ask for, so that all of them can be checked without a GPU.

use crate::error::CudaError;
use crate::gpu::Architecture;
use std::borrow::Cow;

/// Names of texts in `kernels/`, with what they hold.
macro_rules! texts {
    ($($name:literal),* $(,)?) => {
        &[$(($name, include_str!(concat!("../kernels/", $name)))),*]
    };
}

/// Headers that kernels include, by the names that they include them by.
pub(crate) const HEADERS: &[(&str, &str)] = texts![
    "lib/attend.cuh",
    "lib/attend_plain.cuh",
    "lib/attend_sm90.cuh",
    "lib/attend_tile.cuh",
    "lib/attend_walk.cuh",
    "lib/clock.cuh",
    "lib/gemm_bias_gelu.cuh",
    "lib/gemm_epilogue.cuh",
    "lib/gemm_gelu.cuh",
    "lib/gemm_gelu_grad.cuh",
    "lib/gemm_operand.cuh",
    "lib/gemm_residual.cuh",
    "lib/gemm_sm90.cuh",
    "lib/gemm_split.cuh",
    "lib/gemm_store.cuh",
    "lib/gemm_sums.cuh",
    "lib/math.cuh",
    "lib/mma.cuh",
    "lib/mma_gemm.cuh",
    "lib/philox.cuh",
    "lib/ptx.cuh",
    "lib/reduce.cuh",
    "lib/strided.cuh",
    "lib/tma.cuh",
    "lib/types.cuh",
    "lib/vec.cuh",
    "lib/wgmma.cuh",
    "lib/wgmma_left.cuh",
];

/// Kernels.
const FILES: &[(&str, &str)] = texts![
    "attend_band.cu",
    "attend_decode.cu",
    "attend_dkv.cu",
    "attend_dkv_sm90.cu",
    "attend_dq.cu",
    "attend_dq_sm90.cu",
    "attend_fwd.cu",
    "attend_fwd_sm90.cu",
    "attend_plain.cu",
    "attend_stats.cu",
    "copy.cu",
    "cross_entropy.cu",
    "fill.cu",
    "gather.cu",
    "gemm.cu",
    "gemm_resident_sm90.cu",
    "gemm_sm90.cu",
    "map.cu",
    "norm.cu",
    "norm_grad.cu",
    "reduce.cu",
    "scatter.cu",
];

/// Lists of variants.
const VARIANTS: &[(&str, &str)] =
    texts!["variants.attend.txt", "variants.gemm.txt", "variants.rows.txt",];

/// The name that a generated header is included by.
pub(crate) const GENERATED: &str = "lib/generated.cuh";

/// One compilation: a text and its constants. Equal sources give equal machine code.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Source {
    /// `norm.cu`; generated texts have names, too, which error messages show.
    pub file: String,
    /// The text.
    pub text: Cow<'static, str>,
    /// Constants, `NAME=VALUE`.
    pub defines: Vec<String>,
    /// What the text includes as `lib/generated.cuh`: the element-wise part of a region. Empty
    /// where it includes none.
    pub generated: String,
}

impl Source {
    /// A kernel of `kernels/`.
    pub fn of(file: &str, defines: impl IntoIterator<Item = String>) -> Option<Source> {
        let (_, text) = FILES.iter().find(|(name, _)| *name == file)?;
        Some(Source {
            file: file.to_owned(),
            text: (*text).into(),
            defines: defines.into_iter().collect(),
            generated: String::new(),
        })
    }

    /// A kernel whose argument has so many bytes in a struct of this name: that the host and the
    /// kernel agree on it is checked while it is compiled. `text` stands for the kernel's own if
    /// it has a generated part.
    pub(crate) fn launched(
        file: &str,
        text: Option<String>,
        defines: Vec<String>,
        (argument, bytes): (&str, usize),
    ) -> Source {
        let (_, own) = FILES.iter().find(|(name, _)| *name == file).unwrap_or(&FILES[0]);
        let text = text.as_deref().unwrap_or(own);
        let checked =
            format!("{text}static_assert(sizeof({argument}) == {bytes}, \"the host's\");\n");
        Source { file: file.to_owned(), text: checked.into(), defines, generated: String::new() }
    }

    /// The text of a kernel of `kernels/`.
    pub(crate) fn text(file: &str) -> &'static str {
        FILES.iter().find(|(name, _)| *name == file).map_or("", |(_, text)| text)
    }

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
        add(&self.generated);
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

impl Variant {
    /// Everything that `kernels/variants.*.txt` list: a line is a file, a kernel in it, `both`,
    /// `sm_80` or `sm_90a`, and constants.
    pub fn all() -> Vec<Variant> {
        let lines = VARIANTS.iter().flat_map(|(_, text)| text.lines());
        lines.filter_map(|line| Variant::parse(line.split('#').next().unwrap_or(line))).collect()
    }

    fn parse(line: &str) -> Option<Variant> {
        let mut words = line.split_whitespace();
        let (file, entry, architecture) = (words.next()?, words.next()?, words.next()?);
        let file = file.strip_suffix(".cu").unwrap_or(file);
        let defines = words.filter_map(|word| word.strip_prefix("-D")).map(str::to_owned);
        let source = Source::of(&format!("{file}.cu"), defines)?;
        let architectures = match architecture {
            "both" => vec![Architecture::SM80, Architecture::SM90A],
            "sm_80" => vec![Architecture::SM80],
            _ => vec![Architecture::SM90A],
        };
        Some(Variant { entry: entry.to_owned(), source, architectures })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(text: &'static str, defines: &[&str]) -> Source {
        let defines = defines.iter().map(|d| (*d).to_owned()).collect();
        Source { file: "k.cu".to_owned(), text: text.into(), defines, generated: String::new() }
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

    /// Every text in the folder is part of the binary, and every line of a list is understood.
    #[test]
    fn nothing_in_the_folder_is_forgotten() {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("kernels");
        let names = |sub: &str, ending: &str| {
            let entries = std::fs::read_dir(folder.join(sub)).unwrap();
            let all = entries.map(|e| e.unwrap().file_name().into_string().unwrap());
            let mut list: Vec<String> =
                all.filter(|n| n.ends_with(ending)).map(|n| format!("{sub}{n}")).collect();
            list.sort();
            list
        };
        let known = |list: &[(&str, &str)]| list.iter().map(|t| t.0.to_owned()).collect::<Vec<_>>();
        assert_eq!(names("lib/", ".cuh"), known(HEADERS));
        assert_eq!(names("", ".cu"), known(FILES));
        assert_eq!(names("", ".txt"), known(VARIANTS));
        let lines = VARIANTS.iter().flat_map(|(_, text)| text.lines());
        let wanted = lines.filter(|l| !l.split('#').next().unwrap_or("").trim().is_empty()).count();
        assert_eq!(Variant::all().len(), wanted);
        let constant = |v: &Variant| v.source.defines.iter().all(|d| d.contains('='));
        assert!(Variant::all().iter().all(constant));
    }
}
