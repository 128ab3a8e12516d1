//! Markdown of prompts and answers as HTML that runs nothing and loads nothing.
//!
//! Two libraries in a row: one reads Markdown, one keeps of the HTML what is on its list. What a model writes never
//! reaches a page by another way.

use ammonia::Builder;
use pulldown_cmark::{Event, Options, Parser, Tag, TagEnd, html};
use std::collections::{HashMap, HashSet};
use std::sync::LazyLock;

static CLEANER: LazyLock<Builder<'static>> = LazyLock::new(|| {
    let tags = [
        "a",
        "p",
        "br",
        "hr",
        "em",
        "strong",
        "del",
        "code",
        "pre",
        "blockquote",
        "ul",
        "ol",
        "li",
        "h1",
        "h2",
        "h3",
        "h4",
        "h5",
        "h6",
        "table",
        "thead",
        "tbody",
        "tr",
        "th",
        "td",
        "sup",
        "sub",
    ];
    let mut builder = Builder::empty();
    builder
        .tags(HashSet::from(tags))
        .tag_attributes(HashMap::from([("a", HashSet::from(["href"])), ("ol", HashSet::from(["start"]))]))
        .url_schemes(HashSet::from(["http", "https", "mailto"]))
        .link_rel(Some("noopener noreferrer nofollow"))
        .set_tag_attribute_value("a", "target", "_blank");
    builder
});

/// The HTML of some Markdown. HTML inside the Markdown is shown as the text it is; an image as its description.
pub fn html(markdown: &str) -> String {
    let options = Options::ENABLE_TABLES | Options::ENABLE_STRIKETHROUGH | Options::ENABLE_TASKLISTS;
    let events = Parser::new_ext(markdown, options).map(|event| match event {
        // A judge must see what was written, a tag too.
        Event::Html(text) | Event::InlineHtml(text) => Event::Text(text),
        // A line break in an answer is one on the screen.
        Event::SoftBreak => Event::HardBreak,
        // An image would be loaded from elsewhere: its description stands for it.
        Event::Start(Tag::Image { .. }) => Event::Text("[image: ".into()),
        Event::End(TagEnd::Image) => Event::Text("]".into()),
        other => other,
    });
    let mut out = String::new();
    html::push_html(&mut out, events.filter(|e| !matches!(e, Event::TaskListMarker(_))));
    CLEANER.clean(&out).to_string()
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
        assert_eq!(html("![a cat](https://example.org/cat.png)").trim(), "<p>[image: a cat]</p>");
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
            let lower = shown.to_lowercase();
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
}
