//! Serves the files of the page and its API.
//!
//! Every API request is a POST with a token and JSON. A person sees their own task and the progress of the project;
//! only an admin sees the votes of others.

use super::State;
use super::guard::{Limit, Peer};
use super::people::Person;
use crate::error::Error;
use crate::label::desk::{self, Ask, No, Turn};
use crate::label::markdown;
use crate::label::overview;
use crate::label::record::Choice;
use crate::label::screen::{Ballot, Task};
use crate::label::session::Refusal;
use axum::Router;
use axum::body::{Body, Bytes, to_bytes};
use axum::extract::{Request, State as Shared};
use axum::http::{HeaderValue, StatusCode, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use serde::Deserialize;
use serde_json::{Value, json};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

/// Largest request in bytes: enough for a long answer that an annotator wrote.
const BODY: usize = 256 * 1024;
/// How long a request may take in total: to arrive and to be answered.
const WHOLE: Duration = Duration::from_secs(30);
/// Requests per second of one person, and the burst; far more than a person can cause by hand.
const RATE: (f64, f64) = (40.0, 80.0);
/// Wrong tokens per second from one address, and the burst.
const WRONG: (f64, f64) = (2.0, 20.0);

const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; \
                      base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// The shared state with the rate limits.
struct Desk {
    state: Arc<State>,
    people: Limit<i64>,
    strangers: Limit<IpAddr>,
}

type Api = Shared<Arc<Desk>>;

/// Builds the router with all routes and checks.
pub fn router(state: Arc<State>) -> Router {
    let desk = Arc::new(Desk { state, people: Limit::new(RATE.0, RATE.1), strangers: Limit::new(WRONG.0, WRONG.1) });
    let api = Router::new()
        .route("/api/hello", post(hello))
        .route("/api/next", post(async |d: Api, p: Who| turn(&d, p, Ask::Next).await))
        .route("/api/undo", post(async |d: Api, p: Who| turn(&d, p, Ask::Undo).await))
        .route("/api/keep", post(async |d: Api, p: Who| turn(&d, p, Ask::Keep).await))
        .route("/api/leave", post(async |d: Api, p: Who| turn(&d, p, Ask::Leave).await))
        .route("/api/vote", post(vote))
        .route("/api/overview", post(overview))
        .route("/api/adjudicate", post(adjudicate))
        .layer(from_fn_with_state(desk.clone(), sign_in));
    Router::new()
        .route("/", get(|| file("text/html; charset=utf-8", include_str!("../page/index.html"))))
        .route("/page.css", get(|| file("text/css; charset=utf-8", include_str!("../page/page.css"))))
        .route("/page.js", get(|| file("text/javascript; charset=utf-8", include_str!("../page/page.js"))))
        .route("/icon.svg", get(|| file("image/svg+xml", include_str!("../page/icon.svg"))))
        .merge(api)
        .fallback(|| async { Problem::new(StatusCode::NOT_FOUND, "there is nothing here") })
        .layer(from_fn_with_state(desk.clone(), guard))
        .with_state(desk)
}

async fn file(kind: &'static str, text: &'static str) -> Response {
    ([(header::CONTENT_TYPE, kind)], text).into_response()
}

/// Wraps every request: checks host and origin, limits the time, and adds the security headers to the response.
async fn guard(Shared(desk): Api, request: Request, next: Next) -> Response {
    let mut response = match desk.state.hosts.check(request.headers()) {
        Err(why) => ending(Problem::new(StatusCode::MISDIRECTED_REQUEST, why)),
        Ok(()) => match tokio::time::timeout(WHOLE, next.run(request)).await {
            Ok(response) => response,
            Err(_) => Problem::new(StatusCode::REQUEST_TIMEOUT, "the request took too long").into_response(),
        },
    };
    for (name, value) in [
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::CACHE_CONTROL, "no-store"),
        (header::X_FRAME_OPTIONS, "DENY"),
    ] {
        response.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    response.headers_mut().insert("cross-origin-opener-policy", HeaderValue::from_static("same-origin"));
    response.headers_mut().insert("cross-origin-resource-policy", HeaderValue::from_static("same-origin"));
    response
}

/// Authenticates an API request, reads its whole body and attaches the person.
async fn sign_in(Shared(desk): Api, request: Request, next: Next) -> Response {
    match signed_in(&desk, request).await {
        Ok(request) => next.run(request).await,
        Err(problem) => ending(problem),
    }
}

/// Builds a response that is sent before the request's body was read. The server closes the connection after it, so the
/// response says `Connection: close`: otherwise the client's next request on this connection would be lost.
fn ending(problem: Problem) -> Response {
    let mut response = problem.into_response();
    response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    response
}

async fn signed_in(desk: &Arc<Desk>, request: Request) -> Result<Request, Problem> {
    let (mut parts, body) = request.into_parts();
    let header = parts.headers.get(header::AUTHORIZATION).and_then(|v| v.to_str().ok());
    let token = header.and_then(|h| h.strip_prefix("Bearer ")).unwrap_or_default().to_string();
    let state = desk.clone();
    let found = blocking(move || state.state.people.find(&token)).await?;
    let Some(person) = found else {
        let peer = parts.extensions.get::<Peer>().map_or(IpAddr::from([0, 0, 0, 0]), |p| p.0);
        return Err(match desk.strangers.take(peer) {
            true => Problem::new(StatusCode::UNAUTHORIZED, "this token is not known: ask for a new link"),
            false => Problem::new(StatusCode::TOO_MANY_REQUESTS, "too many wrong tokens"),
        });
    };
    if !desk.people.take(person.id) {
        return Err(Problem::new(StatusCode::TOO_MANY_REQUESTS, "too many requests: wait a moment").again());
    }
    let kind = parts.headers.get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or_default();
    if kind.split(';').next().map(str::trim) != Some("application/json") {
        return Err(Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "expected application/json"));
    }
    let large = || Problem::new(StatusCode::PAYLOAD_TOO_LARGE, format!("a request has at most {BODY} bytes"));
    let body = to_bytes(body, BODY).await.map_err(|_| large())?;
    parts.extensions.insert(person);
    Ok(Request::from_parts(parts, Body::from(body)))
}

