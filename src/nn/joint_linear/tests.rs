use super::*;
use tch::Device;

fn random(shape: &[i64]) -> Tensor {
    Tensor::randn(shape, (Kind::Double, Device::Cpu)).to_kind(Kind::Float)
}

fn leaf(shape: &[i64]) -> Tensor {
    random(shape).set_requires_grad(true)
}

/// Three layers of one input (T 7, in 6): with rank 2, with none, and with rank 3 and a bias.
struct TestLayers {
    x: Tensor,
    dense: [Dense; 3],
    factors: [(Tensor, Tensor, f64); 2],
}

impl TestLayers {
    fn new() -> Self {
        tch::manual_seed(5);
        let dense = |outputs: i64, bias: bool| Dense {
            weight: random(&[outputs, 6]).into(),
            bias: bias.then(|| random(&[outputs])),
        };
        Self {
            x: leaf(&[7, 6]),
            dense: [dense(4, false), dense(5, false), dense(3, true)],
            factors: [(leaf(&[2, 6]), leaf(&[4, 2]), 0.5), (leaf(&[3, 6]), leaf(&[3, 3]), 2.0)],
        }
    }

    fn parts(&self) -> Vec<JointLayer<'_>> {
        let update = |i: usize| {
            let (a, b, scale) = &self.factors[i];
            Some(LowRank { masters: [a.shallow_clone(), b.shallow_clone()], scale: *scale, parameters: true })
        };
        let updates = [update(0), None, update(1)];
        self.dense.iter().zip(updates).map(|(base, update)| JointLayer::of(base, update)).collect()
    }

    /// Computes the same outputs by libtorch's operations.
    fn composed(&self, mask: Option<&Tensor>) -> Vec<Tensor> {
        let masked = mask.map_or_else(|| self.x.shallow_clone(), |m| &self.x * m);
        let factors = [Some(&self.factors[0]), None, Some(&self.factors[1])];
        let one = |(dense, factors): (&Dense, Option<&(Tensor, Tensor, f64)>)| {
            let y = self.x.linear(&dense.weight.dense(Kind::Float), dense.bias.as_ref());
            factors.map_or_else(|| y.shallow_clone(), |(a, b, s)| &y + masked.matmul(&a.tr()).matmul(&b.tr()) * *s)
        };
        self.dense.iter().zip(factors).map(one).collect()
    }

    /// Returns the outputs, and the gradients of x and all factors for a loss over the outputs that are `used`.
    fn learn(&self, outputs: Vec<Tensor>, used: &[usize]) -> Vec<Tensor> {
        let loss = used.iter().map(|i| (&outputs[*i] * (&outputs[*i] + 1.0)).sum(Kind::Float));
        loss.reduce(|a, b| a + b).expect("one is used").backward();
        let leaves = std::iter::once(&self.x).chain(self.factors.iter().flat_map(|(a, b, _)| [a, b]));
        outputs.iter().map(Tensor::detach).chain(leaves.map(take_gradient)).collect()
    }
}

/// Takes a leaf's gradient away from it; returns zeros if it has none.
fn take_gradient(t: &Tensor) -> Tensor {
    let g = t.grad();
    let taken = if g.defined() { g.copy() } else { t.zeros_like() };
    crate::native::drop_gradients(std::iter::once(t));
    taken
}

#[track_caller]
fn near(a: &[Tensor], b: &[Tensor]) {
    let gap = |(a, b): (&Tensor, &Tensor)| ((a - b).abs().max() / b.abs().max().clamp_min(1.0)).double_value(&[]);
    let worst = a.iter().zip(b).map(gap).fold(0.0, f64::max);
    assert!(a.len() == b.len() && worst < 2e-6, "gap {worst}");
}

#[test]
fn products_equal_their_composition() {
    let layers = TestLayers::new();
    for used in [&[0, 1, 2][..], &[2], &[1], &[0, 1]] {
        let expected = layers.learn(layers.composed(None), used);
        let found = layers.learn(products(&LayerInput::kept(&layers.x), None, &layers.parts()), used);
        near(&found, &expected);
    }
}

