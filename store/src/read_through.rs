//! Reading through to old runs, while the control plane still keeps them.
//!
//! After a split new runs are born in run-ops, and those that were born before stay in the control plane until their
//! retention ends. What shows one run to a person then reads run-ops first and the control plane's *replica* second, and
//! can tell "never was" from "is kept no longer".
//!
//! | the id | what is read | a miss is |
//! |---|---|---|
//! | any, without a split | `read_new`, which reads the one database | not found |
//! | of run-ops | `read_new` | not found |
//! | of the control plane | `read_new`, then `read_legacy` | past retention if the application says so, else not found |
//! | of no known shape | a warning with its length, then as the control plane's | as there |
//!
//! The control plane's primary has no part in it: nothing here can reach it, so that pages about old runs cannot put a
//! load on the database that everything hangs on. A fault of a read is handed on as it is. It never becomes a miss, for
//! a read that failed proves nothing.
//!
//! # When it is wanted
//!
//! Not for the store's own reads: a run is born in one database and stays there, its id says which, and a routed miss is
//! a miss. [`find_run`](crate::Runs::find_run) needs no second look, and one would return stray copies.
//!
//! [`read_through`] is for an application that reads past the store, from tables or projections of its own, whose rows
//! may have been copied to run-ops. [`find_run_through`] is for the page of one old run over a
//! [`RunStore`]: the same read as `find_run`, but never on the control plane's primary, and with the
//! retention's answer. Neither decides anything: a replica lags, and a run that was born a moment ago in the control
//! plane can be missed.
//!
//! # Tokens
//!
//! A token's id tells nothing, and a token is often looked for at once after it was made, when no replica has it. A fresh
//! one lies in run-ops. So [`resolve_token_through`] asks the run-ops primary when both reads have missed, and only that
//! one. Whoever goes on to complete the token need not resolve it first:
//! [`complete_waitpoint`](crate::Waitpoints::complete_waitpoint) looks for it on primaries, in both databases.

use std::fmt;

use crate::RunStore;
use crate::error::Result;
use crate::find::RunLookup;
use crate::ids::{EnvironmentId, Home, RunKey};
use crate::model::Run;
use crate::read::Read;
use crate::residency::{Residency, classify};
use crate::topology::Split;

/// What the application knows of old runs, and what it is told of them. Injected.
pub trait Retention: Send + Sync + fmt::Debug {
    /// Whether this run would be gone by now because it was kept for as long as the environment's runs are kept.
    ///
    /// Asked only about what neither database has. `id` is the text that was asked for: it may be of no known shape, and
    /// is not to be logged.
    fn is_past(&self, id: &str, environment: &EnvironmentId) -> bool;

    /// Something was found on the control plane's replica, and only there: what still keeps that database busy.
    fn read_from_legacy(&self, id: &str);
}

/// What became of a read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ReadThrough<T> {
    /// It is there.
    Found {
        /// What was read.
        value: T,
        /// Where.
        source: Source,
    },
    /// There is no such row, in neither database.
    NotFound,
    /// There is none any more: it is kept no longer. To a client that is "not found" too.
    PastRetention,
}

impl<T> ReadThrough<T> {
    /// What was read, wherever; `None` for both kinds of miss.
    #[must_use]
    pub fn value(self) -> Option<T> {
        match self {
            ReadThrough::Found { value, source: _ } => Some(value),
            ReadThrough::NotFound | ReadThrough::PastRetention => None,
        }
    }
}

/// Where a row was read.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Source {
    /// In run-ops, or in the only database there is.
    New,
    /// On the control plane's replica.
    LegacyReplica,
}

/// Reads one run, in run-ops and then on the control plane's replica, as the table of this [module](self) says.
///
/// `read_new` reads run-ops, or the only database where there is no split; `read_legacy` reads the replica of the control
/// plane. Both look in `environment` only: nothing here can. Neither is begun unless it is needed.
///
/// # Errors
/// Those of the reads, unchanged. After a fault nothing else is read.
pub async fn read_through<T, E, N, L>(
    split: Split,
    retention: &dyn Retention,
    run: &str,
    environment: &EnvironmentId,
    read_new: impl FnOnce() -> N,
    read_legacy: impl FnOnce() -> L,
) -> Result<ReadThrough<T>, E>
where
    N: Future<Output = Result<Option<T>, E>>,
    L: Future<Output = Result<Option<T>, E>>,
{
    let search = Search { retention, id: run, environment, places: Places::of(split, run) };
    let found = search.look(read_new, read_legacy).await?;
    Ok(found.unwrap_or_else(|| search.miss()))
}

/// Resolves a token by its id: as [`read_through`], and where that misses once more in run-ops, on its primary.
///
/// `read_new_primary` reads the primary of run-ops, or of the only database.
///
/// # Errors
/// Those of the reads, unchanged. After a fault nothing else is read.
pub async fn resolve_token_through<T, E, N, L, P>(
    split: Split,
    retention: &dyn Retention,
    token: &str,
    environment: &EnvironmentId,
    read_new: impl FnOnce() -> N,
    read_legacy: impl FnOnce() -> L,
    read_new_primary: impl FnOnce() -> P,
) -> Result<ReadThrough<T>, E>
where
    N: Future<Output = Result<Option<T>, E>>,
    L: Future<Output = Result<Option<T>, E>>,
    P: Future<Output = Result<Option<T>, E>>,
{
    let search = Search { retention, id: token, environment, places: Places::of(split, token) };
    if let Some(found) = search.look(read_new, read_legacy).await? {
        return Ok(found);
    }
    let fresh = read_new_primary().await?;
    Ok(fresh.map_or_else(|| search.miss(), |value| ReadThrough::Found { value, source: Source::New }))
}

