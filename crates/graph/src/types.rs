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

/// A named axis. A name has one size in a graph; a second role of the same extent is another name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Axis {
    /// Unique in the graph.
    pub name: String,
    /// Extent here.
    pub size: usize,
    /// This axis is one of so many equal pieces of a longer axis (1: it is whole). Which piece is
    /// a fact of the clock, so that random numbers and `coord` see global coordinates.
    pub pieces: usize,
}

/// Whether the text form can carry a name: not empty, and none of its own signs in it.
pub fn is_name(text: &str) -> bool {
    let sign = |c: char| c.is_whitespace() || "=:[]{}(),\"%@!".contains(c);
    !text.is_empty() && !text.contains(sign)
}

/// The axis table of a graph.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Axes(Vec<Axis>);

impl Axes {
    /// The axis of that name, made if it is new; `None` where it exists with another extent.
    pub fn intern(&mut self, name: &str, size: usize, pieces: usize) -> Option<AxisId> {
        if let Some(id) = self.find(name) {
            let a = &self[id];
            return (a.size == size && a.pieces == pieces).then_some(id);
        }
        self.0.push(Axis { name: name.to_owned(), size, pieces });
        Some(AxisId(self.0.len() as u32 - 1))
    }

    /// Looks a name up.
    pub fn find(&self, name: &str) -> Option<AxisId> {
        self.0.iter().position(|a| a.name == name).map(|i| AxisId(i as u32))
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
        self.0.iter().enumerate().map(|(i, a)| (AxisId(i as u32), a))
    }

    /// Makes an axis a piece of a longer one: the extent shrinks by the number of pieces.
    pub fn cut(&mut self, id: AxisId, pieces: usize) {
        let axis = &mut self.0[id.index()];
        axis.size /= pieces;
        axis.pieces *= pieces;
    }
}

impl std::ops::Index<AxisId> for Axes {
    type Output = Axis;
    fn index(&self, id: AxisId) -> &Axis {
        &self.0[id.index()]
    }
}

/// The element type that a value is declared with; it says where rounding happens.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
pub enum DType {
    /// IEEE single precision.
    F32,
    /// Brain float: the upper half of an f32, rounded to nearest even.
    Bf16,
    /// Unsigned indices: tokens, positions.
    U32,
}

impl DType {
    /// Bytes of one element.
    pub fn bytes(self) -> usize {
        match self {
            DType::F32 | DType::U32 => 4,
            DType::Bf16 => 2,
        }
    }

    /// Whether gradients flow through it.
    pub fn is_float(self) -> bool {
        self != DType::U32
    }

    /// Rounds a real number to the dtype, ties to even.
    pub fn round(self, x: f64) -> f64 {
        match self {
            DType::F32 => f64::from(x as f32),
            DType::Bf16 => f64::from(round_bf16(x as f32)),
            DType::U32 => x,
        }
    }

    /// The lower-case name of the text form.
    pub fn name(self) -> &'static str {
        match self {
            DType::F32 => "f32",
            DType::Bf16 => "bf16",
            DType::U32 => "u32",
        }
    }

    /// The inverse of [`DType::name`].
    pub fn parse(s: &str) -> Option<Self> {
        [DType::F32, DType::Bf16, DType::U32].into_iter().find(|d| d.name() == s)
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
