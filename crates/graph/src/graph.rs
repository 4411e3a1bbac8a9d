//! The graph: values, nodes in topological order, states, inputs, outputs.

use crate::ops::{Build, Op, OpError};
pub use crate::state::{Init, Input, ParamClass, Role, State};
use crate::types::{Axes, AxisId, DType, NodeId, StateId, Type, ValueId, is_name};
use std::sync::Arc;

/// Where a value comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Def {
    /// An input of the graph, by position.
    Input(u32),
    /// A state, as it is at the start of the section.
    State(StateId),
    /// An output of a node.
    Node(NodeId, u32),
}

/// A value: what it is and where it comes from.
#[derive(Clone, Debug, PartialEq)]
pub struct Value {
    /// Dtype and axes.
    pub ty: Type,
    /// Definition.
    pub def: Def,
}

/// Which part of a step a node belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Phase {
    /// Model and loss.
    Forward,
    /// Gradients.
    Backward,
    /// Optimizer.
    Update,
}

impl Phase {
    /// The word of the text form.
    pub fn name(self) -> &'static str {
        match self {
            Phase::Forward => "forward",
            Phase::Backward => "backward",
            Phase::Update => "update",
        }
    }
}

/// An op applied to values.
#[derive(Clone, Debug, PartialEq)]
pub struct Node {
    /// The operation.
    pub op: Op,
    /// Inputs.
    pub ins: Vec<ValueId>,
    /// Outputs.
    pub outs: Vec<ValueId>,
    /// Where in the model, as a dotted path.
    pub scope: Arc<str>,
    /// Part of the step.
    pub phase: Phase,
}

/// One section of a step: straight-line, in topological order.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Graph {
    axes: Axes,
    values: Vec<Value>,
    nodes: Vec<Node>,
    inputs: Vec<Input>,
    states: Vec<State>,
    /// Values that the host reads after the section.
    pub outputs: Vec<(String, ValueId)>,
    /// New values of states at section end.
    pub assigns: Vec<(StateId, ValueId)>,
    scope: Cursor,
}

/// Where nodes are appended: builder state, no part of the graph's meaning.
#[derive(Clone, Debug)]
struct Cursor {
    path: Arc<str>,
    phase: Phase,
}

impl Default for Cursor {
    fn default() -> Self {
        Cursor { path: "".into(), phase: Phase::Forward }
    }
}

impl PartialEq for Cursor {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

fn want_name(what: &str, name: &str) -> Result<(), OpError> {
    if is_name(name) {
        return Ok(());
    }
    Err(OpError::new(what, format!("`{name}` is no name: it is empty, or has a space or a sign")))
}

#[cfg(test)]
impl Graph {
    /// The parts that no public call can break, for the tests of the verifier.
    pub(crate) fn raw(&mut self) -> (&mut Vec<Node>, &mut Vec<Input>, &mut Vec<State>) {
        (&mut self.nodes, &mut self.inputs, &mut self.states)
    }
}

/// What a rewrite does with a node.
pub type Rewritten = Result<Option<Vec<ValueId>>, OpError>;

impl Graph {
    /// An empty graph.
    pub fn new() -> Self {
        Graph::default()
    }

    /// Declares an input.
    ///
    /// # Errors
    /// The name is taken, or is none that the text form can carry.
    pub fn input(&mut self, name: &str, dtype: DType, axes: &[AxisId]) -> Result<ValueId, OpError> {
        want_name("input", name)?;
        if self.find_input(name).is_some() {
            return Err(OpError::new("input", format!("`{name}` is declared twice")));
        }
        let def = Def::Input(self.inputs.len() as u32);
        let value = self.push(Type::new(dtype, axes.iter().copied()), def);
        self.inputs.push(Input { name: name.to_owned(), value });
        Ok(value)
    }

    /// Declares a state; gives its value at section start.
    ///
    /// # Errors
    /// The name is taken, or is none that the text form can carry.
    pub fn state(
        &mut self,
        name: &str,
        ty: Type,
        role: Role,
        class: Option<ParamClass>,
        init: Init,
    ) -> Result<ValueId, OpError> {
        want_name("state", name)?;
        if self.find_state(name).is_some() {
            return Err(OpError::new("state", format!("`{name}` is declared twice")));
        }
        let value = self.push(ty, Def::State(StateId(self.states.len() as u32)));
        self.states.push(State { name: name.to_owned(), role, class, init, value });
        Ok(value)
    }

