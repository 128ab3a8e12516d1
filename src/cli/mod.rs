//! One file a verb: its arguments and its call. clap is known nowhere else.

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

// In the order in which a newcomer meets them; `ft --help` keeps it.
#[derive(Subcommand)]
enum Verb {
    Doctor(doctor::DoctorArgs),
    Import(import::ImportArgs),
    /// Train a tokenizer, or look at what one does
    #[command(subcommand)]
    Tokenizer(tokenizer::Verb),
    /// Look into files of rows
    Data(data::DataArgs),
    /// What recipes may hold and what one comes to
    #[command(subcommand)]
    Recipe(recipe::Recipe),
    /// Go through a recipe without training: data, masks, lengths, memory
    Check(check::CheckArgs),
    /// Train as a recipe says
    Train(train::TrainArgs),
    Teach(teach::TeachArgs),
    Resume(resume::ResumeArgs),
    /// Look at runs: list, show, compare, make a page
    #[command(subcommand)]
    Runs(runs::Runs),
    Replay(replay::ReplayArgs),
    Eval(eval::Eval),
    Score(score::Score),
    /// Make preference data: people and machines judge pairs of answers
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

/// Runs the verb that the command line names.
pub fn run(cli: Cli) -> Result<()> {
    // Whatever a verb does for long, a log hears of it. Those that wait for people have nothing to tell.
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
