//! Parses YAML into a tree in which every key and value has its position.
//!
//! Finds duplicate keys, tags, excessive nesting and syntax errors. Invariant: for every input the tree has at most
//! `NODES` nodes and `DEPTH` levels, with aliases expanded. Knows nothing of the schema: scalars stay text.

use super::mistakes::{Mistake, SourceSpan};
use saphyr_parser::{Event, Parser, ScalarStyle, ScanError, Span};
use serde_json::Value;
use std::collections::HashMap;

const DEPTH: usize = 32;
const NODES: usize = 10_000;

/// A value with its position.
#[derive(Debug, Clone)]
pub(super) struct Node {
    /// Where the value begins.
    pub at: SourceSpan,
    /// The value.
    pub kind: NodeKind,
}

#[derive(Debug, Clone)]
pub(super) enum NodeKind {
    /// `plain` is false for quoted and block text, which is never a number, a boolean or null.
    Scalar {
        text: String,
        plain: bool,
    },
    List(Vec<Node>),
    Map(Vec<(NodeKey, Node)>),
}

/// A key with its position.
#[derive(Debug, Clone)]
pub(super) struct NodeKey {
    /// Where the key begins.
    pub at: SourceSpan,
    /// The key.
    pub text: String,
}

/// Meaning of a scalar in the YAML 1.2 core schema.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Scalar<'a> {
    Null,
    Bool(bool),
    Int(i128),
    Float(f64),
    Text(&'a str),
}

impl Node {
    /// Returns an empty map at `at`.
    pub fn map(at: SourceSpan) -> Self {
        Node { at, kind: NodeKind::Map(Vec::new()) }
    }

    /// Returns the node of an empty file.
    pub fn empty_document() -> Self {
        Node { at: SourceSpan::start(0), kind: NodeKind::Scalar { text: String::new(), plain: true } }
    }

    /// Returns the position of the value at a dotted path, or of the last existing value on the way to it.
    pub fn nearest(&self, path: &str) -> SourceSpan {
        let (name, rest) = path.split_once('.').unwrap_or((path, ""));
        self.get(name).map_or(self.at, |node| node.nearest(rest))
    }

    /// Returns the value of a key of a map.
    pub fn get(&self, key: &str) -> Option<&Node> {
        self.entry(key).map(|(_, node)| node)
    }

    /// Returns a key of a map with its value.
    pub fn entry(&self, key: &str) -> Option<(&NodeKey, &Node)> {
        match &self.kind {
            NodeKind::Map(entries) => {
                entries.iter().find(|(name, _)| name.text == key).map(|(name, node)| (name, node))
            }
            _ => None,
        }
    }

    /// Returns the value as JSON. Numbers that JSON has no form for are text.
    pub fn to_json(&self) -> Value {
        match &self.kind {
            NodeKind::Scalar { text, plain } => match parse_scalar(text, *plain) {
                Scalar::Null => Value::Null,
                Scalar::Bool(truth) => truth.into(),
                Scalar::Int(n) => i64::try_from(n).map_or_else(|_| text.as_str().into(), Value::from),
                Scalar::Float(x) => serde_json::Number::from_f64(x).map_or_else(|| text.as_str().into(), Value::Number),
                Scalar::Text(text) => text.into(),
            },
            NodeKind::List(items) => items.iter().map(Node::to_json).collect(),
            NodeKind::Map(entries) => entries.iter().map(|(key, node)| (key.text.clone(), node.to_json())).collect(),
        }
    }

    /// Returns true for an empty value, `null` and `~`.
    pub fn is_null(&self) -> bool {
        matches!(&self.kind, NodeKind::Scalar { text, plain } if parse_scalar(text, *plain) == Scalar::Null)
    }
}

/// Parses a scalar: null, boolean, integer, number, or text.
pub(super) fn parse_scalar(text: &str, plain: bool) -> Scalar<'_> {
    if !plain {
        return Scalar::Text(text);
    }
    match text {
        "" | "~" | "null" | "Null" | "NULL" => return Scalar::Null,
        "true" | "True" | "TRUE" => return Scalar::Bool(true),
        "false" | "False" | "FALSE" => return Scalar::Bool(false),
        ".nan" | ".NaN" | ".NAN" => return Scalar::Float(f64::NAN),
        ".inf" | ".Inf" | ".INF" | "+.inf" | "+.Inf" | "+.INF" => return Scalar::Float(f64::INFINITY),
        "-.inf" | "-.Inf" | "-.INF" => return Scalar::Float(f64::NEG_INFINITY),
        _ => {}
    }
    let based = text.strip_prefix("0x").map(|d| (d, 16)).or_else(|| text.strip_prefix("0o").map(|d| (d, 8)));
    if let Some((digits, radix)) = based {
        let signed = digits.starts_with(['+', '-']);
        return i128::from_str_radix(digits, radix).ok().filter(|_| !signed).map_or(Scalar::Text(text), Scalar::Int);
    }
    // Rust's parser also accepts `inf` and `nan`. A number in YAML has a digit and only these characters.
    let numeric = text.bytes().any(|b| b.is_ascii_digit())
        && text.bytes().all(|b| b.is_ascii_digit() || matches!(b, b'+' | b'-' | b'.' | b'e' | b'E'));
    if !numeric {
        return Scalar::Text(text);
    }
    if let Ok(i) = text.parse() {
        return Scalar::Int(i);
    }
    text.parse().map_or(Scalar::Text(text), Scalar::Float)
}

