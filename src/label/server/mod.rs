//! Serves a project to browsers. The only folder of `label` that knows HTTP.
//!
//! Every request carries a token in a header. There are no cookies, so no other site can make a browser act here.
//! Tokens are stored as hashes, compared in constant time and never logged. The server answers only under the host
//! names that it was given. It serves one page, embedded in the program, which loads nothing from elsewhere.
//!
//! `api` has the routes, `guard` checks requests before they are read, `people` finds the person with a token, `state`
//! is shared by all requests, `error` is the response to a request that failed.

mod api;
mod error;
mod guard;
mod people;
mod state;

use crate::error::{Error, Result};
use crate::label::people::desk::Desk;
use crate::label::record::annotator::AnnotatorKind;
use crate::label::store::Store;
use guard::AllowedHosts;
use hyper::body::Incoming;
use hyper_util::rt::{TokioIo, TokioTimer};
use people::PeopleByToken;
pub use people::{SignInToken, hash as token_hash};
use serde_json::json;
use state::ServerState;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tower::ServiceExt;

/// Largest number of open connections; a browser opens up to six.
const CONNECTIONS: usize = 1024;

/// How long a client may take to send the header of a request, and how long an idle connection stays open.
const HEADER_TIMEOUT: Duration = Duration::from_secs(30);

/// Options of the server.
#[derive(Debug, Clone)]
pub struct LabelServerOptions {
    /// Address and port to listen at.
    pub address: SocketAddr,
    /// URL under which people reach the server through a proxy, e.g. `https://label.example.org`.
    pub public: Option<String>,
    /// Name of the person who runs the server. They may see everybody's votes; their token is valid while the server
    /// runs.
    pub name: String,
}

/// A server with an open port.
pub struct LabelServer {
    listener: std::net::TcpListener,
    state: Arc<ServerState>,
    /// Link for the person who runs the server; contains their token.
    link: String,
}

impl LabelServer {
    /// Opens the port and locks the project.
    ///
    /// Errors: another server uses the address or the project; the project is damaged.
    pub fn open(place: &str, options: &LabelServerOptions) -> Result<Self> {
        let listener = std::net::TcpListener::bind(options.address).map_err(|e| {
            Error::user(format!("listening at {}: {e}", options.address))
                .hint("choose another port: --address 127.0.0.1:0 takes a free one")
        })?;
        let local = listener.local_addr().map_err(|e| Error::user(format!("{}: {e}", options.address)))?;
        let hosts = AllowedHosts::new(local, options.public.as_deref())?;
        let (desk, _) = Desk::open(Store::open(place)?)?;
        let store = Store::open(place)?;
        let owner = store.annotator(&options.name, AnnotatorKind::Person, &json!({}))?;
        let token = SignInToken::new()?;
        let link = format!("{}/#token={}", hosts.url(), token.secret());
        let people = PeopleByToken::new(Store::open(place)?, owner, &token)?;
        let settings = store.settings()?;
        Ok(Self { listener, state: Arc::new(ServerState { desk, people, hosts, store, settings }), link })
    }

    /// Returns the link for the person who runs the server; it contains their token.
    pub fn link(&self) -> &str {
        &self.link
    }

    /// Returns the file or the URL of the project, without the password.
    pub fn place(&self) -> String {
        self.state.store.location()
    }

    /// Returns the URL under which people reach the server.
    pub fn url(&self) -> String {
        self.state.hosts.url().to_string()
    }

    /// Serves until `wait`, which runs in a thread of its own, returns. Acknowledged votes are already on disk, so open
    /// requests may be cut off at the end.
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
        // The PostgreSQL client must not be dropped on a thread of the runtime, so `self.state` outlives it.
        runtime.shutdown_timeout(Duration::from_secs(1));
        done
    }
}

async fn accept(listener: TcpListener, state: Arc<ServerState>) {
    let router = api::router(state);
    let room = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let Ok(seat) = room.clone().acquire_owned().await else { return };
        let Ok((stream, peer)) = listener.accept().await else {
            // Out of file handles, or the client closed the connection: wait a moment and accept the next one.
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
            http.timer(TokioTimer::new()).header_read_timeout(HEADER_TIMEOUT);
            // An error means that the client closed the connection or did not speak HTTP.
            let _ = http.serve_connection(TokioIo::new(stream), service).await;
            drop(seat);
        });
    }
}
