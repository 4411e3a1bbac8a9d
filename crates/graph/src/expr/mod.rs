//! The scalar expression of a `map`: a small language with a symbolic derivative.
//!
//! Expressions are trees over the map's inputs (`$0`, `$1`, ...), with the intrinsics `rand`
//! (a counter-based draw at the element's global logical index) and `coord` (the element's global
//! coordinate along an axis). Comparisons give 0 or 1 and have no gradient.

mod derive;
mod parse;

pub use parse::{ExprError, parse};

use crate::types::{Axes, AxisId};
use std::fmt::Write as _;
use std::ops;

/// Functions of one argument.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[allow(missing_docs)] // the variants are their own names
pub enum Un {
    Neg,
    Exp,
    Ln,
    Tanh,
    Sqrt,
    Rsqrt,
    Recip,
    Sigmoid,
    Erf,
    Abs,
    Floor,
    Sin,
    Cos,
}

/// Functions of two arguments.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[allow(missing_docs)] // the variants are their own names
pub enum Bin {
    Add,
    Sub,
    Mul,
    Div,
    Min,
    Max,
    Pow,
    Lt,
    Le,
    Eq,
}

const UNARY: [(Un, &str); 13] = [
    (Un::Neg, "neg"),
    (Un::Exp, "exp"),
    (Un::Ln, "ln"),
    (Un::Tanh, "tanh"),
    (Un::Sqrt, "sqrt"),
    (Un::Rsqrt, "rsqrt"),
    (Un::Recip, "recip"),
    (Un::Sigmoid, "sigmoid"),
    (Un::Erf, "erf"),
    (Un::Abs, "abs"),
    (Un::Floor, "floor"),
    (Un::Sin, "sin"),
    (Un::Cos, "cos"),
];

const BINARY: [(Bin, &str); 10] = [
    (Bin::Add, "+"),
    (Bin::Sub, "-"),
    (Bin::Mul, "*"),
    (Bin::Div, "/"),
    (Bin::Lt, "<"),
    (Bin::Le, "<="),
    (Bin::Eq, "=="),
    (Bin::Min, "min"),
    (Bin::Max, "max"),
    (Bin::Pow, "pow"),
];

impl Un {
    /// The function on f64.
    pub fn eval(self, x: f64) -> f64 {
        match self {
            Un::Neg => -x,
            Un::Exp => x.exp(),
            Un::Ln => x.ln(),
            Un::Tanh => x.tanh(),
            Un::Sqrt => x.sqrt(),
            Un::Rsqrt => 1.0 / x.sqrt(),
            Un::Recip => 1.0 / x,
            Un::Sigmoid => 1.0 / (1.0 + (-x).exp()),
            Un::Erf => erf(x),
            Un::Abs => x.abs(),
            Un::Floor => x.floor(),
            Un::Sin => x.sin(),
            Un::Cos => x.cos(),
        }
    }
}

impl Bin {
    /// The function on f64.
    pub fn eval(self, a: f64, b: f64) -> f64 {
        let truth = |t: bool| if t { 1.0 } else { 0.0 };
        match self {
            Bin::Add => a + b,
            Bin::Sub => a - b,
            Bin::Mul => a * b,
            Bin::Div => a / b,
            Bin::Min => a.min(b),
            Bin::Max => a.max(b),
            Bin::Pow => a.powf(b),
            Bin::Lt => truth(a < b),
            Bin::Le => truth(a <= b),
            Bin::Eq => truth(a == b),
        }
    }
}

/// A scalar expression.
#[derive(Clone, PartialEq, Debug)]
pub enum Expr {
    /// The map's input of that number.
    In(usize),
    /// A constant.
    Const(f64),
    /// A function of one argument.
    Un(Un, Box<Expr>),
    /// A function of two arguments.
    Bin(Bin, Box<Expr>, Box<Expr>),
    /// The second where the first is not 0, else the third.
    Select(Box<Expr>, Box<Expr>, Box<Expr>),
    /// A uniform number in [0, 1) at the element's global index, from the named stream.
    Rand(String),
    /// The element's global coordinate along an axis of the map's output.
    Coord(AxisId),
}

/// What the intrinsics need to know of one element.
pub struct Site<'a> {
    /// The inputs' elements.
    pub ins: &'a [f64],
    /// `rand` of a stream here.
    pub rand: &'a dyn Fn(&str) -> f64,
    /// Global coordinate along an axis.
    pub coord: &'a dyn Fn(AxisId) -> f64,
}

