//! Slots over a loader in memory, whose answers can be held.

use std::sync::Mutex;

use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::*;
use crate::control_plane::SubjectKind;

/// A row, by number.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
struct Row(u32);

impl Row {
    fn subject(&self) -> Subject {
        Subject::new(SubjectKind::Environment, &self.0.to_string())
    }
}

impl Key for Row {
    fn subjects(&self) -> Vec<Subject> {
        vec![self.subject()]
    }
}

const ROW: Row = Row(1);

/// A row beside, which answers about [`ROW`] are made of as well.
fn project() -> Subject {
    Subject::new(SubjectKind::Project, "p")
}

/// What answers, and remembers which copy was asked.
struct Source {
    primary: Mutex<Option<u32>>,
    replica: Mutex<Option<u32>>,
    asked: Mutex<Vec<Read>>,
    fails: AtomicBool,
    /// What is asked waits for a permit.
    gate: Semaphore,
}

impl Source {
    fn new() -> Arc<Self> {
        let (primary, replica) = (Mutex::new(Some(1)), Mutex::new(Some(1)));
        let gate = Semaphore::new(Semaphore::MAX_PERMITS);
        Arc::new(Self { primary, replica, asked: Mutex::default(), fails: AtomicBool::new(false), gate })
    }

    /// One that answers only what it is given permits for.
    fn gated() -> Arc<Self> {
        let source = Self::new();
        source.gate.forget_permits(Semaphore::MAX_PERMITS);
        source
    }

    /// Commits a value; the replica is not told.
    fn commit(&self, value: Option<u32>) {
        *self.primary.lock().unwrap() = value;
    }

    fn catch_up(&self) {
        *self.replica.lock().unwrap() = *self.primary.lock().unwrap();
    }

    /// The copies that were asked since this was last called.
    fn asked(&self) -> Vec<Read> {
        std::mem::take(&mut *self.asked.lock().unwrap())
    }

