//! A target that runs every node alone, maps in place where they can be; and a small section.

use aerogel_graph::{Build, DType, Graph, Init, NodeId, Op, OpError, Role, StateId, Type, ValueId};
use aerogel_machine::{Claim, Machine, Section, Sight, Step, Sums, Target};
use aerogel_plan::{Ask, Plan, PlanError, plan};

pub struct Plain;

impl Target for Plain {
    fn name(&self) -> &str {
        "plain"
    }

    fn claims(&self, sight: &Sight<'_>, node: NodeId) -> Result<Vec<Claim>, String> {
        let g = sight.graph;
        let n = g.node(node);
        if matches!(n.op, Op::Norm(_)) {
            return Err("it does not normalise".to_owned());
        }
        if matches!(n.op, Op::Collective(_)) {
            return Err("it is asked for what the planner decides".to_owned());
        }
        let same = |v: &&ValueId| g.ty(**v) == g.ty(n.outs[0]) && matches!(n.op, Op::Map(_));
        Ok(vec![Claim {
            kernel: n.op.name(),
            nodes: vec![node],
            workspace_bytes: if matches!(n.op, Op::Reduce(_)) { 100 } else { 0 },
            in_place: n.ins.iter().filter(same).map(|v| (*v, n.outs[0])).collect(),
            sums: Sums::Fixed,
            nanoseconds: 1.0,
        }])
    }

    fn expands(&self, _op: &Op) -> bool {
        false
    }
}

pub fn planned(asks: Vec<Ask>) -> Result<Plan, PlanError> {
    plan(asks, &Plain, &Machine::cpu(1, 1 << 30))
}

pub fn ask(name: &str, graph: Graph) -> Ask {
    Ask { name: name.to_owned(), graph, calls: 1 }
}

/// The only section of a plan.
pub fn plan_of(build: impl Fn(&mut Graph) -> Result<(), OpError>) -> Plan {
    let mut g = Graph::new();
    build(&mut g).unwrap();
    planned(vec![ask("one", g)]).unwrap()
}

/// The names of the kernels that run, copies into states as `assign`.
pub fn kernels(s: &Section) -> Vec<&'static str> {
    let name = |step: &Step| match step {
        Step::Kernel { claim, .. } => claim.kernel,
        Step::Assign { .. } => "assign",
    };
    s.steps.iter().map(name).collect()
}

/// First byte of a value.
pub fn offset(s: &Section, v: ValueId) -> u64 {
    s.slot(v).expect("a slot").offset
}

/// y = tanh x; z = y + x; s' = 0.9 s + Σ z; t' = s'; outputs z and a window of y.
pub fn graph() -> Graph {
    let mut g = Graph::new();
    build(&mut g).unwrap();
    g
}

fn build(g: &mut Graph) -> Result<(), OpError> {
    let (a, b, c) = (g.axis("a", 40)?, g.axis("b", 16)?, g.axis("c", 10)?);
    let x = g.input("x", DType::F32, &[a, b])?;
    let ty = Type::new(DType::F32, [b]);
    let s = g.state("s", ty.clone(), Role::Optimizer, None, Init::Constant(0.0))?;
    g.state("t", ty, Role::Optimizer, None, Init::Constant(0.0))?;
    let y = g.map(&[x], &|v| v[0].tanh())?;
    let z = g.map(&[y, x], &|v| &v[0] + &v[1])?;
    let sum = g.sum(z, &[a])?;
    let new = g.map(&[s, sum], &|v| 0.9 * &v[0] + &v[1])?;
    let part = g.slice(y, a, 10, c)?;
    g.output("z", z);
    g.output("part", part);
    g.assign(StateId(0), new)?;
    g.assign(StateId(1), new)
}