impl Expr {
    /// A function of one argument.
    pub fn un(f: Un, x: Expr) -> Expr {
        Expr::Un(f, Box::new(x))
    }

    /// A function of two arguments.
    pub fn bin(f: Bin, a: Expr, b: Expr) -> Expr {
        Expr::Bin(f, Box::new(a), Box::new(b))
    }

    /// `a` where `self` is not 0, else `b`.
    pub fn select(self, a: impl Into<Expr>, b: impl Into<Expr>) -> Expr {
        Expr::Select(Box::new(self), Box::new(a.into()), Box::new(b.into()))
    }

    /// A draw from the named stream.
    pub fn rand(stream: &str) -> Expr {
        Expr::Rand(stream.to_owned())
    }

    /// Evaluates at one element.
    pub fn eval(&self, site: &Site<'_>) -> f64 {
        match self {
            Expr::In(i) => site.ins[*i],
            Expr::Const(c) => *c,
            Expr::Un(f, x) => f.eval(x.eval(site)),
            Expr::Bin(f, a, b) => f.eval(a.eval(site), b.eval(site)),
            Expr::Select(c, a, b) if c.eval(site) != 0.0 => {
                let _ = b;
                a.eval(site)
            }
            Expr::Select(_, _, b) => b.eval(site),
            Expr::Rand(stream) => (site.rand)(stream),
            Expr::Coord(axis) => (site.coord)(*axis),
        }
    }

    /// The direct sub-expressions.
    pub fn children(&self) -> Vec<&Expr> {
        match self {
            Expr::In(_) | Expr::Const(_) | Expr::Rand(_) | Expr::Coord(_) => vec![],
            Expr::Un(_, x) => vec![x],
            Expr::Bin(_, a, b) => vec![a, b],
            Expr::Select(c, a, b) => vec![c, a, b],
        }
    }

    /// Rebuilds the tree with each input number changed by `f`.
    pub fn renumber(&self, f: &dyn Fn(usize) -> usize) -> Expr {
        self.rewrite(&|e| match e {
            Expr::In(i) => Some(Expr::In(f(*i))),
            _ => None,
        })
    }

    /// Rebuilds the tree from the top; where `f` answers, its answer stands.
    pub fn rewrite(&self, f: &dyn Fn(&Expr) -> Option<Expr>) -> Expr {
        if let Some(e) = f(self) {
            return e;
        }
        match self {
            Expr::Un(g, x) => Expr::un(*g, x.rewrite(f)),
            Expr::Bin(g, a, b) => Expr::bin(*g, a.rewrite(f), b.rewrite(f)),
            Expr::Select(c, a, b) => c.rewrite(f).select(a.rewrite(f), b.rewrite(f)),
            leaf => leaf.clone(),
        }
    }

    /// Whether any part satisfies the predicate.
    pub fn any(&self, f: &dyn Fn(&Expr) -> bool) -> bool {
        f(self) || self.children().iter().any(|c| c.any(f))
    }

    /// The input numbers in use, ascending.
    pub fn inputs(&self) -> Vec<usize> {
        let mut used = vec![];
        self.collect_inputs(&mut used);
        used.sort_unstable();
        used.dedup();
        used
    }

    fn collect_inputs(&self, used: &mut Vec<usize>) {
        if let Expr::In(i) = self {
            used.push(*i);
        }
        for child in self.children() {
            child.collect_inputs(used);
        }
    }

    /// Arithmetic operations an element.
    pub fn flops(&self) -> u64 {
        let own = match self {
            Expr::In(_) | Expr::Const(_) | Expr::Coord(_) => 0,
            Expr::Rand(_) => 10,
            _ => 1,
        };
        own + self.children().iter().map(|c| c.flops()).sum::<u64>()
    }

    /// The text form, with axes by name.
    pub fn show(&self, axes: &Axes) -> String {
        let mut out = String::new();
        self.write(axes, &mut out);
        out
    }

    fn write(&self, axes: &Axes, out: &mut String) {
        let infallible = "writing to a String cannot fail";
        match self {
            Expr::In(i) => write!(out, "${i}").expect(infallible),
            Expr::Const(c) => write!(out, "{c:?}").expect(infallible),
            Expr::Rand(s) => write!(out, "rand({s})").expect(infallible),
            Expr::Coord(a) => write!(out, "coord({})", axes[*a].name).expect(infallible),
            Expr::Bin(f, a, b) if *f != Bin::Min && *f != Bin::Max && *f != Bin::Pow => {
                out.push('(');
                a.write(axes, out);
                write!(out, " {} ", name_of(&BINARY, *f)).expect(infallible);
                b.write(axes, out);
                out.push(')');
            }
            _ => {
                let name = match self {
                    Expr::Un(f, _) => name_of(&UNARY, *f),
                    Expr::Bin(f, _, _) => name_of(&BINARY, *f),
                    _ => "select",
                };
                out.push_str(name);
                for (i, child) in self.children().into_iter().enumerate() {
                    out.push_str(if i == 0 { "(" } else { ", " });
                    child.write(axes, out);
                }
                out.push(')');
            }
        }
    }
}

