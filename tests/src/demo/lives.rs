//! Creates the runs and takes each through its life.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use anyhow::{Context, Result, anyhow, bail};
use chrono::Utc;
use serde_json::{Value as Json, json};
use store::{
    CancelRun, CancelRunOutcome, CompleteAttemptSuccess, CreateCancelledRun, CreateFailedRun, CreateRun,
    CreateRunOutcome, Effect, ErrorKind, ExecutionStatus, ExpireRun, ExpireRunOutcome, FailRunPermanently, Idempotency,
    KeyScope, LockRunToWorker, NewRun, Parent, Payload, Read, Residency, Routable, Run, RunFilter, RunId,
    RunReferences, RunRow, RunStatus, RunStore, Snapshot, SnapshotDetails, SnapshotId, SnapshotRow, Start,
    StartAttempt, StoreError, Trace, Transition, Usage, WaitpointId,
};
use tokio::task::JoinSet;

use super::{
    input::{Begin, End, Input, Request, Skipped},
    ledger::{Entry, Ledger, Rows},
    progress::Progress,
    routes::Routes,
    slot,
    world::{Place, World},
};
use crate::Both;

/// Families of runs that are worked on at the same time.
const AT_ONCE: usize = 32;
/// Runs that expire in one call.
const BATCH: usize = 500;

/// Everything that creating and living takes.
pub(super) struct Work {
    pub(super) store: Arc<dyn RunStore>,
    pub(super) world: World,
    pub(super) input: Input,
    pub(super) routes: Routes,
}

/// What was done.
#[derive(Debug, Default)]
pub(super) struct Lives {
    pub(super) ledger: Ledger,
    /// Requests that were made.
    pub(super) requests: usize,
    /// Requests that an earlier run with the same idempotency key answered.
    pub(super) taken_keys: usize,
    /// Requests that an earlier run with the same one-time token answered.
    pub(super) used_tokens: usize,
    /// Requests that were refused by the store, or that need the run of such a one, by the numbers of their lines.
    pub(super) refused: BTreeMap<usize, String>,
    /// Times that an operation was carried out in each database.
    pub(super) writes: BTreeMap<&'static str, Both<usize>>,
    /// Effects that the application was asked to carry out.
    pub(super) effects: BTreeMap<&'static str, usize>,
}

impl Lives {
    fn wrote<T>(&mut self, operation: &'static str, transition: &Transition<T>) {
        for home in Residency::ALL.into_iter().filter(|home| transition.token.covers(*home)) {
            self.count(operation, home, 1);
        }
        self.collect(&transition.effects);
    }

    fn count(&mut self, operation: &'static str, home: Residency, times: usize) {
        *slot(self.writes.entry(operation).or_default(), home) += times;
    }

    fn collect(&mut self, effects: &[Effect]) {
        for effect in effects {
            *self.effects.entry(kind_of(effect)).or_default() += 1;
        }
    }

    fn add(&mut self, other: Lives) {
        let Lives { ledger, requests, taken_keys, used_tokens, refused, writes, effects } = other;
        self.ledger.entries.extend(ledger.entries);
        self.requests += requests;
        self.taken_keys += taken_keys;
        self.used_tokens += used_tokens;
        for (line, reason) in refused {
            self.refused.entry(line).or_insert(reason);
        }
        for (operation, counts) in writes {
            let sums = self.writes.entry(operation).or_default();
            sums.control_plane += counts.control_plane;
            sums.run_ops += counts.run_ops;
        }
        for (kind, count) in effects {
            *self.effects.entry(kind).or_default() += count;
        }
    }

    /// The requests that the store refused, as lines that were passed over.
    pub(super) fn refusals(&self) -> Vec<Skipped> {
        self.refused.iter().map(|(line, reason)| Skipped { line: *line, reason: reason.clone() }).collect()
    }
}

fn kind_of(effect: &Effect) -> &'static str {
    match effect {
        Effect::Publish { .. } => "publish",
        Effect::Ack { .. } => "acknowledge",
        Effect::Arm { .. } => "arm a job",
        Effect::Disarm(_) => "disarm a job",
        Effect::CompleteWaitpoint { .. } => "complete a waitpoint",
        Effect::NotifyWorker { .. } => "notify a worker",
        Effect::TryCompleteBatch { .. } => "look at a batch",
        Effect::CancelChildren { .. } => "cancel the children",
        Effect::Emit(_) => "emit an event",
        _ => "other",
    }
}

