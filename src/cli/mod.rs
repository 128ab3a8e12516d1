//! One file a verb: its arguments and its call. clap is known nowhere else.

mod doctor;
mod import;

use clap::{Parser, Subcommand};
use ft::error::Result;

/// Parameter-efficient fine-tuning of open language models in one binary.
#[derive(Parser)]
#[command(name = "ft", version, about, propagate_version = true)]
pub struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    Doctor(doctor::DoctorArgs),
    Import(import::ImportArgs),
}

/// Runs the verb that the command line names.
pub fn run(cli: Cli) -> Result<()> {
    match cli.verb {
        Verb::Doctor(args) => doctor::run(&args),
        Verb::Import(args) => import::run(&args),
    }
}
