//! Detects invisible characters that change how text is displayed: terminal codes and controls of text direction.
//!
//! A model's text may reverse the direction of the letters after it (U+202E) or move a terminal's cursor (U+001B).
//! Where such text is shown, each of these characters is replaced by its code point, so that it has no effect.

/// Returns the name of such a character; `None` for text, line breaks and tabs.
pub fn hidden(c: char) -> Option<&'static str> {
    Some(match c {
        '\n' | '\t' => return None,
        '\u{61c}' => "ARABIC LETTER MARK",
        '\u{200e}' => "LEFT-TO-RIGHT MARK",
        '\u{200f}' => "RIGHT-TO-LEFT MARK",
        '\u{202a}' => "LEFT-TO-RIGHT EMBEDDING",
        '\u{202b}' => "RIGHT-TO-LEFT EMBEDDING",
        '\u{202c}' => "POP DIRECTIONAL FORMATTING",
        '\u{202d}' => "LEFT-TO-RIGHT OVERRIDE",
        '\u{202e}' => "RIGHT-TO-LEFT OVERRIDE",
        '\u{2066}' => "LEFT-TO-RIGHT ISOLATE",
        '\u{2067}' => "RIGHT-TO-LEFT ISOLATE",
        '\u{2068}' => "FIRST STRONG ISOLATE",
        '\u{2069}' => "POP DIRECTIONAL ISOLATE",
        c if c.is_control() => "CONTROL CHARACTER",
        _ => return None,
    })
}

/// Returns true for the marks that act as one letter of a direction would. Arabic and Hebrew texts use them next to
/// punctuation. They reverse nothing, so they are kept, and their code point is shown next to them.
pub fn is_direction_mark(c: char) -> bool {
    matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}')
}

/// Returns the code point as Unicode writes it: `U+202E`.
pub fn code_point(c: char) -> String {
    format!("U+{:04X}", u32::from(c))
}

/// Returns text that is safe for a terminal: hidden characters are replaced by their code points; tabs and line breaks
/// stay.
pub fn printable(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match hidden(c) {
            Some(_) => out.push_str(&format!("⟨{}⟩", code_point(c))),
            None => out.push(c),
        }
    }
    out
}

/// Returns true for letters of the scripts that are written from right to left.
fn is_from_the_right(c: char) -> bool {
    let scripts = matches!(c, '\u{590}'..='\u{8ff}' | '\u{fb1d}'..='\u{fdff}' | '\u{fe70}'..='\u{fefc}'
        | '\u{10800}'..='\u{10fff}' | '\u{1e800}'..='\u{1efff}');
    scripts && c.is_alphabetic()
}

/// Returns true where the first letter of a text belongs to a script that is written from right to left.
pub fn is_right_to_left(text: &str) -> bool {
    text.chars().find(|c| c.is_alphabetic()).is_some_and(is_from_the_right)
}

/// Returns true where any letter of a text belongs to such a script.
pub fn has_right_to_left(text: &str) -> bool {
    text.chars().any(is_from_the_right)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_control_of_direction_and_of_terminals_is_shown_by_its_code_point() {
        let bidi = ['\u{61c}', '\u{200e}', '\u{200f}'];
        for c in bidi.into_iter().chain('\u{202a}'..='\u{202e}').chain('\u{2066}'..='\u{2069}') {
            assert!(hidden(c).is_some_and(|name| name != "CONTROL CHARACTER"), "{c:?}");
        }
        assert_eq!(printable("a\u{1b}[2J\u{202e}b\r\n\tc"), "a⟨U+001B⟩[2J⟨U+202E⟩b⟨U+000D⟩\n\tc");
        // Letters of Urdu, the joiners that Persian and emoji need, and marks above letters are text.
        let text = "یہ کِتاب می\u{200c}خواهم 👩\u{200d}🔬";
        assert_eq!(printable(text), text);
    }

    #[test]
    fn the_first_letter_says_where_a_text_begins() {
        for text in ["سلام", "1. «محمد» hello", "שלום", "**یہ**"] {
            assert!(is_right_to_left(text), "{text}");
        }
        for text in ["", "12 + 3", "hello سلام", "日本語", "ελληνικά"] {
            assert!(!is_right_to_left(text), "{text}");
        }
        assert!(has_right_to_left("hello سلام") && !has_right_to_left("hello ١٢"));
    }
}