/// Parses one YAML document. `None` if there is no document, or if its syntax is broken; then a mistake is added.
pub(super) fn parse(source: usize, text: &str, mistakes: &mut Vec<Mistake>) -> Option<Node> {
    parse_tagged(source, text, mistakes, None)
}

/// Does the same. With `tags`, a tag is no mistake: its name and the position of its value are added there.
pub(super) fn parse_tagged(
    source: usize,
    text: &str,
    mistakes: &mut Vec<Mistake>,
    tags: Option<&mut Vec<(SourceSpan, String)>>,
) -> Option<Node> {
    let parser = Parser::new_from_str(text);
    let mut builder = TreeBuilder { source, text, parser, anchors: HashMap::new(), nodes: 0, mistakes, tags };
    match builder.document() {
        Ok(node) => node,
        Err(mistake) => {
            mistakes.push(*mistake);
            None
        }
    }
}

type TreeResult<T> = Result<T, Box<Mistake>>;

struct TreeBuilder<'a> {
    source: usize,
    text: &'a str,
    parser: Parser<'a, saphyr_parser::StrInput<'a>>,
    anchors: HashMap<usize, Node>,
    nodes: usize,
    mistakes: &'a mut Vec<Mistake>,
    tags: Option<&'a mut Vec<(SourceSpan, String)>>,
}

impl<'a> TreeBuilder<'a> {
    fn document(&mut self) -> TreeResult<Option<Node>> {
        let mut root = None;
        loop {
            let (event, span) = self.next()?;
            match event {
                Event::StreamEnd => return Ok(root),
                Event::StreamStart | Event::DocumentStart(_) | Event::DocumentEnd | Event::Nothing => {}
                _ if root.is_some() => {
                    let m = Mistake::new(self.at(span), "a second YAML document");
                    return Err(Box::new(m.hint("a recipe is one document: remove the `---` and what follows")));
                }
                event => root = Some(self.node(event, span, 0)?),
            }
        }
    }

    fn next(&mut self) -> TreeResult<(Event<'a>, Span)> {
        match self.parser.next_event() {
            Some(Ok(found)) => Ok(found),
            Some(Err(e)) => Err(Box::new(self.syntax(&e))),
            None => Ok((Event::StreamEnd, Span::default())),
        }
    }

    fn node(&mut self, event: Event<'a>, span: Span, depth: usize) -> TreeResult<Node> {
        let at = self.at(span);
        self.nodes += 1;
        if depth > DEPTH || self.nodes > NODES {
            let what = if depth > DEPTH {
                format!("nested deeper than {DEPTH} levels")
            } else {
                format!("more than {NODES} values")
            };
            return Err(Box::new(Mistake::new(at, what).hint("a recipe is short; is this the right file?")));
        }
        let (anchor, tag) = match &event {
            Event::Scalar(_, _, anchor, tag) => (*anchor, tag.clone()),
            Event::SequenceStart(anchor, tag) | Event::MappingStart(anchor, tag) => (*anchor, tag.clone()),
            _ => (0, None),
        };
        if let (Some(tag), Some(tags)) = (&tag, &mut self.tags) {
            tags.push((at, tag.suffix.clone()));
        } else if let Some(tag) = tag {
            let m = Mistake::new(at, format!("the YAML tag `{tag}`"));
            let hint = format!("recipes have no tags; a choice is a key: `{}: {{}}`", tag.suffix);
            self.mistakes.push(m.hint(hint));
        }
        let kind = match event {
            Event::Scalar(text, style, ..) => {
                NodeKind::Scalar { text: text.into_owned(), plain: style == ScalarStyle::Plain }
            }
            Event::SequenceStart(..) => self.list(depth)?,
            Event::MappingStart(..) => self.entries(depth)?,
            Event::Alias(id) => return self.alias(id, at),
            _ => return Err(Box::new(Mistake::new(at, "a value is missing here"))),
        };
        let node = Node { at, kind };
        if anchor > 0 {
            self.anchors.insert(anchor, node.clone());
        }
        Ok(node)
    }

    fn alias(&mut self, id: usize, at: SourceSpan) -> TreeResult<Node> {
        let Some(node) = self.anchors.get(&id).cloned() else {
            let m = Mistake::new(at, "an alias inside the value that it names");
            return Err(Box::new(m.hint("write the value out")));
        };
        self.nodes += size(&node);
        if self.nodes > NODES {
            let m = Mistake::new(at, format!("aliases make more than {NODES} values"));
            return Err(Box::new(m.hint("a recipe is short; write the values out")));
        }
        Ok(node)
    }

