//! Tests the scrubbing of personal data: personal values are replaced, similar harmless ones are kept, equal values
//! have equal pseudonyms, and no value is in the report.

use crate::support::command::stderr;
use crate::support::workspace::Workspace;
use ft::scrub::{NameList, PersonalDataKind, Scrubber};
use serde_json::{Value, json};

fn scrub(text: &str) -> String {
    let names = NameList::of(["Anna Lindqvist", "Otto", "Mary-Jane O'Neil", "May"]);
    Scrubber::new(&PersonalDataKind::ALL, names, Some(b"a key for tests, sixteen")).text(text).unwrap()
}

/// Each value is found as a whole and replaced by a pseudonym with this label; the text around it is kept.
#[test]
fn personal_values_are_replaced() {
    for (label, values) in [
        ("EMAIL", &["ann.b-c+tag@clinic.example.org", "jürgen@müller.de", "a_1@b2.co"][..]),
        (
            "PHONE",
            &[
                "+46 70-123 45 67",
                "(212) 555-0187",
                "212-555-0187",
                "+1 (212) 555 0187",
                "0046 8 123 456 78",
                "020 7946 0958",
                "01 23 45 67 89",
            ],
        ),
        (
            "NATIONAL-NUMBER",
            &[
                "078-05-1120",
                "811218-9876",
                "19811218-9876",
                "12345678Z",
                "X-1234567-L",
                "529.982.247-25",
                "2 55 08 14 168 025 38",
                "943 476 5919",
                "RSSMRA85T10A562S",
                "44051401359",
                "131052-308T",
                "130 692 544",
                "11010519491231002X",
            ],
        ),
        ("CARD", &["4111 1111 1111 1111", "5555-5555-5555-4444", "378282246310005"]),
        ("IBAN", &["GB82 WEST 1234 5698 7654 32", "DE89370400440532013000"]),
        ("IP-ADDRESS", &["192.168.10.7", "2001:db8::8a2e:370:7334", "fe80::1"]),
        ("NAME", &["Anna Lindqvist", "ANNA LINDQVIST", "Otto", "Mary-Jane O'Neil"]),
        (
            "DATE",
            &["2024-02-29", "31.12.1999", "12/31/1999", "3 March 2021", "March 3rd, 2021", "1st of May 1980", "29 Feb"],
        ),
    ] {
        for value in values {
            for (before, after) in [("Please note ", " today."), ("(", ")"), ("", ", then"), ("id: ", "\nnext")] {
                let found = scrub(&format!("{before}{value}{after}"));
                let rest = found.strip_prefix(before).and_then(|r| r.strip_suffix(after)).unwrap_or("");
                let inside = rest.strip_prefix(&format!("[{label}:")).and_then(|r| r.strip_suffix(']'));
                assert!(inside.is_some_and(|i| i.len() == 8 && !i.contains('[')), "{value}: {found}");
            }
        }
    }
    for (text, label) in [
        ("BSN 111222333", "NATIONAL-NUMBER"),
        ("her SSN is 078051120", "NATIONAL-NUMBER"),
        ("NHS no 9434765919", "NATIONAL-NUMBER"),
        ("Steuer-IdNr 86095742719", "NATIONAL-NUMBER"),
        ("call 5550187", "PHONE"),
        ("MRN: 00482915", "MEDICAL-RECORD"),
        ("patient number A-482915", "MEDICAL-RECORD"),
        ("Medical record no. 4829-15", "MEDICAL-RECORD"),
    ] {
        let found = scrub(text);
        assert!(found.contains(&format!("[{label}:")) && found.matches('[').count() == 1, "{text}: {found}");
    }
}

