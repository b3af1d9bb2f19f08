//! Creations and transitions.

use anyhow::{Context, Result, bail, ensure};
use store::{
    BlockRun, CompleteAttemptSuccess, CompleteWaitpoint, CompletionContext, CompletionRoute, CreateRun, Edge,
    LockRunToWorker, ResumeOutcome, ResumeRun, RunId, SnapshotDetails, StartAttempt, Waitpoint, WaitpointStatus,
};
use tests::runs::{Seeded, complete_from, created, expiry, lock_to_worker, start_from};

use crate::{
    bed::{self, Bed, State, Waiting},
    by_hand,
    measure::{Answers, Operation, operation},
    plain::{self, Step, either},
};

/// Runs that are expired at once.
const BATCH: usize = 100;

pub(crate) fn list() -> Vec<Operation> {
    vec![
        operation(
            "create_run",
            Answers::Stored,
            async |bed, count| Ok(new_runs(bed, count, bed::queued)),
            |input| Some(input.run.id),
            create,
            async |bed, input| by_hand::create(bed, input.run.id, input.waitpoint).await,
            async |bed, input| plain::create(bed, input.run.id, input.waitpoint).await,
        ),
        operation(
            "create_run, awaited",
            Answers::Stored,
            async |bed, count| Ok(new_runs(bed, count, bed::awaited)),
            |input| Some(input.run.id),
            create,
            async |bed, input| by_hand::create(bed, input.run.id, input.waitpoint).await,
            async |bed, input| plain::create(bed, input.run.id, input.waitpoint).await,
        ),
        operation(
            "lock_run_to_worker",
            Answers::Stored,
            async |bed, count| {
                let runs = bed.runs_in(State::Queued, count).await?;
                Ok(with(runs, |run| lock_to_worker(&run.snapshot)))
            },
            |(run, _)| Some(run.id),
            async |bed, (run, input): (Seeded, LockRunToWorker)| {
                let done = bed.store.lock_run_to_worker(&run.id, input).await?;
                Ok((done.value, done.snapshot.context("a transition has a snapshot")?))
            },
            async |bed, (run, input)| by_hand::lock(bed, run, input).await,
            async |bed, (run, _)| Ok(either!(bed, transition(&run, Step::Lock))),
        ),
        operation(
            "start_attempt",
            Answers::Stored,
            async |bed, count| {
                let runs = bed.runs_in(State::Locked, count).await?;
                Ok(with(runs, |run| start_from(&run.snapshot)))
            },
            |(run, _)| Some(run.id),
            async |bed, (run, input): (Seeded, StartAttempt)| {
                let done = bed.store.start_attempt(&run.id, input).await?;
                Ok((done.value, done.snapshot.context("a transition has a snapshot")?))
            },
            async |bed, (run, input)| by_hand::start(bed, run, input).await,
            async |bed, (run, _)| Ok(either!(bed, transition(&run, Step::Start))),
        ),
        operation(
            "complete_attempt_success",
            Answers::Stored,
            async |bed, count| {
                let runs = bed.runs_in(State::Executing, count).await?;
                Ok(with(runs, |run| complete_from(&run.snapshot)))
            },
            |(run, _)| Some(run.id),
            async |bed, (run, input): (Seeded, CompleteAttemptSuccess)| {
                let done = bed.store.complete_attempt_success(&run.id, input).await?;
                Ok((done.value, done.snapshot.context("a transition has a snapshot")?))
            },
            async |bed, (run, input)| by_hand::complete(bed, run, input).await,
            async |bed, (run, _)| Ok(either!(bed, transition(&run, Step::Complete))),
        ),
        operation(
            "block_run",
            Answers::Stored,
            async |bed, count| bed.about_to_wait(count).await,
            |waiting| Some(waiting.run.id),
            async |bed, waiting: Waiting| {
                let input = BlockRun::by(vec![waiting.token], bed.environment.project.clone());
                let blocked = bed.store.block_run(&waiting.run.id, input, SnapshotDetails::default()).await?;
                ensure!(blocked.pending.len() == 1, "the token is not pending");
                let done = blocked.transition;
                Ok((done.value, done.snapshot.context("a transition has a snapshot")?))
            },
            async |bed, waiting| {
                let (run, snapshot, pending) = by_hand::block(bed, waiting).await?;
                ensure!(pending == 1, "the token is not pending");
                Ok((run, snapshot))
            },
            async |bed, waiting| Ok(either!(bed, block(&waiting, &bed.environment))),
        ),
        operation(
            "complete_waitpoint",
            Answers::Equal,
            async |bed, count| bed.waiting_for(WaitpointStatus::Pending, count).await,
            |_| None,
            async |bed, waiting: Waiting| {
                let context = CompletionContext::of(CompletionRoute::Manual);
                let context = CompletionContext { beside: Some(waiting.run.id), ..context };
                let input = CompleteWaitpoint { output: bed::output(), context };
                let done = bed.store.complete_waitpoint(&waiting.token, input).await?;
                Ok(told(&waiting, done.waitpoint, &done.edges))
            },
            async |bed, waiting| {
                let (waitpoint, edges) = by_hand::complete_token(bed, &waiting, &bed::output()).await?;
                Ok(told(&waiting, waitpoint, &edges))
            },
            async |bed, waiting| plain::complete_token(bed, &waiting, &bed::output()).await,
        ),
        operation(
            "resume_unblocked_run",
            Answers::Stored,
            async |bed, count| bed.waiting_for(WaitpointStatus::Completed, count).await,
            |waiting| Some(waiting.run.id),
            async |bed, Waiting { run, .. }: Waiting| {
                let input = ResumeRun { from: Some(run.snapshot), ..ResumeRun::default() };
                match bed.store.resume_unblocked_run(&run.id, input).await? {
                    ResumeOutcome::Resumed(done) => {
                        Ok((done.value, done.snapshot.context("a transition has a snapshot")?))
                    }
                    outcome => bail!("the run was not resumed: {outcome:?}"),
                }
            },
            async |bed, waiting| by_hand::resume(bed, waiting).await,
            async |bed, waiting| Ok(either!(bed, resume(&waiting.run))),
        ),
        operation(
            "expire_runs_batch (100)",
            Answers::Equal,
            async |bed, count| {
                let runs = bed.runs_in(State::Queued, count * BATCH).await?;
                let ids: Vec<RunId> = runs.into_iter().map(|run| run.id).collect();
                Ok(ids.chunks(BATCH).map(<[RunId]>::to_vec).collect())
            },
            |_| None,
            async |bed, ids: Vec<RunId>| Ok(bed.store.expire_runs_batch(&ids, expiry()).await?.expired.len()),
            async |bed, ids| by_hand::expire(bed, ids, &expiry().error).await,
            async |bed, ids| Ok(either!(bed, expire(ids.clone(), &expiry().error))),
        ),
    ]
}

fn new_runs(
    bed: &Bed,
    count: usize,
    input: impl Fn(store::Residency, &store::Environment) -> CreateRun,
) -> Vec<CreateRun> {
    std::iter::repeat_with(|| input(bed.residency(), &bed.environment)).take(count).collect()
}

async fn create(bed: &Bed, input: CreateRun) -> Result<(store::Run, store::Snapshot)> {
    let done = created(bed.store.create_run(input).await?)?;
    Ok((done.value.run, done.snapshot.context("a created run has a snapshot")?))
}

fn with<I>(runs: Vec<Seeded>, input: impl Fn(&Seeded) -> I) -> Vec<(Seeded, I)> {
    runs.into_iter()
        .map(|run| {
            let input = input(&run);
            (run, input)
        })
        .collect()
}

/// What is the same of a completed token whichever it is: its state and output, and how often its run is found waiting.
fn told(waiting: &Waiting, waitpoint: Waitpoint, edges: &[Edge]) -> ((WaitpointStatus, Option<String>, bool), usize) {
    let found = edges.iter().filter(|edge| edge.task_run_id == waiting.run.id.as_str()).count();
    ((waitpoint.status, waitpoint.output, waitpoint.output_is_error), found)
}
