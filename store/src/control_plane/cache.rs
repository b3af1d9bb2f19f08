//! Answers of the control plane, kept for a while.
//!
//! A [`Slot`] keeps the answers to one question. It is bounded in entries and in time; "not there" is an answer like any
//! other, an error is none. Calls that miss the same key share one load, which none of them interrupts by going away. What
//! makes an answer stale is decided in [`generations`](super::generations).
//!
//! # Which copy is read
//!
//! A load asks the control plane's replica. It asks the primary where the replica may not have what counts yet: if the
//! answer that was kept is stale, if one of its rows was invalidated lately, and while nobody listens for changes. What
//! the replica says is not there, or has only a part of, is asked of the primary before it is told or kept.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::future::{Future, poll_fn, ready};
use std::hash::Hash;
use std::panic::resume_unwind;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::task::Poll;
use std::time::{Duration, Instant};

use moka::future::Cache;
use moka::ops::compute::Op;
use moka::policy::EvictionPolicy;

use super::generations::{Moment, Places, Subjects};
use super::subject::{Answer, Subject};
use crate::error::{ErrorKind, Result, StoreError};
use crate::read::Read;
use crate::residency::Residency;

/// How answers of the control plane are kept.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct CacheConfig {
    /// How long an answer is told, at most a year, counted from the moment at which the database was asked for it. 30
    /// seconds by default; with zero nothing is kept and every call asks.
    ///
    /// It bounds for how long a stale answer can be told, whatever else fails.
    pub time_to_live: Duration,
    /// Answers kept for each question, at most; the one that was not asked for the longest goes first. 10,000 by default.
    pub capacity: u64,
    /// For how long after a change that was heard of its rows are read on the primary: longer than a replica takes to
    /// have it. 10 seconds by default. A replica that lags by more can bring an older answer back, for the time to live.
    pub writer_after_invalidation: Duration,
    /// How the changes of other processes are found out. By listening, by default.
    pub invalidation: Invalidation,
}

impl Default for CacheConfig {
    fn default() -> Self {
        Self {
            time_to_live: Duration::from_secs(30),
            capacity: 10_000,
            writer_after_invalidation: Duration::from_secs(10),
            invalidation: Invalidation::Notifications(Listening::default()),
        }
    }
}

/// How the changes of other processes are found out.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Invalidation {
    /// The database tells of each: triggers notify, and a connection listens. While there is none, nothing is kept.
    Notifications(Listening),
    /// Not at all: an answer can be as old as [`CacheConfig::time_to_live`]. For installations that cannot listen, for
    /// example because no direct address leads to the control plane's primary.
    TimeToLiveOnly,
}

/// How a connection listens for changes. It is opened beside those of the pool.
///
/// A connection that breaks is noticed at once. Of one that stays and hears nothing any more the two durations tell, added
/// up, for how long changes can go unheard, and answers be told that are older: the server has vanished without a word, or
/// is no longer the one that the others write to. Where no connection of the pool is free for a test, that of the listener
/// is tested by itself, which takes as long again and shows only the first of the two.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct Listening {
    /// How often it is tested that the connection hears what others commit, whatever it has heard meanwhile. A test is one
    /// statement on a connection of the pool, which every connection that listens hears. 5 seconds by default.
    pub test_every: Duration,
    /// How long a test may take, and each step in which the connection is opened. 5 seconds by default.
    pub patience: Duration,
}

impl Default for Listening {
    fn default() -> Self {
        Self { test_every: Duration::from_secs(5), patience: Duration::from_secs(5) }
    }
}

/// What became of the questions that one slot of the cache was asked, since it was made.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
#[non_exhaustive]
pub struct CacheStats {
    /// Questions that a kept answer was given to.
    pub hits: u64,
    /// Questions that were not: they made a load or waited for one.
    pub misses: u64,
    /// Questions to the database. Several calls share one, and one for many keys counts once.
    pub loads: u64,
    /// Those of them that failed.
    pub failed_loads: u64,
    /// Those of them that asked the primary again about what the replica had answered.
    pub primary_rereads: u64,
    /// Kept answers that were found to hold no longer, before their time.
    pub invalidations: u64,
    /// Answers that are kept, as of the last time the slot was tidied up.
    pub entries: u64,
    /// Questions for one key that wait for a load at this moment.
    pub waiting: u64,
}

/// What a slot is asked by.
pub(crate) trait Key: Clone + Eq + Hash + Send + Sync + 'static {
    /// The rows that an answer depends on, whatever it says.
    fn subjects(&self) -> Vec<Subject>;
}

/// Longest time that answers are kept; moka takes no more than a thousand years.
const LONGEST: Duration = Duration::from_secs(366 * 24 * 60 * 60);

