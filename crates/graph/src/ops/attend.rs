//! attend: softmax(scale q·k under a pattern) · v, with the log-sum-exp of each query's scores.
//!
//! q has the query axis, the contracted axis, and head and batch axes; k and v have the key axis
//! and those of q's other axes that they share (a head axis that only q has is a group of queries
//! that share keys: GQA). The value width may differ from the key width. A query that sees no key
//! gets o = 0 and lse = -inf. The score matrix exists in the reference and nowhere else.

use super::*;
use crate::expr::Expr;
use crate::pattern::Pattern;
use crate::tensor::row_major;

/// Attention; inputs q, k, v, and with `offset` a scalar: the first query's position.
#[derive(Clone, Debug, PartialEq)]
pub struct Attend {
    /// Query positions: an axis of q.
    pub query: AxisId,
    /// Key positions: an axis of k and v.
    pub key: AxisId,
    /// The contracted axis of q and k.
    pub dim: AxisId,
    /// The axes of q that number the heads, outermost first, for patterns that differ by head.
    pub heads: AxisList,
    /// Factor on the scores.
    pub scale: f64,
    /// Which keys a query sees.
    pub pattern: Pattern,
    /// Query positions start at a run-time scalar (decoding) and not at 0.
    pub offset: bool,
}

/// Row offsets of one operand: its batch coordinates, then its inner axes.
struct Operand {
    batch: Vec<usize>,
    inner: [usize; 2],
}

/// What a visit of a row gets: batch coordinates, query, probabilities, lse.
pub(super) type Visit<'a> = dyn FnMut(&[usize], usize, &[f64], f64) + 'a;

/// Everything that forward and backward references share.
pub(super) struct Reference<'a> {
    attend: &'a Attend,
    /// q's batch and head axes.
    sizes: Vec<usize>,
    head_strides: Vec<usize>,
    q: Operand,
    k: Operand,
    v: Operand,
    pub lens: (usize, usize, usize, usize),
    pub offset: usize,
}

impl Attend {
    /// q's axes other than the query and the contracted one.
    pub fn batch(&self, q: &Type) -> AxisList {
        without(&without(&q.axes, self.query), self.dim)
    }

    /// The value-width axis: the one that v has beside k's.
    pub fn width(&self, k: &Type, v: &Type) -> Option<AxisId> {
        let mut own = v.axes.iter().copied().filter(|&a| !k.has(a));
        match (own.next(), own.next()) {
            (Some(a), None) => Some(a),
            _ => None,
        }
    }

    /// Allowed (query, key) pairs over all heads and batch entries.
    pub fn pairs(&self, axes: &Axes, q: &Type) -> u64 {
        let heads = axes.count(&self.heads).max(1);
        let others = axes.count(&self.batch(q)) / heads;
        let (queries, keys) = (axes.size(self.query), axes.size(self.key));
        let kinds = self.pattern.head_kinds();
        if self.offset {
            return (heads * others * queries * keys) as u64;
        }
        let by_kind: Vec<u64> =
            (0..kinds.min(heads)).map(|h| self.pattern.pairs(h, queries, keys)).collect();
        let per_batch: u64 = (0..heads).map(|h| by_kind[h % kinds]).sum();
        per_batch * others as u64
    }

    /// Whether each piece of axis `label`, as it is cut, has heads of the patterns that the first
    /// piece has: a rank numbers its heads from 0.
    pub fn pieces_alike(&self, axes: &Axes, label: AxisId) -> bool {
        let kinds = self.pattern.head_kinds();
        let outermost = self.heads.first() == Some(&label);
        kinds == 1
            || !self.heads.contains(&label)
            || (outermost && axes.count(&self.heads).is_multiple_of(kinds))
    }

    fn check_pattern(&self, axes: &Axes, q: &Type) -> Result<(), OpError> {
        if let Err(message) = self.pattern.check() {
            return Err(OpError::new(Self::NAME, message));
        }
        let batch = self.batch(q);
        match self.heads.iter().find(|a| !batch.contains(a)) {
            None => Ok(()),
            Some(&a) => {
                let message = format!("head axis `{}` is no batch axis of q", axes[a].name);
                Err(OpError::new(Self::NAME, message))
            }
        }
    }

    fn pattern_expr(&self, axes: &Axes, offset: Expr) -> Expr {
        let head = self
            .heads
            .iter()
            .fold(Expr::Const(0.0), |index, &a| index * axes.size(a) as f64 + Expr::Coord(a));
        let i = Expr::Coord(self.query) + offset;
        allowed(&self.pattern, &head, &i, &Expr::Coord(self.key)).simplified()
    }
}

