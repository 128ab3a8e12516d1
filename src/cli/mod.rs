//! Defines the command line: one file for each command, with its arguments and the call that runs it.
//!
//! Only this module uses clap. The work of a command is done by the library; a file here reads arguments, calls it, and
//! prints the result: data to stdout, messages to stderr.

mod answers;
mod chat;
mod check;
mod data;
mod doctor;
mod eval;
mod generate;
mod import;
mod label;
mod logits;
mod merge;
mod model;
mod recipe;
mod replay;
mod resume;
mod runs;
mod sampling;
mod score;
mod selftest;
mod student;
mod teach;
mod timings;
mod tokenizer;
mod train;

use clap::{Parser, Subcommand};
use ft::error::Result;
use ft::report;

/// Parameter-efficient fine-tuning of open language models in one binary.
#[derive(Parser)]
#[command(name = "ft", version, about, propagate_version = true)]
pub struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

// `ft --help` lists the commands in this order, which is the order in which a newcomer needs them.
#[derive(Subcommand)]
enum Verb {
    Doctor(doctor::DoctorArgs),
    Import(import::ImportArgs),
    /// Train a tokenizer, or show the tokens of a text
    #[command(subcommand)]
    Tokenizer(tokenizer::Verb),
    /// Inspect, convert, split or scrub data files
    Data(data::DataArgs),
    /// List, show and explain recipes and their keys
    #[command(subcommand)]
    Recipe(recipe::Recipe),
    /// Check a recipe without training: data, loss masks, lengths, memory
    Check(check::CheckArgs),
    /// Train a model from a recipe
    Train(train::TrainArgs),
    Teach(teach::TeachArgs),
    Resume(resume::ResumeArgs),
    /// List, show and compare training runs, or write a run's report page
    #[command(subcommand)]
    Runs(runs::Runs),
    Replay(replay::ReplayArgs),
    Eval(eval::Eval),
    Score(score::Score),
    /// Make preference data: people and models judge pairs of answers
    #[command(subcommand)]
    Label(label::Label),
    Generate(generate::Generate),
    Chat(chat::Chat),
    Merge(merge::MergeArgs),
    Student(student::StudentArgs),
    Selftest(selftest::Selftest),
    #[command(hide = true)]
    Logits(logits::LogitsArgs),
}

/// Runs the command that the command line names.
pub fn run(cli: Cli) -> Result<()> {
    // Where stderr is a log, a command that runs long reports its progress at fixed time intervals. Commands that wait
    // for a person have no progress to report.
    let waits = match &cli.verb {
        Verb::Chat(_) => true,
        Verb::Label(verb) => verb.waits(),
        _ => false,
    };
    let _working = (!waits).then(|| report::working(&format!("ft {}", std::env::args().nth(1).unwrap_or_default())));
    match cli.verb {
        Verb::Doctor(args) => doctor::run(&args),
        Verb::Import(args) => import::run(&args),
        Verb::Tokenizer(verb) => tokenizer::run(verb),
        Verb::Data(args) => data::run(args),
        Verb::Recipe(verb) => recipe::run(verb),
        Verb::Check(args) => check::run(args),
        Verb::Train(args) => train::run(args),
        Verb::Teach(args) => teach::run(&args),
        Verb::Resume(args) => resume::run(&args),
        Verb::Runs(verb) => runs::run(verb),
        Verb::Replay(args) => replay::run(&args),
        Verb::Eval(args) => eval::run(args),
        Verb::Score(args) => score::run(args),
        Verb::Label(verb) => label::run(verb),
        Verb::Generate(args) => generate::run(args),
        Verb::Chat(args) => chat::run(args),
        Verb::Merge(args) => merge::run(&args),
        Verb::Student(args) => student::run(&args),
        Verb::Selftest(args) => selftest::run(args),
        Verb::Logits(args) => logits::run(&args),
    }
}
