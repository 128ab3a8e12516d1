//! Reads gates: conditions on an evaluation's results, such as `icd10.exact_match >= baseline - 0.02`.

use serde::{Serialize, Serializer};

/// A condition on a metric of a task.
#[derive(Debug, Clone, PartialEq)]
pub struct Gate {
    /// The condition as written.
    pub text: String,
    /// Name of the task.
    pub task: String,
    /// Name of the metric.
    pub metric: String,
    /// How the value relates to the bound.
    pub relation: Relation,
    /// What the value is compared with.
    pub bound: Bound,
}

/// How a value has to relate to its bound.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Relation {
    /// `>=`
    AtLeast,
    /// `<=`
    AtMost,
    /// `>`
    Above,
    /// `<`
    Below,
}

/// A bound: `factor * baseline + offset`, where a factor of 0 is a plain number.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Bound {
    /// What the baseline's value is multiplied by.
    pub factor: f64,
    /// What is added to it.
    pub offset: f64,
}

/// A mistake in the text of a gate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GateMistake {
    /// Column of the mistake in characters, counted from 1.
    pub column: usize,
    /// What is wrong.
    pub message: String,
    /// What to write instead.
    pub hint: String,
}

/// An example for messages.
const EXAMPLE: &str = "icd10.exact_match >= baseline - 0.02";

impl Relation {
    const ALL: [(&str, Self); 4] =
        [(">=", Self::AtLeast), ("<=", Self::AtMost), (">", Self::Above), ("<", Self::Below)];

    /// Returns true if `value` relates to `bound` as it has to. NaN never does.
    pub fn holds(self, value: f64, bound: f64) -> bool {
        match self {
            Self::AtLeast => value >= bound,
            Self::AtMost => value <= bound,
            Self::Above => value > bound,
            Self::Below => value < bound,
        }
    }

    /// Returns true for `>=` and `>`.
    pub fn is_from_below(self) -> bool {
        matches!(self, Self::AtLeast | Self::Above)
    }
}

impl Bound {
    /// Returns true if the bound depends on the baseline.
    pub fn is_relative(self) -> bool {
        self.factor != 0.0
    }
}

impl Serialize for Gate {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.text)
    }
}

impl Gate {
    /// Reads `TASK.METRIC RELATION BOUND`. A bound is a number, `baseline`, or `F * baseline + C` with numbers F and C. The name of a
    /// task may contain dots.
    pub fn parse(text: &str) -> Result<Self, GateMistake> {
        let mistake = |byte: usize, message: String, hint: String| GateMistake {
            column: text[..byte].chars().count() + 1,
            message,
            hint,
        };
        let Some(at) = text.find(['<', '>', '=']) else {
            let end = text.trim_end().len();
            return Err(mistake(end, "no >=, <=, > or < in the gate".into(), format!("a gate reads: {EXAMPLE}")));
        };
        let Some((sign, relation)) = Relation::ALL.into_iter().find(|(sign, _)| text[at..].starts_with(sign)) else {
            return Err(mistake(
                at,
                "= is no relation of a gate".into(),
                "write >=, <=, > or <: results of models are never exactly equal".into(),
            ));
        };
        let subject = text[..at].trim_end();
        let start = subject.len() - subject.trim_start().len();
        let Some((task, metric)) = subject.trim().rsplit_once('.').filter(|(t, m)| !t.is_empty() && !m.is_empty())
        else {
            let found = if subject.trim().is_empty() { "nothing".into() } else { format!("`{}`", subject.trim()) };
            return Err(mistake(
                start.min(at),
                format!("TASK.METRIC expected before {sign}, found {found}"),
                format!("a gate reads: {EXAMPLE}"),
            ));
        };
        let bound = BoundReader { text, at: at + sign.len() }
            .read()
            .map_err(|(byte, message, hint)| mistake(byte, message, hint))?;
        Ok(Self { text: text.trim().to_string(), task: task.into(), metric: metric.into(), relation, bound })
    }
}

/// A word of a bound.
#[derive(Clone, PartialEq)]
enum Token {
    Number(f64),
    Baseline,
    Sign(char),
    End,
}

