//! Ids, axes, dtypes: the small types under everything else.

use smallvec::SmallVec;
use std::fmt;

macro_rules! id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
        pub struct $name(pub u32);
        impl $name {
            /// The position in the arena that the id points into.
            pub fn index(self) -> usize {
                self.0 as usize
            }
        }
    };
}
id!(
    /// An axis of one graph's table.
    AxisId
);
id!(
    /// A value of one graph.
    ValueId
);
id!(
    /// A node of one graph; ids grow in topological order.
    NodeId
);
id!(
    /// A state of one graph.
    StateId
);

/// The axes of a value, outermost first.
pub type AxisList = SmallVec<[AxisId; 6]>;

/// Who says which piece of a longer axis this one is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Cutter {
    /// The clock: pieces are run one after another (micro-batches).
    Time,
    /// The rank's coordinate along a mesh axis, by position in the mesh.
    Mesh(u8),
    /// It is this very piece (chunks of a sequence, each with an axis of its own).
    Fixed(usize),
}

/// A division of an axis into equal pieces.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Cut {
    /// Who says which piece it is.
    pub by: Cutter,
    /// How many there are.
    pub pieces: usize,
}

/// A named axis. A name has one size in a graph; a second role of the same extent is another name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Axis {
    /// Unique in the graph.
    pub name: String,
    /// Extent here.
    pub size: usize,
    /// The axis is a piece of a longer one, which was cut like this, outermost cut first (none: it
    /// is whole). Which piece is a fact of the clock, so that random numbers and `coord` see
    /// global coordinates.
    pub cuts: SmallVec<[Cut; 2]>,
    /// It counts elements as they are stored in a bucket and not along a direction of a tensor:
    /// views may take any axes to it and back, and nothing may ask for coordinates along it.
    pub storage: bool,
}

impl Axis {
    /// A whole axis.
    pub fn whole(name: &str, size: usize) -> Axis {
        Axis { name: name.to_owned(), size, cuts: SmallVec::new(), storage: false }
    }

    /// How many pieces the longer axis has.
    pub fn pieces(&self) -> usize {
        self.cuts.iter().map(|c| c.pieces).product()
    }

    /// Extent of the longer axis.
    pub fn global_size(&self) -> usize {
        self.size * self.pieces()
    }

    /// Which piece of the longer axis this is: the cuts as digits, outermost first.
    pub fn piece(&self, micro: u64, place: Place) -> u64 {
        self.cuts.iter().fold(0, |index, cut| {
            let digit = match cut.by {
                Cutter::Time => micro,
                Cutter::Mesh(m) => u64::from(place.0[m as usize]),
                Cutter::Fixed(piece) => piece as u64,
            };
            index * cut.pieces as u64 + digit
        })
    }

    /// By how much the piece's number grows from one micro-batch to the next.
    pub fn pieces_in_time(&self) -> u64 {
        let time = self.cuts.iter().position(|c| c.by == Cutter::Time);
        time.map_or(0, |at| self.cuts[at + 1..].iter().map(|c| c.pieces as u64).product())
    }
}

/// The most axes that a mesh may have.
pub const MESH_AXES: usize = 4;

/// A rank's coordinates in the mesh, in the order of its axes; zeros beyond them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Place(pub [u16; MESH_AXES]);

/// Ranks as a grid with named axes, outermost first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Mesh(pub Vec<(String, usize)>);

impl Mesh {
    /// The number of ranks.
    pub fn ranks(&self) -> usize {
        self.0.iter().map(|a| a.1).product()
    }

    /// The position of a named axis.
    pub fn find(&self, name: &str) -> Option<u8> {
        self.0.iter().position(|a| a.0 == name).map(|i| i as u8)
    }

    /// Extent of an axis.
    pub fn size(&self, axis: u8) -> usize {
        self.0[axis as usize].1
    }

    /// The coordinates of a rank, counted row-major.
    pub fn place(&self, rank: usize) -> Place {
        let mut place = Place::default();
        let mut rest = rank;
        for (i, (_, size)) in self.0.iter().enumerate().rev() {
            place.0[i] = (rest % size) as u16;
            rest /= size;
        }
        place
    }

    /// The rank at some coordinates.
    pub fn rank(&self, place: Place) -> usize {
        self.0.iter().zip(place.0).fold(0, |rank, ((_, size), x)| rank * size + usize::from(x))
    }

