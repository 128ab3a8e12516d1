//! Tests the labelling server over HTTP: who may send requests, what is refused, and that votes of others are
//! protected.

use crate::support::labeling::*;
use ft::label::record::settings::{Criterion, ProjectSettings};
use ft::label::record::vote::VoteChoice;
use serde_json::{Value, json};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

/// Sends `request` as it is, and returns the status code and the whole response.
fn raw(server: &Server, request: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(server.host()).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    stream.write_all(request.as_bytes()).unwrap();
    let mut reply = String::new();
    let _ = stream.read_to_string(&mut reply);
    let status = reply.split(' ').nth(1).and_then(|s| s.parse().ok()).unwrap_or(0);
    (status, reply)
}

fn post(server: &Server, path: &str, heads: &[&str], body: &str) -> (u16, String) {
    let heads: String = heads.iter().map(|h| format!("{h}\r\n")).collect();
    let length = body.len();
    raw(server, &format!("POST {path} HTTP/1.1\r\n{heads}Content-Length: {length}\r\nConnection: close\r\n\r\n{body}"))
}

#[test]
fn only_requests_of_the_own_page_with_a_token_are_accepted() {
    let project = Project::new(3, 1);
    let ann = project.token("ann", false);
    let server = Server::start(&project.place);
    let (host, json) = (format!("Host: {}", server.host()), "Content-Type: application/json");
    let bearer = format!("Authorization: Bearer {ann}");
    let ask = |heads: &[&str]| post(&server, "/api/next", heads, "{}").0;
    assert_eq!(ask(&[&host, json, &bearer]), 200);
    assert_eq!(ask(&[&host, json, &bearer, &format!("Origin: {}", server.url)]), 200);
    for (heads, status) in [
        (vec![&host[..], json], 401),
        (vec![&host, json, "Authorization: Bearer wrong"], 401),
        (vec![&host, json, "Authorization: Basic YTpi"], 401),
        (vec![&host, json, "Cookie: token=x"], 401),
        (vec!["Host: evil.example", json, &bearer], 421),
        (vec!["Host: evil.example:80", json, &bearer], 421),
        (vec![json, &bearer], 421),
        (vec![&host, json, &bearer, "Origin: http://evil.example"], 421),
        (vec![&host, json, &bearer, "Origin: null"], 421),
        (vec![&host, json, &bearer, "Sec-Fetch-Site: cross-site"], 421),
        // The content types that a form on another site can send.
        (vec![&host, "Content-Type: text/plain", &bearer], 415),
        (vec![&host, "Content-Type: application/x-www-form-urlencoded", &bearer], 415),
    ] {
        assert_eq!(ask(&heads), status, "{heads:?}");
    }
    let page = |path: &str| raw(&server, &format!("GET {path} HTTP/1.1\r\n{host}\r\nConnection: close\r\n\r\n"));
    for path in ["/", "/page.js", "/page.css", "/icon.svg"] {
        let (status, reply) = page(path);
        assert_eq!(status, 200, "{path}");
        let head = reply.split("\r\n\r\n").next().unwrap().to_lowercase();
        for kept in ["content-security-policy: default-src 'none'", "nosniff", "no-referrer", "frame-ancestors 'none'"]
        {
            assert!(head.contains(kept), "{path}: {kept} in {head}");
        }
        assert!(!head.contains("unsafe") && !head.contains("set-cookie") && !head.contains("access-control"), "{head}");
    }
    assert_eq!(page("/api/next").0, 401, "the API must need a token");
    assert_eq!(page("/../Cargo.toml").0, 404);
    assert_eq!(
        raw(
            &server,
            &format!(
                "OPTIONS /api/vote HTTP/1.1\r\n{host}\r\nOrigin: http://evil.example\r\nConnection: close\r\n\r\n"
            )
        )
        .0,
        421
    );
    assert_eq!(raw(&server, "these are no words of HTTP\r\n\r\n").0, 400);
    // Tokens must be neither in the output nor in a file of the project.
    let owner = server.token.clone();
    let said = server.end();
    assert!(!said.contains(&ann) && !said.contains(&owner), "{said}");
    for file in std::fs::read_dir(project.folder()).unwrap().flatten() {
        let bytes = std::fs::read(file.path()).unwrap();
        assert!(!bytes.windows(ann.len()).any(|w| w == ann.as_bytes()), "{:?}", file.path());
    }
}

