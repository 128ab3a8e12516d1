//! The one error type: a message for the person at the terminal, the next step to try, and an exit code.
//!
//! Every message names the file and line or the tensor, what was expected and what was found.

use std::fmt;

pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Whose turn it is to act; decides the exit code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Blame {
    /// The user's input, files or machine: exit code 1.
    User,
    /// A bug of ours: exit code 2.
    Bug,
    /// Stopped by a signal after saving: exit code 130.
    Interrupted,
}

/// An error as the user will read it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Error {
    blame: Blame,
    message: String,
    hints: Vec<String>,
}

impl Error {
    /// The user can mend it: `message` says where, what was expected and what was found.
    pub fn user(message: impl Into<String>) -> Self {
        Self { blame: Blame::User, message: message.into(), hints: Vec::new() }
    }

    /// Something `ft` promised itself does not hold.
    pub fn bug(message: impl Into<String>) -> Self {
        Self { blame: Blame::Bug, message: message.into(), hints: Vec::new() }
    }

    /// A signal arrived and the work so far is saved.
    pub fn interrupted(message: impl Into<String>) -> Self {
        Self { blame: Blame::Interrupted, message: message.into(), hints: Vec::new() }
    }

    /// Adds the next thing to try; shown as `hint: …`.
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hints.push(hint.into());
        self
    }

    /// Puts what was being done in front of the message.
    pub fn context(mut self, what: impl fmt::Display) -> Self {
        self.message = format!("{what}: {}", self.message);
        self
    }

    pub fn blame(&self) -> Blame {
        self.blame
    }

    pub fn message(&self) -> &str {
        &self.message
    }

    pub fn hints(&self) -> &[String] {
        &self.hints
    }

    /// 0 is success; 1 the user's input, 2 a bug of ours, 130 interrupted after saving.
    pub fn exit_code(&self) -> u8 {
        match self.blame {
            Blame::User => 1,
            Blame::Bug => 2,
            Blame::Interrupted => 130,
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        for hint in &self.hints {
            write!(f, "\nhint: {hint}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Error {}

/// libtorch's messages carry a C++ stack after the first lines; only what helps is kept.
impl From<tch::TchError> for Error {
    fn from(e: tch::TchError) -> Self {
        let text = e.to_string();
        let head: String =
            text.lines().take_while(|l| !l.starts_with("Exception raised from")).take(3).collect::<Vec<_>>().join(" ");
        if head.contains("out of memory") || head.contains("not enough memory") {
            return Error::user(format!("libtorch ran out of memory: {head}"))
                .hint("lower batch.tokens or batch.max_len, or set run.replay: all");
        }
        Error::bug(format!("libtorch: {head}"))
    }
}

/// `result.context(|| …)` for our own results.
pub trait Context<T> {
    fn context<D: fmt::Display>(self, what: impl FnOnce() -> D) -> Result<T>;
}

impl<T, E: Into<Error>> Context<T> for std::result::Result<T, E> {
    fn context<D: fmt::Display>(self, what: impl FnOnce() -> D) -> Result<T> {
        self.map_err(|e| e.into().context(what()))
    }
}
