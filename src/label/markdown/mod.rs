//! Converts the Markdown of prompts and answers into HTML that runs no code and loads nothing.
//!
//! A model's output is untrusted. pulldown-cmark parses the Markdown; ammonia then keeps only the HTML elements and
//! attributes that are on a list. Model output reaches a page in no other way. Each block gets its text direction from
//! its first letter, formulas become MathML, and invisible characters are shown as their code points.

mod formulas;

use crate::characters::{code_point, hidden, is_direction_mark};
use ammonia::Builder;
use formulas::Formula;
use pulldown_cmark::{CodeBlockKind, Event, Options, Parser, Tag, TagEnd, html};
use std::collections::{HashMap, HashSet};
use std::ops::Range;
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
const HIDDEN: &str = "hidden-character";

static CLEANER: LazyLock<Builder<'static>> = LazyLock::new(|| {
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

const OPTIONS: Options = Options::ENABLE_TABLES.union(Options::ENABLE_STRIKETHROUGH).union(Options::ENABLE_TASKLISTS);

/// Converts Markdown into HTML. HTML inside the Markdown is shown as text, an image as its description.
pub fn html(markdown: &str) -> String {
    let text = markdown.replace([FORMULA_START, FORMULA_END], "\u{fffd}");
    let (text, formulas) = with_placeholders(&text);
    let mut writer = HtmlWriter { formulas: &formulas, code: false, blocks: Vec::new(), events: Vec::new() };
    for event in Parser::new_ext(&text, OPTIONS) {
        writer.take(event);
    }
    let mut out = String::new();
    html::push_html(&mut out, writer.events.into_iter());
    CLEANER.clean(&out).to_string()
}

/// Delimiters of a formula's number. Formulas contain characters that Markdown would interpret, so they are replaced by
/// numbers while Markdown is parsed. Unicode reserves both characters for internal use by programs.
const FORMULA_START: char = '\u{fdd0}';
const FORMULA_END: char = '\u{fdd1}';

/// A formula, and its source as typed.
type TypedFormula = (Formula, String);

/// Replaces the formulas of a text by numbers; returns the text and the formulas.
fn with_placeholders(text: &str) -> (String, Vec<TypedFormula>) {
    if !text.contains(['$', '\\']) {
        return (text.to_string(), Vec::new());
    }
    let is_code = |event: &Event| matches!(event, Event::Code(_) | Event::Start(Tag::CodeBlock(_)));
    let events = Parser::new_ext(text, OPTIONS).into_offset_iter();
    let code: Vec<Range<usize>> = events.filter(|(event, _)| is_code(event)).map(|(_, range)| range).collect();
    let (mut out, mut at, mut formulas) = (String::with_capacity(text.len()), 0, Vec::new());
    for formula in formulas::find(text, &code) {
        out += &text[at..formula.range.start];
        out += &format!("{FORMULA_START}{}{FORMULA_END}", formulas.len());
        at = formula.range.end;
        let typed = text[formula.range.clone()].to_string();
        formulas.push((formula, typed));
    }
    (out + &text[at..], formulas)
}

/// Converts the events of the Markdown parser into those of the HTML writer.
struct HtmlWriter<'t> {
    formulas: &'t [TypedFormula],
    /// Whether the writer is inside a code block.
    code: bool,
    /// For each open block: whether it is enclosed in a `div` of its own.
    blocks: Vec<bool>,
    events: Vec<Event<'t>>,
}

