//! Defines the only error type: a message for the user, hints what to try next, and an exit code.
//!
//! A message names the file and line or the tensor, what was expected and what was found.

use std::any::Any;
use std::cell::Cell;
use std::sync::Once;
use std::{fmt, panic};

/// A result whose error is an [`Error`] unless another type is given.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Who has to act on an error; decides the exit code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorKind {
    /// The user's input, files or machine: exit code 1.
    User,
    /// A bug of ft: exit code 2.
    Bug,
    /// Stopped by a signal after saving: exit code 130.
    Interrupted,
}

/// An error as the user reads it: message and hints.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Error {
    kind: ErrorKind,
    message: String,
    hints: Vec<String>,
    /// True if memory ran out; see [`Error::is_out_of_memory`].
    out_of_memory: bool,
}

impl Error {
    fn new(kind: ErrorKind, message: String) -> Self {
        Self { kind, message, hints: Vec::new(), out_of_memory: false }
    }

    /// Makes an error that the user can fix. `message` says where it is, what was expected and what was found.
    pub fn user(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::User, message.into())
    }

    /// Makes an error for a broken invariant of ft itself.
    pub fn bug(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Bug, message.into())
    }

    /// Makes an error for a command that a signal stopped after it saved its work.
    pub fn interrupted(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Interrupted, message.into())
    }

    /// Adds a hint what to try next; shown as `hint: …`.
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hints.push(hint.into());
        self
    }

    /// Puts what was being done in front of the message.
    pub fn context(mut self, what: impl fmt::Display) -> Self {
        self.message = format!("{what}: {}", self.message);
        self
    }

    /// Returns who has to act on the error.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// Returns true if memory ran out, on a device or on the machine. What helps depends on the command, which adds the
    /// hints.
    pub fn is_out_of_memory(&self) -> bool {
        self.out_of_memory
    }

    /// Returns the message without its hints.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// Returns the hints, in the order in which they were added.
    pub fn hints(&self) -> &[String] {
        &self.hints
    }

    /// Returns the exit code: 1 for the user's input, 2 for a bug of ft, 130 if interrupted after saving.
    pub fn exit_code(&self) -> u8 {
        match self.kind {
            ErrorKind::User => 1,
            ErrorKind::Bug => 2,
            ErrorKind::Interrupted => 130,
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

impl From<tch::TchError> for Error {
    fn from(e: tch::TchError) -> Self {
        match e {
            tch::TchError::Torch(text) => libtorch_error(&text),
            other => libtorch_error(&other.to_string()),
        }
    }
}

/// Parts of libtorch's messages that say that memory ran out. The libraries of matrix products and of CUDA report it in
/// their own words.
const OUT_OF_MEMORY: [&str; 5] =
    ["out of memory", "not enough memory", "can't allocate memory", "STATUS_ALLOC_FAILED", "cudaErrorMemoryAllocation"];

/// Makes an error from a message of libtorch. The message ends in a C++ stack trace, which is cut off, as is libtorch's
/// advice about its allocator, whose setting ft has made already.
fn libtorch_error(text: &str) -> Error {
    let head: Vec<&str> = text.lines().take_while(|l| !l.starts_with("Exception raised from")).take(3).collect();
    let head = head.join(" ");
    if !OUT_OF_MEMORY.iter().any(|cause| head.contains(cause)) {
        return Error::bug(format!("libtorch: {head}"));
    }
    let cause = head.split(" If reserved but unallocated").next().unwrap_or(&head);
    let device = if head.contains("CU") { "the GPU" } else { "this machine" };
    Error { out_of_memory: true, ..Error::user(format!("{device} ran out of memory: {cause}")) }
}

thread_local! {
    /// Number of nested `catch_libtorch` calls on this thread.
    static CATCHING: Cell<u32> = const { Cell::new(0) };
}

/// Runs `f` and turns a failure of libtorch inside it into an error. tch's operators panic where libtorch throws, for
/// example when memory runs out; any other panic is passed on.
pub fn catch_libtorch<T>(f: impl FnOnce() -> Result<T>) -> Result<T> {
    catch(f).unwrap_or_else(|payload| match libtorch_message(&*payload) {
        Some(text) => Err(libtorch_error(&text)),
        None => panic::resume_unwind(payload),
    })
}

/// Runs a function that libtorch called, which must not unwind into it. The error is the text to throw there: libtorch's
/// own message if one of its operations failed.
pub(crate) fn catch_in_callback(f: impl FnOnce()) -> Result<(), String> {
    catch(f).map_err(|payload| libtorch_message(&*payload).unwrap_or_else(|| "the backward closure failed".into()))
}

/// Runs `f` and returns the payload of a panic. A panic that will become an error is not printed as a panic.
fn catch<T>(f: impl FnOnce() -> T) -> Result<T, Box<dyn Any + Send>> {
    static QUIET: Once = Once::new();
    QUIET.call_once(|| {
        let show = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            if CATCHING.get() == 0 || libtorch_message(info.payload()).is_none() {
                show(info);
            }
        }));
    });
    CATCHING.set(CATCHING.get() + 1);
    let result = panic::catch_unwind(panic::AssertUnwindSafe(f));
    CATCHING.set(CATCHING.get() - 1);
    result
}

