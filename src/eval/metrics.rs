//! Numbers from answers and counts: no model, no file.

pub use crate::methods::rate::Rate;

/// Whether the answer is the expected one, spaces around it aside.
pub fn matches(answer: &str, expected: &str) -> bool {
    answer.trim() == expected.trim()
}

/// As `matches`, upper and lower case being the same.
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