    /// Declares a trained tensor in f32.
    ///
    /// # Errors
    /// The name is taken, or is none that the text form can carry.
    pub fn parameter(
        &mut self,
        name: &str,
        class: ParamClass,
        axes: &[AxisId],
        init: Init,
    ) -> Result<ValueId, OpError> {
        let ty = Type::new(DType::F32, axes.iter().copied());
        self.state(name, ty, Role::Parameter, Some(class), init)
    }

    /// Declares the new value of a state at section end.
    ///
    /// # Errors
    /// The value's type is not the state's, or the state is assigned twice.
    pub fn assign(&mut self, state: StateId, value: ValueId) -> Result<(), OpError> {
        let s = &self.states[state.index()];
        let (wanted, got) = (&self.values[s.value.index()].ty, &self.values[value.index()].ty);
        if wanted != got {
            let (w, g) = (wanted.show(&self.axes), got.show(&self.axes));
            return Err(OpError::new("assign", format!("`{}` is {w}, got {g}", s.name)));
        }
        if self.assigns.iter().any(|(id, _)| *id == state) {
            return Err(OpError::new("assign", format!("`{}` is assigned twice", s.name)));
        }
        self.assigns.push((state, value));
        Ok(())
    }

    /// Declares an output that the host reads.
    pub fn output(&mut self, name: &str, value: ValueId) {
        self.outputs.push((name.to_owned(), value));
    }

    /// Runs `f` with `part` appended to the scope path.
    ///
    /// # Errors
    /// Those of `f`; a part that the text form cannot carry.
    pub fn scope<T>(
        &mut self,
        part: &str,
        f: impl FnOnce(&mut Self) -> Result<T, OpError>,
    ) -> Result<T, OpError> {
        want_name("scope", part)?;
        let outer = self.scope.path.clone();
        let inner = if outer.is_empty() { part.to_owned() } else { format!("{outer}.{part}") };
        self.scope.path = inner.into();
        let result = f(self);
        self.scope.path = outer;
        result
    }

    /// The current scope path with a name appended: how parameters and streams are named.
    pub fn path(&self, name: &str) -> String {
        if self.scope.path.is_empty() {
            return name.to_owned();
        }
        format!("{}.{name}", self.scope.path)
    }

    /// Sets scope and phase of the nodes that follow.
    pub fn at(&mut self, scope: &Arc<str>, phase: Phase) {
        self.scope = Cursor { path: scope.clone(), phase };
    }

    /// Scope and phase of the nodes that follow.
    pub(crate) fn cursor(&self) -> (Arc<str>, Phase) {
        (self.scope.path.clone(), self.scope.phase)
    }

    /// Sets the phase of the nodes that follow.
    pub fn phase(&mut self, phase: Phase) {
        self.scope.phase = phase;
    }

    /// Makes an axis one of `pieces` pieces of itself.
    ///
    /// # Errors
    /// There is no such axis, or it does not divide.
    pub fn cut_axis(&mut self, name: &str, pieces: usize) -> Result<(), OpError> {
        let Some(id) = self.axes.find(name) else {
            return Err(OpError::new("cut", format!("there is no axis `{name}`")));
        };
        let size = self.axes.size(id);
        if pieces == 0 || !size.is_multiple_of(pieces) {
            let message = format!("axis `{name}` of {size} does not divide into {pieces} pieces");
            return Err(OpError::new("cut", message));
        }
        self.axes.cut(id, pieces);
        Ok(())
    }

    /// All values, by id.
    pub fn values(&self) -> &[Value] {
        &self.values
    }

    /// All nodes, in order.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// All inputs.
    pub fn inputs(&self) -> &[Input] {
        &self.inputs
    }

    /// All states.
    pub fn states(&self) -> &[State] {
        &self.states
    }

    /// One value.
    pub fn value(&self, id: ValueId) -> &Value {
        &self.values[id.index()]
    }

    /// One node.
    pub fn node(&self, id: NodeId) -> &Node {
        &self.nodes[id.index()]
    }

