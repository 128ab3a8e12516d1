//! Diagnoses runs of preference methods (DPO, KTO, ORPO, SimPO).
//!
//! Uses the same signs as the alarms of a run in progress (`methods::preference_alarms`), here on the curves of the
//! whole run.

use super::finding::{Diagnosis, DiagnosisId, DiagnosisInput, finding, number, rate};
use crate::methods::MethodSpec;
use crate::methods::preference_alarms::{PreferenceMonitor, PreferenceSymptom};

/// Returns the findings of a preference run; none for other methods. `still`: another finding already reports that the
/// weights do not change, so it is not repeated.
pub fn diagnose(p: DiagnosisInput, still: bool) -> Vec<Diagnosis> {
    let method = &p.plan.recipe.method;
    let beta = match method {
        MethodSpec::Dpo(spec) => spec.beta,
        MethodSpec::Kto(spec) => spec.beta,
        MethodSpec::Orpo(spec) => spec.beta,
        MethodSpec::Simpo(spec) => spec.beta,
        _ => return Vec::new(),
    };
    let mut watch = PreferenceMonitor::new(method.name(), beta);
    for point in p.applied() {
        let more = |name: &str| point.more.iter().find(|(k, _)| k == name).map_or(f64::NAN, |(_, v)| *v);
        watch.record(|name| if name == "loss" { point.loss } else { more(name) });
    }
    let signs = watch.symptoms().into_iter();
    let signs = signs.filter(|sign| !(still && matches!(sign, PreferenceSymptom::Unchanged { .. })));
    signs.map(|sign| diagnosis_of(p, &watch, method.name(), beta, sign)).collect()
}

fn diagnosis_of(
    p: DiagnosisInput,
    watch: &PreferenceMonitor,
    method: &str,
    beta: f64,
    sign: PreferenceSymptom,
) -> Diagnosis {
    let key = |name: &str| format!("method.{method}.{name}");
    let slower = |name| p.rerun_command(name, &[("optim.lr", rate(p.lr() / 5.0))]);
    let firmer = |name| p.rerun_command(name, &[(&key("beta"), number(3.0 * beta))]);
    match sign {
        PreferenceSymptom::Unchanged { steps, nats } => {
            let evidence = [
                ("steps", steps.to_string()),
                ("nats between the answers of a pair, against the reference", number(nats)),
                ("learning rate", number(p.lr())),
            ];
            let cause =
                "The model has hardly changed from its reference: the learning rate is too low for so few steps.";
            let next = vec![p.rerun_command("faster", &[("optim.lr", rate(p.lr() * 10.0))])];
            finding(
                DiagnosisId::NoMovement,
                "The model does not differ from its reference",
                &evidence,
                cause.into(),
                next,
            )
        }
        PreferenceSymptom::BetaTooSmall { nats, loss } => {
            let evidence = [
                ("loss", number(loss)),
                ("nats between the answers of a pair, against the reference", number(nats)),
                ("beta", number(beta)),
            ];
            let cause =
                "The model changes, but the loss does not: beta is so small that differences in nats hardly count.";
            let next = vec![p.rerun_command("beta", &[(&key("beta"), "0.1".into())])];
            finding(DiagnosisId::NoMovement, "The loss stays at 0.693", &evidence, cause.into(), next)
        }
        PreferenceSymptom::AccuracyFalls { best, now } => {
            let evidence = [("highest share of pairs in the right order", number(best)), ("share now", number(now))];
            let cause =
                "Fewer pairs are in the right order than before: steps are too large, or pairs contradict each other.";
            let next = vec![slower("slower"), firmer("firmer"), p.inspect_command()];
            finding(DiagnosisId::AccuracyFalling, "Fewer pairs are in the right order", &evidence, cause.into(), next)
        }
        PreferenceSymptom::Displaced { chosen, rejected, of } => {
            let evidence = [
                ("nats that a chosen answer lost", number(chosen)),
                ("nats that a rejected answer lost", number(rejected)),
                ("nats of a chosen answer at the start", number(of)),
            ];
            let cause = format!(
                "Both answers of a pair become less likely while margins still grow (likelihood displacement): the \
                 probability goes to other answers. To keep chosen answers likely, {}.",
                watch.remedy()
            );
            let mut next = vec![firmer("firmer"), slower("slower")];
            if matches!(method, "dpo" | "simpo") {
                next.insert(0, p.rerun_command("anchored", &[(&key("nll"), "0.1".into())]));
            }
            finding(DiagnosisId::LikelihoodDisplacement, "Chosen answers become unlikely", &evidence, cause, next)
        }
    }
}
