//! Compares chat templates with transformers, and tests what they make of data rows: named templates, content that a
//! template ignores, answers trained on as generation sees them, variables.

use crate::support::files::jsonl;
use crate::support::rows::{message, talk, with_template};
use crate::support::{fixture, json};
use ft::data::cache::TokenCache;
use ft::data::chat::{ChatTemplate, ChatTokenizer, RowNote, TemplateOptions};
use ft::data::dataset::{Dataset, EncodeOptions, Overflow};
use ft::data::encode::{PairExample, Supervise};
use ft::data::rows::{ChatMessage, RowFormat, SourceList, SourceSpec};
use ft::data::source::RowColumns;
use ft::data::{dataset, inspect};
use ft::error::Result;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::path::Path;

fn with_source(source: &str) -> ChatTokenizer {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("t.jinja");
    std::fs::write(&path, source).unwrap();
    ChatTokenizer::load(&fixture("tiny-tokenizer"), Some(&path)).unwrap()
}

fn load(rows: &[Value], tokenizer: &ChatTokenizer, supervise: Supervise) -> Result<Dataset> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("rows.jsonl");
    std::fs::write(&path, jsonl(rows)).unwrap();
    let options = EncodeOptions { supervise, max_len: 8192, on_overflow: Overflow::Error, overflow_tolerance: 0.0 };
    dataset::load(&path, RowFormat::Auto, None, tokenizer, &options)
}

/// Returns the text of each example, with its trained tokens between « and ».
fn masks(rows: &[Value], tokenizer: &ChatTokenizer) -> Result<Vec<String>> {
    let dataset = load(rows, tokenizer, Supervise::Assistant)?;
    dataset.to_vec()?.iter().map(|e| inspect::preview(e, tokenizer, false)).collect()
}

fn notes(rows: &[Value], tokenizer: &ChatTokenizer) -> Vec<(RowNote, usize, usize)> {
    let dataset = load(rows, tokenizer, Supervise::Assistant).unwrap();
    dataset.summary.notes.iter().map(|n| (n.note, n.rows, n.line)).collect()
}

const CHATML: &str = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";

/// Parts of templates that need features of Python's Jinja which ft does not support: each gives an error that says so.
const NOT_SUPPORTED: [&str; 7] = ["2 ** 200", "'a'.encode()", "'é\\é'", "BULLET", "{% block", "pprint", "autoescape"];

#[test]
fn every_snippet_is_rendered_as_transformers_does() {
    let table = json::<Value>("jinja/snippets.json");
    let variables = table["row"]["variables"].as_object().unwrap();
    let messages: Vec<ChatMessage> = table["row"]["messages"].as_array().unwrap().iter().map(message).collect();
    let day = table["date"].as_str().unwrap().parse().unwrap();
    let (mut wrong, mut unsupported, mut equal) = (Vec::new(), Vec::new(), 0);
    let snippets = table["snippets"].as_array().unwrap();
    for snippet in snippets {
        let source = snippet["template"].as_str().unwrap();
        let found = ChatTemplate::compile("t", source, variables).and_then(|template| {
            let template = template.with_variables(&RowColumns::new(), Some(day));
            template.render_with(&messages, Some(&table["row"]["tools"]), &RowColumns::new(), false)
        });
        match (&found, snippet["text"].as_str()) {
            (Ok(text), Some(expected)) if text == expected => equal += 1,
            (Err(_), None) => equal += 1,
            (Err(e), Some(_)) if e.message().contains("not supported") => unsupported.push(source),
            _ => wrong.push(format!(
                "{source}\n  python {}\n  ours   {found:?}",
                snippet["text"].as_str().map_or_else(|| snippet["error"].to_string(), |t| format!("{t:?}"))
            )),
        }
    }
    assert!(wrong.is_empty(), "{} of {} differ:\n{}", wrong.len(), snippets.len(), wrong.join("\n"));
    let listed = |source: &&&str| !NOT_SUPPORTED.iter().any(|part| source.contains(part));
    let unlisted: Vec<_> = unsupported.iter().filter(listed).collect();
    assert!(unlisted.is_empty(), "not supported, but not listed in NOT_SUPPORTED: {unlisted:#?}");
    assert!(equal >= 200, "only {equal} are equal");
}

