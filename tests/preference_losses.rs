//! The preference losses: values and gradients against TRL's own functions (tests/fixtures/preference-losses), whole runs
//! against its trainers, and what holds whatever the numbers are.

use crate::support::*;
use ft::methods::pairs::Sides;
use ft::methods::{dpo, kto, orpo, simpo};
use std::collections::BTreeMap;
use tch::{Kind, Tensor};

const FOLDER: &str = "preference-losses";

/// The fixed log-probabilities, in float64 with gradient, and what TRL made of them.
struct Fixed(BTreeMap<String, Tensor>);

impl Fixed {
    fn open() -> Self {
        Self(tensors(format!("{FOLDER}/losses.safetensors")))
    }

    fn get(&self, name: &str) -> Tensor {
        self.0[name].to_kind(Kind::Double)
    }

    fn sides(&self, chosen: &str, rejected: &str) -> Sides {
        Sides { chosen: self.get(chosen), rejected: self.get(rejected) }
    }

    fn lengths(&self) -> Sides {
        self.sides("chosen_tokens", "rejected_tokens")
    }

    /// Leaves: the sums over tokens, or the means.
    fn leaves(&self, means: bool) -> Sides {
        let sums = self.sides("chosen", "rejected");
        let leaf = |t: &Tensor| t.detach().set_requires_grad(true);
        if means { sums.with(&self.lengths(), |s, n| s / n).map(leaf) } else { sums.map(leaf) }
    }

    /// Compares values and gradients; gives the widest gap.
    fn compare(&self, name: &str, leaves: &Sides, losses: &Tensor, tolerance: f64) -> Gap {
        losses.sum(Kind::Double).backward();
        let mut worst = Gap::default();
        let loss = self.get(&format!("{name}/loss"));
        let ours = if loss.numel() == 1 { losses.mean(Kind::Double).view([1]) } else { losses.shallow_clone() };
        worst.widen(assert_close(&format!("{name}: loss"), &ours, &loss, tolerance));
        for (side, leaf) in [("chosen", &leaves.chosen), ("rejected", &leaves.rejected)] {
            let expected = self.get(&format!("{name}/grad.{side}"));
            worst.widen(assert_close(&format!("{name}: gradient of {side}"), &leaf.grad(), &expected, tolerance));
        }
        worst
    }
}

#[derive(serde::Deserialize)]
struct Case {
    beta: f64,
    #[serde(default)]
    smoothing: f64,
    #[serde(default)]
    gamma: f64,
    #[serde(default)]
    desirable_weight: f64,
    #[serde(default)]
    undesirable_weight: f64,
    #[serde(default)]
    kl: f64,
}

fn case(name: &str) -> Case {
    let all: BTreeMap<String, serde_json::Value> = json(format!("{FOLDER}/losses.json"));
    serde_json::from_value(all[name].clone()).unwrap()
}

#[test]
fn dpo_losses_and_gradients_are_those_of_trl() {
    use dpo::spec::{DpoLoss, DpoSpec};
    let fixed = Fixed::open();
    let reference = fixed.sides("reference_chosen", "reference_rejected");
    for (name, loss) in [
        ("sigmoid", DpoLoss::Sigmoid),
        ("sigmoid-beta", DpoLoss::Sigmoid),
        ("sigmoid-smoothed", DpoLoss::Sigmoid),
        ("sigmoid-norm", DpoLoss::SigmoidNorm),
        ("ipo", DpoLoss::Ipo),
        ("hinge", DpoLoss::Hinge),
        ("robust", DpoLoss::Robust),
        ("exo", DpoLoss::Exo),
    ] {
        let case = case(name);
        let spec = DpoSpec { beta: case.beta, loss, label_smoothing: Some(case.smoothing), ..DpoSpec::default() };
        let policy = fixed.leaves(false);
        let losses = dpo::loss::losses(&spec, &policy, &reference, &fixed.lengths());
        println!("{name}: {:?}", fixed.compare(name, &policy, &losses, 1e-6));
    }
}

#[test]
fn simpo_and_orpo_losses_and_gradients_are_those_of_trl() {
    let fixed = Fixed::open();
    for name in ["simpo", "simpo-smoothed"] {
        let case = case(name);
        let (beta, gamma, label_smoothing) = (case.beta, case.gamma, case.smoothing);
        let spec = simpo::spec::SimpoSpec { beta, gamma, label_smoothing, nll: 0.0 };
        let means = fixed.leaves(true);
        println!("{name}: {:?}", fixed.compare(name, &means, &simpo::loss::losses(&spec, &means), 1e-6));
    }
    let means = fixed.leaves(true);
    let losses = -orpo::loss::log_odds(&means).log_sigmoid() * case("orpo-odds").beta;
    println!("orpo: {:?}", fixed.compare("orpo-odds", &means, &losses, 1e-5));
}

#[test]
fn kto_losses_and_gradients_are_those_of_trl() {
    use kto::spec::{KtoLoss, KtoSpec};
    let fixed = Fixed::open();
    for (name, loss) in [("kto", KtoLoss::Kto), ("kto-weighted", KtoLoss::Kto), ("kto-apo", KtoLoss::ApoZero)] {
        let case = case(name);
        let (desirable_weight, undesirable_weight) = (case.desirable_weight, case.undesirable_weight);
        let spec = KtoSpec { beta: case.beta, loss, desirable_weight, undesirable_weight };
        let policy = fixed.leaves(false);
        let n = policy.chosen.size()[0];
        let good =
            Tensor::cat(&[Tensor::ones([n], (Kind::Double, policy.chosen.device())), policy.chosen.zeros_like()], 0);
        let ratios = Tensor::cat(&[&policy.chosen, &policy.rejected], 0) - fixed.get("kto/reference");
        let losses = kto::loss::losses(&spec, &ratios, &good, case.kl);
        println!("{name}: {:?}", fixed.compare(name, &policy, &losses, 1e-6));
    }
}
