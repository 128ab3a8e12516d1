//! Tests the labelling page in a real browser: judging by keyboard, two annotators, a phone, hostile answers,
//! accessibility.
//!
//! `FT_SCREENSHOTS=DIR` stores screenshots of the page in DIR.

use crate::support::labeling::*;
use crate::support::needs::{AXE, BROWSER, axe, needs};
use crate::support::webdriver::*;
use ft::label::record::answer::{NewCandidate, NewPair, NewPrompt};
use ft::label::record::settings::{Criterion, ProjectSettings};
use ft::label::record::vote::VoteChoice;
use ft::label::store::Store;
use serde_json::{Value, json};

/// Prompts with two answers, formatted as models write them.
const ANSWERS: [[&str; 3]; 4] = [
    [
        "Why does the sky look blue, and why is it red at sunset?",
        "Sunlight holds all colours. Air **scatters short wavelengths more** than long ones (Rayleigh scattering, as 1/λ⁴), so blue light reaches your eye from every direction.\n\nAt sunset the light crosses far more air:\n\n1. blue is scattered out of the way,\n2. orange and red are left.\n\nDust and smoke make it stronger still.",
        "The sky is blue because it reflects the ocean. At sunset the sun is further away, and it cools down, so it looks red.\n\n> Fun fact: on Mars, sunsets are blue!",
    ],
    [
        "Write a function that returns the n-th Fibonacci number.",
        "```python\ndef fibonacci(n: int) -> int:\n    a, b = 0, 1\n    for _ in range(n):\n        a, b = b, a + b\n    return a\n```\n\nIt takes `O(n)` time and constant memory.",
        "```python\ndef fib(n):\n    return n if n < 2 else fib(n - 1) + fib(n - 2)\n```\n\nThis is the *definition*, word for word.",
    ],
    [
        "Compare tea and coffee in a table.",
        "| | Tea | Coffee |\n|---|---|---|\n| Caffeine (mg a cup) | 20–60 | 80–120 |\n| Made with | leaves | beans |\n| Best at | **all day** | morning |",
        "Tea is made from leaves and has less caffeine. Coffee is made from roasted beans and has more. Both are drunk hot by many people all over the world.",
    ],
    ["Hello!", "Hello! What can I do for you today?", "hi"],
];

fn project(settings: ProjectSettings, overlap: i64, n: usize) -> Project {
    let project = Project::with(0, 1, settings);
    let store = project.store();
    add(&store, n, overlap);
    project
}

/// Adds n pairs of readable answers.
fn add(store: &Store, n: usize, overlap: i64) {
    for i in 0..n {
        let [question, good, bad] = ANSWERS[i % ANSWERS.len()];
        let mut messages = vec![json!({ "role": "user", "content": question })];
        if i % 4 == 1 {
            messages.insert(0, json!({ "role": "system", "content": "You are a careful programmer." }));
        }
        add_pair(store, &format!("q{i}"), messages.into(), [good, bad], overlap);
    }
}

fn add_pair(store: &Store, key: &str, messages: Value, answers: [&str; 2], overlap: i64) {
    store.add_prompts(&[NewPrompt { key: key.into(), messages, columns: Default::default() }]).unwrap();
    let prompt = store.prompts().unwrap().last().unwrap().id;
    let answer =
        |source: &str, text: &str| NewCandidate { prompt, source: source.into(), text: text.into(), tokens: None };
    store.add_candidates(&[answer("one", answers[0]), answer("two", answers[1])]).unwrap();
    let made = store.candidates().unwrap();
    let (a, b) = (made[made.len() - 2].id, made[made.len() - 1].id);
    store.add_pairs(&[NewPair { prompt, a, b, overlap, repeat_of: None, reason: "random".into() }]).unwrap();
}

