//! Which kernels specs lead to.

use super::specs::Case;
use crate::gpu::Architecture;
use crate::kernels::Chip;
use crate::kernels::attend::{attend, attend_grad, decode};
use crate::launch::{Address, Kernel};
use aerogel_graph::{DType, Pattern};

const HOPPER: Chip = Chip { architecture: Architecture::SM90A };
const AMPERE: Chip = Chip { architecture: Architecture::SM80 };
const SMALL: Chip = Chip { architecture: Architecture { capability: (8, 9) } };

/// Kernels, and their tiles where it is two units: of a forward, then of a backward.
fn chosen(case: &Case, chip: Chip, align: u64) -> String {
    let name = |kernel: &Kernel| {
        let of = kernel.launches.iter().map(|l| {
            let has = |define: &str| l.source.defines.iter().any(|d| d == define);
            let wide = if has("ROW_TILES=2") { " 2" } else { "" };
            let packed = if has("PACK=1") { " packed" } else { "" };
            let fused = if has("FUSED=1") { " fused" } else { "" };
            let name = l.entry.strip_prefix("attend_").unwrap();
            format!("{name}{wide}{packed}{fused}")
        });
        of.collect::<Vec<_>>().join(", ")
    };
    let forward = attend(&case.forward(), &case.mask(), &[align; 5], chip).unwrap();
    let backward = attend_grad(&case.backward(), &case.mask(), &[align; 10], chip).unwrap();
    format!("{}; {}", name(&forward), name(&backward))
}

/// A case of the timings: batch and heads in one axis, or [batch, row, column, head] in memory.
fn timed(t: usize, widths: [usize; 2], heads: usize, pattern: &'static str) -> Case {
    Case { pattern, batch: vec![1], kv: heads, queries: t, keys: t, widths, ..Case::default() }
}

fn columns(images: usize, stride: usize, rows: usize, kv: usize, widths: [usize; 2]) -> Case {
    let batch = vec![images, stride];
    Case {
        batch,
        kv,
        queries: rows,
        keys: rows,
        widths,
        order: vec![0, 4, 1, 2],
        ..Case::default()
    }
}

/// Kernels for f16 are those for bf16, with one constant more and maps of f16.
#[test]
fn heads_of_f16_are_told_by_a_constant() {
    let plain = Case { widths: [24, 8], ..Case::default() };
    for case in
        [timed(3072, [128; 2], 32, "causal"), timed(12288, [32; 2], 64, "local(128)"), plain]
    {
        let other = Case { dtype: DType::F16, ..case.clone() };
        assert_eq!(chosen(&other, HOPPER, 64), chosen(&case, HOPPER, 64));
        let made = |case: &Case| {
            attend_grad(&case.backward(), &case.mask(), &[64; 10], HOPPER).unwrap().launches
        };
        for (own, bf16) in made(&other).iter().zip(made(&case)) {
            let without = |d: &&String| !d.starts_with("F16") && !d.starts_with("BF16");
            let [a, b] = [own, &bf16].map(|l| l.source.defines.iter().filter(without));
            assert!(a.eq(b) && own.source.defines.contains(&"F16=1".to_owned()));
            assert!(!own.source.defines.contains(&"BF16=1".to_owned()));
            assert!(own.parameters.maps().iter().all(|(_, map)| map.dtype == DType::F16));
            assert_eq!(own.parameters.bytes(), bf16.parameters.bytes());
        }
    }
}

#[test]
fn the_fastest_kernels_of_the_timings_are_taken() {
    let hopper = "fwd_sm90; dq_sm90, dkv_sm90";
    let band = "fwd; stats, band";
    for (case, wanted) in [
        (timed(3072, [128; 2], 32, "causal"), hopper),
        (timed(3072, [128; 2], 32, "local(128)"), hopper),
        (timed(12288, [32; 2], 64, "causal"), "fwd 2; stats, dkv 2, dq 2"),
        (timed(12288, [32; 2], 64, "local(128)"), band),
        (timed(12288, [32; 2], 64, "local(256)"), band),
        (timed(16384, [128; 2], 8, "local(256)"), hopper),
        (timed(4096, [64; 2], 64, "full"), hopper),
        (timed(1024, [64; 2], 768, "causal"), hopper),
        (timed(512, [64; 2], 64, "causal"), hopper),
        (timed(4096, [64; 2], 64, "local(128)"), band),
        (timed(4096, [64; 2], 64, "local(256)"), "fwd; dq_sm90, dkv_sm90"),
        (timed(3072, [64, 128], 128, "local(128)"), band),
        (columns(64, 96, 32, 2, [64, 128]), "fwd packed; dkv packed fused"),
        (columns(1, 256, 64, 8, [128; 2]), "fwd packed; dkv packed fused"),
        (columns(1, 128, 96, 64, [32; 2]), "fwd packed; stats packed, dkv packed, dq packed"),
    ] {
        assert_eq!(chosen(&case, HOPPER, 64), wanted, "{case:?}");
    }
}

