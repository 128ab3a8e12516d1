//! Splits texts into sentences and words by rules.

use super::check::is_upper;
use crate::text_metrics::words::split_whitespace;

/// Words before a period that does not end a sentence.
const ABBREVIATIONS: [&str; 22] = [
    "mr", "mrs", "ms", "dr", "st", "prof", "capt", "lt", "gen", "rev", "inc", "ltd", "jr", "sr", "co", "vs", "e.g",
    "i.e", "cf", "fig", "no", "ph.d",
];
/// Ends of English words that are words of their own after an apostrophe.
const CONTRACTIONS: [&str; 6] = ["'s", "'m", "'d", "'ll", "'re", "'ve"];

/// Counts sentences: a sentence ends with `.`, `!`, `?` or `…`, and closing quotation marks and brackets, before white space. A period
/// after a usual abbreviation, a single letter or a letter with inner periods ends none unless the text ends there. Full stops of
/// Chinese, Japanese and Hindi need no white space.
pub fn sentences(text: &str) -> usize {
    let (mut count, mut word, mut open) = (0, String::new(), false);
    let mut rest = text.trim().chars().peekable();
    while let Some(c) = rest.next() {
        match c {
            '。' | '！' | '？' | '।' => {
                count += usize::from(open);
                (open, word) = (false, String::new());
                continue;
            }
            '.' | '!' | '?' | '…' => {
                let mut marks = String::from(c);
                while let Some(mark) = rest.next_if(|c| ".!?…\"'”’)]»".contains(*c)) {
                    marks.push(mark);
                }
                let at_end = rest.peek().is_none();
                let ends = rest.peek().is_none_or(|next| next.is_whitespace());
                let continues = marks == "." && !at_end && is_abbreviation(&word);
                if ends && open && !continues {
                    count += 1;
                    (open, word) = (false, String::new());
                } else {
                    word += &marks;
                }
            }
            c if c.is_whitespace() => word.clear(),
            c => {
                open |= c.is_alphanumeric();
                word.push(c);
            }
        }
    }
    count + usize::from(open)
}

fn is_abbreviation(word: &str) -> bool {
    let word = word.trim_start_matches(|c: char| !c.is_alphanumeric()).to_lowercase();
    let letters = word.split('.').all(|part| part.chars().count() == 1 && part.chars().all(char::is_alphabetic));
    letters || ABBREVIATIONS.contains(&word.as_str())
}

/// Counts words in capital letters, as the Treebank's tokens are: punctuation around a word is not part of it, hyphens and periods
/// inside are, and what follows an apostrophe (`'S`, `N'T`) is a word of its own.
pub fn capital_words(text: &str) -> usize {
    let pieces = text.split(|c: char| c.is_whitespace() || ",;:!?()[]{}<>\"“”«»@#$%&".contains(c));
    let pieces = pieces.flat_map(split_whitespace).flat_map(|piece| piece.split("--"));
    pieces.map(|piece| split_contraction(piece).iter().filter(|word| is_upper(word)).count()).sum()
}

fn split_contraction(word: &str) -> Vec<&str> {
    let trimmed = word.trim_end_matches(['.', '\'']);
    let lower = trimmed.to_lowercase();
    // Lower case of other scripts may have another length.
    if lower.len() != trimmed.len() {
        return vec![trimmed];
    }
    let end = CONTRACTIONS.iter().find(|end| lower.ends_with(**end)).map(|end| end.len());
    let end = end.or_else(|| lower.ends_with("n't").then_some(3)).filter(|end| *end < trimmed.len());
    match end.map(|end| trimmed.split_at(trimmed.len() - end)) {
        Some((front, back)) => vec![front, back],
        None => vec![trimmed],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sentences_end_before_white_space_and_not_after_abbreviations() {
        for (text, n) in [
            ("One. Two! Three?", 3),
            ("Really?! Yes... He said \"no.\" Then he left", 4),
            ("Dr. Smith met Mr. Jones at 3.5 km, i.e. far away.", 1),
            ("J. R. Tolkien wrote it. See www.example.com for more.", 2),
            ("He lives in the U.S. since May.", 1),
            ("今日は。元気ですか？はい。", 3),
            ("", 0),
            (" \n... !", 0),
            ("no end", 1),
            ("First line\nsecond line. Third.", 2),
        ] {
            assert_eq!(sentences(text), n, "{text}");
        }
    }

    #[test]
    fn capital_words_are_counted_without_punctuation() {
        for (text, n) in [
            ("THE END, of IT ALL.", 4),
            ("IT'S a B-PLAN (NATO).", 4),
            ("DON'T I", 3),
            ("Nothing here, 42 %", 0),
            ("A1 U.S.A. Ünder ÜBER", 3),
        ] {
            assert_eq!(capital_words(text), n, "{text}");
        }
    }
}
