//! What the doctor asks a run that learns from preferences: the questions of `methods::watch`, which the run asked while it
//! went on, answered with what is known of the run as a whole.

use super::diagnose::{Finding, Id, Patient, finding, number, rate};
use crate::methods::MethodSpec;
use crate::methods::watch::{Sign, Watch};

/// Findings; `still` says that a graver one tells already that nothing moves.
pub(super) fn diagnose(p: Patient, still: bool) -> Vec<Finding> {
    let method = &p.plan.recipe.method;
    let beta = match method {
        MethodSpec::Dpo(spec) => spec.beta,
        MethodSpec::Kto(spec) => spec.beta,
        MethodSpec::Orpo(spec) => spec.beta,
        MethodSpec::Simpo(spec) => spec.beta,
        _ => return Vec::new(),
    };
    let mut watch = Watch::new(method.name(), beta);
    for point in p.applied() {
        let more = |name: &str| point.more.iter().find(|(k, _)| k == name).map_or(f64::NAN, |(_, v)| *v);
        watch.step(|name| if name == "loss" { point.loss } else { more(name) });
    }
    let signs = watch.signs().into_iter();
    let signs = signs.filter(|sign| !(still && matches!(sign, Sign::Still { .. })));
    signs.map(|sign| told(p, &watch, method.name(), beta, sign)).collect()
}

fn told(p: Patient, watch: &Watch, method: &str, beta: f64, sign: Sign) -> Finding {
    let key = |name: &str| format!("method.{method}.{name}");
    let slower = |name| p.again(name, &[("optim.lr", rate(p.lr() / 5.0))]);
    let firmer = |name| p.again(name, &[(&key("beta"), number(3.0 * beta))]);
    match sign {
        Sign::Still { steps, nats } => {
            let evidence = [
                ("steps", steps.to_string()),
                ("nats between the answers of a pair, against the reference", number(nats)),
                ("learning rate", number(p.lr())),
            ];
            let cause = "The model still says what its reference says: the learning rate is too low for so few steps.";
            let next = vec![p.again("faster", &[("optim.lr", rate(p.lr() * 10.0))])];
            finding(Id::NoMovement, "The model has not left its reference", &evidence, cause.into(), next)
        }
        Sign::Blind { nats, loss } => {
            let evidence = [
                ("loss", number(loss)),
                ("nats between the answers of a pair, against the reference", number(nats)),
                ("beta", number(beta)),
            ];
            let cause =
                "The model moves and the loss does not see it: beta is so small that a difference of nats is nothing.";
            let next = vec![p.again("beta", &[(&key("beta"), "0.1".into())])];
            finding(Id::NoMovement, "The loss stands at 0.693", &evidence, cause.into(), next)
        }
        Sign::Falling { best, now } => {
            let evidence = [("highest share of pairs in the right order", number(best)), ("share now", number(now))];
            let cause =
                "Fewer pairs are in the right order than before: steps are too large, or pairs contradict each other.";
            let next = vec![slower("slower"), firmer("firmer"), p.inspect()];
            finding(Id::AccuracyFalling, "The order of answers gets lost", &evidence, cause.into(), next)
        }
        Sign::Displaced { chosen, rejected, of } => {
            let evidence = [
                ("nats that a chosen answer lost", number(chosen)),
                ("nats that a rejected answer lost", number(rejected)),
                ("nats that a chosen answer began with", number(of)),
            ];
            let cause = format!(
                "Both answers of a pair become unlikely and margins grow all the same (likelihood displacement): what gains \
                 is neither of them. To keep chosen answers likely, {}.",
                watch.remedy()
            );
            let mut next = vec![firmer("firmer"), slower("slower")];
            if matches!(method, "dpo" | "simpo") {
                next.insert(0, p.again("anchored", &[(&key("nll"), "0.1".into())]));
            }
            finding(Id::LikelihoodDisplacement, "Chosen answers become unlikely", &evidence, cause, next)
        }
    }
}
