//! The page for people: the one folder of `label` that knows HTTP.
//!
//! Whoever sends a request shows a token in a header; no cookie exists, so no other site can make a browser act here.
//! Tokens are kept as hashes, compared in constant time and written to no log. The server speaks to the hosts it was
//! told of and serves one page, embedded in the program; the page loads nothing from elsewhere.

mod api;
mod guard;
mod people;

use super::desk::Desk;
use super::record::Kind;
use super::store::Store;
use crate::error::{Error, Result};
use guard::Hosts;
use hyper::body::Incoming;
use hyper_util::rt::{TokioIo, TokioTimer};
use people::People;
use serde_json::json;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tower::ServiceExt;

pub use people::{Token, hash as token_hash};

/// Connections at a time: a browser opens six.
const CONNECTIONS: usize = 1024;
/// How long a client may take to send the head of a request, and stay connected without one.
const HEAD: Duration = Duration::from_secs(30);

/// How a project is served.
#[derive(Debug, Clone)]
pub struct Options {
    pub address: SocketAddr,
    /// Where people reach the server when something stands before it, e.g. `https://label.example.org`.
    pub public: Option<String>,
    /// Who serves it and sees everybody's work; their token lives as long as the server.
    pub name: String,
}

/// A server that listens.
pub struct Server {
    listener: std::net::TcpListener,
    state: Arc<State>,
    /// What the one who serves it opens in a browser; holds their token.
    link: String,
}

/// What every request sees.
struct State {
    desk: Desk,
    people: People,
    hosts: Hosts,
    /// A second connection: the admin view never makes a vote wait.
    store: Store,
    settings: super::record::Settings,
}

impl Server {
    /// Takes the project and the address.
    ///
    /// Errors: another server has one of them; the project is damaged.
    pub fn open(place: &str, options: &Options) -> Result<Self> {
        let listener = std::net::TcpListener::bind(options.address).map_err(|e| {
            Error::user(format!("listening at {}: {e}", options.address))
                .hint("choose another port: --address 127.0.0.1:0 takes a free one")
        })?;
        let local = listener.local_addr().map_err(|e| Error::user(format!("{}: {e}", options.address)))?;
        let hosts = Hosts::new(local, options.public.as_deref())?;
        let (desk, _) = Desk::open(Store::open(place)?)?;
        let store = Store::open(place)?;
        let owner = store.annotator(&options.name, Kind::Person, &json!({}))?;
        let token = Token::new()?;
        let link = format!("{}/#token={}", hosts.url(), token.secret());
        let people = People::new(Store::open(place)?, owner, &token)?;
        let settings = store.settings()?;
        Ok(Self { listener, state: Arc::new(State { desk, people, hosts, store, settings }), link })
    }

    /// What the one who serves it opens in a browser; holds their token.
    pub fn link(&self) -> &str {
        &self.link
    }

    /// Where the project lies, without a password.
    pub fn place(&self) -> String {
        self.state.store.place()
    }

    /// Where people reach it.
    pub fn url(&self) -> String {
        self.state.hosts.url().to_string()
    }

    /// Serves until `wait` returns, which has a thread of its own. What was acknowledged is on the disk at any moment,
    /// so the end may be sudden.
    pub fn run(self, wait: impl FnOnce() + Send + 'static) -> Result<()> {
        let broken = |e: std::io::Error| Error::user(format!("the server cannot run: {e}"));
        self.listener.set_nonblocking(true).map_err(broken)?;
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
        let runtime = runtime.map_err(broken)?;
        let state = self.state.clone();
        let done = runtime.block_on(async {
            let (send, stop) = tokio::sync::oneshot::channel();
            std::thread::spawn(move || {
                wait();
                let _ = send.send(());
            });
            let listener = TcpListener::from_std(self.listener).map_err(broken)?;
            tokio::select! {
                () = accept(listener, state) => Ok(()),
                _ = stop => Ok(()),
            }
        });
        // A connection to PostgreSQL must not be closed on a thread of the runtime: `self.state` goes after it.
        runtime.shutdown_timeout(Duration::from_secs(1));
        done
    }
}

async fn accept(listener: TcpListener, state: Arc<State>) {
    let router = api::router(state);
    let room = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let Ok(seat) = room.clone().acquire_owned().await else { return };
        let Ok((stream, peer)) = listener.accept().await else {
            // Out of file handles, or a client that went away: others are served again soon.
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        let _ = stream.set_nodelay(true);
        let router = router.clone();
        tokio::spawn(async move {
            let service = hyper::service::service_fn(move |request: hyper::Request<Incoming>| {
                let mut request = request.map(axum::body::Body::new);
                request.extensions_mut().insert(guard::Peer(peer.ip()));
                router.clone().oneshot(request)
            });
            let mut http = hyper::server::conn::http1::Builder::new();
            http.timer(TokioTimer::new()).header_read_timeout(HEAD);
            // An error here is a client that went away or spoke no HTTP.
            let _ = http.serve_connection(TokioIo::new(stream), service).await;
            drop(seat);
        });
    }
}
