//! `ft generate`: answers prompts from the command line or from a file.

use super::answer_file::AnswerFile;
use super::model::{ModelArgs, TemplateArgs, require_template};
use super::sampling::{BeamArgs, GenerationChoice, SamplingArgs};
use super::timings::PassTimings;
use clap::Args;
use ft::data::chat::{ChatTokenizer, DecodeStream, check_nothing_dropped, is_template_name};
use ft::data::rows::{ChatMessage, Conversation, Record, RowFormat, read_record};
use ft::data::source::{self, ColumnSelection, RowColumns, RowPlace};
use ft::error::{Context, Error, Result};
use ft::generate::{
    BatchLimits, Engine, GeneratedAnswer, GenerationRequest, GenerationSettings, StopReason, beam, stop,
};
use ft::models::Model;
use ft::{fsutil, report};
use serde_json::{Value, json};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

/// Continue prompts, or answer a file of prompts
///
/// Settings that are not given come from the model's generation_config.json. With --out FILE, answers are appended to
/// FILE.partial as they finish, and FILE is written at the end; to continue an interrupted command, run it again.
#[derive(Args)]
#[command(group(clap::ArgGroup::new("question").required(true).args(["prompt", "input"])))]
pub struct GenerateArgs {
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    template: TemplateArgs,
    /// The text to continue; may be given several times
    #[arg(long, value_name = "TEXT")]
    prompt: Vec<String>,
    /// File of rows with `prompt` (text or messages) or `messages`
    #[arg(long, value_name = "FILE")]
    input: Option<PathBuf>,
    /// Write the answers to --input to this file, one JSON object per line
    #[arg(long, visible_alias = "output", value_name = "FILE", requires = "input", conflicts_with = "json")]
    out: Option<PathBuf>,
    /// In rows that end with the assistant's turn, drop that turn and generate another
    #[arg(long, requires = "input")]
    drop_answer: bool,
    /// Send each text prompt as a user's turn, through the model's chat template
    #[arg(long)]
    chat: bool,
    /// System message before each text prompt
    #[arg(long, value_name = "TEXT", requires = "chat")]
    system: Option<String>,
    /// Text that every answer begins with
    #[arg(long, value_name = "TEXT")]
    prefix: Option<String>,
    #[command(flatten)]
    sampling: SamplingArgs,
    #[command(flatten)]
    beams: BeamArgs,
    /// Largest number of rows decoded together [default: as memory allows, at most 64 on the CPU]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    batch_size: Option<u32>,
    /// Print one JSON object per answer
    #[arg(long)]
    json: bool,
    /// Add each token and its log-probability to the JSON
    #[arg(long)]
    logprobs: bool,
    /// Write the duration of each forward pass (prompts, next tokens), one JSON object per line; totals go to stderr
    #[arg(long, value_name = "FILE")]
    timings: Option<PathBuf>,
}

/// A prompt as the user wrote it, and as the token ids that the model reads.
struct GenerationPrompt {
    prompt: Value,
    ids: Vec<u32>,
    /// Token ids that the answer begins with.
    prefix: Vec<u32>,
}

/// Runs `ft generate`.
pub fn run(args: GenerateArgs) -> Result<()> {
    if args.input.is_some() && args.out.is_none() && !args.json {
        return Err(Error::user("--input needs --out FILE, or --json to print the answers"));
    }
    if args.logprobs && !args.json && args.out.is_none() {
        return Err(Error::user("--logprobs adds to the JSON output").hint("add --json, or --input FILE --out FILE"));
    }
    let (model, tokenizer) = args.model.open(&args.template)?;
    let mut chosen = args.sampling.choose(&args.model.model, &tokenizer, Some(&args.beams))?;
    chosen.settings.log_probs = args.logprobs;
    report_choices(&chosen);
    if args.timings.is_some() && chosen.beams.is_some() {
        return Err(Error::user("--timings cannot be combined with beam search")
            .hint("leave out --timings, or set --num-beams 1"));
    }
    if args.chat {
        require_template(&tokenizer, &args.model)?;
    }
    let questions = match &args.input {
        Some(path) => args.read_prompts(path, &tokenizer)?,
        None => {
            let ask = |text: &String| {
                let question = args.text_prompt(text, &tokenizer)?;
                tokenizer.check_embedded(&question.ids)?;
                Ok(question)
            };
            args.prompt.iter().map(ask).collect::<Result<_>>()?
        }
    };
    let mut limits = BatchLimits::of(&model)?;
    if let Some(n) = args.batch_size {
        limits.rows = n as usize;
    }
    let answers = chosen.answers;
    let timings = RefCell::new(PassTimings::default());
    let work = GenerationJob {
        model: &model,
        tokenizer: &tokenizer,
        questions: &questions,
        chosen: &chosen,
        limits,
        answers,
        timings: &timings,
    };
    match (&args.input, &args.out) {
        (Some(input), Some(out)) => work.write_answers(out, &args.fingerprint(input, &chosen)?),
        _ if args.json => {
            work.answer_each(0, &mut GenerationProgress::new(questions.len(), 0), None, &mut |i, answers| {
                work.rows(i, answers)?.iter().for_each(|row| println!("{}", ft::json::to_text(row)));
                Ok(())
            })
        }
        _ => work.print_text(),
    }?;
    args.timings.as_ref().map_or(Ok(()), |path| timings.borrow().finish(path))
}

