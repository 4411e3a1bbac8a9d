//! Which maps run with a norm, and which sums with a product.

use super::common::{Offer, nodes};
use aerogel_graph::ops::{Norm, NormGrad, Op};
use aerogel_graph::{Build, DType, Expr, Graph, Init, Phase, Role, Type, ValueId};

fn grad_of(norm: Norm) -> Op {
    NormGrad { norm, dtypes: [DType::F32; 2].into_iter().collect() }.into()
}

/// x, dy and a residual, and the gradient of a norm with gain: node 0.
fn gradient(g: &mut Graph, names: &[(&str, usize)]) -> ([ValueId; 3], Vec<ValueId>) {
    let axes: Vec<_> = names.iter().map(|(name, size)| g.axis(name, *size).unwrap()).collect();
    let axis = axes[axes.len() - 1];
    let [x, dy, residual] =
        ["x", "dy", "residual"].map(|name| g.input(name, DType::F32, &axes).unwrap());
    let gain = g.input("gain", DType::F32, &[axis]).unwrap();
    let norm = Norm { axis, center: true, eps: 1e-5, gain: true, bias: false };
    let outs = g.emit(grad_of(norm), &[x, gain, dy]).unwrap();
    ([x, dy, residual], outs)
}

#[test]
fn the_gradient_of_a_norm_takes_the_sum_of_gradients_along() {
    let mut g = Graph::new();
    let ([_, dy, residual], outs) = gradient(&mut g, &[("batch", 3), ("embed", 8)]);
    let sum = g.map(&[outs[0], residual], &|v| &v[0] + &v[1]).unwrap();
    let half = g.map(&[sum], &|v| 0.5 * &v[0]).unwrap();
    let other = g.map(&[half, dy], &|v| &v[0] + &v[1]).unwrap();
    [sum, other].iter().for_each(|v| g.output("out", *v));
    g.output("gain", outs[1]);
    let offer = Offer::new(&g, 0);
    assert_eq!((offer.kernel, offer.nodes), ("norm_grad+map", nodes(&[0, 1, 2, 3])));
    // What the norm reads itself stays: rows are finished in groups.
    assert_eq!(offer.in_place, [(residual, sum), (residual, other)]);
}

#[test]
fn a_norm_takes_the_maps_that_read_it() {
    let mut g = Graph::new();
    let axes = [("batch", 3), ("embed", 8)].map(|(name, size)| g.axis(name, size).unwrap());
    let x = g.input("x", DType::F32, &axes).unwrap();
    let y = g.norm(x, axes[1], false, 1e-5, None, None).unwrap();
    let sum = g.map(&[x, y], &|v| &v[0] + &v[1]).unwrap();
    g.output("out", sum);
    let offer = Offer::new(&g, 0);
    assert_eq!((offer.kernel, offer.nodes), ("norm+map", nodes(&[0, 1])));
    assert!(offer.in_place.is_empty(), "x is read by rows");
}

/// Of rows without number, dgain has the axes of dx.
#[test]
fn what_reads_the_gradient_of_the_gain_waits_for_the_kernel() {
    let mut g = Graph::new();
    let ([.., residual], outs) = gradient(&mut g, &[("embed", 8)]);
    let dx = g.map(&[outs[0], residual], &|v| &v[0] + &v[1]).unwrap();
    let dgain = g.map(&[outs[1], residual], &|v| &v[0] + &v[1]).unwrap();
    let both = g.map(&[dx, outs[1]], &|v| &v[0] * &v[1]).unwrap();
    [dx, dgain, both].iter().for_each(|v| g.output("out", *v));
    assert_eq!(Offer::new(&g, 0).nodes, nodes(&[0, 1]));
}

#[test]
fn a_sum_of_two_gradients_is_left_to_the_later_one() {
    let mut g = Graph::new();
    let ([x, dy, _], first) = gradient(&mut g, &[("batch", 3), ("embed", 8)]);
    let axis = g.axis("embed", 8).unwrap();
    let gain = g.find_input("gain").unwrap().value;
    let norm = Norm { axis, center: false, eps: 1e-5, gain: true, bias: false };
    let second = g.emit(grad_of(norm), &[dy, gain, x]).unwrap();
    let sum = g.map(&[first[0], second[0]], &|v| &v[0] + &v[1]).unwrap();
    g.output("out", sum);
    assert_eq!((Offer::new(&g, 0).kernel, Offer::new(&g, 0).nodes), ("norm_grad", nodes(&[0])));
    assert_eq!(
        (Offer::new(&g, 1).kernel, Offer::new(&g, 1).nodes),
        ("norm_grad+map", nodes(&[1, 2]))
    );
    assert_eq!(Offer::new(&g, 1).in_place, [(first[0], sum)]);
}

