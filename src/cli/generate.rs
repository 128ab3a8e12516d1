//! `ft generate`: answers to one prompt or to a file of them.

use super::model::{ModelArgs, need_template};
use super::sampling::SamplingArgs;
use clap::Args;
use ft::data::record::{self, Columns, Place};
use ft::data::{ChatTokenizer, Conversation, Message, Record, RowFormat, source};
use ft::error::{Context, Error, Result};
use ft::generate::{Completion, Settings, complete};
use ft::models::Model;
use ft::{fsutil, report};
use serde_json::{Value, json};
use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::time::Instant;

/// Continue a prompt, or answer a file of prompts
#[derive(Args)]
#[command(group(clap::ArgGroup::new("question").required(true).args(["prompt", "input"])))]
pub struct Generate {
    #[command(flatten)]
    model: ModelArgs,
    /// The text to continue
    #[arg(long, value_name = "TEXT")]
    prompt: Option<String>,
    /// Rows with `prompt` (text or messages) or `messages`
    #[arg(long, value_name = "FILE")]
    input: Option<PathBuf>,
    /// Where the answers to --input go, one JSON object a line
    #[arg(long, value_name = "FILE", requires = "input", conflicts_with = "json")]
    out: Option<PathBuf>,
    /// Ask text prompts as a user's turn, through the model's chat template
    #[arg(long)]
    chat: bool,
    /// System message before each text prompt
    #[arg(long, value_name = "TEXT", requires = "chat")]
    system: Option<String>,
    #[command(flatten)]
    sampling: SamplingArgs,
    /// Print one JSON object a prompt
    #[arg(long)]
    json: bool,
}

/// A prompt as the user wrote it, and as the model sees it.
struct Question {
    prompt: Value,
    ids: Vec<u32>,
}

pub fn run(args: Generate) -> Result<()> {
    if args.input.is_some() && args.out.is_none() && !args.json {
        return Err(Error::user("--input needs --out FILE, or --json to print the answers"));
    }
    let (model, tokenizer) = args.model.open()?;
    let settings = args.sampling.settings(&args.model.model, &tokenizer)?;
    if args.chat {
        need_template(&tokenizer, &args.model)?;
    }
    let questions = match (&args.prompt, &args.input) {
        (Some(text), _) => vec![Question { prompt: text.as_str().into(), ids: args.text_ids(text, &tokenizer)? }],
        (None, Some(path)) => args.read(path, &tokenizer)?,
        (None, None) => Vec::new(),
    };
    let stream = args.prompt.is_some() && !args.json && std::io::stdout().is_terminal();
    let started = Instant::now();
    let answers = answer(&model, &tokenizer, &questions, &settings, stream)?;
    if stream {
        println!();
    } else if args.prompt.is_some() && !args.json {
        println!("{}", tokenizer.decode(answers[0].answer(), true)?);
    } else {
        let rows =
            questions.iter().zip(&answers).map(|(q, a)| row(q, a, &tokenizer)).collect::<Result<Vec<Value>>>()?;
        match &args.out {
            Some(path) => fsutil::write_atomic(path, |w| rows.iter().try_for_each(|r| writeln!(w, "{r}")))?,
            None => rows.iter().for_each(|r| println!("{r}")),
        }
    }
    if args.input.is_some() || stream {
        let made: usize = answers.iter().map(|a| a.tokens.len()).sum();
        let time = started.elapsed();
        report::info(format!(
            "{} answers, {} tokens in {} ({:.1} tokens/s)",
            answers.len(),
            report::count(made as u64),
            report::duration(time),
            made as f64 / time.as_secs_f64()
        ));
    }
    Ok(())
}

fn row(question: &Question, answer: &Completion, tokenizer: &ChatTokenizer) -> Result<Value> {
    Ok(json!({
        "prompt": question.prompt,
        "text": tokenizer.decode(answer.answer(), true)?,
        "finish_reason": answer.stopped.name(),
        "prompt_tokens": question.ids.len(),
        "completion_tokens": answer.tokens.len(),
    }))
}

