//! Applies `--set KEY=VALUE`: puts the value into the tree before the tree is checked, so that the same rules apply to
//! it.
//!
//! The value is YAML. An empty one (or `null`) removes the key, so that its default applies. A mistake in the value is
//! reported at the `--set`.

use super::mistakes::{Mistake, SourceSpan};
use super::schema::{SchemaShape, schema, section_of, shape};
use super::tree::{self, Node, NodeKey, NodeKind};
use serde_json::Value;

/// Applies the `--set` arguments in order; a later one overrides an earlier one.
pub(super) fn apply(root: &mut Node, sets: &[String], mistakes: &mut Vec<Mistake>) {
    for (i, set) in sets.iter().enumerate() {
        let at = SourceSpan::start(i + 1);
        let Some((path, text)) = set.split_once('=') else {
            mistakes.push(Mistake::new(at, "expected KEY=VALUE").hint("such as --set optim.lr=1e-4"));
            continue;
        };
        let names: Vec<&str> = path.trim().split('.').collect();
        if names.iter().any(|n| n.is_empty()) {
            mistakes.push(Mistake::new(at, format!("`{path}` is not a key")).hint("such as --set optim.lr=1e-4"));
            continue;
        }
        let before = mistakes.len();
        let value = tree::parse(i + 1, text, mistakes).filter(|node| !node.is_null());
        if mistakes.len() == before {
            let put = RecipeOverride { names, at };
            mistakes.extend(put.apply_below(0, root, Some(schema()), value).err());
        }
    }
}

/// A `--set` argument: the parts of its key, and its position for messages.
struct RecipeOverride<'a> {
    names: Vec<&'a str>,
    at: SourceSpan,
}

impl RecipeOverride<'_> {
    /// Sets `value` at the rest of the path, from the part `depth` on, below `node`; `None` removes what is there.
    fn apply_below(
        &self,
        depth: usize,
        node: &mut Node,
        schema: Option<&'static Value>,
        value: Option<Node>,
    ) -> Result<(), Mistake> {
        let (name, last) = (self.names[depth], depth + 1 == self.names.len());
        let (path, at) = (self.names[..depth].join("."), self.at);
        let mut below = None;
        let mut known = true;
        let shaped = schema.map(|schema| match (shape(schema), &node.kind) {
            // A single source has keys that can be set; a list of sources can only be set as a whole.
            (either @ SchemaShape::Either(_), kind) => match (section_of(&either), kind) {
                (Some(schema), NodeKind::List(_)) => SchemaShape::List { items: schema, min: None, max: None },
                (Some(schema), _) => shape(schema),
                (None, _) => either,
            },
            (other, _) => other,
        });
        match shaped {
            Some(SchemaShape::Choice(choices)) if choices.iter().any(|c| c.payload.is_some()) => {
                let choice = choices.iter().find(|c| c.name == name);
                (below, known) = (choice.and_then(|c| c.payload), choice.is_some());
                // A choice has one key: setting another one replaces it.
                if let NodeKind::Map(entries) = &mut node.kind
                    && known
                    && value.is_some()
                {
                    entries.retain(|(n, _)| n.text == name);
                }
            }
            Some(SchemaShape::Section { properties, .. }) => {
                below = properties.get(name);
                known = below.is_some();
            }
            Some(SchemaShape::Map { values, .. }) => below = Some(values),
            Some(SchemaShape::List { .. }) => {
                let hint = format!("set the whole list, such as --set {path}=[A,B]");
                return Err(Mistake::new(at, format!("`{path}` is a list")).hint(hint));
            }
            Some(_) => {
                return Err(Mistake::new(at, format!("`{path}` has no keys")).hint(format!("--set {path}=VALUE")));
            }
            None => {}
        }
        if !matches!(node.kind, NodeKind::Map(_)) {
            *node = Node::map(at);
        }
        let NodeKind::Map(entries) = &mut node.kind else { return Ok(()) };
        let key = || NodeKey { at, text: name.to_string() };
        match (entries.iter().position(|(n, _)| n.text == name), value) {
            (Some(i), None) if last => drop(entries.remove(i)),
            (Some(i), Some(value)) if last => entries[i] = (key(), value),
            (None, Some(value)) if last => entries.push((key(), value)),
            // There is nothing to remove. An unknown key is still inserted, so that the check reports it.
            (None, None) if last => entries.extend((!known).then(|| (key(), Node::map(at)))),
            (Some(i), value) => self.apply_below(depth + 1, &mut entries[i].1, below, value)?,
            (None, value) => {
                let (mut section, taken) = (Node::map(at), value.is_none());
                self.apply_below(depth + 1, &mut section, below, value)?;
                // Removing a key must not create its section, except for an unknown key, so that the check reports it.
                if !taken || !known || !matches!(&section.kind, NodeKind::Map(entries) if entries.is_empty()) {
                    entries.push((key(), section));
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn setting_another_choice_replaces_the_one_there() {
        let tagged = |name: &str| json!({"type": "object", "properties": {name: {"type": "object", "properties": {"beta": {}}}}});
        let schema: &'static Value = Box::leak(Box::new(json!({"oneOf": [tagged("sft"), tagged("dpo")]})));
        let names = |set: &[&str], value: Option<&str>| {
            let mut tree = tree::parse(0, "{ sft: { beta: 1 } }", &mut Vec::new()).unwrap();
            let value = value.and_then(|v| tree::parse(1, v, &mut Vec::new()));
            RecipeOverride { names: set.to_vec(), at: SourceSpan::start(1) }
                .apply_below(0, &mut tree, Some(schema), value)
                .unwrap();
            let NodeKind::Map(entries) = tree.kind else { unreachable!() };
            entries.into_iter().map(|(name, _)| name.text).collect::<Vec<_>>()
        };
        assert_eq!(names(&["dpo", "beta"], Some("2")), ["dpo"]);
        assert_eq!(names(&["sft", "beta"], Some("2")), ["sft"]);
        assert_eq!(names(&["dpo", "beta"], None), ["sft"], "removing a key that is not set changes nothing");
    }
}
