//! Waitpoints, and runs that wait for them.

use std::collections::VecDeque;

use anyhow::{Result, bail};
use store::{
    BatchCompletion, BlockRun, CompleteWaitpoint, CompletionContext, CompletionRoute, CreateWaitpointOutcome, Effect,
    NewWaitpoint, Placement, Residency, ResumeOutcome, ResumeRun, RunId, RunStore, StoreError, UpsertedWaitpoint,
    Waitpoint, WaitpointId, WaitpointKind, WaitpointOutput,
};

use crate::runs::{Home, side_of};

/// A token of the home's environment that is not there yet and that nobody owns, in the database of `residency`.
pub fn token_in(home: &Home<'_>, residency: Residency) -> NewWaitpoint {
    NewWaitpoint {
        id: WaitpointId::mint(),
        placement: Placement::In(residency),
        kind: WaitpointKind::Manual { timeout: None },
        environment: home.environment().id.clone(),
        project: home.environment().project.clone(),
        key: None,
        tags: Vec::new(),
    }
}

/// What was created.
///
/// # Errors
/// If nothing was.
pub fn made(outcome: CreateWaitpointOutcome) -> Result<UpsertedWaitpoint> {
    match outcome {
        CreateWaitpointOutcome::Created(created) => Ok(*created),
        CreateWaitpointOutcome::KeyTaken => bail!("the key of the waitpoint is taken"),
    }
}

/// Makes a token of the home's environment in the database of `residency`.
///
/// # Errors
/// If the store refuses.
pub async fn create_token(home: &Home<'_>, residency: Residency) -> Result<WaitpointId> {
    let new = token_in(home, residency);
    let id = new.id.clone();
    let _made = made(home.store().create_waitpoint(new).await?)?;
    Ok(id)
}

/// An output.
pub fn output(text: &str) -> WaitpointOutput {
    WaitpointOutput { output: Some(text.to_owned()), output_type: "text/plain".to_owned(), is_error: false }
}

/// A completion that knows nothing of where the waitpoint is.
pub fn completion(text: &str) -> CompleteWaitpoint {
    CompleteWaitpoint { output: output(text), context: CompletionContext::of(CompletionRoute::Manual) }
}

/// Held up by these, in the project of the home.
pub fn block_by(home: &Home<'_>, waitpoints: &[&WaitpointId]) -> BlockRun {
    let waitpoints = waitpoints.iter().map(|id| (*id).clone()).collect();
    BlockRun::by(waitpoints, home.environment().project.clone())
}

/// The runs that effects ask to continue.
pub fn continued(effects: &[Effect]) -> Vec<RunId> {
    let continued = effects.iter().filter_map(|effect| match effect {
        Effect::ContinueRun { run } => Some(*run),
        _ => None,
    });
    continued.collect()
}

/// Carries out what effects ask of the store, and what comes of that, until nothing more is asked: waitpoints are
/// completed, batches ended, those who wait are woken, with `resume`. Returns what is for others: queue, workers,
/// listeners.
///
/// # Errors
/// If the store refuses a step. What it asks for is to be carried out again then.
pub async fn carry_out(
    store: &dyn RunStore,
    effects: Vec<Effect>,
    resume: &ResumeRun,
) -> Result<Vec<Effect>, StoreError> {
    carry_out_and_tell(store, effects, resume, |_| ()).await
}

/// As [`carry_out`]; tells which runs it takes on to continue, each before it does.
///
/// # Errors
/// As [`carry_out`].
pub async fn carry_out_and_tell(
    store: &dyn RunStore,
    effects: Vec<Effect>,
    resume: &ResumeRun,
    mut takes_on: impl FnMut(RunId) + Send,
) -> Result<Vec<Effect>, StoreError> {
    let mut asked = VecDeque::from(effects);
    let mut for_others = Vec::new();
    while let Some(effect) = asked.pop_front() {
        match effect {
            Effect::CompleteWaitpoint { id, beside, output } => {
                let done = store.complete_waitpoint(&id, CompleteWaitpoint::beside(beside, output)).await?;
                asked.extend(done.effects);
            }
            Effect::WakeWaiters { waitpoint } => {
                asked.extend(store.wake_waiters(&waitpoint, None).await?.effects);
            }
            Effect::ContinueRun { run } => {
                takes_on(run);
                match store.resume_unblocked_run(&run, resume.clone()).await? {
                    ResumeOutcome::Resumed(done) | ResumeOutcome::Requeued(done) => asked.extend(done.effects),
                    ResumeOutcome::StillBlocked { .. } | ResumeOutcome::Skipped(_) => {}
                }
            }
            Effect::TryCompleteBatch { batch } => match store.complete_batch_if_done(&batch).await? {
                BatchCompletion::Completed(ended) | BatchCompletion::AlreadyDone(ended) => asked.extend(ended.effects),
                BatchCompletion::NotFound | BatchCompletion::StillCreating | BatchCompletion::MembersRunning(_) => {}
            },
            other => for_others.push(other),
        }
    }
    Ok(for_others)
}

/// Writes a copy of a waitpoint into the other database by SQL, in `status`. The store never does.
///
/// # Errors
/// If the database refuses.
pub async fn plant_waitpoint(
    home: &Home<'_>,
    databases: &crate::Databases,
    residency: Residency,
    id: &WaitpointId,
    status: &str,
) -> Result<()> {
    let environment = home.environment();
    databases
        .sql(
            side_of(residency),
            &format!(
                "INSERT INTO waitpoint (id, friendly_id, type, status, idempotency_key, user_provided_idempotency_key,
                    project_id, environment_id, updated_at, output)
                 VALUES ('{id}', '{}', 'MANUAL', '{status}', '{id}', FALSE, '{}', '{}', now(), 'planted')",
                id.friendly(),
                environment.project,
                environment.id,
            ),
        )
        .await?;
    Ok(())
}

/// A waitpoint, read from a database directly.
///
/// # Errors
/// If the database refuses.
pub async fn stored(home: &Home<'_>, residency: Residency, id: &WaitpointId) -> Result<Option<Waitpoint>> {
    home.on(side_of(residency)).waitpoint(id).await
}
