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

/// What committed writes leave behind: where they were committed.
///
/// Tokens of several writes join into one. A token will grow positions of the write-ahead log when reads learn to wait for
/// them; until then it names the databases, whose primaries are the copies that are certainly fresh enough.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Token {
    control_plane: bool,
    run_ops: bool,
}

impl Token {
    pub(crate) fn new(written: Residency) -> Self {
        Self { control_plane: written == Residency::ControlPlane, run_ops: written == Residency::RunOps }
    }

    /// Whether a change was committed in this database.
    #[must_use]
    pub fn covers(&self, residency: Residency) -> bool {
        match residency {
            Residency::ControlPlane => self.control_plane,
            Residency::RunOps => self.run_ops,
        }
    }

    /// A token for the writes of both.
    #[must_use]
    pub fn join(self, other: Self) -> Self {
        Self { control_plane: self.control_plane || other.control_plane, run_ops: self.run_ops || other.run_ops }
    }
}
