//! Prints an answer on stdout while it is generated.

use ft::data::chat::{ChatTokenizer, DecodeStream};
use ft::error::Result;
use ft::generate::stop;
use ft::report;
use std::io::Write;

/// Prints an answer token by token. Text that may be the beginning of a stop text is held back until that is decided.
pub struct AnswerPrinter<'t> {
    stream: DecodeStream<'t>,
    texts: &'t [String],
    held: String,
}

impl<'t> AnswerPrinter<'t> {
    /// Starts an answer that ends at any of `texts`.
    pub fn new(tokenizer: &'t ChatTokenizer, texts: &'t [String]) -> Self {
        Self { stream: tokenizer.stream(), texts, held: String::new() }
    }

    /// Adds a token, and prints the text that is decided.
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
