//! Tests the store of labelling projects. The same cases run on SQLite and on a real PostgreSQL server. Also damaged
//! files, newer versions, two servers on one project, a full disk.

use crate::support::labeling::*;
use crate::support::needs::{POSTGRES, needs};
use ft::label::people::desk::Desk;
use ft::label::people::request::{DeskError, DeskRequest};
use ft::label::people::screen::{ScreenVote, SideChoice};
use ft::label::people::task::TaskRefusal;
use ft::label::record::annotator::AnnotatorKind;
use ft::label::record::answer::{InsertCounts, NewCandidate, NewPair, NewPrompt};
use ft::label::record::lease::Lease;
use ft::label::record::settings::ProjectSettings;
use ft::label::record::vote::{NewVote, VoteChoice};
use ft::label::store::{Store, VoteInsertion};
use serde_json::json;
use std::path::Path;

/// A test case. Its argument is the path or URL of a project that does not exist yet.
type Case = fn(&str);

const CASES: &[Case] = &[
    a_project_is_made_once,
    what_is_added_is_read_again,
    what_is_known_is_added_once,
    answers_of_another_prompt_are_no_pair,
    a_vote_is_given_once_and_taken_back,
    a_failed_transaction_leaves_nothing,
    the_desk_keeps_what_it_acknowledges,
    a_second_server_is_refused,
    a_newer_project_is_refused,
    text_that_a_database_cannot_hold_is_refused,
];

#[test]
fn every_case_on_sqlite() {
    for case in CASES {
        let folder = tempfile::tempdir().unwrap();
        case(folder.path().join("p.db").to_str().unwrap());
    }
}

#[test]
fn every_case_on_postgresql() {
    needs!(POSTGRES);
    let server = Postgres::start();
    for case in CASES {
        case(&server.database());
    }
    a_team_judges(&server.database());
    bad_urls_are_named_without_their_password(&server);
    a_statement_that_waits_is_given_up(&server.database());
}

/// A lock held by another client ends in an error after a timeout, and the store works again afterwards.
fn a_statement_that_waits_is_given_up(place: &str) {
    drop(project(place, 1, 1));
    let store = Store::open(&format!("{place}?options=-c%20lock_timeout%3D300")).unwrap();
    let mut other = postgres::Client::connect(place, postgres::NoTls).unwrap();
    other.batch_execute("BEGIN; LOCK TABLE ft_label.annotators IN ACCESS EXCLUSIVE MODE").unwrap();
    let e = error(store.annotators());
    assert!(e.hints().iter().any(|h| h.contains("pg_stat_activity")), "{e}");
    other.batch_execute("ROLLBACK").unwrap();
    store.recover().unwrap();
    assert_eq!(store.annotators().unwrap().len(), 0);
}

/// Runs a labelling server on a database server: annotators, votes, the overview, and an orderly shutdown.
fn a_team_judges(place: &str) {
    drop(project(place, 2, 1));
    let made = ft(&["label", "annotator", place, "ann", "--json"]).output().unwrap();
    let made: serde_json::Value = serde_json::from_slice(&made.stdout).unwrap();
    let server = Server::start(place);
    let (ann, owner) = (server.client(made["token"].as_str().unwrap()), server.client(&server.token));
    for request in ["r1", "r2"] {
        let task = ann.task().unwrap();
        assert_eq!(ann.vote(task, "left", request).0, 200);
    }
    assert_eq!(owner.done("overview", json!({}))["given"], 2);
    let said = server.interrupt();
    assert!(said.contains("every acknowledged vote is stored") && !said.contains("panicked"), "{said}");
    assert!(!said.contains("secret"), "the password is shown: {said}");
    assert_eq!(Store::open(place).unwrap().votes().unwrap().len(), 2);
}

fn project(place: &str, pairs: usize, overlap: i64) -> Store {
    let store = Store::create(place, &ProjectSettings::default()).unwrap();
    fill(&store, pairs, overlap);
    store
}

fn error<T>(result: ft::error::Result<T>) -> ft::error::Error {
    result.err().expect("an error")
}

fn a_project_is_made_once(place: &str) {
    assert!(Store::open(place).is_err());
    let settings = ProjectSettings { title: "T".into(), overlap: 3, ..ProjectSettings::default() };
    let store = Store::create(place, &settings).unwrap();
    assert_eq!(store.settings().unwrap(), settings);
    drop(store);
    let e = error(Store::create(place, &settings));
    assert!(e.message().contains("already"), "{e}");
    let store = Store::open(place).unwrap();
    let other = ProjectSettings { guidelines: "Be *kind*.".into(), ..settings };
    store.set_settings(&other).unwrap();
    assert_eq!(Store::open(place).unwrap().settings().unwrap(), other);
}

