use super::*;
use crate::kernels::elements::testing::spills;

fn spec(sizes: &[usize], from: &[isize], to: &[isize], dtype: DType) -> CopySpec {
    let [from, to] = [from, to].map(|s| Operand { dtype, strides: s.to_vec() });
    CopySpec { sizes: sizes.to_vec(), from, to }
}

fn made(spec: &CopySpec, align: u64) -> Kernel {
    copy(spec, &[align; 2]).unwrap()
}

fn entries(kernel: &Kernel) -> Vec<(&'static str, [u32; 3], String)> {
    let own = |l: &Launch| (l.entry, l.grid, l.source.defines[0].clone());
    kernel.launches.iter().map(own).collect()
}

/// Heads of attention: both sides are contiguous along the width of a head.
#[test]
fn rows_are_copied_in_vectors() {
    let heads =
        spec(&[8, 1024, 12, 64], &[786_432, 768, 64, 1], &[786_432, 64, 65_536, 1], DType::Bf16);
    assert_eq!(entries(&made(&heads, 64)), [("copy", [768, 1, 1], "V=8".to_owned())]);
    assert_eq!(entries(&made(&heads, 4)), [("copy", [3072, 1, 1], "V=2".to_owned())]);
}

#[test]
fn tiles_are_transposed() {
    let keys = spec(&[8, 1024, 512], &[524_288, 1, 1024], &[524_288, 512, 1], DType::F32);
    let kernel = made(&keys, 64);
    assert_eq!(entries(&kernel), [("copy_transpose", [128, 8, 1], "V=4".to_owned())]);
    // More outer positions than a grid has rows.
    let many = spec(&[70_000, 16, 16], &[256, 1, 16], &[256, 16, 1], DType::F32);
    assert_eq!(entries(&made(&many, 64))[0].0, "copy");
}

#[test]
fn what_vectors_do_not_divide_is_copied_apart() {
    let kernel = made(&spec(&[8195], &[1], &[1], DType::Bf16), 64);
    let both = [("copy", [1, 1, 1], "V=8".to_owned()), ("copy", [1, 1, 1], "V=1".to_owned())];
    assert_eq!(entries(&kernel), both);
    let rest = &kernel.launches[1].parameters;
    assert_eq!(rest.addresses()[1], (8, Address::operand(1).plus(2 * 8192)));
    assert!(made(&spec(&[3, 0], &[1, 1], &[1, 1], DType::F32), 64).launches.is_empty());
}

#[test]
fn other_types_go_through_a_map() {
    let mut cast = spec(&[4096], &[1], &[1], DType::F32);
    cast.to.dtype = DType::Bf16;
    assert_eq!(entries(&made(&cast, 64)), [("map", [1, 1, 1], "V=8".to_owned())]);
}

#[test]
fn values_are_filled_in_as_stored() {
    let kept = |value: f32, dtype: DType| bits(value, dtype);
    assert_eq!(kept(-1.5, DType::F32), (-1.5f32).to_bits());
    assert_eq!(kept(1.0, DType::Bf16), 0x3f80);
    // Half way between two bf16: to the even one.
    assert_eq!(kept(f32::from_bits(0x3f80_8000), DType::Bf16), 0x3f80);
    assert_eq!(kept(f32::from_bits(0x3f81_8000), DType::Bf16), 0x3f82);
    assert_eq!(kept(f32::NEG_INFINITY, DType::Bf16), 0xff80);
    assert_eq!(kept(1.0, DType::F16), 0x3c00);
    assert_eq!(kept(f32::NEG_INFINITY, DType::F16), 0xfc00);
    assert_eq!([DType::Bf16, DType::F16].map(|dtype| kept(f32::NAN, dtype)), [0x7fff; 2]);
    assert_eq!(kept(7.0, DType::U32), 7);
    let to = Operand::bf16([1]);
    let kernel = fill(&FillSpec { sizes: vec![4099], to, value: 1.0 }, &[64]).unwrap();
    let bytes = kernel.launches[0].parameters.bytes();
    // Address, stride, lane, division; units, tail, value.
    assert_eq!(bytes[8 + 16 + 16..][..4], 512u32.to_le_bytes());
    assert_eq!(bytes[8 + 16 + 20..][..4], 3u32.to_le_bytes());
    assert_eq!(bytes[8 + 16 + 24..][..4], 0x3f80u32.to_le_bytes());
}

#[test]
#[ignore = "needs NVRTC"]
fn copies_stay_in_registers() {
    let mut list = vec![];
    for dtype in [DType::F32, DType::Bf16] {
        for align in [64, 8, 4] {
            list.push(made(&spec(&[8195], &[1], &[1], dtype), align));
            list.push(made(&spec(&[4, 96, 64], &[6144, 1, 96], &[6144, 64, 1], dtype), align));
            let six = [4, 3, 5, 2, 3, 32];
            let to = [5760, 1920, 384, 96, 32, 1];
            let from = [32, 128, 384, 1920, 3840, 1];
            list.push(made(&spec(&six, &from, &to, dtype), align));
            let to = Operand { dtype, strides: vec![65, 1] };
            let filled = FillSpec { sizes: vec![30, 64], to, value: 0.0 };
            list.push(fill(&filled, &[align]).unwrap());
        }
    }
    assert_eq!(spills(list), Vec::<String>::new());
}
