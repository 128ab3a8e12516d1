//! Edit distance (Levenshtein 1966) of characters.

/// Returns the fewest insertions, deletions and substitutions of characters that turn one text into the other, divided
/// by the length of the longer one: 0 for equal texts, 1 for texts without anything in common.
pub fn relative_edit_distance(a: &str, b: &str) -> f64 {
    let longer = a.chars().count().max(b.chars().count());
    strsim::levenshtein(a, b) as f64 / longer.max(1) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distance_is_relative_to_the_longer_text() {
        assert_eq!(relative_edit_distance("kitten", "sitting"), 3.0 / 7.0);
        assert_eq!((relative_edit_distance("", ""), relative_edit_distance("", "ab")), (0.0, 1.0));
        assert_eq!(relative_edit_distance("naïve", "naive"), 1.0 / 5.0);
    }
}
