//! Serves the files of the page and its API.
//!
//! Every API request is a POST with a token and JSON. A person sees their own task and the progress of the project;
//! only an admin sees the votes of others.

use super::error::ApiError;
use super::guard::{Peer, RateLimiter};
use super::people::SignedInPerson;
use super::state::ServerState;
use crate::error::Error;
use crate::label::people::request::{DeskError, DeskRequest, DeskResponse};
use crate::label::people::screen::{ScreenTask, ScreenVote};
use crate::label::people::task::TaskRefusal;
use crate::label::people::{adjudication, desk, overview};
use crate::label::record::vote::VoteChoice;
use crate::runs::page::markdown;
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
const MAX_BODY: usize = 256 * 1024;

/// How long a request may take in total: to arrive and to be answered.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);

/// Requests per second of one person, and the burst; far more than a person can cause by hand.
const PERSON_RATE: (f64, f64) = (40.0, 80.0);

/// Wrong tokens per second from one address, and the burst.
const WRONG_TOKEN_RATE: (f64, f64) = (2.0, 20.0);

const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; \
                      base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// The shared state with the rate limits.
struct ApiState {
    state: Arc<ServerState>,
    people: RateLimiter<i64>,
    strangers: RateLimiter<IpAddr>,
}

type SharedState = Shared<Arc<ApiState>>;

/// Builds the router with all routes and checks.
pub fn router(state: Arc<ServerState>) -> Router {
    let desk = Arc::new(ApiState {
        state,
        people: RateLimiter::new(PERSON_RATE.0, PERSON_RATE.1),
        strangers: RateLimiter::new(WRONG_TOKEN_RATE.0, WRONG_TOKEN_RATE.1),
    });
    let api = Router::new()
        .route("/api/hello", post(hello))
        .route("/api/next", post(async |d: SharedState, p: SignedIn| turn(&d, p, DeskRequest::Next).await))
        .route("/api/undo", post(async |d: SharedState, p: SignedIn| turn(&d, p, DeskRequest::Undo).await))
        .route("/api/keep", post(async |d: SharedState, p: SignedIn| turn(&d, p, DeskRequest::Keep).await))
        .route("/api/leave", post(async |d: SharedState, p: SignedIn| turn(&d, p, DeskRequest::Leave).await))
        .route("/api/vote", post(vote))
        .route("/api/overview", post(overview))
        .route("/api/adjudicate", post(adjudicate))
        .layer(from_fn_with_state(desk.clone(), sign_in));
    Router::new()
        .route("/", get(|| file("text/html; charset=utf-8", include_str!("page/index.html"))))
        .route(
            "/page.css",
            get(|| {
                file(
                    "text/css; charset=utf-8",
                    concat!(include_str!("page/page.css"), include_str!("../../runs/page/markdown/formulas.css")),
                )
            }),
        )
        .route("/page.js", get(|| file("text/javascript; charset=utf-8", include_str!("page/page.js"))))
        .route("/icon.svg", get(|| file("image/svg+xml", include_str!("page/icon.svg"))))
        .merge(api)
        .fallback(|| async { ApiError::new(StatusCode::NOT_FOUND, "there is nothing here") })
        .layer(from_fn_with_state(desk.clone(), guard))
        .with_state(desk)
}

async fn file(kind: &'static str, text: &'static str) -> Response {
    ([(header::CONTENT_TYPE, kind)], text).into_response()
}

