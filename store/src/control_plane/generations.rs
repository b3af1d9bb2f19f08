//! When what was last changed, as far as this process was told: what decides whether a kept answer still holds.
//!
//! There is one clock of moments, which only counts. Whatever begins to load takes a moment of its own, and so does
//! whatever is invalidated; a call reads the clock when it comes. Of two of them that happen one after the other the
//! later one has the greater number, and that is all that is needed:
//!
//! - An answer holds as long as none of the rows it was made of was invalidated after the moment its load began. That
//!   moment is taken *before* the database is asked, so that an invalidation during the load wins.
//! - An answer whose load began after a call came is new enough for that call, whatever has happened since.
//!
//! Memory is bounded whatever is invalidated: the moments are kept in a fixed array, by a hash of the row. Two rows that
//! share a place are invalidated together, which costs a load and is never wrong.

use std::fmt;
use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::SeqCst;
use std::time::{Duration, Instant};

use super::subject::Subject;

/// Places for rows. With 10,000 answers about six rows each, an invalidated row takes about four others with it.
const PLACES: usize = 1 << 14;

/// The moment of `Subjects::hearing` while nobody listens: later than any load.
const DEAF: u64 = u64::MAX;

/// A point in the order of calls, loads and invalidations.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) struct Moment(u64);

/// Where the moments of some rows are kept.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Places(Box<[usize]>);

/// What was last invalidated when. Shared by all slots, and by whoever hears of changes.
pub(crate) struct Subjects {
    clock: AtomicU64,
    rows: Box<[Mark]>,
    everything: Mark,
    /// Since when changes are heard of: what was loaded before may have missed one.
    hearing: Mark,
    hasher: RandomState,
    born: Instant,
    /// How long a replica is given to catch up with a change that was heard of.
    catching_up: Duration,
}

/// The last invalidation of something.
#[derive(Default)]
struct Mark {
    moment: AtomicU64,
    /// Its time, in milliseconds since `Subjects::born` and one; 0 if there was none.
    at: AtomicU64,
}

impl Subjects {
    /// Nothing was invalidated, and no answer holds until [`Subjects::hear`] is called.
    pub(crate) fn deaf(catching_up: Duration) -> Self {
        let subjects = Self::unlistened(catching_up);
        subjects.hearing.moment.store(DEAF, SeqCst);
        subjects
    }

    /// Nothing was invalidated, and nobody will listen: what others change is found out when an answer expires.
    pub(crate) fn unlistened(catching_up: Duration) -> Self {
        Self {
            // A moment of zero is that of what never was.
            clock: AtomicU64::new(0),
            rows: (0..PLACES).map(|_| Mark::default()).collect(),
            everything: Mark::default(),
            hearing: Mark::default(),
            hasher: RandomState::new(),
            born: Instant::now(),
            catching_up,
        }
    }

    /// The moment a call comes.
    pub(crate) fn now(&self) -> Moment {
        Moment(self.clock.load(SeqCst))
    }

    /// The moment a load begins. To be taken before anything else of the load is decided.
    pub(crate) fn begin(&self) -> Moment {
        Moment(self.clock.fetch_add(1, SeqCst) + 1)
    }