/// The signed-in person, attached by [`sign_in`].
type Who = axum::Extension<Person>;

/// Parses the JSON body of a request.
fn read<T: for<'a> Deserialize<'a>>(body: &Bytes) -> Result<T, Problem> {
    serde_json::from_slice(body)
        .map_err(|e| Problem::new(StatusCode::BAD_REQUEST, format!("the request cannot be read: {e}")))
}

async fn hello(Shared(desk): Api, axum::Extension(person): Who) -> axum::Json<Value> {
    let s = &desk.state.settings;
    axum::Json(json!({
        "name": person.name,
        "admin": person.admin,
        "title": s.title,
        "guidelines": markdown::html(&s.guidelines),
        "criteria": s.criteria,
        "strength": s.strength,
        "edit": s.edit,
        // Seconds between two `keep` requests: several within the lease time.
        "keep": (s.lease / 4).clamp(1, 60),
    }))
}

async fn turn(desk: &Arc<Desk>, person: Who, ask: Ask) -> Result<axum::Json<Value>, Problem> {
    let (send, receive) = tokio::sync::oneshot::channel();
    desk.state.desk.ask(person.id, ask, move |turn| drop(send.send(turn)));
    let turn = receive.await.unwrap_or_else(|_| Err(desk::closed()));
    turn.map(shown).map(axum::Json).map_err(|no| refusal(desk, no))
}

async fn vote(Shared(desk): Api, person: Who, body: Bytes) -> Result<axum::Json<Value>, Problem> {
    let ballot: Ballot = read(&body)?;
    turn(&desk, person, Ask::Vote(ballot)).await
}

/// Converts a response of the desk into JSON for the page.
fn shown(turn: Turn) -> Value {
    let Turn { task, wait, progress } = turn;
    let answer = |text: String| json!({ "html": markdown::html(&text), "text": text });
    let task = task.map(|Task { id, prompt, left, right, before }| {
        json!({ "id": id, "prompt": talk(&prompt.messages), "left": answer(left), "right": answer(right), "before": before })
    });
    let progress = json!({ "mine": progress.mine, "given": progress.given, "wanted": progress.wanted });
    json!({ "task": task, "wait": wait, "progress": progress })
}

/// Converts the messages of a prompt into a list of roles and HTML.
fn talk(messages: &Value) -> Value {
    let turn = |m: &Value| {
        let text = match &m["content"] {
            Value::String(text) => text.clone(),
            other => format!("```json\n{other:#}\n```"),
        };
        json!({ "role": m["role"].as_str().unwrap_or("user"), "html": markdown::html(&text) })
    };
    messages.as_array().into_iter().flatten().map(turn).collect()
}

