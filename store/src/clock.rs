//! The clock that stamps rows.

use std::fmt;

use chrono::{DateTime, SubsecRound, Utc};

/// Tells the time. Injected, so that tests can turn the hands.
///
/// The store cuts what it gets to microseconds, the resolution of PostgreSQL, so that a returned row equals the stored
/// one.
pub trait Clock: Send + Sync + fmt::Debug {
    /// The present moment.
    fn now(&self) -> DateTime<Utc>;
}

/// The machine's clock.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> DateTime<Utc> {
        Utc::now()
    }
}

/// Cuts a moment to what PostgreSQL can store.
pub(crate) fn micros(at: DateTime<Utc>) -> DateTime<Utc> {
    at.trunc_subsecs(6)
}