#[test]
fn similar_harmless_values_are_kept() {
    for text in [
        "user@localhost, @handle, a @ b.org and x@y",
        "order 1234567890, 123-4567, version 1.2.3.4.5 and 10.2.300.4",
        "4111 1111 1111 1112 fails Luhn, 0000 0000 0000 0000 is nobody's",
        "GB82 WEST 1234 5698 7654 33",
        "000-12-3456, 666-12-3456, 912-34-5678, 123-00-4567",
        "811218-9877, 811318-9876",
        "12345678A, X1234567M",
        "529.982.247-26 and 111.111.111-11",
        "111222333 without a word, BSN 111222334",
        "NHS 9434765918",
        "9434765919 alone",
        "127.0.0.1, 0.0.0.0, ::1, ::, std::net::Ipv4Addr, 12:30:45",
        "2024-02-30, 31.04.2020, 13/13/2020, 99-99-9999, 2024-1.2",
        "you may 5 times march 10 miles, in 2021, March on",
        "otto normal, Annalena, Ottoman, may come, Anna Lind",
        "patient came on day 12, chart 7, MRN unknown",
        "3.14159265358979, 1e-10, 100000000000000000000000000, ISBN 978-3-16-148410-0",
        "The ratio was 12 / 24 / 1234567.",
    ] {
        assert_eq!(scrub(text), text);
    }
}

#[test]
fn a_value_has_one_pseudonym_per_key_however_it_is_written() {
    let text =
        "4111 1111 1111 1111, 4111-1111-1111-1111; +46 70 123 45 67 or 0046-70-1234567; ANN@X.org ann@x.org; ann@y.org";
    let pseudonyms = |scrubber: &mut Scrubber, text: &str| -> Vec<String> {
        let found = scrubber.text(text).unwrap();
        found.split('[').skip(1).map(|p| p.split(']').next().unwrap().to_string()).collect()
    };
    let keyed = |key: &[u8]| Scrubber::new(&PersonalDataKind::ALL, NameList::default(), Some(key));
    let found = pseudonyms(&mut keyed(b"one"), text);
    assert_eq!(found.len(), 7, "{found:?}");
    assert!(found[0] == found[1] && found[2] == found[3] && found[4] == found[5] && found[5] != found[6], "{found:?}");
    assert_eq!(pseudonyms(&mut keyed(b"one"), text), found);
    assert_ne!(pseudonyms(&mut keyed(b"two"), text), found);
    let mut alone = Scrubber::new(&PersonalDataKind::ALL, NameList::default(), None);
    let first = pseudonyms(&mut alone, text);
    assert_eq!(pseudonyms(&mut alone, text), first);
    assert_ne!(pseudonyms(&mut Scrubber::new(&PersonalDataKind::ALL, NameList::default(), None), text), first);
    // Scrubbing a scrubbed text changes nothing.
    let once = alone.text(text).unwrap();
    assert_eq!(alone.text(&once).unwrap(), once);
    let found = &alone.report().found[&PersonalDataKind::Card];
    assert_eq!((found.times, found.distinct), (6, 1), "the text was scrubbed three times");
}

