//! The training doctor: finds problems of a run in its curves and facts, and gives for each the evidence, the cause and
//! commands to try next.
//!
//! A pure function of the files in the run folder, so that a run in progress, its report and `ft runs show` give the
//! same answer. It reports a problem only if the numbers leave no doubt; for a healthy run it returns nothing.

pub mod finding;
mod numbers;
mod preference;
mod rows;
mod trends;

use finding::{Diagnosis, DiagnosisId, DiagnosisInput};

/// Returns all problems that were found, the most serious first.
pub fn diagnose(patient: DiagnosisInput) -> Vec<Diagnosis> {
    let mut found = Vec::new();
    found.extend(numbers::non_finite(patient));
    // The loss of a policy is around zero and does not show how good the policy is: the method's own alarms watch it
    // instead.
    if !patient.plan.recipe.method.fixed() {
        found.extend(numbers::no_update(patient));
        return found;
    }
    let zero = numbers::loss_zero(patient);
    let still = zero.is_none().then(|| numbers::no_gradient(patient).or_else(|| numbers::no_update(patient))).flatten();
    let rate = trends::learning_rate(patient);
    let compared = preference::diagnose(patient, still.is_some());
    let unmoved = compared.iter().any(|f| f.id == DiagnosisId::NoMovement);
    // A loss that is zero or has no gradient is also flat, so only the more precise finding is reported.
    if zero.is_none() && still.is_none() && rate.is_none() && !unmoved {
        found.extend(trends::flat_loss(patient));
    }
    found.extend(compared);
    found.extend(zero.into_iter().chain(still).chain(rate));
    found.extend(trends::memorisation(patient));
    found.extend(trends::worse(patient, &found));
    found.extend(rows::few_supervised(patient));
    found.sort_by_key(|f| f.id);
    found
}