    /// Where the moments of `subjects` are kept.
    pub(crate) fn places<'a>(&self, subjects: impl IntoIterator<Item = &'a Subject>) -> Places {
        // The array is far smaller than the numbers.
        Places(subjects.into_iter().map(|subject| self.hasher.hash_one(subject) as usize % PLACES).collect())
    }

    /// Whether an answer made of the rows at `about`, whose load began at `loaded`, still holds.
    pub(crate) fn hold(&self, about: &Places, loaded: Moment) -> bool {
        self.marks(about).all(|mark| mark.moment.load(SeqCst) < loaded.0)
    }

    /// Whether a replica may not have the newest version of the rows at `about` yet, or nobody knows.
    pub(crate) fn may_lag(&self, about: &Places) -> bool {
        let now = self.time();
        let lately = |at: u64| at > 0 && Duration::from_millis(now.saturating_sub(at)) < self.catching_up;
        !self.is_heard() || self.marks(about).any(|mark| lately(mark.at.load(SeqCst)))
    }

    /// What was made of this row holds no longer.
    pub(crate) fn invalidate(&self, subject: &Subject) {
        for place in &*self.places([subject]).0 {
            self.mark(&self.rows[*place]);
        }
    }

    /// Nothing holds any longer.
    pub(crate) fn invalidate_all(&self) {
        self.mark(&self.everything);
    }

    /// Changes are heard of from now on. What was loaded before holds no longer.
    pub(crate) fn hear(&self) {
        self.hearing.at.store(self.time(), SeqCst);
        self.hearing.moment.store(self.begin().0, SeqCst);
    }

    /// Changes are not heard of any more. Nothing holds, and nothing that is loaded now will be kept.
    pub(crate) fn go_deaf(&self) {
        self.hearing.moment.store(DEAF, SeqCst);
    }

    /// Whether changes are heard of.
    pub(crate) fn is_heard(&self) -> bool {
        self.hearing.moment.load(SeqCst) != DEAF
    }

    /// The time is noted first: a load that is later than the moment finds it, and asks the primary.
    fn mark(&self, mark: &Mark) {
        mark.at.fetch_max(self.time(), SeqCst);
        mark.moment.fetch_max(self.begin().0, SeqCst);
    }

    fn marks(&self, about: &Places) -> impl Iterator<Item = &Mark> {
        about.0.iter().map(|place| &self.rows[*place]).chain([&self.everything, &self.hearing])
    }

    fn time(&self) -> u64 {
        // Enough for some hundred million years.
        self.born.elapsed().as_millis() as u64 + 1
    }
}

impl fmt::Debug for Subjects {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Subjects").field("now", &self.now()).field("is_heard", &self.is_heard()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control_plane::SubjectKind;

    fn subjects() -> (Subjects, Subject, Places) {
        let (subjects, row) = (Subjects::unlistened(Duration::MAX), Subject::new(SubjectKind::Environment, "env"));
        let about = subjects.places([&row]);
        (subjects, row, about)
    }

    #[test]
    fn an_answer_holds_until_one_of_its_rows_is_invalidated() {
        let (subjects, row, about) = subjects();
        let loaded = subjects.begin();
        assert!(subjects.hold(&about, loaded), "nothing was invalidated");
        subjects.invalidate(&row);
        assert!(!subjects.hold(&about, loaded), "its row was invalidated after it was loaded");
        assert!(subjects.hold(&about, subjects.begin()), "what is loaded afterwards holds");
    }

    #[test]
    fn a_load_that_was_under_way_does_not_survive_an_invalidation_of_everything() {
        let (subjects, _, about) = subjects();
        let loaded = subjects.begin();
        subjects.invalidate_all();
        assert!(!subjects.hold(&about, loaded));
    }

    #[test]
    fn a_call_knows_a_load_that_began_after_it_came() {
        let (subjects, _, _) = subjects();
        let before = subjects.begin();
        let asked = subjects.now();
        let after = subjects.begin();
        assert!(before <= asked && asked < after, "{before:?}, {asked:?}, {after:?}");
    }

    #[test]
    fn nothing_holds_while_nobody_listens() {
        let (subjects, _, about) = subjects();
        let before = subjects.begin();
        subjects.go_deaf();
        let during = subjects.begin();
        assert!(!subjects.hold(&about, during) && subjects.may_lag(&about), "a change may be missed at any time");
        subjects.hear();
        for loaded in [before, during] {
            assert!(!subjects.hold(&about, loaded), "a change may have been missed after {loaded:?}");
        }
        assert!(subjects.hold(&about, subjects.begin()));
    }

    #[test]
    fn a_replica_may_lag_behind_what_was_invalidated_lately() {
        let (subjects, row, about) = subjects();
        assert!(!subjects.may_lag(&about), "nothing was invalidated");
        subjects.invalidate(&row);
        assert!(subjects.may_lag(&about));
        let patient = Subjects::unlistened(Duration::ZERO);
        patient.invalidate(&row);
        assert!(!patient.may_lag(&about), "no time is to be given to replicas");
    }
}