/// Makes `runs` runs, repeating the input as often as that takes, or all requests of the input once, and works through
/// their lives.
///
/// # Errors
/// If the store fails, or does something else than it was asked to. A request that it refuses is no error.
pub(super) async fn live(work: &Arc<Work>, runs: Option<usize>, progress: &Progress) -> Result<Lives> {
    let length = work.input.requests.len();
    let mut done = Lives::default();
    let Some(runs) = runs else {
        pass(work, &mut done, 0, length, |lives| progress.inc(lives.requests)).await?;
        return Ok(done);
    };
    // Not every request makes a run: keys and tokens repeat, some are refused. What is missing afterwards is made up for.
    let mut copy = 0;
    // A repetition that was cut off before a request that makes a run is tried again with one more.
    let mut more = 0;
    while done.ledger.len() < runs {
        let made = done.ledger.len();
        let requests = runs - made + more;
        pass(work, &mut done, copy, requests, |lives| progress.inc(lives.ledger.len())).await?;
        copy += requests.div_ceil(length);
        if done.ledger.len() > made {
            more = 0;
        } else if requests >= length {
            break;
        } else {
            more += 1;
        }
    }
    Ok(done)
}

/// Makes `requests` requests, as repetitions of the input that begin with number `first`.
async fn pass(
    work: &Arc<Work>,
    done: &mut Lives,
    first: usize,
    requests: usize,
    progress: impl Fn(&Lives),
) -> Result<()> {
    let families: Vec<Arc<[usize]>> = work.input.families().into_iter().map(Arc::from).collect();
    let length = work.input.requests.len();
    let mut families = (0..requests.div_ceil(length)).flat_map(|copy| {
        let left = requests - copy * length;
        families.iter().enumerate().map(move |(number, family)| (first + copy, number, left, Arc::clone(family)))
    });

    let mut expiring = Vec::new();
    let mut working = JoinSet::new();
    loop {
        while working.len() < AT_ONCE
            && let Some((copy, number, left, family)) = families.next()
        {
            let work = Arc::clone(work);
            working.spawn(async move {
                // The last repetition may be cut off; what is left of a family are those that come first.
                let members: Vec<usize> = family.iter().copied().filter(|member| *member < left).collect();
                Family::new(&work, copy, number).live(&members).await
            });
        }
        let Some(family) = working.join_next().await else { break };
        let lives = family??;
        progress(&lives);
        let before = done.ledger.len();
        done.add(lives);
        let added = (before..).zip(&done.ledger.entries[before..]);
        expiring.extend(added.filter(|(_, entry)| entry.rows.is_none()).map(|(position, _)| position));
        if expiring.len() >= BATCH {
            expire(work, done, &std::mem::take(&mut expiring)).await?;
        }
    }
    expire(work, done, &expiring).await
}

/// Expires many runs at once; they are named by their places in the ledger.
async fn expire(work: &Work, done: &mut Lives, places: &[usize]) -> Result<()> {
    if places.is_empty() {
        return Ok(());
    }
    let runs: Vec<RunId> = places.iter().map(|place| done.ledger.entries[*place].id).collect();
    let input = ExpireRun { error: error_value(&json!("not started in time")), expired_at: Utc::now() };
    let expiry = work.store.expire_runs_batch(&runs, input).await?;
    let snapshots: HashMap<RunId, SnapshotId> =
        expiry.expired.into_iter().map(|expired| (expired.run, expired.snapshot)).collect();
    done.collect(&expiry.effects);
    for place in places {
        let entry = &mut done.ledger.entries[*place];
        let Some(snapshot) = snapshots.get(&entry.id) else {
            bail!("expire_runs_batch left a queued run as it was: {:?}", expiry.skipped);
        };
        entry.status = RunStatus::Expired;
        entry.current = Some((snapshot.clone(), ExecutionStatus::Finished));
        entry.snapshots += 1;
        let home = entry.home();
        done.count("expire_runs_batch", home, 1);
    }
    Ok(())
}

/// Requests that are worked through in their order.
struct Family<'a> {
    work: &'a Work,
    copy: usize,
    /// Where its runs live if nothing else decides.
    residency: Residency,
    /// The runs that answer the requests, by position.
    answers: HashMap<usize, Answer>,
    done: Lives,
}