fn answer(
    model: &Model,
    tokenizer: &ChatTokenizer,
    questions: &[Question],
    settings: &Settings,
    stream: bool,
) -> Result<Vec<Completion>> {
    let prompts: Vec<Vec<u32>> = questions.iter().map(|q| q.ids.clone()).collect();
    let mut left = vec![settings.max_new_tokens; prompts.len()];
    let mut text = tokenizer.stream();
    let bar = if stream { indicatif::ProgressBar::hidden() } else { report::bar(prompts.len() as u64, "answers") };
    let mut failed = None;
    let answers = complete(model, &prompts, settings, &mut |i, id| {
        left[i] -= 1;
        let ended = settings.stop_ids.contains(&id);
        if ended || left[i] == 0 {
            bar.inc(1);
        }
        if stream && !ended {
            match text.push(id) {
                Ok(piece) => show(&piece.unwrap_or_default()),
                Err(e) => failed = Some(e),
            }
        }
    })?;
    bar.finish_and_clear();
    failed.map_or(Ok(answers), Err)
}

/// Text on stdout at once.
pub fn show(text: &str) {
    let mut out = std::io::stdout();
    // A reader that went away ends the program at the next plain print.
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}

impl Generate {
    fn text_ids(&self, text: &str, tokenizer: &ChatTokenizer) -> Result<Vec<u32>> {
        if self.chat {
            let mut messages = Vec::new();
            messages.extend(self.system.iter().map(|s| Message::new("system", s)));
            messages.push(Message::new("user", text));
            return tokenizer.encode(&tokenizer.render(&messages, true)?);
        }
        let mut ids = tokenizer.encode_plain(text)?;
        // A tokenizer that closes every text with EOS would end it before its continuation.
        if tokenizer.eos().is_some_and(|eos| ids.last() == Some(&eos)) && tokenizer.encode(text)?.last() != ids.last() {
            ids.pop();
        }
        Ok(ids)
    }

    fn read(&self, path: &Path, tokenizer: &ChatTokenizer) -> Result<Vec<Question>> {
        let mut questions = Vec::new();
        source::for_each_chunk(path, None, |chunk| {
            for raw in chunk {
                let place = Place { path, line: raw.line };
                let columns = raw.columns(path)?;
                questions.push(self.question(columns, place, tokenizer)?);
            }
            Ok(())
        })?;
        Ok(questions)
    }

    fn question(&self, mut columns: Columns, place: Place, tokenizer: &ChatTokenizer) -> Result<Question> {
        let error = |message: String| Error::user(format!("{place}: {message}"));
        if let Some(Value::String(text)) = columns.get("prompt") {
            return Ok(Question {
                ids: self.text_ids(text, tokenizer).context(|| place)?,
                prompt: text.as_str().into(),
            });
        }
        let key = ["prompt", "messages"].into_iter().find(|k| columns.contains_key(*k)).ok_or_else(|| {
            let found: Vec<String> = columns.keys().map(|k| format!("`{k}`")).collect();
            error(format!("no `prompt` and no `messages`; found {}", found.join(", ")))
        })?;
        if self.system.is_some() {
            return Err(error("--system is for text prompts, and this row brings its own messages".into())
                .hint("put the system message into the row"));
        }
        let prompt = columns.remove(key).unwrap_or_default();
        columns.insert("messages".into(), prompt.clone());
        let Record::Messages(talk) = record::read(columns, RowFormat::Messages, place)? else {
            return Err(Error::bug("messages were read as something else"));
        };
        if talk.messages.last().is_some_and(|m| m.role == "assistant") {
            return Err(error("the messages end with the assistant's turn, so there is nothing to answer".into())
                .hint("remove that turn; to compare answers with it, use: ft eval"));
        }
        Ok(Question { ids: ask(&talk, tokenizer).context(|| place)?, prompt })
    }
}

/// The conversation as the model sees it before its answer.
fn ask(talk: &Conversation, tokenizer: &ChatTokenizer) -> Result<Vec<u32>> {
    let template = tokenizer.template().ok_or_else(|| {
        Error::user("the model has no chat template, and the row holds messages")
            .hint("use an instruct model, or rows with `prompt` as text")
    })?;
    tokenizer.encode(&template.render(talk, talk.messages.len(), true)?)
}