/// Renders the templates of a folder and compares them with transformers' renderings in its expected.json. Returns
/// those that differ, and how many were compared.
fn differing(folder: &Path) -> (Vec<String>, usize) {
    let expected = std::fs::read_to_string(folder.join("expected.json")).unwrap();
    let expected: Value = serde_json::from_str(&expected).unwrap();
    let special = expected["special"].as_object().unwrap();
    let day = jiff::civil::date(2024, 2, 29);
    let mut wrong = Vec::new();
    let rows = expected["rows"].as_array().unwrap();
    for row in rows {
        let name = row["template"].as_str().unwrap();
        let case = &expected["cases"][row["case"].as_str().unwrap()];
        let source = std::fs::read_to_string(folder.join(name)).unwrap();
        let messages: Vec<ChatMessage> = case["messages"].as_array().unwrap().iter().map(message).collect();
        let kwargs: RowColumns = case["kwargs"].as_object().cloned().unwrap_or_default();
        let found = ChatTemplate::compile(name, &source, special).and_then(|template| {
            let template = template.with_variables(&RowColumns::new(), Some(day));
            template.render_with(&messages, case.get("tools"), &kwargs, row["add_generation_prompt"] == true)
        });
        let same = match (&found, row["text"].as_str()) {
            (Ok(text), Some(expected)) => text == expected,
            // An error raised by the template has the same text; errors of Python itself have another wording.
            (Err(e), None) => match row["error"].as_str().unwrap().strip_prefix("TemplateError: ") {
                Some(words) => e.message().ends_with(words),
                None => true,
            },
            _ => false,
        };
        if !same {
            wrong.push(format!(
                "{name} {}:\nexpected {:?}\nfound    {found:?}",
                row["case"],
                row["text"].as_str().or(row["error"].as_str())
            ));
        }
    }
    (wrong, rows.len())
}

#[test]
fn templates_render_as_transformers() {
    let (wrong, _) = differing(&fixture("templates"));
    assert!(wrong.is_empty(), "{} renderings differ, the first:\n{}", wrong.len(), wrong[0]);
}

/// The published templates, fetched by tests/fixtures/templates/make.py --fetch DIR.
#[test]
#[ignore = "needs FT_TEST_TEMPLATES=DIR, a folder of fetched templates"]
fn published_templates_render_as_transformers() {
    let folder = std::env::var("FT_TEST_TEMPLATES").expect("FT_TEST_TEMPLATES=DIR");
    let (wrong, rows) = differing(Path::new(&folder));
    assert!(wrong.is_empty(), "{} of {rows} renderings differ:\n{}", wrong.len(), wrong.join("\n\n"));
    println!("{rows} renderings are equal");
}

#[test]
fn rows_with_tools_use_the_template_for_tools() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["tokenizer.json", "generation_config.json"] {
        std::fs::copy(fixture("tiny-tokenizer").join(name), folder.path().join(name)).unwrap();
    }
    let tools = format!("{{{{ 'TOOLS ' ~ tools|length ~ '\\n' }}}}{CHATML}");
    let config = |templates: Value| {
        let config = json!({ "eos_token": "<|im_end|>", "chat_template": templates });
        std::fs::write(folder.path().join("tokenizer_config.json"), config.to_string()).unwrap();
    };
    let named = |name: &str, template: &str| json!({ "name": name, "template": template });
    let without = talk(&[("user", "a"), ("assistant", "b")]);
    let mut with = without.clone();
    with["tools"] = json!([{ "type": "function", "function": { "name": "f", "parameters": {} } }]);
    let rows = [with, without];
    let begins = |tokenizer: &ChatTokenizer| -> Vec<bool> {
        masks(&rows, tokenizer).unwrap().iter().map(|text| text.starts_with("TOOLS 1")).collect()
    };
    let open = |template: Option<&str>| ChatTokenizer::load(folder.path(), template.map(Path::new));
    config(json!([named("default", CHATML), named("tool_use", &tools), named("rag", "{% nonsense %}")]));
    assert_eq!(begins(&open(None).unwrap()), [true, false]);
    // A template chosen by its name is used for every row.
    assert!(notes(&rows, &open(Some("default")).unwrap()).contains(&(RowNote::ToolsLeftOut, 1, 1)));
    let e = open(Some("chat")).unwrap_err();
    assert!(e.message().contains("no chat template named `chat`") && e.hints()[0].contains("`tool_use`"), "{e}");
    assert!(open(Some("rag")).unwrap_err().message().contains("nonsense"));
    // No template for rows without tools.
    config(json!([named("tool_use", &tools)]));
    let e = masks(&rows, &open(None).unwrap()).unwrap_err();
    assert!(e.message().contains("rows.jsonl:2") && e.message().contains("none of them named `default`"), "{e}");
    config(json!([named("rag", CHATML)]));
    let e = open(None).unwrap_err();
    assert!(e.message().contains("none of them named `default`") && e.hints()[0].contains("`rag`"), "{e}");
    // Templates as files take precedence over the config.
    config(json!("never"));
    std::fs::write(folder.path().join("chat_template.jinja"), CHATML).unwrap();
    let more = folder.path().join("additional_chat_templates");
    std::fs::create_dir(&more).unwrap();
    std::fs::write(more.join("tool_use.jinja"), &tools).unwrap();
    assert_eq!(begins(&open(None).unwrap()), [true, false]);
    assert_ne!(open(None).unwrap().fingerprint().unwrap(), open(Some("default")).unwrap().fingerprint().unwrap());
}

