//! Chooses the next token from logits: temperature, then top-k, top-p and min-p (the order of transformers), then one
//! sample per row.
//!
//! Everything runs on the logits' device. The random numbers come from the host, which does not wait while they are
//! uploaded; it waits once per step, for the chosen tokens. Of tokens that tie at rank k, exactly k are kept
//! (transformers keeps all of them).

use super::settings::GenerationSettings;
use crate::error::{Error, Result};
use crate::native::{self, fetch, upload_slice};
use tch::{Kind, Tensor};

/// With top-p alone, only this many of the most likely tokens are sorted first: their probabilities nearly always reach
/// `top_p`. If they do not, all tokens are sorted.
const TOP_P_SORTED: i64 = 512;

/// The tokens that may come next, with their weights, for each row of logits.
pub struct TokenCandidates {
    /// (B, N) token ids; `None`: column n is token n.
    ids: Option<Tensor>,
    /// (B, N) weights, float32: 0 where a token is cut. They need not add up to 1.
    weights: Tensor,
}

impl TokenCandidates {
    /// Applies temperature, top-k, top-p and min-p to `logits` (B, V) float32. The settings must not be greedy.
    pub fn new(logits: &Tensor, settings: &GenerationSettings) -> Self {
        let (first, reached) = Self::most_likely(logits, settings, TOP_P_SORTED);
        match reached {
            Some(reached) if !is_enough(&reached, settings) => Self::most_likely(logits, settings, i64::MAX).0,
            _ => first,
        }
    }

    /// Does the same, but with top-p alone considers only the `sorted` most likely tokens. If these are not all, also
    /// returns the smallest sum of their probabilities over the rows, a scalar float64: they are enough if it reaches
    /// `top_p`.
    fn most_likely(logits: &Tensor, settings: &GenerationSettings, sorted: i64) -> (Self, Option<Tensor>) {
        let (Self { ids, weights }, reached) = Self::top_candidates(logits, settings, sorted);
        if settings.min_p <= 0.0 {
            return (Self { ids, weights }, reached);
        }
        let least = weights.amax([-1i64].as_slice(), true) * settings.min_p;
        (Self { ids, weights: &weights * weights.ge_tensor(&least).to_kind(Kind::Float) }, reached)
    }

    /// Applies temperature, top-k and top-p.
    fn top_candidates(logits: &Tensor, settings: &GenerationSettings, sorted: i64) -> (Self, Option<Tensor>) {
        let scaled = logits / settings.temperature;
        let vocabulary = logits.size()[1];
        let top_k = (settings.top_k as i64).min(vocabulary);
        if top_k > 0 {
            let (values, ids) = scaled.topk(top_k, -1, true, true);
            let weights = cut_top_p(&values.softmax(-1, Kind::Float), settings.top_p);
            return (Self { ids: Some(ids), weights }, None);
        }
        let p = scaled.softmax(-1, Kind::Float);
        if settings.top_p >= 1.0 {
            return (Self { ids: None, weights: p }, None);
        }
        let (most, ids) = match sorted {
            i64::MAX => p.sort(-1, true),
            sorted => p.topk(sorted.min(vocabulary), -1, true, true),
        };
        let reached =
            (sorted < vocabulary).then(|| most.sum_dim_intlist([-1i64].as_slice(), false, Kind::Double).min());
        (Self { ids: Some(ids), weights: cut_top_p(&most, settings.top_p) }, reached)
    }

    /// Returns (B, vocabulary) probabilities, which add up to 1 in each row.
    pub fn probabilities(&self, vocabulary: i64) -> Tensor {
        let p = &self.weights / self.weights.sum_dim_intlist([-1i64].as_slice(), true, Kind::Float);
        match &self.ids {
            None => p,
            Some(ids) => Tensor::zeros([p.size()[0], vocabulary], (Kind::Float, p.device())).scatter_(-1, ids, &p),
        }
    }

    /// Samples one token per row, with its log-probability, by inverting the cumulative sum at `draws`, one number per
    /// row, uniform in [0, 1).
    pub fn sample(&self, draws: &[f64]) -> Result<Vec<(u32, f32)>> {
        let (ids, log_probs) = self.choose(draws);
        let [ids, log_probs] = fetch([&ids, &log_probs]);
        pairs(&ids, &log_probs)
    }

