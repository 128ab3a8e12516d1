//! The translation edit rate (Snover et al. 2006) as `sacrebleu` computes it by default: the smallest number of words that are inserted,
//! deleted, replaced or moved as a group to make a reference of an answer, found greedily and near the diagonal.
//!
//! Case does not count, words are what stands between white space. `tests/it/text_metrics.rs` compares it with `sacrebleu`.

use super::words::split_whitespace;
use std::cmp::Reverse;

/// Most words that are moved together.
const LONGEST_SHIFT: usize = 10;
/// Most places that words are moved by.
const FARTHEST_SHIFT: usize = 50;
/// How far from the diagonal words are compared.
const BEAM: usize = 25;
/// Most shifts that are tried for an answer.
const MOST_SHIFTS: usize = 1000;
/// The cost of a cell that was not reached.
const UNREACHED: usize = usize::MAX / 2;

/// What the rate of a whole file is computed from: the sums over its answers.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct TerCounts {
    /// Edits with the reference that needs the fewest.
    edits: usize,
    /// The mean number of words of the references.
    words: f64,
}

impl TerCounts {
    /// Counts one answer.
    pub fn of(answer: &str, references: &[impl AsRef<str>]) -> Self {
        let answer = answer.to_lowercase();
        let answer: Vec<&str> = split_whitespace(&answer).collect();
        let (mut best, mut words) = (None, 0);
        for reference in references {
            let reference = reference.as_ref().to_lowercase();
            let reference: Vec<&str> = split_whitespace(&reference).collect();
            let edits = edits(&answer, &reference);
            words += reference.len();
            best = Some(best.map_or(edits, |best: usize| best.min(edits)));
        }
        Self { edits: best.unwrap_or(0), words: words as f64 / references.len().max(1) as f64 }
    }

    /// Adds the counts of another answer.
    pub fn add(&mut self, other: &Self) {
        self.edits += other.edits;
        self.words += other.words;
    }

    /// Returns the rate in percent; it is above 100 if there are more edits than words. 100 without words of references, and 0 if nothing
    /// was written then.
    pub fn score(&self) -> f64 {
        match (self.edits, self.words) {
            (0, _) => 0.0,
            (_, 0.0) => 100.0,
            (edits, words) => 100.0 * edits as f64 / words,
        }
    }
}

/// Counts the edits that make a reference of an answer.
fn edits(answer: &[&str], reference: &[&str]) -> usize {
    if reference.is_empty() {
        return answer.len();
    }
    let (mut words, mut shifts, mut tried) = (answer.to_vec(), 0, 0);
    loop {
        let better = best_shift(&words, reference, &mut tried);
        if tried >= MOST_SHIFTS {
            break;
        }
        let Some(better) = better else { break };
        words = better;
        shifts += 1;
    }
    shifts + Alignment::of(&words, reference).distance
}

/// Returns the words after the shift that saves the most edits; `None` if none saves any. `tried` counts what is looked at.
fn best_shift<'a>(words: &[&'a str], reference: &[&str], tried: &mut usize) -> Option<Vec<&'a str>> {
    let found = Alignment::of(words, reference);
    // Of shifts that save as many edits the longest, of these the first, of these the one to the first place.
    let mut best: Option<((isize, usize, Reverse<usize>, Reverse<usize>), Vec<&str>)> = None;
    'pairs: for from in 0..words.len() {
        for to in (0..reference.len()).filter(|to| to.abs_diff(from) <= FARTHEST_SHIFT) {
            let alike = words[from..].iter().zip(&reference[to..]).take(LONGEST_SHIFT).take_while(|(a, b)| a == b);
            for length in 1..=alike.count() {
                let wrong = found.wrong_words[from..from + length].iter().any(|wrong| *wrong)
                    && found.wrong_reference[to..to + length].iter().any(|wrong| *wrong);
                // Words are not moved within themselves.
                let within = found.place[to].is_some_and(|place| (from..from + length).contains(&place));
                if !wrong || within {
                    continue;
                }
                let mut last = None;
                // Before the place of the first word of the reference, and behind that of each.
                let behind = |to: usize| found.place.get(to).map(|place| place.map_or(0, |place| place + 1));
                let targets =
                    (0..=length).map(|offset| if to + offset == 0 { Some(0) } else { behind(to + offset - 1) });
                for target in targets.map_while(|target| target) {
                    if last.replace(target) == Some(target) {
                        continue;
                    }
                    let shifted = shift(words, from, length, target);
                    let saved = found.distance as isize - Alignment::of(&shifted, reference).distance as isize;
                    let rank = (saved, length, Reverse(from), Reverse(target));
                    *tried += 1;
                    if best.as_ref().is_none_or(|(known, _)| rank > *known) {
                        best = Some((rank, shifted));
                    }
                }
                if *tried >= MOST_SHIFTS {
                    break 'pairs;
                }
            }
        }
    }
    best.filter(|((saved, ..), _)| *saved > 0).map(|(_, words)| words)
}

