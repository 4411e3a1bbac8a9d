//! The parser of the text form.

use super::{CLASSES, ROLES};
use crate::graph::{Graph, Init, Part, Phase};
use crate::ops::{Attrs, Build, Op};
use crate::types::{Cutter, DType, MESH_AXES, Mesh, Type, ValueId};
use std::collections::HashMap;
use std::sync::Arc;

/// A line that is not of the text form.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {message}")]
pub struct TextError {
    /// Counted from 1.
    pub line: usize,
    /// What is wrong with it.
    pub message: String,
}

type Parsed<T> = Result<T, String>;

/// Parses a graph.
///
/// # Errors
/// The first line that does not fit, and why.
pub fn parse(text: &str) -> Result<Graph, TextError> {
    let mut p = Parser { g: Graph::new(), values: HashMap::new() };
    let mut lines = text.lines().enumerate();
    if lines.next().map(|(_, l)| l.trim()) != Some("graph v1") {
        let message = "the first line must be `graph v1`".to_owned();
        return Err(TextError { line: 1, message });
    }
    for (n, line) in lines {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        p.line(line).map_err(|message| TextError { line: n + 1, message })?;
    }
    p.g.at(&"".into(), Phase::Forward);
    Ok(p.g)
}

struct Parser {
    g: Graph,
    values: HashMap<String, ValueId>,
}

fn cut<'a>(text: &'a str, at: &str) -> Parsed<(&'a str, &'a str)> {
    let (a, b) = text.split_once(at).ok_or_else(|| format!("wanted `{at}` in `{text}`"))?;
    Ok((a.trim(), b.trim()))
}

impl Parser {
    fn line(&mut self, line: &str) -> Parsed<()> {
        let (word, rest) = line.split_once(' ').ok_or("wanted a declaration or a node")?;
        match word {
            "mesh" => self.mesh(rest),
            "axis" => self.axis(rest),
            "input" => self.input(rest),
            "state" => self.state(rest),
            "part" => self.part(rest),
            "output" => {
                let (name, v) = cut(rest, "=")?;
                let v = self.value(v)?;
                self.g.output(name, v);
                Ok(())
            }
            "assign" => {
                let (name, v) = cut(rest, "=")?;
                let v = self.value(v)?;
                let state = self.g.find_state(name).ok_or_else(|| format!("no state `{name}`"))?;
                self.g.assign(state, v).map_err(|e| e.to_string())
            }
            _ => self.node(line),
        }
    }

    fn define(&mut self, number: &str, v: ValueId) -> Parsed<()> {
        if !number.starts_with('%') {
            return Err(format!("wanted a value such as `%0`, got `{number}`"));
        }
        match self.values.insert(number.to_owned(), v) {
            None => Ok(()),
            Some(_) => Err(format!("value `{number}` is defined twice")),
        }
    }

    fn value(&self, text: &str) -> Parsed<ValueId> {
        self.values.get(text).copied().ok_or_else(|| format!("value `{text}` is not defined"))
    }

    fn mesh(&mut self, rest: &str) -> Parsed<()> {
        let axes = rest.split_whitespace().map(|word| {
            let (name, size) = cut(word, "=")?;
            Ok((name.to_owned(), extent(size).ok().filter(|n| *n > 0).ok_or("wanted a size")?))
        });
        let mesh = Mesh(axes.collect::<Parsed<_>>()?);
        if mesh.0.len() > MESH_AXES {
            return Err(format!("a mesh has at most {MESH_AXES} axes, got {}", mesh.0.len()));
        }
        self.g.set_mesh(mesh);
        Ok(())
    }

    fn axis(&mut self, rest: &str) -> Parsed<()> {
        let (name, size) = cut(rest, "=")?;
        let (size, by) = size.split_once(" by ").unwrap_or((size, ""));
        let (size, total) = match size.split_once(" of ") {
            Some((s, t)) => (s, Some(extent(t)?)),
            None => (size, None),
        };
        let (size, storage) = match size.strip_suffix(" storage") {
            Some(size) => (extent(size)?, true),
            None => (extent(size)?, false),
        };
        let total = total.unwrap_or(size);
        if self.g.axes().find(name).is_some() {
            return Err(format!("axis `{name}` is declared twice"));
        }
        if size == 0 || !total.is_multiple_of(size) {
            return Err(format!("an extent of {size} is no piece of {total}"));
        }
        let made =
            if storage { self.g.storage_axis(name, total) } else { self.g.axis(name, total) };
        made.map_err(|e| e.to_string())?;
        let by: Vec<(Cutter, usize)> = match by {
            "" if size == total => vec![],
            "" => vec![(Cutter::Time, total / size)],
            list => list.split_whitespace().map(|w| self.cutter(w)).collect::<Parsed<_>>()?,
        };
        if by.iter().try_fold(size, |n, c| n.checked_mul(c.1)) != Some(total) {
            return Err(format!("the cuts of axis `{name}` do not make {total} of {size}"));
        }
        by.into_iter()
            .try_for_each(|(by, n)| self.g.cut_axis(name, by, n))
            .map_err(|e| e.to_string())
    }