/// Returns libtorch's message if the panic came from unwrapping an error of libtorch, by tch or by us.
fn libtorch_message(payload: &(dyn Any + Send)) -> Option<String> {
    let text = payload.downcast_ref::<String>()?;
    let (_, quoted) = text.split_once(": Torch(\"")?;
    let quoted = quoted.strip_suffix("\")").unwrap_or(quoted);
    Some(quoted.replace("\\n", "\n").replace("\\\"", "\"").replace("\\'", "'"))
}

/// Adds `result.context(|| …)`: puts what was being done in front of an error's message.
pub trait Context<T> {
    /// Puts `what` in front of the error's message; it is only called if there is an error.
    fn context<D: fmt::Display>(self, what: impl FnOnce() -> D) -> Result<T>;
}

impl<T, E: Into<Error>> Context<T> for std::result::Result<T, E> {
    fn context<D: fmt::Display>(self, what: impl FnOnce() -> D) -> Result<T> {
        self.map_err(|e| e.into().context(what()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::{Device, Kind, Tensor};

    #[test]
    fn a_failure_inside_libtorch_becomes_an_error_and_another_panic_goes_on() {
        let failed = |f: &dyn Fn() -> Tensor| catch_libtorch(|| Ok(f())).unwrap_err();
        let options = (Kind::Float, Device::Cpu);
        let error = failed(&|| Tensor::zeros([1 << 50], options));
        assert_eq!(error.kind(), ErrorKind::User, "{error}");
        assert!(error.message().contains("this machine ran out of memory") && error.is_out_of_memory(), "{error}");
        let error = failed(&|| Tensor::zeros([2, 3], options).matmul(&Tensor::zeros([2, 3], options)));
        assert_eq!(error.kind(), ErrorKind::Bug);
        assert!(!error.is_out_of_memory(), "{error}");
        assert!(error.message().contains("cannot be multiplied (2x3 and 2x3)"), "{error}");
        assert!(!error.message().contains("Exception raised"), "{error}");
        let other = panic::catch_unwind(|| catch_libtorch(|| -> Result<()> { panic!("of another kind") }));
        assert_eq!(*other.unwrap_err().downcast_ref::<&str>().unwrap(), "of another kind");
    }

    /// Texts of a GPU that is full, as libtorch, cuBLAS and the CUDA runtime word them.
    #[test]
    fn a_full_gpu_is_told_in_one_way_without_the_advice_about_the_allocator() {
        let full = "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 23.68 GiB of which \
                    1.06 GiB is free. If reserved but unallocated memory is large try setting \
                    PYTORCH_ALLOC_CONF=expandable_segments:True to avoid fragmentation.\nException raised from malloc";
        for text in [full, "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"] {
            let error: Error = tch::TchError::Torch(text.into()).into();
            assert!(error.is_out_of_memory() && error.exit_code() == 1, "{error}");
            assert!(error.message().starts_with("the GPU ran out of memory: CUDA"), "{error}");
            assert!(!error.message().contains("PYTORCH_ALLOC_CONF"), "{error}");
        }
        // An expectation that adds words of its own is understood, too.
        let failed = Err::<(), _>(tch::TchError::Torch(full.into()));
        assert!(catch_libtorch(|| failed.map_err(|e| panic!("a product: {e:?}"))).unwrap_err().is_out_of_memory());
    }
}