fn what_is_added_is_read_again(place: &str) {
    let store = project(place, 2, 2);
    let (prompts, answers, pairs) = (store.prompts().unwrap(), store.candidates().unwrap(), store.pairs().unwrap());
    assert_eq!((prompts.len(), answers.len(), pairs.len()), (2, 4, 2));
    assert_eq!(prompts[1].messages, json!([{ "role": "user", "content": "Question 1?" }]));
    assert_eq!((answers[3].prompt, answers[3].source.as_str(), answers[3].tokens), (prompts[1].id, "two", Some(5)));
    assert_eq!((pairs[0].a, pairs[0].b, pairs[0].overlap), (answers[0].id, answers[1].id, 2));
    let judge = store.annotator("m", AnnotatorKind::Judge, &json!({ "model": "x" })).unwrap();
    let new = NewVote {
        strength: Some(2),
        swapped: true,
        seconds: Some(1.5),
        note: Some("'; DROP TABLE votes; -- ü🙂".into()),
        flagged: true,
        ratings: serde_json::from_value(json!({ "kind": { "a": 1, "b": 5 } })).unwrap(),
        edited: Some("better".into()),
        detail: json!({ "scores": [0.25, 1.0] }),
        request: Some("r1".into()),
        ..NewVote::new(pairs[0].id, judge.id, VoteChoice::B)
    };
    let kept = store.add_vote(&new).unwrap();
    assert_eq!(store.votes().unwrap(), std::slice::from_ref(&kept));
    let read =
        (kept.choice, kept.strength, kept.swapped, kept.seconds, kept.note, kept.flagged, kept.edited, kept.undone);
    let given = (VoteChoice::B, Some(2), true, Some(1.5), new.note, true, new.edited, false);
    assert_eq!(read, given);
    assert_eq!((kept.ratings, kept.detail), (new.ratings, new.detail));
    assert!(kept.created.ends_with('Z') && kept.created.contains('T'), "{}", kept.created);
    store.set_annotator(judge.id, Some("hash"), &json!({ "admin": true })).unwrap();
    let all = store.annotators().unwrap();
    assert!(all[0].is_admin() && all[0].token_hash.as_deref() == Some("hash"));
    let e = error(store.annotator("m", AnnotatorKind::Person, &json!({})));
    assert!(e.message().contains("is a judge"), "{e}");
}

fn what_is_known_is_added_once(place: &str) {
    let store = project(place, 3, 1);
    fill(&store, 4, 1);
    assert_eq!((store.prompts().unwrap().len(), store.candidates().unwrap().len()), (4, 8));
    let pairs = store.pairs().unwrap();
    assert_eq!((pairs.len(), store.pair_count().unwrap()), (4, 4));
    // The same answers in the other order are the same pair. A repeat is another pair, added once.
    let first = &pairs[0];
    let turned =
        NewPair { prompt: first.prompt, a: first.b, b: first.a, overlap: 1, repeat_of: None, reason: String::new() };
    let repeat = NewPair { repeat_of: Some(first.id), ..turned.clone() };
    let added = store.add_pairs(&[turned, repeat.clone(), repeat]).unwrap();
    assert_eq!(added, InsertCounts { new: 1, known: 2 });
    let same = NewPrompt { key: "p0".into(), messages: json!([]), columns: Default::default() };
    assert_eq!(store.add_prompts(&[same]).unwrap(), InsertCounts { new: 0, known: 1 });
    assert_eq!(store.prompts().unwrap()[0].messages, json!([{ "role": "user", "content": "Question 0?" }]));
}

fn answers_of_another_prompt_are_no_pair(place: &str) {
    let store = project(place, 2, 1);
    let answers = store.candidates().unwrap();
    let cross = NewPair {
        prompt: answers[0].prompt,
        a: answers[0].id,
        b: answers[2].id,
        overlap: 1,
        repeat_of: None,
        reason: String::new(),
    };
    assert!(store.add_pairs(&[cross]).is_err());
    let ghost = NewCandidate { prompt: 999, source: "s".into(), text: "t".into(), tokens: None };
    assert!(store.add_candidates(&[ghost]).is_err());
    assert_eq!((store.pairs().unwrap().len(), store.candidates().unwrap().len()), (2, 4));
}

