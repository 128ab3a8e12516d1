//! Shows examples with their mask.

use crate::characters::printable;
use crate::data::chat::ChatTokenizer;
use crate::data::encode::Example;
use crate::error::Result;
use console::Style;

/// Returns the example as text, with the tokens that are trained on in green, or between « and » without colour. In
/// colour, spaces next to a boundary are shown as `·`, because it matters on which side they are.
pub fn preview(example: &Example, tokenizer: &ChatTokenizer, colour: bool) -> Result<String> {
    let (learnt, given) = (Style::new().green().force_styling(true), Style::new().dim().force_styling(true));
    let mut out = String::new();
    let (mut from, mut before) = (0, String::new());
    while from < example.ids.len() {
        let on = example.supervised[from];
        let to = (from..example.ids.len()).find(|t| example.supervised[*t] != on).unwrap_or(example.ids.len());
        // A decoder may drop the space at the beginning of a text, so a piece is what it adds to the text decoded
        // before it.
        let until = tokenizer.decode(&example.ids[..to], false)?;
        let text = match until.strip_prefix(&before) {
            Some(text) => text.to_string(),
            // The boundary is inside a character.
            None => tokenizer.decode(&example.ids[from..to], false)?,
        };
        let text = if colour { printable(&text) } else { text };
        match (colour, on) {
            (true, true) => out.push_str(&learnt.apply_to(edges(&text, from > 0, to < example.ids.len())).to_string()),
            (true, false) => out.push_str(&given.apply_to(edges(&text, from > 0, to < example.ids.len())).to_string()),
            (false, true) => out.push_str(&format!("«{text}»")),
            (false, false) => out.push_str(&text),
        }
        (from, before) = (to, until);
    }
    Ok(out)
}

/// Returns the text with the spaces at its beginning and end as `·`, at those of the two that are boundaries.
fn edges(text: &str, begin: bool, end: bool) -> String {
    let (first, last) = (text.len() - text.trim_start_matches(' ').len(), text.trim_end_matches(' ').len());
    let (first, last) = (if begin { first } else { 0 }, if end { last } else { text.len() });
    if first >= last {
        return "·".repeat(text.len());
    }
    format!("{}{}{}", "·".repeat(first), &text[first..last], "·".repeat(text.len() - last))
}
