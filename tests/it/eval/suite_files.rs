//! The file of a suite: what it means, and all its mistakes in one report.

use ft::recipe::suite_file::{
    AnswerFilter, ChoiceMetric, ChoiceTexts, FewShotDraw, FewShotForm, Normaliser, PerplexityUnit, RowLimit, TaskKind,
    parse,
};

#[test]
fn a_suite_says_what_is_asked_and_how_it_is_scored() {
    let text = r#"
title: Three kinds
tasks:
- name: icd10
  data: rows.csv
  limit: 20
  category: "{{ chapter }}"
  prompt: "Question: {{ question }}\nAnswer:"
  answer: "{{ answer }}"
  few_shot: { rows: 4, data: train.jsonl, seed: 7, as: turns }
  chat: false
  system: Be brief.
  generate:
    metrics: [exact_match, f1]
    max_new_tokens: 32
    stop: "\n"
    extract: ['answer is (.*)', strip, { regex: '\d+', pick: -1, otherwise: none }]
    normalise: [case, whitespace]
    samples: { answers: 5, temperature: 0.7 }
- name: arc
  data: arc.jsonl
  limit: { rows: 9, seed: 3 }
  prompt: "{{ question }}"
  main: acc_bytes
  choice: { choices: "{{ options }}", answer: "{{ label }}", shuffle: 7, metrics: [acc, acc_bytes] }
- name: wiki
  data: wiki.txt
  perplexity: { stride: 512, window: 1024, per: [token, byte] }
- { name: end, data: end.jsonl, prompt: "{{ a }}", answer: "{{ b }}", cloze: }
gates:
- icd10.exact_match >= baseline - 0.02
"#;
    let suite = parse("suite.yaml", text).unwrap();
    assert_eq!(suite.gates[0].text, "icd10.exact_match >= baseline - 0.02");
    let [icd10, arc, wiki, end] = &suite.tasks[..] else { panic!("four tasks") };
    let shots = icd10.few_shot.as_ref().unwrap();
    assert_eq!(
        (shots.rows, shots.seed, shots.form, shots.separator.as_str()),
        (4, Some(7), FewShotForm::Turns, "\n\n")
    );
    assert_eq!(icd10.limit, Some(RowLimit { rows: 20, seed: None }));
    assert_eq!(arc.limit, Some(RowLimit { rows: 9, seed: Some(3) }));
    assert_eq!((icd10.chat, icd10.separator.as_str()), (Some(false), " "));
    let TaskKind::Generate(generate) = &icd10.kind else { panic!("generate") };
    assert_eq!(generate.stop, Some(vec!["\n".to_string()]));
    let [AnswerFilter::Regex(first), AnswerFilter::Strip, AnswerFilter::Regex(last)] = &generate.extract[..] else {
        panic!("three filters")
    };
    assert_eq!((first.pattern.as_str(), first.pick, first.otherwise.as_str()), ("answer is (.*)", 0, "[invalid]"));
    assert_eq!((last.pattern.as_str(), last.pick, last.otherwise.as_str()), (r"\d+", -1, "none"));
    assert_eq!(generate.normalise, [Normaliser::Case, Normaliser::Whitespace]);
    let samples = generate.samples.as_ref().unwrap();
    assert_eq!((samples.answers, samples.temperature, samples.top_p, samples.vote), (5, 0.7, 1.0, true));
    let TaskKind::Choice(choice) = &arc.kind else { panic!("choice") };
    assert!(matches!(choice.choices, ChoiceTexts::List(_)) && choice.shuffle == Some(7) && !choice.letters);
    assert_eq!(choice.metrics, [ChoiceMetric::Accuracy, ChoiceMetric::PerByte]);
    assert_eq!(arc.main.as_deref(), Some("acc_bytes"));
    let TaskKind::Perplexity(perplexity) = &wiki.kind else { panic!("perplexity") };
    assert_eq!((perplexity.window, perplexity.stride), (Some(1024), Some(512)));
    assert_eq!(perplexity.per, [PerplexityUnit::Token, PerplexityUnit::Byte]);
    assert_eq!(end.kind, TaskKind::Cloze);
}