    /// The state of that name.
    pub fn find_state(&self, name: &str) -> Option<StateId> {
        self.states.iter().position(|s| s.name == name).map(|i| StateId(i as u32))
    }

    /// The input of that name.
    pub fn find_input(&self, name: &str) -> Option<&Input> {
        self.inputs.iter().find(|i| i.name == name)
    }

    /// The output of that name.
    pub fn find_output(&self, name: &str) -> Option<ValueId> {
        self.outputs.iter().find(|(n, _)| n == name).map(|(_, v)| *v)
    }

    /// Types of a node's inputs.
    pub fn in_types(&self, node: &Node) -> Vec<&Type> {
        node.ins.iter().map(|&v| &self.value(v).ty).collect()
    }

    /// Types of a node's outputs.
    pub fn out_types(&self, node: &Node) -> Vec<Type> {
        node.outs.iter().map(|&v| self.value(v).ty.clone()).collect()
    }

    /// The nodes that read each value, ascending, once each.
    pub fn readers(&self) -> Vec<Vec<NodeId>> {
        let mut readers = vec![vec![]; self.values.len()];
        for (n, node) in self.nodes.iter().enumerate() {
            for v in &node.ins {
                let list: &mut Vec<NodeId> = &mut readers[v.index()];
                if list.last() != Some(&NodeId(n as u32)) {
                    list.push(NodeId(n as u32));
                }
            }
        }
        readers
    }

    fn push(&mut self, ty: Type, def: Def) -> ValueId {
        self.values.push(Value { ty, def });
        ValueId(self.values.len() as u32 - 1)
    }

    /// The same inputs, states and axes without nodes; and where each old value went.
    fn header(&self) -> (Graph, Vec<Option<ValueId>>) {
        let mut out = Graph { axes: self.axes.clone(), ..Graph::default() };
        let mut moved = vec![None; self.values.len()];
        for (old, value) in self.values.iter().enumerate() {
            match value.def {
                Def::Input(i) => {
                    let id = out.push(value.ty.clone(), value.def);
                    let name = self.inputs[i as usize].name.clone();
                    out.inputs.push(Input { name, value: id });
                    moved[old] = Some(id);
                }
                Def::State(s) => {
                    let id = out.push(value.ty.clone(), value.def);
                    out.states.push(State { value: id, ..self.states[s.index()].clone() });
                    moved[old] = Some(id);
                }
                Def::Node(..) => {}
            }
        }
        (out, moved)
    }

    /// The graph again, node by node. `f` gets the new graph, the old node and its inputs in the
    /// new graph, and answers with the values that stand for the node's outputs, or with `None`
    /// for the node as it is.
    ///
    /// # Errors
    /// Those of `f`, and of nodes that no longer fit.
    pub fn rewrite(
        &self,
        f: impl FnMut(&mut Graph, &Node, &[ValueId]) -> Rewritten,
    ) -> Result<Graph, OpError> {
        self.rebuilt(&vec![true; self.nodes.len()], f)
    }

    /// `rewrite` of the nodes that are kept; the others are gone, with all that they read.
    fn rebuilt(
        &self,
        keep: &[bool],
        mut f: impl FnMut(&mut Graph, &Node, &[ValueId]) -> Rewritten,
    ) -> Result<Graph, OpError> {
        let (mut out, mut moved) = self.header();
        let find = |moved: &[Option<ValueId>], v: ValueId| {
            moved[v.index()]
                .ok_or_else(|| OpError::new("rewrite", "a value was dropped but is read"))
        };
        for (node, _) in self.nodes.iter().zip(keep).filter(|(_, keep)| **keep) {
            let ins = node.ins.iter().map(|&v| find(&moved, v)).collect::<Result<Vec<_>, _>>()?;
            out.at(&node.scope, node.phase);
            let outs = match f(&mut out, node, &ins)? {
                Some(outs) => outs,
                None => out.emit(node.op.clone(), &ins)?,
            };
            for (old, new) in node.outs.iter().zip(outs) {
                moved[old.index()] = Some(new);
            }
        }
        for (name, v) in &self.outputs {
            let v = find(&moved, *v)?;
            out.outputs.push((name.clone(), v));
        }
        for (state, v) in &self.assigns {
            out.assign(*state, find(&moved, *v)?)?;
        }
        out.at(&"".into(), Phase::Forward);
        Ok(out)
    }

