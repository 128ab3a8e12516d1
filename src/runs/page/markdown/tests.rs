//! Tests that any text becomes harmless HTML.

use super::{html, text_with_formulas};

#[test]
fn markdown_is_shown() {
    let shown = html(
        "# Head\n\n*soft* **loud** `code`\n\n1. one\n2. two\n\n```\nx < y\n```\n\n| a | b |\n|---|---|\n| 1 | 2 |",
    );
    for part in ["<h1>Head</h1>", "<em>soft</em>", "<strong>loud</strong>", "<li>one</li>", "x &lt; y", "<td>1</td>"] {
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
        html("C++\u{200f}").contains("C++\u{200f}<bdi class=\"hidden-character\" title=\"U+200F RIGHT-TO-LEFT MARK\">")
    );
    assert_eq!(html("می\u{200c}خواهم").trim(), "<div dir=\"auto\">\n<p>می\u{200c}خواهم</p>\n</div>");
}

#[test]
fn formulas_are_mathml_and_what_is_none_stays_as_typed() {
    let shown = html("The area is $\\pi r_1^2$ for\n\n$$\\frac{a_1 * b}{c * d}$$\n\nand `$x$`, $5 and $6, $\\frac{$.");
    assert_eq!(shown.matches("<math display=\"inline\">").count(), 1, "{shown}");
    assert_eq!(shown.matches("<math display=\"block\">").count(), 1, "{shown}");
    assert!(shown.contains("<mfrac>") && !shown.contains("<em>"), "{shown}");
    assert!(shown.contains("<code dir=\"auto\">$x$</code>, $5 and $6, $\\frac{$."), "{shown}");
    assert!(html("| a |\n|---|\n| $|x|$ |").contains("<td><bdi><math"));
    assert!(html("[$x$](https://example.org/$x$)").contains("href=\"https://example.org/$x$\""));
    // A number between the reserved characters in the input is not taken for a formula.
    assert!(!html("\u{fdd0}0\u{fdd1} $x$").contains("\u{fdd0}"));
}

#[test]
fn a_text_as_typed_has_formulas_and_nothing_else_of_markdown() {
    let shown = |text: &str| text_with_formulas(text).into_string();
    assert_eq!(shown("**a** <b>\n\n- c, $5 and $6"), "**a** &lt;b&gt;\n\n- c, $5 and $6");
    let formula = shown("so $x<1$ *and* `$y$`");
    assert!(formula.starts_with("so <bdi title=\"$x&lt;1$\"><math display=\"inline\">"), "{formula}");
    assert!(formula.ends_with("</math></bdi> *and* `$y$`"), "{formula}");
    for hostile in [r"$$\text{<script>alert(1)</script>}$$", r#"$x^{"><img src=x onerror=alert(1)>}$"#] {
        let shown = shown(hostile);
        assert!(shown.contains("<math") && !shown.contains("<script") && !shown.contains("<img"), "{shown}");
    }
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