#[test]
fn content_that_a_template_ignores_is_reported() {
    let tokenizer = with_source(CHATML);
    let mut tools = talk(&[("user", "a"), ("assistant", "b")]);
    tools["tools"] = json!([{ "type": "function", "function": { "name": "f" } }]);
    let calls = json!({ "messages": [{ "role": "user", "content": "a" }, { "role": "assistant", "content": "b",
        "tool_calls": [{ "type": "function", "function": { "name": "f", "arguments": {} } }] }] });
    let thought = json!({ "messages": [{ "role": "user", "content": "a" },
        { "role": "assistant", "content": "b", "reasoning_content": "deep" }] });
    let plain = talk(&[("user", "a"), ("assistant", "c")]);
    let rows = [plain.clone(), tools.clone(), calls.clone(), thought.clone(), tools.clone()];
    let found = notes(&rows, &tokenizer);
    assert_eq!(
        found,
        [(RowNote::ToolsLeftOut, 2, 2), (RowNote::CallsLeftOut, 1, 3), (RowNote::ReasoningLeftOut, 1, 4)]
    );
    let summary = load(&rows, &tokenizer, Supervise::Assistant).unwrap().summary;
    assert!(summary.warnings().iter().any(|w| w.contains("2 rows with `tools`") && w.contains("rows.jsonl:2)")));
    // A template that writes all of them gives no note.
    assert_eq!(notes(&[plain, tools, calls, thought], &with_template("thinking.jinja").unwrap()), []);
}

#[test]
fn content_in_parts_is_rendered_or_refused() {
    let strings = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content if m.content is string else '' }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";
    let parts = |text: &str| json!([{ "type": "text", "text": text }]);
    let row = |system: Value, user: Value, assistant: Value| {
        json!({ "messages": [{ "role": "system", "content": system }, { "role": "user", "content": user },
            { "role": "assistant", "content": assistant }] })
    };
    let e = |row: Value| masks(&[row], &with_source(strings)).unwrap_err();
    let user = e(row(json!("s"), parts("what?"), json!("four")));
    assert!(user.message().contains("message 2 (user): the chat template leaves it out"), "{user}");
    let system = e(row(parts("be brief"), json!("what?"), json!("four")));
    assert!(system.message().contains("message 1 (system): the chat template leaves it out"), "{system}");
    let assistant = e(row(json!("s"), json!("what?"), parts("four")));
    assert!(assistant.message().contains("message 3 (assistant): the chat template leaves out"), "{assistant}");
    // This template prints a list as Python does: the row is trained on as with transformers, and reported.
    let printed = row(json!("s"), parts("what?"), json!("four"));
    assert_eq!(notes(std::slice::from_ref(&printed), &with_source(CHATML)), [(RowNote::PartsPrinted, 1, 1)]);
    // A template that supports content in parts.
    let read = talk(&[("user", "what?"), ("assistant", "four")]);
    let as_parts = json!({ "messages": [{ "role": "user", "content": parts("what?") }, { "role": "assistant", "content": parts("four") }] });
    let gemma = with_template("gemma.jinja").unwrap();
    assert_eq!(masks(&[as_parts], &gemma).unwrap(), masks(&[read], &gemma).unwrap());
    // A message that the template changes (here it removes a flag) does not count as left out.
    let flagged = talk(&[("system", "/no_think Be brief."), ("user", "a"), ("assistant", "b")]);
    assert!(masks(&[flagged], &with_template("smollm3.jinja").unwrap()).unwrap()[0].contains("Be brief."));
    // The prompt of a preference row.
    let pair = json!({ "prompt": [{ "role": "user", "content": parts("what?") }], "chosen": [{ "role": "assistant", "content": "a" }], "rejected": [{ "role": "assistant", "content": "b" }] });
    let e = open_pair(&pair, &with_source(strings)).unwrap_err();
    assert!(e.message().contains("message 1 (user): the chat template leaves it out"), "{e}");
}