/// One row of every format.
#[test]
fn the_command_scrubs_every_format_and_reports_no_value() {
    let space = Workspace::new();
    let (mail, ssn) = ("eva@clinic.example", "078-05-1120");
    let rows = [
        json!({ "messages": [{ "role": "user", "content": format!("I am {mail}") }, { "role": "assistant", "content": "ok", "tool_calls": [{ "type": "function", "function": { "name": "f", "arguments": { "to": mail } } }] }] }),
        json!({ "conversations": [{ "from": "human", "value": ssn }, { "from": "gpt", "value": "ok" }], "system": mail }),
        json!({ "instruction": mail, "input": ssn, "output": "ok", "history": [[mail, "ok"]] }),
        json!({ "prompt": mail, "completion": ssn, "label": true }),
        json!({ "text": format!("{mail} {ssn}") }),
        json!({ "prompt": [{ "role": "user", "content": "q" }], "chosen": [{ "role": "assistant", "content": mail }], "rejected": [{ "role": "assistant", "content": ssn }], "margin": 0.5 }),
        json!({ "chosen": format!("\n\nHuman: {mail}\n\nAssistant: a"), "rejected": format!("\n\nHuman: {mail}\n\nAssistant: b") }),
        json!({ "id": mail, "text": "Eva Berg called, eva berg did not" }),
    ];
    std::fs::write(space.path("names.txt"), "# people\nEva Berg\n").unwrap();
    std::fs::write(space.path("key"), [7u8; 32]).unwrap();
    for (i, row) in rows.iter().enumerate() {
        let input = format!("rows{i}.jsonl");
        std::fs::write(space.path(&input), format!("{row}\n{row}\n")).unwrap();
        let scrub =
            ["data", "scrub", &input, "--out", "out.jsonl", "--names", "names.txt", "--key-file", "key", "--json"];
        let told = space.ft(&scrub).stdout;
        let told = String::from_utf8(told).unwrap();
        let out = std::fs::read_to_string(space.path("out.jsonl")).unwrap();
        let lines: Vec<Value> = out.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
        assert!(lines.len() == 2 && lines[0] == lines[1], "one value, one pseudonym: {out}");
        for value in [mail, ssn, "Eva Berg"] {
            assert!(!out.contains(value) && !told.contains(value), "row {i}: {value} in {out} or {told}");
        }
        assert_eq!(out.contains("eva berg did not"), i == 7);
        let keys = |v: &Value| v.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
        assert_eq!(keys(&lines[0]), keys(row), "the columns must not change");
        let report: Value = serde_json::from_str(&told).unwrap();
        assert_eq!(
            (&report["rows"], &report["rows_changed"], &report["found"]["email"]["distinct"]),
            (&json!(2), &json!(2), &json!(1))
        );
        space.ft(&["data", "inspect", "out.jsonl"]);
    }
    assert!(space.ft(&["data", "scrub", "rows5.jsonl", "--out", "out.parquet", "--keep", "national"]).status.success());
    let seen: Value = serde_json::from_slice(&space.ft(&["data", "inspect", "out.parquet", "--json"]).stdout).unwrap();
    assert_eq!((&seen["format"], &seen["rows"]), (&json!("preference"), &json!(2)));
    space.ft(&["data", "convert", "out.parquet", "--to", "preference", "--out", "back.jsonl"]);
    let back = std::fs::read_to_string(space.path("back.jsonl")).unwrap();
    assert!(back.contains(ssn) && !back.contains(mail), "{back}");

    for (arguments, word) in [
        (&["data", "scrub", "rows0.jsonl", "--out", "rows0.jsonl"][..], "is also the input file"),
        (&["data", "scrub", "rows0.jsonl", "--out", "x.csv"], "JSON Lines or Parquet"),
        (&["data", "scrub", "rows0.jsonl", "--out", "x.jsonl", "--kinds", "name"], "--names FILE"),
        (&["data", "scrub", "rows0.jsonl", "--out", "x.jsonl", "--key-file", "names.txt"], "shorter than 16"),
    ] {
        std::fs::write(space.path("names.txt"), "Eva\n").unwrap();
        let out = space.command(arguments).output().unwrap();
        let said = stderr(&out);
        assert!(out.status.code() == Some(1) && said.contains(word), "{arguments:?}: {said}");
        assert!(!space.path("x.jsonl").exists());
    }
}

/// Names and addresses cannot be recognised by their form: the report says that they were not looked for.
#[test]
fn the_report_says_what_was_not_looked_for() {
    let space = Workspace::new();
    let row = json!({ "text": "Patient John Smith, 12 High Street, London SW1A 1AA; محمد علی" });
    std::fs::write(space.path("rows.jsonl"), format!("{row}\n")).unwrap();
    std::fs::write(space.path("names.txt"), "John Smith\n").unwrap();
    let scrub = |more: &[&str]| {
        let output = space.ft(&[&["data", "scrub", "rows.jsonl", "--out", "out.jsonl"], more].concat());
        (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap())
    };
    let (_, said) = scrub(&[]);
    for part in ["not looked for", "names of people", "street and postal addresses", "--names FILE"] {
        assert!(said.contains(part), "{part} in {said}");
    }
    assert!(
        !said.contains("email;") && std::fs::read_to_string(space.path("out.jsonl")).unwrap().contains("High Street")
    );
    let (_, said) = scrub(&["--names", "names.txt", "--keep", "date"]);
    assert!(said.contains("names of people that are not in the list") && said.contains("; date"), "{said}");
    let (told, _) = scrub(&["--json"]);
    let report: Value = serde_json::from_str(&told).unwrap();
    assert!(report["not_looked_for"].as_array().unwrap().len() == 3, "{report}");
}

