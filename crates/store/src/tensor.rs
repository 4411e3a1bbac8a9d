//! What a stored tensor is: name, element type, named axes.

use std::collections::HashSet;

use serde::{Deserialize, Serialize};

use crate::error::{Result, StoreError};

/// Element types, named as safetensors names them. All are little-endian on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
#[allow(missing_docs, reason = "the names say it")]
pub enum Dtype {
    F64,
    F32,
    F16,
    Bf16,
    I64,
    I32,
    I16,
    I8,
    U64,
    U32,
    U16,
    U8,
    Bool,
}

impl Dtype {
    /// Bytes of one element.
    pub fn bytes(self) -> u64 {
        match self {
            Self::F64 | Self::I64 | Self::U64 => 8,
            Self::F32 | Self::I32 | Self::U32 => 4,
            Self::F16 | Self::Bf16 | Self::I16 | Self::U16 => 2,
            Self::I8 | Self::U8 | Self::Bool => 1,
        }
    }

    pub(crate) fn safetensors(self) -> safetensors::Dtype {
        use safetensors::Dtype as D;
        match self {
            Self::F64 => D::F64,
            Self::F32 => D::F32,
            Self::F16 => D::F16,
            Self::Bf16 => D::BF16,
            Self::I64 => D::I64,
            Self::I32 => D::I32,
            Self::I16 => D::I16,
            Self::I8 => D::I8,
            Self::U64 => D::U64,
            Self::U32 => D::U32,
            Self::U16 => D::U16,
            Self::U8 => D::U8,
            Self::Bool => D::BOOL,
        }
    }
}

/// A tensor as the checkpoint knows it: row-major over `axes`, which may be none (a scalar).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorSpec {
    /// Unique in its checkpoint, such as `h.0.attn.q.weight`.
    pub name: String,
    /// Element type.
    pub dtype: Dtype,
    /// Name and extent of each axis, outermost first; names are unique in a tensor.
    pub axes: Vec<(String, u64)>,
}

impl TensorSpec {
    /// Number of elements.
    ///
    /// # Errors
    /// `BadTensor` where the product overflows.
    pub fn elements(&self) -> Result<u64> {
        elements(self.axes.iter().map(|(_, extent)| *extent))
            .ok_or_else(|| self.bad("its shape overflows"))
    }

    /// Size in bytes.
    ///
    /// # Errors
    /// `BadTensor` where the product overflows.
    pub fn bytes(&self) -> Result<u64> {
        let bytes = self.elements()?.checked_mul(self.dtype.bytes());
        // A file offset is signed, so half of the range is the limit of the operating system.
        bytes.filter(|b| *b <= i64::MAX as u64).ok_or_else(|| self.bad("its size overflows"))
    }

    /// Checks all that a checkpoint asks of a list of tensors and returns their bytes in total.
    pub(crate) fn check_all(specs: &[Self]) -> Result<u64> {
        let mut names = HashSet::new();
        let mut total: u64 = 0;
        for spec in specs {
            if spec.name.is_empty() || spec.name == "__metadata__" {
                return Err(spec.bad("the name is reserved"));
            }
            if !names.insert(spec.name.as_str()) {
                return Err(spec.bad("the name occurs twice"));
            }
            let mut axes = HashSet::new();
            if let Some((axis, _)) = spec.axes.iter().find(|(axis, _)| !axes.insert(axis.as_str()))
            {
                return Err(spec.bad(&format!("the axis {axis:?} occurs twice")));
            }
            total = total.checked_add(spec.bytes()?).ok_or_else(|| spec.bad("size overflow"))?;
        }
        Ok(total)
    }

    fn bad(&self, reason: &str) -> StoreError {
        StoreError::BadTensor { name: self.name.clone(), reason: reason.to_owned() }
    }
}

/// The product of extents, `None` where it overflows even though another extent is 0.
pub(crate) fn elements(extents: impl Iterator<Item = u64>) -> Option<u64> {
    let mut extents = extents;
    extents.try_fold(1u64, u64::checked_mul)
}
