//! Alarms: looks for problems in the metrics of a run's steps. One mechanism for all methods; each method has a table
//! of rules.
//!
//! A [`Watch`] gives the metrics of each step to a record, which keeps what the rules need (sums, windows, the first
//! iterations). Then it asks each rule of the table in turn. Rules are pure functions of the record.

use super::contract::{Alarm, Means};

/// What a watch keeps of the metrics of a run.
pub trait RunRecord {
    /// Adds the metrics of a step.
    fn record(&mut self, means: &Means);
}

/// A problem of a run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// What is wrong and why.
    pub cause: String,
    /// What to try next.
    pub next: String,
}

impl Problem {
    /// Creates a problem from its two texts.
    pub fn new(cause: impl Into<String>, next: impl Into<String>) -> Self {
        Self { cause: cause.into(), next: next.into() }
    }
}

/// A row of a method's table of alarms.
pub struct AlarmRule<R> {
    /// The rule's name; checkpoints refer to rules by it.
    pub name: &'static str,
    /// True if further steps would do harm, so that the alarm ends the run.
    pub harmful: bool,
    /// Returns the problem that the record shows after its last step.
    pub find: fn(&R) -> Option<Problem>,
}

/// How often the alarm of a rule is given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Repeat {
    /// At each step that shows the problem. (The training loop prints equal causes once.)
    EachStep,
    /// Once per run. For rules whose cause contains numbers, which differ at each step.
    Once,
}

/// Checks the metrics of each step against a table of rules.
pub struct Watch<R: 'static> {
    record: R,
    rules: &'static [AlarmRule<R>],
    repeat: Repeat,
    /// True if the alarms of harmful rules end the run.
    stop: bool,
    /// For each rule, whether its alarm was given.
    reported: Vec<bool>,
}

impl<R: RunRecord> Watch<R> {
    /// Starts with a record of no steps. If `stop` is false, harmful problems are only reported.
    pub fn new(record: R, rules: &'static [AlarmRule<R>], repeat: Repeat, stop: bool) -> Self {
        Self { record, rules, repeat, stop, reported: vec![false; rules.len()] }
    }

    /// Adds the metrics of a step and returns an alarm for each problem that the record then shows, in the order of the
    /// table.
    pub fn check(&mut self, means: &Means) -> Vec<Alarm> {
        self.record.record(means);
        let mut alarms = Vec::new();
        for (rule, reported) in self.rules.iter().zip(&mut self.reported) {
            let Some(Problem { cause, next }) = (rule.find)(&self.record) else { continue };
            let before = std::mem::replace(reported, true);
            if !(before && self.repeat == Repeat::Once) {
                alarms.push(Alarm { cause, next, stop: self.stop && rule.harmful });
            }
        }
        alarms
    }

    /// Returns what was kept of the steps so far.
    pub fn record(&self) -> &R {
        &self.record
    }

    /// Returns the same, to restore it from a checkpoint.
    pub fn record_mut(&mut self) -> &mut R {
        &mut self.record
    }

    /// Returns true if the alarm of the rule with this name was given.
    pub fn was_reported(&self, name: &str) -> bool {
        self.rules.iter().zip(&self.reported).any(|(rule, reported)| rule.name == name && *reported)
    }

    /// Restores what `was_reported` returned for the rule with this name.
    pub fn set_reported(&mut self, name: &str, given: bool) {
        let rule = self.rules.iter().zip(&mut self.reported).find(|(rule, _)| rule.name == name);
        rule.into_iter().for_each(|(_, reported)| *reported = given);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The last loss.
    struct LastLoss(f64);

    impl RunRecord for LastLoss {
        fn record(&mut self, means: &Means) {
            self.0 = means["loss"];
        }
    }

    const RULES: &[AlarmRule<LastLoss>] = &[
        AlarmRule { name: "high", harmful: true, find: |r| (r.0 > 1.0).then(|| Problem::new("high", "lower it")) },
        AlarmRule {
            name: "odd",
            harmful: false,
            find: |r| (r.0 % 2.0 == 1.0).then(|| Problem::new("odd", "halve it")),
        },
    ];

    #[test]
    fn rules_are_asked_in_order_and_reported_as_often_as_wanted() {
        let step = |loss: f64| Means::from([("loss".to_string(), loss)]);
        let causes = |watch: &mut Watch<LastLoss>, loss: f64| -> Vec<(String, bool)> {
            watch.check(&step(loss)).into_iter().map(|a| (a.cause, a.stop)).collect()
        };
        let mut watch = Watch::new(LastLoss(0.0), RULES, Repeat::EachStep, true);
        assert_eq!(causes(&mut watch, 0.0), []);
        assert_eq!(causes(&mut watch, 3.0), [("high".into(), true), ("odd".into(), false)]);
        assert_eq!(causes(&mut watch, 2.0), [("high".into(), true)]);
        let mut watch = Watch::new(LastLoss(0.0), RULES, Repeat::Once, false);
        assert_eq!(causes(&mut watch, 2.0), [("high".into(), false)]);
        assert_eq!(causes(&mut watch, 3.0), [("odd".into(), false)]);
        assert_eq!(causes(&mut watch, 3.0), []);
        watch.set_reported("odd", false);
        assert!(watch.was_reported("high") && !watch.was_reported("odd") && watch.record().0 == 3.0);
        assert_eq!(causes(&mut watch, 3.0), [("odd".into(), false)]);
    }
}
