//! Formats values of metrics for people.

use crate::eval::baselines::RuleResult;
use crate::eval::results::{MetricInfo, TaskResults};
use crate::runs::number::number;
use crate::stats::bootstrap::Estimate;

/// How a metric is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NumberFormat {
    /// A share: `62.5 %`; differences in points.
    Share,
    /// Any other number.
    Plain,
}

impl NumberFormat {
    /// Returns the format of a metric: that of a share if every score of an item, or every value if items have no scores, is between 0 and 1,
    /// and larger values are better or every score is 0 or 1.
    pub fn of(task: &TaskResults, metric: &MetricInfo) -> Self {
        let scores = task.results.iter().flat_map(|r| r.answers.iter().filter_map(|a| a.scores.get(&metric.name)));
        let values = task.results.iter().filter_map(|r| r.estimates.get(&metric.name).map(|e| &e.value));
        let all: Vec<&f64> = scores.chain(values).collect();
        // Of metrics that are better if they are smaller, those of right and wrong are shares; a loss below 1 is none.
        let scores = task.results.iter().flat_map(|r| r.answers.iter().filter_map(|a| a.scores.get(&metric.name)));
        let is_rate = scores.clone().next().is_some() && scores.clone().all(|score| *score == 0.0 || *score == 1.0);
        // A correlation is no share even if it is positive.
        let is_share = (metric.higher_is_better || is_rate)
            && !["mcc", "sentiment"].contains(&metric.name.as_str())
            && all.iter().all(|v| (0.0..=1.0).contains(*v));
        if is_share && !all.is_empty() { Self::Share } else { Self::Plain }
    }

    /// Returns the format of what a rule without a model reaches: that of the task's main metric, or of a share of right answers.
    pub fn of_rule(task: &TaskResults, rule: &RuleResult) -> Self {
        let metric = task.metrics.iter().find(|metric| metric.name == rule.metric);
        metric.map_or(Self::Share, |metric| Self::of(task, metric))
    }

    /// Formats a value.
    pub fn value(self, x: f64) -> String {
        match self {
            Self::Share => format!("{:.1} %", 100.0 * x),
            Self::Plain => number(x),
        }
    }

    /// Formats a value without its unit.
    pub fn bare(self, x: f64) -> String {
        match self {
            Self::Share => format!("{:.1}", 100.0 * x),
            Self::Plain => number(x),
        }
    }

    /// Formats a difference with its sign and without its unit.
    pub fn bare_difference(self, x: f64) -> String {
        // Zero has no sign.
        let sign = if x > 0.0 { "+" } else { "" };
        let text = self.bare(x);
        if text.trim_start_matches('-').chars().all(|c| c == '0' || c == '.') {
            return text.trim_start_matches('-').to_string();
        }
        sign.to_string() + &text
    }

    /// Formats a difference: `+5.0 points`, or a plain number with its sign.
    pub fn difference(self, x: f64) -> String {
        self.bare_difference(x) + self.unit()
    }

    /// Formats the size of a difference: `5.0 points`, or a plain number.
    pub fn size(self, x: f64) -> String {
        self.bare(x) + self.unit()
    }

    fn unit(self) -> &'static str {
        match self {
            Self::Share => " points",
            Self::Plain => "",
        }
    }

    /// Formats an interval of values.
    pub fn interval(self, [low, high]: [f64; 2]) -> String {
        format!("{} to {}", self.bare(low), self.bare(high))
    }

    /// Formats an interval of differences.
    pub fn difference_interval(self, [low, high]: [f64; 2]) -> String {
        format!("{} to {}", self.bare_difference(low), self.bare_difference(high))
    }

    /// Formats a value with its interval in parentheses.
    pub fn estimate(self, found: Estimate) -> String {
        self.value(found.value) + &found.interval.map_or(String::new(), |ends| format!(" ({})", self.interval(ends)))
    }

    /// Formats a difference with its interval in parentheses.
    pub fn difference_estimate(self, value: f64, interval: Option<[f64; 2]>) -> String {
        self.difference(value)
            + &interval.map_or(String::new(), |ends| format!(" ({})", self.difference_interval(ends)))
    }
}

/// Formats a p-value.
pub fn p_value(p: f64) -> String {
    if p < 0.0001 { "< 0.0001".into() } else { format!("{p:.4}") }
}

/// Returns a name of a metric as words: `exact match` for `exact_match`.
pub fn words(name: &str) -> String {
    name.replace('_', " ")
}

/// Returns a list as people write it: `a, b and c`.
pub fn list(names: &[&str]) -> String {
    match names {
        [] => String::new(),
        [one] => one.to_string(),
        [front @ .., last] => format!("{} and {last}", front.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_percent_and_their_differences_points() {
        let share = NumberFormat::Share;
        assert_eq!((share.value(0.625), share.difference(0.05)), ("62.5 %".into(), "+5.0 points".into()));
        assert_eq!(share.difference_estimate(-0.02, Some([-0.05, 0.0])), "-2.0 points (-5.0 to 0.0)");
        assert_eq!(share.bare_difference(-0.00001), "0.0");
        assert_eq!(NumberFormat::Plain.difference_estimate(0.25, Some([0.1, 0.4])), "+0.2500 (+0.1000 to +0.4000)");
        assert_eq!((p_value(0.0), p_value(0.03)), ("< 0.0001".into(), "0.0300".into()));
        assert_eq!(list(&["a", "b", "c"]), "a, b and c");
    }
}