/// The run that answers a request: its own, or an earlier one with the same key.
#[derive(Clone)]
struct Answer {
    id: RunId,
    root: RunId,
    depth: i32,
    trace_id: String,
    span_id: String,
}

impl Answer {
    fn of(run: &Run) -> Result<Answer> {
        let id = run.run_id()?;
        let root = run.root_task_run_id.as_deref().map(str::parse).transpose()?;
        Ok(Answer {
            id,
            root: root.unwrap_or(id),
            depth: run.depth,
            trace_id: run.trace_id.clone(),
            span_id: run.span_id.clone(),
        })
    }
}

/// A run on its way, as the last write returned it.
struct Living {
    run: Run,
    snapshot: Option<Snapshot>,
    snapshots: i64,
}

impl Living {
    fn became(&mut self, transition: Transition<Run>) {
        self.run = transition.value;
        self.snapshot = transition.snapshot;
        self.snapshots += 1;
    }

    fn from(&self) -> Result<SnapshotId> {
        Ok(self.snapshot.as_ref().context("the run has no snapshot")?.snapshot_id()?)
    }
}

/// Why a step of a run's life was not taken.
enum Stop {
    /// The store does not take what the line says.
    Refused(String),
    /// The demo cannot go on.
    Failed(anyhow::Error),
}

impl From<StoreError> for Stop {
    /// A refusal is about this one line; anything else would hit the next one too.
    fn from(error: StoreError) -> Self {
        let refused = matches!(
            error.kind(),
            ErrorKind::InvalidInput { .. }
                | ErrorKind::InvalidValue(_)
                | ErrorKind::CrossStoreReference { .. }
                | ErrorKind::Database(_)
        );
        if refused { Stop::Refused(format!("the store refuses it: {error}")) } else { Stop::Failed(error.into()) }
    }
}

impl From<anyhow::Error> for Stop {
    fn from(error: anyhow::Error) -> Self {
        Stop::Failed(error)
    }
}

impl<'a> Family<'a> {
    fn new(work: &'a Work, copy: usize, number: usize) -> Self {
        // One family here, the next one there, and the other way round in the next copy.
        let residency = Residency::ALL[(copy + number) % Residency::ALL.len()];
        Family { work, copy, residency, answers: HashMap::new(), done: Lives::default() }
    }

    /// Creates all runs, then works through their lives, children before parents.
    async fn live(mut self, members: &[usize]) -> Result<Lives> {
        let mut living = Vec::new();
        for &member in members {
            let request = &self.work.input.requests[member];
            self.done.requests += 1;
            match self.create(member, request).await {
                Ok(created) => living.extend(created.map(|created| (member, created))),
                Err(stop) => self.stop(request, stop)?,
            }
        }
        for (member, (mut run, has_waitpoint)) in living.into_iter().rev() {
            let request = &self.work.input.requests[member];
            if let Err(stop) = self.go_on(request, &mut run).await {
                self.stop(request, stop)?;
            }
            self.enter(member, run, has_waitpoint)?;
        }
        Ok(self.done)
    }

    fn stop(&mut self, request: &Request, stop: Stop) -> Result<()> {
        match stop {
            Stop::Refused(reason) => {
                self.done.refused.insert(request.line, reason);
                Ok(())
            }
            Stop::Failed(error) => Err(error.context(format!("on line {} of the requests", request.line))),
        }
    }

    /// Puts a run into the ledger.
    fn enter(&mut self, member: usize, run: Living, has_waitpoint: bool) -> Result<()> {
        let Living { run, snapshot, snapshots } = run;
        let expires_later =
            self.work.input.requests[member].end == End::ExpireBatch && run.status == RunStatus::Pending;
        let current =
            snapshot.as_ref().map(|snapshot| anyhow::Ok((snapshot.snapshot_id()?, snapshot.execution_status)));
        self.done.ledger.entries.push(Entry {
            id: run.run_id()?,
            request: member,
            copy: self.copy,
            parent: run.parent_run_id()?,
            status: run.status,
            current: current.transpose()?,
            snapshots,
            has_waitpoint,
            rows: (!expires_later).then(|| Rows::of(&run, snapshot.as_ref())),
        });
        Ok(())
    }