type ReadError = (usize, String, String);

/// Reads the part of a gate after its relation.
struct BoundReader<'a> {
    text: &'a str,
    /// The byte that is read next.
    at: usize,
}

impl BoundReader<'_> {
    fn read(mut self) -> Result<Bound, ReadError> {
        let sign = self.signed()?;
        let first = self.token()?;
        let mut bound = Bound { factor: 0.0, offset: 0.0 };
        match first.1 {
            Token::Baseline => bound.factor = sign * self.factor_after()?,
            Token::Number(n) if self.take('*')? => match self.token()? {
                (_, Token::Baseline) => bound.factor = sign * n,
                (byte, _) => return Err(expected(byte, "`baseline` after *")),
            },
            Token::Number(n) => bound.offset = sign * n,
            _ => return Err(expected(first.0, "a number or `baseline`")),
        }
        if bound.is_relative() || first.1 == Token::Baseline {
            bound.offset = self.offset_after()?;
        }
        match self.token()? {
            (_, Token::End) if bound.is_relative() || first.1 != Token::Baseline => Ok(bound),
            (byte, Token::End) => Err(expected(byte, "a factor other than 0")),
            (byte, _) => Err(expected(byte, "the end of the gate")),
        }
    }

    /// Reads a sign before the bound: 1, or -1 after a minus.
    fn signed(&mut self) -> Result<f64, ReadError> {
        Ok(if self.take('-')? { -1.0 } else { 1.0 })
    }

    fn factor_after(&mut self) -> Result<f64, ReadError> {
        match self.take('*')? {
            true => self.number("a number after *"),
            false => Ok(1.0),
        }
    }

    fn offset_after(&mut self) -> Result<f64, ReadError> {
        if self.take('+')? {
            return self.number("a number after +");
        }
        match self.take('-')? {
            true => Ok(-self.number("a number after -")?),
            false => Ok(0.0),
        }
    }

    fn number(&mut self, what: &str) -> Result<f64, ReadError> {
        match self.token()? {
            (_, Token::Number(n)) => Ok(n),
            (byte, _) => Err(expected(byte, what)),
        }
    }

    /// Reads the sign `sign` if it is next.
    fn take(&mut self, sign: char) -> Result<bool, ReadError> {
        let before = self.at;
        let found = self.token()?.1 == Token::Sign(sign);
        if !found {
            self.at = before;
        }
        Ok(found)
    }

    /// Reads the next word and the byte at which it begins.
    fn token(&mut self) -> Result<(usize, Token), ReadError> {
        let rest = self.text[self.at..].trim_start();
        let start = self.text.len() - rest.len();
        let Some(first) = rest.chars().next() else { return Ok((start, Token::End)) };
        if ['+', '-', '*'].contains(&first) {
            self.at = start + 1;
            return Ok((start, Token::Sign(first)));
        }
        let mut end = rest.find(|c: char| c.is_whitespace() || ['+', '-', '*'].contains(&c)).unwrap_or(rest.len());
        // The sign of an exponent belongs to its number: 1e-3.
        if rest[..end].ends_with(['e', 'E'])
            && (first.is_ascii_digit() || first == '.')
            && rest[end..].starts_with(['+', '-'])
        {
            let after = &rest[end + 1..];
            end += 1 + after.find(|c: char| !c.is_ascii_digit()).unwrap_or(after.len());
        }
        let word = &rest[..end];
        self.at = start + end;
        if word == "baseline" {
            return Ok((start, Token::Baseline));
        }
        if word.ends_with('%') {
            let hint =
                "write 0.02 for two of a hundred items, or 0.98 * baseline for two percent of the baseline's value";
            return Err((start, format!("`{word}`: a percentage may be of the items or of the baseline"), hint.into()));
        }
        match word.parse::<f64>() {
            Ok(n) if n.is_finite() && (first.is_ascii_digit() || first == '.') => Ok((start, Token::Number(n))),
            _ => {
                Err((start, format!("`{word}` is neither a number nor `baseline`"), format!("a gate reads: {EXAMPLE}")))
            }
        }
    }
}

