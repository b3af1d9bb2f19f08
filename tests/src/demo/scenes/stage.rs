//! What a scene is played on: a store with a clock that is turned by hand, and the application around it, a queue, timed
//! jobs and a worker, which does nothing but carry out the effects it is given.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
};

use anyhow::{Context, Result, bail, ensure};
use chrono::{DateTime, TimeDelta, TimeZone, Utc};
use serde_json::json;
use store::{
    BatchCompletion, BatchId, Clock, CompleteAttemptSuccess, CompleteWaitpoint, CompletionContext, CompletionRoute,
    CreateRun, CreateWaitpointOutcome, CreatedRun, Effect, EnqueueDelayedOutcome, EnqueueDelayedRun, Environment,
    ExecutionStatus, FailRunPermanently, FailedStatus, Job, LockRunToWorker, NewRun, NewWaitpoint, Payload, Placement,
    Read, Residency, ResumeOutcome, ResumeRun, Routable, Run, RunId, RunRow, RunStore, Snapshot, SnapshotDetails,
    SnapshotId, SnapshotRow, Start, StartAttempt, Trace, Transition, Usage, WaitpointCompletion, WaitpointId,
    WaitpointKind, WaitpointOutput,
};

use super::same;
use crate::{
    Both,
    clock::Hands,
    demo::{
        ledger::Expected,
        world::{Place, SCENES_QUEUE, SCENES_TASK},
    },
    moves::run_of,
    runs::split_config,
};

/// A run, as the last write returned it.
pub(super) struct Actor {
    pub(super) id: RunId,
    pub(super) name: String,
    pub(super) run: Run,
    snapshot: Snapshot,
    /// One for each snapshot.
    pub(super) states: Vec<ExecutionStatus>,
}

impl Actor {
    /// What the check has to find of it.
    pub(super) fn expected(&self) -> Result<Expected> {
        Ok(Expected {
            id: self.id,
            status: self.run.status,
            current: Some((self.snapshot.snapshot_id()?, self.snapshot.execution_status)),
            snapshots: i64::try_from(self.states.len())?,
            has_waitpoint: false,
        })
    }
}

pub(super) struct Stage<'a> {
    pub(super) store: Arc<dyn RunStore>,
    place: &'a Place,
    clock: Arc<Hands>,
    pub(super) cast: Vec<Actor>,
    /// Tokens that nobody owns, or a run that waits, and where they were put.
    pub(super) tokens: Vec<(WaitpointId, Residency)>,
    queue: VecDeque<RunId>,
    jobs: HashMap<Job, DateTime<Utc>>,
    /// What became of looking at a batch.
    pub(super) looks: Vec<BatchCompletion>,
}

impl<'a> Stage<'a> {
    pub(super) async fn set(urls: &Both<String>, place: &'a Place) -> Result<Self> {
        let curtain = Utc.with_ymd_and_hms(2026, 8, 1, 9, 0, 0).single().context("UTC has no gaps")?;
        let clock = Arc::new(Hands::at(curtain));
        let mut config = split_config(|side| urls.get(side))?;
        config.clock = Arc::clone(&clock) as Arc<dyn Clock>;
        Ok(Stage {
            store: store::connect(&config).await?,
            place,
            clock,
            cast: Vec::new(),
            tokens: Vec::new(),
            queue: VecDeque::new(),
            jobs: HashMap::new(),
            looks: Vec::new(),
        })
    }

    pub(super) fn environment(&self) -> &Environment {
        &self.place.environment
    }

    pub(super) fn now(&self) -> DateTime<Utc> {
        self.clock.now()
    }

    /// Turns the clock on, and does the jobs that are due then.
    pub(super) async fn turn(&mut self, by: TimeDelta) -> Result<()> {
        let now = self.now() + by;
        self.clock.turn_to(now);
        let due: Vec<Job> = self.jobs.iter().filter(|(_, at)| **at <= now).map(|(job, _)| job.clone()).collect();
        for job in due {
            self.jobs.remove(&job);
            let Job::EnqueueDelayed(run) = job else { bail!("no scene has armed {job:?}") };
            match self.enqueue(&run).await? {
                EnqueueDelayedOutcome::Enqueued(transition) => self.became(*transition).await?,
                outcome => bail!("a delayed run whose date has come was not queued: {outcome:?}"),
            }
        }
        Ok(())
    }

