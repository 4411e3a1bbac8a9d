//! Patterns as `attend_decode` evaluates them: each kind of head sees a union of terms.

use crate::kernels::unsupported;
use aerogel_graph::Pattern;
use aerogel_lower::LowerError;
use std::sync::Arc;

// Kinds of terms.
const CAUSAL: u32 = 1;
const BEFORE: u32 = 2;
const LOCAL: u32 = 3;
const STRIDED: u32 = 4;
const BLOCK: u32 = 5;
const SUMMARY: u32 = 6;
const COLUMNS: u32 = 7;
const COLUMNS_STRICT: u32 = 8;

/// `u32[kinds + 1]` and `Term[]`.
pub(super) fn terms(pattern: &Pattern, kinds: usize) -> Result<[Arc<[u8]>; 2], LowerError> {
    let (mut first, mut all) = (vec![0], vec![]);
    for head in 0..kinds {
        add(pattern, head, &mut all)?;
        first.push(all.len() as u32);
    }
    let bytes = |words: &[u32]| words.iter().flat_map(|word| word.to_le_bytes()).collect();
    Ok([bytes(&first), bytes(all.as_flattened())])
}

fn add(pattern: &Pattern, head: usize, to: &mut Vec<[u32; 4]>) -> Result<(), LowerError> {
    let (kind, a, b) = match pattern {
        Pattern::Union(a, b) => {
            add(a, head, to)?;
            return add(b, head, to);
        }
        Pattern::PerHead(list) => return add(&list[head % list.len()], head, to),
        // Keys after the query's own position are not there yet.
        Pattern::Full | Pattern::Causal => (CAUSAL, 0, 0),
        Pattern::Before => (BEFORE, 0, 0),
        Pattern::Local(window) => (LOCAL, *window, 0),
        Pattern::Strided(stride) => (STRIDED, *stride, 0),
        Pattern::Block(block) => (BLOCK, *block, 0),
        Pattern::Summary { block, columns } => (SUMMARY, *block, *columns),
        Pattern::Columns { block, columns, strict } => {
            (if *strict { COLUMNS_STRICT } else { COLUMNS }, *block, *columns)
        }
    };
    let number = |n: usize| {
        let refused = |_| unsupported("decode", format!("{pattern}: {n} is not below 2^32"));
        u32::try_from(n).map_err(refused)
    };
    to.push([kind, number(a)?, number(b)?, 0]);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unions_and_heads_are_flattened() {
        let text = "per_head(union(local(5),union(strided(7),full)),columns_strict(20,8))";
        let pattern = Pattern::parse(text).unwrap();
        let [first, terms] = terms(&pattern, 2).unwrap();
        let words = |bytes: &[u8]| -> Vec<u32> {
            bytes.chunks(4).map(|b| u32::from_le_bytes(b.try_into().unwrap())).collect()
        };
        assert_eq!(words(&first), [0, 3, 4]);
        let wanted = [[LOCAL, 5, 0, 0], [STRIDED, 7, 0, 0], [CAUSAL, 0, 0, 0]];
        assert_eq!(words(&terms)[..12], *wanted.as_flattened());
        assert_eq!(words(&terms)[12..], [COLUMNS_STRICT, 20, 8, 0]);
        assert!(super::terms(&Pattern::Local(1 << 40), 1).is_err());
    }
}
