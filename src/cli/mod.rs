//! Defines the command line: one file for each command, with its arguments and the call that runs it.
//!
//! Only this module uses clap. The work of a command is done by the library; a file here reads arguments, calls it, and
//! prints the result: data to stdout, messages to stderr.

mod adapter;
mod chat;
mod check;
mod compare;
mod data;
mod doctor;
mod eval;
mod eval_import;
mod eval_report;
mod export;
mod generate;
mod import;
mod init;
mod label;
mod logits;
mod manual;
mod merge;
mod recipe;
mod replay;
mod resume;
mod runs;
mod score;
mod selftest;
mod shared;
mod student;
mod teach;
mod tokenizer;
mod train;

use clap::{CommandFactory, Parser, Subcommand};
use ft::error::Result;
use ft::report;

/// Parameter-efficient fine-tuning of open language models in one binary.
#[derive(Parser)]
#[command(name = "ft", version, about, propagate_version = true)]
pub struct Cli {
    #[command(subcommand)]
    verb: RootCommand,
}

// `ft --help` lists the commands in this order, which is the order in which a newcomer needs them.
#[derive(Subcommand)]
enum RootCommand {
    Doctor(doctor::DoctorArgs),
    Import(import::ImportArgs),
    /// Train a tokenizer, or show the tokens of a text
    #[command(subcommand)]
    Tokenizer(tokenizer::TokenizerCommand),
    /// Inspect, convert, split or scrub data files
    Data(data::DataArgs),
    /// List, show and explain recipes and their keys
    #[command(subcommand)]
    Recipe(recipe::RecipeCommand),
    Init(init::InitArgs),
    /// Check a recipe without training: data, loss masks, lengths, memory
    Check(check::CheckArgs),
    /// Look at adapters, compare, resize or extract them, and find out which layers are worth adapting
    #[command(subcommand)]
    Adapter(adapter::AdapterCommand),
    /// Train a model from a recipe
    Train(train::TrainArgs),
    Teach(teach::TeachArgs),
    Resume(resume::ResumeArgs),
    /// List, show and compare training runs, or write a run's report page
    #[command(subcommand)]
    Runs(runs::RunsCommand),
    Replay(replay::ReplayArgs),
    Eval(eval::EvalArgs),
    EvalReport(eval_report::EvalReportArgs),
    EvalImport(eval_import::EvalImportArgs),
    Compare(compare::CompareArgs),
    Score(score::ScoreArgs),
    /// Make preference data: people and models judge pairs of answers
    #[command(subcommand)]
    Label(label::LabelCommand),
    Generate(generate::GenerateArgs),
    Chat(chat::ChatArgs),
    Merge(merge::MergeArgs),
    Export(export::ExportArgs),
    Student(student::StudentArgs),
    Selftest(selftest::SelftestArgs),
    Completions(manual::CompletionsArgs),
    Man(manual::ManArgs),
    #[command(hide = true)]
    Logits(logits::LogitsArgs),
}

impl Cli {
    /// Returns what the user can change if the command runs out of memory.
    pub fn memory_remedies(&self) -> &'static [&'static str] {
        match &self.verb {
            RootCommand::Adapter(verb) if !verb.runs_a_recipe() => &["free some memory, or use a machine with more"],
            RootCommand::Train(_) | RootCommand::Resume(_) | RootCommand::Replay(_) | RootCommand::Adapter(_) => &[
                "lower batch.tokens or batch.max_len, set run.replay: all, or let `ft train --fit` choose",
                "a method that lets the model answer also needs memory for that: lower sampling.max_new_tokens",
            ],
            RootCommand::Teach(_) => {
                &["lower batch.tokens: --set batch.tokens=N", "or use the CPU: --set model.device=cpu"]
            }
            RootCommand::Generate(_) | RootCommand::Label(_) => &[
                "lower --batch-size, and --max-new-tokens if the answers are too long; --dtype bf16 halves the weights",
                "or use the CPU: --device cpu",
            ],
            RootCommand::Eval(_) | RootCommand::Chat(_) => {
                &["lower --max-new-tokens; --dtype bf16 halves the weights", "or use the CPU: --device cpu"]
            }
            RootCommand::Score(_) => &["--dtype bf16 halves the weights", "or use the CPU: --device cpu"],
            RootCommand::Selftest(_) | RootCommand::Student(_) => &["use the CPU: --device cpu"],
            _ => &["free some memory, or use a machine with more"],
        }
    }
}

/// Runs the command that the command line names.
pub fn run(cli: Cli) -> Result<()> {
    // Where stderr is a log, a command that runs long reports its progress at fixed time intervals. Commands that wait
    // for a person have no progress to report.
    let waits = match &cli.verb {
        RootCommand::Chat(_) => true,
        RootCommand::Label(verb) => verb.waits_for_people(),
        _ => false,
    };
    let _working =
        (!waits).then(|| report::enclosing_work(&format!("ft {}", std::env::args().nth(1).unwrap_or_default())));
    match cli.verb {
        RootCommand::Doctor(args) => doctor::run(&args),
        RootCommand::Import(args) => import::run(&args),
        RootCommand::Tokenizer(verb) => tokenizer::run(verb),
        RootCommand::Data(args) => data::run(args),
        RootCommand::Recipe(verb) => recipe::run(verb),
        RootCommand::Init(args) => init::run(&args),
        RootCommand::Check(args) => check::run(args),
        RootCommand::Adapter(verb) => adapter::run(verb),
        RootCommand::Train(args) => train::run(args),
        RootCommand::Teach(args) => teach::run(&args),
        RootCommand::Resume(args) => resume::run(&args),
        RootCommand::Runs(verb) => runs::run(verb),
        RootCommand::Replay(args) => replay::run(&args),
        RootCommand::Eval(args) => eval::run(args),
        RootCommand::EvalReport(args) => eval_report::run(&args),
        RootCommand::EvalImport(args) => eval_import::run(&args),
        RootCommand::Compare(args) => compare::run(&args),
        RootCommand::Score(args) => score::run(args),
        RootCommand::Label(verb) => label::run(verb),
        RootCommand::Generate(args) => generate::run(args),
        RootCommand::Chat(args) => chat::run(args),
        RootCommand::Merge(args) => merge::run(&args),
        RootCommand::Export(args) => export::run(&args),
        RootCommand::Student(args) => student::run(&args),
        RootCommand::Selftest(args) => selftest::run(args),
        RootCommand::Completions(args) => manual::completions(&args, Cli::command()),
        RootCommand::Man(args) => manual::man(&args, Cli::command()),
        RootCommand::Logits(args) => logits::run(&args),
    }
}
