//! "Did you mean": the nearest known word by edit distance, and the names other tools use.

/// Names that other tools give to our keys. Users bring them along, and no edit distance finds
/// them.
const SYNONYMS: &[(&str, &str)] = &[
    ("batch_size", "batch"),
    ("block_size", "context"),
    ("seq_len", "context"),
    ("sequence_length", "context"),
    ("n_ctx", "context"),
    ("d_model", "embed"),
    ("n_embd", "embed"),
    ("hidden_size", "embed"),
    ("width", "embed"),
    ("n_layer", "layers"),
    ("num_layers", "layers"),
    ("depth", "layers"),
    ("n_head", "heads"),
    ("num_heads", "heads"),
    ("pattern", "attention"),
    ("lr", "learning_rate"),
    ("eps", "epsilon"),
    ("betas", "beta1"),
    ("grad_clip", "clip"),
    ("max_grad_norm", "clip"),
    ("warmup_steps", "warmup"),
    ("max_steps", "steps"),
    ("epochs", "steps"),
    ("max_iters", "steps"),
    ("dtype", "compute"),
    ("fp16", "f16"),
    ("float16", "f16"),
    ("half", "f16"),
    ("bfloat16", "bf16"),
    ("init_scale", "loss_scale"),
    ("initial_scale_power", "loss_scale"),
    ("growth_interval", "loss_scale_interval"),
    ("loss_scale_window", "loss_scale_interval"),
    ("vocab_size", "vocab"),
    ("max_tokens", "tokens"),
    ("activation_checkpointing", "recompute"),
    ("gradient_checkpointing", "recompute"),
    ("gradient_accumulation_steps", "micro_batch"),
    ("num_threads", "threads"),
    ("accelerator", "device"),
    ("gpu", "cuda"),
    ("sharding", "shard"),
    ("strategy", "preset"),
    ("virtual_stages", "chunks"),
    ("zero_stage", "preset"),
];

/// The name in `known` that another tool calls `word`.
pub(crate) fn synonym<'a>(word: &str, known: &[&'a str]) -> Option<&'a str> {
    let (_, ours) = SYNONYMS.iter().find(|(theirs, _)| *theirs == word)?;
    known.iter().find(|name| *name == ours).copied()
}

/// The word in `known` nearest to `word`, if it is near enough to be a slip of the finger: one
/// edit for every three letters, at least one; or the word that `word` is a beginning of.
pub(crate) fn nearest<'a>(word: &str, known: &[&'a str]) -> Option<&'a str> {
    let limit = (word.chars().count() / 3).max(1);
    known
        .iter()
        .map(|name| (edit_distance(word, name), *name))
        .filter(|(distance, _)| *distance <= limit)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, name)| name)
        .or_else(|| known.iter().find(|name| word.len() > 2 && name.starts_with(word)).copied())
}

/// ``did you mean `x`?``, or the list of what there is.
pub(crate) fn advice(word: &str, known: &[&str], noun: &str) -> String {
    match synonym(word, known).or_else(|| nearest(word, known)) {
        Some(name) => format!("did you mean `{name}`?"),
        None => format!("the {noun} are {}", known.join(", ")),
    }
}

/// Insertions, deletions, substitutions and swaps of neighbours that turn `a` into `b` (optimal
/// string alignment).
fn edit_distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let mut rows = vec![(0..=b.len()).collect::<Vec<usize>>()];
    for i in 1..=a.len() {
        let mut row = vec![i];
        for j in 1..=b.len() {
            let substitution = rows[i - 1][j - 1] + usize::from(a[i - 1] != b[j - 1]);
            let mut best = substitution.min(rows[i - 1][j] + 1).min(row[j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                best = best.min(rows[i - 2][j - 2] + 1);
            }
            row.push(best);
        }
        rows.push(row);
    }
    rows[a.len()][b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distance_counts_single_edits_and_swaps() {
        for (a, b, wanted) in [
            ("layers", "layers", 0),
            ("layer", "layers", 1),
            ("alyers", "layers", 1),
            ("", "abc", 3),
            ("kitten", "sitting", 3),
        ] {
            assert_eq!(edit_distance(a, b), wanted, "{a} {b}");
            assert_eq!(edit_distance(b, a), wanted, "{b} {a}");
        }
    }

    #[test]
    fn a_far_word_has_no_nearest() {
        assert_eq!(nearest("zebra", &["layers", "heads"]), None);
        assert_eq!(nearest("haeds", &["layers", "heads"]), Some("heads"));
    }
}