/// Opens a preference row as training does.
fn open_pair(row: &Value, tokenizer: &ChatTokenizer) -> ft::error::Result<Dataset<PairExample>> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("pairs.jsonl");
    std::fs::write(&path, row.to_string()).unwrap();
    let options = EncodeOptions {
        supervise: Supervise::Assistant,
        max_len: 512,
        on_overflow: Overflow::Error,
        overflow_tolerance: 0.0,
    };
    let sources = SourceList(vec![SourceSpec::file(&path, RowFormat::Auto)]);
    Dataset::open(&sources, tokenizer, &options, &TokenCache::off())
}

#[test]
fn a_conversation_may_begin_with_the_assistant() {
    let looks_at_the_first = format!("{{% if messages[0].role == 'system' %}}sys{{% endif %}}{CHATML}");
    let row = talk(&[("assistant", "hello"), ("user", "one"), ("assistant", "yes")]);
    let expected = "<|im_start|>assistant\n«hello<|im_end|>»\n<|im_start|>user\none<|im_end|>\n<|im_start|>assistant\n«yes<|im_end|>»\n";
    assert_eq!(masks(std::slice::from_ref(&row), &with_source(&looks_at_the_first)).unwrap(), [expected]);
    assert_eq!(masks(std::slice::from_ref(&row), &with_source(CHATML)).unwrap(), [expected]);
    // This template refuses a conversation without a question, so the first answer is located in the rendering of the
    // whole conversation.
    let asks = format!(
        "{{% if not messages|selectattr('role', 'equalto', 'user')|list %}}{{{{ raise_exception('no question') }}}}{{% endif %}}{CHATML}"
    );
    assert_eq!(masks(std::slice::from_ref(&row), &with_source(&asks)).unwrap(), [expected]);
    // If a template refuses such a conversation altogether, its own message is reported.
    let e = masks(&[row], &with_template("gemma.jinja").unwrap()).unwrap_err();
    assert!(e.message().contains("refuses this conversation: Roles alternate"), "{e}");
}

#[test]
fn a_system_message_in_the_last_turn_is_trained_on_as_generation_sees_it() {
    let row =
        talk(&[("system", "Be brief."), ("user", "One"), ("assistant", "1"), ("user", "Two"), ("assistant", "2")]);
    let tokenizer = with_template("mistral-last.jinja").unwrap();
    assert_eq!(
        masks(std::slice::from_ref(&row), &tokenizer).unwrap(),
        [
            "[INST] Be brief.\n\nOne[/INST]« 1<|im_end|>»",
            "[INST] One[/INST] 1<|im_end|>[INST] Be brief.\n\nTwo[/INST]« 2<|im_end|>»"
        ]
    );
    assert_eq!(notes(std::slice::from_ref(&row), &tokenizer), [(RowNote::AsGenerated, 1, 1)]);
    // With an older template, which writes the system message into the first turn, the row remains one example.
    let found = masks(std::slice::from_ref(&row), &with_template("llama2.jinja").unwrap()).unwrap();
    assert_eq!(
        found,
        ["[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nOne [/INST]« 1 <|im_end|>»[INST] Two [/INST]« 2 <|im_end|>»"]
    );
    // Preference pairs are rendered in the same way.
    let pair = json!({ "prompt": [{ "role": "system", "content": "Be brief." }, { "role": "user", "content": "One" }],
        "chosen": [{ "role": "assistant", "content": "1" }], "rejected": [{ "role": "assistant", "content": "one" }] });
    let pairs = open_pair(&pair, &tokenizer).unwrap();
    let sides = pairs.get(0).unwrap().sequences();
    assert_eq!(
        inspect::preview(&sides[1], &tokenizer, false).unwrap(),
        "[INST] Be brief.\n\nOne[/INST]« one<|im_end|>»"
    );
}