    /// `time:4`, `#3:8`, `data:2`.
    fn cutter(&self, word: &str) -> Parsed<(Cutter, usize)> {
        let (by, pieces) = cut(word, ":")?;
        let by = match by.strip_prefix('#') {
            Some(piece) => Cutter::Fixed(extent(piece)?),
            None if by == "time" => Cutter::Time,
            None => {
                let axis = self.g.axes().mesh.find(by);
                Cutter::Mesh(axis.ok_or_else(|| format!("the mesh has no axis `{by}`"))?)
            }
        };
        Ok((by, extent(pieces)?))
    }

    /// `f32[batch seq]` or `f32[batch=4 seq=8]`.
    fn ty(&self, text: &str) -> Parsed<Type> {
        let (dtype, axes) = cut(text.strip_suffix(']').ok_or("wanted a type in brackets")?, "[")?;
        let dtype = DType::parse(dtype).ok_or_else(|| format!("`{dtype}` is no dtype"))?;
        let mut list = vec![];
        for part in axes.split_whitespace() {
            let (name, extent) = part.split_once('=').unwrap_or((part, ""));
            let axis =
                self.g.axes().find(name).ok_or_else(|| format!("axis `{name}` is not declared"))?;
            let size = self.g.axes().size(axis);
            if !extent.is_empty() && extent.parse() != Ok(size) {
                return Err(format!("axis `{name}` is {size} long, got `{extent}`"));
            }
            list.push(axis);
        }
        Ok(Type::new(dtype, list))
    }

    fn input(&mut self, rest: &str) -> Parsed<()> {
        let (number, rest) = cut(rest, "=")?;
        let (name, ty) = cut(rest, ":")?;
        let ty = self.ty(ty)?;
        let v = self.g.input(name, ty.dtype, &ty.axes).map_err(|e| e.to_string())?;
        self.define(number, v)
    }

    fn state(&mut self, rest: &str) -> Parsed<()> {
        let (number, rest) = cut(rest, "=")?;
        let (name, rest) = cut(rest, ":")?;
        let end = rest.find(']').ok_or("wanted a type")? + 1;
        let ty = self.ty(&rest[..end])?;
        let mut words = rest[end..].split_whitespace().peekable();
        let role = words.next().and_then(|word| ROLES.iter().find(|(_, w)| *w == word));
        let role = role.ok_or("wanted a role after the type")?.0;
        let class = words.peek().and_then(|word| CLASSES.iter().find(|(_, w)| w == word));
        let class = class.map(|(c, _)| *c);
        if class.is_some() {
            words.next();
        }
        let init = init(words.next())?;
        let copies = words.next_if(|w| w.starts_with('x'));
        let copies = copies.map_or(Ok(1), |w| extent(&w[1..]))?;
        if let Some(word) = words.next() {
            return Err(format!("`{word}` is too much"));
        }
        let v = self.g.state(name, ty, role, class, init).map_err(|e| e.to_string())?;
        if let Some(id) = self.g.find_state(name) {
            self.g.set_copies(id, copies as u32);
        }
        self.define(number, v)
    }

    /// `part bucket.h.0 = h.0.attn.q.weight: [kv group qk embed] at 128 weight normal(0.02)`.
    fn part(&mut self, rest: &str) -> Parsed<()> {
        let (state, rest) = cut(rest, "=")?;
        let (name, rest) = cut(rest, ":")?;
        let (axes, rest) = cut(rest, "]")?;
        let axes = self.ty(&format!("f32{axes}]"))?.axes;
        let mut words = rest.split_whitespace().peekable();
        let first = match (words.next(), words.next()) {
            (Some("at"), Some(first)) => extent(first)?,
            _ => return Err("wanted `at` and the first element".to_owned()),
        };
        let class = words.peek().and_then(|word| CLASSES.iter().find(|(_, w)| w == word));
        let class = class.map(|(c, _)| *c);
        if class.is_some() {
            words.next();
        }
        let init = init(words.next())?;
        let known = self.g.states().iter().find(|s| s.name == state);
        let mut parts = known.ok_or_else(|| format!("no state `{state}`"))?.parts.clone();
        parts.push(Part { name: name.to_owned(), class, init, axes, first });
        self.g.set_parts(state, parts).map_err(|e| e.to_string())
    }