/// Texts that are easily displayed wrongly: right-to-left scripts, formulas next to prices, wide tables, and invisible
/// characters that reverse the text after them.
const SCRIPTS: [[&str; 3]; 5] = [
    [
        "پاکستان کا دارالحکومت کون سا ہے؟",
        "پاکستان کا دارالحکومت **اسلام آباد** ہے۔\n\n- یہ 1960 کی دہائی میں بنا۔\n- اس سے پہلے `Karachi` دارالحکومت تھا۔\n\n> یہ شہر مارگلہ کی پہاڑیوں کے دامن میں ہے۔",
        "The capital is Islamabad.\n\n- built in the 1960s.\n- before: Karachi (کراچی).",
    ],
    [
        "ما الفرق بين النوعين؟",
        "الفرق في الجدول:\n\n| الدواء | الجرعة |\n|---|---|\n| باراسيتامول | 500 mg |\n| إيبوبروفين | 200 mg |\n\n1. لا تتجاوز الجرعة.\n2. اسأل الطبيب!",
        "1. النوع الأول\n2. The second type.\n\n```python\n# تعليق\nprint(\"مرحبا\")\n```",
    ],
    [
        "Solve $x^2 - 5x + 6 = 0$. It costs $5 and $6 to ask.",
        "The roots of \\(x^2 - 5x + 6\\) are\n\n$$x = \\frac{5 \\pm \\sqrt{25 - 24}}{2}$$\n\nso $x_1 = 3$ and $x_2 = 2$.\n\n\\[ \\boxed{x \\in \\{2, 3\\}} \\]\n\n| drug | clearance |\n|---|---|\n| A | $\\frac{(140 - a) \\cdot m}{72 \\cdot S_{Cr}}$ |",
        "It is $\\frac{5}{$ of the rest, as `$x$` says: $5-$6.\n\n$$\\begin{pmatrix} 1 & 2 \\\\ 3 & 4 \\end{pmatrix} \\begin{cases} a & x > 0 \\\\ b & \\text{otherwise} \\end{cases}$$",
    ],
    [
        "Which dose?",
        "| Age | Weight | Paracetamol every six hours | Ibuprofen every eight hours | Remarks for parents | Source |\n|---|---|---|---|---|---|\n| 3 months | 6 kilograms | 90 milligrams | not recommended | Ask a doctor beforehand | National formulary |\n| 12 months | 10 kilograms | 150 milligrams | 75 milligrams | With food | National formulary |",
        "Ninety milligrams at three months.",
    ],
    [
        "Is the file safe?",
        "The file is called invoice\u{202e}fdp.exe and is safe.\n\nThe next paragraph reads on.",
        "It ends in `\u{2066}exe\u{2069}`, so it is a program.",
    ],
];

fn rich() -> ProjectSettings {
    ProjectSettings {
        title: "Which answer would you rather get?".into(),
        guidelines: "Prefer the answer that is **right**, then the one that is *clear*.\n\n- Length is no merit.\n- Where both are wrong, say so.".into(),
        criteria: vec![Criterion { name: "Correct".into(), best: 5 }, Criterion { name: "Clear".into(), best: 5 }],
        strength: true,
        ..ProjectSettings::default()
    }
}

/// Waits until the page is ready, presses a key that sends a request, and waits for the response.
fn judge(browser: &Browser, key: &str) {
    browser.until("!busy && performance.now() - shownAt > THINK");
    let before = browser.value("String(task && task.id) + ' ' + shownAt");
    browser.press(key);
    browser.until(&format!("!busy && String(task && task.id) + ' ' + shownAt !== {before}"));
}

fn ready(browser: &Browser) {
    browser.until("typeof busy !== 'undefined' && !busy && (!$('task').hidden || !$('rest').hidden)");
}

/// Fails if axe-core reports serious problems. Waits for animations first: axe would judge a colour in transition.
fn accessible(browser: &Browser, what: &str) {
    browser.until("document.getAnimations().every((a) => a.playState !== 'running')");
    let script = std::fs::read_to_string(axe()).unwrap();
    browser.run(&script, json!([]));
    let found = browser.run_async(
        "const done = arguments[arguments.length - 1]; \
         axe.run(document, { resultTypes: ['violations'] }).then((r) => done(r.violations.map((v) => \
         ({ id: v.id, impact: v.impact, nodes: v.nodes.map((n) => n.html + ' ' + n.failureSummary) }))), (e) => done(String(e)));",
    );
    let found = found.as_array().unwrap_or_else(|| panic!("{what}: {found}"));
    let serious: Vec<&Value> =
        found.iter().filter(|v| matches!(v["impact"].as_str(), Some("serious" | "critical"))).collect();
    assert!(serious.is_empty(), "{what}: {}", serde_json::to_string_pretty(&serious).unwrap());
}