    /// The number of a place among those that differ from it along the axes in `over` alone.
    pub fn member(&self, place: Place, over: &[u8]) -> usize {
        over.iter().fold(0, |n, &m| n * self.size(m) + usize::from(place.0[m as usize]))
    }

    /// The ranks that differ from `rank` along the axes in `over` alone, ascending by their
    /// coordinates along those axes, the first of `over` outermost.
    pub fn group(&self, rank: usize, over: &[u8]) -> Vec<usize> {
        let mut places = vec![self.place(rank)];
        for &axis in over {
            let along = |p: &Place| {
                let mut p = *p;
                (0..self.size(axis) as u16).map(move |x| {
                    p.0[axis as usize] = x;
                    p
                })
            };
            places = places.iter().flat_map(along).collect();
        }
        places.into_iter().map(|p| self.rank(p)).collect()
    }
}

/// Whether the text form can carry a name: not empty, and none of its own signs in it.
pub fn is_name(text: &str) -> bool {
    let sign = |c: char| c.is_whitespace() || "=:[]{}(),\"%@!".contains(c);
    !text.is_empty() && !text.contains(sign)
}

/// The axis table of a graph, and the mesh of ranks that cuts some of its axes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Axes {
    list: Vec<Axis>,
    /// The ranks; empty for a graph that knows of one.
    pub mesh: Mesh,
}

impl Axes {
    /// The axis of that name, made if it is new; `None` where it exists and is another.
    pub fn intern(&mut self, axis: Axis) -> Option<AxisId> {
        if let Some(id) = self.find(&axis.name) {
            return (self[id] == axis).then_some(id);
        }
        self.list.push(axis);
        Some(AxisId(self.list.len() as u32 - 1))
    }

    /// Looks a name up.
    pub fn find(&self, name: &str) -> Option<AxisId> {
        self.list.iter().position(|a| a.name == name).map(|i| AxisId(i as u32))
    }

    /// The extent of an axis.
    pub fn size(&self, id: AxisId) -> usize {
        self[id].size
    }

    /// Extents in the order of the list.
    pub fn sizes(&self, list: &[AxisId]) -> Vec<usize> {
        list.iter().map(|&a| self.size(a)).collect()
    }

    /// The number of elements that the axes span.
    pub fn count(&self, list: &[AxisId]) -> usize {
        list.iter().map(|&a| self.size(a)).product()
    }

    /// Names in the order of the list, separated by spaces.
    pub fn names(&self, list: &[AxisId]) -> String {
        list.iter().map(|&a| self[a].name.as_str()).collect::<Vec<_>>().join(" ")
    }

    /// All axes with their ids.
    pub fn iter(&self) -> impl Iterator<Item = (AxisId, &Axis)> {
        self.list.iter().enumerate().map(|(i, a)| (AxisId(i as u32), a))
    }

    /// Makes an axis a piece of itself: the extent shrinks by the number of pieces.
    pub fn cut(&mut self, id: AxisId, cut: Cut) {
        let axis = &mut self.list[id.index()];
        axis.size /= cut.pieces;
        axis.cuts.push(cut);
    }
}

impl std::ops::Index<AxisId> for Axes {
    type Output = Axis;
    fn index(&self, id: AxisId) -> &Axis {
        &self.list[id.index()]
    }
}

/// The element type that a value is declared with; it says where rounding happens.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
pub enum DType {
    /// IEEE single precision.
    F32,
    /// Brain float: the upper half of an f32, rounded to nearest even.
    Bf16,
    /// IEEE half precision: 11 digits, and a range of 6e-8 to 65,504.
    F16,
    /// Unsigned indices: tokens, positions.
    U32,
}

impl DType {
    /// Bytes of one element.
    pub fn bytes(self) -> usize {
        match self {
            DType::F32 | DType::U32 => 4,
            DType::Bf16 | DType::F16 => 2,
        }
    }

    /// Whether gradients flow through it.
    pub fn is_float(self) -> bool {
        self != DType::U32
    }

    /// Whether it is a float of 16 bits.
    pub fn is_half(self) -> bool {
        matches!(self, DType::Bf16 | DType::F16)
    }

    /// Rounds a real number to the dtype, ties to even.
    pub fn round(self, x: f64) -> f64 {
        match self {
            DType::F32 => f64::from(x as f32),
            DType::Bf16 => f64::from(round_bf16(x as f32)),
            DType::F16 => f64::from(round_f16(x as f32)),
            DType::U32 => x,
        }
    }

