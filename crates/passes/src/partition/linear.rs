//! Whether an expression is linear in some of its inputs: then it may be taken of each term of a
//! sum, and the sum of what comes is its value.

use aerogel_graph::Expr;
use aerogel_graph::expr::{Bin, Un};

/// How an expression depends on the terms.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Degree {
    /// It is 0.
    Zero,
    /// Not at all.
    Free,
    /// It is linear in them, with nothing added.
    Linear,
    /// Otherwise.
    Other,
}

/// Whether the expression is linear in the inputs that are terms, with nothing added to them.
pub fn is_linear(expr: &Expr, term: &dyn Fn(usize) -> bool) -> bool {
    degree(expr, term) == Degree::Linear
}

fn degree(expr: &Expr, term: &dyn Fn(usize) -> bool) -> Degree {
    use Degree::{Free, Linear, Other, Zero};
    let of = |e: &Expr| degree(e, term);
    match expr {
        Expr::In(i) if term(*i) => Linear,
        Expr::Const(c) if *c == 0.0 => Zero,
        Expr::In(_) | Expr::Const(_) | Expr::Rand(_) | Expr::Coord(_) => Free,
        Expr::Un(Un::Neg, x) => of(x),
        Expr::Bin(Bin::Add | Bin::Sub, a, b) => same(of(a), of(b)),
        Expr::Bin(Bin::Mul, a, b) => match (of(a), of(b)) {
            (Free, d) | (d, Free) => d,
            (Zero, Zero) => Zero,
            _ => Other,
        },
        Expr::Bin(Bin::Div, a, b) if of(b) == Free => of(a),
        Expr::Select(c, a, b) if matches!(of(c), Free | Zero) => same(of(a), of(b)),
        other => {
            let free = other.children().into_iter().all(|e| matches!(of(e), Free | Zero));
            if free { Free } else { Other }
        }
    }
}

/// Of a sum, or of either of two.
fn same(a: Degree, b: Degree) -> Degree {
    match (a, b) {
        (Degree::Zero, d) | (d, Degree::Zero) => d,
        (a, b) if a == b => a,
        _ => Degree::Other,
    }
}

#[cfg(test)]
mod tests {
    use super::is_linear;
    use aerogel_graph::Expr;

    #[test]
    fn sums_and_multiples_of_terms_alone() {
        let (x, y, w) = (Expr::In(0), Expr::In(1), Expr::In(2));
        let linear = |e: Expr| is_linear(&e, &|i| i < 2);
        assert!(linear(x.clone()));
        assert!(linear(-(&x + &y) * &w / (1.0 + w.exp())));
        assert!(linear(Expr::rand("s").lt(0.5).select(0.0, &x * 2.0)));
        assert!(linear(w.lt(0.0).select(&x, &x - &y)));
        // A bias would be added once a rank; products, functions and choices by a term do not
        // distribute; what ignores the terms is no sum of them.
        for no in [
            &x + &w,
            &x * &y,
            &w / &x,
            x.exp(),
            x.floor(),
            x.lt(0.0).select(&x, &y),
            w.lt(0.0).select(&x, 1.0),
            x.max(&y),
            &w * 2.0,
            Expr::Const(0.0),
        ] {
            assert!(!linear(no.clone()), "{no:?}");
        }
    }
}
