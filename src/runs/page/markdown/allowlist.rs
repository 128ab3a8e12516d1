//! Removes every HTML element and attribute that is not on a list.

use ammonia::Builder;
use std::collections::{HashMap, HashSet};
use std::sync::LazyLock;

/// Elements that Markdown may produce.
const TAGS: [&str; 29] = [
    "a",
    "bdi",
    "blockquote",
    "br",
    "code",
    "del",
    "div",
    "em",
    "h1",
    "h2",
    "h3",
    "h4",
    "h5",
    "h6",
    "hr",
    "li",
    "ol",
    "p",
    "pre",
    "strong",
    "sub",
    "sup",
    "table",
    "tbody",
    "td",
    "th",
    "thead",
    "tr",
    "ul",
];

/// The elements that pulldown-latex writes, each with its attributes. All may also have those of [`MATH_STYLE`].
const MATH: [(&str, &[&str]); 19] = [
    ("math", &["display"]),
    ("mfrac", &["linethickness"]),
    ("mi", &["mathvariant"]),
    ("mn", &[]),
    ("mo", &["largeop", "maxsize", "minsize", "movablelimits", "stretchy", "symmetric"]),
    ("mover", &[]),
    ("mroot", &[]),
    ("mrow", &[]),
    ("mspace", &["depth", "height", "width"]),
    ("msqrt", &[]),
    ("msub", &[]),
    ("msubsup", &[]),
    ("msup", &[]),
    ("mtable", &[]),
    ("mtd", &[]),
    ("mtext", &[]),
    ("mtr", &[]),
    ("munder", &[]),
    ("munderover", &[]),
];

const MATH_STYLE: [&str; 2] = ["displaystyle", "scriptlevel"];

/// Classes that describe the layout of a formula's table; the page's style sheet defines them.
const MATH_CLASSES: [(&str, &[&str]); 5] = [
    (
        "mtable",
        &[
            "menv-align",
            "menv-alignlike",
            "menv-arraylike",
            "menv-cases",
            "menv-cells-left",
            "menv-cells-right",
            "menv-multline",
        ],
    ),
    ("mtr", &["menv-hdashline", "menv-hline"]),
    (
        "mtd",
        &[
            "cell-left",
            "cell-right",
            "menv-border-only",
            "menv-left-dashed",
            "menv-left-solid",
            "menv-nonumber",
            "menv-right-dashed",
            "menv-right-solid",
        ],
    ),
    ("mrow", &["mop-negated"]),
    ("mo", &["small"]),
];

/// Class of the mark that replaces an invisible character.
pub(super) const HIDDEN: &str = "hidden-character";

pub(super) static CLEANER: LazyLock<Builder<'static>> = LazyLock::new(|| {
    let set = |names: &[&'static str]| names.iter().copied().collect::<HashSet<_>>();
    let mut attributes: HashMap<&str, HashSet<&str>> =
        MATH.iter().map(|(tag, own)| (*tag, set(&[*own, &MATH_STYLE].concat()))).collect();
    attributes.extend([("a", set(&["href"])), ("ol", set(&["start"])), ("bdi", set(&["title"]))]);
    let direction = |values: &[&'static str]| HashMap::from([("dir", set(values))]);
    let mut classes: HashMap<&str, HashSet<&str>> = MATH_CLASSES.iter().map(|(tag, own)| (*tag, set(own))).collect();
    classes.insert("bdi", set(&[HIDDEN]));
    let mut builder = Builder::empty();
    builder
        .tags(TAGS.into_iter().chain(MATH.iter().map(|(tag, _)| *tag)).collect())
        .tag_attributes(attributes)
        .tag_attribute_values(HashMap::from([("div", direction(&["auto"])), ("code", direction(&["auto", "ltr"]))]))
        .allowed_classes(classes)
        .url_schemes(HashSet::from(["http", "https", "mailto"]))
        .link_rel(Some("noopener noreferrer nofollow"))
        .set_tag_attribute_value("a", "target", "_blank");
    builder
});
