//! From matrices and a choice to launches: grids, constants, and the structs `Gemm` and `Params`
//! of the kernels.

use super::super::text::type_name;
use super::super::{MULTIPROCESSORS, space, unsupported};
use super::choice::{Choice, Form, Layout, walkers};
use super::epilogue;
use super::matrix::{A, Axis, B, FIRST, Matrices};
use super::sums::Beside;
use crate::launch::{Address, Launch, Parameters, TensorMap};
use crate::source::Source;
use aerogel_graph::DType;
use aerogel_lower::{Draws, LowerError, Program};

/// Blocks of the third dimension of a grid.
const MOST_BATCHES: usize = 65_535;
/// Batch axes of a launch.
const BATCH_AXES: usize = 3;
/// Launches of one product.
const MOST_LAUNCHES: usize = 4096;

/// A product that only wants to be written down.
pub(super) struct Job<'a> {
    pub program: &'a Program,
    /// The epilogue's header.
    pub text: String,
    pub choice: Choice,
    /// Types of the left and of the right factor.
    pub dtypes: [DType; 2],
    pub alpha: f32,
    pub draws: Draws,
    /// Where partial sums lie in the workspace.
    pub work: u64,
    /// Sums of the left factor that the kernel makes too.
    pub beside: Option<Beside>,
    /// Further products that are added to this one.
    pub more: Vec<Term<'a>>,
}

/// A product that is added to another over the same rows and columns.
pub(super) struct Term<'a> {
    pub matrices: &'a Matrices,
    /// Of the left and of the right factor.
    pub places: [Address; 2],
}