#[test]
fn sizes_rates_and_shapes_are_limited() {
    let project = Project::new(3, 1);
    let ann = project.token("ann", false);
    let server = Server::start(&project.place);
    let client = server.client(&ann);
    let task = client.task().unwrap();
    let vote = |more: Value| {
        let mut body = json!({ "task": task, "choice": "left", "request": "r" });
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        client.ask("vote", body)
    };
    for (more, said) in [
        (json!({ "choice": "a" }), "variant"),
        (json!({ "choice": 1 }), "request"),
        (json!({ "annotator": 1 }), "unknown field"),
        (json!({ "task": "1; DROP TABLE votes" }), "invalid type"),
        (json!({ "request": "" }), "request"),
        (json!({ "request": "x".repeat(65) }), "request"),
        (json!({ "strength": 2 }), "does not ask"),
        (json!({ "ratings": { "kind": { "left": 1 } } }), "no criterion"),
        (json!({ "note": "a\0b" }), "NUL"),
    ] {
        let (status, reply) = vote(more.clone());
        assert_eq!(status, 400, "{more}: {reply}");
        assert!(reply["error"].as_str().unwrap().contains(said), "{more}: {reply}");
    }
    assert_eq!(vote(json!({ "note": "x".repeat(300 * 1024) })).0, 413);
    assert_eq!(client.ask("vote", json!([])).0, 400);
    assert_eq!(vote(json!({ "task": 999 })).0, 409);
    assert!(project.store().votes().unwrap().is_empty(), "a refused vote was stored");
    assert_eq!(vote(json!({})).0, 200);
    // If the server responds before it has read the body, it closes the connection and sends `connection: close`.
    let early = ureq::post(format!("{}/api/next", server.url)).config().http_status_as_error(false).build();
    let early = early.header("content-type", "application/json").send("{}").unwrap();
    assert_eq!((early.status().as_u16(), early.headers()["connection"].to_str().unwrap()), (401, "close"));
    let stranger = server.client("wrong");
    let statuses: Vec<u16> = (0..30).map(|_| stranger.ask("next", json!({})).0).collect();
    assert!(statuses.starts_with(&[401; 5]) && statuses.contains(&429), "{statuses:?}");
    let flood = || (0..150).any(|_| client.ask("keep", json!({})).0 == 429);
    let refused = std::thread::scope(|s| {
        let floods: Vec<_> = (0..8).map(|_| s.spawn(flood)).collect();
        floods.into_iter().any(|f| f.join().unwrap())
    });
    assert!(refused, "too many requests were not refused");
    assert_eq!(server.client(&server.token).ask("hello", json!({})).0, 200, "other annotators must still be served");
}

#[test]
fn nobody_reads_or_changes_the_votes_of_others() {
    let settings = ProjectSettings {
        strength: true,
        criteria: vec![Criterion { name: "kind".into(), best: 5 }],
        ..ProjectSettings::default()
    };
    let project = Project::with(4, 2, settings);
    let [ann, bob] = ["ann", "bob"].map(|name| project.token(name, false));
    let server = Server::start(&project.place);
    let [ann, bob, owner] = [&ann, &bob, &server.token].map(|token| server.client(token));
    let task = ann.task().unwrap();
    let full = json!({
        "task": task, "choice": "right", "strength": 3, "flagged": true, "note": "look", "edited": "my own words",
        "ratings": { "kind": { "left": 2, "right": 5 } }, "seconds": 0.01, "request": "a1",
    });
    ann.done("vote", full);
    // Bob's view of the same pair must not contain anything about Ann's vote.
    let shown = bob.done("next", json!({}));
    assert_eq!(shown["task"]["id"], task);
    for hidden in ["ann", "look", "own words", "one", "source"] {
        let text = json!([shown["task"]["prompt"], shown["task"]["before"], shown["progress"]]).to_string();
        assert!(!text.contains(hidden), "{hidden} in {text}");
    }
    assert_eq!(shown["progress"], json!({ "mine": 0, "given": 1, "wanted": 8 }));
    let (status, refused) = bob.ask("undo", json!({}));
    assert_eq!(status, 409, "Bob has no vote to undo");
    assert_eq!(refused["code"], "nothing_to_undo", "the page's script tells refusals apart by their code");
    assert_eq!(project.store().votes().unwrap().len(), 1);
    for admin in ["overview", "adjudicate"] {
        assert_eq!(bob.ask(admin, json!({ "pair": task, "choice": "a" })).0, 403, "{admin}");
    }
    assert_eq!(
        bob.ask("vote", json!({ "task": task, "choice": "tie", "request": "a1" })).0,
        200,
        "request ids must be separate for each annotator"
    );
    // Left and right are stored as the pair's answers a and b, and undo returns them as left and right.
    let votes = project.store().votes().unwrap();
    let (a, b) = if votes[0].swapped { (5, 2) } else { (2, 5) };
    assert_eq!(json!(votes[0].ratings), json!({ "kind": { "a": a, "b": b } }));
    assert_eq!(votes[0].choice, if votes[0].swapped { VoteChoice::A } else { VoteChoice::B });
    let before = &ann.done("undo", json!({}))["task"]["before"];
    assert_eq!(before["ratings"], json!({ "kind": { "left": 2, "right": 5 } }));
    assert_eq!((&before["choice"], &before["note"], &before["strength"]), (&json!("right"), &json!("look"), &json!(3)));
    ann.done("vote", json!({ "task": task, "choice": "left", "request": "a2" }));
    // The admin sees the disagreement and decides. The last decision is stored in addition to the votes.
    let view = owner.done("overview", json!({}));
    assert_eq!(view["open"][0]["pair"], task);
    assert_eq!(view["agreement"], json!({ "part": 0, "of": 1 }));
    owner.done("adjudicate", json!({ "pair": task, "choice": "b" }));
    owner.done("adjudicate", json!({ "pair": task, "choice": "a" }));
    let view = owner.done("overview", json!({}));
    assert_eq!((&view["adjudicated"], &view["open"]), (&json!(1), &json!([])));
    let finals: Vec<VoteChoice> =
        project.store().votes().unwrap().iter().filter(|v| v.adjudicates()).map(|v| v.choice).collect();
    assert_eq!(finals, [VoteChoice::A]);
}