/// Reports which settings came from generation_config.json, and which of its keys are ignored.
fn report_choices(chosen: &GenerationChoice) {
    if let Some(note) = &chosen.note {
        report::info(note);
    }
    if !chosen.unsupported.is_empty() {
        report::warn(format!("generation_config.json: ignored, not supported: {}", chosen.unsupported.join(", ")));
    }
}

/// Returns the settings of a command without beam search, and reports where they come from.
pub fn generation_settings(
    args: &SamplingArgs,
    model: &ModelArgs,
    tokenizer: &ChatTokenizer,
) -> Result<GenerationSettings> {
    let chosen = args.choose(&model.model, tokenizer, None)?;
    report_choices(&chosen);
    Ok(chosen.settings)
}

/// Everything needed to answer the prompts.
struct GenerationJob<'a> {
    model: &'a Model,
    tokenizer: &'a ChatTokenizer,
    questions: &'a [GenerationPrompt],
    chosen: &'a GenerationChoice,
    limits: BatchLimits,
    /// Number of answers to each prompt.
    answers: usize,
    timings: &'a RefCell<PassTimings>,
}

/// Progress bar, and the numbers of answers and tokens so far.
struct GenerationProgress {
    bar: report::Progress,
    began: Instant,
    answers: usize,
    tokens: usize,
}

impl GenerationProgress {
    fn new(questions: usize, done: usize) -> Self {
        let bar =
            if questions > 1 { report::bar(questions as u64, "prompts") } else { report::enclosing_work("the answer") };
        Self { bar: bar.starting_at(done as u64), began: Instant::now(), answers: 0, tokens: 0 }
    }

    fn count_tokens(&mut self, tokens: usize) {
        self.tokens += tokens;
        self.bar.count(tokens as u64, "tokens");
    }

    fn speed(&self) -> f64 {
        self.tokens as f64 / self.began.elapsed().as_secs_f64()
    }

    fn summary(&self) -> String {
        let (tokens, time) = (report::count(self.tokens as u64), report::duration(self.began.elapsed()));
        format!("{} answers, {tokens} tokens in {time} ({:.1} tokens/s)", self.answers, self.speed())
    }
}

/// Callback that gets each generated token. Only useful where a single answer is generated.
type OnToken<'a> = &'a mut dyn FnMut(u32) -> Result<()>;

