//! Describes a value of the wrong kind, and how to correct it.

use super::schema::{SchemaShape, key, section_of};
use super::tree::{Node, NodeKind, Scalar, parse_scalar};

/// Describes the value of a node for a message.
pub(super) fn describe_value(node: &Node) -> String {
    match &node.kind {
        NodeKind::List(_) => "a list".into(),
        NodeKind::Map(_) => "a map".into(),
        NodeKind::Scalar { text, plain } => match parse_scalar(text, *plain) {
            Scalar::Null => "nothing".into(),
            Scalar::Text(text) => format!("the text `{text}`"),
            _ => format!("`{text}`"),
        },
    }
}

/// Returns the name of a kind with its article, such as `an integer`.
pub(super) fn with_article(kind: &str) -> String {
    match kind {
        k if k.starts_with("integer") => format!("an {k}"),
        k if k.starts_with("text") || k.starts_with("true") || k.starts_with("one ") => k.to_string(),
        k => format!("a {k}"),
    }
}

/// Returns a hint for correcting a value of the wrong kind; `None` if there is no obvious correction.
pub(super) fn repair(node: &Node, wanted: &SchemaShape<'static>, path: &str) -> Option<String> {
    match (wanted, &node.kind) {
        (SchemaShape::Scalar { kind: kind @ ("integer" | "number"), .. }, NodeKind::Scalar { text, plain }) => {
            let bare = text.replace(['_', ' '], "");
            match parse_scalar(&bare, true) {
                Scalar::Int(_) if !plain => Some(format!("remove the quotes: `{bare}`")),
                Scalar::Float(_) if !plain && *kind == "number" => Some(format!("remove the quotes: `{bare}`")),
                Scalar::Float(f) if f.fract() == 0.0 && f.abs() < 1e15 => Some(format!("write `{f:.0}`")),
                Scalar::Int(_) => Some(format!("write `{bare}`")),
                Scalar::Float(f) if !f.is_finite() => Some("a finite number is needed".into()),
                _ => {
                    let share: f64 = text.strip_suffix('%')?.trim().parse().ok()?;
                    Some(format!("write `{}`", share / 100.0))
                }
            }
        }
        (SchemaShape::Scalar { kind: "boolean", .. }, NodeKind::Scalar { text, .. }) => {
            match text.to_lowercase().as_str() {
                "yes" | "on" | "1" | "y" | "true" => Some("write `true`".into()),
                "no" | "off" | "0" | "n" | "false" => Some("write `false`".into()),
                _ => None,
            }
        }
        (SchemaShape::Scalar { kind: "string", .. }, NodeKind::Scalar { text, plain: true }) => {
            Some(format!("put it in quotes: `{}: \"{text}\"`", leaf(path)))
        }
        (either @ SchemaShape::Either(_), NodeKind::Scalar { text, plain: true }) if section_of(either).is_none() => {
            Some(format!("put it in quotes: `{}: \"{text}\"`", leaf(path)))
        }
        (
            SchemaShape::Section { .. } | SchemaShape::Map { .. } | SchemaShape::Either(_),
            NodeKind::Scalar { text, .. },
        ) => {
            if let Some((front, back)) = text.split_once(':') {
                return Some(format!("put a space after the colon: `{front}: {back}`"));
            }
            key(&format!("{path}.path")).map(|_| format!("write `{}: {{ path: {text} }}`", leaf(path)))
        }
        (SchemaShape::Section { .. }, NodeKind::List(_)) => {
            Some("remove the dashes: keys are written `key: value`".into())
        }
        (SchemaShape::List { .. }, NodeKind::Scalar { text, .. }) => {
            let items: Vec<&str> = text.split([',', ' ']).filter(|t| !t.is_empty()).collect();
            Some(format!("write `{}: [{}]`", leaf(path), items.join(", ")))
        }
        _ => None,
    }
}

/// Returns the last part of a dotted path.
pub(super) fn leaf(path: &str) -> &str {
    path.rsplit('.').next().unwrap_or(path)
}