    /// Creates the run of a request, and says whether with a waitpoint; `None` if an earlier run answers it.
    async fn create(&mut self, member: usize, request: &Request) -> Result<Option<(Living, bool)>, Stop> {
        let place = self.work.world.place(request.environment)?;
        let run = self.new_run(member, request, place)?;
        let waitpoint = request.resume_parent.then(WaitpointId::mint);
        let store = &self.work.store;
        let now = Utc::now();
        let (operation, outcome) = match &request.end {
            End::BornCancelled(error) => {
                let input = CreateCancelledRun {
                    run,
                    error: error_value(error),
                    completed_at: now,
                    updated_at: now,
                    snapshot: SnapshotDetails::default(),
                };
                ("create_cancelled_run", store.create_cancelled_run(input).await?)
            }
            End::BornFailed(error) => {
                let input = CreateFailedRun { run, error: error_value(error), completed_at: now, waitpoint };
                ("create_failed_run", store.create_failed_run(input).await?)
            }
            End::Leave
            | End::LeaveDequeued
            | End::LeaveExecuting
            | End::LeaveCancelling
            | End::Success(_)
            | End::Failure(..)
            | End::Cancel(_)
            | End::CancelWhileRunning(_)
            | End::Expire(_)
            | End::ExpireBatch => {
                let start = match &request.begin {
                    Begin::Queued => Start::Queued,
                    Begin::Delayed(delay) => Start::Delayed { until: now + *delay },
                    Begin::Parked(reason) => Start::Parked { reason: reason.clone(), delay_until: None },
                };
                let input = CreateRun { run, start, waitpoint, snapshot: SnapshotDetails::default() };
                ("create_run", store.create_run(input).await?)
            }
        };
        match outcome {
            CreateRunOutcome::Created(transition) => {
                self.done.wrote(operation, &transition);
                let Transition { value, snapshot, .. } = *transition;
                self.answers.insert(member, Answer::of(&value.run)?);
                let snapshots = i64::from(snapshot.is_some());
                Ok(Some((Living { run: value.run, snapshot, snapshots }, value.associated_waitpoint.is_some())))
            }
            CreateRunOutcome::IdempotencyKeyTaken { .. } => {
                self.done.taken_keys += 1;
                self.answer(member, &key_filter(request, self.copy, place)).await?;
                Ok(None)
            }
            CreateRunOutcome::OneTimeTokenUsed => {
                self.done.used_tokens += 1;
                self.answer(member, &token_filter(request, self.copy)).await?;
                Ok(None)
            }
        }
    }

    /// Reads the earlier run that answers a request.
    async fn answer(&mut self, member: usize, filter: &RunFilter) -> Result<(), Stop> {
        let run = self.work.routes.get_run_where(&self.work.store, filter, Read::Primary).await?;
        self.answers.insert(member, Answer::of(&run)?);
        Ok(())
    }

    fn new_run(&self, member: usize, request: &Request, place: &Place) -> Result<NewRun, Stop> {
        let related = |other: Option<usize>| {
            other
                .map(|other| {
                    let line = self.work.input.requests[other].line;
                    let unanswered = || Stop::Refused(format!("it needs the run of line {line}, which was refused"));
                    self.answers.get(&other).ok_or_else(unanswered)
                })
                .transpose()
        };
        let (parent, original) = (related(request.parent)?, related(request.replay_of)?);
        let residency = match parent {
            Some(parent) => parent.id.residency(),
            None => request.residency.unwrap_or(self.residency),
        };
        let span = span_id(&self.work.input, self.copy, member);
        let trace = Trace {
            trace_id: parent.map_or_else(|| format!("{span}{span}"), |parent| parent.trace_id.clone()),
            parent_span_id: parent.map(|parent| parent.span_id.clone()),
            context: Some(json!({ "traceparent": format!("00-{span}{span}-{span}-01") })),
            span_id: span,
        };
        let now = Utc::now();
        let payload = request.payload.clone();
        let run = NewRun::new(
            RunId::mint(residency),
            place.environment.clone(),
            &*request.task,
            payload,
            &*request.queue,
            trace,
        );
        Ok(NewRun {
            locked_queue: None,
            worker_queue: request.worker_queue.clone().unwrap_or(run.worker_queue),
            region: request.region.clone(),
            concurrency_key: request.concurrency_key.clone(),
            priority_ms: request.priority_ms,
            ttl: request.ttl.clone(),
            max_attempts: request.max_attempts,
            max_duration_in_seconds: request.max_duration_seconds,
            machine_preset: Some(request.machine.clone()),
            is_test: request.test,
            tags: request.tags.clone(),
            metadata: request.metadata.clone(),
            context: request.context.clone(),
            annotations: Some(json!({ "triggerSource": "demo", "line": request.line, "copy": self.copy })),
            idempotency: request.idempotency_key.as_deref().map(|key| Idempotency {
                key: fresh(key, self.copy),
                scope: KeyScope::Global,
                expires_at: request.idempotency_key_ttl.map(|ttl| now + ttl),
                options: Some(json!({ "key": key, "scope": "global" })),
            }),
            one_time_use_token: request.one_time_token.as_deref().map(|token| fresh(token, self.copy)),
            parent: parent.map(|parent| Parent {
                run: parent.id,
                root: parent.root,
                depth: parent.depth + 1,
                resume_on_completion: request.resume_parent,
            }),
            replayed_from: original.map(|original| original.id.friendly()),
            ..run
        })
    }

