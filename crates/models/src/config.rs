//! What a model is made of, and what a configuration must satisfy.

use crate::attention::{Form, Part};
use aerogel_graph::OpError;

/// A family of models.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// Child et al., "Generating Long Sequences with Sparse Transformers" (2019).
    SparseTransformer,
    /// Radford et al., "Language Models are Unsupervised Multitask Learners" (2019).
    Gpt2,
}

/// The kind of attention of a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AttentionKind {
    /// All earlier positions.
    Dense,
    /// The last `window` positions.
    Local,
    /// The last `window` positions, and every `stride`-th position back.
    Strided,
    /// The own block of `stride` positions, and the last `columns` positions of every block.
    Fixed,
}

/// How the two parts of a kind are spread over layers and heads (Child et al. §4.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Combine {
    /// One part a layer, following the cycle.
    Interleaved,
    /// Every head sees the union of both parts.
    Merged,
    /// Head `h` has part `h mod 2`.
    Heads,
}

/// One entry of the cycle of interleaved layers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)] // the parts of `AttentionKind` by name
pub enum LayerKind {
    Dense,
    Local,
    Strided,
    Block,
    Summary,
}

/// Standard deviations of the Sparse Transformer's weights at the start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WeightInit {
    /// As the paper's text: matrices 0.125 / √fan-in.
    Paper,
    /// As the published program: matrices √(0.125 / fan-in), 2.8 times as large.
    Code,
}

/// A model, as the recipe resolves it.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelConfig {
    /// Family.
    pub family: Family,
    /// Residual blocks.
    pub layers: usize,
    /// Attention heads of a block.
    pub heads: usize,
    /// Width of the residual stream, and of the values over all heads.
    pub embed: usize,
    /// Inner width of the feed-forward.
    pub mlp: usize,
    /// Width of queries and keys over all heads.
    pub qk: usize,
    /// Sequence length, tokens.
    pub context: usize,
    /// Tokens in the vocabulary.
    pub vocab: usize,
    /// Height, width, channels of an image whose bytes, in this order, are the sequence.
    pub image: Option<[usize; 3]>,
    /// Kind of attention.
    pub attention: AttentionKind,
    /// How its parts are spread.
    pub combine: Combine,
    /// Layer `i` is entry `i` modulo their number, where layers are interleaved.
    pub cycle: Vec<LayerKind>,
    /// Positions of a row (strided) or of a block (fixed).
    pub stride: usize,
    /// Positions of a local window, the query included.
    pub window: usize,
    /// Summary positions at the end of a block.
    pub columns: usize,
    /// Dropout where a block adds to the residual stream.
    pub dropout: f64,
    /// Dropout of the embeddings.
    pub embed_dropout: f64,
    /// Initial deviations; of the Sparse Transformer only.
    pub init: WeightInit,
}

/// Why a model cannot be built.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ModelError {
    /// A size is 0.
    #[error("`{what}` is 0; it must be at least 1")]
    Zero {
        /// The size.
        what: &'static str,
    },
    /// A size does not divide another.
    #[error("`{by}` = {by_size} does not divide `{what}` = {size}; choose sizes that divide")]
    Divide {
        /// What is divided.
        what: &'static str,
        /// Its size.
        size: usize,
        /// The divisor.
        by: &'static str,
        /// Its size.
        by_size: usize,
    },
    /// A size is above what another allows.
    #[error("`{what}` = {size} is more than `{limit}` = {limit_size}; it must not be")]
    Exceeds {
        /// What is too large.
        what: &'static str,
        /// Its size.
        size: usize,
        /// What it is held against.
        limit: &'static str,
        /// Its size.
        limit_size: usize,
    },
    /// The image has another number of bytes than the sequence.
    #[error("an image of {image:?} has {} bytes, and `context` is {context}; make them equal",
        image.iter().product::<usize>())]
    Image {
        /// Height, width, channels.
        image: [usize; 3],
        /// Sequence length.
        context: usize,
    },
    /// A dropout probability is outside of [0, 1).
    #[error("`{what}` = {value}; a dropout probability is at least 0 and less than 1")]
    Dropout {
        /// Which one.
        what: &'static str,
        /// The value, as text.
        value: String,
    },
    /// The sequence is too short to be shifted by one.
    #[error("`context` = {context}; the Sparse Transformer needs at least 2 positions")]
    TooShort {
        /// Sequence length.
        context: usize,
    },
    /// Parts are to be combined, and the kind has only one.
    #[error("{combine:?} needs two parts, and {attention:?} attention has one; interleave it")]
    OnePart {
        /// How.
        combine: Combine,
        /// Of what.
        attention: AttentionKind,
    },
    /// Layers are interleaved along no cycle.
    #[error("`cycle` is empty; name at least one kind of layer")]
    NoCycle,
    /// An op refused its inputs: an error of this crate, with where it happened.
    #[error("the model's graph does not fit together: {0}")]
    Graph(#[from] OpError),
}

