//! Forms of canaries: texts in which `#` stands for a random digit and `@` for a random small letter (Carlini et al. 2019, "The Secret
//! Sharer", section 4.1).

use crate::error::{Error, Result};
use rand::RngExt;
use rand_chacha::ChaCha8Rng;
use std::collections::HashSet;

/// The form of a canary.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CanaryPattern(String);

impl CanaryPattern {
    /// Reads a form. Fails if nothing in it is random.
    pub fn new(text: &str) -> Result<Self> {
        match text.contains(['#', '@']) {
            true => Ok(Self(text.into())),
            false => Err(Error::user(format!("the form `{text}` has nothing random in it"))
                .hint("`#` stands for a random digit and `@` for a small letter, e.g. \"The code is ######.\"")),
        }
    }

    /// Returns the number of texts that have this form.
    pub fn texts(&self) -> f64 {
        self.0
            .chars()
            .map(|c| {
                if c == '#' {
                    10.0
                } else if c == '@' {
                    26.0
                } else {
                    1.0
                }
            })
            .product()
    }

    /// Returns true if a text has this form.
    pub fn matches(&self, text: &str) -> bool {
        let fits = |(form, c): (char, char)| match form {
            '#' => c.is_ascii_digit(),
            '@' => c.is_ascii_lowercase(),
            _ => form == c,
        };
        self.0.chars().count() == text.chars().count() && self.0.chars().zip(text.chars()).all(fits)
    }

    /// Draws a text of this form.
    pub fn draw(&self, rng: &mut ChaCha8Rng) -> String {
        let drawn = |form: char| match form {
            '#' => char::from(rng.random_range(b'0'..=b'9')),
            '@' => char::from(rng.random_range(b'a'..=b'z')),
            _ => form,
        };
        self.0.chars().map(drawn).collect()
    }

    /// Draws different texts of this form, none of which is `text`. Fails if there are not so many.
    pub fn others(&self, text: &str, count: usize, rng: &mut ChaCha8Rng) -> Result<Vec<String>> {
        if count as f64 > self.texts() - 1.0 {
            return Err(Error::user(format!(
                "{count} other texts of the form `{}` are wanted, and there are {}",
                self.0,
                self.texts() - 1.0
            ))
            .hint("lower exposure.others, or use a form with more random characters"));
        }
        let mut known = HashSet::from([text.to_string()]);
        let mut found = Vec::with_capacity(count);
        while found.len() < count {
            let drawn = self.draw(rng);
            if known.insert(drawn.clone()) {
                found.push(drawn);
            }
        }
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng;

    #[test]
    fn drawn_texts_have_the_form_and_are_all_different() {
        let pattern = CanaryPattern::new("code #@ é").unwrap();
        assert_eq!(pattern.texts(), 260.0);
        let mut chance = rng::stream(1, "test", 0);
        let others = pattern.others("code 7x é", 259, &mut chance).unwrap();
        assert!(others.iter().all(|text| pattern.matches(text) && text != "code 7x é"));
        assert_eq!(others.iter().collect::<HashSet<_>>().len(), 259);
        assert!(!pattern.matches("code 77 é") && !pattern.matches("code 7x") && !pattern.matches("code 7x é."));
        let told = pattern.others("code 7x é", 260, &mut chance).unwrap_err().to_string();
        assert!(told.contains("260 other texts") && told.contains("there are 259"), "{told}");
        assert!(CanaryPattern::new("code").is_err());
    }
}