    pub(super) async fn enqueue(&self, run: &RunId) -> Result<EnqueueDelayedOutcome> {
        Ok(self.store.enqueue_delayed_run(run, EnqueueDelayedRun::default()).await?)
    }

    /// When a delayed run is to be queued.
    pub(super) fn alarm(&self, run: &RunId) -> Option<DateTime<Utc>> {
        self.jobs.get(&Job::EnqueueDelayed(*run)).copied()
    }

    pub(super) fn is_queued(&self, run: &RunId) -> bool {
        self.queue.contains(run)
    }

    pub(super) fn actor(&self, run: &RunId) -> Result<&Actor> {
        self.cast.iter().find(|actor| actor.id == *run).context("a run that is in no scene")
    }

    pub(super) fn state(&self, run: &RunId) -> Result<ExecutionStatus> {
        Ok(self.actor(run)?.snapshot.execution_status)
    }

    pub(super) fn current(&self, run: &RunId) -> Result<SnapshotId> {
        Ok(self.actor(run)?.snapshot.snapshot_id()?)
    }

    /// A run that is not there yet.
    pub(super) fn new_run(&self, home: Residency, payload: &str) -> NewRun {
        let number = self.cast.len() + 1;
        let trace = Trace {
            trace_id: format!("5ce4e5{number:026x}"),
            span_id: format!("5ce4e5{number:010x}"),
            parent_span_id: None,
            context: None,
        };
        let environment = self.environment().clone();
        NewRun::new(RunId::mint(home), environment, SCENES_TASK, Payload::json(payload), SCENES_QUEUE, trace)
    }

    /// Creates a run.
    pub(super) async fn create(&mut self, name: &str, run: NewRun, start: Start) -> Result<RunId> {
        let id = run.id;
        let input = CreateRun { start, ..CreateRun::queued(run) };
        let created = self.store.create_run(input).await?.created().context("a run without a key was not created")?;
        let Transition { value: CreatedRun { run, .. }, snapshot, effects, .. } = created;
        let snapshot = snapshot.context("a created run has no snapshot")?;
        let states = vec![snapshot.execution_status];
        self.cast.push(Actor { id, name: name.to_owned(), run, snapshot, states });
        self.carry_out(effects).await?;
        Ok(id)
    }

    /// A run that executes.
    pub(super) async fn executing(&mut self, name: &str, home: Residency) -> Result<RunId> {
        let run = self.new_run(home, "{}");
        let run = self.create(name, run, Start::Queued).await?;
        self.execute(&run).await?;
        Ok(run)
    }

    /// A worker takes a run from the queue.
    pub(super) async fn take(&mut self, run: &RunId) -> Result<()> {
        let position = self.queue.iter().position(|queued| queued == run);
        let position = position.context("a worker was to take a run that is not in the queue")?;
        self.queue.remove(position);
        let input = LockRunToWorker {
            from: self.current(run)?,
            worker_task: self.place.task(SCENES_TASK)?.clone(),
            worker: self.place.worker.clone(),
            queue: self.place.queue(SCENES_QUEUE)?.clone(),
            task_version: self.place.version.clone(),
            sdk_version: Some(self.place.sdk_version.clone()),
            cli_version: Some(self.place.cli_version.clone()),
            machine_preset: "small-1x".to_owned(),
            base_cost_in_cents: 0.0,
            max_duration_in_seconds: None,
            max_attempts: None,
            retry_config: None,
            snapshot: SnapshotDetails::default(),
        };
        let transition = self.store.lock_run_to_worker(run, input).await?;
        self.became(transition).await
    }