fn refusal(desk: &Desk, no: No) -> Problem {
    match no {
        No::Wrong(why) => Problem::new(StatusCode::BAD_REQUEST, why),
        No::Refused(Refusal::NotYours) => Problem::new(StatusCode::CONFLICT, "this task is not assigned to you"),
        No::Refused(Refusal::Taken) => Problem::new(StatusCode::CONFLICT, "others have judged this task meanwhile"),
        No::Refused(Refusal::NothingGiven) => Problem::new(StatusCode::CONFLICT, "there is nothing to take back"),
        No::NotSaved(e) => not_saved(&desk.state, &e),
    }
}

/// Returns the store's error without the location of the project, which annotators need not know.
fn not_saved(state: &State, e: &Error) -> Problem {
    let place = format!("{}: ", state.store.place());
    let what = e.message().strip_prefix(&place).unwrap_or("the project cannot be written");
    Problem::new(StatusCode::SERVICE_UNAVAILABLE, format!("not saved: {what}")).again()
}

/// Runs work that waits for the disk on a thread where blocking is allowed.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> crate::error::Result<T> + Send + 'static,
) -> Result<T, Problem> {
    let failed = |what: String| {
        crate::report::warn(format!("a request failed: {what}"));
        Problem::new(StatusCode::SERVICE_UNAVAILABLE, "the project cannot be read now").again()
    };
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done.map_err(|e| failed(e.message().to_string())),
        Err(e) => Err(failed(e.to_string())),
    }
}

fn only_admin(person: &Person) -> Result<(), Problem> {
    match person.admin {
        true => Ok(()),
        false => Err(Problem::new(StatusCode::FORBIDDEN, "only an admin may see this")),
    }
}

async fn overview(Shared(desk): Api, axum::Extension(person): Who) -> Result<axum::Json<Value>, Problem> {
    only_admin(&person)?;
    let page = blocking(move || {
        let store = &desk.state.store;
        let view = overview::Overview::new(&store.pairs()?, &store.votes()?, &store.annotators()?);
        let open = view.disagreements.iter().take(overview::SHOWN);
        let open = open.map(|d| {
            let (prompt, a, b) = store.shown(d.pair)?;
            let says = |(name, choice): &(String, Choice)| json!({ "name": name, "choice": choice });
            Ok(json!({
                "pair": d.pair,
                "prompt": talk(&prompt.messages),
                "a": markdown::html(&a.text),
                "b": markdown::html(&b.text),
                "votes": d.votes.iter().map(says).collect::<Vec<_>>(),
            }))
        });
        let open: Vec<Value> = open.collect::<crate::error::Result<_>>()?;
        let mut page = serde_json::to_value(&view).map_err(|e| Error::bug(format!("overview: {e}")))?;
        page["open"] = open.into();
        Ok(page)
    });
    page.await.map(axum::Json)
}

/// Request of an admin with the final decision on a pair.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FinalWord {
    pair: i64,
    choice: Choice,
}

async fn adjudicate(
    Shared(desk): Api,
    axum::Extension(person): Who,
    body: Bytes,
) -> Result<axum::Json<Value>, Problem> {
    only_admin(&person)?;
    let word: FinalWord = read(&body)?;
    if word.choice == Choice::Skip {
        return Err(Problem::new(StatusCode::BAD_REQUEST, "a final decision cannot be a skip"));
    }
    let state = desk.clone();
    let done = blocking(move || Ok(overview::adjudicate(&state.state.store, &person.name, word.pair, word.choice)));
    match done.await? {
        Ok(()) => Ok(axum::Json(json!({ "saved": true }))),
        Err(e) => {
            crate::report::warn(format!("not saved: {}", e.message()));
            Err(not_saved(&desk.state, &e))
        }
    }
}

/// An error response, with the text that the page shows.
struct Problem {
    status: StatusCode,
    what: String,
    /// Whether the same request may succeed later.
    again: bool,
}

impl Problem {
    fn new(status: StatusCode, what: impl Into<String>) -> Self {
        Self { status, what: what.into(), again: false }
    }

    fn again(mut self) -> Self {
        self.again = true;
        self
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let mut response =
            (self.status, axum::Json(json!({ "error": self.what, "again": self.again }))).into_response();
        if self.status == StatusCode::UNAUTHORIZED {
            response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}