/// The pattern's predicate as an expression of 0 and 1.
fn allowed(pattern: &Pattern, head: &Expr, i: &Expr, j: &Expr) -> Expr {
    let div = |x: &Expr, n: usize| (x / n as f64).floor();
    let rem = |x: &Expr, n: usize| x - n as f64 * div(x, n);
    match pattern {
        Pattern::Full => Expr::Const(1.0),
        Pattern::Causal => j.le(i),
        Pattern::Before => j.lt(i),
        Pattern::Local(w) => j.le(i) * (i - j).lt(*w as f64),
        Pattern::Strided(l) => j.le(i) * rem(&(i - j), *l).equals(0.0),
        Pattern::Block(l) => j.le(i) * div(i, *l).equals(div(j, *l)),
        Pattern::Summary { block, columns } => {
            j.le(i) * Expr::Const((block - columns) as f64).le(rem(j, *block))
        }
        Pattern::Columns { block, columns, strict } => {
            let first = (block - columns) as f64;
            let key = div(j, *columns) * *block as f64 + first + rem(j, *columns);
            if *strict { div(&key, *block).lt(div(i, *block)) } else { key.le(i) }
        }
        Pattern::Union(a, b) => allowed(a, head, i, j).max(allowed(b, head, i, j)),
        Pattern::PerHead(list) => {
            let kind = rem(head, list.len());
            list.iter().enumerate().fold(Expr::Const(0.0), |rest, (n, p)| {
                kind.equals(n as f64).select(allowed(p, head, i, j), rest)
            })
        }
    }
}

impl<'a> Reference<'a> {
    pub fn new(attend: &'a Attend, site: &RefSite<'_>, q: &Tensor, k: &Tensor, v: &Tensor) -> Self {
        let batch = without(&without(&q.axes, attend.query), attend.dim);
        let width = v.axes.iter().copied().find(|a| !k.axes.contains(a)).expect("infer checked v");
        let operand = |t: &Tensor, a: AxisId, b: AxisId| {
            let inner = t.strides(&[a, b]);
            Operand { batch: t.strides(&batch), inner: [inner[0], inner[1]] }
        };
        let head_sizes = site.axes.sizes(&attend.heads);
        let own = row_major(&head_sizes);
        let head_strides = batch
            .iter()
            .map(|a| attend.heads.iter().position(|h| h == a).map_or(0, |p| own[p]))
            .collect();
        let size = |a| site.axes.size(a);
        Reference {
            attend,
            sizes: site.axes.sizes(&batch),
            head_strides,
            q: operand(q, attend.query, attend.dim),
            k: operand(k, attend.key, attend.dim),
            v: operand(v, attend.key, width),
            lens: (size(attend.query), size(attend.key), size(attend.dim), size(width)),
            offset: 0,
        }
    }

    /// Visits each (batch entry, query) with the probabilities of all keys and the lse.
    pub fn rows(&self, q: &Tensor, k: &Tensor, visit: &mut Visit<'_>) {
        let total: usize = self.sizes.iter().product();
        let (queries, keys, dims, _) = self.lens;
        let own = row_major(&self.sizes);
        for flat in 0..total {
            let index: Vec<usize> =
                own.iter().zip(&self.sizes).map(|(s, n)| flat / s % n).collect();
            let dot = |s: &[usize]| index.iter().zip(s).map(|(a, b)| a * b).sum::<usize>();
            let (q0, k0, head) = (dot(&self.q.batch), dot(&self.k.batch), dot(&self.head_strides));
            for i in 0..queries {
                let score = |j: usize| {
                    if !self.attend.pattern.allows(head, i + self.offset, j) {
                        return f64::NEG_INFINITY;
                    }
                    let at = |o: &Operand, row: usize, d: usize| row * o.inner[0] + d * o.inner[1];
                    let product =
                        |d: usize| q.data[q0 + at(&self.q, i, d)] * k.data[k0 + at(&self.k, j, d)];
                    (0..dims).map(product).sum::<f64>() * self.attend.scale
                };
                let scores: Vec<f64> = (0..keys).map(score).collect();
                let top = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let lse = if top == f64::NEG_INFINITY {
                    top
                } else {
                    top + scores.iter().map(|s| (s - top).exp()).sum::<f64>().ln()
                };
                let p: Vec<f64> = scores
                    .iter()
                    .map(|s| if *s == f64::NEG_INFINITY { 0.0 } else { (s - lse).exp() })
                    .collect();
                visit(&index, i, &p, lse);
            }
        }
    }