fn name_of<T: PartialEq + Copy>(table: &[(T, &'static str)], item: T) -> &'static str {
    table.iter().find(|(t, _)| *t == item).map_or("?", |(_, n)| n)
}

impl From<f64> for Expr {
    fn from(c: f64) -> Expr {
        Expr::Const(c)
    }
}

macro_rules! operator {
    ($trait:ident, $method:ident, $bin:ident) => {
        impl<T: Into<Expr>> ops::$trait<T> for Expr {
            type Output = Expr;
            fn $method(self, other: T) -> Expr {
                Expr::bin(Bin::$bin, self, other.into())
            }
        }
        impl<T: Into<Expr>> ops::$trait<T> for &Expr {
            type Output = Expr;
            fn $method(self, other: T) -> Expr {
                Expr::bin(Bin::$bin, self.clone(), other.into())
            }
        }
        impl ops::$trait<Expr> for f64 {
            type Output = Expr;
            fn $method(self, other: Expr) -> Expr {
                Expr::bin(Bin::$bin, Expr::Const(self), other)
            }
        }
        impl ops::$trait<&Expr> for f64 {
            type Output = Expr;
            fn $method(self, other: &Expr) -> Expr {
                Expr::bin(Bin::$bin, Expr::Const(self), other.clone())
            }
        }
    };
}
operator!(Add, add, Add);
operator!(Sub, sub, Sub);
operator!(Mul, mul, Mul);
operator!(Div, div, Div);

impl From<&Expr> for Expr {
    fn from(e: &Expr) -> Expr {
        e.clone()
    }
}

impl ops::Neg for Expr {
    type Output = Expr;
    fn neg(self) -> Expr {
        Expr::un(Un::Neg, self)
    }
}

macro_rules! methods {
    ($($method:ident $un:ident),*) => {
        #[allow(missing_docs)] // each is the function of its name
        impl Expr {
            $(pub fn $method(&self) -> Expr { Expr::un(Un::$un, self.clone()) })*
        }
    };
}
methods!(
    exp Exp, ln Ln, tanh Tanh, sqrt Sqrt, rsqrt Rsqrt, recip Recip, sigmoid Sigmoid, erf Erf,
    abs Abs, floor Floor, sin Sin, cos Cos
);

#[allow(missing_docs)] // each is the function of its name
impl Expr {
    pub fn min(&self, other: impl Into<Expr>) -> Expr {
        Expr::bin(Bin::Min, self.clone(), other.into())
    }
    pub fn max(&self, other: impl Into<Expr>) -> Expr {
        Expr::bin(Bin::Max, self.clone(), other.into())
    }
    pub fn pow(&self, other: impl Into<Expr>) -> Expr {
        Expr::bin(Bin::Pow, self.clone(), other.into())
    }
    pub fn lt(&self, other: impl Into<Expr>) -> Expr {
        Expr::bin(Bin::Lt, self.clone(), other.into())
    }
    pub fn le(&self, other: impl Into<Expr>) -> Expr {
        Expr::bin(Bin::Le, self.clone(), other.into())
    }
    pub fn equals(&self, other: impl Into<Expr>) -> Expr {
        Expr::bin(Bin::Eq, self.clone(), other.into())
    }
}

/// The error function to about 1e-15: Maclaurin series near 0, continued fraction of erfc beyond.
pub fn erf(x: f64) -> f64 {
    let t = x.abs();
    let value = if t < 2.5 {
        let mut term = t;
        let mut sum = t;
        for n in 1..80 {
            term *= -t * t / n as f64;
            sum += term / (2 * n + 1) as f64;
        }
        sum * std::f64::consts::FRAC_2_SQRT_PI
    } else if t < 6.0 {
        let mut f = t;
        for k in (1..=60).rev() {
            f = t + k as f64 / 2.0 / f;
        }
        1.0 - (-t * t).exp() / (f * std::f64::consts::PI.sqrt())
    } else {
        1.0
    };
    if x.is_nan() { x } else { value.copysign(x) }
}
