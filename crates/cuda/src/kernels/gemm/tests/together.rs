//! Products with a factor in common: what shares a launch, and that each member is made in it.

use super::compile::spills;
use super::emulate::{Memory, WORKSPACE, defined, int, makes_sums, meaning, run, summed};
use super::*;
use aerogel_lower::Products;

const BIAS: [Instr; 4] = [
    Instr::Product { dst: 0 },
    Instr::Load { dst: 1, input: 0 },
    Instr::Binary { op: Binary::Add, dst: 2, a: 0, b: 1 },
    Instr::Store { output: 0, src: 2 },
];

/// x of so many rows and so deep, and linear layers with biases that read it.
fn linears(rows: usize, deep: usize, columns: &[usize]) -> Products {
    let one = |n: &usize| {
        let spec = plain([rows, *n, deep], [true; 2], BF16);
        with_program(spec, &[(DType::F32, false)], &[DType::Bf16], BIAS.to_vec())
    };
    Products { common: A, members: columns.iter().map(one).collect() }
}

/// The gradients of their weights and biases.
fn gradients(tokens: usize, columns: usize, rows: &[usize]) -> Products {
    let one = |m: &usize| {
        let mut spec = plain([*m, columns, tokens], [false; 2], GRADIENT);
        spec.sums = Some(OperandSums { factor: A, output: Operand::f32([1, 0, 0]) });
        spec
    };
    Products { common: B, members: rows.iter().map(one).collect() }
}

fn made(spec: &Products, align: u64) -> Kernel {
    products(spec, &[align; 20], HOPPER).unwrap_or_else(|e| panic!("{e}: {spec:?}"))
}

/// Attention's of the Sparse Transformer for images.
#[test]
fn narrow_products_share_a_launch() {
    let forward = made(&linears(49_152, 256, &[128, 128, 256]), 64);
    let [start] = forward.launches.as_slice() else { panic!("{}", forward.launches.len()) };
    assert_eq!((start.source.file.as_str(), start.grid), ("gemm_resident_sm90.cu", [33, 4, 1]));
    let constants = ["MEMBERS", "BESIDE", "BN", "B_PERMUTED", "N_WHOLE", "BATCHED"];
    assert_eq!(constants.map(|name| defined(start, name)), [3, 1, 128, 0, 1, 0]);
    assert_eq!(start.parameters.maps().len(), 6);

    let backward = made(&gradients(49_152, 256, &[256, 128, 128]), 64);
    let [start, reduce] = backward.launches.as_slice() else { panic!() };
    assert_eq!((start.source.file.as_str(), start.entry), ("gemm_sm90.cu", "gemm"));
    let constants = ["MEMBERS", "BESIDE", "BN", "CLUSTER", "SPLIT", "SUMS"];
    assert_eq!(constants.map(|name| defined(start, name)), [3, 0, 256, 1, 1, 1]);
    let splits = int(start, 312);
    // Four tiles; 64 vectors or sums a block.
    assert_eq!(i64::from(start.grid[0]), (4 * splits).min(132));
    assert!((4 * splits) % 132 > 100 || 4 * splits % 132 == 0, "{splits}");
    assert_eq!(reduce.grid, [512 * 32 / 64 + 512 / 64, 1, 1]);
    let floats = |m: i64| splits * (m * 256 + m) * 4;
    let bytes = [256, 128, 128].map(|m| (floats(m) as u64).next_multiple_of(256)).iter().sum();
    assert!(backward.workspace_bytes >= bytes);
}

/// GPT-2 1.5B has tiles for all multiprocessors without parts of the depth.
#[test]
fn wide_gradients_are_not_split() {
    let made = made(&gradients(9216, 1600, &[1600; 3]), 64);
    let [start] = made.launches.as_slice() else { panic!("{}", made.launches.len()) };
    assert_eq!(["MEMBERS", "BN", "SPLIT"].map(|name| defined(start, name)), [3, 320, 0]);
}

#[test]
fn what_gains_nothing_or_differs_stays_alone() {
    let refused = |spec: &Products, chip| products(spec, &[64; 20], chip).is_err();
    let spec = linears(49_152, 256, &[128, 128, 256]);
    assert!(refused(&spec, AMPERE));
    let mut floats = spec.clone();
    floats.members.iter_mut().for_each(|own| (own.a, own.b) = (DType::F32, DType::F32));
    assert!(refused(&floats, HOPPER));
    let mut other = spec.clone();
    other.members[1].epilogue.as_mut().unwrap().outputs[0].dtype = DType::F32;
    assert!(refused(&other, HOPPER), "another epilogue");
    let mut deeper = spec.clone();
    deeper.members[1].axes[2].size = 128;
    assert!(refused(&deeper, HOPPER), "another depth");
    let mut some = gradients(49_152, 256, &[256, 128, 128]);
    some.members[2].sums = None;
    assert!(refused(&some, HOPPER), "sums of some");
    // A forward product that would be cut has its own order of sums.
    assert!(refused(&linears(128, 49_152, &[128, 128, 256]), HOPPER));
}