    /// Samples like `sample`; returns ids (B) int64 and log-probabilities (B) float64 on the device.
    fn choose(&self, draws: &[f64]) -> (Tensor, Tensor) {
        let sums = running_sums(&self.weights);
        // Rounding could make the product equal to the whole sum, which would select an index after the last token.
        let draws: Vec<f64> = draws.iter().map(|u| u.min(1.0 - 4.0 * f64::EPSILON)).collect();
        let total = sums.narrow(-1, sums.size()[1] - 1, 1); // (B, 1)
        let at = upload_slice(&draws, sums.device()).view([-1, 1]) * &total;
        let column = at.searchsorted(&sums, false, true, "right", None::<&Tensor>).clamp_max(sums.size()[1] - 1);
        let weight = self.weights.gather(-1, &column, false).to_kind(Kind::Double);
        let ids = self.ids.as_ref().map_or_else(|| column.shallow_clone(), |ids| ids.gather(-1, &column, false));
        (ids.view([-1]), (weight / total).log().view([-1]))
    }
}

/// Returns true if the sum of probabilities that [`TokenCandidates::most_likely`] reached is enough for top-p.
fn is_enough(reached: &Tensor, settings: &GenerationSettings) -> bool {
    let sum = reached.double_value(&[]);
    // A sum that is not a number is no reason to sort more; the chosen tokens' log-probabilities report it.
    sum >= settings.top_p || sum.is_nan()
}

/// Returns the running sums of probabilities (B, N) along each row, float64.
///
/// A GPU adds floating-point numbers in no fixed order. Where one is asked for (`run.deterministic`), it adds multiples
/// of 2^-52 as integers, which have the same sum in any order.
fn running_sums(probabilities: &Tensor) -> Tensor {
    let unit = 2f64.powi(52);
    match probabilities.device().is_cuda() && native::arithmetic().is_ok_and(|a| a.deterministic) {
        true => {
            let whole = (probabilities.to_kind(Kind::Double) * unit).round().to_kind(Kind::Int64);
            whole.cumsum(-1, Kind::Int64).to_kind(Kind::Double) / unit
        }
        false => probabilities.cumsum(-1, Kind::Double),
    }
}

/// Sets the sorted probabilities to 0 that come after the sum has reached `top_p`. The first one always remains.
fn cut_top_p(sorted: &Tensor, top_p: f64) -> Tensor {
    if top_p >= 1.0 {
        return sorted.shallow_clone();
    }
    let before = running_sums(sorted) - sorted.to_kind(Kind::Double);
    sorted * before.lt(top_p).to_kind(sorted.kind())
}

/// Returns the most likely token of each row of `logits` (B, V), and its logit.
pub fn most_likely(logits: &Tensor) -> Result<Vec<(u32, f32)>> {
    let (values, ids) = logits.max_dim(-1, false);
    let [ids, values] = fetch([&ids, &values]);
    pairs(&ids, &values)
}

/// Reads token ids and their log-probabilities (B) on the CPU. Fails if one of these is NaN or infinite: then the
/// logits were, or every token of a row is forbidden.
fn pairs(ids: &Tensor, log_probs: &Tensor) -> Result<Vec<(u32, f32)>> {
    let ids = Vec::<i64>::try_from(ids)?;
    let log_probs = Vec::<f32>::try_from(log_probs.to_kind(Kind::Float))?;
    if log_probs.contains(&f32::NEG_INFINITY) {
        return Err(no_token());
    }
    if log_probs.iter().any(|w| !w.is_finite()) {
        return Err(not_a_number());
    }
    Ok(ids.into_iter().map(|id| id as u32).zip(log_probs).collect())
}

/// The error for a row in which every token is forbidden.
pub(super) fn no_token() -> Error {
    Error::user("the rules of generation leave no token")
        .hint("bad words, repeated n-grams and forced tokens contradict each other")
}

/// The error for logits that are NaN or infinite.
pub(super) fn not_a_number() -> Error {
    Error::user("the model's output is not a number")
        .hint("its weights or its adapter contain NaN or infinite values; was the training run stable?")
}

/// The next token of each row.
pub struct ChosenTokens {
    /// Token ids with their log-probabilities, which are 0 for greedy settings that do not ask for them.
    pub tokens: Vec<(u32, f32)>,
    /// (B) int64 the same ids on the logits' device.
    pub ids: Tensor,
}

/// Chooses the next token of each row of `logits` (B, V) float32. `draws` returns one random number per row; it is not
/// called for greedy settings. The host waits once for the device; twice if the most likely tokens do not reach top-p.
pub fn next_tokens(
    logits: &Tensor,
    settings: &GenerationSettings,
    draws: impl FnOnce() -> Vec<f64>,
) -> Result<ChosenTokens> {
    if settings.is_greedy() {
        return greedy_tokens(logits, settings);
    }
    let draws = draws();
    let (candidates, reached) = TokenCandidates::most_likely(logits, settings, TOP_P_SORTED);
    let (ids, log_probs) = candidates.choose(&draws);
    let Some(reached) = reached else {
        let [host, log_probs] = fetch([&ids, &log_probs]);
        return Ok(ChosenTokens { tokens: pairs(&host, &log_probs)?, ids });
    };
    let [host, log_probs, reached] = fetch([&ids, &log_probs, &reached]);
    if is_enough(&reached, settings) {
        return Ok(ChosenTokens { tokens: pairs(&host, &log_probs)?, ids });
    }
    let (ids, log_probs) = TokenCandidates::most_likely(logits, settings, i64::MAX).0.choose(&draws);
    let [host, log_probs] = fetch([&ids, &log_probs]);
    Ok(ChosenTokens { tokens: pairs(&host, &log_probs)?, ids })
}