#[test]
fn other_gpus_and_operands_have_other_kernels() {
    let case = timed(4096, [128; 2], 64, "causal");
    assert_eq!(chosen(&case, AMPERE, 64), "fwd 2; stats, dkv 2, dq 2");
    // Its blocks have less memory: one stage, which the form of packed columns has.
    let packed = "stats packed, dkv packed, dq packed";
    assert_eq!(chosen(&case, SMALL, 64), format!("fwd 2; {packed}"));
    let plain = "plain_fwd; plain_stats, plain_dkv, plain_dq";
    assert_eq!(chosen(&case, HOPPER, 8), plain);
    for other in [
        Case { dtype: DType::F32, ..case.clone() },
        Case { widths: [128, 64], ..case.clone() },
        Case { widths: [72, 72], ..case.clone() },
        Case { pad: 4, ..case.clone() },
    ] {
        assert_eq!(chosen(&other, HOPPER, 64), plain);
    }
    // Shared keys have no map of their own along the group, and no band.
    let grouped = Case { group: 2, pattern: "local(128)", ..timed(512, [64; 2], 4, "causal") };
    assert_eq!(chosen(&grouped, HOPPER, 64), "fwd; dq_sm90, dkv_sm90");
}

/// A device asks with what it knows of the addresses, after a plan that took the larger of two.
#[test]
fn no_alignment_takes_more_workspace_than_the_plan_gave() {
    let cases = [
        columns(4, 96, 32, 2, [64, 128]),
        columns(2, 128, 96, 4, [32; 2]),
        timed(300, [96; 2], 6, "local(50)"),
        Case { group: 3, ..timed(48, [64; 2], 6, "causal") },
    ];
    for case in cases {
        let bytes = |align: [u64; 10], chip| {
            let made = attend_grad(&case.backward(), &case.mask(), &align, chip).unwrap();
            made.workspace_bytes
        };
        for chip in [HOPPER, AMPERE, SMALL] {
            let most = bytes([64; 10], chip).max(bytes([2; 10], chip));
            for odd in 0..10 {
                let mut align = [16; 10];
                align[odd] = 8;
                assert!(bytes(align, chip) <= most);
            }
        }
    }
}

#[test]
fn layers_share_tables() {
    let case = timed(640, [64; 2], 4, "causal");
    let other = Case { batch: vec![5], ..case.clone() };
    let tables =
        |case: &Case| attend(&case.forward(), &case.mask(), &[64; 5], HOPPER).unwrap().tables;
    for (a, b) in tables(&case).iter().zip(&tables(&other)) {
        assert!(std::sync::Arc::ptr_eq(a, b));
    }
}

#[test]
fn decoding_reads_the_position_and_a_pattern() {
    let case = Case {
        pattern: "per_head(local(5),strided(7))",
        kv: 3,
        group: 2,
        queries: 2,
        keys: 40,
        widths: [20, 44],
        dtype: DType::F32,
        ..Case::default()
    };
    let mask = aerogel_lower::AttendMask { queries: 40, ..case.mask() };
    let kernel = decode(&case.forward(), &mask).unwrap();
    let [launch] = &kernel.launches[..] else { panic!("one launch") };
    assert_eq!((launch.entry, launch.threads), ("attend_decode", 256));
    assert_eq!((launch.grid, launch.shared_bytes), ([2 * 3 * 2 * 2, 1, 1], 4 * (20 + 8 * 46)));
    let addresses = launch.parameters.addresses();
    let tables = [(728, Address::Table(0)), (736, Address::Table(1)), (760, Address::Position)];
    assert_eq!(addresses[5..], tables);
    assert_eq!((kernel.tables[0].len(), kernel.tables[1].len()), (12, 32));
    assert!(attend(&case.forward(), &mask, &[64; 5], HOPPER).is_err(), "no position");
}

#[test]
fn what_cannot_be_says_so() {
    let case = Case { widths: [40_000, 8], ..Case::default() };
    let error = attend(&case.forward(), &case.mask(), &[64; 5], HOPPER).unwrap_err();
    assert!(error.to_string().contains("40000"), "{error}");
    let case = Case::default();
    let mut spec = case.forward();
    spec.k.dtype = DType::F32;
    let error = attend(&spec, &case.mask(), &[64; 5], HOPPER).unwrap_err();
    assert!(error.to_string().contains("operand 1 holds F32"), "{error}");
    let mut mask = case.mask();
    mask.heads = 3;
    mask.pattern = Pattern::parse("per_head(full,causal,before)").unwrap();
    assert!(attend(&case.forward(), &mask, &[64; 5], HOPPER).is_err());
}

/// Nothing to do takes no launches; gradients of keys that nobody asks about are still written.
#[test]
fn empty_spaces_are_left_out() {
    let none = Case { batch: vec![0], ..Case::default() };
    assert_eq!(chosen(&none, HOPPER, 64), "; ");
    let unseen = Case { queries: 0, keys: 70, ..Case::default() };
    assert_eq!(chosen(&unseen, HOPPER, 2), "; plain_dkv");
}
