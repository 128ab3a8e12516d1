//! `ft chat`: a conversation on the terminal. Answers go to stdout as they come, everything else to stderr.

use super::generate::{Shown, settings};
use super::model::{ModelArgs, TemplateArgs, need_template};
use super::sampling::SamplingArgs;
use clap::Args;
use ft::data::{ChatTokenizer, Message};
use ft::error::{Error, Result};
use ft::generate::{Session, Settings, Stop};
use ft::report;
use std::io::{BufRead, IsTerminal, Write};
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Talk with a model on the terminal
///
/// One line is one turn. /reset forgets the conversation, /system TEXT sets the system message (and forgets), /quit or
/// Ctrl-D ends, Ctrl-C stops an answer.
#[derive(Args)]
pub struct Chat {
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    template: TemplateArgs,
    /// System message
    #[arg(long, value_name = "TEXT")]
    system: Option<String>,
    #[command(flatten)]
    sampling: SamplingArgs,
}

pub fn run(args: Chat) -> Result<()> {
    let (model, tokenizer) = args.model.open(&args.template)?;
    need_template(&tokenizer, &args.model)?;
    let settings = settings(&args.sampling, &args.model, &tokenizer)?;
    let stop = Arc::new(AtomicBool::new(false));
    signal_hook::flag::register(signal_hook::consts::SIGINT, stop.clone())
        .map_err(|e| Error::user(format!("listening for Ctrl-C: {e}")))?;
    let terminal = std::io::stdin().is_terminal();
    let _directions = std::io::stdout().is_terminal().then(Directions::follow_the_text);
    if terminal {
        report::info("/reset, /system TEXT, /quit; Ctrl-C stops an answer");
    }
    let decode = |ids: &[u32]| tokenizer.decode(ids, true);
    let session = Session::new(&model).with_text(&decode);
    let mut talk = Talk { session, tokenizer: &tokenizer, settings, messages: Vec::new(), stop };
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
                report::warn(format!("no command {other}; there are /reset, /system TEXT and /quit"));
            }
            _ => match talk.turn(line.trim()) {
                Ok(()) => {}
                // A person can go on; a script must not take a missing answer for an answer.
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

/// While it lives, a terminal that knows scripts from right to left gives each line the direction of its first letter
/// (DECSET 2501). Others pass over the request.
struct Directions;

impl Directions {
    fn follow_the_text() -> Self {
        Self::say("\u{1b}[?2501h");
        Self
    }

    fn say(code: &str) {
        let mut out = std::io::stdout();
        let _ = out.write_all(code.as_bytes()).and_then(|()| out.flush());
    }
}

impl Drop for Directions {
    fn drop(&mut self) {
        Self::say("\u{1b}[?2501l");
    }
}

/// A conversation and what is needed to go on with it.
struct Talk<'m> {
    session: Session<'m>,
    tokenizer: &'m ChatTokenizer,
    settings: Settings,
    messages: Vec<Message>,
    stop: Arc<AtomicBool>,
}

impl Talk<'_> {
    fn system(&self) -> Option<String> {
        self.messages.first().filter(|m| m.role == "system").map(|m| m.content.clone())
    }

    fn reset(&mut self, system: Option<&str>) {
        self.messages = system.map(|s| Message::new("system", s)).into_iter().collect();
    }

    /// Asks `text` and shows the answer; without one the conversation stays as it was.
    fn turn(&mut self, text: &str) -> Result<()> {
        self.messages.push(Message::new("user", text));
        let answer = self.answer().inspect_err(|_| {
            self.messages.pop();
        })?;
        if answer.is_empty() {
            self.messages.pop();
        } else {
            self.messages.push(Message::new("assistant", answer));
        }
        Ok(())
    }

    fn answer(&mut self) -> Result<String> {
        let prompt = self.tokenizer.encode_prompt(&self.tokenizer.render(&self.messages, true)?)?;
        self.tokenizer.check_embedded(&prompt)?;
        let (settings, stop) = (&self.settings, &self.stop);
        let mut shown = Shown::new(self.tokenizer, &settings.stop_texts);
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
        if answer.stopped != Stop::Text {
            shown.finish();
        }
        println!();
        if let Some(e) = failed {
            return Err(e);
        }
        match answer.stopped {
            Stop::EndToken | Stop::Text => {}
            Stop::Interrupted => report::info("(stopped)"),
            Stop::Length => report::warn(format!("cut after {} tokens (--max-new-tokens)", answer.tokens.len())),
            Stop::Context => report::warn("the model's context is full; /reset begins a new conversation"),
        }
        match answer.text {
            Some(text) => Ok(text),
            None => self.tokenizer.decode(answer.answer(), true),
        }
    }
}
