//! Load tests of the labelling server: many annotators at once, and a server that is killed while they vote. Responses
//! must be fast, and no vote may be lost or stored twice.

use crate::support::labeling::*;
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// Votes that the server acknowledged, as (annotator, pair).
type Kept = Mutex<Vec<(usize, i64)>>;

/// Votes until no task is left or `stop` is set, with a `pause` before each vote. Returns the response time of each
/// vote.
fn work(client: &Client, who: usize, kept: &Kept, stop: &AtomicBool, pause: Duration) -> Vec<Duration> {
    let (mut times, mut turn, mut n) = (Vec::new(), None, 0);
    while !stop.load(Ordering::Relaxed) {
        let Some(task) = turn.take() else {
            match client.try_ask("next", &json!({})) {
                Ok((200, said)) if said["task"].is_null() && said["wait"] == false => break,
                Ok((200, said)) => turn = said["task"]["id"].as_i64(),
                Ok((401, said)) => panic!("{said}"),
                _ => {}
            }
            if turn.is_none() {
                std::thread::sleep(Duration::from_millis(20));
            }
            continue;
        };
        n += 1;
        let choice = ["left", "right", "tie", "both_bad"][n % 4];
        let vote =
            json!({ "task": task, "choice": choice, "request": format!("{who} {n} {task}"), "note": "a few words" });
        std::thread::sleep(pause);
        // A vote without a response is sent again, as the page does.
        loop {
            let began = Instant::now();
            match client.try_ask("vote", &vote) {
                Ok((200, said)) => {
                    times.push(began.elapsed());
                    kept.lock().unwrap().push((who, task));
                    turn = said["task"]["id"].as_i64();
                    break;
                }
                // The lease was lost in a restart, or the vote came too fast.
                Ok((409, _)) => break,
                _ if stop.load(Ordering::Relaxed) => break,
                _ => std::thread::sleep(Duration::from_millis(20)),
            }
        }
    }
    times
}

/// Checks that every acknowledged vote is stored once and that no pair has more than `overlap` votes. With `exactly`,
/// nothing else may be stored. Returns the number of stored votes.
fn nothing_lost_or_doubled(project: &Project, kept: &Kept, overlap: usize, exactly: bool) -> usize {
    let votes = project.store().votes_and_undone().unwrap();
    let mut by_pair: BTreeMap<i64, usize> = BTreeMap::new();
    let mut given: BTreeSet<(String, i64)> = BTreeSet::new();
    let names: BTreeMap<i64, String> =
        project.store().annotators().unwrap().into_iter().map(|a| (a.id, a.name)).collect();
    for vote in &votes {
        *by_pair.entry(vote.pair).or_default() += 1;
        assert!(given.insert((names[&vote.annotator].clone(), vote.pair)), "{vote:?} is stored twice");
    }
    assert!(by_pair.values().all(|n| *n <= overlap), "more votes than the overlap");
    let kept = kept.lock().unwrap();
    for (who, pair) in kept.iter() {
        assert!(
            given.contains(&(format!("p{who}"), *pair)),
            "the vote of p{who} on {pair} was acknowledged but is not stored"
        );
    }
    if exactly {
        assert_eq!(votes.len(), kept.len());
    }
    votes.len()
}

/// Lets `people` judge `pairs` with this overlap and returns the 99th percentile of the response times of votes.
fn load(people: usize, pairs: usize, overlap: usize, pause: Duration) -> Duration {
    let project = Project::new(pairs, overlap as i64);
    let tokens: Vec<String> = (0..people).map(|i| project.token(&format!("p{i}"), false)).collect();
    let server = Server::start(&project.place);
    let (kept, stop, began) = (Kept::default(), AtomicBool::new(false), Instant::now());
    let mut times: Vec<Duration> = std::thread::scope(|s| {
        let one = |(who, token): (usize, &String)| {
            let (client, kept, stop) = (server.client(token), &kept, &stop);
            s.spawn(move || work(&client, who, kept, stop, pause))
        };
        tokens.iter().enumerate().map(one).collect::<Vec<_>>().into_iter().flat_map(|t| t.join().unwrap()).collect()
    });
    let took = began.elapsed();
    let n = nothing_lost_or_doubled(&project, &kept, overlap, true);
    assert_eq!(n, pairs * overlap, "some pairs have fewer votes than the overlap");
    times.sort();
    let at = |share: f64| times[((times.len() - 1) as f64 * share) as usize];
    println!(
        "{people} people, {n} votes in {:.1} s ({:.0}/s): median {:?}, p99 {:?}, longest {:?}",
        took.as_secs_f64(),
        n as f64 / took.as_secs_f64(),
        at(0.5),
        at(0.99),
        at(1.0)
    );
    at(0.99)
}

#[test]
fn twelve_people_judge_everything_once() {
    load(12, 300, 2, Duration::ZERO);
}

/// Each annotator votes about ten times a second, far faster than a person. The clients of these 500 votes a second run
/// on the same cores as the server. `cargo test --release --test all label::load -- --ignored --nocapture`
#[test]
#[ignore = "a minute of load on the whole machine"]
fn fifty_people_and_twenty_thousand_votes() {
    let p99 = load(50, 10_000, 2, Duration::from_millis(80));
    assert!(p99 < Duration::from_millis(50), "p99 {p99:?}");
}

/// Kills the server `times` times at random moments while `people` vote, and checks the stored votes.
fn killed(times: usize, people: usize) {
    let project = Project::new(4000, 2);
    let tokens: Vec<String> = (0..people).map(|i| project.token(&format!("p{i}"), false)).collect();
    let mut server = Server::start(&project.place);
    let address = server.host().to_string();
    let (kept, stop) = (Kept::default(), AtomicBool::new(false));
    let lost_on_the_way = AtomicUsize::new(0);
    std::thread::scope(|s| {
        for (who, token) in tokens.iter().enumerate() {
            let (client, kept, stop) = (server.client(token), &kept, &stop);
            s.spawn(move || work(&client, who, kept, stop, Duration::ZERO));
        }
        for round in 0..times {
            let wait = 60 + ft::rng::derived_seed(round as u64, "tests: kill", 0) % 500;
            std::thread::sleep(Duration::from_millis(wait));
            server.kill();
            let before = kept.lock().unwrap().len();
            let there = project.store().votes().unwrap().len();
            // A vote can be stored although its response was cut off, but not the other way round.
            assert!(there >= before, "round {round}: {before} acknowledged, only {there} stored");
            lost_on_the_way.fetch_add(there - before, Ordering::Relaxed);
            server = Server::of(ft(&["label", "serve", &project.place, "--address", &address]));
        }
        std::thread::sleep(Duration::from_millis(300));
        stop.store(true, Ordering::Relaxed);
    });
    server.kill();
    let n = nothing_lost_or_doubled(&project, &kept, 2, false);
    let acknowledged = kept.lock().unwrap().len();
    println!("{times} kills: {acknowledged} votes acknowledged, {n} stored, {lost_on_the_way:?} answers cut off");
    assert!(acknowledged > times, "too few votes were given between the kills");
}

#[test]
fn a_killed_server_loses_no_vote() {
    killed(3, 6);
}

/// `cargo test --release --test all label::load -- --ignored --nocapture`
#[test]
#[ignore = "half a minute of load on the whole machine"]
fn twenty_kills_lose_no_vote() {
    killed(20, 12);
}