/// There is room for both, whatever the addresses turn out to be.
#[test]
fn members_run_one_after_the_other_where_addresses_want_it() {
    let spec = gradients(49_152, 256, &[256, 128, 128]);
    let (shared, apart) = (made(&spec, 64), made(&spec, 4));
    assert_eq!(shared.workspace_bytes, apart.workspace_bytes);
    let entries: Vec<&str> = apart.launches.iter().map(|launch| launch.entry).collect();
    assert_eq!(entries.iter().filter(|entry| **entry == "gemm").count(), 3);
    assert!(apart.launches.iter().all(|l| !l.source.defines.contains(&"MEMBERS=3".to_owned())));
    let operand = |launch: &Launch| launch.parameters.addresses().to_vec();
    let last = apart.launches.iter().rfind(|launch| launch.entry == "gemm").unwrap();
    let has = |wanted: usize| operand(last).iter().any(|a| a.1 == Address::operand(wanted));
    assert!([8, 9].into_iter().all(has), "the third member's factors");
}

/// A launch as those of its members, each with operands that are counted from 0.
fn members_of(launch: &Launch, firsts: &[usize]) -> Vec<Launch> {
    let bytes = launch.parameters.bytes().len() / firsts.len();
    let member = |(i, first): (usize, &usize)| {
        let mut parameters = launch.parameters.part(i * bytes..(i + 1) * bytes);
        parameters.rename(|address| match address {
            Address::Operand { operand, bytes } => {
                Address::Operand { operand: operand - first, bytes }
            }
            other => other,
        });
        Launch { parameters, ..launch.clone() }
    };
    firsts.iter().enumerate().map(member).collect()
}

/// Tiles of the launch as `gemm_sm90.cu` and `gemm_resident_sm90.cu` number them: for each the
/// member, and its first row and column.
fn tiles(launch: &Launch, members: &[Launch]) -> Vec<[i64; 3]> {
    let bn = defined(launch, "BN");
    let sizes: Vec<[i64; 3]> =
        members.iter().map(|m| std::array::from_fn(|i| int(m, 264 + 4 * i))).collect();
    let beside = defined(launch, "BESIDE") == 1;
    let behind = |mut at: i64, count: &dyn Fn(&[i64; 3]) -> i64| {
        let mut member = 0;
        for (i, before) in sizes.iter().enumerate().take(sizes.len() - 1) {
            if member == i && at >= count(before) {
                (member, at) = (i + 1, at - count(before));
            }
        }
        (member, at)
    };
    let up = |a: i64, b: i64| (a + b - 1) / b;
    if launch.source.file == "gemm_resident_sm90.cu" {
        let panels = (0..i64::from(launch.grid[1])).map(|y| behind(y, &|size| up(size[1], bn)));
        return panels
            .flat_map(|(member, panel)| {
                (0..up(sizes[member][0], 64)).map(move |row| [member as i64, 64 * row, panel * bn])
            })
            .collect();
    }
    let rows = 128 * defined(launch, "CLUSTER");
    let down_of = |size: &[i64; 3]| up(size[0], rows);
    let across_of = |size: &[i64; 3]| up(size[1], bn);
    let [mut down, mut across] = [down_of(&sizes[0]), across_of(&sizes[0])];
    for size in &sizes[1..] {
        if beside { across += across_of(size) } else { down += down_of(size) }
    }
    let group = 16 / defined(launch, "CLUSTER");
    let tile = |number: i64| {
        let own = number / (group * across);
        let height = group.min(down - group * own);
        let place = number - own * group * across;
        let (row, col) = (group * own + place % height, place / height);
        let (member, row, col) = match beside {
            true => {
                let (member, col) = behind(col, &across_of);
                (member, row, col)
            }
            false => {
                let (member, row) = behind(row, &down_of);
                (member, row, col)
            }
        };
        [member as i64, row * rows, col * bn]
    };
    (0..down * across).map(tile).collect()
}

/// Every tile of every member is made once, and no other.
fn check_tiles(launch: &Launch, members: &[Launch]) {
    let rows = match launch.source.file.as_str() {
        "gemm_resident_sm90.cu" => 64,
        _ => 128 * defined(launch, "CLUSTER"),
    };
    let mut wanted = vec![];
    for (i, member) in members.iter().enumerate() {
        let [m, n] = [264, 268].map(|byte| int(member, byte));
        for row in (0..m).step_by(rows as usize) {
            let cols = (0..n).step_by(defined(launch, "BN") as usize);
            wanted.extend(cols.map(|col| [i as i64, row, col]));
        }
    }
    let mut got = tiles(launch, members);
    if launch.source.file == "gemm_sm90.cu" {
        let items = got.len() as i64 * int(&members[0], 312);
        let clusters = 132 / defined(launch, "CLUSTER");
        let blocks = i64::from(launch.grid[0]);
        assert_eq!(blocks, defined(launch, "CLUSTER") * items.min(clusters));
    }
    got.sort_unstable();
    wanted.sort_unstable();
    assert_eq!(got, wanted);
}