impl<'t> HtmlWriter<'t> {
    fn take(&mut self, event: Event<'t>) {
        match event {
            // An annotator must see the text as written, including HTML tags.
            Event::InlineHtml(text) | Event::Text(text) => self.text(&text),
            Event::Html(line) => {
                self.text(line.trim_end_matches('\n'));
                self.events.push(Event::HardBreak);
            }
            Event::Code(text) => {
                let code = format!("<code dir=\"auto\">{}</code>", escape_visible(&self.as_typed(&text)));
                self.events.push(Event::InlineHtml(code.into()));
            }
            // Markdown ignores a single line break; here it is shown as one.
            Event::SoftBreak => self.events.push(Event::HardBreak),
            // Showing an image would load it from another site: its description is shown instead.
            Event::Start(Tag::Image { .. }) => self.text("[image: "),
            Event::End(TagEnd::Image) => self.text("]"),
            Event::Start(Tag::Link { link_type, dest_url, title, id }) => {
                let dest_url = self.as_typed(&dest_url).into();
                self.events.push(Event::Start(Tag::Link { link_type, dest_url, title, id }));
            }
            Event::TaskListMarker(_) => {}
            Event::Start(Tag::HtmlBlock) => {
                self.open();
                self.events.push(Event::Start(Tag::Paragraph));
            }
            Event::End(TagEnd::HtmlBlock) => {
                self.events.push(Event::End(TagEnd::Paragraph));
                self.close();
            }
            Event::Start(Tag::CodeBlock(kind)) => {
                self.open();
                self.code = true;
                // Code in a named language runs from left to right, even if it begins with a comment in another
                // direction.
                let named = matches!(kind, CodeBlockKind::Fenced(language) if !language.trim().is_empty());
                let direction = if named { "ltr" } else { "auto" };
                self.events.push(Event::Html(format!("<pre><code dir=\"{direction}\">").into()));
            }
            Event::End(TagEnd::CodeBlock) => {
                self.events.push(Event::Html("</code></pre>\n".into()));
                self.code = false;
                self.close();
            }
            Event::Start(tag) if is_block(&tag.to_end()) => {
                // Every table gets its own `div`: it scrolls if it is wider than the page.
                if matches!(tag, Tag::Table(_)) {
                    self.enclose()
                } else {
                    self.open()
                }
                self.events.push(Event::Start(tag));
            }
            Event::End(tag) if is_block(&tag) => {
                self.events.push(Event::End(tag));
                self.close();
            }
            other => self.events.push(other),
        }
    }

    /// Begins a block. Only the outermost block gets its direction from its first letter; inner blocks inherit it, so
    /// that all items of a list have their bullets on the same side.
    fn open(&mut self) {
        match self.blocks.is_empty() {
            true => self.enclose(),
            false => self.blocks.push(false),
        }
    }

    fn enclose(&mut self) {
        self.events.push(Event::Html("<div dir=\"auto\">".into()));
        self.blocks.push(true);
    }

    fn close(&mut self) {
        if self.blocks.pop() == Some(true) {
            self.events.push(Event::Html("</div>\n".into()));
        }
    }

    /// Writes text with its formulas.
    fn text(&mut self, text: &str) {
        if self.code {
            let typed = self.as_typed(text);
            self.events.push(Event::InlineHtml(escape_visible(&typed).into()));
            return;
        }
        let mut html = String::new();
        for part in parts(text) {
            match part {
                TextPart::Text(text) => html += &escape_visible(text),
                // `bdi` isolates the formula: its first letter must not change the direction of the words around it.
                TextPart::Formula(i) => html += &format!("<bdi>{}</bdi>", self.formulas[i].0.mathml),
            }
        }
        self.events.push(Event::InlineHtml(html.into()));
    }

    /// Returns the text with formulas as they were typed.
    fn as_typed(&self, text: &str) -> String {
        parts(text)
            .map(|part| match part {
                TextPart::Text(text) => text,
                TextPart::Formula(i) => self.formulas[i].1.as_str(),
            })
            .collect()
    }
}

/// A part of a text: plain text, or the number of a formula.
enum TextPart<'t> {
    Text(&'t str),
    Formula(usize),
}

/// Splits a text at its formula numbers.
fn parts(text: &str) -> impl Iterator<Item = TextPart<'_>> {
    text.split(FORMULA_START).enumerate().flat_map(|(i, piece)| {
        let (formula, rest) = match piece.split_once(FORMULA_END).filter(|_| i > 0) {
            Some((number, rest)) => (number.parse().ok().map(TextPart::Formula), rest),
            None => (None, piece),
        };
        formula.into_iter().chain((!rest.is_empty()).then_some(TextPart::Text(rest)))
    })
}

fn is_block(tag: &TagEnd) -> bool {
    matches!(tag, TagEnd::Paragraph | TagEnd::Heading(_) | TagEnd::BlockQuote(_) | TagEnd::List(_) | TagEnd::Table)
}