    fn node(&mut self, line: &str) -> Parsed<()> {
        let (left, right) = cut(line, "] = ")?;
        let left = format!("{left}]");
        let mut numbers = vec![];
        let mut types = vec![];
        for part in left.split(", ") {
            let (number, ty) = cut(part, ":")?;
            numbers.push(number);
            types.push(self.ty(ty)?);
        }
        let (call, attrs, tail) = match right.find('{') {
            Some(open) => {
                let close = right.rfind('}').filter(|c| *c > open).ok_or("wanted `}`")?;
                (&right[..open], &right[open + 1..close], &right[close + 1..])
            }
            None => {
                let end = right.find(['@', '!']).unwrap_or(right.len());
                (&right[..end], "", &right[end..])
            }
        };
        let mut words = call.split_whitespace();
        let name = words.next().ok_or("wanted an op")?;
        let ins = words.map(|w| self.value(w)).collect::<Parsed<Vec<_>>>()?;
        let (scope, phase) = place(tail)?;
        self.g.at(&scope, phase);
        let attrs = split_attrs(attrs)?;
        let op = Op::from_attrs(name, &attrs, self.g.axes(), &types).map_err(|e| e.to_string())?;
        let known = op.attrs(self.g.axes());
        if let Some((key, value)) = attrs.0.iter().find(|(k, _)| known.get(k).is_none()) {
            return Err(format!("{name} takes no `{key}={value}` here"));
        }
        let outs = self.g.emit(op, &ins).map_err(|e| e.to_string())?;
        if outs.len() != numbers.len() || outs.iter().zip(&types).any(|(v, t)| self.g.ty(*v) != t) {
            return Err(format!("{name} gives other types than the line declares"));
        }
        numbers.iter().zip(outs).try_for_each(|(number, v)| self.define(number, v))
    }
}

fn extent(s: &str) -> Parsed<usize> {
    s.trim().parse().map_err(|_| format!("`{s}` is no extent"))
}

fn init(word: Option<&str>) -> Parsed<Init> {
    let parts = word.and_then(|w| w.strip_suffix(')')).and_then(|w| w.split_once('('));
    match parts.map(|(kind, x)| (kind, x.parse::<f64>())) {
        Some(("constant", Ok(c))) => Ok(Init::Constant(c)),
        Some(("normal", Ok(std))) => Ok(Init::Normal(std)),
        _ => Err("wanted constant(..) or normal(..)".to_owned()),
    }
}

fn place(tail: &str) -> Parsed<(Arc<str>, Phase)> {
    let (mut scope, mut phase) = ("", Phase::Forward);
    for word in tail.split_whitespace() {
        if let Some(s) = word.strip_prefix('@') {
            scope = s;
        } else if let Some(p) = word.strip_prefix('!') {
            let phases = [Phase::Forward, Phase::Backward, Phase::Update];
            phase = phases
                .into_iter()
                .find(|x| x.name() == p)
                .ok_or_else(|| format!("`{p}` is no phase"))?;
        } else {
            return Err(format!("`{word}` is neither a scope nor a phase"));
        }
    }
    Ok((scope.into(), phase))
}

/// `a=1 b=[x y] f="..."`: values end at a space outside of quotes and brackets.
fn split_attrs(text: &str) -> Parsed<Attrs> {
    let mut attrs = Attrs::default();
    let mut rest = text.trim();
    while !rest.is_empty() {
        let (key, after) =
            rest.split_once('=').ok_or_else(|| format!("wanted key=value: {rest}"))?;
        let end = match after.chars().next() {
            Some('"') => after[1..].find('"').map(|e| e + 2),
            Some('[') => after.find(']').map(|e| e + 1),
            _ => Some(after.find(' ').unwrap_or(after.len())),
        };
        let end = end.ok_or_else(|| format!("`{key}` does not end"))?;
        attrs = attrs.with(key, after[..end].trim_matches('"'));
        rest = after[end..].trim_start();
    }
    Ok(attrs)
}