    fn at(o: &Operand, index: &[usize], row: usize, d: usize) -> usize {
        let batch: usize = index.iter().zip(&o.batch).map(|(a, b)| a * b).sum();
        batch + row * o.inner[0] + d * o.inner[1]
    }

    pub fn q_at(&self, index: &[usize], i: usize, d: usize) -> usize {
        Self::at(&self.q, index, i, d)
    }

    pub fn k_at(&self, index: &[usize], j: usize, d: usize) -> usize {
        Self::at(&self.k, index, j, d)
    }

    pub fn v_at(&self, index: &[usize], j: usize, d: usize) -> usize {
        Self::at(&self.v, index, j, d)
    }
}

impl Rules for Attend {
    const NAME: &'static str = "attend";

    fn infer(&self, axes: &Axes, ins: &[&Type]) -> Result<Vec<Type>, OpError> {
        let wanted = 3 + usize::from(self.offset);
        want_ins(Self::NAME, ins, wanted..=wanted)?;
        let (q, k, v) = (ins[0], ins[1], ins[2]);
        for (ty, what) in [(q, "q"), (k, "k"), (v, "v")] {
            want_float(Self::NAME, ty, what)?;
        }
        want_axis(Self::NAME, axes, q, self.query, "q")?;
        want_axis(Self::NAME, axes, q, self.dim, "q")?;
        want_axis(Self::NAME, axes, k, self.dim, "k")?;
        want_axis(Self::NAME, axes, k, self.key, "k")?;
        want_axis(Self::NAME, axes, v, self.key, "v")?;
        let shared = without(&without(&k.axes, self.key), self.dim);
        for &a in &shared {
            want_axis(Self::NAME, axes, q, a, "q")?;
        }
        let Some(width) = self.width(k, v).filter(|&w| !q.has(w)) else {
            let got = v.show(axes);
            return Err(OpError::new(Self::NAME, format!("v needs one width axis, got {got}")));
        };
        let mut wanted_v = shared;
        wanted_v.extend([self.key, width]);
        want_same_axes(Self::NAME, axes, &v.axes, &wanted_v, "v")?;
        if q.has(self.key) || k.has(self.query) {
            let message = "query and key axes need different names; rename one";
            return Err(OpError::new(Self::NAME, message));
        }
        self.check_pattern(axes, q)?;
        if let Some(offset) = ins.get(3).filter(|t| self.offset && !t.axes.is_empty()) {
            let got = offset.show(axes);
            return Err(OpError::new(Self::NAME, format!("the offset is a scalar, got {got}")));
        }
        let o = Type::new(q.dtype, replaced(&q.axes, self.dim, &[width]));
        let lse = Type::new(DType::F32, without(&q.axes, self.dim));
        Ok(vec![o, lse])
    }

    fn grad(&self, site: &GradSite<'_>, b: &mut dyn Build) -> Result<Cotangents, OpError> {
        if self.offset {
            return Err(OpError::new(Self::NAME, "decoding has no gradient"));
        }
        let (o, lse) = (site.outs[0], site.outs[1]);
        let zeros = |b: &mut dyn Build, v: ValueId| {
            let ty = b.ty(v).clone();
            b.constant(0.0, ty)
        };
        let dout = match (site.douts[0], site.douts[1]) {
            (None, None) => return Ok(vec![None; 3]),
            (Some(d), _) => d,
            (None, _) => zeros(b, o)?,
        };
        let mut ins = vec![site.ins[0], site.ins[1], site.ins[2], o, lse, dout];
        ins.extend(site.douts[1]);
        let op = AttendGrad {
            attend: self.clone(),
            dlse: site.douts[1].is_some(),
            dtypes: [site.dtypes[0], site.dtypes[1], site.dtypes[2]],
        };
        Ok(b.emit(op.into(), &ins)?.into_iter().map(Some).collect())
    }

    fn flops(&self, axes: &Axes, ins: &[&Type], _outs: &[Type]) -> u64 {
        let width = self.width(ins[1], ins[2]).map_or(0, |w| axes.size(w));
        self.pairs(axes, ins[0]) * (2 * (axes.size(self.dim) + width) + 4) as u64
    }

    fn sharding(&self, axes: &Axes, ins: &[&Type], _outs: &[Type], label: AxisId) -> Sharding {
        let inner = [Some(self.query), Some(self.key), Some(self.dim), self.width(ins[1], ins[2])];
        Sharding::whole_if(inner.contains(&Some(label)) || !self.pieces_alike(axes, label))
    }

