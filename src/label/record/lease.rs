//! Defines the task that an annotator holds.

/// A task that an annotator holds, as stored so that it survives a restart of the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lease {
    /// Id of the pair.
    pub pair: i64,
    /// Id of the annotator.
    pub annotator: i64,
    /// Whether `b` is shown on the left.
    pub swapped: bool,
    /// When the task was assigned, in milliseconds since 1970.
    pub since: i64,
}