#[test]
fn a_suite_says_where_rows_are_and_what_columns_they_have() {
    let text = r#"
tasks:
- name: squad
  data: squad.json
  rows: data.paragraphs.qas
  where: "{{ answers | length > 0 }}"
  columns: { first: "{{ answers[0].text }}", loud: "{{ first | upper }}" }
  prompt: "{{ context }}"
  answer: "{{ first }}"
  few_shot:
    examples: [{ context: "a: b", first: 1 }, { context: c, answers: [{ text: d }] }]
    group: "{{ context[0] }}"
  generate: { extract: [{ map: { A: "yes", "1": b }, otherwise: none }], metrics: [spearman, balanced_accuracy] }
- name: mc2
  data: rows.jsonl
  prompt: "{{ q }}"
  few_shot: { rows: 2, data: train.jsonl, seed: 1234, draw: lm_eval_spare }
  choice: { choices: "{{ c }}", answer: "{{ l }}", metrics: [right_mass, f1, macro_f1, mcc] }
"#;
    let suite = parse("suite.yaml", text).unwrap();
    let squad = &suite.tasks[0];
    assert_eq!(squad.rows, ["data", "paragraphs", "qas"]);
    assert_eq!(squad.columns.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>(), ["first", "loud"]);
    assert!(squad.only.is_some());
    let shots = squad.few_shot.as_ref().unwrap();
    assert_eq!((shots.rows, shots.examples.as_ref().unwrap()[0]["first"].as_i64()), (2, Some(1)));
    let TaskKind::Generate(generate) = &squad.kind else { panic!("generate") };
    let [AnswerFilter::Map(map)] = &generate.extract[..] else { panic!("a map") };
    assert_eq!((map.texts[1].clone(), map.otherwise.as_deref()), (("1".into(), "b".into()), Some("none")));
    assert_eq!(suite.tasks[1].few_shot.as_ref().unwrap().draw, FewShotDraw::LmEvalSpare);
}

#[test]
fn mistakes_about_rows_and_examples_are_reported_with_their_places() {
    let text = r#"tasks:
- name: a
  data: rows.json
  rows: data..qas
  where: "{{ a"
  columns: [a]
  prompt: "{{ q }}"
  answer: "{{ a }}"
  few_shot: { examples: [], data: train.jsonl }
  generate: { extract: { map: [a] } }
- name: b
  data: rows.json
  columns: { x: "{{ y" }
  prompt: "{{ q }}"
  answer: "{{ a }}"
  few_shot: { rows: 3, examples: [{ q: 1 }, 7], seed: 1, draw: lm_eval, group: "{{ q }}" }
  generate: { extract: { map: { a: [b] }, pick: 1 } }
- { name: c, data: rows.jsonl, rows: data, where: "{{ a }}", columns: { a: b }, generate: { metrics: f1 } }
- { name: d, data: a.jsonl, prompt: a, answer: b, few_shot: { rows: 2, examples: [{ q: 1 }] }, generate: }
"#;
    let told = parse("suite.yaml", text).unwrap_err().to_string();
    for part in [
        "suite.yaml:4:9: `rows`: `data..qas` is not the way to a list",
        "suite.yaml:5:10: `where`: ",
        "suite.yaml:6:12: `columns`: expected names and templates",
        "`examples` is empty",
        "`data` beside `examples`",
        "suite.yaml:10:31: `map`: expected texts and what takes their place",
        "suite.yaml:13:17: `x`: ",
        "`examples`: expected columns and values, found `7`",
        "`group` beside `draw`",
        "suite.yaml:17:36: `map`: expected text",
        "unknown key `pick`",
        "`rows` beside `generate`",
        "`where` beside `generate`",
        "`columns` beside `generate`",
        "`rows`: 2 examples are wanted, `examples` has 1",
    ] {
        assert!(told.contains(part), "{part}\n\n{told}");
    }
}

