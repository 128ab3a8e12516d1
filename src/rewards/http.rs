//! Rewards from a server: one POST request per batch. Only the given address is contacted: no proxy, no redirect.
//!
//! The request has `query` (prompt and completion joined) and `prompts`, the response has `rewards`, as in OpenRLHF, so
//! that its remote reward servers can be used.

use super::source::{ABSTAINED, RewardInput, RewardSource};
use super::spec::HttpSpec;
use crate::error::{Error, Result};
use crate::fsutil::excerpt;
use crate::json as exact;
use crate::models::Model;
use serde_json::{Value, json};
use std::thread;
use std::time::Duration;
use ureq::Agent;

/// Delay before a failed request is repeated; it doubles each time.
const RETRY_DELAY: Duration = Duration::from_millis(250);

/// Reward by a server.
pub(super) struct HttpReward {
    spec: HttpSpec,
    agent: Agent,
}

/// Why a request failed.
struct RequestFailure {
    message: String,
    /// Whether repeating it may help: no connection, a timeout, status 429 or 5xx.
    retryable: bool,
}

impl HttpReward {
    /// Prepares the connection; sends nothing. Fails for an address that is not plain HTTP.
    pub fn new(spec: HttpSpec) -> Result<Self> {
        if !spec.url.starts_with("http://") {
            return Err(Error::user(format!("url {:?}: expected http://…", spec.url)).hint(
                "ft uses plain HTTP, to a server on this machine or in your network; for https, use a local proxy",
            ));
        }
        let config = Agent::config_builder()
            .proxy(None)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .http_status_as_error(false)
            .timeout_global(Some(Duration::from_secs_f64(spec.timeout)));
        Ok(Self { agent: config.build().into(), spec })
    }

    /// Sends one request and returns the JSON of the response.
    fn post(&self, body: &str) -> Result<Value, RequestFailure> {
        let failure = |e: ureq::Error| RequestFailure { message: e.to_string(), retryable: true };
        let request = self.agent.post(&self.spec.url).header("content-type", "application/json");
        let mut reply = request.send(body).map_err(failure)?;
        let status = reply.status();
        let text = reply.body_mut().read_to_string().map_err(failure)?;
        if !status.is_success() {
            let what = format!("status {status}: {}", excerpt(text.trim()));
            return Err(RequestFailure {
                message: what,
                retryable: status.is_server_error() || status.as_u16() == 429,
            });
        }
        let no_json = |e| RequestFailure {
            message: format!("the response is not JSON ({e}): {}", excerpt(&text)),
            retryable: false,
        };
        serde_json::from_str(&text).map_err(no_json)
    }
}

impl RewardSource for HttpReward {
    fn score(&mut self, _: &Model, answers: &[RewardInput]) -> Result<Vec<f64>> {
        let each = |f: &dyn Fn(&RewardInput) -> Value| answers.iter().map(f).collect::<Vec<Value>>();
        let body = exact::to_text(&json!({
            "query": each(&|a| format!("{}{}", a.prompt.text, a.answer).into()),
            "prompts": each(&|a| a.prompt.text.clone().into()),
            "completions": each(&|a| a.answer.into()),
            "columns": each(&|a| a.prompt.columns.clone().into()),
        }));
        let (mut tries, url) = (0, &self.spec.url);
        let reply = loop {
            match self.post(&body) {
                Ok(reply) => break reply,
                Err(RequestFailure { retryable: true, .. }) if tries < self.spec.retries => {
                    thread::sleep(RETRY_DELAY * 2u32.pow(tries.min(6)));
                    tries += 1;
                }
                Err(RequestFailure { message: what, .. }) => {
                    let times = if tries > 0 { format!(" ({} requests)", tries + 1) } else { String::new() };
                    return Err(Error::user(format!("{url}{times}: {what}"))
                        .hint("is the server running at this address? `timeout` and `retries` set how long ft tries"));
                }
            }
        };
        let wrong = |what: String| {
            Error::user(format!("{url}: {what}"))
                .hint("the response must be {\"rewards\": [number, …]}, one for each of `completions`; null abstains")
        };
        let list = reply.get("rewards").and_then(Value::as_array);
        let list = list.ok_or_else(|| wrong(format!("no list `rewards` in {}", excerpt(&reply.to_string()))))?;
        if list.len() != answers.len() {
            return Err(wrong(format!("{} rewards for {} answers", list.len(), answers.len())));
        }
        let number = |(value, a): (&Value, &RewardInput)| {
            if value.is_null() {
                return Ok(ABSTAINED);
            }
            value.as_f64().ok_or_else(|| wrong(format!("{value} for an answer to {}", a.prompt.place())))
        };
        list.iter().zip(answers).map(number).collect()
    }
}
