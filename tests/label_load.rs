//! Many people at once, and a server that is killed while they judge: fast, and nothing lost or doubled.

use crate::label_support::*;
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// Votes that the server acknowledged: person, pair.
type Kept = Mutex<Vec<(usize, i64)>>;

/// Judges until there is nothing left or `stop`, with a `pause` before each vote; gives the times of the votes.
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
        // A vote without an answer is sent again, as the page does.
        loop {
            let began = Instant::now();
            match client.try_ask("vote", &vote) {
                Ok((200, said)) => {
                    times.push(began.elapsed());
                    kept.lock().unwrap().push((who, task));
                    turn = said["task"]["id"].as_i64();
                    break;
                }
                // Lost its lease over a restart, or too fast.
                Ok((409, _)) => break,
                _ if stop.load(Ordering::Relaxed) => break,
                _ => std::thread::sleep(Duration::from_millis(20)),
            }
        }
    }
    times
}

/// The votes of the project are those that were acknowledged, each once, and none beyond the overlap.
fn nothing_lost_or_doubled(project: &Project, kept: &Kept, overlap: usize, exactly: bool) -> usize {
    let votes = project.store().votes_and_undone().unwrap();
    let mut by_pair: BTreeMap<i64, usize> = BTreeMap::new();
    let mut given: BTreeSet<(String, i64)> = BTreeSet::new();
    let names: BTreeMap<i64, String> =
        project.store().annotators().unwrap().into_iter().map(|a| (a.id, a.name)).collect();
    for vote in &votes {
        *by_pair.entry(vote.pair).or_default() += 1;
        assert!(given.insert((names[&vote.annotator].clone(), vote.pair)), "{vote:?} is there twice");
    }
    assert!(by_pair.values().all(|n| *n <= overlap), "more votes than the overlap");
    let kept = kept.lock().unwrap();
    for (who, pair) in kept.iter() {
        assert!(
            given.contains(&(format!("p{who}"), *pair)),
            "the vote of p{who} on {pair} was acknowledged and is lost"
        );
    }
    if exactly {
        assert_eq!(votes.len(), kept.len());
    }
    votes.len()
}

/// `people` judge `pairs` with this overlap; the 99th percentile of a vote.
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
    assert_eq!(n, pairs * overlap, "everything is judged as often as asked");
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

/// Each person votes about ten times a second, far faster than hands, and all 500 votes a second share two cores with
/// the people. `cargo test --release --test all label_load -- --ignored --nocapture`
#[test]
#[ignore = "a minute of load on the whole machine"]
fn fifty_people_and_twenty_thousand_votes() {
    let p99 = load(50, 10_000, 2, Duration::from_millis(80));
    assert!(p99 < Duration::from_millis(50), "p99 {p99:?}");
}

/// Kills the server `times` times at random moments while people judge.
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
            let wait = 60 + ft::rng::number(round as u64, "tests: kill", 0) % 500;
            std::thread::sleep(Duration::from_millis(wait));
            server.kill();
            let before = kept.lock().unwrap().len();
            let there = project.store().votes().unwrap().len();
            // Votes whose answer was under way are there and not acknowledged yet.
            assert!(there >= before, "round {round}: {before} acknowledged, {there} there");
            lost_on_the_way.fetch_add(there - before, Ordering::Relaxed);
            server = Server::of(ft(&["label", "serve", &project.place, "--address", &address]));
        }
        std::thread::sleep(Duration::from_millis(300));
        stop.store(true, Ordering::Relaxed);
    });
    server.kill();
    let n = nothing_lost_or_doubled(&project, &kept, 2, false);
    let acknowledged = kept.lock().unwrap().len();
    println!("{times} kills: {acknowledged} votes acknowledged, {n} there, {lost_on_the_way:?} answers cut off");
    assert!(acknowledged > times, "people judged all the while");
}

#[test]
fn a_killed_server_loses_no_vote() {
    killed(3, 6);
}

/// `cargo test --release --test all label_load -- --ignored --nocapture`
#[test]
#[ignore = "half a minute of load on the whole machine"]
fn twenty_kills_lose_no_vote() {
    killed(20, 12);
}
