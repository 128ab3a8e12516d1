//! Splits a template's source into tokens, with jinja2's rules for whitespace around tags (`trim_blocks`,
//! `lstrip_blocks`, `-`, `+`), comments and `raw` blocks.

use super::error::TemplateError;
use super::strings::is_space;

/// A token. `Data` is text outside of tags, `BigInt` the digits of an integer beyond 128 bits.
#[derive(Debug, Clone, PartialEq)]
pub enum TemplateToken {
    Data(String),
    BlockBegin,
    BlockEnd,
    VariableBegin,
    VariableEnd,
    Name(String),
    Text(String),
    Int(i128),
    BigInt(String),
    Float(f64),
    Operator(&'static str),
    End,
}

const OPERATORS: [&str; 26] = [
    "//", "**", "==", "!=", ">=", "<=", "+", "-", "/", "*", "%", "~", "[", "]", "(", ")", "{", "}", ">", "<", "=", ".",
    ":", "|", ",", ";",
];

/// Returns the tokens, each with the 1-based line on which it begins; the last one is `End`. With `trims`, tags of their own
/// line leave no line behind (`trim_blocks`, `lstrip_blocks`), and one line end at the end of the source is not part of the
/// template (`keep_trailing_newline` off).
pub fn tokenize(source: &str, trims: bool) -> Result<Vec<(usize, TemplateToken)>, TemplateError> {
    let source = source.replace("\r\n", "\n").replace('\r', "\n");
    let text = if trims { source.strip_suffix('\n').unwrap_or(&source) } else { &source };
    let mut lexer = Lexer { text, at: 0, line: 1, line_starting: true, trims, out: Vec::new() };
    lexer.read_all()?;
    let line = lexer.line;
    lexer.out.push((line, TemplateToken::End));
    Ok(lexer.out)
}

struct Lexer<'s> {
    text: &'s str,
    at: usize,
    line: usize,
    /// Whether the last character read was a line end.
    line_starting: bool,
    /// Whether whitespace around tags without a sign is removed.
    trims: bool,
    out: Vec<(usize, TemplateToken)>,
}