fn expected(byte: usize, what: &str) -> ReadError {
    (byte, format!("{what} expected"), format!("a gate reads: {EXAMPLE}, or 0.98 * baseline, or 0.7"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gates_name_a_task_a_metric_and_a_bound() {
        for (text, task, metric, relation, factor, offset) in [
            ("icd10.exact_match >= baseline - 0.02", "icd10", "exact_match", Relation::AtLeast, 1.0, -0.02),
            (" x.loss<=1.5 ", "x", "loss", Relation::AtMost, 0.0, 1.5),
            ("v1.2.chrf++ > 0.98 * baseline", "v1.2", "chrf++", Relation::Above, 0.98, 0.0),
            ("my task.f1 < baseline * 1.1 + 1e-3", "my task", "f1", Relation::Below, 1.1, 1e-3),
            ("a.mcc >= -0.1", "a", "mcc", Relation::AtLeast, 0.0, -0.1),
            ("a.b >= 0", "a", "b", Relation::AtLeast, 0.0, 0.0),
            ("a.b <= baseline+.5", "a", "b", Relation::AtMost, 1.0, 0.5),
        ] {
            let gate = Gate::parse(text).unwrap_or_else(|e| panic!("{text}: {e:?}"));
            assert_eq!((gate.task.as_str(), gate.metric.as_str(), gate.relation), (task, metric, relation), "{text}");
            assert_eq!(gate.bound, Bound { factor, offset }, "{text}");
            assert_eq!(gate.text, text.trim());
        }
    }

    #[test]
    fn a_mistake_has_its_column() {
        for (text, column, words) in [
            ("", 1, "no >="),
            ("icd10.f1", 9, "no >="),
            ("icd10.f1 == 1", 10, "= is no relation"),
            ("f1 >= 1", 1, "TASK.METRIC"),
            ("  .f1 >= 1", 3, "TASK.METRIC"),
            (">= 1", 1, "found nothing"),
            ("a.b >= ", 8, "a number or `baseline` expected"),
            ("a.b >= base", 8, "`base` is neither"),
            ("ä.b >= baseline - 2%", 19, "percentage"),
            ("a.b >= baseline - ", 19, "a number after - expected"),
            ("a.b >= 2 * 3", 12, "`baseline` after *"),
            ("a.b >= 1 + 2", 10, "the end of the gate"),
            ("a.b >= baseline 1", 17, "the end of the gate"),
            ("a.b >= nan", 8, "neither"),
            ("a.b >= inf", 8, "neither"),
            ("a.b >= 1e999", 8, "neither"),
            ("a.b >= baseline * 0", 20, "a factor other than 0"),
        ] {
            let mistake = Gate::parse(text).unwrap_err();
            assert_eq!(mistake.column, column, "{text}: {mistake:?}");
            assert!(mistake.message.contains(words) && !mistake.hint.is_empty(), "{text}: {mistake:?}");
        }
    }

    #[test]
    fn any_words_are_a_gate_or_a_mistake_with_a_column_in_the_text() {
        const WORDS: [&str; 9] = ["ä.b", " >= ", "=", "baseline", " - ", "*", "1e+", ".5e-3", "%"];
        let mut gates = 0;
        for number in 0..WORDS.len().pow(5) {
            let word = |place: u32| WORDS[number / WORDS.len().pow(place) % WORDS.len()];
            let text: String = (0..5).map(word).collect();
            match Gate::parse(&text) {
                Ok(gate) => gates += usize::from(gate.bound.offset.is_finite() && gate.bound.factor.is_finite()),
                Err(mistake) => {
                    assert!((1..=text.chars().count() + 1).contains(&mistake.column), "{text}: {mistake:?}")
                }
            }
        }
        assert!(gates > 5, "{gates}");
        assert_eq!(Gate::parse("a.b >= .5e-3").unwrap().bound.offset, 0.0005);
    }

    #[test]
    fn nothing_relates_to_nan() {
        for (_, relation) in Relation::ALL {
            assert!(!relation.holds(f64::NAN, 1.0));
        }
        assert!(Relation::AtLeast.holds(1.0, 1.0) && !Relation::Above.holds(1.0, 1.0));
    }
}
