//! Compares answers with expected ones. Pure: no model, no file.

/// Returns true if the answer is the expected one, ignoring whitespace around it.
pub fn matches(answer: &str, expected: &str) -> bool {
    answer.trim() == expected.trim()
}

/// As `matches`, ignoring case too.
pub fn matches_ignoring_case(answer: &str, expected: &str) -> bool {
    answer.trim().to_lowercase() == expected.trim().to_lowercase()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spaces_around_and_case_are_told_apart() {
        assert!(matches(" Neoplasms\n", "Neoplasms"));
        assert!(!matches("neoplasms", "Neoplasms"));
        assert!(matches_ignoring_case("NEOPLASMS ", "neoplasms"));
        assert!(!matches_ignoring_case("neo plasms", "neoplasms"));
    }
}
