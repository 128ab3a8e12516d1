//! Finds the stop texts that end an answer. A stop text may begin or end inside a token, so it is searched in the
//! decoded text, from which it is then cut.

use super::answer::DecodeFn;
use crate::error::Result;

/// Looks for stop texts in the text of an answer, token by token.
#[derive(Default, Clone)]
pub(super) struct StopTextWatch {
    /// Tokens up to `to` are decoded already. Those from `from` to `to` are decoded again together with newer ones,
    /// because some tokenizers decode the first token of a text differently.
    from: usize,
    to: usize,
    /// The end of the decoded text: as many bytes as the longest stop text.
    tail: String,
}

impl StopTextWatch {
    /// Returns true if the text of `answer`, whose last token is new, now contains one of `texts`.
    pub fn push(&mut self, answer: &[u32], texts: &[String], decode: DecodeFn) -> Result<bool> {
        let known = decode(&answer[self.from..self.to])?;
        let now = decode(&answer[self.from..])?;
        // The bytes of one character may be spread over several tokens: wait for the others.
        if now.ends_with(char::REPLACEMENT_CHARACTER) || now.len() <= known.len() {
            return Ok(false);
        }
        let new = now.strip_prefix(&known).unwrap_or(&now);
        self.tail.push_str(new);
        (self.from, self.to) = (self.to, answer.len());
        let found = texts.iter().any(|t| self.tail.contains(t.as_str()));
        let longest = texts.iter().map(String::len).max().unwrap_or(0);
        let mut cut = self.tail.len().saturating_sub(longest);
        while !self.tail.is_char_boundary(cut) {
            cut -= 1;
        }
        self.tail.drain(..cut);
        Ok(found)
    }
}

/// Returns `text` up to the first occurrence of any of `texts`.
pub(super) fn cut_at_stop(text: &str, texts: &[String]) -> String {
    let end = texts.iter().filter_map(|t| text.find(t.as_str())).min().unwrap_or(text.len());
    text[..end].to_string()
}

/// Returns how many bytes of `text` can be shown while it grows: a stop text, or an end of `text` that may become one,
/// is held back.
pub fn showable_length(text: &str, texts: &[String]) -> usize {
    let begins = |at: &usize| texts.iter().any(|t| t.starts_with(&text[*at..]) || text[*at..].starts_with(t.as_str()));
    text.char_indices().map(|(at, _)| at).find(begins).unwrap_or(text.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Token n is the n-th of these byte strings.
    fn decode(ids: &[u32]) -> Result<String> {
        let pieces: [&[u8]; 7] = [b"ab", b"c", b"d\n\nU", b"ser", b": hi", &[0xc3], &[0xa4]];
        let bytes: Vec<u8> = ids.iter().flat_map(|id| pieces[*id as usize].to_vec()).collect();
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    fn stops(ids: &[u32], texts: &[&str]) -> Option<usize> {
        let texts: Vec<String> = texts.iter().map(|t| t.to_string()).collect();
        let mut watch = StopTextWatch::default();
        (1..=ids.len()).find(|n| watch.push(&ids[..*n], &texts, &decode).unwrap())
    }

    #[test]
    fn a_stop_text_is_found_across_tokens_and_inside_one() {
        let ids = [0, 1, 2, 3, 4, 0];
        assert_eq!(stops(&ids, &["\n\nUser:"]), Some(5));
        assert_eq!(stops(&ids, &["\n"]), Some(3));
        assert_eq!(stops(&ids, &["bc"]), Some(2));
        assert_eq!(stops(&ids, &["bd", "hia"]), Some(6));
        assert_eq!(stops(&ids, &["bd", "System"]), None);
        // The two bytes of one letter.
        assert_eq!(stops(&[0, 5, 6, 1], &["bä"]), Some(3));
        assert_eq!(stops(&[0, 5, 6, 1], &["äc"]), Some(4));
    }

    #[test]
    fn text_is_cut_at_the_first_stop_and_shown_only_where_settled() {
        let texts = ["STOP".to_string(), "\n\n".to_string()];
        assert_eq!(cut_at_stop("a STOP b\n\nc", &texts), "a ");
        assert_eq!(cut_at_stop("a\n\nSTOP", &texts), "a");
        assert_eq!(cut_at_stop("ä", &texts), "ä");
        for (text, shown) in [("abc", 3), ("abcS", 3), ("abcSTO", 3), ("STAR", 4), ("x\n", 1), ("xSTOPy", 1), ("", 0)] {
            assert_eq!(showable_length(text, &texts), shown, "{text}");
        }
        assert_eq!(showable_length("abc", &[]), 3);
    }
}