#[test]
fn repeated_requests_and_restarts_store_one_vote() {
    let project = Project::new(3, 1);
    let token = project.token("ann", false);
    let mut server = Server::start(&project.place);
    let client = server.client(&token);
    let task = client.task().unwrap();
    let (_, first) = client.vote(task, "left", "r1");
    let (status, again) = client.vote(task, "left", "r1");
    assert_eq!((status, &again["task"]["id"]), (200, &first["task"]["id"]));
    assert_eq!(client.vote(task, "right", "r2").0, 409, "a second request for the same task must be refused");
    // Of many simultaneous requests, one vote is stored.
    let task = client.task().unwrap();
    let statuses: Vec<u16> = std::thread::scope(|s| {
        let ask = |_| s.spawn(|| client.vote(task, "tie", "r3").0);
        (0..8).map(ask).collect::<Vec<_>>().into_iter().map(|t| t.join().unwrap()).collect()
    });
    assert_eq!(statuses, [200; 8]);
    server.kill();
    assert_eq!(project.store().votes().unwrap().len(), 2);
    let server = Server::start(&project.place);
    let client = server.client(&token);
    assert_eq!(client.vote(task, "tie", "r3").0, 200, "the same request must be accepted after a crash");
    assert_eq!(project.store().votes().unwrap().len(), 2);
    let last = client.task().unwrap();
    let (_, done) = client.vote(last, "both_bad", "r4");
    assert_eq!((&done["task"], &done["wait"], &done["progress"]["given"]), (&Value::Null, &json!(false), &json!(3)));
}

#[test]
fn tokens_are_revoked_and_pairs_added_while_the_server_runs() {
    let project = Project::new(1, 1);
    let token = project.token("ann", false);
    let server = Server::start(&project.place);
    let client = server.client(&token);
    let task = client.task().unwrap();
    client.vote(task, "left", "r1");
    assert_eq!(client.task(), None);
    fill(&project.store(), 2, 1);
    let later = project.token("later", true);
    let until = |what: &str, test: &dyn Fn() -> bool| {
        let began = std::time::Instant::now();
        while !test() {
            assert!(began.elapsed() < Duration::from_secs(15), "{what}");
            std::thread::sleep(Duration::from_millis(200));
        }
    };
    until("new pairs are shown", &|| client.task().is_some());
    until("a new token signs in", &|| server.client(&later).ask("overview", json!({})).0 == 200);
    assert!(ft(&["label", "annotator", &project.place, "ann", "--revoke"]).status().unwrap().success());
    until("a token that was taken away is refused", &|| client.ask("next", json!({})).0 == 401);
    let list = ft(&["label", "annotator", &project.place, "--json"]).output().unwrap();
    let list: Value = serde_json::from_slice(&list.stdout).unwrap();
    let ann = list.as_array().unwrap().iter().find(|a| a["name"] == "ann").unwrap();
    assert_eq!((&ann["link"], &ann["votes"]), (&json!(false), &json!(1)));
}

#[test]
fn addresses_that_cannot_be_served_are_named() {
    let project = Project::new(1, 1);
    let refused = |arguments: &[&str], said: &str| {
        let output = ft(&["label", "serve", &project.place]).args(arguments).output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{arguments:?}: {stderr}");
        assert!(stderr.contains(said) && stderr.contains("hint:"), "{arguments:?}: {stderr}");
    };
    refused(&["--address", "0.0.0.0:0"], "needs the name people will use");
    refused(&["--address", "127.0.0.1:0", "--public", "label.example.org"], "--public");
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    refused(&["--address", &taken.local_addr().unwrap().to_string()], "listening at");
    // Behind a proxy the server accepts the proxy's host name and prints links with it.
    let mut command =
        ft(&["label", "serve", &project.place, "--address", "127.0.0.1:0", "--public", "https://label.example.org"]);
    command.env("USER", "owner");
    let server = Server::of(command);
    assert_eq!(server.url, "https://label.example.org");
}