    /// Waits until `count` questions have come in all.
    async fn comes(&self, count: usize) {
        for _ in 0..20_000 {
            if self.asked.lock().unwrap().len() >= count {
                return;
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        panic!("{count} questions should have come, not {:?}", self.asked.lock().unwrap());
    }

    /// Reads when it is asked and answers when it may, as a database whose reply is held up.
    async fn answer(&self, read: Read) -> Result<Answer<u32>> {
        let copy = match read {
            Read::Primary => &self.primary,
            Read::Replica => &self.replica,
        };
        let value = *copy.lock().unwrap();
        self.asked.lock().unwrap().push(read);
        self.gate.acquire().await.expect("nobody closes the gate").forget();
        match self.fails.load(Relaxed) {
            true => Err(StoreError::new("answer", Some(Residency::ControlPlane), ErrorKind::Disconnected)),
            false => Ok(Answer { value, about: vec![ROW.subject(), project()] }),
        }
    }
}

fn config() -> CacheConfig {
    CacheConfig { time_to_live: Duration::from_secs(3_600), ..CacheConfig::default() }
}

/// Asks for [`ROW`].
async fn get(slot: &Slot<Row, u32>, source: &Arc<Source>) -> Result<Option<u32>> {
    let source = Arc::clone(source);
    slot.get(ROW, move |read| {
        let source = Arc::clone(&source);
        async move { source.answer(read).await }
    })
    .await
}

/// A slot that is told of changes, with a replica to ask; replicas are given a long time.
fn slot() -> (Slot<Row, u32>, Arc<Subjects>) {
    slot_with(&config(), Subjects::unlistened(Duration::MAX))
}

fn slot_with(config: &CacheConfig, subjects: Subjects) -> (Slot<Row, u32>, Arc<Subjects>) {
    let subjects = Arc::new(subjects);
    (Slot::new("get", config, &subjects, true), subjects)
}

#[tokio::test]
async fn an_answer_is_loaded_once_and_kept() -> Result<()> {
    let ((slot, _), source) = (slot(), Source::new());
    for _ in 0..3 {
        assert_eq!(get(&slot, &source).await?, Some(1));
    }
    assert_eq!(source.asked(), [Read::Replica]);
    let stats = slot.stats();
    assert_eq!((stats.hits, stats.misses, stats.loads, stats.failed_loads), (2, 1, 1, 0), "{stats:?}");
    Ok(())
}

#[tokio::test]
async fn that_there_is_nothing_is_asked_of_the_primary_and_kept() -> Result<()> {
    let ((slot, _), source) = (slot(), Source::new());
    *source.replica.lock().unwrap() = None;
    source.commit(None);
    for _ in 0..3 {
        assert_eq!(get(&slot, &source).await?, None);
    }
    assert_eq!(source.asked(), [Read::Replica, Read::Primary]);
    assert_eq!(slot.stats().primary_rereads, 1);
    Ok(())
}

#[tokio::test]
async fn what_a_replica_does_not_have_yet_is_found_on_the_primary() -> Result<()> {
    let ((slot, _), source) = (slot(), Source::new());
    *source.replica.lock().unwrap() = None;
    assert_eq!(get(&slot, &source).await?, Some(1));
    assert_eq!(get(&slot, &source).await?, Some(1));
    assert_eq!(source.asked(), [Read::Replica, Read::Primary]);
    Ok(())
}

#[tokio::test]
async fn an_answer_that_lacks_a_part_is_asked_of_the_primary() -> Result<()> {
    let subjects = Arc::new(Subjects::unlistened(Duration::MAX));
    let slot = Slot::of_parts("get", &config(), &subjects, true, |_, value| *value == 0);
    let source = Source::new();
    *source.replica.lock().unwrap() = Some(0);
    assert_eq!(get(&slot, &source).await?, Some(1));
    assert_eq!(source.asked(), [Read::Replica, Read::Primary]);
    Ok(())
}

#[tokio::test]
async fn without_a_replica_the_primary_is_asked_once() -> Result<()> {
    let subjects = Arc::new(Subjects::unlistened(Duration::MAX));
    let (slot, source) = (Slot::new("get", &config(), &subjects, false), Source::new());
    source.commit(None);
    assert_eq!(get(&slot, &source).await?, None);
    assert_eq!(source.asked(), [Read::Primary]);
    Ok(())
}

#[tokio::test]
async fn what_was_invalidated_is_read_on_the_primary() -> Result<()> {
    for changed in [ROW.subject(), project()] {
        let ((slot, subjects), source) = (slot(), Source::new());
        get(&slot, &source).await?;
        source.commit(Some(2));
        subjects.invalidate(&changed);
        assert_eq!(get(&slot, &source).await?, Some(2), "{changed:?}");
        assert_eq!(get(&slot, &source).await?, Some(2), "{changed:?}");
        assert_eq!(source.asked(), [Read::Replica, Read::Primary], "{changed:?}");
        assert_eq!(slot.stats().invalidations, 1);
    }
    Ok(())
}

/// No time is given to the replica, but there is a stale answer to tell by.
#[tokio::test]
async fn the_first_load_after_an_invalidation_reads_the_primary_however_late_it_is() -> Result<()> {
    let ((slot, subjects), source) = (slot_with(&config(), Subjects::unlistened(Duration::ZERO)), Source::new());
    get(&slot, &source).await?;
    source.commit(Some(2));
    subjects.invalidate(&project());
    assert_eq!(get(&slot, &source).await?, Some(2));
    assert_eq!(source.asked(), [Read::Replica, Read::Primary]);
    Ok(())
}

/// There is no stale answer to tell by, and the key does not name the row that was changed: the answer does.
#[tokio::test]
async fn an_answer_about_a_row_that_was_changed_lately_is_read_on_the_primary() -> Result<()> {
    let ((slot, subjects), source) = (slot(), Source::new());
    source.commit(Some(2));
    subjects.invalidate(&project());
    assert_eq!(get(&slot, &source).await?, Some(2));
    assert_eq!(source.asked(), [Read::Replica, Read::Primary]);

    source.catch_up();
    let (slot, _) = slot_with(&config(), Subjects::unlistened(Duration::ZERO));
    assert_eq!(get(&slot, &source).await?, Some(2));
    assert_eq!(source.asked(), [Read::Replica], "the replica had its time");
    Ok(())
}

#[tokio::test]
async fn an_error_reaches_all_who_wait_and_is_not_kept() -> Result<()> {
    let ((slot, _), source) = (slot(), Source::gated());
    source.fails.store(true, Relaxed);
    let mut waiting = JoinSet::new();
    for _ in 0..20 {
        let (slot, source) = (slot.clone(), Arc::clone(&source));
        waiting.spawn(async move { get(&slot, &source).await });
    }
    source.comes(1).await;
    all_have_come(&slot, 20).await;
    source.gate.add_permits(1);
    for answer in waiting.join_all().await {
        assert_eq!(answer.expect_err("the only load failed").kind(), &ErrorKind::Disconnected);
    }
    assert_eq!(source.asked().len(), 1, "one load for all");

    source.fails.store(false, Relaxed);
    source.gate.add_permits(1);
    assert_eq!(get(&slot, &source).await?, Some(1), "the next call asks again");
    let stats = slot.stats();
    assert_eq!((stats.loads, stats.failed_loads, stats.waiting), (2, 1, 0), "{stats:?}");
    Ok(())
}

/// Waits until `count` calls make a load or share one.
async fn all_have_come(slot: &Slot<Row, u32>, count: u64) {
    while slot.stats().waiting < count {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

#[tokio::test]
async fn a_caller_that_goes_away_takes_nothing_from_the_others() -> Result<()> {
    let ((slot, _), source) = (slot(), Source::gated());
    let first = tokio::spawn({
        let (slot, source) = (slot.clone(), Arc::clone(&source));
        async move { get(&slot, &source).await }
    });
    source.comes(1).await;
    let second = tokio::spawn({
        let (slot, source) = (slot.clone(), Arc::clone(&source));
        async move { get(&slot, &source).await }
    });
    all_have_come(&slot, 2).await;
    first.abort();
    assert!(first.await.is_err_and(|ended| ended.is_cancelled()), "it was waiting for the load");
    source.gate.add_permits(1);
    assert_eq!(second.await.expect("nobody aborts the second call")?, Some(1));
    assert_eq!(source.asked().len(), 1, "the load of the caller that is gone goes on");
    Ok(())
}

#[tokio::test]
async fn an_invalidation_beats_the_load_under_way() -> Result<()> {
    let ((slot, subjects), source) = (slot(), Source::gated());
    let before = tokio::spawn({
        let (slot, source) = (slot.clone(), Arc::clone(&source));
        async move { get(&slot, &source).await }
    });
    source.comes(1).await;

    source.commit(Some(2));
    subjects.invalidate(&project());
    let after = tokio::spawn({
        let (slot, source) = (slot.clone(), Arc::clone(&source));
        async move { get(&slot, &source).await }
    });
    all_have_come(&slot, 2).await;
    source.gate.add_permits(3);
    before.await.expect("nobody aborts the first call")?;
    assert_eq!(after.await.expect("nobody aborts the second call")?, Some(2), "it came after the invalidation");
    assert_eq!(get(&slot, &source).await?, Some(2), "and what it loaded was kept");
    Ok(())
}

#[tokio::test]
async fn while_nobody_listens_everybody_asks_the_primary() -> Result<()> {
    let ((slot, subjects), source) = (slot_with(&config(), Subjects::deaf(Duration::ZERO)), Source::new());
    for value in 1..=3 {
        source.commit(Some(value));
        assert_eq!(get(&slot, &source).await?, Some(value));
    }
    assert_eq!(source.asked(), [Read::Primary; 3]);

    subjects.hear();
    for _ in 0..3 {
        assert_eq!(get(&slot, &source).await?, Some(3));
    }
    assert_eq!(source.asked(), [Read::Primary], "what was loaded before holds no longer, what is loaded now does");
    Ok(())
}

#[tokio::test]
async fn those_who_wait_together_share_loads_even_while_nobody_listens() -> Result<()> {
    let ((slot, _), source) = (slot_with(&config(), Subjects::deaf(Duration::ZERO)), Source::gated());
    let mut waiting = JoinSet::new();
    for _ in 0..1_000 {
        let (slot, source) = (slot.clone(), Arc::clone(&source));
        waiting.spawn(async move { get(&slot, &source).await });
    }
    source.comes(1).await;
    all_have_come(&slot, 1_000).await;
    source.gate.add_permits(1_000);
    for answer in waiting.join_all().await {
        assert_eq!(answer?, Some(1));
    }
    let loads = source.asked().len();
    assert!(loads <= 3, "who came after the first load began waits for the second, but there were {loads}");
    Ok(())
}

#[tokio::test]
async fn nothing_is_kept_for_no_time() -> Result<()> {
    let config = CacheConfig { time_to_live: Duration::ZERO, ..config() };
    let ((slot, _), source) = (slot_with(&config, Subjects::unlistened(Duration::ZERO)), Source::new());
    for value in 1..=3 {
        source.commit(Some(value));
        source.catch_up();
        assert_eq!(get(&slot, &source).await?, Some(value));
    }
    let many = slot.get_many(HashSet::from([ROW]), |read, keys| many_of(&source, read, keys)).await?;
    assert_eq!(many[&ROW], Some(3));
    assert_eq!(slot.stats().hits, 0);
    Ok(())
}

#[tokio::test]
async fn an_answer_is_kept_for_its_time_only() -> Result<()> {
    let config = CacheConfig { time_to_live: Duration::from_millis(50), ..config() };
    let ((slot, _), source) = (slot_with(&config, Subjects::unlistened(Duration::ZERO)), Source::new());
    assert_eq!(get(&slot, &source).await?, Some(1));
    source.commit(Some(2));
    source.catch_up();
    for _ in 0..10_000 {
        if get(&slot, &source).await? == Some(2) {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    panic!("an answer is still told long after its time: does the slot pass its time to live on?");
}

/// How long an answer is told by [`hurried`] slots; a load of theirs takes longer.
const SHORT: Duration = Duration::from_millis(50);

fn hurried() -> Slot<Row, u32> {
    slot_with(&CacheConfig { time_to_live: SHORT, ..config() }, Subjects::unlistened(Duration::ZERO)).0
}

#[tokio::test]
async fn the_time_of_an_answer_is_counted_from_the_beginning_of_its_load() -> Result<()> {
    let (slot, slow) = (hurried(), Source::gated());
    let first = tokio::spawn({
        let (slot, source) = (slot.clone(), Arc::clone(&slow));
        async move { get(&slot, &source).await }
    });
    slow.comes(1).await;
    tokio::time::sleep(2 * SHORT).await;
    slow.gate.add_permits(1);
    assert_eq!(first.await.expect("nobody aborts the call")?, Some(1), "it came before the load began");

    let source = Source::new();
    source.commit(Some(2));
    source.catch_up();
    assert_eq!(get(&slot, &source).await?, Some(2), "the answer was older than its time when it came");
    assert_eq!(slot.stats().invalidations, 0, "nothing was changed");
    Ok(())
}

#[tokio::test]
async fn a_load_that_began_too_long_ago_is_not_shared() -> Result<()> {
    let (slot, source) = (hurried(), Source::gated());
    let call = || {
        let (slot, source) = (slot.clone(), Arc::clone(&source));
        tokio::spawn(async move { get(&slot, &source).await })
    };
    let first = call();
    source.comes(1).await;
    tokio::time::sleep(2 * SHORT).await;
    source.commit(Some(2));
    source.catch_up();
    let second = call();
    all_have_come(&slot, 2).await;
    source.gate.add_permits(2);
    assert_eq!(first.await.expect("nobody aborts the first call")?, Some(1));
    assert_eq!(second.await.expect("nobody aborts the second call")?, Some(2), "the first load is older than that");
    Ok(())
}

#[tokio::test]
async fn a_time_that_nobody_lives_to_see_is_cut_short() {
    let config = CacheConfig { time_to_live: Duration::MAX, ..config() };
    let ((slot, _), source) = (slot_with(&config, Subjects::unlistened(Duration::ZERO)), Source::new());
    assert_eq!(get(&slot, &source).await.expect("the source answers"), Some(1));
}

/// Answers for many keys: with their own number, or what `source` has for [`ROW`].
async fn many_of(source: &Source, read: Read, keys: Vec<Row>) -> Result<HashMap<Row, Answer<u32>>> {
    let mut answers = HashMap::new();
    for key in keys {
        let other = Answer { value: Some(key.0), about: vec![key.subject()] };
        let answer = if key == ROW { source.answer(read).await? } else { other };
        answers.insert(key, answer);
    }
    Ok(answers)
}

#[tokio::test]
async fn many_keys_take_one_question_and_share_what_is_kept() -> Result<()> {
    let ((slot, subjects), source) = (slot(), Source::new());
    assert_eq!(get(&slot, &source).await?, Some(1));
    let keys = HashSet::from([ROW, Row(2), Row(3)]);
    let ask = |read, keys: Vec<Row>| {
        assert!(!keys.contains(&ROW), "a single call keeps it");
        many_of(&source, read, keys)
    };
    assert_eq!(slot.get_many(keys.clone(), ask).await?.len(), 3);
    assert_eq!(slot.stats().loads, 2, "one for the single key, one for the two others");

    source.commit(Some(7));
    subjects.invalidate(&ROW.subject());
    let found = slot.get_many(keys, |read, keys| many_of(&source, read, keys)).await?;
    assert_eq!((found[&ROW], found[&Row(2)]), (Some(7), Some(2)), "what was invalidated is read on the primary");
    assert_eq!(get(&slot, &source).await?, Some(7), "a call for many keeps it for single ones");
    assert_eq!(source.asked(), [Read::Replica, Read::Primary]);
    Ok(())
}

#[tokio::test]
async fn an_answer_of_a_call_for_many_does_not_take_the_place_of_a_newer_one() -> Result<()> {
    let ((slot, _), slow, source) = (slot(), Source::gated(), Source::new());
    let many = tokio::spawn({
        let (slot, slow) = (slot.clone(), Arc::clone(&slow));
        async move { slot.get_many(HashSet::from([ROW]), |read, keys| many_of(&slow, read, keys)).await }
    });
    slow.comes(1).await;
    source.commit(Some(2));
    source.catch_up();
    assert_eq!(get(&slot, &source).await?, Some(2), "its load began later, and is over first");
    slow.gate.add_permits(1);
    assert_eq!(many.await.expect("nobody aborts the call")?[&ROW], Some(1), "what was there when it came");
    assert_eq!(get(&slot, &source).await?, Some(2), "time does not go back");
    assert_eq!(source.asked().len(), 1, "the newer answer is still kept");
    Ok(())
}

#[tokio::test]
async fn of_many_keys_those_that_the_replica_does_not_have_are_asked_of_the_primary() -> Result<()> {
    let ((slot, _), source) = (slot(), Source::new());
    *source.replica.lock().unwrap() = None;
    let found = slot.get_many(HashSet::from([ROW, Row(2)]), |read, keys| many_of(&source, read, keys)).await?;
    assert_eq!((found[&ROW], found[&Row(2)]), (Some(1), Some(2)));
    assert_eq!(source.asked(), [Read::Replica, Read::Primary]);
    let stats = slot.stats();
    assert_eq!((stats.loads, stats.primary_rereads), (2, 1), "{stats:?}");
    Ok(())
}

#[tokio::test]
async fn a_load_that_panics_takes_only_its_callers_with_it() -> Result<()> {
    let ((slot, _), source) = (slot(), Source::new());
    let failed = tokio::spawn({
        let slot = slot.clone();
        async move { slot.get(ROW, |_| async { panic!("a loader that panics, as this test wants it") }).await }
    });
    assert!(failed.await.is_err_and(|ended| ended.is_panic()), "the panic reaches the caller");
    assert_eq!(get(&slot, &source).await?, Some(1));
    Ok(())
}

#[tokio::test]
async fn memory_is_bounded_with_a_million_keys() -> Result<()> {
    const KEYS: u32 = 1_000_000;
    let (slot, subjects) = slot();
    for first in (0..KEYS).step_by(1_000) {
        let answer = |_, keys: Vec<Row>| async {
            Ok(keys.into_iter().map(|key| (key.clone(), Answer { value: Some(key.0), about: Vec::new() })).collect())
        };
        let found = slot.get_many((first..first + 1_000).map(Row).collect(), answer).await?;
        assert_eq!(found.len(), 1_000);
        subjects.invalidate(&Row(first).subject());
    }
    let cache = slot.0.kept.as_ref().expect("answers are kept");
    cache.run_pending_tasks().await;
    let entries = slot.stats().entries;
    assert!((1..=config().capacity).contains(&entries), "{entries} answers are kept, of {} at most", config().capacity);
    assert_eq!(cache.iter().count() as u64, entries, "what is counted is what is there");
    Ok(())
}

#[tokio::test]
async fn what_was_asked_for_lately_stays() -> Result<()> {
    let config = CacheConfig { capacity: 2, ..config() };
    let (slot, _) = slot_with(&config, Subjects::unlistened(Duration::ZERO));
    let ask = |key: u32| slot.get(Row(key), move |_| async move { Ok(Answer { value: Some(key), about: Vec::new() }) });
    let cache = slot.0.kept.as_ref().expect("answers are kept");
    for key in [1, 2, 1, 3] {
        ask(key).await?;
        cache.run_pending_tasks().await;
    }
    let kept: HashSet<_> = cache.iter().map(|(key, _)| key.0).collect();
    assert_eq!(kept, HashSet::from([1, 3]), "2 was not asked for the longest");
    Ok(())
}

#[tokio::test]
async fn a_slot_does_not_show_what_it_keeps() -> Result<()> {
    let (slot, _) = slot();
    let secret = 87_654_321;
    slot.get(ROW, move |_| async move { Ok(Answer { value: Some(secret), about: Vec::new() }) }).await?;
    let shown = format!("{slot:?}");
    assert!(shown.contains("misses: 1") && !shown.contains("87654321"), "{shown}");
    Ok(())
}

#[tokio::test]
async fn memory_is_bounded_with_unknown_keys_that_are_asked_for_one_by_one() -> Result<()> {
    /// Twenty times as many as there is room for. Each is two loads, so a million would take long.
    const KEYS: u32 = 200_000;
    let (slot, _) = slot();
    let cache = slot.0.kept.as_ref().expect("answers are kept");
    for key in 0..KEYS {
        let found = slot.get(Row(key), |_| async { Ok(Answer { value: None, about: Vec::new() }) }).await?;
        assert_eq!(found, None, "an unknown key is answered too");
        if key % 10_000 == 0 {
            let held = cache.iter().count() as u64;
            // It is tidied up as it is written to, and until then holds more.
            assert!(held <= 2 * config().capacity, "{held} answers are held after {key} keys");
        }
    }
    let stats = slot.stats();
    assert_eq!((stats.misses, stats.hits), (KEYS.into(), 0), "no key was asked for before: {stats:?}");
    cache.run_pending_tasks().await;
    let entries = slot.stats().entries;
    assert!((1..=config().capacity).contains(&entries), "{entries} answers are kept, of {} at most", config().capacity);
    assert_eq!(cache.iter().count() as u64, entries, "what is counted is what is there");
    Ok(())
}