fn a_vote_is_given_once_and_taken_back(place: &str) {
    let store = project(place, 1, 1);
    let (pair, who) =
        (store.pairs().unwrap()[0].id, store.annotator("ann", AnnotatorKind::Person, &json!({})).unwrap().id);
    let vote = |choice, request: &str| NewVote { request: Some(request.into()), ..NewVote::new(pair, who, choice) };
    let first = store.add_vote(&vote(VoteChoice::A, "r1")).unwrap();
    assert_eq!(store.add_vote(&vote(VoteChoice::A, "r1")).unwrap(), first);
    assert!(error(store.add_vote(&vote(VoteChoice::B, "r2"))).message().contains("already"));
    assert_eq!(store.add_votes(&[vote(VoteChoice::B, "r3")]).unwrap(), InsertCounts { new: 0, known: 1 });
    let undone = store.write(|w| w.undo(who, first.id)).unwrap().unwrap();
    assert!(undone.undone && store.votes().unwrap().is_empty());
    assert_eq!(store.write(|w| w.undo(who, first.id)).unwrap(), None);
    // An old request that is sent again does not restore the undone vote.
    assert!(
        matches!(store.write(|w| w.vote(&vote(VoteChoice::A, "r1"))).unwrap(), VoteInsertion::Repeated(v) if v.undone)
    );
    store.add_vote(&vote(VoteChoice::B, "r4")).unwrap();
    assert_eq!(store.votes_and_undone().unwrap().len(), 2);
}

fn a_failed_transaction_leaves_nothing(place: &str) {
    let store = project(place, 1, 1);
    let (pair, who) =
        (store.pairs().unwrap()[0].id, store.annotator("ann", AnnotatorKind::Person, &json!({})).unwrap().id);
    let failed: ft::error::Result<()> = store.write(|w| {
        w.vote(&NewVote::new(pair, who, VoteChoice::A))?;
        w.lease(&Lease { pair, annotator: who, swapped: false, since: 1 })?;
        w.vote(&NewVote::new(pair + 999, who, VoteChoice::A)).map(drop)
    });
    assert!(failed.is_err());
    store.recover().unwrap();
    assert!(store.votes().unwrap().is_empty() && store.leases().unwrap().is_empty());
    let lease = Lease { pair, annotator: who, swapped: true, since: 2 };
    store.write(|w| w.lease(&Lease { swapped: false, ..lease }).and_then(|()| w.lease(&lease))).unwrap();
    assert_eq!(store.leases().unwrap(), [lease]);
    store.write(|w| w.delete_lease(who)).unwrap();
    assert!(store.leases().unwrap().is_empty());
}

fn ballot(task: i64, choice: SideChoice, request: &str) -> ScreenVote {
    let text = json!({ "task": task, "choice": choice, "request": request });
    serde_json::from_value(text).unwrap()
}

fn the_desk_keeps_what_it_acknowledges(place: &str) {
    let store = project(place, 3, 1);
    let [ann, bob] = ["ann", "bob"].map(|name| store.annotator(name, AnnotatorKind::Person, &json!({})).unwrap().id);
    drop(store);
    let (desk, clerk) = Desk::open(Store::open(place).unwrap()).unwrap();
    let task = |turn: Result<ft::label::people::request::DeskResponse, DeskError>| turn.unwrap().task.unwrap().id;
    let first = task(desk.ask_and_wait(ann, DeskRequest::Next));
    let other = task(desk.ask_and_wait(bob, DeskRequest::Next));
    assert_ne!(first, other);
    // A task of another annotator is refused.
    let refused = desk.ask_and_wait(bob, DeskRequest::Vote(ballot(first, SideChoice::Left, "x")));
    assert_eq!(refused, Err(DeskError::Refused(TaskRefusal::NotYours)));
    let second = task(desk.ask_and_wait(ann, DeskRequest::Vote(ballot(first, SideChoice::Left, "v1"))));
    // The same request again stores no second vote and returns the same next task.
    assert_eq!(task(desk.ask_and_wait(ann, DeskRequest::Vote(ballot(first, SideChoice::Left, "v1")))), second);
    let read = Store::open(place).unwrap();
    let kept = read.votes().unwrap();
    assert_eq!((kept.len(), kept[0].annotator), (1, ann));
    assert_eq!((kept[0].choice == VoteChoice::A), !kept[0].swapped, "left must be `a` unless the sides were swapped");
    let back = desk.ask_and_wait(ann, DeskRequest::Undo).unwrap().task.unwrap();
    assert_eq!((back.id, back.before.unwrap().choice), (first, SideChoice::Left));
    assert!(read.votes().unwrap().is_empty());
    desk.ask_and_wait(ann, DeskRequest::Vote(ballot(first, SideChoice::Tie, "v2"))).unwrap();
    // A new desk continues after a restart: every annotator still has the same task.
    drop(desk);
    clerk.join().unwrap();
    let (desk, _) = Desk::open(Store::open(place).unwrap()).unwrap();
    assert_eq!(task(desk.ask_and_wait(bob, DeskRequest::Next)), other);
    assert_eq!(task(desk.ask_and_wait(ann, DeskRequest::Next)), second);
    let done = desk.ask_and_wait(ann, DeskRequest::Vote(ballot(second, SideChoice::Right, "v3"))).unwrap();
    assert!(done.task.is_none() && done.wait, "bob should have the last task");
}

