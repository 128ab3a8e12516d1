//! `ft label serve`: serves the page on which people judge pairs.

use clap::Args;
use ft::error::{Error, Result};
use ft::label::server::{LabelServer, LabelServerOptions};
use ft::report;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use std::net::SocketAddr;

/// Serve the page on which people judge pairs.
///
/// Each person needs their own link (`ft label annotator PROJECT NAME`). The link that is printed here is yours; it
/// also shows the overview of everybody's work, and is valid until the server ends.
#[derive(Args)]
pub struct ServeArgs {
    /// The project.
    project: String,
    /// Address to listen on. The default can be reached from this machine only; port 0 takes a free port.
    #[arg(long, value_name = "IP:PORT", default_value = "127.0.0.1:8321")]
    address: SocketAddr,
    /// URL at which people reach the server, if it differs: another name, or a proxy with TLS
    /// (https://label.example.org).
    #[arg(long, value_name = "URL")]
    public: Option<String>,
    /// Your name as an annotator [default: that of your account].
    #[arg(long)]
    name: Option<String>,
}

/// Runs `ft label serve` until a signal ends it.
pub fn run(args: &ServeArgs) -> Result<()> {
    let options = LabelServerOptions {
        address: args.address,
        public: args.public.clone(),
        name: args.name.clone().unwrap_or_else(super::account_name),
    };
    let server = LabelServer::open(&args.project, &options)?;
    let plain = server.url().starts_with("http://");
    if !args.address.ip().is_loopback() && plain {
        report::warn(
            "tokens and votes cross the network unencrypted: put a TLS proxy in front, and name it with --public",
        );
    }
    let mut signals = Signals::new([SIGINT, SIGTERM]).map_err(|e| Error::bug(format!("signal handler: {e}")))?;
    report::info(format!("{} is served at {}; Ctrl-C ends it", server.place(), server.url()));
    report::info("your link, which also shows the overview:");
    println!("{}", server.link());
    server.run(move || {
        let _ = signals.forever().next();
    })?;
    report::info("server stopped; every acknowledged vote is stored");
    Ok(())
}