#[test]
fn a_thought_opened_by_the_template_is_trained_on_from_the_row() {
    let tokenizer = with_template("r1.jinja").unwrap();
    let row = talk(&[
        ("user", "2+2?"),
        ("assistant", "<think>\nsimple\n</think>\n\n4"),
        ("user", "3+3?"),
        ("assistant", "<think>\nalso\n</think>\n\n6"),
    ]);
    assert_eq!(
        masks(std::slice::from_ref(&row), &tokenizer).unwrap(),
        [
            "<|User|>2+2?<|Assistant|><think>\n«simple\n</think>\n\n4<|im_end|>»",
            "<|User|>2+2?<|Assistant|>\n\n4<|im_end|><|User|>3+3?<|Assistant|><think>\n«also\n</think>\n\n6<|im_end|>»"
        ]
    );
    let beside = json!({ "messages": [{ "role": "user", "content": "2+2?" }, { "role": "assistant", "content": "4", "reasoning_content": "easy" }] });
    assert_eq!(
        masks(std::slice::from_ref(&beside), &tokenizer).unwrap(),
        ["<|User|>2+2?<|Assistant|><think>\n«easy\n</think>\n\n4<|im_end|>»"]
    );
    assert_eq!(notes(&[beside], &tokenizer), [(RowNote::AsGenerated, 1, 1)]);
    // Without a thought, an empty one is trained on, and that is reported.
    let plain = talk(&[("user", "2+2?"), ("assistant", "4")]);
    assert_eq!(
        masks(std::slice::from_ref(&plain), &tokenizer).unwrap(),
        ["<|User|>2+2?<|Assistant|><think>\n«\n</think>\n\n4<|im_end|>»"]
    );
    assert_eq!(notes(&[plain], &tokenizer), [(RowNote::AsGenerated, 1, 1), (RowNote::EmptyThought, 1, 1)]);
}

/// In every family of templates, the text before each trained answer equals the prompt that generation gets for it.
#[test]
fn trained_answers_follow_the_prompt_of_generation() {
    let expected = json::<Value>("templates/expected.json");
    let cases = expected["cases"].as_object().unwrap();
    let mut families = BTreeSet::new();
    let mut checked = 0;
    for row in expected["rows"].as_array().unwrap() {
        families.insert(row["template"].as_str().unwrap());
    }
    for family in families.into_iter().filter(|f| {
        !matches!(
            *f,
            "python.jinja" | "bracket.jinja" | "alternating.jinja" | "dated.jinja" | "smollm.jinja" | "closing.jinja"
        )
    }) {
        let source = std::fs::read_to_string(fixture("templates").join(family)).unwrap();
        let tokenizer = with_source(&source);
        let template = tokenizer.template().unwrap();
        for name in ["one", "multi", "led", "quiet", "thought", "steps", "called"] {
            let case = &cases[name];
            let talk = json!({ "messages": case["messages"], "tools": case.get("tools") });
            let Ok(dataset) = load(std::slice::from_ref(&talk), &tokenizer, Supervise::Assistant) else { continue };
            let messages: Vec<ChatMessage> = case["messages"].as_array().unwrap().iter().map(message).collect();
            let answers: Vec<usize> = (1..messages.len()).filter(|i| messages[*i].role == "assistant").collect();
            let prompts: Vec<String> = answers
                .iter()
                .map(|i| template.render_with(&messages[..*i], case.get("tools"), &RowColumns::new(), true).unwrap())
                .collect();
            let mut learnt = 0;
            for example in dataset.to_vec().unwrap() {
                for t in 1..example.ids.len() {
                    if example.supervised[t] && !example.supervised[t - 1] {
                        let before = tokenizer.decode(&example.ids[..t], false).unwrap();
                        assert!(prompts.contains(&before), "{family} {name}: {before:?} is none of {prompts:#?}");
                        learnt += 1;
                    }
                }
            }
            assert_eq!(learnt, answers.len(), "{family} {name}");
            checked += 1;
        }
    }
    assert!(checked >= 40, "{checked} conversations");
}