impl ModelConfig {
    /// The attention of one layer (dense where the cycle is empty, which `check` refuses).
    pub fn form(&self, layer: usize) -> Form {
        let both = match self.attention {
            AttentionKind::Fixed => [LayerKind::Block, LayerKind::Summary],
            _ => [LayerKind::Local, LayerKind::Strided],
        };
        match self.combine {
            Combine::Interleaved => {
                let entry = self.cycle.get(layer % self.cycle.len().max(1));
                Form::One(entry.map_or(Part::Dense, |&kind| self.part(kind)))
            }
            Combine::Merged => Form::Merged(both.map(|kind| self.part(kind))),
            Combine::Heads => Form::Heads(both.map(|kind| self.part(kind))),
        }
    }

    fn part(&self, kind: LayerKind) -> Part {
        match kind {
            LayerKind::Dense => Part::Dense,
            LayerKind::Local => Part::Local { window: self.window },
            LayerKind::Strided => Part::Strided { stride: self.stride },
            LayerKind::Block => Part::Block { block: self.stride },
            LayerKind::Summary => Part::Summary { block: self.stride, columns: self.columns },
        }
    }

    /// Whether the configuration can be built.
    ///
    /// # Errors
    /// The first contradiction.
    pub fn check(&self) -> Result<(), ModelError> {
        self.check_sizes()?;
        self.check_attention()?;
        for (what, p) in [("dropout", self.dropout), ("embed_dropout", self.embed_dropout)] {
            if !(0.0..1.0).contains(&p) {
                return Err(ModelError::Dropout { what, value: p.to_string() });
            }
        }
        Ok(())
    }

    fn check_sizes(&self) -> Result<(), ModelError> {
        for (what, size) in [
            ("layers", self.layers),
            ("heads", self.heads),
            ("embed", self.embed),
            ("mlp", self.mlp),
            ("qk", self.qk),
            ("context", self.context),
            ("vocab", self.vocab),
        ] {
            if size == 0 {
                return Err(ModelError::Zero { what });
            }
        }
        divides("embed", self.embed, "heads", self.heads)?;
        divides("qk", self.qk, "heads", self.heads)?;
        if let Some(image) = self.image.filter(|i| i.iter().product::<usize>() != self.context) {
            return Err(ModelError::Image { image, context: self.context });
        }
        if self.family == Family::SparseTransformer && self.context < 2 {
            return Err(ModelError::TooShort { context: self.context });
        }
        Ok(())
    }

    fn check_attention(&self) -> Result<(), ModelError> {
        let (combine, attention) = (self.combine, self.attention);
        if combine == Combine::Interleaved && self.cycle.is_empty() {
            return Err(ModelError::NoCycle);
        }
        if combine != Combine::Interleaved
            && matches!(attention, AttentionKind::Dense | AttentionKind::Local)
        {
            return Err(ModelError::OnePart { combine, attention });
        }
        if combine == Combine::Heads {
            divides("heads", self.heads, "parts", 2)?;
        }
        // Reading the window beyond the stride as well would count keys of both parts twice.
        if combine == Combine::Merged && attention == AttentionKind::Strided {
            at_most("window", self.window, "stride", self.stride)?;
        }
        let cycle =
            if combine == Combine::Interleaved { self.cycle.len().min(self.layers) } else { 1 };
        (0..cycle)
            .flat_map(|layer| self.form(layer).parts())
            .try_for_each(|p| self.check_part(p))?;
        let rows = matches!(attention, AttentionKind::Strided | AttentionKind::Fixed);
        if rows && self.image.is_none() && self.family == Family::SparseTransformer {
            divides("context", self.context, "stride", self.stride)?;
        }
        Ok(())
    }

    fn check_part(&self, part: Part) -> Result<(), ModelError> {
        match part {
            Part::Dense => Ok(()),
            Part::Local { window: 0 } => Err(ModelError::Zero { what: "window" }),
            Part::Local { .. } => Ok(()),
            Part::Strided { stride: l } | Part::Block { block: l } => {
                divides("context", self.context, "stride", l)
            }
            Part::Summary { columns: 0, .. } => Err(ModelError::Zero { what: "columns" }),
            Part::Summary { block, columns } => {
                divides("context", self.context, "stride", block)?;
                at_most("columns", columns, "stride", block)
            }
        }
    }
}

fn divides(
    what: &'static str,
    size: usize,
    by: &'static str,
    by_size: usize,
) -> Result<(), ModelError> {
    match by_size {
        0 => Err(ModelError::Zero { what: by }),
        n if size.is_multiple_of(n) => Ok(()),
        _ => Err(ModelError::Divide { what, size, by, by_size }),
    }
}

fn at_most(
    what: &'static str,
    size: usize,
    limit: &'static str,
    limit_size: usize,
) -> Result<(), ModelError> {
    match size <= limit_size {
        true => Ok(()),
        false => Err(ModelError::Exceeds { what, size, limit, limit_size }),
    }
}
