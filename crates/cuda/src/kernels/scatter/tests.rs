use super::*;
use crate::kernels::elements::testing::spills;
use aerogel_lower::{Operand, RowsShape};

/// The gradient of an embedding.
fn spec(dtype: DType, mode: ScatterMode) -> ScatterSpec {
    let shape = RowsShape {
        batch: vec![],
        rows: vec![64, 1024, 1],
        table_rows: 50_304,
        first_row: 0,
        all_rows: 50_304,
        width: 768,
    };
    let kept = if mode == ScatterMode::Add { DType::F32 } else { dtype };
    let table = Operand { dtype: kept, strides: vec![0, 0, 768, 1] };
    let rows = Operand { dtype, strides: vec![786_432, 768, 0, 1] };
    ScatterSpec { shape, table, ids: Operand::u32([1024, 1, 0, 0]), rows, mode }
}

fn made(spec: &ScatterSpec, align: u64) -> Kernel {
    scatter(spec, &[align.max(4), 4, align]).unwrap()
}

#[test]
fn ids_are_sorted_in_two_passes() {
    let kernel = made(&spec(DType::Bf16, ScatterMode::Add), 64);
    let steps: Vec<_> = kernel.launches.iter().map(|l| (l.entry, l.grid)).collect();
    let wanted = [
        ("scatter_count", [32, 1, 1]),
        ("scatter_place", [32, 1, 1]),
        ("scatter_place", [32, 1, 1]),
        ("scatter_runs", [128 + 197, 3, 1]),
        ("scatter_add", [1572, 3, 1]),
    ];
    assert_eq!(steps, wanted);
    let constants = ["V=8", "AXES=1", "BATCH=1", "T=bf16"];
    assert!(kernel.launches.iter().all(|l| l.source.defines == constants));
    // Keys and positions twice, counts, bounds, and sums of stretches.
    let bounds = (4 * 50_305u64).next_multiple_of(256);
    let words = 4 * 65_536 + 2 * 32 * 256 + 1024 * 2 * 768;
    assert_eq!(kernel.workspace_bytes, 4 * words + bounds);
    // Only the pass tells the launches' arguments apart: it is the last field.
    let bytes = |i: usize| kernel.launches[i].parameters.bytes();
    let at = bytes(1).len() - 4;
    assert_eq!(bytes(1)[..at], bytes(2)[..at]);
    assert_eq!((bytes(1)[at], bytes(2)[at]), (0, 1));
}

#[test]
fn the_workspace_does_not_depend_on_addresses() {
    let own = spec(DType::Bf16, ScatterMode::Add);
    assert_eq!(made(&own, 2).launches[0].source.defines[0], "V=1");
    assert_eq!(made(&own, 2).workspace_bytes, made(&own, 64).workspace_bytes);
}

#[test]
fn rows_are_set_by_one_launch() {
    let kernel = made(&spec(DType::F32, ScatterMode::Set), 64);
    let [launch] = &kernel.launches[..] else { panic!("one launch") };
    assert_eq!((launch.entry, launch.grid), ("scatter_set", [8192, 6, 1]));
    assert_eq!((&launch.source.defines[0][..], kernel.workspace_bytes), ("V=4", 0));
}

#[test]
fn sums_of_no_rows_are_zero() {
    let mut none = spec(DType::Bf16, ScatterMode::Add);
    none.shape.rows[0] = 0;
    let kernel = made(&none, 64);
    assert_eq!((kernel.launches[0].entry, kernel.launches.len()), ("fill", 1));
    none.mode = ScatterMode::Set;
    none.table.dtype = DType::Bf16;
    assert!(made(&none, 64).launches.is_empty());
    none.mode = ScatterMode::Add;
    assert!(scatter(&none, &[64; 3]).unwrap_err().to_string().contains("f32 tables only"));
}

#[test]
#[ignore = "needs NVRTC"]
fn scatters_stay_in_registers() {
    let mut list = vec![];
    for dtype in [DType::Bf16, DType::F16, DType::F32] {
        for mode in [ScatterMode::Add, ScatterMode::Set] {
            list.extend([64, 8, 4].map(|align| made(&spec(dtype, mode), align)));
        }
    }
    assert_eq!(spills(list), Vec::<String>::new());
}
