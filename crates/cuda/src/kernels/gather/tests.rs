use super::*;
use crate::kernels::elements::testing::spills;

/// Token embeddings: the table's rows are `pitch` elements apart.
fn spec(dtype: DType, pitch: isize) -> GatherSpec {
    let shape = RowsShape {
        batch: vec![],
        rows: vec![64, 1024, 1],
        table_rows: 50_304,
        first_row: 7,
        all_rows: 60_000,
        width: 768,
    };
    let table = Operand { dtype, strides: vec![0, 0, pitch, 1] };
    let rows = Operand { dtype, strides: vec![786_432, 768, 0, 1] };
    GatherSpec { shape, table, ids: Operand::u32([1024, 1, 0, 0]), rows }
}

fn made(spec: &GatherSpec, align: u64) -> Kernel {
    gather(spec, &[align, 4, align]).unwrap()
}

fn lanes(kernel: &Kernel) -> &str {
    &kernel.launches[0].source.defines[0]
}

#[test]
fn a_position_is_one_axis() {
    let kernel = made(&spec(DType::Bf16, 768), 64);
    let [launch] = &kernel.launches[..] else { panic!("one launch") };
    assert_eq!(launch.source.defines, ["V=8", "AXES=1", "UNROLL=4", "THREADS=256", "T=bf16"]);
    assert_eq!(launch.grid, [65_536 * 96 / 1024, 1, 1]);
    let bytes = launch.parameters.bytes();
    let word = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
    // Addresses and the table's row; strides and lanes of three; 65536 positions, 96 units.
    let divisions = 4 * 8 + 6 * 8;
    assert_eq!((word(24), word(divisions), word(divisions + 16)), (768, 65_536, 96));
    let counts = [0, 1, 2, 3].map(|i| word(divisions + 28 + 4 * i));
    assert_eq!(counts, [65_536 * 96, 7, 50_304, 60_000]);
}

#[test]
fn vectors_need_all_rows_aligned() {
    assert_eq!(lanes(&made(&spec(DType::Bf16, 768), 4)), "V=2");
    assert_eq!(lanes(&made(&spec(DType::Bf16, 770), 64)), "V=2");
    assert_eq!(lanes(&made(&spec(DType::F32, 768), 64)), "V=4");
    let mut apart = spec(DType::F32, 768);
    apart.rows.strides[3] = 2;
    assert_eq!(lanes(&made(&apart, 64)), "V=1");
}

#[test]
fn other_types_are_refused() {
    let mut mixed = spec(DType::F32, 768);
    mixed.rows.dtype = DType::Bf16;
    let error = gather(&mixed, &[64; 3]).unwrap_err().to_string();
    assert_eq!(error, "gather: table of F32 and rows of Bf16; cast one of them first");
    mixed.ids.dtype = DType::F32;
    assert!(gather(&mixed, &[64; 3]).is_err());
    let mut none = spec(DType::F32, 768);
    none.shape.rows[0] = 0;
    assert!(made(&none, 64).launches.is_empty());
}

#[test]
#[ignore = "needs NVRTC"]
fn gathers_stay_in_registers() {
    let mut apart = spec(DType::F32, 768);
    apart.shape.rows = vec![4, 3, 5, 2, 3, 1];
    apart.table.strides = vec![0, 0, 0, 0, 0, 768, 2];
    apart.ids.strides = vec![1, 4, 12, 60, 120, 0, 0];
    apart.rows.strides = vec![69_120, 23_040, 4608, 2304, 768, 0, 1];
    let [bf16, f16, f32] = [DType::Bf16, DType::F16, DType::F32].map(|d| spec(d, 768));
    let list = [bf16, f16, f32, spec(DType::Bf16, 770), apart];
    assert_eq!(spills(list.iter().map(|s| made(s, 64))), Vec::<String>::new());
}
