//! The graph: values, nodes in topological order, states, inputs, outputs.

use crate::ops::{Build, Op, OpError};
pub use crate::state::{Init, Input, ParamClass, Part, Role, State};
use crate::types::{
    Axes, Axis, AxisId, Cut, Cutter, DType, Mesh, NodeId, StateId, Type, ValueId, is_name,
};
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
    pub(crate) axes: Axes,
    values: Vec<Value>,
    nodes: Vec<Node>,
    pub(crate) inputs: Vec<Input>,
    pub(crate) states: Vec<State>,
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

fn divides(axis: &Axis, pieces: usize) -> Result<(), OpError> {
    if pieces > 0 && axis.size.is_multiple_of(pieces) {
        return Ok(());
    }
    let (name, size) = (&axis.name, axis.size);
    let message = format!("axis `{name}` of {size} does not divide into {pieces} pieces");
    Err(OpError::new("cut", message))
}

#[cfg(test)]
impl Graph {
    /// The parts that no public call can break, for the tests of the verifier.
    pub(crate) fn raw(&mut self) -> (&mut Vec<Node>, &mut Vec<Input>, &mut Vec<State>) {
        (&mut self.nodes, &mut self.inputs, &mut self.states)
    }
}

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
        let (name, parts) = (name.to_owned(), vec![]);
        self.states.push(State { name, role, class, init, value, parts, copies: 1 });
        Ok(value)
    }

    /// Says which tensors lie in a state that is a bucket.
    ///
    /// # Errors
    /// There is no such state, it has more than one axis, or the parts overlap or end beyond it.
    pub fn set_parts(&mut self, state: &str, parts: Vec<Part>) -> Result<(), OpError> {
        let fail = |message: String| Err(OpError::new("parts", message));
        let Some(id) = self.find_state(state) else {
            return fail(format!("there is no state `{state}`"));
        };
        let ty = &self.values[self.states[id.index()].value.index()].ty;
        let &[flat] = ty.axes.as_slice() else {
            return fail(format!("`{state}` is {}, no flat bucket", ty.show(&self.axes)));
        };
        let mut end = 0;
        for part in &parts {
            if part.first < end {
                return fail(format!("`{}` overlaps the part before it", part.name));
            }
            end = part.first + self.axes.count(&part.axes);
        }
        let size = self.axes[flat].global_size();
        if end > size {
            return fail(format!("parts of `{state}` end at {end}, beyond its {size} elements"));
        }
        self.states[id.index()].parts = parts;
        Ok(())
    }

    /// Says how many copies of a state there are.
    pub fn set_copies(&mut self, state: StateId, copies: u32) {
        self.states[state.index()].copies = copies;
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

    /// Makes an axis one of so many pieces of itself; later cuts divide the pieces further.
    ///
    /// # Errors
    /// There is no such axis, or it does not divide.
    pub fn cut_axis(&mut self, name: &str, by: Cutter, pieces: usize) -> Result<(), OpError> {
        let Some(id) = self.axes.find(name) else {
            return Err(OpError::new("cut", format!("there is no axis `{name}`")));
        };
        divides(&self.axes[id], pieces)?;
        self.axes.cut(id, Cut { by, pieces });
        Ok(())
    }

    /// Declares an axis that counts the elements of a bucket, or finds it.
    ///
    /// # Errors
    /// The name is another axis; the extent is 0.
    pub fn storage_axis(&mut self, name: &str, size: usize) -> Result<AxisId, OpError> {
        want_name("axis", name)?;
        let axis = Axis { storage: true, ..Axis::whole(name, size) };
        let taken = || OpError::new("axis", format!("`{name}` is another axis already"));
        self.axes.intern(axis).filter(|_| size > 0).ok_or_else(taken)
    }

    /// Declares an axis that is one of so many pieces of another.
    ///
    /// # Errors
    /// It does not divide, or the name is another axis.
    pub fn piece_of(
        &mut self,
        axis: AxisId,
        name: &str,
        by: Cutter,
        pieces: usize,
    ) -> Result<AxisId, OpError> {
        want_name("axis", name)?;
        divides(&self.axes[axis], pieces)?;
        let mut piece = Axis { name: name.to_owned(), ..self.axes[axis].clone() };
        piece.size /= pieces;
        piece.cuts.push(Cut { by, pieces });
        let taken = || OpError::new("axis", format!("`{name}` is another axis already"));
        self.axes.intern(piece).ok_or_else(taken)
    }

    /// Tells the graph of the ranks that it is for.
    pub fn set_mesh(&mut self, mesh: Mesh) {
        self.axes.mesh = mesh;
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

    pub(crate) fn push(&mut self, ty: Type, def: Def) -> ValueId {
        self.values.push(Value { ty, def });
        ValueId(self.values.len() as u32 - 1)
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
        if let Some(id) = self.axes.intern(Axis::whole(name, size)) {
            return Ok(id);
        }
        let old = self.axes.iter().find(|(_, a)| a.name == name).map(|(_, a)| (a.size, a.pieces()));
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

    fn ins_of(&self, value: ValueId) -> &[ValueId] {
        match self.values[value.index()].def {
            Def::Node(n, _) => &self.nodes[n.index()].ins,
            _ => &[],
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
