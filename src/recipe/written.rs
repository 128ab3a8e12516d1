//! The recipe as the user wrote it, for rules about two or more settings.

use super::mistakes::{Mistake, SourceSpan};
use super::schema::key;
use super::tree::{Node, NodeKind};
use serde_json::Value;

/// A recipe as written, and those of its values that passed the check against the schema.
pub struct WrittenRecipe<'a> {
    /// The recipe with the positions of its keys.
    pub tree: &'a Node,
    /// The valid values as JSON.
    pub values: &'a Value,
}

impl WrittenRecipe<'_> {
    /// Returns true if the key is set in the file or by `--set`, to a valid value or not.
    pub fn given(&self, path: &str) -> bool {
        self.node(path).is_some_and(|node| !node.is_null())
    }

    /// Returns the node at a dotted path; items of lists are numbered from 0.
    pub fn node(&self, path: &str) -> Option<&Node> {
        path.split('.').try_fold(self.tree, |node, name| match &node.kind {
            NodeKind::List(items) => items.get(name.parse::<usize>().ok()?),
            _ => node.get(name),
        })
    }

    /// Returns the value, else the default; `None` if the value is invalid or there is no default.
    pub fn value(&self, path: &str) -> Option<Value> {
        if self.given(path) {
            return self.values.pointer(&format!("/{}", path.replace('.', "/"))).cloned().filter(|v| !v.is_null());
        }
        key(path)?.default.clone()
    }

    /// Returns the value, else the default, as a number.
    pub fn number(&self, path: &str) -> Option<f64> {
        self.value(path)?.as_f64()
    }

    /// Returns true if the value, else the default, is this word.
    pub fn is(&self, path: &str, word: &str) -> bool {
        self.value(path).is_some_and(|v| v == word)
    }

    /// Returns true if the key is set to a value other than its default.
    pub fn differs_from_default(&self, path: &str) -> bool {
        let numeric = |v: &Value| v.as_f64().map_or_else(|| v.clone(), Value::from);
        let default = key(path).and_then(|k| k.default.as_ref()).map(numeric);
        self.given(path) && self.value(path).is_some_and(|v| Some(numeric(&v)) != default)
    }

    /// Returns the position of a setting: of its key, else of its value (an item of a list).
    pub fn at(&self, path: &str) -> SourceSpan {
        let (parent, name) = path.rsplit_once('.').unwrap_or(("", path));
        let parent = if parent.is_empty() { Some(self.tree) } else { self.node(parent) };
        let key = parent.and_then(|p| p.entry(name)).map(|(name, _)| name.at);
        key.or_else(|| self.node(path).map(|n| n.at)).unwrap_or(self.tree.at)
    }

    /// Builds a mistake at the position of a setting.
    pub fn mistake_at(&self, path: &str, message: impl Into<String>, hint: &str) -> Mistake {
        Mistake::new(self.at(path), message).hint(hint)
    }
}
