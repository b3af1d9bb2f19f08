//! Clocks that tell what the test wants.

use std::sync::Mutex;

use chrono::{DateTime, TimeDelta, Utc};
use store::Clock;

use crate::runtime::lock;

/// A clock that goes on when its hands are turned, and not before.
#[derive(Debug)]
pub struct Hands(Mutex<DateTime<Utc>>);

impl Hands {
    /// A clock that stands at a moment.
    pub fn at(moment: DateTime<Utc>) -> Self {
        Hands(Mutex::new(moment))
    }

    /// Turns the hands, forwards or backwards.
    pub fn turn_to(&self, moment: DateTime<Utc>) {
        *lock(&self.0) = moment;
    }
}

impl Clock for Hands {
    fn now(&self) -> DateTime<Utc> {
        *lock(&self.0)
    }
}

/// The machine's clock, but wrong: ahead of it, or behind.
#[derive(Clone, Copy, Debug)]
pub struct Skewed(pub TimeDelta);

impl Clock for Skewed {
    fn now(&self) -> DateTime<Utc> {
        Utc::now() + self.0
    }
}
