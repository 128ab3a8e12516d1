//! Texts that end an answer, found over the decoded text whatever the borders of tokens, and cut from it.

use super::Decode;
use crate::error::Result;

/// Watches an answer's text as its tokens come.
#[derive(Default, Clone)]
pub(super) struct Watch {
    /// Tokens before `from` are known text; those from `from` to `to` stand before the newest ones while decoding, as
    /// the first token of a text may be decoded differently.
    from: usize,
    to: usize,
    /// The end of the text so far.
    tail: String,
}

impl Watch {
    /// Whether one of `texts` is in the text of `answer`, whose last token is new.
    pub fn push(&mut self, answer: &[u32], texts: &[String], decode: Decode) -> Result<bool> {
        let known = decode(&answer[self.from..self.to])?;
        let now = decode(&answer[self.from..])?;
        // A character of several tokens is not whole yet.
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

/// `text` up to the first of `texts` in it.
pub(super) fn trimmed(text: &str, texts: &[String]) -> String {
    let end = texts.iter().filter_map(|t| text.find(t.as_str())).min().unwrap_or(text.len());
    text[..end].to_string()
}

/// How much of `text` can be shown while it grows: one of `texts`, or what may become one, is held back.
pub fn settled(text: &str, texts: &[String]) -> usize {
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
        let mut watch = Watch::default();
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
        assert_eq!(trimmed("a STOP b\n\nc", &texts), "a ");
        assert_eq!(trimmed("a\n\nSTOP", &texts), "a");
        assert_eq!(trimmed("ä", &texts), "ä");
        for (text, shown) in [("abc", 3), ("abcS", 3), ("abcSTO", 3), ("STAR", 4), ("x\n", 1), ("xSTOPy", 1), ("", 0)] {
            assert_eq!(settled(text, &texts), shown, "{text}");
        }
        assert_eq!(settled("abc", &[]), 3);
    }
}
