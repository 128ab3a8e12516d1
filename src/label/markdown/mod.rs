//! Markdown of prompts and answers as HTML that runs nothing and loads nothing.
//!
//! Two libraries in a row: one reads Markdown, one keeps of the HTML what is on its list. What a model writes never
//! reaches a page by another way. Each block of a text stands in an element that takes its direction from its first
//! letter, formulas become MathML, and characters that nobody sees are shown by their code points.

mod formulas;

use crate::characters::{code_point, hidden, is_direction_mark};
use ammonia::Builder;
use formulas::Formula;
use pulldown_cmark::{CodeBlockKind, Event, Options, Parser, Tag, TagEnd, html};
use std::collections::{HashMap, HashSet};
use std::ops::Range;
use std::sync::LazyLock;

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

/// What pulldown-latex writes, without styles: elements, and their attributes beside those of [`MATH_STYLE`].
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
/// Classes that say how a formula's table is laid out; the page's style sheet knows them.
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

/// The class of what stands for a character that nobody sees.
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

/// The HTML of some Markdown. HTML inside the Markdown is shown as the text it is; an image as its description.
pub fn html(markdown: &str) -> String {
    let text = markdown.replace([OPEN, CLOSE], "\u{fffd}");
    let (text, formulas) = with_places(&text);
    let mut writer = Writer { formulas: &formulas, code: false, blocks: Vec::new(), events: Vec::new() };
    for event in Parser::new_ext(&text, OPTIONS) {
        writer.take(event);
    }
    let mut out = String::new();
    html::push_html(&mut out, writer.events.into_iter());
    CLEANER.clean(&out).to_string()
}

/// Enclose the number of a formula while Markdown is read: its signs are not Markdown's. Unicode reserves both for uses
/// inside a program.
const OPEN: char = '\u{fdd0}';
const CLOSE: char = '\u{fdd1}';

/// A formula, and how it was typed.
type Typed = (Formula, String);

/// The text with numbers in place of its formulas, and the formulas.
fn with_places(text: &str) -> (String, Vec<Typed>) {
    if !text.contains(['$', '\\']) {
        return (text.to_string(), Vec::new());
    }
    let is_code = |event: &Event| matches!(event, Event::Code(_) | Event::Start(Tag::CodeBlock(_)));
    let events = Parser::new_ext(text, OPTIONS).into_offset_iter();
    let code: Vec<Range<usize>> = events.filter(|(event, _)| is_code(event)).map(|(_, range)| range).collect();
    let (mut out, mut at, mut formulas) = (String::with_capacity(text.len()), 0, Vec::new());
    for formula in formulas::find(text, &code) {
        out += &text[at..formula.range.start];
        out += &format!("{OPEN}{}{CLOSE}", formulas.len());
        at = formula.range.end;
        let typed = text[formula.range.clone()].to_string();
        formulas.push((formula, typed));
    }
    (out + &text[at..], formulas)
}

/// Turns what Markdown says into what is shown.
struct Writer<'t> {
    formulas: &'t [Typed],
    /// Inside a block of code.
    code: bool,
    /// Blocks that are open, and whether each has an element of its own around it.
    blocks: Vec<bool>,
    events: Vec<Event<'t>>,
}

impl<'t> Writer<'t> {
    fn take(&mut self, event: Event<'t>) {
        match event {
            // A judge must see what was written, a tag too.
            Event::InlineHtml(text) | Event::Text(text) => self.text(&text),
            Event::Html(line) => {
                self.text(line.trim_end_matches('\n'));
                self.events.push(Event::HardBreak);
            }
            Event::Code(text) => {
                let code = format!("<code dir=\"auto\">{}</code>", visible(&self.as_typed(&text)));
                self.events.push(Event::InlineHtml(code.into()));
            }
            // A line break in an answer is one on the screen.
            Event::SoftBreak => self.events.push(Event::HardBreak),
            // An image would be loaded from elsewhere: its description stands for it.
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
                // A named language is written from left to right, whatever its first comment is.
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
                // Every table: it may be wider than the page, and then scrolls.
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

    /// Begins a block. The outermost one takes its direction from its first letter, and what is in it goes along: the
    /// items of a list have their bullets on one side, a table its columns in one order.
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

    /// Text with its formulas.
    fn text(&mut self, text: &str) {
        if self.code {
            let typed = self.as_typed(text);
            self.events.push(Event::InlineHtml(visible(&typed).into()));
            return;
        }
        let mut html = String::new();
        for part in parts(text) {
            match part {
                Part::Text(text) => html += &visible(text),
                // Set apart: what a formula begins with says nothing about the direction of the words around it.
                Part::Formula(i) => html += &format!("<bdi>{}</bdi>", self.formulas[i].0.mathml),
            }
        }
        self.events.push(Event::InlineHtml(html.into()));
    }

    /// Text in which formulas stand as they were typed.
    fn as_typed(&self, text: &str) -> String {
        parts(text)
            .map(|part| match part {
                Part::Text(text) => text,
                Part::Formula(i) => self.formulas[i].1.as_str(),
            })
            .collect()
    }
}

enum Part<'t> {
    Text(&'t str),
    Formula(usize),
}

/// Cuts a text at the places of formulas.
fn parts(text: &str) -> impl Iterator<Item = Part<'_>> {
    text.split(OPEN).enumerate().flat_map(|(i, piece)| {
        let (formula, rest) = match piece.split_once(CLOSE).filter(|_| i > 0) {
            Some((number, rest)) => (number.parse().ok().map(Part::Formula), rest),
            None => (None, piece),
        };
        formula.into_iter().chain((!rest.is_empty()).then_some(Part::Text(rest)))
    })
}

fn is_block(tag: &TagEnd) -> bool {
    matches!(tag, TagEnd::Paragraph | TagEnd::Heading(_) | TagEnd::BlockQuote(_) | TagEnd::List(_) | TagEnd::Table)
}

/// Text as HTML; in place of each character that nobody sees, a mark that says which.
fn visible(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        match c {
            '&' => out += "&amp;",
            '<' => out += "&lt;",
            '>' => out += "&gt;",
            // Windows ends its lines with one.
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

    /// No text makes an element that runs or loads something, nor an attribute with code.
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
            // Attributes are on the list or not there: what looks like one stands in text, behind an escaped bracket.
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
        // Code in a line says nothing about the direction of the line.
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
        // The marks of Arabic typing still stand beside the punctuation that they are for.
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
        // A number between reserved characters is no formula of somebody else's.
        assert!(!html("\u{fdd0}0\u{fdd1} $x$").contains("\u{fdd0}"));
    }

    /// The list of what may stand in a formula is what the library writes, no more and no less.
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

    /// Whatever signs stand beside each other, a text is shown, and in time that grows with it.
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