/// The answers to one question, by key. A copy of it is the same slot.
pub(crate) struct Slot<K, V>(Arc<Inner<K, V>>);

struct Inner<K, V> {
    /// The operation that errors name.
    operation: &'static str,
    /// `None` where nothing is to be kept.
    kept: Option<Cache<K, Loaded<V>>>,
    time_to_live: Duration,
    subjects: Arc<Subjects>,
    has_replica: bool,
    lacks: fn(&K, &V) -> bool,
    counts: Counts,
}

/// What a load came to. A failed one is in the slot only until the calls that share it know.
type Loaded<V> = Result<Arc<Kept<V>>>;

/// An answer, and what tells whether it holds.
struct Kept<V> {
    value: Option<V>,
    about: Places,
    began: Began,
}

/// When a load began: in the order of invalidations, and by the clock.
#[derive(Clone, Copy)]
struct Began {
    moment: Moment,
    time: Instant,
}

impl<K: Key, V: Clone + Send + Sync + 'static> Slot<K, V> {
    /// A slot for the answers to `operation`, whose loads have a replica to ask or only the primary.
    pub(crate) fn new(
        operation: &'static str,
        config: &CacheConfig,
        subjects: &Arc<Subjects>,
        has_replica: bool,
    ) -> Self {
        Self::of_parts(operation, config, subjects, has_replica, |_, _| false)
    }

    /// As [`Slot::new`], for answers that can lack a part of what the key asks for, as `lacks` says.
    pub(crate) fn of_parts(
        operation: &'static str,
        config: &CacheConfig,
        subjects: &Arc<Subjects>,
        has_replica: bool,
        lacks: fn(&K, &V) -> bool,
    ) -> Self {
        let kept = (!config.time_to_live.is_zero()).then(|| {
            Cache::builder()
                .max_capacity(config.capacity)
                .time_to_live(config.time_to_live.min(LONGEST))
                // The default admits a new key only if it is asked for often: an answer could be told and not be kept.
                .eviction_policy(EvictionPolicy::lru())
                .build()
        });
        let (subjects, counts, time_to_live) = (Arc::clone(subjects), Counts::default(), config.time_to_live);
        Self(Arc::new(Inner { operation, kept, time_to_live, subjects, has_replica, lacks, counts }))
    }

    /// The answer to `key`: a kept one that holds, or what `ask` answers.
    ///
    /// What was loaded before an invalidation that was made before the call is not the answer, also if that load was under
    /// way when it was made.
    /// Errors: those of `ask`, for all calls that share the load.
    pub(crate) async fn get<F, A>(&self, key: K, ask: F) -> Result<Option<V>>
    where
        F: Fn(Read) -> A + Clone + Send + Sync + 'static,
        A: Future<Output = Result<Answer<V>>> + Send + 'static,
    {
        let slot = &self.0;
        let asked = slot.subjects.now();
        if let Looked::Holds(kept) = slot.look(&key).await {
            add(&slot.counts.hits, 1);
            return Ok(kept.value.clone());
        }
        add(&slot.counts.misses, 1);
        let Some(cache) = &slot.kept else { return Ok(slot.load(&key, false, &ask).await?.value) };
        // The loads of a key follow one another. The first one shared may have begun before this call; then it is over by
        // now, so that the second one began after it.
        for _ in 0..2 {
            let kept = self.share(cache, key.clone(), ask.clone()).await?;
            if kept.began.moment > asked || slot.state(&kept) == State::Holds {
                return Ok(kept.value.clone());
            }
        }
        // An answer that a call for many keys has kept meanwhile can be older than this call, and hold no longer; and
        // that loads follow one another is moka's promise. What is told here must not rest on either.
        Ok(slot.load(&key, true, &ask).await?.value)
    }

    /// As [`Slot::get`], for many keys at once. `ask` is called once for all that are not kept, and answers for each of
    /// its keys; on a replica once more, for those it cannot be trusted with.
    ///
    /// It takes what single calls keep and keeps what it loads for them, but shares no load: a call for many keys would
    /// wait for as many loads of others.
    pub(crate) async fn get_many<F, A>(&self, keys: HashSet<K>, ask: F) -> Result<HashMap<K, Option<V>>>
    where
        F: Fn(Read, Vec<K>) -> A,
        A: Future<Output = Result<HashMap<K, Answer<V>>>>,
    {
        let slot = &self.0;
        let (mut found, mut missing, mut stale) = (HashMap::with_capacity(keys.len()), Vec::new(), 0);
        for key in keys {
            match slot.look(&key).await {
                Looked::Holds(kept) => {
                    found.insert(key, kept.value.clone());
                }
                Looked::Stale => {
                    stale += 1;
                    missing.push(key);
                }
                Looked::Nothing => missing.push(key),
            }
        }
        add(&slot.counts.hits, found.len());
        add(&slot.counts.misses, missing.len());
        add(&slot.counts.invalidations, stale);
        if missing.is_empty() {
            return Ok(found);
        }

        let began = slot.begin();
        let own = missing.iter().flat_map(Key::subjects).collect::<Vec<_>>();
        let read = slot.copy(stale > 0, &slot.subjects.places(&own));
        let mut doubtful = Vec::new();
        for (key, answer) in slot.counted(ask(read, missing)).await? {
            match slot.accepted(&key, read, began, answer) {
                Some(kept) => {
                    found.insert(key.clone(), kept.value.clone());
                    slot.keep(key, kept).await;
                }
                None => doubtful.push(key),
            }
        }
        if doubtful.is_empty() {
            return Ok(found);
        }

        add(&slot.counts.primary_rereads, 1);
        let began = slot.begin();
        for (key, answer) in slot.counted(ask(Read::Primary, doubtful)).await? {
            let kept = slot.answered(&key, began, answer);
            found.insert(key.clone(), kept.value.clone());
            slot.keep(key, kept).await;
        }
        Ok(found)
    }

    /// What became of the questions so far.
    pub(crate) fn stats(&self) -> CacheStats {
        let counts = &self.0.counts;
        CacheStats {
            hits: counts.hits.load(Relaxed),
            misses: counts.misses.load(Relaxed),
            loads: counts.loads.load(Relaxed),
            failed_loads: counts.failed_loads.load(Relaxed),
            primary_rereads: counts.primary_rereads.load(Relaxed),
            invalidations: counts.invalidations.load(Relaxed),
            entries: self.0.kept.as_ref().map_or(0, Cache::entry_count),
            waiting: counts.waiting.load(Relaxed),
        }
    }

    /// Joins the load of `key` that is under way, or begins one.
    ///
    /// It goes on in a task of its own: the calls that wait for it are not to depend on the one that began it.
    async fn share<F, A>(&self, cache: &Cache<K, Loaded<V>>, key: K, ask: F) -> Loaded<V>
    where
        F: Fn(Read) -> A + Send + Sync + 'static,
        A: Future<Output = Result<Answer<V>>> + Send + 'static,
    {
        let (slot, cache) = (Arc::clone(&self.0), cache.clone());
        match tokio::spawn(async move { slot.shared(&cache, key, ask).await }).await {
            Ok(loaded) => loaded,
            Err(ended) => match ended.try_into_panic() {
                Ok(panic) => resume_unwind(panic),
                // The task is never aborted, so it ends early only if the runtime is shut down.
                Err(_) => {
                    let kind = ErrorKind::Disconnected;
                    Err(StoreError::new(self.0.operation, Some(Residency::ControlPlane), kind))
                }
            },
        }
    }
}

