//! Dialogues in text, the form of Anthropic's HH files: `\n\nHuman: …\n\nAssistant: …`.

use super::conversation::ChatMessage;

const HUMAN: &str = "\n\nHuman:";
const ASSISTANT: &str = "\n\nAssistant:";

/// Returns true if the text is a dialogue in the form of the HH files.
pub(super) fn is_dialogue(text: &str) -> bool {
    text.trim_start().starts_with("Human:") && text.contains(ASSISTANT)
}

/// Splits a dialogue in text into its turns.
pub(super) fn parse_dialogue(text: &str) -> Vec<ChatMessage> {
    let text = format!("\n\n{}", text.trim_start());
    let mut turns = Vec::new();
    let mut rest = text.as_str();
    while !rest.is_empty() {
        let (role, mark) = if rest.starts_with(HUMAN) { ("user", HUMAN) } else { ("assistant", ASSISTANT) };
        let said = &rest[mark.len()..];
        let end = [HUMAN, ASSISTANT].iter().filter_map(|m| said.find(m)).min().unwrap_or(said.len());
        turns.push(ChatMessage::new(role, said[..end].trim()));
        rest = &said[end..];
    }
    turns
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dialogues_become_turns() {
        let text = "\n\nHuman: Hi there\n\nAssistant: Hello.\nYes?\n\nHuman: And?\n\nAssistant:";
        let turns: Vec<(String, String)> = parse_dialogue(text).into_iter().map(|m| (m.role, m.content)).collect();
        let expected = [("user", "Hi there"), ("assistant", "Hello.\nYes?"), ("user", "And?"), ("assistant", "")];
        assert_eq!(turns, expected.map(|(r, c)| (r.to_string(), c.to_string())));
        assert!(is_dialogue(text) && is_dialogue("Human: a\n\nAssistant: b") && !is_dialogue("Human: alone"));
    }
}