#[test]
fn mistakes_about_questions_texts_and_letters_have_places() {
    let choice = |more: &str| {
        format!("- {{ name: n, data: x.jsonl, prompt: q, choice: {{ choices: \"{{{{ c }}}}\", answer: 0, {more} }} }}")
    };
    let generate = |more: &str| format!("- {{ name: n, data: x.jsonl, answer: a, {more} }}");
    for (task, parts) in [
        (choice("question: a"), &["suite.yaml:2:81: `question` without the metric `question_em`"][..]),
        (choice("metrics: [acc, question_em]"), &["`question_em` without `question`", "e.g. `question: "]),
        (choice("texts: \"{{ t }}\", metrics: acc"), &["`texts` without a metric of texts", "text_f1"]),
        (choice("texts: \"{{ t\", metrics: text_em"), &["`texts`: "]),
        (generate("prompt: q, generate: { extract: { letter_of: \"{{ c }}\" } }"), &["`regex` is missing"]),
        (
            generate("prompt: q, generate: { extract: { letter_of: \"{{ c }}\", regex: a, normalise: numbers } }"),
            &["unknown choice `numbers` for `normalise`", "punctuation"],
        ),
        (
            generate("prompt: q, generate: { extract: { letter_of: \"{{ c }}\", regex: '(', ignore: '[' } }"),
            &["`regex`: `(` is no regular expression", "`ignore`: `[` is no regular expression"],
        ),
        (generate("prompt: q, generate: { extract: { regex: a, letter: b } }"), &["unknown key `letter`"]),
        (
            "- { name: n, data: x.jsonl, generate: { extract: { letter_of: \"{{ c }}\", regex: a } } }".into(),
            &["a filter with `letter_of` needs `prompt`"],
        ),
        (generate("prompt: q, generate: { metrics: [HasAns_em] }"), &["unknown choice `HasAns_em`", "HasAns_exact"]),
        (
            generate("prompt: q, generate: { metrics: [ter], samples: { answers: 2, vote: false } }"),
            &["`ter` of several answers to each prompt"],
        ),
    ] {
        let told = parse("suite.yaml", &format!("tasks:\n{task}\n")).unwrap_err().to_string();
        parts.iter().for_each(|part| assert!(told.contains(part), "{task}: {part}\n{told}"));
    }
    let fine = generate(
        "prompt: q, generate: { extract: [{ letter_of: \"{{ c }}\", regex: a, pick: -1, normalise: [case], ignore: [b], otherwise: \"\" }, tags] }",
    );
    let suite = parse("suite.yaml", &format!("tasks:\n{fine}\n")).unwrap();
    let TaskKind::Generate(generate) = &suite.tasks[0].kind else { panic!("generate") };
    let [AnswerFilter::Letter(letter), AnswerFilter::Tags] = &generate.extract[..] else { panic!("two filters") };
    assert_eq!((letter.regex.pick, letter.regex.otherwise.as_str()), (-1, ""));
    assert_eq!((letter.ignore_case, letter.ignore_punctuation, letter.ignore.len()), (true, false, 1));
}

#[test]
fn all_mistakes_are_reported_with_their_places() {
    let text = r#"titel: x
tasks:
- name: a b
  data: rows.csv
  promt: "{{ q }}"
  generate: { metrics: [exact_mach, f1, f1], stop: "", extract: '(', samples: { answers: 0, temperature: 0 } }
- name: c
  data: rows.csv
  prompt: "{{ q"
  answer: "{{ a }}"
  main: acc_byte
  few_shot: 4
  choice: { choices: [one], answer: "{{ l }}", by: leter, shuffle: many }
- name: c
  perplexity: { window: 8, stride: 16, per: [tokens] }
  generate: { normalise: [cases] }
  chat: perhaps
- { name: d, data: x.jsonl, generate: { metrics: f1 }, answer: "{{ a }}", limit: 0 }
- { name: e, data: x.jsonl, perplexity: , prompt: "{{ a }}", limit: { row: 3, seed: a } }
- { name: f, data: x.jsonl, cloze: { metrics: acc } }
- name: g
  data: x.jsonl
"#;
    let told = parse("suite.yaml", text).unwrap_err().to_string();
    for part in [
        "suite.yaml:1:1: unknown key `titel`\n",
        "did you mean `title`?",
        "suite.yaml:3:9: `a b` is no name of a task",
        "suite.yaml:5:3: unknown key `promt`",
        "did you mean `prompt`?",
        "suite.yaml:6:25: unknown choice `exact_mach` for `metrics`",
        "did you mean `exact_match`?",
        "suite.yaml:6:41: `metrics` names `f1` twice",
        "`stop`: an empty text would end every answer",
        "`(` is no regular expression",
        "`answers`: expected 1 or more, found 0",
        "`temperature`: expected a number above 0, found 0",
        "suite.yaml:9:11: `prompt`: ",
        "suite.yaml:12:13: `few_shot`: expected keys and values",
        "`choices`: expected two or more",
        "unknown choice `leter` for `by`",
        "`shuffle`: expected a whole number, found the text `many`",
        "`answer` beside `choice`",
        "a second task is called `c`",
        "`data` is missing",
        "a task has one kind, found generate and perplexity",
        "`chat`: expected true or false, found the text `perhaps`",
        "`answer` beside `generate`",
        "`limit`: expected 1 or more, found 0",
        "unknown key `row`",
        "`rows` is missing",
        "`seed`: expected a whole number, found the text `a`",
        "`prompt` beside `perplexity`",
        "`prompt` is missing",
        "`answer` is missing",
        "`cloze`: expected no settings, found a map",
        "the task has no kind",
    ] {
        assert!(told.contains(part), "{part}\n\n{told}");
    }
    assert!(parse("suite.yaml", "").unwrap_err().to_string().contains("`tasks` is missing"));
    assert!(parse("suite.yaml", "- a").unwrap_err().to_string().contains("expected keys and values, found a list"));
}