impl<K: Key, V: Clone + Send + Sync + 'static> Inner<K, V> {
    async fn shared<F, A>(&self, cache: &Cache<K, Loaded<V>>, key: K, ask: F) -> Loaded<V>
    where
        F: Fn(Read) -> A + Sync,
        A: Future<Output = Result<Answer<V>>> + Send,
    {
        let is_stale = AtomicBool::new(false);
        let load = async { self.load(&key, is_stale.load(Relaxed), &ask).await.map(Arc::new) };
        // Whoever is to load looks whether it has to, so that a stale answer goes in the same step.
        let replaced = |loaded: &Loaded<V>| match loaded.as_ref().map(|kept| self.state(kept)) {
            Ok(State::Holds) => false,
            Ok(State::Stale) => {
                is_stale.store(true, Relaxed);
                true
            }
            Ok(State::Expired) | Err(_) => true,
        };
        let mut entry = pin!(cache.entry_by_ref(&key).or_insert_with_if(load, replaced));
        let entry = match poll_fn(|context| Poll::Ready(entry.as_mut().poll(context))).await {
            Poll::Ready(entry) => entry,
            // Whoever has come so far makes the load or shares it.
            Poll::Pending => {
                let _waiting = Waiting::begin(&self.counts);
                entry.await
            }
        };
        let is_own = entry.is_fresh();
        let loaded = entry.into_value();
        if is_own && loaded.is_err() {
            // All that share it have it by now.
            let forget = |entry: Option<moka::Entry<K, Loaded<V>>>| {
                let is_failed = entry.is_some_and(|entry| entry.value().is_err());
                ready(if is_failed { Op::Remove } else { Op::Nop })
            };
            cache.entry_by_ref(&key).and_compute_with(forget).await;
        }
        loaded
    }

    /// Asks the copy that can be trusted with `key`.
    async fn load<F, A>(&self, key: &K, is_stale: bool, ask: &F) -> Result<Kept<V>>
    where
        F: Fn(Read) -> A,
        A: Future<Output = Result<Answer<V>>>,
    {
        if is_stale {
            add(&self.counts.invalidations, 1);
        }
        let began = self.begin();
        let read = self.copy(is_stale, &self.subjects.places(&key.subjects()));
        let answer = self.counted(ask(read)).await?;
        if let Some(kept) = self.accepted(key, read, began, answer) {
            return Ok(kept);
        }
        add(&self.counts.primary_rereads, 1);
        let began = self.begin();
        let answer = self.counted(ask(Read::Primary)).await?;
        Ok(self.answered(key, began, answer))
    }

    /// To be called before anything else of a load is decided.
    fn begin(&self) -> Began {
        Began { time: Instant::now(), moment: self.subjects.begin() }
    }

    async fn counted<T>(&self, asking: impl Future<Output = Result<T>>) -> Result<T> {
        add(&self.counts.loads, 1);
        let answer = asking.await;
        if answer.is_err() {
            add(&self.counts.failed_loads, 1);
        }
        answer
    }

    /// The copy to ask first about the rows at `about`.
    fn copy(&self, is_stale: bool, about: &Places) -> Read {
        if !self.has_replica || is_stale || self.subjects.may_lag(about) { Read::Primary } else { Read::Replica }
    }

    /// An answer, unless the replica gave it and cannot be trusted with it.
    fn accepted(&self, key: &K, read: Read, began: Began, answer: Answer<V>) -> Option<Kept<V>> {
        let kept = self.answered(key, began, answer);
        match read {
            Read::Primary => Some(kept),
            Read::Replica => {
                let is_absent = kept.value.as_ref().is_none_or(|value| (self.lacks)(key, value));
                (!is_absent && !self.subjects.may_lag(&kept.about)).then_some(kept)
            }
        }
    }

    fn answered(&self, key: &K, began: Began, answer: Answer<V>) -> Kept<V> {
        let about = self.subjects.places(key.subjects().iter().chain(&answer.about));
        Kept { value: answer.value, about, began }
    }

    async fn look(&self, key: &K) -> Looked<V> {
        let Some(cache) = &self.kept else { return Looked::Nothing };
        let Some(Ok(kept)) = cache.get(key).await else { return Looked::Nothing };
        match self.state(&kept) {
            State::Holds => Looked::Holds(kept),
            State::Stale => Looked::Stale,
            State::Expired => Looked::Nothing,
        }
    }

    /// The slot forgets an answer at the end of its time counted from when it was kept, which was a load later than when
    /// it was true; until then its age is judged here.
    fn state(&self, kept: &Kept<V>) -> State {
        if !self.subjects.hold(&kept.about, kept.began.moment) {
            State::Stale
        } else if kept.began.time.elapsed() >= self.time_to_live {
            State::Expired
        } else {
            State::Holds
        }
    }

    /// Keeps an answer, unless one is kept already whose load began later.
    ///
    /// A load that ends between this look and this step can lose its place to the older answer. Then both were under way
    /// at one time, and each is judged by its own beginning; to exclude it would take a lock that moka's own loads, which
    /// put their answers by themselves, do not take.
    async fn keep(&self, key: K, kept: Kept<V>) {
        let Some(cache) = &self.kept else { return };
        let there = cache.get(&key).await;
        if !there.is_some_and(|there| there.is_ok_and(|there| there.began.moment > kept.began.moment)) {
            cache.insert(key, Ok(Arc::new(kept))).await;
        }
    }
}

