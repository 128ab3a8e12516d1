//! `--set KEY=VALUE`: puts a value into the tree before it is checked, so that it goes through the same check.
//!
//! The value is YAML; an empty one (or `null`) takes the key away, so that its default holds. A mistake in it is
//! reported at the `--set`.

use super::mistakes::{At, Mistake};
use super::schema::{Shape, schema, shape};
use super::tree::{self, Kind, Name, Node};
use serde_json::Value;

/// Applies the settings in order; a later one wins.
pub(super) fn apply(root: &mut Node, sets: &[String], mistakes: &mut Vec<Mistake>) {
    for (i, set) in sets.iter().enumerate() {
        let at = At::start(i + 1);
        let Some((path, text)) = set.split_once('=') else {
            mistakes.push(Mistake::new(at, "expected KEY=VALUE").hint("such as --set optim.lr=1e-4"));
            continue;
        };
        let names: Vec<&str> = path.trim().split('.').collect();
        if names.iter().any(|n| n.is_empty()) {
            mistakes.push(Mistake::new(at, format!("`{path}` is no key")).hint("such as --set optim.lr=1e-4"));
            continue;
        }
        let before = mistakes.len();
        let value = tree::parse(i + 1, text, mistakes).filter(|node| !node.is_null());
        if mistakes.len() == before {
            put(root, Some(schema()), &names, value, at, mistakes);
        }
    }
}

/// Puts `value` at the path below `node`, or takes away what is there.
fn put(
    node: &mut Node,
    schema: Option<&'static Value>,
    names: &[&str],
    value: Option<Node>,
    at: At,
    mistakes: &mut Vec<Mistake>,
) {
    let [name, deeper @ ..] = names else { return };
    if let Kind::List(_) = node.kind {
        let m = Mistake::new(at, format!("`{name}` would be inside a list"));
        mistakes.push(m.hint("set the whole list, such as --set optim.betas=[0.9,0.95]"));
        return;
    }
    if !matches!(node.kind, Kind::Map(_)) {
        *node = Node::map(at);
    }
    let Kind::Map(entries) = &mut node.kind else { return };
    // A choice holds one key: setting another replaces it.
    let mut below = None;
    match schema.map(shape) {
        Some(Shape::Choice(choices)) => {
            if let Some(choice) = choices.iter().find(|c| c.name == *name) {
                entries.retain(|(n, _)| n.text == *name);
                below = choice.payload;
            }
        }
        Some(Shape::Section { properties, .. }) => below = properties.get(*name),
        _ => {}
    }
    let position = entries.iter().position(|(n, _)| n.text == *name);
    match (position, deeper.is_empty(), value) {
        (Some(i), true, None) => {
            entries.remove(i);
        }
        (None, true, None) => {
            // Nothing to take away; a key that does not exist is still a mistake.
            if below.is_none() {
                entries.push((Name { at, text: name.to_string() }, Node::map(at)));
            }
        }
        (Some(i), true, Some(value)) => entries[i] = (Name { at, text: name.to_string() }, value),
        (None, true, Some(value)) => entries.push((Name { at, text: name.to_string() }, value)),
        (Some(i), false, value) => put(&mut entries[i].1, below, deeper, value, at, mistakes),
        (None, false, value) => {
            let mut section = Node::map(at);
            put(&mut section, below, deeper, value, at, mistakes);
            entries.push((Name { at, text: name.to_string() }, section));
        }
    }
}
