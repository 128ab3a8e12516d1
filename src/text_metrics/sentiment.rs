//! Scores the sentiment of texts by a lexicon of words with valences.
//!
//! The files of VADER (Hutto and Gilbert 2014) and AFINN (Nielsen 2011) have this layout. The score is a part of VADER's: negations,
//! and a sum that is brought between -1 and 1; without its rules for capitals, punctuation, degrees and conjunctions.

use super::words::split_whitespace;
use std::collections::HashMap;

/// What a valence after a negation is multiplied by (VADER's N_SCALAR).
const NEGATED: f64 = -0.74;
/// Words before a valence in which a negation counts.
const REACH: usize = 3;
/// The sum s of all valences becomes s / sqrt(s^2 + 15), as in VADER.
const ALPHA: f64 = 15.0;
const NEGATIONS: [&str; 14] = [
    "not", "no", "never", "none", "nor", "neither", "nothing", "nowhere", "without", "hardly", "rarely", "seldom",
    "cannot", "nobody",
];

/// Words with their valences.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct SentimentLexicon {
    valences: HashMap<String, f64>,
}

impl SentimentLexicon {
    /// Reads lines with a word, a tab and its valence; what follows after another tab is ignored, as are empty lines and those that
    /// begin with `#` and have no tab. The error is the line's number and what is wrong with it.
    pub fn parse(text: &str) -> Result<Self, (usize, String)> {
        let mut valences = HashMap::new();
        for (i, line) in text.lines().enumerate() {
            if line.trim().is_empty() || (line.starts_with('#') && !line.contains('\t')) {
                continue;
            }
            let mut columns = line.split('\t');
            let (word, valence) = (columns.next().unwrap_or_default().trim(), columns.next().map(str::trim));
            match valence.and_then(|valence| valence.parse::<f64>().ok()).filter(|valence| valence.is_finite()) {
                Some(valence) => drop(valences.insert(word.to_lowercase(), valence)),
                None => return Err((i + 1, format!("expected a word, a tab and a number, found {line:?}"))),
            }
        }
        match valences.is_empty() {
            true => Err((1, "the file has no words".into())),
            false => Ok(Self { valences }),
        }
    }

    /// Returns the sentiment of a text, from -1 (negative) to 1; 0 if it has no word of the lexicon.
    pub fn score(&self, text: &str) -> f64 {
        let words: Vec<String> = split_whitespace(text).map(plain).filter(|word| !word.is_empty()).collect();
        let negates = |word: &String| NEGATIONS.contains(&word.as_str()) || word.ends_with("n't");
        let valence = |(i, word): (usize, &String)| {
            let found = self.valences.get(word)?;
            let negated = words[i.saturating_sub(REACH)..i].iter().any(negates);
            Some(if negated { found * NEGATED } else { *found })
        };
        let sum: f64 = words.iter().enumerate().filter_map(valence).sum();
        sum / (sum * sum + ALPHA).sqrt()
    }
}

/// Returns a word in small letters and without punctuation around it; an emoticon of two or three marks stays.
fn plain(word: &str) -> String {
    let lower = word.to_lowercase().replace('\u{2019}', "'");
    let bare = lower.trim_matches(|c: char| !c.is_alphanumeric());
    if bare.chars().count() < 2 && lower.chars().count() < 4 { lower.clone() } else { bare.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn valences_add_up_and_negations_turn_them() {
        let lexicon = SentimentLexicon::parse("# ours\ngood\t1.9\t0.9\nBad\t-2.5\n:)\t2.0\t[1, 2]\n\n").unwrap();
        let of = |sum: f64| sum / (sum * sum + 15.0).sqrt();
        for (text, sum) in [
            ("A GOOD day.", 1.9),
            ("It isn't a good day", 1.9 * -0.74),
            ("It isn\u{2019}t good", 1.9 * -0.74),
            ("Not all of the days are good", 1.9),
            ("bad, good :)", 1.4),
            ("nothing here", 0.0),
        ] {
            assert!((lexicon.score(text) - of(sum)).abs() < 1e-12, "{text}: {}", lexicon.score(text));
        }
    }

    #[test]
    fn plain_sentences_have_the_scores_of_vader() {
        // vaderSentiment 3.3.2, with the valences of its lexicon.
        let lexicon = SentimentLexicon::parse("good\t1.9\nbad\t-2.5\nterrible\t-2.1\nfriendly\t2.2\n").unwrap();
        for (text, compound) in [
            ("the food is good", 0.4404),
            ("the food is not good", -0.3412),
            ("he isn't a good man", -0.3412),
            ("a bad day and a terrible night", -0.765),
            ("people are friendly here", 0.4939),
        ] {
            assert!((lexicon.score(text) - compound).abs() < 1e-4, "{text}: {}", lexicon.score(text));
        }
    }

    #[test]
    fn a_line_without_a_number_is_told() {
        let told = SentimentLexicon::parse("good\t1\nbad -2\n").unwrap_err();
        assert!(told.0 == 2 && told.1.contains("bad -2"), "{told:?}");
        assert_eq!(SentimentLexicon::parse("good\tNaN\n").unwrap_err().0, 1);
        assert!(SentimentLexicon::parse("# nothing\n").unwrap_err().1.contains("no words"));
    }
}