/// Wraps every request: checks host and origin, limits the time, and adds the security headers to the response.
async fn guard(Shared(desk): SharedState, request: Request, next: Next) -> Response {
    let mut response = match desk.state.hosts.check(request.headers()) {
        Err(why) => closing_response(ApiError::new(StatusCode::MISDIRECTED_REQUEST, why)),
        Ok(()) => match tokio::time::timeout(REQUEST_TIMEOUT, next.run(request)).await {
            Ok(response) => response,
            Err(_) => ApiError::new(StatusCode::REQUEST_TIMEOUT, "the request took too long").into_response(),
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
async fn sign_in(Shared(desk): SharedState, request: Request, next: Next) -> Response {
    match signed_in(&desk, request).await {
        Ok(request) => next.run(request).await,
        Err(problem) => closing_response(problem),
    }
}

/// Builds a response that is sent before the request's body was read. The server closes the connection after it, so the
/// response says `Connection: close`: otherwise the client's next request on this connection would be lost.
fn closing_response(problem: ApiError) -> Response {
    let mut response = problem.into_response();
    response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    response
}

async fn signed_in(desk: &Arc<ApiState>, request: Request) -> Result<Request, ApiError> {
    let (mut parts, body) = request.into_parts();
    let header = parts.headers.get(header::AUTHORIZATION).and_then(|v| v.to_str().ok());
    let token = header.and_then(|h| h.strip_prefix("Bearer ")).unwrap_or_default().to_string();
    let state = desk.clone();
    let found = blocking(move || state.state.people.find(&token)).await?;
    let Some(person) = found else {
        let peer = parts.extensions.get::<Peer>().map_or(IpAddr::from([0, 0, 0, 0]), |p| p.0);
        return Err(match desk.strangers.take(peer) {
            true => ApiError::new(StatusCode::UNAUTHORIZED, "this token is not known: ask for a new link"),
            false => ApiError::new(StatusCode::TOO_MANY_REQUESTS, "too many wrong tokens"),
        });
    };
    if !desk.people.take(person.id) {
        return Err(ApiError::new(StatusCode::TOO_MANY_REQUESTS, "too many requests: wait a moment").again());
    }
    let kind = parts.headers.get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or_default();
    if kind.split(';').next().map(str::trim) != Some("application/json") {
        return Err(ApiError::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "expected application/json"));
    }
    let large = || ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, format!("a request has at most {MAX_BODY} bytes"));
    let body = to_bytes(body, MAX_BODY).await.map_err(|_| large())?;
    parts.extensions.insert(person);
    Ok(Request::from_parts(parts, Body::from(body)))
}

/// The signed-in person, attached by [`sign_in`].
type SignedIn = axum::Extension<SignedInPerson>;

/// Parses the JSON body of a request.
fn read<T: for<'a> Deserialize<'a>>(body: &Bytes) -> Result<T, ApiError> {
    serde_json::from_slice(body)
        .map_err(|e| ApiError::new(StatusCode::BAD_REQUEST, format!("the request cannot be read: {e}")))
}

async fn hello(Shared(desk): SharedState, axum::Extension(person): SignedIn) -> axum::Json<Value> {
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

async fn turn(desk: &Arc<ApiState>, person: SignedIn, turn: DeskRequest) -> Result<axum::Json<Value>, ApiError> {
    let (send, receive) = tokio::sync::oneshot::channel();
    desk.state.desk.ask(person.id, turn, move |turn| drop(send.send(turn)));
    let turn = receive.await.unwrap_or_else(|_| Err(desk::closed_error()));
    turn.map(shown).map(axum::Json).map_err(|no| refusal(desk, no))
}

async fn vote(Shared(desk): SharedState, person: SignedIn, body: Bytes) -> Result<axum::Json<Value>, ApiError> {
    let ballot: ScreenVote = read(&body)?;
    turn(&desk, person, DeskRequest::Vote(ballot)).await
}

/// Converts a response of the desk into JSON for the page.
fn shown(turn: DeskResponse) -> Value {
    let DeskResponse { task, wait, progress } = turn;
    let answer = |text: String| json!({ "html": markdown::html(&text), "text": text });
    let task = task.map(|ScreenTask { id, prompt, left, right, before }| {
        json!({ "id": id, "prompt": messages_html(&prompt.messages), "left": answer(left), "right": answer(right), "before": before })
    });
    let progress = json!({ "mine": progress.mine, "given": progress.given, "wanted": progress.wanted });
    json!({ "task": task, "wait": wait, "progress": progress })
}

/// Converts the messages of a prompt into a list of roles and HTML.
fn messages_html(messages: &Value) -> Value {
    let turn = |m: &Value| {
        let text = match &m["content"] {
            Value::String(text) => text.clone(),
            other => format!("```json\n{other:#}\n```"),
        };
        json!({ "role": m["role"].as_str().unwrap_or("user"), "html": markdown::html(&text) })
    };
    messages.as_array().into_iter().flatten().map(turn).collect()
}

fn refusal(desk: &ApiState, no: DeskError) -> ApiError {
    match no {
        DeskError::Invalid(why) => ApiError::new(StatusCode::BAD_REQUEST, why),
        DeskError::Refused(refusal) => {
            let (code, why) = match refusal {
                TaskRefusal::NotYours => ("not_yours", "this task is not assigned to you"),
                TaskRefusal::Taken => ("taken", "others have judged this task meanwhile"),
                TaskRefusal::NothingGiven => ("nothing_to_undo", "there is nothing to take back"),
            };
            ApiError { code: Some(code), ..ApiError::new(StatusCode::CONFLICT, why) }
        }
        DeskError::NotSaved(e) => not_saved(&desk.state, &e),
    }
}

/// Returns the store's error without the location of the project, which annotators need not know.
fn not_saved(state: &ServerState, e: &Error) -> ApiError {
    let place = format!("{}: ", state.store.location());
    let what = e.message().strip_prefix(&place).unwrap_or("the project cannot be written");
    ApiError::new(StatusCode::SERVICE_UNAVAILABLE, format!("not saved: {what}")).again()
}

/// Runs work that waits for the disk on a thread where blocking is allowed.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> crate::error::Result<T> + Send + 'static,
) -> Result<T, ApiError> {
    let failed = |what: String| {
        crate::report::warn(format!("a request failed: {what}"));
        ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "the project cannot be read now").again()
    };
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done.map_err(|e| failed(e.message().to_string())),
        Err(e) => Err(failed(e.to_string())),
    }
}

