//! Parameters, field by field, as the lab's model of the host (`lab/attend_launch.py`) has them.

use super::specs::Case;
use crate::gpu::Architecture;
use crate::kernels::Chip;
use crate::kernels::attend::{attend, attend_grad};
use crate::launch::{Address, Launch};

const HOPPER: Chip = Chip { architecture: Architecture::SM90A };

/// Words of `Params` from byte `from` on.
fn fields(launch: &Launch, from: usize, count: usize) -> Vec<u32> {
    let bytes = &launch.parameters.bytes()[from..from + 4 * count];
    bytes.chunks(4).map(|b| u32::from_le_bytes(b.try_into().unwrap())).collect()
}

/// Operands are [batch, position, kv, group, width] in memory, padded by 8.
fn grouped() -> Case {
    Case {
        batch: vec![2],
        kv: 3,
        group: 2,
        queries: 333,
        keys: 200,
        widths: [128, 128],
        order: vec![0, 3, 1, 2],
        pad: 8,
        ..Case::default()
    }
}

#[test]
fn hopper_gets_maps_of_what_it_copies() {
    let case = grouped();
    let made = attend_grad(&case.backward(), &case.mask(), &[64; 10], HOPPER).unwrap();
    let names: Vec<_> =
        made.launches.iter().map(|l| (l.entry, l.grid[0], l.shared_bytes)).collect();
    let wanted = [
        ("attend_dq_sm90", 2 * 3 * 2 * 3, 1024 + 768 * 256),
        ("attend_dkv_sm90", 2 * 3 * 2, 1024 + (256 + 3 * 128) * 256 + 3 * 528),
    ];
    assert_eq!(names, wanted);
    let launch = &made.launches[0];
    assert_eq!((launch.parameters.bytes().len(), launch.threads), (1600, 384));
    let maps: Vec<_> = launch.parameters.maps().iter().collect();
    let row = 136 * 6;
    for (n, (operand, group)) in [(0, 2), (1, 1), (2, 1), (5, 2), (3, 2)].into_iter().enumerate() {
        let (at, map) = maps[n];
        assert_eq!((*at, map.address), (128 * n, Address::operand(operand)));
        assert_eq!(map.tile, [64, 64, 1, 1, 1]);
        match group {
            2 => {
                assert_eq!(map.sizes, [128, 333, 2, 3, 2]);
                assert_eq!(map.strides, [row, row * 333, 272, 136]);
            }
            _ => {
                assert_eq!(map.sizes, [128, 200, 2, 3, 1]);
                assert_eq!(map.strides, [row / 2, row / 2 * 200, 136, 128]);
            }
        }
    }
    // Which axes those are: batch, kv, group; k and v have no group. Then the run.
    let (all, shared) = ([2, 3, 4], [2, 3, 5]);
    let wanted = [&[all, shared, shared, all, all].concat()[..], &[1]].concat();
    assert_eq!(fields(launch, 640 + 856, 16), wanted);
}

/// Two tiles of each of 300 heads, several a block, and two rooms for their rows.
#[test]
fn a_block_of_hopper_takes_tiles_one_after_another() {
    let case = Case { batch: vec![300], kv: 1, ..grouped() };
    let case = Case { pattern: "local(50)", group: 1, queries: 200, keys: 200, ..case };
    let forward = attend(&case.forward(), &case.mask(), &[64; 5], HOPPER).unwrap();
    let backward = attend_grad(&case.backward(), &case.mask(), &[64; 10], HOPPER).unwrap();
    for (launch, bytes) in [
        (&forward.launches[0], 1024 + 2 * 256 * 128 + 2 * 256 * 256),
        (&backward.launches[0], 1024 + (2 * 256 + 3 * 128) * 256),
        (&backward.launches[1], 1024 + (2 * 256 + 3 * 128) * 256 + 3 * 528),
    ] {
        let run = fields(launch, 640 + 856 + 60, 1)[0];
        assert_eq!(launch.grid[0], 600u32.div_ceil(run));
        assert!((4..=5).contains(&run), "{} has {run}", launch.entry);
        assert!(launch.source.defines.contains(&"OWNS=2".to_owned()));
        assert_eq!(launch.shared_bytes, bytes);
    }
}

/// batch, kv, group; positions; lengths and inverses; steps, units, tiles, kinds, section, widths.
#[test]
fn sizes_stand_where_kernels_read_them() {
    let case = grouped();
    let made = attend(&case.forward(), &case.mask(), &[64; 5], HOPPER).unwrap();
    let (launch, inverse) = (&made.launches[0], |n: u64| (1u64 << 32).div_ceil(n) as u32);
    assert_eq!((launch.entry, launch.grid), ("attend_fwd_sm90", [36, 1, 1]));
    let whole = [1, 1, 2, 3, 2, 333, 200, 333, 200, inverse(333), inverse(200)];
    assert_eq!(fields(launch, 640 + 768, 11), whole);
    assert_eq!(fields(launch, 640 + 812, 8), [64, 64, 6, 3, 1, 12, 128, 128]);
    let scales = [0.125f32, 0.125 * std::f32::consts::LOG2_E].map(f32::to_bits);
    assert_eq!(fields(launch, 640 + 844, 2), scales);

    // Two of six columns fill a unit.
    let packed = Case {
        pattern: "columns(3,2)",
        batch: vec![6],
        kv: 1,
        queries: 16,
        keys: 24,
        widths: [32, 64],
        ..Case::default()
    };
    let made = attend_grad(&packed.backward(), &packed.mask(), &[64; 10], HOPPER).unwrap();
    let [launch] = &made.launches[..] else { panic!("one kernel does it all") };
    assert_eq!((launch.grid, launch.threads), ([3, 1, 1], 256));
    let sizes = [1, 1, 1, 1, 1, 96, 144, 16, 24, inverse(16), inverse(24), 32, 48, 3, 3, 1, 1];
    assert_eq!(fields(launch, 768, 17), sizes);
    let strides = |operand: usize| fields(launch, 72 * operand + 48, 6);
    assert_eq!(strides(0), [16 * 32, 0, 32, 0, 1, 0], "q: column, row, width");
    assert_eq!(strides(2), [24 * 64, 0, 64, 0, 1, 0], "v");
    assert_eq!(strides(6), [16, 0, 1, 0, 0, 0], "dlse");
}
