//! The symbolic derivative, and the few simplifications that keep it readable.

use super::{Bin, Expr, Un};

impl Expr {
    /// The derivative with respect to input `i`. At a kink it is a one-sided one.
    pub fn derivative(&self, i: usize) -> Expr {
        self.slope(i).simplified()
    }

    fn slope(&self, i: usize) -> Expr {
        let zero = || Expr::Const(0.0);
        if !self.any(&|e| matches!(e, Expr::In(n) if *n == i)) {
            return zero();
        }
        match self {
            Expr::In(_) => Expr::Const(1.0),
            Expr::Const(_) | Expr::Rand(_) | Expr::Coord(_) => zero(),
            Expr::Un(f, x) => un_slope(*f, x) * x.slope(i),
            Expr::Bin(f, a, b) => bin_slope(*f, a, b, i),
            Expr::Select(c, a, b) => (**c).clone().select(a.slope(i), b.slope(i)),
        }
    }

    /// Folds constants, and drops neutral elements, from the leaves up.
    pub fn simplified(&self) -> Expr {
        match self {
            Expr::Un(f, x) => match x.simplified() {
                Expr::Const(c) => Expr::Const(f.eval(c)),
                Expr::Un(Un::Neg, y) if *f == Un::Neg => *y,
                y => Expr::un(*f, y),
            },
            Expr::Bin(f, a, b) => fold(*f, a.simplified(), b.simplified()),
            Expr::Select(c, a, b) => {
                let (c, a, b) = (c.simplified(), a.simplified(), b.simplified());
                match c {
                    Expr::Const(v) => {
                        if v != 0.0 {
                            a
                        } else {
                            b
                        }
                    }
                    _ if a == b => a,
                    _ => c.select(a, b),
                }
            }
            leaf => leaf.clone(),
        }
    }
}

/// d f(x) / d x.
fn un_slope(f: Un, x: &Expr) -> Expr {
    let y = || Expr::un(f, x.clone());
    match f {
        Un::Neg => Expr::Const(-1.0),
        Un::Exp => y(),
        Un::Ln => x.recip(),
        Un::Tanh => 1.0 - y() * y(),
        Un::Sqrt => 0.5 * x.rsqrt(),
        Un::Rsqrt => -0.5 * (y() * y() * y()),
        Un::Recip => -(y() * y()),
        Un::Sigmoid => y() * (1.0 - y()),
        Un::Erf => std::f64::consts::FRAC_2_SQRT_PI * (-(x * x)).exp(),
        Un::Abs => x.lt(0.0).select(-1.0, 1.0),
        Un::Floor => Expr::Const(0.0),
        Un::Sin => x.cos(),
        Un::Cos => -x.sin(),
    }
}

fn bin_slope(f: Bin, a: &Expr, b: &Expr, i: usize) -> Expr {
    let (da, db) = (a.slope(i), b.slope(i));
    match f {
        Bin::Add => da + db,
        Bin::Sub => da - db,
        Bin::Mul => da * b + a * db,
        Bin::Div => da / b - (a / (b * b)) * db,
        Bin::Min => a.le(b).select(da, db),
        Bin::Max => b.le(a).select(da, db),
        Bin::Pow => {
            // ln(a) is only wanted where the exponent itself varies.
            let by_base = b * a.pow(b - 1.0) * da;
            match db.simplified() {
                Expr::Const(0.0) => by_base,
                db => by_base + a.pow(b) * a.ln() * db,
            }
        }
        Bin::Lt | Bin::Le | Bin::Eq => Expr::Const(0.0),
    }
}

fn fold(f: Bin, a: Expr, b: Expr) -> Expr {
    use Expr::Const;
    match (f, &a, &b) {
        (_, Const(x), Const(y)) => Const(f.eval(*x, *y)),
        (Bin::Add, Const(0.0), _) => b,
        (Bin::Add | Bin::Sub, _, Const(0.0)) => a,
        (Bin::Sub, Const(0.0), _) => Expr::un(Un::Neg, b),
        (Bin::Mul, Const(0.0), _) | (Bin::Mul, _, Const(0.0)) => Const(0.0),
        (Bin::Mul, Const(1.0), _) => b,
        (Bin::Mul | Bin::Div, _, Const(1.0)) => a,
        (Bin::Mul, Const(-1.0), _) => Expr::un(Un::Neg, b),
        (Bin::Mul, _, Const(-1.0)) => Expr::un(Un::Neg, a),
        (Bin::Div, Const(0.0), _) => Const(0.0),
        (Bin::Pow, _, Const(1.0)) => a,
        _ => Expr::bin(f, a, b),
    }
}
