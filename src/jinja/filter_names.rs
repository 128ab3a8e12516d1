//! The names of Jinja's filters.

/// The supported filters. The next constant continues the list.
pub(super) const FILTERS: [&str; 45] = [
    "abs",
    "attr",
    "batch",
    "capitalize",
    "center",
    "count",
    "d",
    "default",
    "dictsort",
    "e",
    "escape",
    "first",
    "float",
    "forceescape",
    "format",
    "groupby",
    "indent",
    "int",
    "items",
    "join",
    "last",
    "length",
    "list",
    "lower",
    "map",
    "max",
    "min",
    "reject",
    "rejectattr",
    "replace",
    "reverse",
    "round",
    "safe",
    "select",
    "selectattr",
    "slice",
    "sort",
    "string",
    "sum",
    "title",
    "tojson",
    "trim",
    "truncate",
    "unique",
    "upper",
];

pub(super) const TEXT_FILTERS: [&str; 2] = ["urlencode", "wordcount"];

/// Filters of jinja2 that end in an error.
pub(super) const UNSUPPORTED_FILTERS: [&str; 7] =
    ["filesizeformat", "pprint", "random", "striptags", "urlize", "wordwrap", "xmlattr"];

/// Returns true if jinja2 has a filter of this name, supported here or not.
pub fn exists(name: &str) -> bool {
    FILTERS.contains(&name) || TEXT_FILTERS.contains(&name) || UNSUPPORTED_FILTERS.contains(&name)
}