#[test]
fn ten_pairs_by_keyboard() {
    needs!(BROWSER, AXE);
    let project = project(rich(), 1, 12);
    let token = project.token("ann", false);
    let server = Server::start(&project.place);
    let driver = Driver::start();
    let browser = driver.open(1360, 900);
    browser.go(&format!("{}/#token={token}", server.url));
    ready(&browser);
    assert!(
        !browser.value("location.href").as_str().unwrap().contains("token"),
        "the token is still in the address bar"
    );
    browser.picture("light");
    accessible(&browser, "the task");
    let choices = ["1", "2", "t", "b", "s", "1", "2", "1", "t", "2"];
    for (i, key) in choices.iter().enumerate() {
        if i == 2 {
            // Undo the second vote, change it and continue; the page is reloaded in the middle of a task.
            judge(&browser, "u");
            browser.until("document.querySelector('.choice.before').dataset.choice === 'right'");
            browser.press("fmm");
            browser.press("n");
            browser.press("why not 1 or 2?");
            browser.press(&ESCAPE.to_string());
            browser.click("#right-ratings .pill:nth-of-type(4) input");
            let id = browser.value("task.id");
            browser.go(&server.url);
            ready(&browser);
            assert_eq!(browser.value("task.id"), id, "a reload shows the same task");
            assert_eq!(
                browser.value("[draft.flagged, draft.strength, $('note').value]"),
                json!([true, 2, "why not 1 or 2?"])
            );
            browser.picture("extras");
            browser.value("document.activeElement.blur()");
            judge(&browser, "1");
        }
        judge(&browser, key);
    }
    assert_eq!(browser.value("$('progress-text').textContent"), "9 of 12 judged · 10 by you");
    let votes = project.store().votes().unwrap();
    let said: Vec<&str> = votes
        .iter()
        .map(|v| match (v.choice, v.swapped) {
            (VoteChoice::A, false) | (VoteChoice::B, true) => "1",
            (VoteChoice::B, false) | (VoteChoice::A, true) => "2",
            (VoteChoice::Tie, _) => "t",
            (VoteChoice::BothBad, _) => "b",
            (VoteChoice::Skip, _) => "s",
        })
        .collect();
    assert_eq!(said, ["1", "1", "t", "b", "s", "1", "2", "1", "t", "2"]);
    let changed = &votes[1];
    assert_eq!((changed.flagged, changed.strength, changed.note.as_deref()), (true, Some(2), Some("why not 1 or 2?")));
    let right = if changed.swapped { "a" } else { "b" };
    assert_eq!(json!(changed.ratings), json!({ "Correct": { right: 4 } }));
    assert!(votes.iter().all(|v| v.seconds.is_some_and(|s| (0.0..120.0).contains(&s))));
    assert_eq!(project.store().votes_and_undone().unwrap().len(), 11);
    // The annotator writes a better answer, starting from one of the two.
    browser.until("!busy && performance.now() - shownAt > THINK");
    browser.press("e");
    browser.click("#edit-left");
    browser.press("Better. ");
    browser.press(&ESCAPE.to_string());
    judge(&browser, "1");
    let edited = project.store().votes().unwrap().last().unwrap().edited.clone().unwrap();
    assert!(edited.contains("Better."), "{edited}");
    judge(&browser, "t");
    browser.until("!$('rest').hidden");
    browser.picture("done");
    accessible(&browser, "the end");
    // Keys pressed in dialogs and text fields do not vote.
    judge(&browser, "u");
    browser.press("?12");
    browser.until("$('help').open");
    browser.picture("keys");
    browser.press(&ESCAPE.to_string());
    browser.press("g");
    browser.until("$('guidelines').open && $('guidelines-text').querySelector('strong')");
    browser.press(&ESCAPE.to_string());
    assert_eq!(project.store().votes().unwrap().len(), 11);
    browser.dark(true);
    browser.picture("dark");
    accessible(&browser, "in the dark");
    // The Tab key reaches links, answers and buttons, and each has an accessible name.
    for _ in 0..12 {
        browser.press(&TAB.to_string());
        let name = browser.value(
            "((e) => e.getAttribute('aria-label') || e.labels?.[0]?.textContent || e.textContent)(document.activeElement)",
        );
        assert!(name.as_str().is_some_and(|n| !n.trim().is_empty()), "{name}");
    }
    assert_eq!(browser.log(), "", "the console reports blocked or failed requests");
}