impl<'s> Lexer<'s> {
    fn rest(&self) -> &'s str {
        &self.text[self.at..]
    }

    fn advance(&mut self, bytes: usize) {
        let passed = &self.text[self.at..self.at + bytes];
        self.line += passed.bytes().filter(|b| *b == b'\n').count();
        if let Some(last) = passed.bytes().last() {
            self.line_starting = last == b'\n';
        }
        self.at += bytes;
    }

    fn advance_spaces(&mut self) {
        let rest = self.rest();
        self.advance(rest.len() - rest.trim_start_matches(is_space).len());
    }

    fn push(&mut self, token: TemplateToken) {
        self.out.push((self.line, token));
    }

    fn read_all(&mut self) -> Result<(), TemplateError> {
        loop {
            let rest = self.rest();
            let found = ["{%", "{{", "{#"].iter().filter_map(|d| Some((rest.find(d)?, *d))).min();
            let Some((length, delimiter)) = found else {
                self.data(rest.len(), rest);
                return Ok(());
            };
            let sign = rest[length + 2..].chars().next().filter(|c| matches!(c, '-' | '+'));
            let data = self.trim_before_tag(&rest[..length], sign, delimiter != "{{");
            let begun = self.line + rest[..length].matches('\n').count();
            self.data(length, data);
            let raw = (delimiter == "{%").then(|| self.raw_begin()).flatten();
            self.advance(2 + sign.map_or(0, char::len_utf8));
            match (delimiter, raw) {
                (_, Some(after)) => self.raw_block(after, begun)?,
                ("{#", _) => {
                    let end = self
                        .rest()
                        .find("#}")
                        .ok_or_else(|| TemplateError::syntax(begun, "Missing end of comment tag"))?;
                    // The sign in `-#}`. In `{#-#}` the one sign belongs to the beginning, which was skipped above.
                    let sign = self.rest()[..end].chars().last().filter(|c| matches!(c, '-' | '+'));
                    self.advance(end + 2);
                    self.skip_after_tag(sign, true);
                }
                ("{{", _) => self.tag(TemplateToken::VariableBegin, "}}", begun)?,
                _ => self.tag(TemplateToken::BlockBegin, "%}", begun)?,
            }
        }
    }

    /// Adds `text` as a token unless it is empty, and advances by `length` bytes of source.
    fn data(&mut self, length: usize, text: &str) {
        if !text.is_empty() {
            self.push(TemplateToken::Data(text.to_string()));
        }
        self.advance(length);
    }

    /// Returns the text before a tag without the whitespace that the tag removes: all of it for `-`, that of the tag's
    /// own line for `lstrip` without a sign.
    fn trim_before_tag<'t>(&self, text: &'t str, sign: Option<char>, lstrip: bool) -> &'t str {
        if sign == Some('-') {
            return text.trim_end_matches(is_space);
        }
        if sign.is_none() && lstrip && self.trims {
            let line = text.rfind('\n').map_or(0, |at| at + 1);
            if (line > 0 || self.line_starting) && text[line..].chars().all(is_space) {
                return &text[..line];
            }
        }
        text
    }

    /// Skips the whitespace after a tag that ended with `sign`: all of it for `-`, one line end for `trim` without a
    /// sign.
    fn skip_after_tag(&mut self, sign: Option<char>, trim: bool) {
        match sign {
            Some('-') => self.advance_spaces(),
            None if trim && self.trims && self.rest().starts_with('\n') => self.advance(1),
            _ => {}
        }
    }

    /// Returns the position after `{% raw %}` if that tag is next.
    fn raw_begin(&self) -> Option<usize> {
        let inside = self.rest()[2..].trim_start_matches(['-', '+']).trim_start_matches(is_space);
        let inside = inside.strip_prefix("raw")?.trim_start_matches(is_space);
        let after = match inside.strip_prefix("-%}") {
            Some(after) => after.trim_start_matches(is_space),
            None => inside.strip_prefix("%}")?,
        };
        Some(self.text.len() - after.len())
    }

    /// Reads the text of a `raw` block from `from` to its `endraw`. `begun` is the block's line, for the error.
    fn raw_block(&mut self, from: usize, begun: usize) -> Result<(), TemplateError> {
        self.advance(from - self.at);
        let rest = self.rest();
        let mut search = 0;
        loop {
            let Some(found) = rest[search..].find("{%") else {
                return Err(TemplateError::syntax(begun, "Missing end of raw directive"));
            };
            let at = search + found;
            let sign = rest[at + 2..].chars().next().filter(|c| matches!(c, '-' | '+'));
            let inside = rest[at + 2 + usize::from(sign.is_some())..].trim_start_matches(is_space);
            let close = inside.strip_prefix("endraw").map(|i| i.trim_start_matches(is_space));
            let close_sign = close.and_then(|c| c.chars().next()).filter(|c| matches!(c, '-' | '+'));
            let end = close.and_then(|c| c[usize::from(close_sign.is_some())..].strip_prefix("%}"));
            let Some(end) = end else {
                search = at + 2;
                continue;
            };
            let data = self.trim_before_tag(&rest[..at], sign, true);
            self.data(rest.len() - end.len(), data);
            self.skip_after_tag(close_sign, true);
            return Ok(());
        }
    }

    /// Reads the tokens of one tag, from its beginning to `end`. `begun` is the tag's line, for the error.
    fn tag(&mut self, begin: TemplateToken, end: &str, begun: usize) -> Result<(), TemplateError> {
        let block = begin == TemplateToken::BlockBegin;
        self.push(begin);
        let mut open: Vec<&'static str> = Vec::new();
        loop {
            self.advance_spaces();
            let rest = self.rest();
            if open.is_empty() {
                let signed =
                    rest.strip_prefix(['-', '+']).filter(|r| r.starts_with(end) && (block || !rest.starts_with('+')));
                let sign = signed.and_then(|_| rest.chars().next());
                if sign.is_some() || rest.starts_with(end) {
                    self.push(if block { TemplateToken::BlockEnd } else { TemplateToken::VariableEnd });
                    self.advance(end.len() + usize::from(sign.is_some()));
                    self.skip_after_tag(sign, block);
                    return Ok(());
                }
            }
            let Some(first) = rest.chars().next() else {
                return Err(TemplateError::syntax(
                    self.line,
                    format!("unexpected end of template: a tag of line {begun} is not closed"),
                ));
            };
            if first.is_ascii_digit() {
                self.number()?;
            } else if first == '_' || first.is_alphabetic() {
                let length = rest.find(|c: char| !(c == '_' || c.is_alphanumeric())).unwrap_or(rest.len());
                self.push(TemplateToken::Name(rest[..length].to_string()));
                self.advance(length);
            } else if first == '\'' || first == '"' {
                self.string(first)?;
            } else {
                let operator = OPERATORS.iter().copied().find(|o| rest.starts_with(o));
                let operator =
                    operator.ok_or_else(|| TemplateError::syntax(self.line, format!("unexpected char {first:?}")))?;
                match operator {
                    "(" => open.push(")"),
                    "[" => open.push("]"),
                    "{" => open.push("}"),
                    ")" | "]" | "}" => {
                        let expected = open.pop();
                        if expected != Some(operator) {
                            return Err(TemplateError::syntax(
                                self.line,
                                match expected {
                                    None => format!("unexpected '{operator}'"),
                                    Some(e) => format!("unexpected '{operator}', expected '{e}'"),
                                },
                            ));
                        }
                    }
                    _ => {}
                }
                self.push(TemplateToken::Operator(operator));
                self.advance(operator.len());
            }
        }
    }

    /// Reads an integer or float, as Python writes them.
    fn number(&mut self) -> Result<(), TemplateError> {
        let rest = self.rest();
        let bytes = rest.as_bytes();
        // Returns the end of a run of digits from `from` on, with single underscores between them.
        let digits = |from: usize, ok: fn(&u8) -> bool| -> usize {
            let mut at = from;
            loop {
                match (bytes.get(at), bytes.get(at + 1)) {
                    (Some(d), _) if ok(d) => at += 1,
                    (Some(b'_'), Some(d)) if at > from && ok(d) => at += 2,
                    _ => return at,
                }
            }
        };
        let decimal: fn(&u8) -> bool = u8::is_ascii_digit;
        let whole = digits(0, decimal);
        let mut end = whole;
        let after_dot = self.at > 0 && self.text[..self.at].ends_with('.');
        if !after_dot {
            if bytes.get(end) == Some(&b'.') && bytes.get(end + 1).is_some_and(u8::is_ascii_digit) {
                end = digits(end + 1, decimal);
            }
            if matches!(bytes.get(end), Some(b'e' | b'E')) {
                let from = end + 1 + usize::from(matches!(bytes.get(end + 1), Some(b'+' | b'-')));
                let exponent = digits(from, decimal);
                if exponent > from {
                    end = exponent;
                }
            }
        }
        if end > whole {
            let text = rest[..end].replace('_', "");
            let value = text.parse().map_err(|_| TemplateError::syntax(self.line, format!("bad number {text}")))?;
            self.push(TemplateToken::Float(value));
            self.advance(end);
            return Ok(());
        }
        let hex: fn(&u8) -> bool = u8::is_ascii_hexdigit;
        let octal: fn(&u8) -> bool = |b| (b'0'..=b'7').contains(b);
        let binary: fn(&u8) -> bool = |b| matches!(b, b'0' | b'1');
        let based = match bytes.get(..2).map(|b| b[1].to_ascii_lowercase()).filter(|_| bytes[0] == b'0') {
            Some(b'x') => Some((16, hex)),
            Some(b'o') => Some((8, octal)),
            Some(b'b') => Some((2, binary)),
            _ => None,
        };
        if let Some((base, ok)) = based {
            let from = 2 + usize::from(bytes.get(2) == Some(&b'_'));
            let end = digits(from, ok);
            if end > from {
                let value = i128::from_str_radix(&rest[from..end].replace('_', ""), base).map_err(|_| {
                    TemplateError::unsupported("an integer beyond 128 bits in another base").at_line(self.line)
                })?;
                self.push(TemplateToken::Int(value));
                self.advance(end);
                return Ok(());
            }
        }
        // jinja2 reads `01` as two numbers, which the parser then refuses.
        let end = if bytes[0] == b'0' { digits(0, |b| *b == b'0') } else { whole };
        let text = rest[..end].replace('_', "");
        self.push(text.parse().map_or(TemplateToken::BigInt(text), TemplateToken::Int));
        self.advance(end);
        Ok(())
    }

    /// Reads a text in quotes.
    fn string(&mut self, quote: char) -> Result<(), TemplateError> {
        let rest = &self.rest()[1..];
        let mut escaped = false;
        let end = rest.char_indices().find(|(_, c)| {
            let closes = *c == quote && !escaped;
            escaped = *c == '\\' && !escaped;
            closes
        });
        let (end, _) = end.ok_or_else(|| TemplateError::syntax(self.line, format!("unexpected char {:?}", quote)))?;
        let text = unescape(&rest[..end]).map_err(|fault| fault.at_line(self.line))?;
        self.push(TemplateToken::Text(text));
        self.advance(end + 2);
        Ok(())
    }
}