/// Moves `length` words at `from` before the word at `target`, which is counted with them if it lies behind.
fn shift<'a>(words: &[&'a str], from: usize, length: usize, target: usize) -> Vec<&'a str> {
    let moved = &words[from..from + length];
    match target {
        target if target < from => [&words[..target], moved, &words[target..from], &words[from + length..]].concat(),
        target if target > from + length => {
            [&words[..from], &words[from + length..target], moved, &words[target..]].concat()
        }
        target => {
            let end = words.len().min(length + target);
            [&words[..from], &words[from + length..end], moved, &words[end..]].concat()
        }
    }
}

/// The cheapest way from an answer to a reference without shifts.
struct Alignment {
    distance: usize,
    /// For each word of the reference the number of the last word of the answer up to it; `None` before the first.
    place: Vec<Option<usize>>,
    wrong_words: Vec<bool>,
    wrong_reference: Vec<bool>,
}

/// What is done with a word.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Edit {
    Keep,
    Replace,
    /// Leaves out a word of the answer.
    Delete,
    /// Adds a word of the reference.
    Insert,
}

impl Alignment {
    fn of(words: &[&str], reference: &[&str]) -> Self {
        let (n, m) = (words.len(), reference.len());
        let ratio = if n == 0 { 1.0 } else { m as f64 / n as f64 };
        let beam = if (BEAM as f64) < ratio / 2.0 { (ratio / 2.0 + BEAM as f64).ceil() as usize } else { BEAM };
        let width = m + 1;
        let mut cells = vec![(UNREACHED, Edit::Delete); (n + 1) * width];
        (0..=m).for_each(|j| cells[j] = (j, Edit::Insert));
        for i in 1..=n {
            let diagonal = (i as f64 * ratio).floor() as usize;
            let end = if i == n { m + 1 } else { (m + 1).min(diagonal + beam) };
            for j in diagonal.saturating_sub(beam)..end {
                let (at, above) = (i * width + j, (i - 1) * width + j);
                if j == 0 {
                    cells[at] = (cells[above].0 + 1, Edit::Delete);
                    continue;
                }
                let (cost, edit) = if words[i - 1] == reference[j - 1] { (0, Edit::Keep) } else { (1, Edit::Replace) };
                let ways = [
                    (cells[above - 1].0 + cost, edit),
                    (cells[above].0 + 1, Edit::Delete),
                    (cells[at - 1].0 + 1, Edit::Insert),
                ];
                for way in ways {
                    if way.0 < cells[at].0 {
                        cells[at] = way;
                    }
                }
            }
        }
        let (mut i, mut j) = (n, m);
        let (mut place, mut wrong_words, mut wrong_reference) = (vec![None; m], vec![true; n], vec![true; m]);
        while i > 0 || j > 0 {
            let edit = cells[i * width + j].1;
            if edit != Edit::Delete {
                place[j - 1] = if edit == Edit::Insert { i.checked_sub(1) } else { Some(i - 1) };
            }
            if edit == Edit::Keep {
                (wrong_words[i - 1], wrong_reference[j - 1]) = (false, false);
            }
            i -= usize::from(edit != Edit::Insert);
            j -= usize::from(edit != Edit::Delete);
        }
        Self { distance: cells[n * width + m].0, place, wrong_words, wrong_reference }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_moved_group_is_one_edit() {
        let rate = |answer: &str, reference: &str| TerCounts::of(answer, &[reference]).score();
        assert_eq!(rate("a b c d", "a b c d"), 0.0);
        assert_eq!(rate("c d a b", "A B C D"), 25.0);
        assert_eq!(rate("a b x d", "a b c d"), 25.0);
        assert_eq!((rate("", "a b"), rate("a b", ""), rate("", "")), (100.0, 100.0, 0.0));
        assert_eq!(rate("a b c d e f", "a"), 500.0);
    }

    #[test]
    fn of_several_references_the_nearest_counts_and_their_mean_length() {
        let counts = TerCounts::of("a b c", &["a b c", "a b c d e"]);
        assert_eq!((counts.edits, counts.words), (0, 4.0));
        let mut sum = TerCounts::of("a x", &["a b"]);
        sum.add(&counts);
        assert_eq!(sum.score(), 100.0 / 6.0);
    }
}
