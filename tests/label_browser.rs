//! The page in a real browser: judging by keyboard, two people, a phone, hostile answers, accessibility.
//!
//! `FT_SCREENSHOTS=DIR` keeps pictures of the page.

use crate::label_support::*;
use crate::needs::{AXE, BROWSER, axe, needs};
use crate::webdriver::*;
use ft::label::Store;
use ft::label::record::*;
use serde_json::{Value, json};

/// Answers as models write them.
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

fn project(settings: Settings, overlap: i64, n: usize) -> Project {
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
        let key = format!("q{i}");
        store.add_prompts(&[NewPrompt { key, messages: messages.into(), columns: Default::default() }]).unwrap();
        let prompt = store.prompts().unwrap().last().unwrap().id;
        let answer =
            |source: &str, text: &str| NewCandidate { prompt, source: source.into(), text: text.into(), tokens: None };
        store.add_candidates(&[answer("one", good), answer("two", bad)]).unwrap();
        let made = store.candidates().unwrap();
        let (a, b) = (made[made.len() - 2].id, made[made.len() - 1].id);
        store.add_pairs(&[NewPair { prompt, a, b, overlap, repeat_of: None, reason: "random".into() }]).unwrap();
    }
}

fn rich() -> Settings {
    Settings {
        title: "Which answer would you rather get?".into(),
        guidelines: "Prefer the answer that is **right**, then the one that is *clear*.\n\n- Length is no merit.\n- Where both are wrong, say so.".into(),
        criteria: vec![Criterion { name: "Correct".into(), best: 5 }, Criterion { name: "Clear".into(), best: 5 }],
        strength: true,
        ..Settings::default()
    }
}

/// Presses a key that asks the server, once the page is ready for it, and waits for the answer.
fn judge(browser: &Browser, key: &str) {
    browser.until("!busy && performance.now() - shownAt > THINK");
    let before = browser.value("String(task && task.id) + ' ' + shownAt");
    browser.press(key);
    browser.until(&format!("!busy && String(task && task.id) + ' ' + shownAt !== {before}"));
}

fn ready(browser: &Browser) {
    browser.until("typeof busy !== 'undefined' && !busy && (!$('task').hidden || !$('rest').hidden)");
}

/// Serious findings of axe-core. A colour that is still on its way to another would be judged as it happens to be.
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
    assert!(!browser.value("location.href").as_str().unwrap().contains("token"), "the token leaves the address bar");
    browser.picture("light");
    accessible(&browser, "the task");
    let choices = ["1", "2", "t", "b", "s", "1", "2", "1", "t", "2"];
    for (i, key) in choices.iter().enumerate() {
        if i == 2 {
            // Undo the second, change it, go on; in between the page is loaded again in the middle of a task.
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
            (Choice::A, false) | (Choice::B, true) => "1",
            (Choice::B, false) | (Choice::A, true) => "2",
            (Choice::Tie, _) => "t",
            (Choice::BothBad, _) => "b",
            (Choice::Skip, _) => "s",
        })
        .collect();
    assert_eq!(said, ["1", "1", "t", "b", "s", "1", "2", "1", "t", "2"]);
    let changed = &votes[1];
    assert_eq!((changed.flagged, changed.strength, changed.note.as_deref()), (true, Some(2), Some("why not 1 or 2?")));
    let right = if changed.swapped { "a" } else { "b" };
    assert_eq!(json!(changed.ratings), json!({ "Correct": { right: 4 } }));
    assert!(votes.iter().all(|v| v.seconds.is_some_and(|s| (0.0..120.0).contains(&s))));
    assert_eq!(project.store().votes_and_undone().unwrap().len(), 11);
    // A better answer, begun with one that is there.
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
    // Keys in windows and fields are no judgements.
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
    // The focus goes round the page: links, answers, buttons, all with names.
    for _ in 0..12 {
        browser.press(&TAB.to_string());
        let name = browser.value(
            "((e) => e.getAttribute('aria-label') || e.labels?.[0]?.textContent || e.textContent)(document.activeElement)",
        );
        assert!(name.as_str().is_some_and(|n| !n.trim().is_empty()), "{name}");
    }
    assert_eq!(browser.log(), "", "nothing was blocked, nothing failed");
}

#[test]
fn two_people_a_phone_and_the_admin() {
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
    // On a phone the answers stand one above the other, and nothing is wider than the screen.
    let top = |side: &str| two.value(&format!("$('{side}').getBoundingClientRect().top")).as_f64().unwrap();
    assert!(top("right") > top("left") + 50.0);
    assert_eq!(two.value("document.documentElement.scrollWidth <= innerWidth"), true);
    let sizes = two.value("[...document.querySelectorAll('.choice')].map((b) => b.getBoundingClientRect().height)");
    assert!(sizes.as_array().unwrap().iter().all(|h| h.as_f64().unwrap() >= 40.0), "fingers need room: {sizes}");
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
        assert_eq!(votes.iter().filter(|v| v.pair == pair).count(), 2, "both judged the same five");
    }
    let admin = driver.open(1360, 1000);
    admin.go(&format!("{}/#token={}", server.url, server.token));
    ready(&admin);
    admin.click("#open-overview");
    admin.until("!$('overview').hidden && $('people').children.length >= 2");
    admin.picture("admin");
    accessible(&admin, "the overview");
    let open = admin.value("document.querySelectorAll('.dispute').length").as_i64().unwrap();
    assert!(open >= 1, "they cannot agree on all");
    admin.click(".dispute button");
    admin.until(&format!("!busy && document.querySelectorAll('.dispute').length === {}", open - 1));
    assert_eq!(project.store().votes().unwrap().iter().filter(|v| v.adjudicates()).count(), 1);
    admin.dark(true);
    admin.picture("admin-dark");
    accessible(&admin, "the overview in the dark");
    assert_eq!(one.value("$('open-overview').hidden"), true, "people see no overview");
    // A wrong token, and signing out.
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
fn a_vote_waits_for_the_server_and_hostile_answers_run_nothing() {
    needs!(BROWSER);
    let project = Project::with(0, 1, Settings::default());
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
    // Nothing was even tried: the console would say what the policy stopped.
    assert_eq!(browser.log(), "");
    // The server dies in the middle of a vote: it is kept by the page and sent again.
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