    fn reference(&self, site: &RefSite<'_>, ins: &[&Tensor]) -> Vec<Tensor> {
        let (q, k, v) = (ins[0], ins[1], ins[2]);
        let mut at = Reference::new(self, site, q, k, v);
        at.offset = if self.offset { ins[3].data[0] as usize } else { 0 };
        let mut o = Tensor::full(site.axes, &site.outs[0].axes, 0.0);
        let mut lse = Tensor::full(site.axes, &site.outs[1].axes, 0.0);
        let batch = without(&without(&q.axes, self.query), self.dim);
        let (ob, lb) = (o.strides(&batch), lse.strides(&batch));
        let width = at.lens.3;
        let w = site.outs[0].axes.iter().copied().find(|a| !site.outs[1].axes.contains(a));
        let inner = o.strides(&[self.query, w.expect("o has a width axis")]);
        let lse_row = lse.strides(&[self.query])[0];
        at.rows(q, k, &mut |index, i, p, l| {
            let dot = |s: &[usize]| index.iter().zip(s).map(|(a, b)| a * b).sum::<usize>();
            for d in 0..width {
                let sum: f64 =
                    p.iter().enumerate().map(|(j, p)| p * v.data[at.v_at(index, j, d)]).sum();
                o.data[dot(&ob) + i * inner[0] + d * inner[1]] = sum;
            }
            lse.data[dot(&lb) + i * lse_row] = l;
        });
        vec![o, lse]
    }

    fn expand(&self, ins: &[ValueId], b: &mut dyn Build) -> Result<Option<Vec<ValueId>>, OpError> {
        let (q, k, v) = (ins[0], ins[1], ins[2]);
        let outs = self.infer(b.axes(), &ins.iter().map(|&i| b.ty(i)).collect::<Vec<_>>())?;
        let mut score_axes = without(&b.ty(q).axes, self.dim);
        score_axes.push(self.key);
        let scores = b.einsum_to(&[q, k], &score_axes, DType::F32)?;
        let full = Type::new(DType::F32, score_axes.iter().copied());
        let mut args = vec![scores];
        let offset = if self.offset {
            args.push(ins[3]);
            Expr::In(1)
        } else {
            Expr::Const(0.0)
        };
        let mask = self.pattern_expr(b.axes(), offset);
        let masked = b.map_to(&args, full.clone(), &|s| {
            mask.clone().select(&s[0] * self.scale, f64::NEG_INFINITY)
        })?;
        let top = b.maximum(masked, &[self.key])?;
        let e = b.map_to(&[masked, top], full, &|s| {
            s[1].equals(f64::NEG_INFINITY).select(0.0, (&s[0] - &s[1]).exp())
        })?;
        let z = b.sum(e, &[self.key])?;
        let weighted = b.einsum_to(&[e, v], &outs[0].axes, DType::F32)?;
        let o = b.map_to(&[weighted, z], outs[0].clone(), &|s| {
            s[1].equals(0.0).select(0.0, &s[0] / &s[1])
        })?;
        // ln 0 is not taken, so that a query without keys has a cotangent of 0 and not of NaN.
        let lse = b.map_to(&[top, z], outs[1].clone(), &|s| {
            s[1].equals(0.0).select(f64::NEG_INFINITY, &s[0] + s[1].ln())
        })?;
        Ok(Some(vec![o, lse]))
    }

    fn attrs(&self, axes: &Axes) -> Attrs {
        Attrs::default()
            .with("query", &axes[self.query].name)
            .with("key", &axes[self.key].name)
            .with("dim", &axes[self.dim].name)
            .with("heads", list_attr(axes, &self.heads))
            .with("scale", format!("{:?}", self.scale))
            .with("pattern", &self.pattern)
            .with_if(self.offset, "offset", true)
    }

    fn from_attrs(attrs: &Attrs, axes: &Axes, _outs: &[Type]) -> Result<Self, OpError> {
        let text = attrs.text(Self::NAME, "pattern")?;
        let Some(pattern) = Pattern::parse(text) else {
            return Err(OpError::new(Self::NAME, format!("no such pattern: {text}")));
        };
        Ok(Attend {
            query: attrs.axis(Self::NAME, axes, "query")?,
            key: attrs.axis(Self::NAME, axes, "key")?,
            dim: attrs.axis(Self::NAME, axes, "dim")?,
            heads: attrs.axis_list(Self::NAME, axes, "heads")?,
            scale: attrs.parsed(Self::NAME, "scale")?,
            pattern,
            offset: attrs.flag("offset"),
        })
    }
}
