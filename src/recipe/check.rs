//! Checks a recipe's tree against the schema: finds every mistake and returns the values as JSON.
//!
//! The check is driven by the schema alone: a new key, method or adapter needs no change here. Rules that the schema
//! cannot express, such as two keys that contradict each other, are in `conflicts`.

use super::mistakes::{Mistake, SourceSpan};
use super::repair::{describe_value, leaf, repair, with_article};
use super::schema::{self, SchemaChoice, SchemaShape, shape, strip_null};
use super::suggest;
use super::tree::{Node, NodeKey, NodeKind, Scalar, parse_scalar};
use crate::data::chat::is_template_name;
use serde_json::{Map, Value};
use std::path::{Path, PathBuf};

/// Returns the valid values. They are complete only if no mistake was added to `mistakes`.
pub(super) fn check(root: &Node, mistakes: &mut Vec<Mistake>) -> Value {
    let mut walk = SchemaWalk { mistakes, holder: first_key(root), meant: Vec::new(), missing: Vec::new() };
    let value = walk.value(root, schema::schema(), "").unwrap_or_default();
    let SchemaWalk { meant, missing, .. } = walk;
    // A misspelt required key is reported once, not also as missing.
    let spelt = |path: &str| meant.iter().any(|m| m == path || m.starts_with(&format!("{path}.")));
    mistakes.extend(missing.into_iter().filter(|(path, _)| !spelt(path)).map(|(_, m)| m));
    value
}

struct SchemaWalk<'a> {
    mistakes: &'a mut Vec<Mistake>,
    /// Position of the key whose value is being checked: a key missing from the value is reported there.
    holder: SourceSpan,
    /// Paths of the keys that unknown keys probably stood for.
    meant: Vec<String>,
    missing: Vec<(String, Mistake)>,
}

