//! `ft label`: one file a verb.

mod annotator;
mod import;
mod new;
mod serve;
mod tui;

use clap::Subcommand;
use ft::error::Result;

// In the order in which a project meets them.
#[derive(Subcommand)]
pub enum Label {
    New(new::NewArgs),
    Import(import::ImportArgs),
    Annotator(annotator::AnnotatorArgs),
    Serve(serve::ServeArgs),
    Tui(tui::TuiArgs),
}

/// Runs `ft label …`.
pub fn run(verb: Label) -> Result<()> {
    match verb {
        Label::New(args) => new::run(&args),
        Label::Import(args) => import::run(&args),
        Label::Annotator(args) => annotator::run(&args),
        Label::Serve(args) => serve::run(&args),
        Label::Tui(args) => tui::run(&args),
    }
}

/// The name of who is at the terminal.
fn user() -> String {
    std::env::var("USER").ok().filter(|name| !name.trim().is_empty()).unwrap_or_else(|| "me".into())
}
