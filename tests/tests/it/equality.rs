//! A split equals a single database, and every fault of the router is caught by that.
//!
//! Drawn sequences of steps are done on both; see [`tests::equality`]. The seed is fixed, so that a run of the suite is
//! repeatable: `EQUALITY_SEED=7` draws others, `EQUALITY_SEQUENCES=5000` more of them.

use std::sync::atomic::AtomicBool;
use std::thread;

use anyhow::{Context, Result, anyhow, bail, ensure};
use tests::equality::fault::Fault;
use tests::equality::{Arena, Coverage, Subject};

/// Sequences of the property, if nothing else is asked for.
const SEQUENCES: u32 = 500;

/// Sequences in which a fault has to show.
const FAULTY_SEQUENCES: u32 = 200;

/// Sequences that are done at the same time, each on databases of its own.
const WORKERS: u32 = 4;

fn given(variable: &str) -> Result<Option<u64>> {
    let text = std::env::var(variable).ok();
    text.map(|text| text.parse().with_context(|| format!("{variable} must be a number"))).transpose()
}

/// What a search of one worker has come to.
struct Searched {
    coverage: Coverage,
    lost_links: u64,
    /// What tells the stores apart, if anything does.
    difference: Option<anyhow::Error>,
}

/// A search of one worker. If it fails the others begin no more.
fn search(subject: Subject, seed: u64, sequences: u32, stopped: &AtomicBool) -> Result<Searched> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let arena = runtime.block_on(Arena::fresh(subject))?;
    let gone_through = runtime.block_on(arena.go_through_waits());
    let searched = gone_through.and_then(|()| arena.search(&runtime, seed, sequences, stopped));
    let difference = searched.err();
    let searched = Searched { coverage: arena.coverage(), lost_links: arena.lost_links(), difference };
    // The databases go while their runtime is there.
    let _on = runtime.enter();
    drop(arena);
    Ok(searched)
}

/// One worker's part of the sequences that begin in every state.
fn go_through_states(worker: u32) -> Result<Coverage> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let arena = runtime.block_on(Arena::fresh(Subject::Connected))?;
    let gone_through = runtime.block_on(arena.go_through_states(worker as usize, WORKERS as usize));
    let coverage = arena.coverage();
    let _on = runtime.enter();
    drop(arena);
    gone_through.map(|()| coverage)
}

/// A search that is to find nothing.
fn search_in_vain(subject: Subject, seed: u64, sequences: u32, stopped: &AtomicBool) -> Result<Coverage> {
    let Searched { coverage, difference, .. } = search(subject, seed, sequences, stopped)?;
    match difference {
        Some(difference) => Err(difference),
        None => Ok(coverage),
    }
}

#[test]
fn a_split_answers_and_stores_what_a_single_database_does() -> Result<()> {
    let seed = given("EQUALITY_SEED")?.unwrap_or(1);
    let asked_for = given("EQUALITY_SEQUENCES")?.map(u32::try_from).transpose()?;
    let sequences = asked_for.unwrap_or(SEQUENCES).div_ceil(WORKERS);
    let stopped = AtomicBool::new(false);
    let coverage = thread::scope(|scope| {
        let stopped = &stopped;
        let seed_of = |worker| seed * u64::from(WORKERS) + u64::from(worker);
        let search = |worker| {
            move || {
                let mut coverage = go_through_states(worker)?;
                coverage.absorb(&search_in_vain(Subject::Connected, seed_of(worker), sequences, stopped)?);
                anyhow::Ok(coverage)
            }
        };
        let workers: Vec<_> = (0..WORKERS).map(|worker| scope.spawn(search(worker))).collect();
        let mut coverage = Coverage::default();
        let mut failures = Vec::new();
        for worker in workers {
            match worker.join().map_err(|_| anyhow!("a worker has panicked"))? {
                Ok(reached) => coverage.absorb(&reached),
                Err(failure) => failures.push(format!("{failure:#}")),
            }
        }
        let count = failures.len();
        match failures.into_iter().min_by_key(String::len) {
            Some(failure) => Err(anyhow!("{failure}\n({count} of {WORKERS} workers have found something)")),
            None => Ok(coverage),
        }
    })?;
    println!("EQUALITY_SEED={seed}, {} sequences\n{coverage}", sequences * WORKERS);
    let missing = coverage.missing();
    // A short search is not asked for everything.
    let is_whole = sequences * WORKERS >= SEQUENCES;
    ensure!(missing.is_empty() || !is_whole, "the sequences have not reached {missing:#?}; widen `equality::steps`");
    ensure!(coverage.steps() >= 40, "the sequences have done {} kinds of steps", coverage.steps());
    Ok(())
}

#[test]
fn a_split_behind_poolers_answers_and_stores_what_a_single_database_does() -> Result<()> {
    search_in_vain(Subject::Pooled, 1, 60, &AtomicBool::default()).map(drop)
}

/// The search has to find out that something is wrong. Returns what it has come to, and how it tells the difference.
fn check_caught(fault: Fault) -> Result<(Searched, String)> {
    let searched = search(Subject::Through(Some(fault)), 1, FAULTY_SEQUENCES, &AtomicBool::default())?;
    let Some(difference) = &searched.difference else {
        bail!("{fault:?} was not caught in {FAULTY_SEQUENCES} sequences; widen `equality::steps`");
    };
    let told = format!("{difference:#}");
    println!("{told}");
    ensure!(told.contains("differ"), "{fault:?} is not told by a difference: {told}");
    Ok((searched, told))
}

#[test]
fn a_store_that_only_hands_calls_on_is_equal() -> Result<()> {
    search_in_vain(Subject::Through(None), 1, 30, &AtomicBool::default()).map(drop)
}

#[test]
fn a_transition_that_goes_to_the_other_database_is_caught() -> Result<()> {
    check_caught(Fault::Misrouted("start_attempt")).map(drop)
}

#[test]
fn a_read_that_goes_to_the_other_database_is_caught() -> Result<()> {
    check_caught(Fault::Misrouted("find_run")).map(drop)
}

#[test]
fn an_edge_that_is_written_in_the_other_database_is_caught() -> Result<()> {
    check_caught(Fault::Misrouted("block_run_with_waitpoint_edges")).map(drop)
}

#[test]
fn a_lost_link_of_a_completed_waitpoint_is_caught() -> Result<()> {
    let (searched, told) = check_caught(Fault::LostLink)?;
    ensure!(searched.lost_links > 0, "no link was lost: {told}");
    // Whatever looks at the links before the end may come upon it first.
    let readers = [
        "CurrentSnapshot",
        "Since",
        "CompletedIds",
        "CompletedSnapshots",
        "LoadOfRuns",
        "LoadOfSnapshots",
        "LoadOfWaitpoints",
    ];
    let is_of_links = told.contains("what is stored differs")
        || readers.iter().any(|reader| told.contains(&format!("{reader} is answered differently")));
    ensure!(is_of_links, "a lost link is told by something else: {told}");
    Ok(())
}

#[test]
fn swapped_precedence_is_caught() -> Result<()> {
    check_caught(Fault::SwappedPrecedence).map(drop)
}

#[test]
fn a_dropped_limit_is_caught() -> Result<()> {
    check_caught(Fault::DroppedLimit).map(drop)
}

#[test]
fn a_completion_that_does_not_look_for_edges_in_the_other_database_is_caught() -> Result<()> {
    check_caught(Fault::UnseenEdges).map(drop)
}

#[test]
fn nulls_at_the_other_end_are_caught() -> Result<()> {
    check_caught(Fault::FlippedNulls).map(drop)
}