impl Job<'_> {
    /// Appends the launches. `places` are left and right factor, then the epilogue's operands;
    /// `first` is what the epilogue's indices begin with.
    pub fn launches(
        &self,
        x: &Matrices,
        places: &[Address],
        first: &[isize],
        list: &mut Vec<Launch>,
    ) -> Result<(), LowerError> {
        let batches = x.batches();
        if x.batch.len() <= BATCH_AXES && batches <= MOST_BATCHES {
            return self.launch(x, places, first, list);
        }
        let axis = &x.batch[0];
        let rest = batches / axis.size;
        let step = if x.batch.len() > BATCH_AXES { 1 } else { (MOST_BATCHES / rest).max(1) };
        for from in (0..axis.size).step_by(step) {
            if list.len() >= MOST_LAUNCHES {
                let sizes: Vec<usize> = x.batch.iter().map(|axis| axis.size).collect();
                let what =
                    format!("batch axes of {sizes:?} are too many for {MOST_LAUNCHES} launches");
                return Err(unsupported("product", what));
            }
            let mut piece = x.clone();
            piece.batch[0].size = step.min(axis.size - from);
            if step == 1 {
                piece.batch.remove(0);
            }
            let offset = |operand: usize| from as isize * axis.strides[operand];
            let moved = places
                .iter()
                .enumerate()
                .map(|(i, place)| place.plus((offset(i) * self.dtype(i).bytes() as isize) as i64));
            let moved: Vec<Address> = moved.collect();
            let indices = first.iter().enumerate();
            let first: Vec<isize> =
                indices.map(|(i, first)| first + offset(places.len() + i)).collect();
            self.launches(&piece, &moved, &first, list)?;
        }
        Ok(())
    }

    fn dtype(&self, operand: usize) -> DType {
        let Program { inputs, outputs, .. } = self.program;
        match operand.checked_sub(FIRST) {
            None => self.dtypes[operand],
            Some(i) => inputs.get(i).unwrap_or_else(|| &outputs[i - inputs.len()]).dtype,
        }
    }

    fn launch(
        &self,
        x: &Matrices,
        places: &[Address],
        first: &[isize],
        list: &mut Vec<Launch>,
    ) -> Result<(), LowerError> {
        let parameters = self.parameters(x, places, first)?;
        list.extend(self.start(parameters, self.constants(x), x, self.reduce_blocks(x))?);
        Ok(())
    }

    /// The struct `Params`, or one member of it.
    fn parameters(
        &self,
        x: &Matrices,
        places: &[Address],
        first: &[isize],
    ) -> Result<Parameters, LowerError> {
        let axes = [&x.m, &x.n, &x.k, &x.k_outer].into_iter().chain(&x.batch);
        for axis in axes {
            space::count("product", axis.size)?;
        }
        let mut parameters = match self.choice.form {
            Form::General { .. } => self.general(x, places),
            Form::Ring { .. } | Form::Resident { .. } => self.hopper(x, places),
        };
        let own = &places[FIRST..];
        parameters.append(&epilogue::parameters(self.program, x, own, first, self.draws));
        if let Some(sums) = self.beside {
            parameters.address(sums.address).i64(sums.stride as i64);
        }
        for Term { matrices, places } in &self.more {
            self.maps(matrices, places, &mut parameters);
            parameters.u32(space::count("product", matrices.k.size)?);
        }
        if !matches!(self.choice.form, Form::General { .. }) {
            parameters.align(64);
        }
        Ok(parameters)
    }

    /// Blocks of `gemm_reduce`.
    fn reduce_blocks(&self, x: &Matrices) -> usize {
        let vectors = x.batches() * x.m.size * x.n.size.div_ceil(8);
        let sums = if self.beside.is_some() { x.m.size.div_ceil(64) } else { 0 };
        vectors.div_ceil(64) + sums
    }

    /// The kernel over all tiles of these matrices, and what adds up parts if there are any.
    fn start(
        &self,
        parameters: Parameters,
        (file, defines): (&str, Vec<String>),
        tiles: &Matrices,
        reduce_blocks: usize,
    ) -> Result<Vec<Launch>, LowerError> {
        let (grid, threads, shared_bytes) = grid(tiles, self.choice)?;
        let argument = ("Params", parameters.bytes().len());
        let mut source = Source::launched(file, None, defines, argument);
        source.generated = self.text.clone();
        let start = Launch { source, entry: "gemm", grid, threads, shared_bytes, parameters };
        let mut list = vec![start];
        if self.choice.splits > 1 {
            let grid = [space::count("product", reduce_blocks)?, 1, 1];
            let entry = "gemm_reduce";
            list.push(Launch { entry, grid, threads: 256, shared_bytes: 0, ..list[0].clone() });
        }
        Ok(list)
    }

    fn work(&self) -> Address {
        if self.choice.splits > 1 { Address::Workspace(self.work) } else { Address::Null }
    }

    /// `Gemm` of `gemm.cu`.
    fn general(&self, x: &Matrices, places: &[Address]) -> Parameters {
        let mut p = Parameters::new();
        p.address(places[A]).address(places[B]).address(self.work());
        for (which, side) in [(A, &x.m), (B, &x.n)] {
            for axis in [side, &x.k, &x.k_outer] {
                p.i64(axis.strides[which] as i64);
            }
        }
        for which in [A, B] {
            for stride in batch(x, |axis| axis.map_or(0, |a| a.strides[which])) {
                p.i64(stride as i64);
            }
        }
        let sizes = [&x.m, &x.n, &x.k, &x.k_outer].map(|axis| axis.size).into_iter();
        for size in sizes.chain(batch(x, |axis| axis.map_or(1, |a| a.size))) {
            p.u32(size as u32);
        }
        p.u32(self.choice.splits as u32).f32(self.alpha).u32(0);
        p
    }

    /// `Gemm` of `lib/gemm_sm90.cuh`.
    fn hopper(&self, x: &Matrices, places: &[Address]) -> Parameters {
        let mut p = Parameters::new();
        self.maps(x, places, &mut p);
        p.address(self.work());
        let sizes = [&x.m, &x.n, &x.k].map(|axis| axis.size).into_iter();
        for size in sizes.chain(batch(x, |axis| axis.map_or(1, |a| a.size))) {
            p.u32(size as u32);
        }
        for which in [A, B] {
            for has in batch(x, |axis| axis.is_some_and(|a| moves(a, which))) {
                p.u32(u32::from(has));
            }
        }
        p.u32(self.choice.splits as u32).f32(self.alpha);
        p
    }

    /// The maps of both factors.
    fn maps(&self, x: &Matrices, places: &[Address], p: &mut Parameters) {
        let (Form::Ring { layouts, permuted, .. } | Form::Resident { layouts, permuted, .. }) =
            self.choice.form
        else {
            return;
        };
        // Tensor cores multiply one type of 16 bits.
        let dtype = self.dtypes[A];
        p.map(map(x, A, (places[A], dtype), layouts[A]));
        p.map(match permuted {
            true => permuted_map(x, (places[B], dtype)),
            false => map(x, B, (places[B], dtype), layouts[B]),
        });
    }

    /// The kernel's file and constants.
    fn constants(&self, x: &Matrices) -> (&'static str, Vec<String>) {
        let define = |name: &str, value: usize| format!("{name}={value}");
        let float = |which: usize| usize::from(self.dtypes[which] == DType::F32);
        let mut all = vec!["EPILOGUE=<lib/generated.cuh>".to_owned()];
        all.push(define("BATCHED", usize::from(x.batches() > 1)));
        all.push(define("N_WHOLE", usize::from(x.n.size.is_multiple_of(8))));
        let k = |layout: Layout| usize::from(layout == Layout::K);
        let splits = define("SPLIT", usize::from(self.choice.splits > 1));
        let file = match self.choice.form {
            Form::General { tile, float: compute, layouts } => {
                let [a, b] = layouts;
                let values = [
                    ("COMPUTE_F32", usize::from(compute)),
                    ("A_F32", float(A)),
                    ("B_F32", float(B)),
                    ("A_LAYOUT", a as usize),
                    ("B_LAYOUT", b as usize),
                    ("BM", tile.bm),
                    ("BN", tile.bn),
                    ("BK", tile.bk),
                    ("STAGES", tile.stages),
                    ("WARPS_M", tile.warps[0]),
                    ("WARPS_N", tile.warps[1]),
                ];
                all.push(splits);
                all.extend(values.map(|(name, value)| define(name, value)));
                "gemm.cu"
            }
            Form::Ring { bn, cluster, layouts: [a, b], permuted } => {
                let permuted = usize::from(permuted);
                let values = [("A_K", k(a)), ("B_K", k(b)), ("B_PERMUTED", permuted), ("BN", bn)];
                all.push(splits);
                all.push(define("CLUSTER", cluster));
                all.extend(self.beside.map(|_| define("SUMS", 1)));
                let terms = 1 + self.more.len();
                all.extend((terms > 1).then(|| define("TERMS", terms)));
                all.extend(values.map(|(name, value)| define(name, value)));
                "gemm_sm90.cu"
            }
            Form::Resident { bn, layouts: [a, b], permuted } => {
                let permuted = usize::from(permuted);
                let values = [("A_K", k(a)), ("B_K", k(b)), ("B_PERMUTED", permuted), ("BN", bn)];
                all.extend(values.map(|(name, value)| define(name, value)));
                "gemm_resident_sm90.cu"
            }
        };
        all.extend(self.halves());
        (file, all)
    }
}

