//! `ft tokenizer`: trains a tokenizer, and shows the tokens of a text.

use super::shared::stdout::{print, print_json};
use clap::{Args, Subcommand};
use ft::convert::folder::destination::Destination;
use ft::data::chat::ChatTokenizer;
use ft::data::tokenizer_files::{BpeTraining, train_bpe};
use ft::error::{Error, Result};
use ft::{fsutil, report};
use std::io::Read;
use std::path::{Path, PathBuf};

#[derive(Subcommand)]
pub enum TokenizerCommand {
    /// Train a byte-level BPE tokenizer on text
    Train(TokenizerTrainArgs),
    /// Show the tokens of a text
    Show(TokenizerShowArgs),
}

#[derive(Args)]
pub struct TokenizerTrainArgs {
    /// Text files (.txt, .md), or rows in any format that `ft train` reads (all their texts are used)
    #[arg(long, value_name = "FILE", required = true, num_args = 1..)]
    data: Vec<PathBuf>,
    /// Size of the vocabulary, including the 256 bytes and the special tokens
    #[arg(long, value_name = "N")]
    vocab_size: usize,
    /// Folder to write: tokenizer.json, tokenizer_config.json and, with --chat-template, chat_template.jinja
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Special token in addition to <|endoftext|> and <|pad|>; may be given several times
    #[arg(long, value_name = "TOKEN")]
    special: Vec<String>,
    /// Add a chat template and its special tokens
    #[arg(long, value_enum, value_name = "NAME")]
    chat_template: Option<ChatTemplateArg>,
    /// Merge two tokens into one only if they are adjacent at least N times
    #[arg(long, value_name = "N", default_value_t = 2)]
    min_frequency: u64,
    /// Replace DIR if it contains a tokenizer and no model
    #[arg(long)]
    force: bool,
    /// Print the summary as JSON
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum ChatTemplateArg {
    /// <|im_start|>role, the text, <|im_end|>
    Chatml,
}

#[derive(Args)]
pub struct TokenizerShowArgs {
    /// The text [default: read from stdin]
    text: Option<String>,
    /// Model or tokenizer directory, or GGUF file
    #[arg(long, value_name = "MODEL")]
    model: PathBuf,
    /// Print ids and token texts as JSON
    #[arg(long)]
    json: bool,
}

/// Runs `ft tokenizer …`.
pub fn run(verb: TokenizerCommand) -> Result<()> {
    match verb {
        TokenizerCommand::Train(args) => train(&args),
        TokenizerCommand::Show(args) => show(&args),
    }
}

fn train(args: &TokenizerTrainArgs) -> Result<()> {
    let (kind, marks, others) = ("a tokenizer's folder", &["tokenizer.json"], &["config.json", "adapter_config.json"]);
    let read: Vec<&Path> = args.data.iter().map(PathBuf::as_path).collect();
    Destination { out: &args.out, kind, marks, others, example: "models/tokenizer" }.check(args.force, &read)?;
    let training = BpeTraining {
        files: args.data.clone(),
        vocab_size: args.vocab_size,
        special: args.special.clone(),
        min_frequency: args.min_frequency,
        chatml: args.chat_template.is_some(),
    };
    let spinner = report::spinner("training the tokenizer");
    let mut done = None;
    let written = fsutil::replace_dir(&args.out, |folder| {
        done = Some(train_bpe(&training, folder)?);
        Ok(())
    });
    spinner.finish_and_clear();
    written?;
    let done = done.ok_or_else(|| Error::bug("a tokenizer was written without being trained"))?;
    report::info(format!(
        "{}: {} entries from {} texts, {}",
        args.out.display(),
        done.vocab_size,
        report::count(done.texts),
        report::bytes(done.bytes)
    ));
    if done.vocab_size < args.vocab_size {
        report::warn(format!(
            "fewer than the {} entries of --vocab-size: no further pair of tokens occurs {} times; give more text or a \
             lower --min-frequency",
            args.vocab_size, args.min_frequency
        ));
    }
    if args.json { print_json(&done) } else { Ok(()) }
}

#[derive(serde::Serialize)]
struct TokenizedText {
    text: String,
    ids: Vec<u32>,
    /// The text of each token; bytes that are not a complete character are shown as U+FFFD.
    pieces: Vec<String>,
    special: Vec<bool>,
}

fn show(args: &TokenizerShowArgs) -> Result<()> {
    let tokenizer = ChatTokenizer::load(&args.model, None)?;
    let text = match &args.text {
        Some(text) => text.clone(),
        None => {
            let mut text = String::new();
            std::io::stdin()
                .read_to_string(&mut text)
                .map_err(|e| Error::user(format!("reading stdin: {e}")).hint("the text must be UTF-8"))?;
            text
        }
    };
    let ids = tokenizer.encode_plain(&text)?;
    let pieces = ids.iter().map(|id| tokenizer.decode(&[*id], false)).collect::<Result<Vec<_>>>()?;
    let special = ids.iter().map(|id| tokenizer.is_special(*id)).collect();
    let shown = TokenizedText { text, ids, pieces, special };
    if args.json {
        return print_json(&shown);
    }
    let rows = shown.ids.iter().zip(&shown.pieces).zip(&shown.special).map(|((id, piece), special)| {
        let kind = if *special { "special" } else { "" };
        vec![id.to_string(), format!("{piece:?}"), kind.to_string()]
    });
    print(&(report::table(&rows.collect::<Vec<_>>()) + "\n"))?;
    report::info(format!("{} tokens, {} bytes", shown.ids.len(), shown.text.len()));
    Ok(())
}