#[test]
fn two_annotators_a_phone_and_the_overview() {
    needs!(BROWSER, AXE);
    let project = project(rich(), 2, 8);
    let [ann, bob] = ["Ann", "Bob"].map(|name| project.token(name, false));
    let server = Server::start(&project.place);
    let driver = Driver::start();
    let (one, two) = (driver.open(1200, 850), driver.open(600, 900));
    two.phone();
    one.go(&format!("{}/#token={ann}", server.url));
    two.go(&format!("{}/#token={bob}", server.url));
    ready(&one);
    ready(&two);
    // On a phone the answers are shown one above the other, and nothing is wider than the screen.
    let top = |side: &str| two.value(&format!("$('{side}').getBoundingClientRect().top")).as_f64().unwrap();
    assert!(top("right") > top("left") + 50.0);
    assert_eq!(two.value("document.documentElement.scrollWidth <= innerWidth"), true);
    let sizes = two.value("[...document.querySelectorAll('.choice')].map((b) => b.getBoundingClientRect().height)");
    assert!(
        sizes.as_array().unwrap().iter().all(|h| h.as_f64().unwrap() >= 40.0),
        "buttons are too small for fingers: {sizes}"
    );
    two.picture("phone");
    accessible(&two, "on a phone");
    two.dark(true);
    two.picture("phone-dark");
    for i in 0..5 {
        judge(&one, ["1", "2", "1", "t", "1"][i]);
        two.until("!busy && performance.now() - shownAt > THINK");
        let before = two.value("task.id");
        two.click(".choice[data-choice=left]");
        two.until(&format!("!busy && task && task.id !== {before}"));
    }
    let votes = project.store().votes().unwrap();
    assert_eq!(votes.len(), 10);
    for pair in 1..=5 {
        assert_eq!(votes.iter().filter(|v| v.pair == pair).count(), 2, "pair {pair} does not have the votes of both");
    }
    let admin = driver.open(1360, 1000);
    admin.go(&format!("{}/#token={}", server.url, server.token));
    ready(&admin);
    admin.click("#open-overview");
    admin.until("!$('overview').hidden && $('people').children.length >= 2");
    admin.picture("admin");
    accessible(&admin, "the overview");
    let open = admin.value("document.querySelectorAll('.dispute').length").as_i64().unwrap();
    assert!(open >= 1, "the two annotators should disagree on a pair");
    admin.click(".dispute button");
    admin.until(&format!("!busy && document.querySelectorAll('.dispute').length === {}", open - 1));
    assert_eq!(project.store().votes().unwrap().iter().filter(|v| v.adjudicates()).count(), 1);
    admin.dark(true);
    admin.picture("admin-dark");
    accessible(&admin, "the overview in the dark");
    assert_eq!(one.value("$('open-overview').hidden"), true, "annotators must not see the overview");
    // Signing in with a wrong token, and signing out.
    one.click("#leave");
    one.until("!$('sign-in').hidden");
    one.picture("sign-in");
    accessible(&one, "signing in");
    one.press("wrong\u{e007}");
    one.until("!$('trouble').hidden && $('trouble').textContent.includes('not known')");
    for browser in [&two, &admin] {
        assert_eq!(browser.log(), "");
    }
}

