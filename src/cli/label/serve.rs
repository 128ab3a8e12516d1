//! `ft label serve`: the page for people.

use clap::Args;
use ft::error::{Error, Result};
use ft::label::server::{Options, Server};
use ft::report;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use std::net::SocketAddr;

/// Serve the page on which people judge pairs.
///
/// Everybody comes with a link of their own (`ft label annotator PROJECT NAME`). The link that is printed here is
/// yours, shows the overview of everybody's work, and ends with the server.
#[derive(Args)]
pub struct ServeArgs {
    /// The project.
    project: String,
    /// Where to listen. The default is reached from this machine only; port 0 takes a free one.
    #[arg(long, value_name = "IP:PORT", default_value = "127.0.0.1:8321")]
    address: SocketAddr,
    /// Where people reach the server, if that is another name or a proxy with TLS: https://label.example.org.
    #[arg(long, value_name = "URL")]
    public: Option<String>,
    /// Your name among the annotators; left out, that of your account.
    #[arg(long)]
    name: Option<String>,
}

/// Runs `ft label serve` until a signal ends it.
pub fn run(args: &ServeArgs) -> Result<()> {
    let options = Options {
        address: args.address,
        public: args.public.clone(),
        name: args.name.clone().unwrap_or_else(super::user),
    };
    let server = Server::open(&args.project, &options)?;
    let plain = server.url().starts_with("http://");
    if !args.address.ip().is_loopback() && plain {
        report::warn(
            "tokens and votes cross the network unencrypted: put a proxy with TLS before it, and name it with --public",
        );
    }
    let mut signals = Signals::new([SIGINT, SIGTERM]).map_err(|e| Error::bug(format!("signal handler: {e}")))?;
    report::info(format!("{} is served at {}; Ctrl-C ends it", server.place(), server.url()));
    report::info("your link, which also shows everybody's work:");
    println!("{}", server.link());
    server.run(move || {
        let _ = signals.forever().next();
    })?;
    report::info("ended; every vote that was acknowledged is kept");
    Ok(())
}