#[test]
fn import_scrubs_before_anything_is_stored() {
    let space = Workspace::new();
    let row = json!({ "id": "eva@clinic.example", "prompt": "Write to eva@clinic.example.", "chosen": "Dear eva@clinic.example,", "rejected": "No.", "note": "078-05-1120" });
    std::fs::write(space.path("rows.jsonl"), format!("{row}\n")).unwrap();
    space.ft(&["label", "new", "p.label", "--prompts", "datasets/prompts.jsonl"]);
    space.ft(&["label", "import", "p.label", "rows.jsonl", "--scrub"]);
    for file in std::fs::read_dir(space.path(""))
        .unwrap()
        .flatten()
        .filter(|f| f.file_name().to_string_lossy().starts_with("p.label"))
    {
        let bytes = std::fs::read(file.path()).unwrap();
        let text = String::from_utf8_lossy(&bytes);
        assert!(!text.contains("eva@clinic") && !text.contains("078-05-1120"), "{:?}", file.path());
    }
    let project = ft::label::project::snapshot::Project::read(
        &ft::label::store::Store::open(space.path("p.label").to_str().unwrap()).unwrap(),
    )
    .unwrap();
    assert!(project.candidates.iter().any(|c| c.text.starts_with("Dear [EMAIL:")), "{:?}", project.candidates);
}

/// Returns the CPU time of this thread in seconds, which does not depend on the load of the machine.
fn busy() -> f64 {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    text.split(' ').next().unwrap().parse::<f64>().unwrap() / 1e9
}

/// The time for scrubbing a text is proportional to its length, whatever the text repeats. With quadratic rules these
/// texts took from 8 seconds (in an optimised build) to minutes.
#[test]
fn no_repetitive_text_takes_long() {
    let units = [
        ":",
        ".",
        "-",
        "@",
        "/",
        " ",
        "(",
        ")",
        "+",
        "_",
        "#",
        "\n",
        "0",
        "9",
        "a",
        "f",
        "z",
        "ä",
        "字",
        "🙂",
        "..",
        ".@",
        "a.",
        "a@",
        "@a",
        "a:",
        "1:",
        "1.",
        "1-",
        "1 ",
        "1/",
        "a..",
        "..a@b.cc ",
        "1.1.1.1 ",
        "ab12 ",
        "MRN: ",
        "May ",
        "1 May ",
        "(1",
        "a@b..",
    ];
    for unit in units {
        let repeated = |n: usize| unit.repeat(n / unit.chars().count());
        let around = repeated(10_000);
        for text in [repeated(40_000), format!("a@b.cc{around}@b.cc ::1{around}1")] {
            let began = busy();
            scrub(&text);
            let took = busy() - began;
            assert!(took < 6.0, "{unit:?}: {took} s for {} characters", text.chars().count());
        }
    }
}

#[test]
fn invalid_characters_before_an_address_are_not_part_of_it() {
    assert_eq!(scrub("see ...ann@clinic.example"), scrub("see ...").to_string() + &scrub("ann@clinic.example"));
    for (text, kept) in [("a..ann@b.cc", "a.."), ("-..x.ann@b.cc!", "-..")] {
        let scrubbed = scrub(text);
        assert!(scrubbed.starts_with(&format!("{kept}[EMAIL:")), "{scrubbed}");
    }
    for text in ["ann.@b.cc", "...@b.cc", "a@b..cc"] {
        assert_eq!(scrub(text), text);
    }
}
