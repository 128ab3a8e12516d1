//! `ft label tui`: lets a person judge pairs on the terminal.

use clap::Args;
use ft::error::{Error, Result};
use ft::label::record::annotator::AnnotatorKind;
use ft::label::store::Store;
use ft::label::terminal;
use serde_json::json;
use std::io::IsTerminal;

/// Judge pairs on the terminal, with the same keys as on the page.
#[derive(Args)]
pub struct TuiArgs {
    /// The project.
    project: String,
    /// Your name as an annotator [default: that of your account].
    #[arg(long)]
    name: Option<String>,
}

/// Runs `ft label tui`.
pub fn run(args: &TuiArgs) -> Result<()> {
    if !std::io::stdout().is_terminal() || !std::io::stdin().is_terminal() {
        return Err(Error::user("ft label tui needs a terminal").hint("in a browser: ft label serve PROJECT"));
    }
    let store = Store::open(&args.project)?;
    let name = args.name.clone().unwrap_or_else(super::account_name);
    let annotator = store.annotator(&name, AnnotatorKind::Person, &json!({}))?;
    terminal::run(store, annotator.id)
}