/// The gradients of a linear layer, whose nodes stand in either order.
#[test]
fn a_product_takes_the_sum_of_an_operand_along() {
    for sum_first in [false, true] {
        let mut g = Graph::new();
        let [t, m, n] = [("t", 6), ("m", 3), ("n", 5)].map(|(name, n)| g.axis(name, n).unwrap());
        let x = g.input("x", DType::Bf16, &[t, n]).unwrap();
        let dy = g.input("dy", DType::Bf16, &[t, m]).unwrap();
        let product = |g: &mut Graph| g.einsum_to(&[x, dy], &[m, n], DType::F32).unwrap();
        let sum = |g: &mut Graph, over| g.sum(dy, &[over]).unwrap();
        let outs = match sum_first {
            true => [sum(&mut g, m), sum(&mut g, t), product(&mut g)],
            false => [sum(&mut g, m), product(&mut g), sum(&mut g, t)],
        };
        outs.iter().for_each(|v| g.output("out", *v));
        assert_eq!(Offer::new(&g, 0).nodes, nodes(&[0]), "another axis");
        let offer = Offer::new(&g, 1);
        assert_eq!((offer.kernel, offer.nodes), ("einsum+sum", nodes(&[1, 2])));
        assert!(offer.in_place.is_empty());
    }
}

#[test]
fn a_product_with_an_epilogue_takes_no_sum() {
    let mut g = Graph::new();
    let [t, m, n] = [("t", 6), ("m", 3), ("n", 5)].map(|(name, n)| g.axis(name, n).unwrap());
    let x = g.input("x", DType::Bf16, &[t, n]).unwrap();
    let dy = g.input("dy", DType::Bf16, &[t, m]).unwrap();
    let sum = g.sum(dy, &[t]).unwrap();
    let product = g.einsum_to(&[x, dy], &[m, n], DType::F32).unwrap();
    let half = g.map(&[product], &|v| 0.5 * &v[0]).unwrap();
    [sum, half].iter().for_each(|v| g.output("out", *v));
    assert_eq!(Offer::new(&g, 0).nodes, nodes(&[0]));
    assert_eq!((Offer::new(&g, 1).kernel, Offer::new(&g, 1).nodes), ("einsum+map", nodes(&[1, 2])));
}

/// Three linear layers with biases that read x, as attention has them: products, then maps.
fn linears(g: &mut Graph, draws: bool) -> [ValueId; 3] {
    let [t, e] = [("t", 6), ("e", 4)].map(|(name, size)| g.axis(name, size).unwrap());
    let x = g.input("x", DType::Bf16, &[t, e]).unwrap();
    let products = [("q", 3), ("k", 5), ("v", 7)].map(|(name, size)| {
        let axis = g.axis(name, size).unwrap();
        let w = g.input(&format!("w{name}"), DType::Bf16, &[axis, e]).unwrap();
        let bias = g.input(&format!("b{name}"), DType::F32, &[axis]).unwrap();
        (g.einsum_to(&[x, w], &[t, axis], DType::Bf16).unwrap(), bias)
    });
    products.map(|(product, bias)| {
        let noise = if draws { Expr::rand("noise") } else { 0.0.into() };
        g.map(&[product, bias], &|v| &v[0] + &v[1] + noise.clone()).unwrap()
    })
}

#[test]
fn products_of_one_value_run_together_with_their_epilogues() {
    let mut g = Graph::new();
    linears(&mut g, false).iter().for_each(|v| g.output("out", *v));
    let offer = Offer::new(&g, 0);
    assert_eq!((offer.kernel, offer.nodes), ("einsums+map", nodes(&[0, 1, 2, 3, 4, 5])));
    assert!(offer.in_place.is_empty());
    // What is left of them where the first is gone.
    assert_eq!(Offer::new(&g, 1).nodes, nodes(&[1, 2, 4, 5]));
    assert_eq!(Offer::new(&g, 2).nodes, nodes(&[2, 5]));
}

/// Draws of one kernel begin in one place.
#[test]
fn products_whose_epilogues_draw_stay_apart() {
    let mut g = Graph::new();
    linears(&mut g, true).iter().for_each(|v| g.output("out", *v));
    assert_eq!(Offer::new(&g, 0).nodes, nodes(&[0, 3]));
}

/// A gate: the second product's epilogue reads the first.
#[test]
fn a_product_that_needs_another_is_not_run_with_it() {
    let mut g = Graph::new();
    let [t, e, n] = [("t", 6), ("e", 4), ("n", 3)].map(|(name, n)| g.axis(name, n).unwrap());
    let x = g.input("x", DType::Bf16, &[t, e]).unwrap();
    let [a, b] = ["a", "b"].map(|name| {
        let w = g.input(name, DType::Bf16, &[n, e]).unwrap();
        g.einsum_to(&[x, w], &[t, n], DType::Bf16).unwrap()
    });
    let gate = g.map(&[a, b], &|v| &v[0] * &v[1]).unwrap();
    g.output("out", gate);
    assert_eq!(Offer::new(&g, 0).nodes, nodes(&[0]));
    assert_eq!(Offer::new(&g, 1).nodes, nodes(&[1, 2]));
}

