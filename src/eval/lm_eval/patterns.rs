//! Python's regular expressions as those of ft.

use fancy_regex::Regex;

/// Translates an expression: `$` also matches before a line end at the end of the text, and `\Z` is the end. Errors: what the
/// expression's fault is.
pub fn translated(pattern: &str) -> Result<String, String> {
    let multiline = pattern.contains("(?m") || pattern.contains("(?im") || pattern.contains("(?sm");
    let (mut out, mut in_class) = (String::with_capacity(pattern.len()), false);
    let mut characters = pattern.chars();
    while let Some(c) = characters.next() {
        match c {
            '\\' => match characters.next() {
                Some('Z') if !in_class => out.push_str(r"\z"),
                Some(next) => out.extend(['\\', next]),
                None => out.push('\\'),
            },
            '$' if !in_class && !multiline => out.push_str(r"(?=\n?\z)"),
            // A bracket within a class is itself in Python.
            '[' if in_class => out.push_str(r"\["),
            _ => {
                in_class = (in_class || c == '[') && c != ']';
                out.push(c);
                if c == '[' {
                    // A closing bracket that comes first is a character of the class.
                    let mut rest = characters.clone();
                    let negated = rest.next() == Some('^');
                    let first = if negated { rest.next() } else { characters.clone().next() };
                    if negated {
                        characters.next();
                        out.push('^');
                    }
                    if first == Some(']') {
                        characters.next();
                        out.push_str(r"\]");
                    }
                }
            }
        }
    }
    match Regex::new(&out) {
        Ok(_) => Ok(out),
        Err(fault) => Err(fault.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_end_is_also_before_the_last_line_end() {
        let found =
            |pattern: &str, text: &str| Regex::new(&translated(pattern).unwrap()).unwrap().is_match(text).unwrap();
        assert!(found(r"\.$", "so.\n") && found(r"\.$", "so.") && !found(r"\.$", "so.\n\n"));
        assert!(found(r"[$0-9]\Z", "cost 5$") && !found(r"\d\Z", "5\n"));
        assert!(found(r"[]a]+[^]b]", "]c") && found("[[x]", "["));
        assert_eq!(translated(r"(-?[$0-9.,]{2,})|(-?[0-9]+)").unwrap(), r"(-?[$0-9.,]{2,})|(-?[0-9]+)");
        assert!(translated("(").is_err());
    }
}