    fn list(&mut self, depth: usize) -> TreeResult<NodeKind> {
        let mut items = Vec::new();
        loop {
            let (event, span) = self.next()?;
            if event == Event::SequenceEnd {
                return Ok(NodeKind::List(items));
            }
            items.push(self.node(event, span, depth + 1)?);
        }
    }

    fn entries(&mut self, depth: usize) -> TreeResult<NodeKind> {
        let mut entries: Vec<(NodeKey, Node)> = Vec::new();
        loop {
            let (event, span) = self.next()?;
            if event == Event::MappingEnd {
                return Ok(NodeKind::Map(entries));
            }
            let key = self.node(event, span, depth + 1)?;
            let (event, span) = self.next()?;
            let value = self.node(event, span, depth + 1)?;
            let NodeKind::Scalar { text, .. } = key.kind else {
                self.mistakes.push(Mistake::new(key.at, "a list or map as a key").hint("keys are plain names"));
                continue;
            };
            let name = NodeKey { at: key.at, text };
            if let Some((first, _)) = entries.iter().find(|(n, _)| n.text == name.text) {
                let m = Mistake::new(name.at, format!("`{}` is given twice", name.text));
                self.mistakes.push(m.hint(format!("the first is on line {}; keep one", first.at.line)));
                continue;
            }
            entries.push((name, value));
        }
    }

    /// Returns the part of a span that is on its first line. A map or list, which has no text of its own, gets one
    /// character.
    fn at(&self, span: Span) -> SourceSpan {
        let (start, end) = (span.start, span.end);
        let line = start.line().max(1);
        let to_line_end = || {
            let rest = self.text.lines().nth(line - 1).unwrap_or("").trim_end().chars().count();
            rest.saturating_sub(start.col())
        };
        let len = if end.line() == start.line() { end.col().saturating_sub(start.col()) } else { to_line_end() };
        SourceSpan { source: self.source, line, col: start.col(), len: len.max(1) }
    }

    fn syntax(&self, e: &ScanError) -> Mistake {
        let mark = e.marker();
        let at = SourceSpan { source: self.source, line: mark.line().max(1), col: mark.col(), len: 1 };
        let indented_by_tab = |n: usize| {
            let line = self.text.lines().nth(n.wrapping_sub(1)).unwrap_or("");
            let blank = &line[..line.len() - line.trim_start().len()];
            blank.chars().position(|c| c == '\t')
        };
        // The scanner reports the token at which it failed: the tab is on that line or on one next to it.
        for line in [at.line, at.line.saturating_sub(1), at.line + 1] {
            if let Some(col) = indented_by_tab(line) {
                let m = Mistake::new(SourceSpan { line, col, ..at }, "a tab in the indentation");
                return m.hint("YAML is indented with spaces: replace the tab by two of them");
            }
        }
        let m = Mistake::new(at, format!("not YAML: {}", e.info()));
        m.hint("the mistake may be on the line before: look for a missing colon, comma, quote or closing bracket")
    }
}

fn size(node: &Node) -> usize {
    1 + match &node.kind {
        NodeKind::Scalar { .. } => 0,
        NodeKind::List(items) => items.iter().map(size).sum(),
        NodeKind::Map(entries) => entries.iter().map(|(_, node)| size(node)).sum(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scalars_follow_yaml_1_2() {
        for (text, value) in
            [("2e-4", 2e-4), ("1e5", 1e5), (".5", 0.5), ("-1.", -1.0), ("1E-8", 1e-8), ("+1.5e+2", 150.0)]
        {
            assert_eq!(parse_scalar(text, true), Scalar::Float(value), "{text}");
        }
        assert_eq!(parse_scalar("0x1F", true), Scalar::Int(31));
        assert_eq!(parse_scalar("-12", true), Scalar::Int(-12));
        assert_eq!(parse_scalar("12", false), Scalar::Text("12"));
        for text in ["yes", "inf", "nan", "1_000", "1,5", "0x", "0x-1", "-", ".", "e5", "1-2", "::"] {
            assert_eq!(parse_scalar(text, true), Scalar::Text(text), "{text}");
        }
    }

    #[test]
    fn hostile_yaml_ends_in_one_mistake() {
        let deep = "[".repeat(5000);
        let mut laughs = String::from("a0: &a0 [x, x, x, x, x, x, x, x, x]\n");
        for i in 1..9 {
            laughs += &format!("a{i}: &a{i} [{}]\n", vec![format!("*a{}", i - 1); 9].join(", "));
        }
        for text in [
            deep.as_str(),
            laughs.as_str(),
            "a: &a [*a]",
            "a: *b",
            "a: \"",
            "{",
            "a: b: c",
            "a: 1\n---\nb: 2",
            "%YAML 9",
        ] {
            let mut mistakes = Vec::new();
            assert!(parse(0, text, &mut mistakes).is_none(), "{}", &text[..text.len().min(40)]);
            assert_eq!(mistakes.len(), 1, "{}", &text[..text.len().min(40)]);
        }
    }
}