impl GenerationJob<'_> {
    /// Answers the prompts from index `from` on. `done` is called with a prompt's index and all its answers, in the
    /// order of the prompts; `on_token` with every token that the engine samples.
    fn answer_each(
        &self,
        from: usize,
        progress: &mut GenerationProgress,
        mut on_token: Option<OnToken>,
        done: &mut dyn FnMut(usize, &[GeneratedAnswer]) -> Result<()>,
    ) -> Result<()> {
        let decode = |ids: &[u32]| self.tokenizer.decode(ids, true);
        let settings = &self.chosen.settings;
        let mut finished = |i: usize, answers: &[GeneratedAnswer], progress: &mut GenerationProgress| {
            progress.answers += answers.len();
            progress.bar.inc(1);
            done(i, answers)
        };
        if let Some(beams) = self.chosen.beams {
            for (i, q) in self.questions.iter().enumerate().skip(from) {
                let answers = beam::search(self.model, &q.ids, &q.prefix, settings, beams, Some(&decode))
                    .context(|| format!("prompt {}", i + 1))?;
                progress.count_tokens(answers.iter().map(|a| a.tokens.len()).sum());
                finished(i, &answers, progress)?;
            }
            return Ok(());
        }
        let mut engine = Engine::new(self.model, settings.clone(), self.limits)?.with_decoder(&decode);
        for (i, q) in self.questions.iter().enumerate().skip(from) {
            let request = GenerationRequest {
                prefix: q.prefix.clone(),
                answers: self.answers,
                ..GenerationRequest::new(&q.ids, i as u64)
            };
            engine.add(request).context(|| format!("row {} of the prompts", i + 1))?;
        }
        let mut open: BTreeMap<usize, Vec<Option<GeneratedAnswer>>> = BTreeMap::new();
        let mut next = from;
        while !engine.is_idle() {
            let began = Instant::now();
            let step = engine.step()?;
            self.timings.borrow_mut().add(&step, began.elapsed());
            progress.count_tokens(step.tokens.len());
            if let Some(heard) = &mut on_token {
                step.tokens.iter().try_for_each(|(_, _, id)| heard(*id))?;
            }
            for f in step.finished {
                let answers = open.entry(from + f.request).or_insert_with(|| vec![None; self.answers]);
                answers[f.sample] = Some(f.completion);
            }
            while let Some(whole) =
                open.get(&next).and_then(|a| a.iter().cloned().collect::<Option<Vec<GeneratedAnswer>>>())
            {
                open.remove(&next);
                finished(next, &whole, progress)?;
                next += 1;
            }
        }
        Ok(())
    }

    /// Writes the answers to `out`, prompt by prompt, and continues a partial file. Ctrl-C keeps what is answered.
    fn write_answers(&self, out: &Path, fingerprint: &Value) -> Result<()> {
        let interrupted = Arc::new(AtomicBool::new(false));
        signal_hook::flag::register(signal_hook::consts::SIGINT, interrupted.clone())
            .map_err(|e| Error::user(format!("listening for Ctrl-C: {e}")))?;
        let mut file = AnswerFile::open(out, fingerprint, self.answers)?;
        let from = file.prompts_done();
        if from > 0 {
            report::info(format!("{from} of {} prompts are answered already; continuing", self.questions.len()));
        }
        let mut progress = GenerationProgress::new(self.questions.len(), from);
        let going_on = || match interrupted.load(Ordering::Relaxed) {
            true => Err(Error::interrupted("stopped")),
            false => Ok(()),
        };
        let answered = self.answer_each(from, &mut progress, Some(&mut |_| going_on()), &mut |i, answers| {
            file.push(&self.rows(i, answers)?)?;
            going_on()
        });
        if interrupted.load(Ordering::Relaxed) {
            return Err(file.interrupted(self.questions.len()));
        }
        if let Err(e) = answered {
            file.discard_empty();
            return Err(e);
        }
        progress.bar.finish_and_clear();
        file.finish()?;
        report::info(progress.summary());
        Ok(())
    }

    /// Prints answers as plain text. A single answer is printed token by token if stdout is a terminal.
    fn print_text(&self) -> Result<()> {
        let single = self.questions.len() * self.answers == 1;
        let mut progress = GenerationProgress::new(self.questions.len(), 0);
        if single && self.chosen.beams.is_none() && std::io::stdout().is_terminal() {
            let settings = &self.chosen.settings;
            let mut shown = AnswerPrinter::new(self.tokenizer, &settings.stop_texts);
            let mut stopped = None;
            self.questions[0].prefix.iter().try_for_each(|id| shown.push(*id))?;
            let mut heard = |id| if settings.stop_ids.contains(&id) { Ok(()) } else { shown.push(id) };
            self.answer_each(0, &mut progress, Some(&mut heard), &mut |_, answers| {
                stopped = Some(answers[0].stop_reason);
                Ok(())
            })?;
            if stopped != Some(StopReason::Text) {
                shown.finish();
            }
            println!();
            report::info(progress.summary());
            return Ok(());
        }
        self.answer_each(0, &mut progress, None, &mut |i, answers| {
            for (k, answer) in answers.iter().enumerate() {
                if !single {
                    println!("=== prompt {}, answer {} ===", i + 1, k + 1);
                }
                println!("{}", report::for_stdout(&self.text(answer)?));
            }
            Ok(())
        })
    }

    /// Returns the text of an answer, without special tokens.
    fn text(&self, answer: &GeneratedAnswer) -> Result<String> {
        match &answer.text {
            Some(text) => Ok(text.clone()),
            None => self.tokenizer.decode(answer.answer_tokens(), true),
        }
    }

    /// Returns the JSON objects of the answers to prompt `i`.
    fn rows(&self, i: usize, answers: &[GeneratedAnswer]) -> Result<Vec<Value>> {
        let question = &self.questions[i];
        let row = |(k, answer): (usize, &GeneratedAnswer)| {
            let mut row = json!({
                "prompt": question.prompt,
                "text": self.text(answer)?,
                "finish_reason": answer.stop_reason.name(),
                "prompt_tokens": question.ids.len(),
                "completion_tokens": answer.tokens.len(),
            });
            if self.answers > 1 {
                row["sample"] = k.into();
            }
            if let Some(score) = answer.score {
                row["score"] = score.into();
            }
            if self.chosen.settings.log_probs {
                let name = |id: &u32| self.tokenizer.token(*id);
                row["logprobs"] = json!({
                    "token_ids": answer.tokens,
                    "tokens": answer.tokens.iter().map(name).collect::<Vec<_>>(),
                    "token_logprobs": answer.log_probs,
                    "cumulative_logprob": answer.log_probs.iter().map(|x| f64::from(*x)).sum::<f64>(),
                });
            }
            Ok(row)
        };
        answers.iter().enumerate().map(row).collect()
    }
}