    /// The graph without nodes that no output or assignment needs.
    ///
    /// # Errors
    /// None for a verified graph.
    pub fn pruned(&self) -> Result<Graph, OpError> {
        let mut live = vec![false; self.values.len()];
        let roots = self.outputs.iter().map(|o| o.1).chain(self.assigns.iter().map(|a| a.1));
        roots.for_each(|v| live[v.index()] = true);
        let mut keep = vec![false; self.nodes.len()];
        for (n, node) in self.nodes.iter().enumerate().rev() {
            keep[n] = node.outs.iter().any(|v| live[v.index()]);
            if keep[n] {
                node.ins.iter().for_each(|v| live[v.index()] = true);
            }
        }
        self.rebuilt(&keep, |_, _, _| Ok(None))
    }

    /// Coarse ops (attend, norm, linear_ce, ...) in primitive ones, where `which` says so.
    ///
    /// # Errors
    /// None for a verified graph.
    pub fn expanded(&self, which: impl Fn(&Node) -> bool) -> Result<Graph, OpError> {
        self.rewrite(|out, node, ins| if which(node) { node.op.expand(ins, out) } else { Ok(None) })
    }
}

impl Build for Graph {
    fn axes(&self) -> &Axes {
        &self.axes
    }

    fn axis(&mut self, name: &str, size: usize) -> Result<AxisId, OpError> {
        want_name("axis", name)?;
        if size == 0 {
            return Err(OpError::new("axis", format!("`{name}` needs an extent of at least 1")));
        }
        if let Some(id) = self.axes.intern(name, size, 1) {
            return Ok(id);
        }
        let old = self.axes.iter().find(|(_, a)| a.name == name).map(|(_, a)| (a.size, a.pieces));
        let (old, pieces) = old.unwrap_or((0, 1));
        let message =
            format!("`{name}` is {old} long already (piece 1 of {pieces}), wanted {size}");
        Err(OpError::new("axis", message))
    }

    fn ty(&self, value: ValueId) -> &Type {
        &self.values[value.index()].ty
    }

    fn op_of(&self, value: ValueId) -> Option<&Op> {
        match self.values[value.index()].def {
            Def::Node(n, _) => Some(&self.nodes[n.index()].op),
            _ => None,
        }
    }

    fn emit(&mut self, op: Op, ins: &[ValueId]) -> Result<Vec<ValueId>, OpError> {
        let known = |v: &ValueId| self.values.get(v.index()).map(|value| &value.ty);
        let Some(types) = ins.iter().map(known).collect::<Option<Vec<&Type>>>() else {
            return Err(OpError::new(op.name(), "reads a value that the graph does not have"));
        };
        let outs = op.infer(&self.axes, &types).map_err(|mut e| {
            e.scope = self.scope.path.to_string();
            e
        })?;
        let node = NodeId(self.nodes.len() as u32);
        let outs: Vec<ValueId> =
            (0u32..).zip(outs).map(|(i, ty)| self.push(ty, Def::Node(node, i))).collect();
        self.nodes.push(Node {
            op,
            ins: ins.to_vec(),
            outs: outs.clone(),
            scope: self.scope.path.clone(),
            phase: self.scope.phase,
        });
        Ok(outs)
    }

    fn widen(&mut self, node: NodeId, op: Op) -> Result<Vec<ValueId>, OpError> {
        let old = &self.nodes[node.index()];
        let types = self.in_types(old);
        let outs = op.infer(&self.axes, &types)?;
        let kept = self.out_types(old);
        if outs.len() < kept.len() || outs[..kept.len()] != kept {
            return Err(OpError::new(op.name(), "the wider op does not keep the outputs"));
        }
        let extra: Vec<ValueId> = (0u32..)
            .zip(outs)
            .skip(kept.len())
            .map(|(i, ty)| self.push(ty, Def::Node(node, i)))
            .collect();
        let node = &mut self.nodes[node.index()];
        node.op = op;
        node.outs.extend(&extra);
        Ok(extra)
    }
}