#[test]
fn ids_equal_those_of_the_joined_text_if_a_prompt_ends_in_a_space() {
    let folder = fixture("spm-tokenizer");
    let tokenizer = ChatTokenizer::load(&folder, None).unwrap();
    let pair = |prompt: &str, completion: &str| {
        let row = json!({ "prompt": prompt, "completion": completion });
        let example = load(&[row], &tokenizer, Supervise::Assistant).unwrap().get(0).unwrap();
        let given = example.supervised.iter().position(|s| *s).unwrap();
        let asked = tokenizer.encode_plain_prompt(prompt).unwrap();
        assert_eq!(example.ids[..given], asked, "the prompt must be that of generation");
        let text = format!("{prompt}{completion}");
        let joined = [tokenizer.encode_plain(&text).unwrap(), vec![tokenizer.eos().unwrap()]].concat();
        assert_eq!(example.ids, joined, "{text:?}");
        // The decoded answer may lack the space at the boundary between prompt and answer.
        let answer = tokenizer.decode(&example.ids[given..], true).unwrap();
        let shown = [completion, completion.strip_prefix(' ').unwrap_or(completion)];
        assert!(shown.contains(&answer.as_str()), "{text:?}: {answer:?}");
        inspect::preview(&example, &tokenizer, false).unwrap()
    };
    assert!(pair("the ", "river").ends_with("the« river</s>»"));
    assert!(pair("the", " river").ends_with("the« river</s>»"));
    assert!(pair("the  ", "river").ends_with("the « river</s>»"));
    assert!(pair("the\n", "river").ends_with("the\n«river</s>»"));
    assert!(pair("the ", "\nriver").ends_with("the« \nriver</s>»"));
    // The same for a generation prompt that ends in a space, for both answers of a pair, and for an answer encoded
    // after its prompt.
    let row = talk(&[("user", "one"), ("assistant", "yes")]);
    let found = masks(&[row], &tokenizer).unwrap();
    assert!(found[0].ends_with("[/INST]« yes</s>»"), "{found:?}");
    let row = json!({ "prompt": "the ", "chosen": "river", "rejected": "one" });
    let pairs = open_pair(&row, &tokenizer).unwrap().get(0).unwrap();
    let joined = |answer: &str| {
        [tokenizer.encode_plain(&format!("the {answer}")).unwrap(), vec![tokenizer.eos().unwrap()]].concat()
    };
    assert_eq!([pairs.prompt.clone(), pairs.chosen].concat(), joined("river"));
    assert_eq!([pairs.prompt, pairs.rejected].concat(), joined("one"));
    assert_eq!(
        [tokenizer.encode_plain_prompt("the ").unwrap(), tokenizer.encode_answer_after("the ", "river").unwrap()]
            .concat(),
        tokenizer.encode_plain("the river").unwrap()
    );
    // A coloured preview shows a space as a dot, so that it is visible on which side of the boundary the space is.
    let dataset =
        load(&[json!({ "prompt": "the", "completion": " river" })], &tokenizer, Supervise::Assistant).unwrap();
    assert!(inspect::preview(&dataset.get(0).unwrap(), &tokenizer, true).unwrap().contains("·river"));
}

#[test]
fn template_variables_of_the_recipe_apply_to_every_row() {
    let source = format!("{{% if enable_thinking is false %}}quiet\n{{% endif %}}{CHATML}");
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("t.jinja");
    std::fs::write(&path, source).unwrap();
    let kwargs = json!({ "enable_thinking": false }).as_object().unwrap().clone();
    let rendering = TemplateOptions { template: Some(path), kwargs, date: None };
    let tokenizer = ChatTokenizer::load_with(&fixture("tiny-tokenizer"), &rendering).unwrap();
    let plain = talk(&[("user", "a"), ("assistant", "b")]);
    let mut own = plain.clone();
    own["chat_template_kwargs"] = json!({ "enable_thinking": true });
    let found = masks(&[plain, own], &tokenizer).unwrap();
    assert!(found[0].starts_with("quiet\n") && !found[1].starts_with("quiet"), "{found:?}");
    let other = ChatTokenizer::load_with(
        &fixture("tiny-tokenizer"),
        &TemplateOptions { kwargs: RowColumns::new(), ..rendering },
    );
    assert_ne!(tokenizer.fingerprint().unwrap(), other.unwrap().fingerprint().unwrap());
}