    /// A worker takes a run from the queue and begins an attempt.
    pub(super) async fn execute(&mut self, run: &RunId) -> Result<()> {
        self.take(run).await?;
        let (from, snapshot) = (self.current(run)?, SnapshotDetails::default());
        let transition = self.store.start_attempt(run, StartAttempt { from, is_warm_start: None, snapshot }).await?;
        self.became(transition).await?;
        same("the state of a run that was started", self.state(run)?, ExecutionStatus::Executing)
    }

    pub(super) async fn succeed(&mut self, run: &RunId, output: &str) -> Result<()> {
        let input = CompleteAttemptSuccess {
            from: self.current(run)?,
            output: Some(Payload::json(output)),
            completed_at: self.now(),
            usage: Usage { duration_ms: 1_000, cost_in_cents: 0.01 },
            snapshot: SnapshotDetails::default(),
        };
        let transition = self.store.complete_attempt_success(run, input).await?;
        self.became(transition).await?;
        same("the state of a run that is over", self.state(run)?, ExecutionStatus::Finished)
    }

    pub(super) async fn fail(&mut self, run: &RunId, message: &str) -> Result<()> {
        let input = FailRunPermanently {
            from: self.current(run)?,
            status: FailedStatus::CompletedWithErrors,
            error: json!({ "type": "STRING_ERROR", "raw": message }),
            completed_at: self.now(),
            usage: Usage { duration_ms: 1_000, cost_in_cents: 0.01 },
            snapshot: SnapshotDetails::default(),
        };
        let transition = self.store.fail_run_permanently(run, input).await?;
        self.became(transition).await?;
        same("the state of a run that is over", self.state(run)?, ExecutionStatus::Finished)
    }

    /// Makes a token.
    pub(super) async fn token(&mut self, placement: Placement) -> Result<WaitpointId> {
        let (id, home) = (WaitpointId::mint(), placement.residency());
        let new = NewWaitpoint {
            id: id.clone(),
            placement,
            kind: WaitpointKind::Manual { timeout: None },
            environment: self.environment().id.clone(),
            project: self.environment().project.clone(),
            key: None,
            tags: Vec::new(),
        };
        let CreateWaitpointOutcome::Created(created) = self.store.create_waitpoint(new).await? else {
            bail!("a token without a key was not created")
        };
        self.carry_out(created.effects).await?;
        self.tokens.push((id.clone(), home));
        Ok(id)
    }

    /// Somebody completes a token, who knows nothing but its id.
    pub(super) async fn complete_token(&self, token: &WaitpointId, output: &str) -> Result<WaitpointCompletion> {
        let output = WaitpointOutput {
            output: Some(output.to_owned()),
            output_type: "application/json".to_owned(),
            is_error: false,
        };
        let context = CompletionContext::of(CompletionRoute::Manual);
        Ok(self.store.complete_waitpoint(token, CompleteWaitpoint { output, context }).await?)
    }

    /// Remembers what a run has become, and carries out what follows.
    pub(super) async fn became(&mut self, transition: Transition<Run>) -> Result<()> {
        self.remember(transition.value, transition.snapshot)?;
        self.carry_out(transition.effects).await
    }

    /// As [`became`](Stage::became), of an answer with the run's waitpoint.
    pub(super) async fn was_rewritten(&mut self, transition: Transition<CreatedRun>) -> Result<()> {
        self.became(run_of(transition)).await
    }

    fn remember(&mut self, run: Run, snapshot: Option<Snapshot>) -> Result<()> {
        let id = run.run_id()?;
        let snapshot = snapshot.context("a run that changed has no snapshot")?;
        let actor = self.cast.iter_mut().find(|actor| actor.id == id).context("a run that is in no scene")?;
        if actor.snapshot.id != snapshot.id {
            actor.states.push(snapshot.execution_status);
        }
        (actor.run, actor.snapshot) = (run, snapshot);
        Ok(())
    }

