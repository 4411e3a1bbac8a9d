//! Everything that specs lead to compiles, and its argument has the host's size.

use super::specs::Case;
use crate::compile;
use crate::gpu::Architecture;
use crate::kernels::Chip;
use crate::kernels::attend::{attend, attend_grad, decode};
use crate::source::Source;
use aerogel_graph::DType;
use std::collections::BTreeSet;

/// What both directions and decoding are made of.
fn sources_of(case: &Case, chip: Chip) -> impl Iterator<Item = Source> {
    let forward = attend(&case.forward(), &case.mask(), &[64; 5], chip).unwrap();
    let backward = attend_grad(&case.backward(), &case.mask(), &[64; 10], chip).unwrap();
    let decode = decode(&case.forward(), &case.mask()).unwrap();
    let launches = [forward, backward, decode].into_iter().flat_map(|kernel| kernel.launches);
    launches.map(|launch| launch.source)
}

fn sources(chip: Chip) -> BTreeSet<Source> {
    let mut all = BTreeSet::new();
    let widths = [[32, 32], [32, 64], [64, 64], [64, 128], [96, 96], [128, 128], [24, 8]];
    for widths in widths {
        for (pattern, length) in
            [("causal", 2048), ("local(128)", 2048), ("causal", 32), ("full", 96)]
        {
            for (group, kv) in [(1, 1), (2, 1), (1, 64)] {
                // A spread in f16: its forms are those for bf16.
                let spread = group == 1 && [32, 128, 24].contains(&widths[0]);
                let f16 = spread.then_some(DType::F16);
                for dtype in [DType::Bf16, DType::F32].into_iter().chain(f16) {
                    let case = Case {
                        pattern,
                        batch: vec![2],
                        kv,
                        group,
                        queries: length,
                        keys: length,
                        widths,
                        dtype,
                        ..Case::default()
                    };
                    all.extend(sources_of(&case, chip));
                }
            }
        }
    }
    all
}

#[test]
#[ignore = "needs NVRTC"]
fn what_is_chosen_compiles_without_spills() {
    for architecture in [Architecture::SM80, Architecture::SM90A] {
        let all = sources(Chip { architecture });
        assert!(all.len() > 40, "{}", all.len());
        for source in all {
            let compiled = compile(&source, architecture).unwrap_or_else(|e| panic!("{e}"));
            let name = (&source.file, &source.defines, architecture);
            for usage in compiled.usage {
                assert_eq!(usage.spill_bytes, 0, "{name:?}: {usage:?}");
            }
        }
    }
}
