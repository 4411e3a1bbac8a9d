//! Everything that specs lead to compiles, and its argument has the host's size.

use super::specs::Case;
use crate::compile;
use crate::gpu::Architecture;
use crate::kernels::Chip;
use crate::kernels::attend::{attend, attend_grad, decode};
use crate::source::Source;
use aerogel_graph::DType;
use std::collections::BTreeSet;

fn sources(chip: Chip) -> BTreeSet<Source> {
    let mut all = BTreeSet::new();
    let widths = [[32, 32], [32, 64], [64, 64], [64, 128], [96, 96], [128, 128], [24, 8]];
    for widths in widths {
        for (pattern, length) in
            [("causal", 2048), ("local(128)", 2048), ("causal", 32), ("full", 96)]
        {
            for (group, kv) in [(1, 1), (2, 1), (1, 64)] {
                for dtype in [DType::Bf16, DType::F32] {
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
                    let forward = attend(&case.forward(), &case.mask(), &[64; 5], chip).unwrap();
                    let backward =
                        attend_grad(&case.backward(), &case.mask(), &[64; 10], chip).unwrap();
                    let decode = decode(&case.forward(), &case.mask()).unwrap();
                    for kernel in [forward, backward, decode] {
                        all.extend(kernel.launches.into_iter().map(|l| l.source));
                    }
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