/// Prints an answer token by token. Text that may be the beginning of a stop text is held back until that is decided.
pub struct AnswerPrinter<'t> {
    stream: DecodeStream<'t>,
    texts: &'t [String],
    held: String,
}

impl<'t> AnswerPrinter<'t> {
    pub fn new(tokenizer: &'t ChatTokenizer, texts: &'t [String]) -> Self {
        Self { stream: tokenizer.stream(), texts, held: String::new() }
    }

    pub fn push(&mut self, id: u32) -> Result<()> {
        self.held.push_str(&self.stream.push(id)?.unwrap_or_default());
        let settled = stop::showable_length(&self.held, self.texts);
        show(&self.held[..settled]);
        self.held.drain(..settled);
        Ok(())
    }

    /// Prints the text held back; called when the answer ended without a stop text.
    pub fn finish(&mut self) {
        show(&std::mem::take(&mut self.held));
    }
}

/// Writes text to stdout and flushes it.
fn show(text: &str) {
    let mut out = std::io::stdout();
    let text = report::for_stdout(text);
    // Errors are ignored: if the reader has closed the pipe, the next `println!` ends the program.
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}

impl GenerateArgs {
    /// Returns everything that the answers depend on. A partial file is continued only if all of it is equal.
    fn fingerprint(&self, input: &Path, chosen: &GenerationChoice) -> Result<Value> {
        let mut all = json!({
            "model": fsutil::absolute(&self.model.model),
            "adapter": self.model.adapter.as_deref().map(fsutil::absolute),
            "dtype": format!("{:?}", self.model.dtype()?),
            "input": fsutil::sha256(input)?,
            "chat": self.chat,
            "system": self.system,
            "prefix": self.prefix,
            "template": self.template.template.as_deref().filter(|t| !is_template_name(t)).map(fsutil::sha256).transpose()?
                .or_else(|| self.template.template.as_ref().map(|name| name.display().to_string())),
            "chat_template_kwargs": self.template.chat_template_kwargs,
            "settings": format!("{:?}", chosen.settings),
            "beams": format!("{:?}", chosen.beams),
            "answers": chosen.answers,
        });
        if self.drop_answer {
            all["drop_answer"] = true.into();
        }
        Ok(all)
    }

