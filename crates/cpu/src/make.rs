//! From the description of a kernel to one that runs.

use crate::kernel::{Kernel, KernelError};
use crate::kernels::attend::Attend;
use crate::kernels::attend_grad::AttendGrad;
use crate::kernels::copy::{Copy, Fill};
use crate::kernels::gather::{Gather, Scatter};
use crate::kernels::gemm::Gemm;
use crate::kernels::linear_ce::LinearCe;
use crate::kernels::map::Map;
use crate::kernels::norm::{Norm, NormGrad};
use crate::kernels::pattern::BlockList;
use crate::kernels::reduce::Reduce;
use aerogel_lower::{AttendMask, Spec};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

/// The kernel of a spec. It takes the operands that the spec names, in its order.
pub(crate) fn make(spec: &Spec, lists: &BlockLists) -> Result<Box<dyn Kernel>, KernelError> {
    Ok(match spec {
        Spec::Map(program) => Box::new(Map::new(program)?),
        Spec::Reduce(spec) => Box::new(Reduce::new(spec)?),
        Spec::Product(spec) => Box::new(Gemm::new(spec)?),
        Spec::Products(spec) => {
            let what = format!("{} contractions at once", spec.members.len());
            return Err(KernelError::Unsupported { kernel: "gemm", what });
        }
        Spec::Summed(terms) => {
            let what = format!("the sum of {} contractions", terms.len());
            return Err(KernelError::Unsupported { kernel: "gemm", what });
        }
        Spec::Norm(spec) => Box::new(Norm::new(spec)?),
        Spec::NormGrad(spec) => Box::new(NormGrad::new(spec)?),
        Spec::Attend(spec, mask) => Box::new(Attend::new(spec, lists.get(mask)?)?),
        Spec::AttendGrad(spec, mask) => Box::new(AttendGrad::new(spec, lists.get(mask)?)?),
        Spec::Gather(spec) => Box::new(Gather::new(spec)?),
        Spec::Scatter(spec) => Box::new(Scatter::new(spec)?),
        Spec::LinearCe(spec) => Box::new(LinearCe::new(spec)?),
        Spec::Copy(spec) => Box::new(Copy::new(spec)?),
        Spec::Fill(spec) => Box::new(Fill::new(spec)?),
    })
}

/// The tiles that masks allow, listed once each: layers and both directions share them.
#[derive(Default)]
pub(crate) struct BlockLists(Mutex<HashMap<AttendMask, Arc<BlockList>>>);

impl BlockLists {
    fn get(&self, mask: &AttendMask) -> Result<Arc<BlockList>, KernelError> {
        let mut lists = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(list) = lists.get(mask) {
            return Ok(list.clone());
        }
        let list = Arc::new(BlockList::with_coverage(
            mask.heads,
            [mask.queries, mask.keys],
            &|head, i, j| mask.pattern.allows(head, i, j),
            &|head, q, k| mask.pattern.coverage(head, q, k),
        )?);
        lists.insert(mask.clone(), list.clone());
        Ok(list)
    }
}