fn only_admin(person: &SignedInPerson) -> Result<(), ApiError> {
    match person.admin {
        true => Ok(()),
        false => Err(ApiError::new(StatusCode::FORBIDDEN, "only an admin may see this")),
    }
}

async fn overview(Shared(desk): SharedState, axum::Extension(person): SignedIn) -> Result<axum::Json<Value>, ApiError> {
    only_admin(&person)?;
    let page = blocking(move || {
        let store = &desk.state.store;
        let view = overview::Overview::new(&store.pairs()?, &store.votes()?, &store.annotators()?);
        let open = view.disagreements.iter().take(overview::MAX_DISAGREEMENTS);
        let open = open.map(|d| {
            let (prompt, a, b) = store.pair_content(d.pair)?;
            let says = |(name, choice): &(String, VoteChoice)| json!({ "name": name, "choice": choice });
            Ok(json!({
                "pair": d.pair,
                "prompt": messages_html(&prompt.messages),
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
struct Adjudication {
    pair: i64,
    choice: VoteChoice,
}

async fn adjudicate(
    Shared(desk): SharedState,
    axum::Extension(person): SignedIn,
    body: Bytes,
) -> Result<axum::Json<Value>, ApiError> {
    only_admin(&person)?;
    let word: Adjudication = read(&body)?;
    if word.choice == VoteChoice::Skip {
        return Err(ApiError::new(StatusCode::BAD_REQUEST, "a final decision cannot be a skip"));
    }
    let state = desk.clone();
    let done = blocking(move || Ok(adjudication::adjudicate(&state.state.store, &person.name, word.pair, word.choice)));
    match done.await? {
        Ok(()) => Ok(axum::Json(json!({ "saved": true }))),
        Err(e) => {
            crate::report::warn(format!("not saved: {}", e.message()));
            Err(not_saved(&desk.state, &e))
        }
    }
}
