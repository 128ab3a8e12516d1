//! What a person should see of the examples before a run: lengths, duplicates, overlap, and one with its mask.

use super::example::Example;
use super::tokenizer::ChatTokenizer;
use crate::error::Result;
use crate::report;
use console::Style;
use std::collections::HashMap;

/// A histogram of lengths in tokens, one line a bin; a mark shows the bins above `max_len`.
pub fn histogram(lengths: &[usize], max_len: Option<usize>) -> String {
    let Some(longest) = lengths.iter().copied().max() else { return String::new() };
    // About ten bins of a round width.
    let mut width = 1;
    for round in (0..).flat_map(|power| [1, 2, 5].map(|d| d * 10_usize.pow(power))) {
        width = round;
        if longest / round < 10 {
            break;
        }
    }
    let mut bins = vec![0usize; longest / width + 1];
    for n in lengths {
        bins[n / width] += 1;
    }
    let most = bins.iter().copied().max().unwrap_or(1).max(1);
    let lines = bins.iter().enumerate().map(|(i, n)| {
        let bar = "█".repeat((n * 40).div_ceil(most));
        let over = if max_len.is_some_and(|max| (i + 1) * width - 1 > max) { "  above max_len" } else { "" };
        let over = if *n > 0 { over } else { "" };
        format!("{:>7}–{:<7} {:>8}  {bar}{over}", i * width, (i + 1) * width - 1, report::count(*n as u64))
    });
    lines.collect::<Vec<_>>().join("\n")
}

/// Lines that hold exactly the same tokens; each group has two or more.
pub fn duplicates(examples: &[Example]) -> Vec<Vec<usize>> {
    let mut seen: HashMap<&[u32], usize> = HashMap::new();
    let mut groups: Vec<Vec<usize>> = Vec::new();
    for example in examples {
        let group = *seen.entry(&example.ids).or_insert_with(|| {
            groups.push(Vec::new());
            groups.len() - 1
        });
        groups[group].push(example.line);
    }
    groups.retain(|g| g.len() > 1);
    groups
}

/// Pairs of lines (train, valid) that hold exactly the same tokens: such rows measure memory, not learning.
pub fn overlap(train: &[Example], valid: &[Example]) -> Vec<(usize, usize)> {
    let known: HashMap<&[u32], usize> = train.iter().rev().map(|e| (e.ids.as_slice(), e.line)).collect();
    valid.iter().filter_map(|e| known.get(e.ids.as_slice()).map(|line| (*line, e.line))).collect()
}

/// The example as text, what is learnt in green; without colour it stands in «…».
pub fn preview(example: &Example, tokenizer: &ChatTokenizer, colour: bool) -> Result<String> {
    let (learnt, given) = (Style::new().green().force_styling(true), Style::new().dim().force_styling(true));
    let mut out = String::new();
    let mut from = 0;
    while from < example.ids.len() {
        let on = example.supervised[from];
        let to = (from..example.ids.len()).find(|t| example.supervised[*t] != on).unwrap_or(example.ids.len());
        let text = tokenizer.decode(&example.ids[from..to], false)?;
        match (colour, on) {
            (true, true) => out.push_str(&learnt.apply_to(text).to_string()),
            (true, false) => out.push_str(&given.apply_to(text).to_string()),
            (false, true) => out.push_str(&format!("«{text}»")),
            (false, false) => out.push_str(&text),
        }
        from = to;
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example(ids: &[u32], line: usize) -> Example {
        Example { ids: ids.to_vec(), supervised: vec![true; ids.len()], line }
    }

    #[test]
    fn same_tokens_are_found() {
        let train = [example(&[1, 2], 1), example(&[3], 2), example(&[1, 2], 5), example(&[1], 6)];
        assert_eq!(duplicates(&train), [vec![1, 5]]);
        assert_eq!(overlap(&train, &[example(&[9], 1), example(&[1, 2], 2), example(&[1], 3)]), [(1, 2), (6, 3)]);
    }

    #[test]
    fn a_histogram_counts_everything() {
        let lengths: Vec<usize> = (1..=95).collect();
        let text = histogram(&lengths, Some(80));
        assert_eq!(text.lines().count(), 10, "{text}");
        assert_eq!(text.lines().filter(|l| l.ends_with("above max_len")).count(), 2, "{text}");
        assert!(text.lines().next().is_some_and(|l| l.contains(" 9  █")), "{text}");
        assert_eq!(histogram(&[], None), "");
    }
}