fn a_second_server_is_refused(place: &str) {
    let store = project(place, 1, 1);
    store.lock_for_serving().unwrap();
    let second = Store::open(place).unwrap();
    let e = error(second.lock_for_serving());
    assert!(e.message().contains("being served already") && !e.hints().is_empty(), "{e}");
    assert!(!e.to_string().contains("secret"), "{e}");
    // Other processes may still read the project and add to it.
    assert_eq!(second.pairs().unwrap().len(), 1);
    drop(store);
    let began = std::time::Instant::now();
    while second.lock_for_serving().is_err() {
        assert!(began.elapsed().as_secs() < 10, "the project was not released within 10 seconds");
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
}

fn a_newer_project_is_refused(place: &str) {
    drop(project(place, 1, 1));
    let sql = "UPDATE meta SET value = '99' WHERE key = 'version'";
    match place.starts_with("postgres") {
        true => {
            let mut client = postgres::Client::connect(place, postgres::NoTls).unwrap();
            client.batch_execute(&sql.replace("meta", "ft_label.meta")).unwrap();
        }
        false => rusqlite::Connection::open(place).unwrap().execute_batch(sql).unwrap(),
    }
    let e = error(Store::open(place));
    assert!(e.message().contains("version 99") && e.hints()[0].contains("newer"), "{e}");
    assert!(!e.to_string().contains("secret"), "{e}");
}

fn text_that_a_database_cannot_hold_is_refused(place: &str) {
    let store = project(place, 1, 1);
    let prompt = store.prompts().unwrap()[0].id;
    let nul = NewCandidate { prompt, source: "s".into(), text: "a\0b".into(), tokens: None };
    assert!(error(store.add_candidates(&[nul])).message().contains("NUL"));
    assert_eq!(store.candidates().unwrap().len(), 2);
}

fn bad_urls_are_named_without_their_password(server: &Postgres) {
    for (url, said) in [
        (server.url("nowhere"), "nowhere"),
        ("postgres://ft:secret@127.0.0.1:1/x".into(), "127.0.0.1:1"),
        ("postgres://ft:secret@host:port/x".into(), "cannot be read"),
        (format!("{}?sslmode=require", server.url("postgres")), "TLS"),
        (server.database(), "no labelling project"),
    ] {
        let e = error(Store::open(&url));
        assert!(e.to_string().contains(said) && !e.to_string().contains("secret"), "{e}");
        assert!(!e.hints().is_empty(), "{e}");
    }
}

// ---- files

/// Answers and votes are private: other users of the machine must not be able to read them.
#[test]
fn files_of_a_project_are_for_their_owner_alone() {
    use std::os::unix::fs::{PermissionsExt, symlink};
    let made = Project::new(2, 1);
    let store = made.store();
    store.lock_for_serving().unwrap();
    let ann = store.annotator("ann", AnnotatorKind::Person, &json!({})).unwrap();
    for pair in store.pairs().unwrap() {
        store.add_vote(&NewVote::new(pair.id, ann.id, VoteChoice::A)).unwrap();
    }
    let at = |name: &str| made.folder().join(name);
    for out in ["rows.jsonl", "rows.parquet"] {
        // A file that already exists and is readable by others must become private, too.
        std::fs::write(at(out), "").unwrap();
        let out = at(out);
        let done = ft(&["label", "export", &made.place, "--out", out.to_str().unwrap()]).output().unwrap();
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    }
    let mut seen = Vec::new();
    for entry in std::fs::read_dir(made.folder()).unwrap() {
        let entry = entry.unwrap();
        let mode = entry.metadata().unwrap().permissions().mode() & 0o777;
        assert_eq!(mode, 0o600, "{:?} has {mode:o}", entry.file_name());
        seen.push(entry.file_name().to_string_lossy().into_owned());
    }
    for name in ["project.db", "project.db-wal", "project.db.lock", "rows.jsonl", "rows.parquet"] {
        assert!(seen.iter().any(|s| s == name), "{name} in {seen:?}");
    }
    // A symbolic link in place of the lock file is not followed: its target would be truncated.
    std::fs::write(at("mine.txt"), "mine").unwrap();
    let other = at("other.db").to_str().unwrap().to_string();
    drop(Store::create(&other, &ProjectSettings::default()).unwrap());
    symlink(at("mine.txt"), at("other.db.lock")).unwrap();
    assert!(Store::open(&other).unwrap().lock_for_serving().is_err());
    assert_eq!(std::fs::read_to_string(at("mine.txt")).unwrap(), "mine");
}

#[test]
fn a_file_that_is_no_project_or_is_damaged_is_named() {
    let project = Project::new(400, 1);
    let at = |name: &str| project.folder().join(name).to_str().unwrap().to_string();
    let refused = |place: &str, said: &str| {
        let e = error(Store::open(place).and_then(|s| s.lock_for_serving()));
        assert!(e.message().contains(said) && e.message().contains(place) && !e.hints().is_empty(), "{said}: {e}");
    };
    std::fs::write(at("text.db"), "these are no pages of a database, but words, long enough for a header").unwrap();
    refused(&at("text.db"), "is not a labelling project");
    rusqlite::Connection::open(at("other.db")).unwrap().execute_batch("CREATE TABLE t (x)").unwrap();
    refused(&at("other.db"), "holds no labelling project");
    refused(&at("none.db"), "no such project");
    refused(project.folder().to_str().unwrap(), "is not a file");
    // A file damaged in the middle, and a truncated one.
    let whole = std::fs::read(&project.place).unwrap();
    let mut damaged = whole.clone();
    let middle = whole.len() / 2 / 4096 * 4096;
    damaged[middle..middle + 4096].fill(0x5a);
    std::fs::write(at("damaged.db"), damaged).unwrap();
    refused(&at("damaged.db"), "damaged");
    std::fs::write(at("cut.db"), &whole[..whole.len() / 2]).unwrap();
    refused(&at("cut.db"), "damaged");
}

#[test]
fn a_full_disk_refuses_votes_and_loses_none() {
    let project = Project::new(200, 1);
    let token = project.token("ann", false);
    // A limit on the size of files stands in for a full disk: the write-ahead log can grow by at most 40 KiB.
    let size = |end: &str| std::fs::metadata(format!("{}{end}", project.place)).map_or(0, |m| m.len());
    let kilobytes = size("").max(size("-wal")) / 1024 + 40;
    let line =
        format!("trap '' XFSZ; ulimit -f {kilobytes}; exec {FT} label serve {} --address 127.0.0.1:0", project.place);
    let mut command = std::process::Command::new("bash");
    command.args(["-c", &line]).env("USER", "owner");
    let mut server = Server::of(command);
    let client = server.client(&token);
    let (mut kept, mut refusal) = (Vec::new(), None);
    let note = "x".repeat(2000);
    for i in 0..200 {
        let (status, said) = client.ask("next", json!({}));
        if status != 200 {
            refusal = Some((status, said));
            break;
        }
        let task = said["task"]["id"].as_i64().unwrap();
        let vote = json!({ "task": task, "choice": "left", "note": note, "request": format!("r{i}") });
        let (status, said) = client.ask("vote", vote);
        if status != 200 {
            refusal = Some((status, said));
            break;
        }
        kept.push(task);
    }
    let (status, said) = refusal.expect("the file size limit was never reached");
    assert_eq!((status, &said["again"]), (503, &json!(true)), "{said}");
    let what = said["error"].as_str().unwrap();
    assert!(what.starts_with("not saved") && what.contains("disk") && !what.contains(&project.place), "{what}");
    server.kill();
    let votes: Vec<i64> = project.store().votes().unwrap().iter().map(|v| v.pair).collect();
    assert!(!kept.is_empty());
    assert_eq!(votes, kept, "the stored votes are not the acknowledged ones");
}

#[test]
fn two_servers_on_one_project() {
    let project = Project::new(1, 1);
    let _first = Server::start(&project.place);
    let output = ft(&["label", "serve", &project.place, "--address", "127.0.0.1:0"]).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("being served already") && said.contains("process"), "{said}");
    assert!(Path::new(&format!("{}.lock", project.place)).exists());
}