    /// Works through what is left of a run's life after its creation.
    async fn go_on(&mut self, request: &Request, run: &mut Living) -> Result<(), Stop> {
        match &request.end {
            End::Leave | End::ExpireBatch | End::BornCancelled(_) | End::BornFailed(_) => Ok(()),
            End::LeaveDequeued => self.lock(request, run).await,
            End::LeaveExecuting => self.start(request, run).await,
            End::LeaveCancelling => {
                self.start(request, run).await?;
                self.ask_to_cancel(run, &json!("cancelled by a user")).await
            }
            End::Success(output) => {
                self.start(request, run).await?;
                self.complete(request, run, output.clone()).await
            }
            End::Failure(status, error) => {
                self.start(request, run).await?;
                let input = FailRunPermanently {
                    from: run.from()?,
                    status: *status,
                    error: error_value(error),
                    completed_at: Utc::now(),
                    usage: usage(request),
                    snapshot: by_worker(),
                };
                let transition = self.work.store.fail_run_permanently(&id_of(&run.run)?, input).await?;
                self.done.wrote("fail_run_permanently", &transition);
                run.became(transition);
                Ok(())
            }
            End::Cancel(error) => self.cancel(run, error, Usage::default()).await,
            End::CancelWhileRunning(error) => {
                self.start(request, run).await?;
                self.ask_to_cancel(run, error).await?;
                self.cancel(run, error, usage(request)).await
            }
            End::Expire(error) => {
                let id = id_of(&run.run)?;
                let input = ExpireRun { error: error_value(error), expired_at: Utc::now() };
                match self.work.store.expire_run(&id, input).await? {
                    ExpireRunOutcome::Expired(transition) => {
                        self.done.wrote("expire_run", &transition);
                        run.became(*transition);
                        Ok(())
                    }
                    ExpireRunOutcome::Skipped(reason) => {
                        Err(anyhow!("expire_run left a queued run as it was: {reason:?}").into())
                    }
                }
            }
        }
    }

    async fn lock(&mut self, request: &Request, run: &mut Living) -> Result<(), Stop> {
        let place = self.work.world.place(request.environment)?;
        let input = LockRunToWorker {
            from: run.from()?,
            worker_task: place.task(&request.task)?.clone(),
            worker: place.worker.clone(),
            queue: place.queue(&request.queue)?.clone(),
            task_version: place.version.clone(),
            sdk_version: Some(place.sdk_version.clone()),
            cli_version: Some(place.cli_version.clone()),
            machine_preset: request.machine.clone(),
            base_cost_in_cents: 0.0025,
            max_duration_in_seconds: None,
            max_attempts: None,
            retry_config: Some(json!({ "maxAttempts": request.max_attempts.unwrap_or(1) })),
            snapshot: by_worker(),
        };
        let transition = self.work.store.lock_run_to_worker(&id_of(&run.run)?, input).await?;
        self.done.wrote("lock_run_to_worker", &transition);
        run.became(transition);
        Ok(())
    }

    /// Has a worker take the run and start its attempt.
    async fn start(&mut self, request: &Request, run: &mut Living) -> Result<(), Stop> {
        self.lock(request, run).await?;
        let input = StartAttempt { from: run.from()?, is_warm_start: Some(false), snapshot: by_worker() };
        let transition = self.work.store.start_attempt(&id_of(&run.run)?, input).await?;
        self.done.wrote("start_attempt", &transition);
        run.became(transition);
        Ok(())
    }

