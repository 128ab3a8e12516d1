//! `ft chat`: holds a conversation with a model on the terminal. Answers go to stdout token by token, everything else
//! to stderr.

use super::shared::answer_printer::AnswerPrinter;
use super::shared::cuda_graphs::CudaGraphsArgs;
use super::shared::interrupt::flag_on_interrupt;
use super::shared::model::{ModelArgs, QuantizeArgs, TemplateArgs, require_template};
use super::shared::sampling::{SamplingArgs, generation_settings};
use clap::Args;
use ft::data::chat::ChatTokenizer;
use ft::data::rows::ChatMessage;
use ft::error::{Error, Result};
use ft::generate::answer::StopReason;
use ft::generate::session::ChatSession;
use ft::generate::settings::GenerationSettings;
use ft::report;
use std::io::{BufRead, IsTerminal, Write};
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Chat with a model on the terminal
///
/// Each line that you type is one turn. /reset starts a new conversation, /system TEXT starts one with that system
/// message, /quit or Ctrl-D ends the program, Ctrl-C stops the current answer.
#[derive(Args)]
pub struct ChatArgs {
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    template: TemplateArgs,
    #[command(flatten)]
    quantize: QuantizeArgs,
    /// System message
    #[arg(long, value_name = "TEXT")]
    system: Option<String>,
    #[command(flatten)]
    sampling: SamplingArgs,
    #[command(flatten)]
    graphs: CudaGraphsArgs,
}

/// Runs `ft chat` until the input ends. A failed turn ends the command unless a person is typing.
pub fn run(args: ChatArgs) -> Result<()> {
    let (model, tokenizer) = args.model.open(&args.template, &args.quantize)?;
    require_template(&tokenizer, &args.model.model)?;
    let settings = generation_settings(&args.sampling, &args.model, &tokenizer)?;
    let _stream = args.graphs.begin(&model)?;
    let stop = flag_on_interrupt()?;
    let terminal = std::io::stdin().is_terminal();
    let _directions = std::io::stdout().is_terminal().then(BidiMode::enable);
    if terminal {
        report::info("/reset, /system TEXT, /quit; Ctrl-C stops an answer");
    }
    let decode = |ids: &[u32]| tokenizer.decode(ids, true);
    let session = ChatSession::new(&model).with_decoder(&decode);
    let mut talk = ChatState { session, tokenizer: &tokenizer, settings, messages: Vec::new(), stop };
    talk.reset(args.system.as_deref());
    let mut lines = std::io::stdin().lock().lines();
    loop {
        if terminal {
            eprint!("> ");
            let _ = std::io::stderr().flush();
        }
        let Some(line) = lines.next() else { break };
        let line = line.map_err(|e| Error::user(format!("reading stdin: {e}")))?;
        let (command, rest) = line.trim().split_once(char::is_whitespace).unwrap_or((line.trim(), ""));
        match command {
            "" => {}
            "/quit" => return Ok(()),
            "/reset" => talk.reset(talk.system().as_deref()),
            "/system" if rest.is_empty() => {
                report::info(talk.system().map_or("no system message".into(), |s| format!("system message: {s}")));
            }
            "/system" => talk.reset(Some(rest.trim())),
            other if other.starts_with('/') => {
                report::warn(format!("unknown command {other}; the commands are /reset, /system TEXT and /quit"));
            }
            _ => match talk.ask(line.trim()) {
                Ok(()) => {}
                // A person can type another line; a script must not mistake a missing answer for an empty one.
                Err(e) if terminal => report::error(&e),
                Err(e) => return Err(e),
            },
        }
    }
    if terminal {
        eprintln!();
    }
    Ok(())
}

/// Guard that switches on the terminal mode in which each line takes the direction (left-to-right or right-to-left) of
/// its first letter (DECSET 2501). Without it, Arabic or Hebrew answers are shown in the wrong order. Terminals that do
/// not have the mode ignore the request; dropping the guard switches it off.
struct BidiMode;

impl BidiMode {
    fn enable() -> Self {
        Self::write_escape("\u{1b}[?2501h");
        Self
    }

    fn write_escape(code: &str) {
        let mut out = std::io::stdout();
        let _ = out.write_all(code.as_bytes()).and_then(|()| out.flush());
    }
}

impl Drop for BidiMode {
    fn drop(&mut self) {
        Self::write_escape("\u{1b}[?2501l");
    }
}

/// The conversation so far, with the model session and the settings that answer its next turn.
struct ChatState<'m> {
    session: ChatSession<'m>,
    tokenizer: &'m ChatTokenizer,
    settings: GenerationSettings,
    messages: Vec<ChatMessage>,
    stop: Arc<AtomicBool>,
}

impl ChatState<'_> {
    fn system(&self) -> Option<String> {
        self.messages.first().filter(|m| m.role == "system").map(|m| m.content.clone())
    }

    fn reset(&mut self, system: Option<&str>) {
        self.messages = system.map(|s| ChatMessage::new("system", s)).into_iter().collect();
    }

    /// Adds `text` as the user's turn and shows the answer. If there is none, the turn is removed again.
    fn ask(&mut self, text: &str) -> Result<()> {
        self.messages.push(ChatMessage::new("user", text));
        let answer = self.answer().inspect_err(|_| {
            self.messages.pop();
        })?;
        if answer.is_empty() {
            self.messages.pop();
        } else {
            self.messages.push(ChatMessage::new("assistant", answer));
        }
        Ok(())
    }

    fn answer(&mut self) -> Result<String> {
        let prompt = self.tokenizer.encode_prompt(&self.tokenizer.render(&self.messages, true)?)?;
        self.tokenizer.check_embedded(&prompt)?;
        let (settings, stop) = (&self.settings, &self.stop);
        let mut shown = AnswerPrinter::new(self.tokenizer, &settings.stop_texts);
        let mut failed = None;
        stop.store(false, Ordering::Relaxed);
        let answer = self
            .session
            .answer(&prompt, settings, &mut |id| {
                if !settings.stop_ids.contains(&id) {
                    failed = shown.push(id).err();
                }
                if stop.load(Ordering::Relaxed) || failed.is_some() {
                    ControlFlow::Break(())
                } else {
                    ControlFlow::Continue(())
                }
            })
            .map_err(|e| e.hint("/reset begins a new conversation"))?;
        if answer.stop_reason != StopReason::Text {
            shown.finish();
        }
        println!();
        if let Some(e) = failed {
            return Err(e);
        }
        match answer.stop_reason {
            StopReason::EndToken | StopReason::Text => {}
            StopReason::Interrupted => report::info("(stopped)"),
            StopReason::Length => report::warn(format!("cut after {} tokens (--max-new-tokens)", answer.tokens.len())),
            StopReason::Context => report::warn("the model's context is full; /reset starts a new conversation"),
        }
        match answer.text {
            Some(text) => Ok(text),
            None => self.tokenizer.decode(answer.answer_tokens(), true),
        }
    }
}