/// Reads one run of `environment` through a store.
///
/// Routing: the database that the id names, as [`find_run`](crate::Runs::find_run). A run of the control plane is not
/// looked for in run-ops, where the store has none. A friendly id of the oldest form names a run of the control plane.
/// Copy: `read` for run-ops and for a single database; the control plane of a split always on its replica, whatever
/// `read` says. A database without a replica answers from its primary.
/// Statements: one; for an id of the oldest form one on each database.
///
/// # Errors
/// Those of [`find_run`](crate::Runs::find_run), unchanged.
pub async fn find_run_through(
    store: &dyn RunStore,
    retention: &dyn Retention,
    run: RunKey,
    environment: &EnvironmentId,
    read: Read,
) -> Result<ReadThrough<Run>> {
    let lookup = RunLookup::of(run).in_environment(environment.clone());
    let places = match (Split::of(store), run.home()) {
        (Split::Off, _) | (Split::On, Home::Routed(Residency::RunOps)) => Places::New,
        (Split::On, Home::Routed(Residency::ControlPlane) | Home::Unrouted) => Places::NewThenLegacy,
    };
    let id = match run {
        RunKey::Id(id) => id.to_string(),
        RunKey::Friendly(id) => id.to_string(),
        RunKey::Unrouted(id) => id.to_string(),
    };
    let search = Search { retention, id: &id, environment, places };
    let read_new = async || match places {
        Places::New => store.find_run(lookup.clone(), read).await,
        Places::NewThenLegacy => Ok(None),
    };
    let found = search.look(read_new, || store.find_run(lookup.clone(), Read::Replica)).await?;
    Ok(found.unwrap_or_else(|| search.miss()))
}

/// Where a row can be.
#[derive(Clone, Copy)]
enum Places {
    /// In run-ops, or in the only database.
    New,
    /// There, or else in the control plane.
    NewThenLegacy,
}

impl Places {
    fn of(split: Split, id: &str) -> Self {
        match split {
            Split::Off => Places::New,
            Split::On => match classify(id) {
                Ok(Residency::RunOps) => Places::New,
                Ok(Residency::ControlPlane) => Places::NewThenLegacy,
                Err(_) => {
                    // The text came from outside and may be anything.
                    tracing::warn!(id.length = id.len(), "an id of no known shape is looked for in the control plane");
                    Places::NewThenLegacy
                }
            },
        }
    }
}

struct Search<'a> {
    retention: &'a dyn Retention,
    id: &'a str,
    environment: &'a EnvironmentId,
    places: Places,
}

impl Search<'_> {
    async fn look<T, E, N, L>(
        &self,
        read_new: impl FnOnce() -> N,
        read_legacy: impl FnOnce() -> L,
    ) -> Result<Option<ReadThrough<T>>, E>
    where
        N: Future<Output = Result<Option<T>, E>>,
        L: Future<Output = Result<Option<T>, E>>,
    {
        if let Some(value) = read_new().await? {
            return Ok(Some(ReadThrough::Found { value, source: Source::New }));
        }
        match self.places {
            Places::New => Ok(None),
            Places::NewThenLegacy => {
                let found = read_legacy().await?;
                Ok(found.map(|value| {
                    self.retention.read_from_legacy(self.id);
                    ReadThrough::Found { value, source: Source::LegacyReplica }
                }))
            }
        }
    }

    fn miss<T>(&self) -> ReadThrough<T> {
        match self.places {
            Places::NewThenLegacy if self.retention.is_past(self.id, self.environment) => ReadThrough::PastRetention,
            Places::New | Places::NewThenLegacy => ReadThrough::NotFound,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use tracing::field::{Field, Visit};
    use tracing::span::{Attributes, Id, Record};
    use tracing::{Event, Metadata, Subscriber};

    use super::*;

    /// Keeps what is logged, as text.
    #[derive(Clone, Default)]
    struct Log(Arc<Mutex<Vec<String>>>);

    impl Subscriber for Log {
        fn enabled(&self, _: &Metadata<'_>) -> bool {
            true
        }

        fn new_span(&self, _: &Attributes<'_>) -> Id {
            Id::from_u64(1)
        }

        fn record(&self, _: &Id, _: &Record<'_>) {}

        fn record_follows_from(&self, _: &Id, _: &Id) {}

        fn event(&self, event: &Event<'_>) {
            struct Line(String);
            impl Visit for Line {
                fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
                    self.0 += &format!("{}={value:?} ", field.name());
                }
            }
            let mut line = Line(String::new());
            event.record(&mut line);
            self.0.lock().unwrap().push(line.0);
        }

        fn enter(&self, _: &Id) {}

        fn exit(&self, _: &Id) {}
    }

    #[test]
    fn of_an_id_of_no_known_shape_only_the_length_is_logged() {
        let log = Log::default();
        let of = |split, id| tracing::subscriber::with_default(log.clone(), || Places::of(split, id));
        assert!(matches!(of(Split::On, "c0ffee\nsecret"), Places::NewThenLegacy));
        let lines = std::mem::take(&mut *log.0.lock().unwrap());
        assert_eq!(lines.len(), 1, "one warning: {lines:?}");
        assert!(lines[0].contains("id.length=13") && !lines[0].contains("secret"), "{lines:?}");

        let run = crate::RunId::mint(Residency::RunOps);
        assert!(matches!(of(Split::On, run.as_str()), Places::New));
        assert!(matches!(of(Split::Off, "c0ffee\nsecret"), Places::New), "without a split nobody looks at the id");
        assert_eq!(*log.0.lock().unwrap(), Vec::<String>::new());
    }
}