#[test]
fn votes_survive_a_restart_and_hostile_answers_do_not_run() {
    needs!(BROWSER);
    let project = Project::with(0, 1, ProjectSettings::default());
    let store = project.store();
    let hostile = [
        "<script>window.hacked = 1</script>",
        "<img src=x onerror=\"window.hacked = 2\">",
        "[click](javascript:window.hacked=3) <a href=\"javascript:window.hacked=3\">x</a>",
        "<svg onload=\"window.hacked = 4\"><animate onbegin=\"window.hacked = 4\" attributeName=x dur=1s></svg>",
        "<iframe srcdoc=\"<script>parent.hacked = 5</script>\"></iframe>",
        "```\n</code></pre><script>window.hacked = 6</script>\n```",
        "<math><mtext><table><mglyph><style><img src=x onerror=\"window.hacked = 7\">",
        "<style>body { display: none }</style><meta http-equiv=refresh content=\"0;url=https://evil.example\">",
        "<button onclick=\"window.hacked = 8\" autofocus onfocus=\"window.hacked = 8\">x</button><base href=https://evil.example>",
        "![x](https://evil.example/pixel.png)<link rel=stylesheet href=https://evil.example/x.css>",
    ];
    for (i, two) in hostile.chunks(2).enumerate() {
        let messages = json!([{ "role": "user", "content": format!("{} {}", two[0], two[1]) }]);
        store.add_prompts(&[NewPrompt { key: i.to_string(), messages, columns: Default::default() }]).unwrap();
        let prompt = store.prompts().unwrap().last().unwrap().id;
        let answer =
            |source: &str, text: &str| NewCandidate { prompt, source: source.into(), text: text.into(), tokens: None };
        store.add_candidates(&[answer("<b>one</b>", two[0]), answer("two", two[1])]).unwrap();
        let made = store.candidates().unwrap();
        let (a, b) = (made[made.len() - 2].id, made[made.len() - 1].id);
        store.add_pairs(&[NewPair { prompt, a, b, overlap: 1, repeat_of: None, reason: String::new() }]).unwrap();
    }
    let token = project.token("<img src=x onerror='window.hacked = 9'>", true);
    let mut server = Server::start(&project.place);
    let driver = Driver::start();
    let browser = driver.open(1200, 850);
    browser.go(&format!("{}/#token={token}", server.url));
    ready(&browser);
    let url = server.url.clone();
    let safe = |browser: &Browser| {
        assert_eq!(browser.value("window.hacked === undefined"), true);
        let bad = "document.querySelectorAll('main script, main img, main svg, main iframe, main style, main meta, main link, main base, \
                   .text button, [onclick], [onload], [onerror], [onfocus], a[href^=javascript]').length";
        assert_eq!(browser.value(bad), 0);
        assert!(
            browser.value("$('left-text').innerText.length + $('right-text').innerText.length").as_i64().unwrap() > 10
        );
        assert!(browser.value("location.href").as_str().unwrap().starts_with(&url));
    };
    for key in ["1", "2", "t", "b"] {
        safe(&browser);
        judge(&browser, key);
    }
    safe(&browser);
    browser.click("#open-overview");
    browser.until("!$('overview').hidden && $('people').textContent.includes('<img')");
    assert_eq!(browser.value("window.hacked === undefined"), true);
    browser.click("#open-overview");
    ready(&browser);
    // The page did not even try to load or run anything: the console would list what the content policy blocked.
    assert_eq!(browser.log(), "");
    // The server dies during a vote: the page keeps the vote and sends it again.
    let address = server.host().to_string();
    server.kill();
    browser.until("performance.now() - shownAt > THINK");
    browser.press("2");
    browser.until("!$('trouble').hidden && $('trouble').textContent.includes('Nothing is lost')");
    browser.picture("trouble");
    let _again = Server::of(ft(&["label", "serve", &project.place, "--address", &address]));
    browser.until("!$('rest').hidden && $('trouble').hidden");
    assert_eq!(project.store().votes().unwrap().len(), 5);
}

/// JavaScript that returns the left edges of the last two characters of an element's text: the letter before the last
/// sign, and the sign. Shows in which direction the text runs.
const LAST_SIGN: &str = "(box) => {
  const walk = document.createTreeWalker(box, NodeFilter.SHOW_TEXT);
  let last = null;
  for (let node = walk.nextNode(); node; node = walk.nextNode()) if (node.data.trim()) last = node;
  const end = last.data.trimEnd().length;
  const at = (i) => { const r = document.createRange(); r.setStart(last, i); r.setEnd(last, i + 1); return r.getBoundingClientRect().left; };
  return [at(end - 2), at(end - 1)];
}";

