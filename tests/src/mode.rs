//! The two ways in which a store carries out a transition.

use std::{fmt, sync::Arc};

use async_trait::async_trait;
use sea_orm::DatabaseTransaction;
use store::{Config, Effect, HookFailure, Residency, TransitionHook};

/// How a store carries out a transition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// A read and a conditional write.
    Optimistic,
    /// One transaction, for there is a hook in it. The hook does nothing.
    Hooked,
}

impl Mode {
    /// Both.
    pub const ALL: [Mode; 2] = [Mode::Optimistic, Mode::Hooked];

    /// Makes a store work that way.
    pub fn configure(self, config: &mut Config) {
        config.hook = match self {
            Mode::Optimistic => None,
            Mode::Hooked => Some(Arc::new(Idle)),
        };
    }

    /// Statements of a transition that writes, each a round trip: read and write; or begin, lock, read, write, the proof
    /// that the hook left the transaction sound, commit.
    pub fn statements_of_a_transition(self) -> usize {
        match self {
            Mode::Optimistic => 2,
            Mode::Hooked => 6,
        }
    }

    /// Statements of a refusal, each a round trip: the read; or begin, lock, read, roll back.
    pub fn statements_of_a_refusal(self) -> usize {
        match self {
            Mode::Optimistic => 1,
            Mode::Hooked => 4,
        }
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Mode::Optimistic => "without a hook",
            Mode::Hooked => "with a hook",
        })
    }
}

/// A hook that does nothing.
#[derive(Debug)]
struct Idle;

#[async_trait]
impl TransitionHook for Idle {
    async fn before_commit(
        &self,
        _: &DatabaseTransaction,
        _: Residency,
        _: &mut Vec<Effect>,
    ) -> Result<(), HookFailure> {
        Ok(())
    }
}