fn greedy_tokens(logits: &Tensor, settings: &GenerationSettings) -> Result<ChosenTokens> {
    let (values, ids) = logits.max_dim(-1, false);
    if !settings.log_probs {
        let [host, values] = fetch([&ids, &values]);
        let tokens = pairs(&host, &values)?.into_iter().map(|(id, _)| (id, 0.0)).collect();
        return Ok(ChosenTokens { tokens, ids });
    }
    let sums = logits.logsumexp([-1i64].as_slice(), false);
    let [host, values, sums] = fetch([&ids, &values, &sums]);
    let sums = Vec::<f32>::try_from(sums)?;
    let tokens = pairs(&host, &values)?.into_iter().zip(sums).map(|((id, x), sum)| (id, x - sum)).collect();
    Ok(ChosenTokens { tokens, ids })
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::Device;

    fn settings(temperature: f64, top_k: usize, top_p: f64) -> GenerationSettings {
        GenerationSettings { temperature, top_k, top_p, ..GenerationSettings::greedy(1, &[]) }
    }

    #[test]
    fn draws_fall_where_the_sum_says() {
        let logits = Tensor::from_slice(&[0.5f32, 0.2, 0.3]).log().view([1, 3]);
        let all = TokenCandidates::new(&logits, &settings(1.0, 0, 1.0));
        let one = |c: &TokenCandidates, u: f64| c.sample(&[u]).unwrap()[0].0;
        assert_eq!([0.0, 0.49, 0.51, 0.69, 0.71, 1.0].map(|u| one(&all, u)), [0, 0, 1, 1, 2, 2]);
        // 0.5 + 0.3 reach 0.7: token 1 is out, the order is 0, 2.
        let nucleus = TokenCandidates::new(&logits, &settings(1.0, 0, 0.7));
        assert_eq!([0.0, 0.62, 0.63, 1.0].map(|u| one(&nucleus, u)), [0, 0, 2, 2]);
        let top = TokenCandidates::new(&logits, &settings(1.0, 1, 1.0));
        assert_eq!([0.0, 1.0].map(|u| one(&top, u)), [0, 0]);
    }

    #[test]
    fn a_flat_distribution_is_sorted_whole_for_top_p() {
        let logits = Tensor::arange(4000, (Kind::Float, Device::Cpu)).view([1, -1]) * 1e-5;
        let p = TokenCandidates::new(&logits, &settings(1.0, 0, 0.5)).probabilities(4000);
        let kept = p.gt(0.0).sum(Kind::Int64).int64_value(&[]);
        assert!((1900..2000).contains(&kept), "{kept}"); // a little under half: the likely half
        assert_eq!(p.double_value(&[0, 0]), 0.0);
        assert!(p.double_value(&[0, 3999]) > 0.0);
    }

    #[test]
    fn a_choice_of_too_few_sorted_tokens_is_made_again() {
        let flat = Tensor::arange(8000, (Kind::Float, Device::Cpu)).view([2, -1]) * 1e-5;
        let draws = [0.3, 0.97];
        for top_p in [0.1, 0.5] {
            let settings = settings(1.0, 0, top_p);
            let chosen = next_tokens(&flat, &settings, || draws.to_vec()).unwrap();
            assert_eq!(chosen.tokens, TokenCandidates::new(&flat, &settings).sample(&draws).unwrap());
            let ids: Vec<i64> = chosen.tokens.iter().map(|(id, _)| i64::from(*id)).collect();
            assert_eq!(chosen.ids, Tensor::from_slice(&ids));
            // 512 tokens have a little over an eighth of the probability.
            assert_eq!(ids.iter().any(|id| *id < 4000 - 512), top_p > 0.2, "{ids:?}");
        }
    }

    #[test]
    fn nan_logits_are_an_error() {
        let logits = Tensor::from_slice(&[0.5f32, f32::NAN, 0.3, 0.1]).view([2, 2]);
        assert!(most_likely(&logits).unwrap_err().message().contains("not a number"));
        for s in [settings(1.0, 0, 1.0), settings(1.0, 2, 1.0), settings(1.0, 0, 0.9)] {
            assert!(TokenCandidates::new(&logits, &s).sample(&[0.1, 0.1]).is_err());
        }
    }
}