impl Job<'_> {
    /// Which types of 16 bits the factors hold, where that is not bf16 alone.
    fn halves(&self) -> Vec<String> {
        let mut all = vec![];
        if let Some(half) = self.dtypes.into_iter().find(|dtype| dtype.is_half()) {
            all.extend((half == DType::F16).then(|| "F16=1".to_owned()));
            let other = self.dtypes[B];
            let mixed = other.is_half() && other != half;
            all.extend(mixed.then(|| format!("B_HALF={}", type_name(other))));
        }
        all
    }
}

/// A product that shares a launch with others: its matrices, and where its operands lie.
pub(super) struct Member<'a> {
    pub job: Job<'a>,
    pub matrices: &'a Matrices,
    pub places: Vec<Address>,
    /// What the epilogue's indices begin with.
    pub first: Vec<isize>,
}

/// The launches of members that agree in everything that is compiled. `whole` has the tiles of all
/// of them, side by side or one below the other.
pub(super) fn together(
    members: &[Member<'_>],
    whole: &Matrices,
    side_by_side: bool,
) -> Result<Vec<Launch>, LowerError> {
    let (mut parameters, mut reduce_blocks) = (Parameters::new(), 0);
    for Member { job, matrices, places, first } in members {
        parameters.append(&job.parameters(matrices, places, first)?);
        reduce_blocks += job.reduce_blocks(matrices);
    }
    let ragged = members.iter().find(|m| !m.matrices.n.size.is_multiple_of(8));
    let one = ragged.unwrap_or(&members[0]);
    let (file, mut defines) = one.job.constants(one.matrices);
    defines.push(format!("MEMBERS={}", members.len()));
    defines.push(format!("BESIDE={}", usize::from(side_by_side)));
    one.job.start(parameters, (file, defines), whole, reduce_blocks)
}

/// What there is to say of each of three batch axes, outermost first; those that are not there come
/// first.
fn batch<T>(x: &Matrices, of: impl Fn(Option<&Axis>) -> T) -> [T; BATCH_AXES] {
    let missing = BATCH_AXES - x.batch.len();
    std::array::from_fn(|i| of(i.checked_sub(missing).map(|own| &x.batch[own])))
}

/// Whether a factor has elements of its own along a batch axis.
fn moves(axis: &Axis, which: usize) -> bool {
    axis.size > 1 && axis.strides[which] != 0
}

/// The map of a factor, whose box is 64 x 64.
fn map(
    x: &Matrices,
    which: usize,
    (address, dtype): (Address, DType),
    layout: Layout,
) -> TensorMap {
    let side = if which == A { &x.m } else { &x.n };
    let (inner, outer) = if layout == Layout::K { (&x.k, side) } else { (side, &x.k) };
    // A legal stride, where the axis has size 1.
    let some = inner.size.next_multiple_of(8).max(8) as u64;
    let mut sizes = [inner.size as u64, 1, 1, 1, 1];
    let mut strides = [some; 4];
    let axes = std::iter::once(Some(outer)).chain(x.batch.iter().rev().map(Some));
    for (i, axis) in axes.flatten().enumerate().filter(|(_, axis)| moves(axis, which)) {
        sizes[i + 1] = axis.size as u64;
        strides[i] = axis.strides[which] as u64;
    }
    TensorMap { dtype, address, sizes, strides, tile: [64, 64, 1, 1, 1] }
}

/// The map of a right factor whose columns are dealt out: see `lib/gemm_sm90.cuh`.
fn permuted_map(x: &Matrices, (address, dtype): (Address, DType)) -> TensorMap {
    let line = x.n.strides[B] as u64;
    TensorMap {
        dtype,
        address,
        sizes: [x.k.size as u64, 2, 4, 4, x.n.size as u64 / 32],
        strides: [line, 8 * line, 2 * line, 32 * line],
        tile: [64, 2, 4, 4, 2],
    }
}

/// Blocks, threads of each, and its dynamic shared memory.
fn grid(x: &Matrices, choice: Choice) -> Result<([u32; 3], u32, u32), LowerError> {
    let count = |n: usize| space::count("product", n);
    let [m, n, batches] = [x.m.size, x.n.size, x.batches()];
    let shared = |bn: usize, widest: usize| if bn == widest { 230_400 } else { 197_632 };
    Ok(match choice.form {
        Form::General { tile, float, .. } => {
            let tiles = m.div_ceil(tile.bm) * n.div_ceil(tile.bn);
            count(x.k.size.div_ceil(tile.bk) * x.k_outer.size)?;
            let (wide, bytes) = if float { (8, 4) } else { (0, 2) };
            let shared = tile.stages * (tile.bm + tile.bn + wide) * tile.bk * bytes;
            let threads = if float { 256 } else { 32 * tile.warps[0] * tile.warps[1] };
            let grid = [count(tiles)?, choice.splits as u32, batches as u32];
            (grid, threads as u32, shared as u32)
        }
        Form::Ring { bn, cluster, .. } => {
            let tiles = m.div_ceil(128 * cluster) * n.div_ceil(bn);
            let items = count(batches * choice.splits * tiles)?;
            let cluster = cluster as u32;
            ([cluster * items.min(MULTIPROCESSORS / cluster), 1, 1], 384, shared(bn, 320))
        }
        Form::Resident { bn, .. } => {
            let columns = n.div_ceil(bn);
            let walkers = walkers(m, columns * batches);
            ([count(walkers)?, count(columns)?, batches as u32], 384, shared(bn, 256))
        }
    })
}
