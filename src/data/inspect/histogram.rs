//! Draws the distribution of lengths.

use crate::report;

/// Draws a histogram of lengths in tokens, one line per bin; bins above `max_len` are marked.
pub fn histogram(lengths: &[u32], max_len: Option<usize>) -> String {
    let Some(longest) = lengths.iter().max().map(|n| *n as usize) else { return String::new() };
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
        bins[*n as usize / width] += 1;
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_histogram_counts_everything() {
        let lengths: Vec<u32> = (1..=95).collect();
        let text = histogram(&lengths, Some(80));
        assert_eq!(text.lines().count(), 10, "{text}");
        assert_eq!(text.lines().filter(|l| l.ends_with("above max_len")).count(), 2, "{text}");
        assert!(text.lines().next().is_some_and(|l| l.contains(" 9  █")), "{text}");
        assert_eq!(histogram(&[], None), "");
    }
}