/// Replaces the escapes in a text literal, as Python's `unicode-escape` does.
fn unescape(text: &str) -> Result<String, TemplateError> {
    if !text.contains('\\') {
        return Ok(text.to_string());
    }
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('\\') {
        out.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        let Some(c) = rest.chars().next() else { return Err(TemplateError::python("\\ at end of string")) };
        rest = &rest[c.len_utf8()..];
        let mut number = |digits: usize, least: usize, base: u32| -> Result<char, TemplateError> {
            let length = rest.chars().take(digits).take_while(|c| c.is_digit(base)).count();
            if length < least {
                return Err(TemplateError::python(format!("truncated \\{c} escape")));
            }
            let code = u32::from_str_radix(&rest[..length], base).unwrap_or(u32::MAX);
            rest = &rest[length..];
            char::from_u32(code).ok_or_else(|| TemplateError::unsupported(format!("\\{c} escape of no character")))
        };
        match c {
            '\n' => {}
            '\\' | '\'' | '"' => out.push(c),
            'a' => out.push('\u{7}'),
            'b' => out.push('\u{8}'),
            'f' => out.push('\u{c}'),
            'n' => out.push('\n'),
            'r' => out.push('\r'),
            't' => out.push('\t'),
            'v' => out.push('\u{b}'),
            'x' => out.push(number(2, 2, 16)?),
            'u' => out.push(number(4, 4, 16)?),
            'U' => out.push(number(8, 8, 16)?),
            'N' => return Err(TemplateError::unsupported("\\N escape of a character by name")),
            '0'..='7' => {
                let digits: String =
                    std::iter::once(c).chain(rest.chars().take(2).take_while(|c| c.is_digit(8))).collect();
                rest = &rest[digits.len() - 1..];
                let code = u32::from_str_radix(&digits, 8).unwrap_or_default();
                out.push(char::from_u32(code).unwrap_or_default());
            }
            c if c.is_ascii() => {
                out.push('\\');
                out.push(c);
            }
            // jinja2 first replaces such a character by an escape, whose backslash the one before it would then escape.
            c => return Err(TemplateError::unsupported(format!("a backslash before {c:?}"))),
        }
    }
    out.push_str(rest);
    Ok(out)
}