    async fn complete(&mut self, request: &Request, run: &mut Living, output: Option<Payload>) -> Result<(), Stop> {
        let input = CompleteAttemptSuccess {
            from: run.from()?,
            output,
            completed_at: Utc::now(),
            usage: usage(request),
            snapshot: by_worker(),
        };
        let transition = self.work.store.complete_attempt_success(&id_of(&run.run)?, input).await?;
        self.done.wrote("complete_attempt_success", &transition);
        run.became(transition);
        Ok(())
    }

    /// Asks the worker that has the run to stop it.
    async fn ask_to_cancel(&mut self, run: &mut Living, error: &Json) -> Result<(), Stop> {
        match self.work.store.cancel_run(&id_of(&run.run)?, cancellation(false, error, Usage::default())).await? {
            CancelRunOutcome::Requested(transition) => {
                self.done.wrote("cancel_run", &transition);
                run.became(*transition);
                Ok(())
            }
            CancelRunOutcome::Canceled(_) | CancelRunOutcome::AlreadyFinished(_) => {
                Err(anyhow!("cancel_run ended a run without asking the worker that has it").into())
            }
        }
    }

    /// Ends the run.
    async fn cancel(&mut self, run: &mut Living, error: &Json, usage: Usage) -> Result<(), Stop> {
        match self.work.store.cancel_run(&id_of(&run.run)?, cancellation(true, error, usage)).await? {
            CancelRunOutcome::Canceled(transition) => {
                self.done.wrote("cancel_run", &transition);
                run.became(*transition);
                Ok(())
            }
            CancelRunOutcome::Requested(_) | CancelRunOutcome::AlreadyFinished(_) => {
                Err(anyhow!("cancel_run did not end a run that was to end").into())
            }
        }
    }
}

fn id_of(run: &Run) -> Result<RunId> {
    Ok(run.run_id()?)
}

fn cancellation(finalize: bool, error: &Json, usage: Usage) -> CancelRun {
    CancelRun {
        finalize,
        error: error_value(error),
        completed_at: Utc::now(),
        usage,
        bulk_action_id: None,
        snapshot: SnapshotDetails::default(),
    }
}

fn usage(request: &Request) -> Usage {
    Usage { duration_ms: request.duration_ms, cost_in_cents: request.cost_in_cents }
}

fn by_worker() -> SnapshotDetails {
    SnapshotDetails {
        worker_id: Some("demo-group".to_owned()),
        runner_id: Some("demo-runner".to_owned()),
        ..SnapshotDetails::default()
    }
}

/// A message becomes an error value; anything else is one.
fn error_value(error: &Json) -> Json {
    match error {
        Json::String(message) => json!({ "type": "STRING_ERROR", "raw": message }),
        other @ (Json::Null | Json::Bool(_) | Json::Number(_) | Json::Array(_) | Json::Object(_)) => other.clone(),
    }
}

/// A key or token as it is in this copy of the input.
pub(super) fn fresh(key: &str, copy: usize) -> String {
    if copy == 0 { key.to_owned() } else { format!("{key}#{copy}") }
}

/// The span of a request's run: the same in every demo with this input.
pub(super) fn span_id(input: &Input, copy: usize, member: usize) -> String {
    // Scattered, as real span ids are: an odd factor keeps different numbers different.
    let number = (copy * input.requests.len() + member + 1) as u64;
    format!("{:016x}", number.wrapping_mul(0x9e37_79b9_7f4a_7c15))
}

/// The run with a request's idempotency key.
pub(super) fn key_filter(request: &Request, copy: usize, place: &Place) -> RunFilter {
    RunFilter {
        environment: Some(place.environment.id.clone()),
        task_identifier: Some(request.task.clone()),
        idempotency_key: request.idempotency_key.as_deref().map(|key| fresh(key, copy)),
        ..RunFilter::default()
    }
}

/// The run with a request's one-time token.
pub(super) fn token_filter(request: &Request, copy: usize) -> RunFilter {
    RunFilter {
        one_time_use_token: request.one_time_token.as_deref().map(|token| fresh(token, copy)),
        ..RunFilter::default()
    }
}