    /// Builds the prompt of a text, through the chat template with --chat.
    fn text_prompt(&self, text: &str, tokenizer: &ChatTokenizer) -> Result<GenerationPrompt> {
        let prompt = text.into();
        if self.chat {
            let mut messages = Vec::new();
            messages.extend(self.system.iter().map(|s| ChatMessage::new("system", s)));
            messages.push(ChatMessage::new("user", text));
            let rendered = tokenizer.render(&messages, true)?;
            let prefix = self.prefix_ids(&rendered, tokenizer)?;
            return Ok(GenerationPrompt { prompt, ids: tokenizer.encode_prompt(&rendered)?, prefix });
        }
        Ok(GenerationPrompt {
            prompt,
            ids: tokenizer.encode_plain_prompt(text)?,
            prefix: self.prefix_ids(text, tokenizer)?,
        })
    }

    /// Returns the token ids of --prefix, as the text that follows `prompt`.
    fn prefix_ids(&self, prompt: &str, tokenizer: &ChatTokenizer) -> Result<Vec<u32>> {
        self.prefix.as_ref().map_or(Ok(Vec::new()), |prefix| tokenizer.encode_answer_after(prompt, prefix))
    }

    /// Reads and tokenises the prompts of a file. Fails at the first row without a usable prompt, with file and line.
    fn read_prompts(&self, path: &Path, tokenizer: &ChatTokenizer) -> Result<Vec<GenerationPrompt>> {
        let mut questions = Vec::new();
        source::for_each_selected_chunk(ColumnSelection::Readable, path, None, |chunk| {
            for raw in chunk {
                let place = RowPlace { path, line: raw.line };
                let columns = raw.columns(path)?;
                let question = self.row_prompt(columns, place, tokenizer)?;
                tokenizer.check_embedded(&question.ids).context(|| place)?;
                questions.push(question);
            }
            Ok(())
        })?;
        Ok(questions)
    }

    /// Builds the prompt of one row.
    fn row_prompt(
        &self,
        mut columns: RowColumns,
        place: RowPlace,
        tokenizer: &ChatTokenizer,
    ) -> Result<GenerationPrompt> {
        let error = |message: String| Error::user(format!("{place}: {message}"));
        if let Some(Value::String(text)) = columns.get("prompt") {
            return self.text_prompt(text, tokenizer).context(|| place);
        }
        let key = ["prompt", "messages"]
            .into_iter()
            .find(|k| columns.get(*k).is_some_and(|v| !v.is_null()))
            .ok_or_else(|| {
                let found: Vec<String> = columns.keys().map(|k| format!("`{k}`")).collect();
                error(format!("no column `prompt` or `messages`; the row has {}", found.join(", ")))
            })?;
        if self.system.is_some() {
            return Err(error("--system applies to text prompts only, but this row has messages".into())
                .hint("put the system message into the row"));
        }
        let mut prompt = columns.remove(key).unwrap_or_default();
        columns.insert("messages".into(), prompt.clone());
        let Record::Messages(mut talk) = read_record(columns, RowFormat::Messages, place)? else {
            return Err(Error::bug("messages were read as something else"));
        };
        if self.drop_answer {
            let answered = talk.messages.iter().rev().take_while(|m| m.role == "assistant").count();
            talk.messages.truncate(talk.messages.len() - answered);
            if let Some(turns) = prompt.as_array_mut() {
                turns.truncate(turns.len().saturating_sub(answered));
            }
            if talk.messages.is_empty() {
                return Err(error("no message is left without the assistant's turns".into()).hint("remove that row"));
            }
        }
        if talk.messages.last().is_some_and(|m| m.role == "assistant") {
            return Err(error("the messages end with the assistant's turn, so there is nothing to answer".into())
                .hint("drop that turn with --drop-answer, or compare it with the model's answer: ft eval"));
        }
        let rendered = render_prompt(&talk, tokenizer).context(|| place)?;
        let prefix = self.prefix_ids(&rendered, tokenizer).context(|| place)?;
        Ok(GenerationPrompt { ids: tokenizer.encode_prompt(&rendered).context(|| place)?, prompt, prefix })
    }
}

/// Renders the conversation up to the point where the model's answer begins.
fn render_prompt(talk: &Conversation, tokenizer: &ChatTokenizer) -> Result<String> {
    let template = tokenizer.template().ok_or_else(|| {
        Error::user("the model has no chat template, but the row has messages")
            .hint("use an instruct model, or rows with `prompt` as text")
    })?;
    let text = template.render(talk, talk.messages.len(), true)?;
    check_nothing_dropped(talk, &[&text], template)?;
    Ok(text)
}
