//! Problems that show in the training rows.

use super::finding::{Diagnosis, DiagnosisId, DiagnosisInput, finding};

/// Finds rows of which few tokens are trained on.
pub fn few_supervised(p: DiagnosisInput) -> Option<Diagnosis> {
    let train = &p.facts?.train;
    let share = train.supervised_share();
    if share >= 0.01 {
        return None;
    }
    let per = train.supervised_tokens as f64 / train.examples.max(1) as f64;
    let evidence = [
        ("share of tokens trained on", format!("{:.3} %", 100.0 * share)),
        ("trained tokens per example", format!("{per:.1}")),
        ("tokens per example", format!("{:.0}", train.tokens as f64 / train.examples.max(1) as f64)),
    ];
    let cause = "Nearly all of the computation goes into prompts: answers are very short compared with them, or \
                 truncated, or the mask excludes them.";
    let shows = format!("{}   # shows which tokens are trained on", p.check_command());
    Some(finding(
        DiagnosisId::FewSupervisedTokens,
        "Hardly any token is trained on",
        &evidence,
        cause.into(),
        vec![shows],
    ))
}