impl SchemaWalk<'_> {
    fn wrong(&mut self, node: &Node, message: String, hint: Option<String>) -> Option<Value> {
        self.mistakes.push(Mistake { at: node.at, message, hint });
        None
    }

    fn value(&mut self, node: &Node, schema: &'static Value, path: &str) -> Option<Value> {
        let nullable = strip_null(schema).1;
        if node.is_null() {
            return if nullable { Some(Value::Null) } else { self.empty(node, schema, path) };
        }
        match (shape(schema), &node.kind) {
            (SchemaShape::Section { properties, required }, NodeKind::Map(entries)) => {
                Some(self.section(entries, properties, &required, path))
            }
            (SchemaShape::Choice(choices), _) => self.choice(node, &choices, nullable, path),
            (SchemaShape::Map { keys, values }, NodeKind::Map(entries)) => {
                let mut out = Map::new();
                for (name, child) in entries {
                    if let Some(keys) = keys {
                        let text =
                            Node { at: name.at, kind: NodeKind::Scalar { text: name.text.clone(), plain: false } };
                        self.value(&text, keys, &format!("{path}.{}", name.text));
                    }
                    let value = self.value(child, values, &format!("{path}.{}", name.text));
                    out.extend(value.map(|v| (name.text.clone(), v)));
                }
                Some(out.into())
            }
            (SchemaShape::List { items, min, max }, NodeKind::List(nodes)) => {
                self.list(node, nodes, items, min, max, path)
            }
            (SchemaShape::Either(of), _) => match of.iter().find(|s| fits(&shape(s), node)) {
                Some(schema) => self.value(node, schema, path),
                None => self.mismatch(node, schema, path),
            },
            (SchemaShape::Scalar { kind, limits }, NodeKind::Scalar { text, plain }) => {
                self.scalar(node, parse_scalar(text, *plain), kind, limits, schema, path)
            }
            _ => self.mismatch(node, schema, path),
        }
    }

    fn section(
        &mut self,
        entries: &[(NodeKey, Node)],
        properties: &'static Map<String, Value>,
        required: &[&str],
        path: &str,
    ) -> Value {
        let holder = self.holder;
        let mut out = Map::new();
        for (name, child) in entries {
            let below = join(path, &name.text);
            self.holder = name.at;
            match properties.get(&name.text) {
                Some(schema) => out.extend(self.value(child, schema, &below).map(|v| (name.text.clone(), v))),
                None => self.unknown(name, child, properties, path),
            }
        }
        for name in required.iter().filter(|r| !entries.iter().any(|(name, _)| name.text == **r)) {
            let below = join(path, name);
            let doc = schema::key(&below).map_or("", |k| &k.doc);
            self.missing.push((below.clone(), Mistake::new(holder, format!("`{below}` is missing")).hint(doc)));
        }
        out.into()
    }

    fn unknown(&mut self, name: &NodeKey, child: &Node, properties: &'static Map<String, Value>, path: &str) {
        let m = Mistake::new(name.at, format!("unknown key `{}`", name.text));
        if name.text == "<<" {
            self.mistakes
                .push(m.hint("YAML merge keys are not read; write the keys out, or vary a recipe with `--set`"));
            return;
        }
        let found = suggest::suggest_key(path, &name.text);
        self.mistakes.push(m.hint(found.hint));
        let Some(meant) = found.path else { return };
        // The value of a misspelt key is checked as that of the intended key, so that its mistakes are reported as
        // well.
        let sibling =
            meant.rsplit_once('.').map_or(meant.as_str(), |(parent, leaf)| if parent == path { leaf } else { "" });
        if let Some(schema) = properties.get(sibling).filter(|_| !name.text.contains(':')) {
            self.value(child, schema, &meant);
        }
        self.meant.push(meant);
    }

    fn list(
        &mut self,
        node: &Node,
        nodes: &[Node],
        items: &'static Value,
        min: Option<u64>,
        max: Option<u64>,
        path: &str,
    ) -> Option<Value> {
        let n = nodes.len() as u64;
        if min.is_some_and(|min| n < min) || max.is_some_and(|max| n > max) {
            let wanted = match (min, max) {
                (Some(min), Some(max)) if min == max => format!("{min} values"),
                (Some(min), _) if n < min => format!("at least {min} values"),
                (_, max) => format!("at most {} values", max.unwrap_or(n)),
            };
            return self.wrong(node, format!("`{path}` takes {wanted}, found {n}"), doc_hint(path));
        }
        let values = nodes.iter().enumerate().map(|(i, item)| self.value(item, items, &format!("{path}.{i}")));
        values.collect::<Vec<_>>().into_iter().collect::<Option<Vec<_>>>().map(Value::from)
    }

    fn choice(&mut self, node: &Node, choices: &[SchemaChoice<'static>], nullable: bool, path: &str) -> Option<Value> {
        let names: Vec<&str> = choices.iter().map(|c| c.name).collect();
        match &node.kind {
            NodeKind::Scalar { text, .. } => match choices.iter().find(|c| c.name == text) {
                Some(SchemaChoice { payload: None, name, .. }) => Some(Value::from(*name)),
                Some(SchemaChoice { name, .. }) => {
                    let hint = Some(format!("write `{}`", spelled(path, name)));
                    self.wrong(node, format!("`{path}`: expected a map with one key, found the text `{name}`"), hint)
                }
                None => {
                    let hint = if nullable && matches!(text.as_str(), "none" | "None" | "no" | "off" | "false" | "full")
                    {
                        let doc = schema::key(path).map_or("", |k| &k.doc);
                        format!("leave `{path}` out: {doc}")
                    } else {
                        self.choice_hint(path, choices, &names, text)
                    };
                    self.wrong(node, format!("unknown choice `{text}` for `{path}`"), Some(hint))
                }
            },
            NodeKind::Map(entries) => {
                let known: Vec<_> = entries.iter().filter(|(n, _)| names.contains(&n.text.as_str())).collect();
                for (extra, _) in known.iter().skip(1) {
                    let m = format!("`{}` is a second choice for `{path}`, after `{}`", extra.text, known[0].0.text);
                    self.mistakes.push(Mistake::new(extra.at, m).hint("keep one of them"));
                }
                if entries.is_empty() {
                    return self.wrong(node, format!("`{path}` names no choice"), Some(listing(choices, path)));
                }
                let mut out = Map::new();
                for (name, child) in entries {
                    match choices.iter().find(|c| c.name == name.text) {
                        Some(SchemaChoice { payload: Some(schema), .. }) => {
                            self.holder = name.at;
                            let value = self.value(child, schema, &join(path, &name.text));
                            out.extend(value.map(|v| (name.text.clone(), v)));
                        }
                        Some(SchemaChoice { payload: None, .. }) => {
                            let hint = Some(format!("write `{}: {}`", leaf(path), name.text));
                            self.wrong(child, format!("`{}` takes no settings", join(path, &name.text)), hint);
                        }
                        None => self.unknown_choice(name, child, choices, &names, path),
                    }
                }
                Some(out.into())
            }
            NodeKind::List(_) => {
                self.wrong(node, format!("`{path}`: expected one choice, found a list"), Some(listing(choices, path)))
            }
        }
    }

    fn unknown_choice(
        &mut self,
        name: &NodeKey,
        child: &Node,
        choices: &[SchemaChoice<'static>],
        names: &[&str],
        path: &str,
    ) {
        let m = Mistake::new(name.at, format!("unknown choice `{}` for `{path}`", name.text));
        self.mistakes.push(m.hint(self.choice_hint(path, choices, names, &name.text)));
        let near = suggest::suggest_choice(names, &name.text);
        if let Some(SchemaChoice { payload: Some(schema), name, .. }) =
            choices.iter().find(|c| Some(c.name) == near.as_deref())
        {
            self.value(child, schema, &join(path, name));
        }
    }

    fn choice_hint(&self, path: &str, choices: &[SchemaChoice<'static>], names: &[&str], word: &str) -> String {
        if let Some(near) = suggest::suggest_choice(names, word) {
            let of = if names.len() > 1 { format!(" (choices: {})", names.join(", ")) } else { String::new() };
            return format!("did you mean `{near}`?{of}");
        }
        // The word may be a setting of one of the choices, or a choice of another key, written at the wrong level.
        let tagged = choices.iter().any(|c| c.payload.is_some());
        let found =
            Some(suggest::suggest_key(path, word)).filter(|s| tagged && s.path.as_deref().is_some_and(|p| p != path));
        found.map_or_else(|| listing(choices, path), |s| s.hint)
    }

    fn empty(&mut self, node: &Node, schema: &'static Value, path: &str) -> Option<Value> {
        let hint = match shape(schema) {
            SchemaShape::Section { required, .. }
                if required.is_empty() && schema::key(path).is_some_and(|k| !k.parent().is_empty()) =>
            {
                format!("for its defaults write `{}: {{}}`", leaf(path))
            }
            SchemaShape::Section { required, .. } if !required.is_empty() => {
                format!("it needs {}", required.join(", "))
            }
            SchemaShape::Choice(choices) => listing(&choices, path),
            _ => "for the default leave the key out".to_string(),
        };
        if path.is_empty() {
            return self.wrong(node, "the recipe is empty".into(), Some(hint));
        }
        self.wrong(node, format!("`{path}` is empty: expected {}", schema::kind(schema)), Some(hint))
    }

    fn scalar(
        &mut self,
        node: &Node,
        found: Scalar,
        kind: &str,
        limits: &'static Value,
        schema: &'static Value,
        path: &str,
    ) -> Option<Value> {
        let value = match (kind, found) {
            ("string", Scalar::Text(text)) => return self.text(node, text, limits, path),
            ("boolean", Scalar::Bool(b)) => return Some(b.into()),
            ("integer" | "number", Scalar::Int(i)) => match (u64::try_from(i), i64::try_from(i)) {
                (Ok(u), _) => Value::from(u),
                (_, Ok(s)) => Value::from(s),
                _ => return self.wrong(node, format!("`{path}`: {i} is too large"), doc_hint(path)),
            },
            ("number", Scalar::Float(f)) if f.is_finite() => Value::from(f),
            _ => return self.mismatch(node, schema, path),
        };
        let number = value.as_f64().unwrap_or(f64::NAN);
        let (min, max) = (limits["minimum"].as_f64(), limits["maximum"].as_f64());
        if min.is_some_and(|min| number < min) || max.is_some_and(|max| number > max) {
            let range = schema::range(limits).unwrap_or_default();
            return self.wrong(node, format!("`{path}` must be {range}, found {}", written(node)), doc_hint(path));
        }
        Some(value)
    }

    fn text(&mut self, node: &Node, text: &str, limits: &'static Value, path: &str) -> Option<Value> {
        if text.is_empty() {
            return self.wrong(node, format!("`{path}` is empty"), doc_hint(path));
        }
        if let Some(pattern) = limits["pattern"].as_str() {
            // The pattern comes from our schema, so an invalid one would be a bug.
            if !fancy_regex::Regex::new(pattern).is_ok_and(|r| r.is_match(text).unwrap_or(false)) {
                let known = schema::key(path).map_or(String::new(), |k| k.doc.clone());
                return self.wrong(node, format!("`{path}` cannot be `{text}`"), Some(known));
            }
        }
        match limits["format"].as_str() {
            Some("regex") => {
                if let Err(e) = fancy_regex::Regex::new(text) {
                    let hint = Some("write a literal `.` as `\\.`, and put the pattern in single quotes".into());
                    return self.wrong(node, format!("`{path}`: `{text}` is not a regular expression: {e}"), hint);
                }
                Some(text.into())
            }
            // The name of one of the model's own templates is not a path.
            Some("path") if limits["named"] == true && is_template_name(Path::new(text)) => Some(text.into()),
            Some("path") => match absolute(text).to_str() {
                Some(path) => Some(path.into()),
                None => self.wrong(node, format!("`{path}`: the current folder's name is not UTF-8"), None),
            },
            _ => Some(text.into()),
        }
    }

    fn mismatch(&mut self, node: &Node, schema: &'static Value, path: &str) -> Option<Value> {
        let hint = repair(node, &shape(schema), path).or_else(|| doc_hint(path));
        if path.is_empty() {
            let sections = Some(suggest::suggest_key("", "").hint);
            return self.wrong(
                node,
                format!("a recipe is a map of sections, found {}", describe_value(node)),
                hint.or(sections),
            );
        }
        let wanted = with_article(&schema::kind(schema));
        self.wrong(node, format!("`{path}`: expected {wanted}, found {}", describe_value(node)), hint)
    }
}

fn first_key(node: &Node) -> SourceSpan {
    match &node.kind {
        NodeKind::Map(entries) => entries.first().map_or(node.at, |(name, _)| name.at),
        _ => node.at,
    }
}

fn join(parent: &str, name: &str) -> String {
    if parent.is_empty() { name.to_string() } else { format!("{parent}.{name}") }
}

fn spelled(path: &str, name: &str) -> String {
    let needs = schema::keys().iter().filter(|k| k.required && k.parent() == join(path, name));
    let needs: Vec<String> = needs.map(|k| format!("{}: …", k.name())).collect();
    let inner = if needs.is_empty() { "{}".to_string() } else { format!("{{ {} }}", needs.join(", ")) };
    format!("{}: {{ {name}: {inner} }}", leaf(path))
}

fn listing(choices: &[SchemaChoice], path: &str) -> String {
    let names: Vec<&str> = choices.iter().map(|c| c.name).collect();
    match choices.iter().find(|c| c.payload.is_some()) {
        Some(first) => format!("choices: {}; write `{}`", names.join(", "), spelled(path, first.name)),
        None => format!("choices: {}", names.join(", ")),
    }
}

fn doc_hint(path: &str) -> Option<String> {
    // An item of a list or map has no documentation of its own: that of the list or map is shown.
    let own = schema::key(path).or_else(|| schema::key(path.rsplit_once('.')?.0))?;
    Some(format!("{}: {}", own.path, own.doc))
}

/// Returns true if a node has the kind that a shape requires; its contents are not checked.
fn fits(shape: &SchemaShape, node: &Node) -> bool {
    match (shape, &node.kind) {
        (SchemaShape::Scalar { kind, .. }, NodeKind::Scalar { text, plain }) => matches!(
            (*kind, parse_scalar(text, *plain)),
            ("string", Scalar::Text(_))
                | ("boolean", Scalar::Bool(_))
                | ("integer" | "number", Scalar::Int(_))
                | ("number", Scalar::Float(_))
        ),
        (SchemaShape::Choice(choices), NodeKind::Scalar { text, .. }) => choices.iter().any(|c| c.name == text),
        (SchemaShape::List { .. }, NodeKind::List(_)) => true,
        (SchemaShape::Section { .. } | SchemaShape::Map { .. } | SchemaShape::Choice(_), NodeKind::Map(_)) => true,
        _ => false,
    }
}

fn written(node: &Node) -> String {
    match &node.kind {
        NodeKind::Scalar { text, .. } => text.clone(),
        _ => String::new(),
    }
}

/// Makes a path absolute and expands a leading `~/`.
fn absolute(text: &str) -> PathBuf {
    let home = text.strip_prefix("~/").zip(std::env::var_os("HOME"));
    crate::fsutil::absolute(&home.map_or_else(|| PathBuf::from(text), |(rest, home)| Path::new(&home).join(rest)))
}

#[cfg(test)]
mod tests {
    use super::super::tree::parse;
    use super::*;
    use serde_json::json;

    /// Checks `text` against a choice schema of the form that the derive writes.
    fn walk(text: &str) -> (Option<Value>, Vec<String>) {
        let section =
            json!({"type": "object", "additionalProperties": false, "properties": {"beta": {"type": "number"}}});
        let tagged = |name: &str| json!({"type": "object", "properties": {name: section}, "required": [name]});
        let word = json!({"type": "string", "const": "plain", "description": "No settings."});
        let schema: &'static Value = Box::leak(Box::new(json!({"oneOf": [tagged("sft"), tagged("dpo"), word]})));
        let mut mistakes = Vec::new();
        let tree = parse(0, text, &mut mistakes).unwrap();
        let mut walk = SchemaWalk { mistakes: &mut mistakes, holder: tree.at, meant: Vec::new(), missing: Vec::new() };
        let value = walk.value(&tree, schema, "method");
        let say = |m: &Mistake| format!("{}: {}; {}", m.at.col + 1, m.message, m.hint.clone().unwrap_or_default());
        (value, mistakes.iter().map(say).collect())
    }

    #[test]
    fn a_choice_is_a_word_or_one_key() {
        assert_eq!(walk("plain"), (Some(json!("plain")), vec![]));
        assert_eq!(walk("dpo: { beta: 1 }"), (Some(json!({"dpo": {"beta": 1}})), vec![]));
        let wrong = |text: &str| walk(text).1;
        let both = "11: `dpo` is a second choice for `method`, after `sft`; keep one of them";
        assert_eq!(wrong("{sft: {}, dpo: {}}"), [both]);
        assert_eq!(wrong("plain: {}"), ["8: `method.plain` takes no settings; write `method: plain`"]);
        assert_eq!(wrong("dop: { beta: x }").len(), 2, "the settings of a misspelt choice are checked too");
        assert_eq!(wrong("[sft]").len(), 1);
    }
}
