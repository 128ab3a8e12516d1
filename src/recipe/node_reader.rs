//! Reads typed values from the tree of a file, and notes mistakes as they are met.

use super::mistakes::{Mistake, SourceSpan};
use super::repair::describe_value;
use super::suggest::suggest_choice;
use super::tree::{Node, NodeKind, Scalar, parse_scalar};
use std::path::PathBuf;

/// Reads values; methods that return `None` have noted why.
pub(super) struct NodeReader<'a> {
    /// The mistakes that were met.
    pub mistakes: &'a mut Vec<Mistake>,
}

impl NodeReader<'_> {
    /// Notes a mistake, once.
    pub fn wrong<T>(&mut self, at: SourceSpan, message: String, hint: impl Into<String>) -> Option<T> {
        let mistake = Mistake::new(at, message).hint(hint);
        if !self.mistakes.contains(&mistake) {
            self.mistakes.push(mistake);
        }
        None
    }

    /// Notes that a value is of another type.
    pub fn expected<T>(&mut self, key: &str, node: &Node, what: &str, example: &str) -> Option<T> {
        let message = format!("`{key}`: expected {what}, found {}", describe_value(node));
        self.wrong(node.at, message, format!("e.g. `{key}: {example}`"))
    }

    /// Notes keys of a map that are not known; `what` has the known ones.
    pub fn check_keys(&mut self, map: &Node, known: &[&str], what: &str) {
        let NodeKind::Map(entries) = &map.kind else {
            self.wrong::<()>(
                map.at,
                format!("expected keys and values, found {}", describe_value(map)),
                format!("{what} has {}", known.join(", ")),
            );
            return;
        };
        for (key, _) in entries.iter().filter(|(key, _)| !known.contains(&key.text.as_str())) {
            let hint = match suggest_choice(known, &key.text) {
                Some(near) => format!("did you mean `{near}`?"),
                None => format!("{what} has {}", known.join(", ")),
            };
            self.wrong::<()>(key.at, format!("unknown key `{}`", key.text), hint);
        }
    }

    /// Returns the value of a key that must be there.
    pub fn required<'n>(&mut self, root: &'n Node, key: &str, example: &str) -> Option<&'n Node> {
        match root.get(key) {
            Some(node) => Some(node),
            None => self.wrong(SourceSpan::start(0), format!("`{key}` is missing"), format!("e.g. `{key}: {example}`")),
        }
    }

    /// Returns the items of a list.
    pub fn list<'n>(&mut self, key: &str, node: &'n Node, example: &str) -> Option<&'n [Node]> {
        match &node.kind {
            NodeKind::List(items) if !items.is_empty() => Some(items),
            NodeKind::List(_) => self.wrong(node.at, format!("`{key}` is empty"), format!("e.g. `{key}: {example}`")),
            _ => self.expected(key, node, "a list", example),
        }
    }

    /// Reads one of several names.
    pub fn named<T>(&mut self, root: &Node, key: &str, names: &[&str], get: impl Fn(&str) -> Option<T>) -> Option<T> {
        root.get(key).and_then(|node| self.choice(key, node, names, get))
    }

    /// Reads one of several names.
    pub fn choice<T>(&mut self, key: &str, node: &Node, names: &[&str], get: impl Fn(&str) -> Option<T>) -> Option<T> {
        let NodeKind::Scalar { text, .. } = &node.kind else {
            return self.expected(key, node, &format!("one of {}", names.join(", ")), names[0]);
        };
        get(text).or_else(|| {
            let hint = match suggest_choice(names, text) {
                Some(near) => format!("did you mean `{near}`? (choices: {})", names.join(", ")),
                None => format!("choices: {}", names.join(", ")),
            };
            self.wrong(node.at, format!("unknown choice `{text}` for `{key}`"), hint)
        })
    }

    /// Reads a path.
    pub fn path(&mut self, key: &str, node: &Node, example: &str) -> Option<PathBuf> {
        self.text(key, node, "a path", example).map(PathBuf::from)
    }

    /// Reads a text.
    pub fn text(&mut self, key: &str, node: &Node, what: &str, example: &str) -> Option<String> {
        match &node.kind {
            NodeKind::Scalar { text, .. } if !node.is_null() => Some(text.clone()),
            _ => self.expected(key, node, what, example),
        }
    }

    /// Returns the meaning of a scalar.
    pub fn scalar(node: &Node) -> Scalar<'_> {
        match &node.kind {
            NodeKind::Scalar { text, plain } => parse_scalar(text, *plain),
            _ => Scalar::Null,
        }
    }

    /// Reads a number.
    pub fn number(&mut self, key: &str, node: &Node) -> Option<f64> {
        match Self::scalar(node) {
            Scalar::Int(n) => Some(n as f64),
            Scalar::Float(x) if x.is_finite() => Some(x),
            _ => self.expected(key, node, "a number", "0.5"),
        }
    }

    /// Reads a whole number that is not negative.
    pub fn whole(&mut self, key: &str, node: &Node) -> Option<i64> {
        match Self::scalar(node) {
            Scalar::Int(n) if (0..=i64::MAX as i128).contains(&n) => Some(n as i64),
            _ => self.expected(key, node, "a whole number", "16"),
        }
    }

    /// Reads a truth value.
    pub fn truth(&mut self, key: &str, node: &Node) -> Option<bool> {
        match Self::scalar(node) {
            Scalar::Bool(b) => Some(b),
            _ => self.expected(key, node, "true or false", "true"),
        }
    }
}