/// Escapes text for HTML. Each invisible character is replaced by a mark with its code point.
fn escape_visible(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        match c {
            '&' => out += "&amp;",
            '<' => out += "&lt;",
            '>' => out += "&gt;",
            // Windows line endings.
            '\r' => {}
            c => match hidden(c) {
                None => out.push(c),
                Some(name) => {
                    if is_direction_mark(c) {
                        out.push(c);
                    }
                    let code = code_point(c);
                    out += &format!("<bdi class=\"{HIDDEN}\" title=\"{code} {name}\">{code}</bdi>");
                }
            },
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::html;

    #[test]
    fn markdown_is_shown() {
        let shown = html(
            "# Head\n\n*soft* **loud** `code`\n\n1. one\n2. two\n\n```\nx < y\n```\n\n| a | b |\n|---|---|\n| 1 | 2 |",
        );
        for part in
            ["<h1>Head</h1>", "<em>soft</em>", "<strong>loud</strong>", "<li>one</li>", "x &lt; y", "<td>1</td>"]
        {
            assert!(shown.contains(part), "{part} in {shown}");
        }
        assert!(html("one\ntwo").contains("<br>"));
        let image = html("![a cat](https://example.org/cat.png)");
        assert_eq!(image.trim(), "<div dir=\"auto\">\n<p>[image: a cat]</p>\n</div>");
        let link = html("[x](https://example.org)");
        assert!(link.contains("href=\"https://example.org\"") && link.contains("noopener"), "{link}");
    }

    /// No text produces an element that runs or loads something, or an attribute with code.
    #[test]
    fn hostile_text_runs_and_loads_nothing() {
        for text in [
            "<script>alert(1)</script>",
            "<img src=x onerror=alert(1)>",
            "![x](https://evil.example/pixel.png)",
            "[x](javascript:alert(1))",
            "[x](JaVaScRiPt:alert(1))",
            "[x](data:text/html,<script>alert(1)</script>)",
            "<a href=\"javascript:alert(1)\">x</a>",
            "<svg><script>alert(1)</script></svg>",
            "<math><mi xlink:href=\"data:x,<script>alert(1)</script>\">",
            "<iframe srcdoc=\"<script>alert(1)</script>\"></iframe>",
            "<style>*{display:none}</style>",
            "<div style=\"position:fixed;inset:0\">over all</div>",
            "<noscript><p title=\"</noscript><img src=x onerror=alert(1)>\">",
            "`<img src=x onerror=alert(1)>`",
            "```html\n<script>alert(1)</script>\n```",
            "[a]: javascript:alert(1)\n\n[a]",
            "<https://x.example/\"onmouseover=\"alert(1)>",
            "| <script>x</script> |\n|---|\n| <img src=x onerror=y> |",
            "\u{202e}<script>alert(1)</script>",
            "<form action=https://evil.example><button>Send</button></form>",
        ] {
            let shown = html(text);
            // The block around a text is ours, and has this attribute alone.
            let lower = shown.to_lowercase().replace("<div dir=\"auto\">", "");
            for bad in ["script", "img", "svg", "iframe", "style", "math", "form", "div", "noscript", "button"] {
                assert!(!lower.contains(&format!("<{bad}")), "{text:?} gives {shown}");
            }
            // What looks like an attribute in text is behind an escaped bracket, so only real tags are checked.
            for tag in lower.split('<').skip(1).filter_map(|t| t.split('>').next()) {
                for bad in [" on", "style=", "javascript:", "data:", "src="] {
                    assert!(!tag.contains(bad), "{text:?} gives {shown}");
                }
            }
        }
    }

    #[test]
    fn each_block_takes_its_direction_from_its_own_text() {
        let shown = html("سلام دنیا۔\n\n- ایک\n- two\n\n> quoted\n\n```rust\n// تبصرہ\n```\n\n```\nشعر\n```");
        assert_eq!(shown.matches("<div dir=\"auto\">").count(), 5, "{shown}");
        assert!(shown.contains("<code dir=\"ltr\">// تبصرہ") && shown.contains("<code dir=\"auto\">شعر"), "{shown}");
        // Inline code does not affect the direction of its line.
        assert!(html("`x` یہ").contains("<p><code dir=\"auto\">x</code> یہ</p>"));
    }

    #[test]
    fn characters_that_nobody_sees_are_shown_and_turn_nothing_around() {
        for (text, code) in [("a\u{202e}b", "U+202E"), ("`a\u{2066}b`", "U+2066"), ("```\na\u{1b}b\n```", "U+001B")] {
            let shown = html(text);
            let mark = format!("<bdi class=\"hidden-character\" title=\"{code} ");
            assert!(shown.contains(&mark) && shown.contains(&format!(">{code}</bdi>b")), "{shown}");
            assert!(!shown.contains(['\u{202e}', '\u{2066}', '\u{1b}']), "{shown}");
        }
        // Marks of Arabic typing are kept next to the punctuation that they are for.
        assert!(
            html("C++\u{200f}")
                .contains("C++\u{200f}<bdi class=\"hidden-character\" title=\"U+200F RIGHT-TO-LEFT MARK\">")
        );
        assert_eq!(html("می\u{200c}خواهم").trim(), "<div dir=\"auto\">\n<p>می\u{200c}خواهم</p>\n</div>");
    }

    #[test]
    fn formulas_are_mathml_and_what_is_none_stays_as_typed() {
        let shown =
            html("The area is $\\pi r_1^2$ for\n\n$$\\frac{a_1 * b}{c * d}$$\n\nand `$x$`, $5 and $6, $\\frac{$.");
        assert_eq!(shown.matches("<math display=\"inline\">").count(), 1, "{shown}");
        assert_eq!(shown.matches("<math display=\"block\">").count(), 1, "{shown}");
        assert!(shown.contains("<mfrac>") && !shown.contains("<em>"), "{shown}");
        assert!(shown.contains("<code dir=\"auto\">$x$</code>, $5 and $6, $\\frac{$."), "{shown}");
        assert!(html("| a |\n|---|\n| $|x|$ |").contains("<td><bdi><math"));
        assert!(html("[$x$](https://example.org/$x$)").contains("href=\"https://example.org/$x$\""));
        // A number between the reserved characters in the input is not taken for a formula.
        assert!(!html("\u{fdd0}0\u{fdd1} $x$").contains("\u{fdd0}"));
    }

    /// The list of allowed elements and attributes covers what the library writes, and nothing dangerous passes it.
    #[test]
    fn formulas_pass_the_list_whole_and_bring_nothing_else() {
        let formulas = [
            r"\left( \frac{a}{b} \right)^{n} \sqrt[3]{x} \sqrt{y} \binom{n}{k} \bigl( x \bigr) \int_0^1 \sum_{i} x_i^2",
            r"\begin{array}{|l:c|r} \hline a & b & c \\ \hdashline d & e & f \end{array}",
            r"\begin{align} a &= b \\ c &= d \end{align} \begin{cases} x & y \end{cases} \begin{rcases} x & y \end{rcases}",
            r"\text{if } x \not= y, \displaystyle \overset{a}{\underset{b}{=}} \mathrm{d}x \lim_{x \to 0} \smallint \cancel{x} \xrightarrow[b]{a}",
        ];
        for tex in formulas {
            let shown = html(&format!("$${tex}$$"));
            assert!(shown.contains("<math"), "{tex}: {shown}");
        }
        for hostile in [
            r"\text{<script>alert(1)</script>}",
            r"\text{<img src=x onerror=alert(1)>} x_1",
            r"\href{javascript:alert(1)}{x}",
            r"\color{red} \style{position:fixed}{x}",
            r"\mathrm{</mi></math><script>alert(1)</script>} = 1",
            r"a < b > c \& d = <b>",
            r"\operatorname{<svg onload=alert(1)>} = 2",
        ] {
            for shown in [html(&format!("$${hostile}$$")), html(&format!("\\({hostile}\\)"))] {
                for bad in ["<script", "<img", "<svg", "<b>", "style=", "<a"] {
                    assert!(!shown.contains(bad), "{hostile}: {shown}");
                }
            }
        }
    }

    /// Any combination of special characters is rendered without a panic, in time that grows with the length of the
    /// text.
    #[test]
    fn no_text_ends_the_page() {
        use rand::{RngExt, SeedableRng};
        let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(11);
        let signs = [
            "$",
            "$$",
            "\\(",
            "\\)",
            "\\[",
            "\\]",
            "{",
            "}",
            "^",
            "_",
            "&",
            "\\\\",
            "\\frac",
            "\\left",
            "\\right",
            "\\begin{align}",
            "\\end{align}",
            "\\begin{array}{c|c}",
            "\\end{array}",
            "\\hline",
            "\\sqrt",
            "\\not",
            "\\text{",
            "\\def\\a#1{#1}",
            "\\a",
            "x",
            "1",
            " ",
            "\n",
            "> ",
            "- ",
            "|",
            "`",
            "سلام",
            "\u{202e}",
            "é",
            "\\boxed{",
            "\\tag{",
            "*",
        ];
        for _ in 0..3000 {
            let n = rng.random_range(1..40);
            let text: String = (0..n).map(|_| signs[rng.random_range(0..signs.len())]).collect();
            let shown = html(&text);
            assert!(!shown.contains(['\u{202e}', '\u{fdd0}']), "{text:?}: {shown}");
        }
        let began = std::time::Instant::now();
        for sign in signs {
            html(&sign.repeat(50_000 / sign.len()));
        }
        assert!(began.elapsed().as_secs() < 60, "{:?}", began.elapsed());
    }
}
