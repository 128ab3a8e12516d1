//! The frame of a page: head, style and the script that shows values under the pointer.

use super::escape::plain;
use base64::Engine;
use maud::{PreEscaped, html};
use sha2::{Digest, Sha256};

const HEAD: &str = include_str!("head.html");
const STYLE: &str = concat!(include_str!("style.css"), include_str!("markdown/formulas.css"));
const SCRIPT: &str = include_str!("hover.js");

/// Returns a whole page in the style of reports around an HTML body. `title` is escaped, `body` is not.
pub fn document(title: &str, body: &str) -> String {
    styled_document(title, "", body)
}

/// Returns a whole page like [`document`], with more rules of style, which are not escaped.
pub fn styled_document(title: &str, style: &str, body: &str) -> String {
    let hash = base64::engine::general_purpose::STANDARD.encode(Sha256::digest(SCRIPT.as_bytes()));
    let page = html! {
        (PreEscaped(HEAD.replace("SCRIPT_HASH", &hash)))
        title { (plain(title)) " · ft" }
        "\n"
        style { (PreEscaped(STYLE)) (PreEscaped(style)) }
        (PreEscaped("\n</head>\n<body>\n"))
        main { "\n" (PreEscaped(body)) "\n" }
        "\n"
        script { (PreEscaped(SCRIPT)) }
        (PreEscaped("\n</body>\n</html>\n"))
    };
    page.into_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn style_and_script_stay_in_their_place_and_load_nothing() {
        assert!(!SCRIPT.contains("</"), "the script would end early");
        assert!(!STYLE.contains("</"), "the style would end early");
        for word in ["innerHTML", "eval(", "fetch(", "http"] {
            assert!(!SCRIPT.contains(word), "{word}");
        }
        assert!(!STYLE.contains("url(") && !STYLE.contains("@import"), "nothing is loaded");
    }
}
