//! How fresh an answer has to be, and what a write leaves behind for later reads.

use crate::residency::Residency;

/// Which copy of a database answers a read. Every read takes one; nothing is inferred.
///
/// A read that decides something (a transition, a refusal, a dropped message) wants [`Read::Primary`]: a replica that
/// lags answers with a past state, and a miss on it proves nothing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Read {
    /// The owner's primary: sees every write committed before the read began.
    Primary,
    /// The owner's replica, which may lag. A database without a replica answers from its primary.
    Replica,
}

/// What a committed write leaves behind: where it was committed.
///
/// It grows positions of the write-ahead log when reads learn to wait for them; until then it names the database, whose
/// primary is the copy that is certainly at least as fresh as the write.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Token {
    written: Residency,
}

impl Token {
    pub(crate) fn new(written: Residency) -> Self {
        Self { written }
    }

    /// The database in which the change was committed.
    #[must_use]
    pub fn residency(&self) -> Residency {
        self.written
    }
}