    /// The lower-case name of the text form.
    pub fn name(self) -> &'static str {
        match self {
            DType::F32 => "f32",
            DType::Bf16 => "bf16",
            DType::F16 => "f16",
            DType::U32 => "u32",
        }
    }

    /// The inverse of [`DType::name`].
    pub fn parse(s: &str) -> Option<Self> {
        [DType::F32, DType::Bf16, DType::F16, DType::U32].into_iter().find(|d| d.name() == s)
    }
}

/// f32 to the nearest bf16 value, ties to even; NaN stays NaN.
pub fn round_bf16(x: f32) -> f32 {
    if x.is_nan() {
        return f32::NAN;
    }
    let bits = x.to_bits();
    f32::from_bits((bits + 0x7fff + ((bits >> 16) & 1)) & 0xffff_0000)
}

/// f32 to the nearest f16 value, ties to even; 65,520 and more become infinite, NaN stays NaN.
/// There and back by [`f32_to_f16`] and [`f16_to_f32`], in half the time.
#[inline]
pub fn round_f16(x: f32) -> f32 {
    let bits = x.to_bits();
    let size = bits & 0x7fff_ffff;
    let rounded = if size > 0x7f80_0000 {
        0x7fc0_0000 | (size & !0x1fff)
    } else if size >= 0x477f_f000 {
        0x7f80_0000
    } else if size < 0x3880_0000 {
        // Below 2^-14 an f16 counts in steps of 2^-24, as f32 does from 0.5 on: adding rounds.
        (f32::from_bits(size) + 0.5 - 0.5).to_bits()
    } else {
        (size + 0x0fff + ((size >> 13) & 1)) & !0x1fff
    };
    f32::from_bits(bits & 0x8000_0000 | rounded)
}

/// The bits of the nearest f16, ties to even; 65,520 and more become infinite, NaN a quiet NaN of
/// the same sign and first digits, as the instructions of processors have it.
#[inline]
pub fn f32_to_f16(x: f32) -> u16 {
    let bits = x.to_bits();
    let size = bits & 0x7fff_ffff;
    let rounded = if size > 0x7f80_0000 {
        0x7e00 | (size >> 13) & 0x1ff
    } else if size >= 0x477f_f000 {
        0x7c00
    } else if size < 0x3880_0000 {
        // The sum rounds as above, and counts the steps.
        (f32::from_bits(size) + 0.5).to_bits() - 0.5f32.to_bits()
    } else {
        (size + 0x0fff + ((size >> 13) & 1) - 0x3800_0000) >> 13
    };
    (bits >> 16) as u16 & 0x8000 | rounded as u16
}

/// The value of an f16; NaN becomes a quiet one.
#[inline]
pub fn f16_to_f32(bits: u16) -> f32 {
    // The exponents differ by 112.
    const SHIFT: u32 = 112 << 23;
    let digits = u32::from(bits & 0x7fff) << 13;
    let size = if digits > 0x7c00 << 13 {
        0x7fc0_0000 | digits
    } else if digits == 0x7c00 << 13 {
        0x7f80_0000
    } else if digits < 1 << 23 {
        // What counts in steps of 2^-24 does so from 2^-14 on as well: the difference is exact.
        let least = f32::from_bits(SHIFT + (1 << 23));
        (f32::from_bits(least.to_bits() + digits) - least).to_bits()
    } else {
        digits + SHIFT
    };
    f32::from_bits(u32::from(bits & 0x8000) << 16 | size)
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What a value is: its dtype and its named axes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Type {
    /// Element type.
    pub dtype: DType,
    /// Axes, outermost first, each name at most once.
    pub axes: AxisList,
}

impl Type {
    /// A type from its parts.
    pub fn new(dtype: DType, axes: impl IntoIterator<Item = AxisId>) -> Self {
        Type { dtype, axes: axes.into_iter().collect() }
    }

    /// Whether the axis is one of the value's.
    pub fn has(&self, axis: AxisId) -> bool {
        self.axes.contains(&axis)
    }

    /// Bytes of a contiguous copy.
    pub fn bytes(&self, axes: &Axes) -> u64 {
        (axes.count(&self.axes) * self.dtype.bytes()) as u64
    }

    /// `bf16[batch=4 seq=16]`.
    pub fn show(&self, axes: &Axes) -> String {
        let list: Vec<_> =
            self.axes.iter().map(|&a| format!("{}={}", axes[a].name, axes[a].size)).collect();
        format!("{}[{}]", self.dtype, list.join(" "))
    }
}