/// Each text has the direction of its own script, whatever surrounds it. Invisible characters are shown and reverse
/// nothing. Formulas are typeset, prices with a dollar sign are not. Tables do not break words.
#[test]
fn scripts_formulas_tables_and_invisible_characters_are_displayed_correctly() {
    needs!(BROWSER, AXE);
    let settings =
        ProjectSettings {
            title: "اردو جوابات \u{202e}title".into(), guidelines: "درست جواب چنیں۔".into(), ..rich()
        };
    let project = Project::with(0, 1, settings);
    let store = project.store();
    for (i, [question, one, two]) in SCRIPTS.iter().enumerate() {
        let mut messages = vec![json!({ "role": "user", "content": question })];
        if i == 0 {
            messages.insert(0, json!({ "role": "system", "content": "آپ ایک مددگار معاون ہیں۔" }));
        }
        add_pair(&store, &format!("s{i}"), messages.into(), [one, two], 1);
    }
    let token = project.token("\u{202e}نام", true);
    let server = Server::start(&project.place);
    let driver = Driver::start();
    let browser = driver.open(1360, 1000);
    browser.go(&format!("{}/#token={token}", server.url));
    ready(&browser);
    let text = |browser: &Browser, has: &str| -> String {
        // An answer is shown on a random side.
        let found = browser
            .value(&format!("['left', 'right'].find((s) => $(s + '-text').textContent.includes({}))", json!(has)));
        format!("$('{}-text')", found.as_str().unwrap_or_else(|| panic!("no answer with {has}")))
    };
    let directions = |browser: &Browser, of: &str| {
        browser.value(&format!("[...{of}.children].map((b) => getComputedStyle(b).direction)"))
    };
    assert_eq!(browser.value("getComputedStyle($('title').firstChild).direction"), json!("rtl"));
    assert_eq!(browser.value("$('title').querySelector('.hidden-character').textContent"), json!("U+202E"));
    for (i, name) in ["urdu", "arabic", "formulas", "table", "hidden"].into_iter().enumerate() {
        browser.picture(name);
        accessible(&browser, name);
        assert_eq!(browser.value("document.documentElement.scrollWidth <= innerWidth"), true, "{name}");
        match i {
            0 => {
                let (urdu, english) = (text(&browser, "مارگلہ"), text(&browser, "capital is"));
                assert_eq!(directions(&browser, &urdu), json!(["rtl", "rtl", "rtl"]));
                assert_eq!(directions(&browser, &english), json!(["ltr", "ltr"]));
                // In Urdu the full stop is at the left end of the line; bullets and the bar of a quotation are on the
                // right.
                let signs = browser.value(&format!("({LAST_SIGN})({urdu}.children[0])"));
                assert!(signs[1].as_f64() < signs[0].as_f64(), "{signs}");
                let signs = browser.value(&format!("({LAST_SIGN})({english}.children[0])"));
                assert!(signs[1].as_f64() > signs[0].as_f64(), "{signs}");
                let list = browser.value(&format!(
                    "((l) => [getComputedStyle(l).paddingRight, getComputedStyle(l).paddingLeft])({urdu}.querySelector('ul'))"
                ));
                assert!(list[0].as_str().unwrap() > "20" && list[1] == "0px", "{list}");
                let quote =
                    browser.value(&format!("getComputedStyle({urdu}.querySelector('blockquote')).borderRightWidth"));
                assert_eq!(quote, json!("3px"));
                let turns = browser.value(
                    "[...document.querySelectorAll('#prompt .text > div')].map((b) => getComputedStyle(b).direction)",
                );
                assert_eq!(turns, json!(["rtl", "rtl"]));
                assert_eq!(
                    browser.value(
                        "($('note').dir = 'auto', $('note').value = 'نوٹ', getComputedStyle($('note')).direction)"
                    ),
                    json!("rtl")
                );
                browser.value("$('note').value = ''");
            }
            1 => {
                let (table, code) = (text(&browser, "باراسيتامول"), text(&browser, "print"));
                assert_eq!(directions(&browser, &table), json!(["rtl", "rtl", "rtl"]));
                // The first column is on the right. Code runs left to right even if it starts with right-to-left words.
                let columns = browser
                    .value(&format!("[...{table}.querySelectorAll('th')].map((c) => c.getBoundingClientRect().left)"));
                assert!(columns[0].as_f64() > columns[1].as_f64(), "{columns}");
                assert_eq!(
                    browser.value(&format!("getComputedStyle({code}.querySelector('pre code')).direction")),
                    json!("ltr")
                );
                // An English item of an Arabic list has its full stop on the right.
                let signs = browser.value(&format!("({LAST_SIGN})({code}.querySelectorAll('li')[1])"));
                assert!(signs[1].as_f64() > signs[0].as_f64(), "{signs}");
            }
            2 => {
                let (roots, matrix) = (text(&browser, "The roots"), text(&browser, "otherwise"));
                let of = |side: &str, what: &str| {
                    browser.value(&format!("{side}.querySelectorAll('{what}').length")).as_i64()
                };
                assert_eq!((of(&roots, "math"), of(&roots, "math[display=block]")), (Some(6), Some(2)));
                assert_eq!((of(&matrix, "math"), of(&matrix, "mtable")), (Some(1), Some(2)));
                assert_eq!(browser.value("document.querySelectorAll('#prompt math').length"), 1);
                // Formulas are typeset: the numerator of a fraction is above its denominator.
                let parts = browser.value(&format!(
                    "[...{roots}.querySelector('mfrac').children].map((c) => c.getBoundingClientRect().top)"
                ));
                assert!(parts[0].as_f64().unwrap() + 5.0 < parts[1].as_f64().unwrap(), "{parts}");
                let said =
                    browser.value("$('prompt').innerText + $('left-text').innerText + $('right-text').innerText");
                for typed in ["It costs $5 and $6 to ask.", "It is $\\frac{5}{$ of the rest, as $x$ says: $5-$6."] {
                    assert!(said.as_str().unwrap().contains(typed), "{typed:?} in {said}");
                }
                assert!(!said.as_str().unwrap().contains("pmatrix"), "{said}");
            }
            3 => {
                let side = text(&browser, "kilograms");
                // No word is broken: each cell is at least as wide as its longest word, and the table scrolls instead.
                let broken = browser.value(&format!(
                    "[...{side}.querySelectorAll('th, td')].flatMap((c) => {{ const t = c.firstChild; return [...t.data.matchAll(/\\S+/g)].filter((w) => {{ \
                     const r = document.createRange(); r.setStart(t, w.index); r.setEnd(t, w.index + w[0].length); \
                     return r.getClientRects().length > 1; }}).map((w) => w[0]); }})"
                ));
                assert_eq!(broken, json!([]));
                let scrolls = browser.value(&format!(
                    "((b) => [b.scrollWidth > b.clientWidth, b.tabIndex, b.getAttribute('aria-label')])({side}.querySelector('table').parentElement)"
                ));
                assert_eq!(scrolls, json!([true, 0, "Table"]));
            }
            _ => {
                let (file, program) = (text(&browser, "invoice"), text(&browser, "program"));
                let marks = |side: &str| {
                    browser.value(&format!("[...{side}.querySelectorAll('.hidden-character')].map((m) => m.title)"))
                };
                assert_eq!(marks(&file), json!(["U+202E RIGHT-TO-LEFT OVERRIDE"]));
                assert_eq!(marks(&program), json!(["U+2066 LEFT-TO-RIGHT ISOLATE", "U+2069 POP DIRECTIONAL ISOLATE"]));
                let signs = browser.value(&format!("({LAST_SIGN})({file}.children[0])"));
                assert!(signs[1].as_f64() > signs[0].as_f64(), "the text after the character is reversed: {signs}");
            }
        }
        if i < SCRIPTS.len() - 1 {
            judge(&browser, "1");
        }
    }
    browser.dark(true);
    browser.picture("hidden-dark");
    accessible(&browser, "hidden characters in the dark");
    browser.press("g");
    browser.until("$('guidelines').open");
    assert_eq!(directions(&browser, "$('guidelines-text')"), json!(["rtl"]));
    browser.press(&ESCAPE.to_string());
    // The same on a phone, and a name whose direction override would reverse the overview.
    let phone = driver.open(600, 900);
    phone.phone();
    phone.go(&format!("{}/#token={token}", server.url));
    ready(&phone);
    phone.picture("hidden-phone");
    judge(&browser, "u");
    phone.go(&server.url);
    ready(&phone);
    assert_eq!(phone.value("document.documentElement.scrollWidth <= innerWidth"), true);
    phone.picture("table-phone");
    browser.dark(false);
    browser.click("#open-overview");
    browser.until("!$('overview').hidden && $('people').textContent.includes('نام')");
    assert_eq!(browser.value("$('people').querySelector('.hidden-character').textContent"), json!("U+202E"));
    browser.picture("overview-scripts");
    accessible(&browser, "the overview with names of other scripts");
    assert_eq!(browser.log(), "", "the console reports blocked or failed requests");
}