#[test]
fn dropout_is_on_the_way_to_the_updates_alone() {
    let layers = TestLayers::new();
    let mask = Tensor::rand([7, 6], (Kind::Float, Device::Cpu)).gt(0.4).to_kind(Kind::Float) / 0.6;
    let expected = layers.learn(layers.composed(Some(&mask)), &[0, 2]);
    let found = layers.learn(products(&LayerInput::kept(&layers.x), Some(&mask), &layers.parts()), &[0, 2]);
    near(&found, &expected);
}

/// The result and every gradient have the same bits, and the input is recomputed once in the backward.
#[test]
fn an_input_made_again_teaches_the_same() {
    let layers = TestLayers::new();
    let kept = layers.learn(products(&LayerInput::kept(&layers.x), None, &layers.parts()), &[0, 1, 2]);
    let (made, x) = (Rc::new(std::cell::Cell::new(0)), layers.x.detach());
    let count = made.clone();
    let again = LayerInput::recomputable(layers.x.shallow_clone(), || {
        move || {
            count.set(count.get() + 1);
            x.copy()
        }
    });
    let found = layers.learn(products(&again, None, &layers.parts()), &[0, 1, 2]);
    assert!(kept.iter().zip(&found).all(|(a, b)| a.equal(b)));
    assert_eq!(made.get(), 1);
}

/// With every A frozen (LoRA-FA), x and B get the same gradients, and the input is neither kept nor recomputed.
#[test]
fn frozen_factors_need_no_input() {
    let mut layers = TestLayers::new();
    let learn = |layers: &TestLayers, input: &LayerInput| {
        let outputs = products(input, None, &layers.parts());
        outputs.iter().map(|y| (y * (y + 1.0)).sum(Kind::Float)).reduce(|a, b| a + b).unwrap().backward();
        [&layers.x, &layers.factors[0].1, &layers.factors[1].1].map(take_gradient)
    };
    let expected = learn(&layers, &LayerInput::kept(&layers.x));
    assert!(layers.factors.iter().all(|(a, ..)| take_gradient(a).abs().max().double_value(&[]) > 0.0));
    layers.factors = layers.factors.map(|(a, b, scale)| (a.detach(), b, scale));
    let input =
        LayerInput::recomputable(layers.x.shallow_clone(), || || -> Tensor { panic!("the input was recomputed") });
    let found = learn(&layers, &input);
    assert!(expected.iter().zip(&found).all(|(a, b)| a.equal(b)));
    assert!(layers.factors.iter().all(|(a, ..)| !a.grad().defined()));
}

/// Two layers with trained weights, one of which has an unused output, and one with a frozen weight and a trained
/// bias.
#[test]
fn trained_layers_learn_as_by_libtorch() {
    tch::manual_seed(6);
    let x = leaf(&[7, 6]);
    let dense = [
        Dense { weight: leaf(&[4, 6]).into(), bias: Some(leaf(&[4])) },
        Dense { weight: leaf(&[5, 6]).into(), bias: None },
        Dense { weight: random(&[3, 6]).into(), bias: Some(leaf(&[3])) },
    ];
    let leaves: Vec<&Tensor> = [&x]
        .into_iter()
        .chain(dense.iter().filter_map(|d| d.weight.trained()))
        .chain(dense.iter().filter_map(|d| d.bias.as_ref()))
        .collect();
    let learn = |outputs: Vec<Tensor>| -> Vec<Tensor> {
        ((&outputs[0] * &outputs[0]).sum(Kind::Float) + (&outputs[2] * 3.0).sum(Kind::Float)).backward();
        outputs.iter().map(Tensor::detach).chain(leaves.iter().copied().map(take_gradient)).collect()
    };
    let expected = learn(dense.iter().map(|d| x.linear(&d.weight.dense(Kind::Float), d.bias.as_ref())).collect());
    let parts: Vec<JointLayer> = dense.iter().map(|base| JointLayer::of(base, None)).collect();
    near(&learn(products(&LayerInput::kept(&x), None, &parts)), &expected);
}
