//! One file a verb: its arguments and its call. clap is known nowhere else.

mod chat;
mod doctor;
mod eval;
mod generate;
mod model;
mod recipe;
mod sampling;
mod train;

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
    /// What recipes may hold and what one comes to
    #[command(subcommand)]
    Recipe(recipe::Recipe),
    /// Train as a recipe says
    Train(train::TrainArgs),
    Generate(generate::Generate),
    Chat(chat::Chat),
    Eval(eval::Eval),
}

/// Runs the verb that the command line names.
pub fn run(cli: Cli) -> Result<()> {
    match cli.verb {
        Verb::Doctor(args) => doctor::run(&args),
        Verb::Recipe(verb) => recipe::run(verb),
        Verb::Train(args) => train::run(args),
        Verb::Generate(args) => generate::run(args),
        Verb::Chat(args) => chat::run(args),
        Verb::Eval(args) => eval::run(args),
    }
}