/// Whether an answer may be told.
#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Holds,
    /// One of its rows was changed since.
    Stale,
    /// Its time is over.
    Expired,
}

/// What is kept for a key.
enum Looked<V> {
    Holds(Arc<Kept<V>>),
    Stale,
    Nothing,
}

#[derive(Default)]
struct Counts {
    hits: AtomicU64,
    misses: AtomicU64,
    loads: AtomicU64,
    failed_loads: AtomicU64,
    primary_rereads: AtomicU64,
    invalidations: AtomicU64,
    waiting: AtomicU64,
}

/// A call that waits, for as long as this lives.
struct Waiting<'a>(&'a AtomicU64);

impl<'a> Waiting<'a> {
    fn begin(counts: &'a Counts) -> Self {
        counts.waiting.fetch_add(1, Relaxed);
        Self(&counts.waiting)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

fn add(count: &AtomicU64, more: usize) {
    // A number of keys is far smaller than what a count holds.
    count.fetch_add(more as u64, Relaxed);
}

impl<K, V> Clone for Slot<K, V> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

/// Not the answers: some hold keys.
impl<K: Key, V: Clone + Send + Sync + 'static> fmt::Debug for Slot<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Slot").field("operation", &self.0.operation).field("stats", &self.stats()).finish()
    }
}

#[cfg(test)]
mod tests;