/// The gradients of three linear layers that read x, nodes 0 to 5.
fn gradients(g: &mut Graph, dtype: DType) -> Vec<ValueId> {
    let [t, e] = [("t", 6), ("e", 4)].map(|(name, size)| g.axis(name, size).unwrap());
    let x = g.input("x", dtype, &[t, e]).unwrap();
    let mut outs = vec![];
    let dys = [("v", 5), ("k", 3), ("q", 3)].map(|(name, size)| {
        let axis = g.axis(name, size).unwrap();
        (axis, g.input(&format!("d{name}"), dtype, &[t, axis]).unwrap())
    });
    outs.extend(dys.map(|(_, dy)| g.sum(dy, &[t]).unwrap()));
    outs.extend(dys.map(|(axis, dy)| g.einsum_to(&[dy, x], &[axis, e], DType::F32).unwrap()));
    outs.iter().for_each(|v| g.output("out", *v));
    outs
}

#[test]
fn gradients_of_weights_run_together_with_those_of_biases() {
    let mut g = Graph::new();
    gradients(&mut g, DType::Bf16);
    let offer = Offer::new(&g, 0);
    assert_eq!((offer.kernel, offer.nodes), ("einsums+sum", nodes(&[0, 1, 2, 3, 4, 5])));
    assert!(offer.in_place.is_empty());
    assert_eq!(Offer::new(&g, 1).nodes, nodes(&[1, 2, 4, 5]));
    assert_eq!(Offer::new(&g, 4).nodes, nodes(&[4, 5]), "sums before it are gone");
}

/// Pieces of a batch read one weight, so as not to be there at once.
#[test]
fn what_reads_one_weight_stays_apart() {
    let mut g = Graph::new();
    let [s, t, e, n] =
        [("s", 6), ("t", 6), ("e", 4), ("n", 3)].map(|(name, size)| g.axis(name, size).unwrap());
    let ty = Type::new(DType::F32, [n, e]);
    let state = g.state("w", ty, Role::Parameter, None, Init::Constant(0.0)).unwrap();
    let w = g.cast(state, DType::Bf16, DType::F32).unwrap();
    for (name, axis) in [("a", s), ("b", t)] {
        let x = g.input(name, DType::Bf16, &[axis, e]).unwrap();
        let y = g.einsum_to(&[x, w], &[axis, n], DType::Bf16).unwrap();
        g.output(name, y);
    }
    assert_eq!(Offer::new(&g, 1).nodes, nodes(&[1]));
}

/// The gradient of what two linear layers read, and a map that reads it.
fn gradient_of_input(g: &mut Graph, phase: Phase) -> (ValueId, ValueId) {
    let [t, e] = [("t", 6), ("e", 4)].map(|(name, size)| g.axis(name, size).unwrap());
    g.phase(phase);
    let products = [("q", 3), ("k", 5)].map(|(name, size)| {
        let axis = g.axis(name, size).unwrap();
        let dy = g.input(&format!("d{name}"), DType::Bf16, &[t, axis]).unwrap();
        let w = g.input(&format!("w{name}"), DType::Bf16, &[axis, e]).unwrap();
        // Either factor may come first.
        let factors = if size == 3 { [dy, w] } else { [w, dy] };
        g.einsum_to(&factors, &[t, e], DType::Bf16).unwrap()
    });
    let sum = g.map(&products, &|v| &v[1] + &v[0]).unwrap();
    let out = g.map(&[sum], &|v| 0.5 * &v[0]).unwrap();
    g.output("out", out);
    (products[0], sum)
}

#[test]
fn products_that_are_summed_run_together_in_the_backward() {
    let mut g = Graph::new();
    gradient_of_input(&mut g, Phase::Backward);
    let offer = Offer::new(&g, 0);
    assert_eq!((offer.kernel, offer.nodes), ("einsums+add", nodes(&[0, 1, 2, 3])));
    let mut g = Graph::new();
    gradient_of_input(&mut g, Phase::Forward);
    assert_eq!(Offer::new(&g, 0).nodes, nodes(&[0]));
    // What somebody else reads must be rounded.
    let mut g = Graph::new();
    let (product, sum) = gradient_of_input(&mut g, Phase::Backward);
    g.output("product", product);
    assert_eq!(Offer::new(&g, 0).nodes, nodes(&[0]));
    assert_eq!(g.ty(sum).dtype, DType::Bf16);
}