    /// Does what the store asks for, and what that asks for in turn.
    pub(super) async fn carry_out(&mut self, effects: Vec<Effect>) -> Result<()> {
        let mut left = VecDeque::from(effects);
        while let Some(effect) = left.pop_front() {
            match effect {
                Effect::Publish { run, .. } => self.queue.push_back(run),
                Effect::Arm { job, at } => {
                    self.jobs.insert(job, at);
                }
                Effect::Disarm(job) => {
                    self.jobs.remove(&job);
                }
                Effect::CompleteWaitpoint { id, beside, output } => {
                    let completion = CompleteWaitpoint::beside(beside, output);
                    left.extend(self.store.complete_waitpoint(&id, completion).await?.effects);
                }
                Effect::WakeWaiters { waitpoint } => {
                    left.extend(self.store.wake_waiters(&waitpoint, None).await?.effects);
                }
                Effect::ContinueRun { run } => left.extend(self.go_on(&run).await?),
                Effect::TryCompleteBatch { batch } => left.extend(self.look_at(&batch).await?),
                // No scene has a queue that leases, or listeners.
                _ => {}
            }
        }
        Ok(())
    }

    /// Lets a run go on if nothing holds it up, and returns what follows.
    async fn go_on(&mut self, run: &RunId) -> Result<Vec<Effect>> {
        match self.store.resume_unblocked_run(run, ResumeRun::default()).await? {
            ResumeOutcome::Resumed(transition) | ResumeOutcome::Requeued(transition) => {
                let Transition { value, snapshot, effects, .. } = *transition;
                self.remember(value, snapshot)?;
                Ok(effects)
            }
            ResumeOutcome::StillBlocked { .. } | ResumeOutcome::Skipped(_) => Ok(Vec::new()),
        }
    }

    /// Ends a batch if its members are over, and returns what follows.
    pub(super) async fn look_at(&mut self, batch: &BatchId) -> Result<Vec<Effect>> {
        let look = self.store.complete_batch_if_done(batch).await?;
        let effects = match &look {
            BatchCompletion::Completed(ended) | BatchCompletion::AlreadyDone(ended) => ended.effects.clone(),
            BatchCompletion::NotFound | BatchCompletion::StillCreating | BatchCompletion::MembersRunning(_) => {
                Vec::new()
            }
        };
        self.looks.push(look);
        Ok(effects)
    }

    /// The output of the only waitpoint that the run's current snapshot was made by.
    pub(super) async fn handed_over(&self, run: &RunId) -> Result<Option<String>> {
        let environment = Some(&self.environment().id);
        let current = self.store.current_snapshot(run, environment, Read::Primary).await?;
        let current = current.context("the run has no snapshot")?;
        same("the snapshot that is read", current.snapshot.snapshot_id()?, self.current(run)?)?;
        same("completed waitpoints that are nowhere", current.dangling, Vec::new())?;
        let mut completed = current.completed_waitpoints.into_iter();
        let first = completed.next().context("the snapshot names no completed waitpoint")?;
        same("more completed waitpoints", completed.count(), 0)?;
        Ok(first.waitpoint.output)
    }

    /// Asserts that a run is held up by nothing.
    pub(super) async fn is_free(&self, run: &RunId) -> Result<()> {
        let edges = self.store.run_edges_with_waitpoints(run, Read::Primary).await?;
        same("edges that hold up a run that goes on", edges.len(), 0)
    }

    /// Asserts that all runs are stored as the last write returned them, and that nothing is left to do.
    pub(super) async fn read_back(&self) -> Result<()> {
        for Actor { id, name, run, snapshot, .. } in &self.cast {
            let found = self.store.get_run((*id).into(), Read::Primary).await?;
            ensure!(found == *run, "the {name} {id}: get_run reads another row than was written");
            let found = self.store.find_latest_execution_snapshot(id, None, Read::Primary).await?;
            ensure!(
                found.as_ref() == Some(snapshot),
                "the {name} {id}: its current snapshot is not the one written last"
            );
            self.is_free(id).await?;
        }
        same("runs that are left in the queue", self.queue.len(), 0)?;
        same("jobs that are left", self.jobs.len(), 0)?;
        let homes = Residency::ALL.map(|home| self.cast.iter().any(|actor| actor.id.residency() == home));
        same("databases with a run of the scenes", homes, [true, true])
    }
}