/// Operands of a member.
fn count(own: &Contraction) -> usize {
    let program = own.epilogue.as_ref();
    3 + program.map_or(0, |p| p.inputs.len()) + usize::from(own.sums.is_some())
}

/// The number of each member's first operand.
fn firsts(spec: &Products) -> Vec<usize> {
    (0..spec.members.len()).map(|i| spec.members[..i].iter().map(count).sum()).collect()
}

#[test]
fn tiles_of_large_members_are_made_once() {
    let mut clusters = 0;
    for spec in [
        linears(49_152, 256, &[128, 128, 256]),
        linears(65_536, 768, &[768; 3]),
        linears(16_384, 1600, &[1600; 3]),
        gradients(49_152, 256, &[256, 128, 128]),
        gradients(65_536, 768, &[768; 3]),
        gradients(16_384, 1600, &[1600; 3]),
    ] {
        // Whether it pays is not the question here.
        let Ok(kernel) = products(&spec, &[64; 20], HOPPER) else { continue };
        let start = &kernel.launches[0];
        check_tiles(start, &members_of(start, &firsts(&spec)));
        clusters += usize::from(start.source.defines.contains(&"CLUSTER=2".to_owned()));
    }
    assert!(clusters > 0);
}

/// Runs the launches of members that share one, and holds them to their specs.
fn check(spec: &Products) {
    let kernel = made(spec, 64);
    let firsts = firsts(spec);
    let start = &kernel.launches[0];
    assert_eq!(defined(start, "MEMBERS"), spec.members.len() as i64);
    let members = members_of(start, &firsts);
    check_tiles(start, &members);
    let mut reduced = 0;
    for (own, launch) in spec.members.iter().zip(&members) {
        let mut memory = Memory::default();
        let mut wanted = meaning(own, &memory);
        wanted.extend(summed(own, count(own) - 1, &memory));
        assert_eq!(makes_sums(launch), own.sums.is_some());
        run(launch, &mut memory);
        assert_eq!(memory.0.keys().filter(|place| place.0 != WORKSPACE).count(), wanted.len());
        for (place, value) in wanted {
            assert!((memory.get(place) - value).abs() < 1e-6, "{place:?} of {own:?}");
        }
        let [m, n] = [264, 268].map(|byte| int(launch, byte) as u64);
        let sums = if own.sums.is_some() { m.div_ceil(64) } else { 0 };
        reduced += (m * n.div_ceil(8)).div_ceil(64) + sums;
    }
    if let Some(reduce) = kernel.launches.get(1) {
        assert_eq!((reduce.entry, u64::from(reduce.grid[0])), ("gemm_reduce", reduced));
        // Parts lie behind one another.
        let mut end = 0;
        for (own, launch) in spec.members.iter().zip(&members) {
            let [m, n, splits] = [264, 268, 312].map(|byte| int(launch, byte) as u64);
            let at = launch.parameters.addresses().iter().find(|a| a.0 == 256).unwrap().1;
            assert_eq!(at, Address::Workspace(end));
            let sums = if own.sums.is_some() { m } else { 0 };
            let floats = splits * (m * n.next_multiple_of(8) + sums);
            end = (end + 4 * floats).next_multiple_of(256);
        }
        assert!(kernel.workspace_bytes >= end);
    }
}

#[test]
fn shared_launches_mean_what_the_members_say() {
    for columns in [&[128, 128, 256][..], &[72, 136], &[264, 72, 96, 128]] {
        check(&linears(150, 40, columns));
    }
    check(&linears(72, 264, &[72, 136]));
    for rows in [&[128, 128, 136][..], &[72, 256], &[80, 88, 136, 72]] {
        check(&gradients(136, 72, rows));
    }
}

#[test]
#[ignore = "needs NVRTC"]
fn shared_launches_compile_without_spills() {
    let mut list = vec![
        linears(49_152, 256, &[128, 128, 256]),
        linears(49_152, 256, &[128, 104, 256]),
        linears(65_536, 768, &[768; 3]),
        linears(65_536, 1600, &[1600; 3]),
        gradients(49_152, 256, &[256, 128, 128]),
        gradients(65_536, 768, &[768; 3]),
        gradients(65_536, 1600, &[1600; 3]),
        gradients(4096, 104, &[256, 128]),
    ];
    let mut bare = gradients(49_152, 256, &[256, 128]);
    bare.members.iter_mut().for_each(|own| own.sums = None);
    list.push(bare);
    let some = list.iter().filter_map(|spec| products(spec, &[64; 20], HOPPER).ok());
    let kernels: Vec<_> = some.map(|kernel| (HOPPER, kernel)).collect();
    assert!(kernels.len() > 5, "{}", kernels.len());
    assert!(kernels.iter().all(|(_, kernel)| kernel.launches.len() <= 2));
    let bad = spills(kernels);
    assert!(bad.is_empty(), "{}:\n{}", bad.len(), bad.join("\n"));
}
