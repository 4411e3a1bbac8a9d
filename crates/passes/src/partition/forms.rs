//! The values of the new graph, each in the layout that its node gives it, and in those that are
//! made of it for its readers.

use super::cuts::Cuts;
use aerogel_graph::ops::{Collective, Exchange, Merge};
use aerogel_graph::{Build, Graph, Op, OpError, Phase, ValueId};
use std::collections::HashMap;

/// How a value lies over the ranks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Layout {
    /// The same everywhere.
    Whole,
    /// A piece of an axis that is cut where it stands.
    Cut,
    /// A piece of the sequence.
    Seq,
    /// A term: the value is their sum over ranks.
    Partial,
}

/// A value of the new graph, and how it lies.
#[derive(Clone, Copy, Debug)]
pub struct Form {
    /// In the new graph.
    pub value: ValueId,
    /// Over the ranks.
    pub layout: Layout,
}

/// The new graph under construction.
pub struct Forms {
    /// It.
    pub out: Graph,
    /// What is cut.
    pub cuts: Cuts,
    /// The form of each old value: as its node gives it, or, of terms, as it was summed.
    home: Vec<Option<Form>>,
    /// What was made of it: gathers once a phase, since the backward gathers again what the forward
    /// did, and the piece of a whole once.
    made: HashMap<(ValueId, Phase), ValueId>,
}

impl Forms {
    /// Inputs and states: pieces where an axis is cut, else whole.
    pub fn new(g: &Graph, cuts: Cuts) -> Forms {
        let (out, moved) = g.header();
        let form = |value: Option<ValueId>| {
            let value = value?;
            let cut = cuts.of(out.ty(value)).next().is_some();
            Some(Form { value, layout: if cut { Layout::Cut } else { Layout::Whole } })
        };
        let home = moved.into_iter().map(form).collect();
        Forms { out, cuts, home, made: HashMap::new() }
    }

    /// Says where an old value went.
    pub fn set(&mut self, old: ValueId, value: ValueId, layout: Layout) {
        self.home[old.index()] = Some(Form { value, layout });
    }

    /// The form of an old value.
    ///
    /// # Errors
    /// Nodes are in no topological order.
    pub fn home(&self, old: ValueId) -> Result<Form, OpError> {
        let form = self.home.get(old.index()).copied().flatten();
        form.ok_or_else(|| OpError::new("partition", "a node reads a value of a later node"))
    }

    /// The value whole, or as a piece where that is what it is.
    pub fn whole(&mut self, old: ValueId, phase: Phase) -> Result<ValueId, OpError> {
        let form = self.home(old)?;
        match (form.layout, self.cuts.seq) {
            (Layout::Partial, _) => {
                let value = self.exchange(form.value, Exchange::AllReduce(Merge::Sum))?;
                self.set(old, value, Layout::Whole);
                Ok(value)
            }
            (Layout::Seq, Some(seq)) => {
                let gather = Exchange::AllGather { axis: seq.piece, into: seq.whole };
                self.made_once(old, form, phase, gather)
            }
            _ => Ok(form.value),
        }
    }

    /// The value along a piece of the sequence, where it has the sequence; else whole.
    pub fn along_seq(&mut self, old: ValueId, phase: Phase) -> Result<ValueId, OpError> {
        let form = self.home(old)?;
        if form.layout == Layout::Seq {
            return Ok(form.value);
        }
        let Some(seq) = self.cuts.seq.filter(|s| self.out.ty(form.value).has(s.whole)) else {
            return self.whole(old, phase);
        };
        if form.layout == Layout::Partial {
            let scatter = Exchange::ReduceScatter { axis: seq.whole, into: seq.piece };
            let value = self.exchange(form.value, scatter)?;
            self.set(old, value, Layout::Seq);
            return Ok(value);
        }
        // One for all phases: a piece that waits for the backward is less than what it is of.
        let keep = Exchange::Keep { axis: seq.whole, into: seq.piece };
        self.made_once(old, form, Phase::Forward, keep)
    }

    fn made_once(
        &mut self,
        old: ValueId,
        form: Form,
        phase: Phase,
        exchange: Exchange,
    ) -> Result<ValueId, OpError> {
        if let Some(&value) = self.made.get(&(old, phase)) {
            return Ok(value);
        }
        let value = self.exchange(form.value, exchange)?;
        self.made.insert((old, phase), value);
        Ok(value)
    }

    /// A collective among the ranks of the mesh axis.
    pub fn exchange(&mut self, value: ValueId, exchange: Exchange) -> Result<ValueId, OpError> {
        let op = Collective { exchange, over: [self.cuts.over].into_iter().collect() };
        Ok(self.out.emit(Op::Collective(op), &[value])?[0])
    }
}
