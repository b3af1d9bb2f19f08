//! Where a run may go, and what becomes of a call that asks for something else.

use anyhow::{Context, Result, ensure};
use serde_json::json;
use store::lifecycle::{Sources, TRANSITIONS};
use store::{
    CancelRun, CompleteAttemptSuccess, Constraint, CreateFailedRun, DiscardReason, EdgeId, Entity, ErrorKind,
    ExecutionStatus, ExpireRun, FailRunPermanently, InputProblem, LockRunToWorker, Operation, Payload, RunId,
    RunStatus, SkipReason, Snapshot, SnapshotDetails, SnapshotId, StoreError, Usage, WaitpointId,
};
use tests::runs::{
    Home, Seeded, Stores, cancellation, complete_from, created, current, expiry, fail_from, lock_to_worker, moment,
    start_from,
};

use super::{Done, STATES, STEPS, Step, awaited_in_batch, check_error, check_refused, stored};

#[tokio::test]
async fn a_run_that_succeeds_leaves_a_chain_of_snapshots() -> Result<()> {
    let stores = Stores::fresh().await?;
    for home in stores.homes() {
        let run = home.create().await?;
        let id = run.id;

        let locked = home.store().lock_run_to_worker(&id, lock_to_worker(&run.snapshot)).await?;
        home.check_stored(&locked).await?;
        assert_eq!(locked.value.status, RunStatus::Dequeued, "{home}");
        let started = home.store().start_attempt(&id, start_from(&current(&locked)?)).await?;
        home.check_stored(&started).await?;
        assert_eq!((started.value.status, started.value.attempt_number), (RunStatus::Executing, Some(1)), "{home}");
        let finished = home.store().complete_attempt_success(&id, complete_from(&current(&started)?)).await?;
        home.check_stored(&finished).await?;
        assert_eq!(finished.value.status, RunStatus::CompletedSuccessfully, "{home}");
        assert_eq!(finished.value.completed_at, Some(moment(30).fixed_offset()), "{home}");
        assert_eq!(finished.value.output.as_deref(), Some("{\"done\":true}"), "{home}");

        let snapshots = home.snapshots(&id).await?;
        let told: Vec<_> =
            snapshots.iter().map(|row| (row.execution_status, row.run_status, row.attempt_number)).collect();
        let expected = [
            (ExecutionStatus::Queued, RunStatus::Pending, None),
            // Runners that do not know DEQUEUED read PENDING.
            (ExecutionStatus::PendingExecuting, RunStatus::Pending, None),
            (ExecutionStatus::Executing, RunStatus::Executing, Some(1)),
            (ExecutionStatus::Finished, RunStatus::CompletedSuccessfully, Some(1)),
        ];
        assert_eq!(told, expected, "{home}");
        for pair in snapshots.windows(2) {
            let [previous, next] = pair else { unreachable!("windows of two") };
            assert_eq!(next.previous_snapshot_id.as_ref(), Some(&previous.id), "{home}");
            assert!(next.created_at > previous.created_at, "{home}");
            let who = |row: &Snapshot| {
                let Snapshot { environment_id, environment_type, project_id, organization_id, .. } = row.clone();
                (environment_id, environment_type, project_id, organization_id)
            };
            assert_eq!(who(next), who(previous), "{home}");
        }
    }
    Ok(())
}

const EXECUTING: [ExecutionStatus; 2] = [ExecutionStatus::Executing, ExecutionStatus::ExecutingWithWaitpoints];

async fn insert_edge(home: &Home<'_>, run: &RunId) -> Result<WaitpointId> {
    let (edge, waitpoint) = (EdgeId::mint(), WaitpointId::mint());
    home.sql("ALTER TABLE task_run_waitpoint DISABLE TRIGGER ALL").await?;
    home.sql(&format!(
        "INSERT INTO task_run_waitpoint (id, task_run_id, waitpoint_id, project_id, updated_at)
         VALUES ('{edge}', '{run}', '{waitpoint}', '{}', now())",
        home.environment().project
    ))
    .await?;
    Ok(waitpoint)
}

async fn edges_of(home: &Home<'_>, run: &RunId) -> Result<i64> {
    home.value(&format!("SELECT count(*) FROM task_run_waitpoint WHERE task_run_id = '{run}'")).await
}

#[tokio::test]
async fn an_operation_is_legal_in_exactly_the_states_of_the_table() -> Result<()> {
    let stores = Stores::fresh().await?;
    for home in stores.homes() {
        for step in STEPS {
            let operation = step.operation();
            let legal: Vec<ExecutionStatus> = TRANSITIONS
                .iter()
                .filter(|(listed, ..)| *listed == operation)
                .flat_map(|(_, from, _)| match from {
                    Sources::States(states) => states.to_vec(),
                    Sources::Nothing => Vec::new(),
                })
                .collect();
            assert!(!legal.is_empty(), "the table says nothing about {operation}");

            for state in STATES {
                let run = home.create_in(state).await?;
                // Whether it is locked is another question.
                let locked = if step == Step::Expire { "NULL" } else { "'task_1'" };
                home.sql(&format!("UPDATE task_run SET locked_by_id = {locked} WHERE id = '{}'", run.id)).await?;
                if (step, state) == (Step::Enqueue, ExecutionStatus::RunCreated) {
                    // Not one that waits for a version: one that an earlier system has delayed.
                    home.sql(&format!("UPDATE task_run SET status = 'DELAYED' WHERE id = '{}'", run.id)).await?;
                }
                let edges = [insert_edge(&home, &run.id).await?, insert_edge(&home, &run.id).await?];
                let status = home.run(&run.id).await?.status;
                if !legal.contains(&state) && step.names_snapshot() {
                    let expected = ErrorKind::IllegalTransition { operation, from: Some(state), status };
                    check_refused(&home, step, &run, &expected).await?;
                    continue;
                }

                let before = stored(&home, &run.id).await?;
                let done = step.take(&home, &run).await.with_context(|| format!("{home}: {step:?} in {state:?}"))?;
                match done {
                    Done::Moved(transition) => {
                        home.check_stored(&transition).await?;
                        let snapshot = transition.snapshot.context("a move writes a snapshot")?;
                        let to = snapshot.execution_status;
                        assert!(operation.may_take(Some(state), to), "{home}: {step:?} went from {state:?} to {to:?}");
                        assert_eq!(snapshot.previous_snapshot_id, Some(run.snapshot.to_string()), "{home}: {step:?}");
                        assert_eq!(home.snapshots(&run.id).await?.len(), 2, "{home}: {step:?} in {state:?}");
                        // Neither a run that is over nor an attempt that failed waits for anything.
                        let has_failed = step == Step::Retry || (step == Step::Requeue && EXECUTING.contains(&state));
                        // Nor does an attempt for what held up an earlier one.
                        let waits = to != ExecutionStatus::Finished && !has_failed && step != Step::Start;
                        let expected = if waits { edges.len() as i64 } else { 0 };
                        assert_eq!(edges_of(&home, &run.id).await?, expected, "{home}: {step:?} in {state:?}");
                    }
                    stayed => {
                        assert_eq!(stored(&home, &run.id).await?, before, "{home}: {step:?} in {state:?}");
                        match (step, state) {
                            (Step::Cancel, ExecutionStatus::PendingCancel) => {
                                assert!(matches!(stayed, Done::AskedAgain(_)), "{home}: {stayed:?}");
                            }
                            (Step::Cancel | Step::CancelNow, ExecutionStatus::Finished) => {
                                let Done::Over(over) = stayed else { panic!("{home}: {stayed:?}") };
                                assert_eq!((over.value, over.snapshot), (before.0, before.1.last().cloned()), "{home}");
                            }
                            (Step::Expire, state) => {
                                assert!(!legal.contains(&state), "{home}: not expired in {state:?}");
                                assert_eq!(stayed, Done::Skipped(SkipReason::Status(status)), "{home}: {state:?}");
                            }
                            (Step::Suspend, state) => {
                                assert!(!legal.contains(&state), "{home}: not suspended in {state:?}");
                                let reason = DiscardReason::NotCheckpointable(state);
                                let current = before.1.last().cloned().map(Box::new);
                                assert_eq!(stayed, Done::Discarded(reason, current), "{home}: {state:?}");
                            }
                            (
                                Step::Promote | Step::Reschedule | Step::Rewrite | Step::Enqueue | Step::ExpireParked,
                                state,
                            ) => {
                                assert!(!legal.contains(&state), "{home}: {step:?} did nothing in {state:?}");
                                assert_eq!(stayed, Done::Left(status), "{home}: {step:?} in {state:?}");
                            }
                            (step, state) => panic!("{home}: {step:?} did nothing in {state:?}"),
                        }
                        assert_eq!(edges_of(&home, &run.id).await?, edges.len() as i64, "{home}: {step:?}");
                    }
                }
            }
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_caller_that_acted_on_another_snapshot_is_refused_and_told_the_current_one() -> Result<()> {
    let stores = Stores::fresh().await?;
    for home in stores.homes() {
        for step in STEPS.into_iter().filter(|step| step.names_snapshot()) {
            let run = home.create_in(step.legal_in()).await?;
            let moved_on = SnapshotId::mint();
            home.sql(&format!(
                "INSERT INTO task_run_execution_snapshot
                     (id, execution_status, description, run_id, run_status, environment_id, environment_type,
                      project_id, organization_id, created_at, updated_at)
                 SELECT '{moved_on}', execution_status, description, run_id, run_status, environment_id,
                     environment_type, project_id, organization_id, created_at + interval '1 second', updated_at
                 FROM task_run_execution_snapshot WHERE id = '{}'",
                run.snapshot
            ))
            .await?;
            let stale = ErrorKind::StaleSnapshot { current: Some(moved_on.clone()) };
            check_refused(&home, step, &run, &stale).await?;
            // Neither a snapshot that never was.
            let never = Seeded { id: run.id, snapshot: SnapshotId::mint() };
            check_refused(&home, step, &never, &stale).await?;
            // Nor that of another run.
            let other = Seeded { id: run.id, snapshot: home.create().await?.snapshot };
            check_refused(&home, step, &other, &stale).await?;

            let now = Seeded { id: run.id, snapshot: moved_on };
            home.check_stored(&step.take(&home, &now).await?.moved()?).await?;
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_snapshot_that_records_a_refusal_is_not_the_current_one() -> Result<()> {
    let stores = Stores::fresh().await?;
    for home in stores.homes() {
        let run = home.create().await?;
        let invalid = SnapshotId::mint();
        home.sql(&format!(
            "INSERT INTO task_run_execution_snapshot
                 (id, execution_status, description, is_valid, run_id, run_status, environment_id, environment_type,
                  project_id, organization_id, created_at, updated_at)
             SELECT '{invalid}', 'FINISHED', 'refused', FALSE, run_id, run_status, environment_id,
                 environment_type, project_id, organization_id, created_at + interval '1 hour', updated_at
             FROM task_run_execution_snapshot WHERE id = '{}'",
            run.snapshot
        ))
        .await?;
        let locked = home.store().lock_run_to_worker(&run.id, lock_to_worker(&run.snapshot)).await?;
        let snapshot = locked.snapshot.as_ref().context("locking writes a snapshot")?;
        assert_eq!(snapshot.previous_snapshot_id, Some(run.snapshot.to_string()), "{home}");
        home.check_stored(&locked).await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_run_that_does_not_exist_is_not_found_by_any_operation() -> Result<()> {
    let stores = Stores::fresh().await?;
    for home in stores.homes() {
        // A row of that id in the other database is no help.
        let other = stores.home(home.side().other());
        let stray = other.create().await?;
        let id = RunId::mint(home.residency());
        for table in ["task_run", "task_run_execution_snapshot"] {
            let column = if table == "task_run" { "id" } else { "run_id" };
            other.sql(&format!("ALTER TABLE {table} DISABLE TRIGGER ALL")).await?;
            other.sql(&format!("UPDATE {table} SET {column} = '{id}' WHERE {column} = '{}'", stray.id)).await?;
        }
        let before = home.rows_of(other.side(), &id).await?;
        assert_eq!((before.runs, before.snapshots), (1, 1), "{home}: the stray copy");

        for step in STEPS {
            let run = Seeded { id, snapshot: stray.snapshot.clone() };
            let error = step.take(&home, &run).await.err();
            let error = error.with_context(|| format!("{home}: {step:?} of a run that is not there"))?;
            check_error(&home, step, &error, &ErrorKind::NotFound(Entity::Run));
        }
        assert_eq!(home.rows_of(other.side(), &id).await?, before, "{home}");
        let status: String = other.value(&format!("SELECT status::text FROM task_run WHERE id = '{id}'")).await?;
        assert_eq!(status, "PENDING", "{home}: the stray copy was touched");
    }
    Ok(())
}

#[tokio::test]
async fn a_run_without_a_snapshot_goes_nowhere() -> Result<()> {
    let stores = Stores::fresh().await?;
    for home in stores.homes() {
        let run = home.new_run();
        let run_id = run.id;
        let input = CreateFailedRun { run, error: json!("no"), completed_at: moment(0), waitpoint: None };
        let _born_failed = created(home.store().create_failed_run(input).await?)?;
        let run = Seeded { id: run_id, snapshot: SnapshotId::mint() };
        for (status, label) in [(RunStatus::SystemFailure, "SYSTEM_FAILURE"), (RunStatus::Pending, "PENDING")] {
            home.sql(&format!("UPDATE task_run SET status = '{label}' WHERE id = '{run_id}'")).await?;
            for step in STEPS {
                let expected = match step {
                    step if step.names_snapshot() => ErrorKind::StaleSnapshot { current: None },
                    Step::Suspend => {
                        let discarded = Done::Discarded(DiscardReason::StaleSnapshot, None);
                        assert_eq!(step.take(&home, &run).await?, discarded, "{home}");
                        continue;
                    }
                    Step::Cancel | Step::CancelNow if status == RunStatus::Pending => {
                        ErrorKind::IllegalTransition { operation: Operation::CancelRun, from: None, status }
                    }
                    Step::Cancel | Step::CancelNow => {
                        let Done::Over(over) = step.take(&home, &run).await? else {
                            panic!("{home}: the run is over");
                        };
                        assert_eq!((&over.value, &over.snapshot), (&home.run(&run_id).await?, &None), "{home}");
                        continue;
                    }
                    Step::Expire => {
                        let reason = match status {
                            RunStatus::Pending => SkipReason::NotQueued,
                            status => SkipReason::Status(status),
                        };
                        assert_eq!(step.take(&home, &run).await?, Done::Skipped(reason), "{home}");
                        continue;
                    }
                    step => {
                        assert_eq!(step.take(&home, &run).await?, Done::Left(status), "{home}: {step:?}");
                        continue;
                    }
                };
                check_refused(&home, step, &run, &expected).await?;
            }
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_run_that_is_over_without_a_snapshot_that_says_so_is_over() -> Result<()> {
    let stores = Stores::fresh().await?;
    for home in stores.homes() {
        for step in STEPS {
            let run = home.create_in(step.legal_in()).await?;
            home.sql(&format!("UPDATE task_run SET status = 'EXPIRED' WHERE id = '{}'", run.id)).await?;
            let (operation, status) = (step.operation(), RunStatus::Expired);
            match step {
                step if step.names_snapshot() => {
                    let expected = ErrorKind::IllegalTransition { operation, from: Some(step.legal_in()), status };
                    check_refused(&home, step, &run, &expected).await?;
                }
                Step::Cancel | Step::CancelNow => {
                    let before = stored(&home, &run.id).await?;
                    assert!(matches!(step.take(&home, &run).await?, Done::Over(_)), "{home}");
                    assert_eq!(stored(&home, &run.id).await?, before, "{home}");
                }
                Step::Expire => {
                    let skipped = Done::Skipped(SkipReason::Status(status));
                    assert_eq!(step.take(&home, &run).await?, skipped, "{home}");
                }
                Step::Suspend => {
                    let Done::Discarded(reason, _) = step.take(&home, &run).await? else {
                        panic!("{home}: the run is over");
                    };
                    assert_eq!(reason, DiscardReason::NotCheckpointable(step.legal_in()), "{home}");
                }
                step => assert_eq!(step.take(&home, &run).await?, Done::Left(status), "{home}: {step:?}"),
            }
        }
    }
    Ok(())
}

#[tokio::test]
async fn an_attempt_of_a_run_that_no_worker_has_locked_does_not_start() -> Result<()> {
    let stores = Stores::fresh().await?;
    for home in stores.homes() {
        let run = home.create_in(ExecutionStatus::PendingExecuting).await?;
        home.sql(&format!("UPDATE task_run SET locked_by_id = NULL WHERE id = '{}'", run.id)).await?;
        check_refused(&home, Step::Start, &run, &ErrorKind::NotLocked).await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_unit_that_fails_in_the_middle_leaves_everything_as_it_was() -> Result<()> {
    let stores = Stores::fresh().await?;
    for home in stores.homes() {
        let taken = home.create().await?;
        for step in STEPS.into_iter().filter(|step| *step != Step::Expire) {
            let run = home.create_in(step.legal_in()).await?;
            home.insert_link(&run.snapshot, &WaitpointId::mint()).await?;
            let before = stored(&home, &run.id).await?;
            let links = home.links(&taken.snapshot).await?;
            let details = SnapshotDetails { id: Some(taken.snapshot.clone()), ..SnapshotDetails::default() };
            let error = step.take_with(&home, &run, details).await.err();
            let error = error.with_context(|| format!("{home}: {step:?} with a snapshot id that exists"))?;
            let expected = ErrorKind::UniqueViolation(Some(Constraint::TaskRunExecutionSnapshotPkey));
            check_error(&home, step, &error, &expected);
            assert_eq!(stored(&home, &run.id).await?, before, "{home}: {step:?}");
            assert_eq!(home.links(&taken.snapshot).await?, links, "{home}: {step:?}");
            // The connection is as good as before.
            home.check_stored(&step.take(&home, &run).await?.moved()?).await?;
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_call_that_is_repeated_with_the_same_snapshot_id_answers_as_the_first_time() -> Result<()> {
    let stores = Stores::fresh().await?;
    for home in stores.homes() {
        for step in STEPS.into_iter().filter(|step| step.names_snapshot()) {
            let (run, ..) = awaited_in_batch(&home).await?;
            home.put_into(&run, step.legal_in()).await?;
            let minted = SnapshotDetails { id: Some(SnapshotId::mint()), ..SnapshotDetails::default() };
            let first = step.take_with(&home, &run, minted.clone()).await?.moved()?;
            let before = stored(&home, &run.id).await?;
            let again = step.take_with(&home, &run, minted.clone()).await?.moved()?;
            assert_eq!(again, first, "{home}: {step:?}");
            assert_eq!(stored(&home, &run.id).await?, before, "{home}: {step:?} was done twice");

            // Not with another id, and not if the caller acted on something else.
            let stale = ErrorKind::StaleSnapshot { current: minted.id.clone() };
            check_refused(&home, step, &run, &stale).await?;
            let other = Seeded { snapshot: SnapshotId::mint(), ..run.clone() };
            let error = step.take_with(&home, &other, minted.clone()).await.expect_err("it acted on something else");
            check_error(&home, step, &error, &stale);

            // Nor once the run has moved on.
            if step == Step::Lock {
                let locked = Seeded { snapshot: current(&first)?, ..run.clone() };
                let started = Step::Start.take(&home, &locked).await?.moved()?;
                let error = step.take_with(&home, &run, minted).await.expect_err("the run has moved on");
                let stale = ErrorKind::StaleSnapshot { current: Some(current(&started)?) };
                check_error(&home, step, &error, &stale);
            }
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_single_store_knows_no_runs_of_the_other_database() -> Result<()> {
    let stores = Stores::fresh().await?;
    let [_, run_ops, single] = stores.homes();
    for step in STEPS {
        // A stray copy in the single database is never acted on.
        let run = run_ops.create_in(step.legal_in()).await?;
        let stray = single.create_in(step.legal_in()).await?;
        for (table, column) in [("task_run", "id"), ("task_run_execution_snapshot", "run_id")] {
            single.sql(&format!("ALTER TABLE {table} DISABLE TRIGGER ALL")).await?;
            single.sql(&format!("UPDATE {table} SET {column} = '{}' WHERE {column} = '{}'", run.id, stray.id)).await?;
        }
        let error =
            step.take(&single, &Seeded { id: run.id, snapshot: stray.snapshot }).await.expect_err("it is not its");
        check_error(&single, step, &error, &ErrorKind::NotFound(Entity::Run));
    }
    Ok(())
}

#[tokio::test]
async fn input_that_cannot_be_stored_is_refused_by_the_name_of_its_field() -> Result<()> {
    let nul = || "a\0b".to_owned();
    let stores = Stores::fresh().await?;
    for home in stores.homes() {
        let run = home.create().await?;
        let from = &run.snapshot;
        let before = stored(&home, &run.id).await?;
        let check = |step: Step, answer: Option<StoreError>, field: &'static str, problem: InputProblem| {
            let error = answer.with_context(|| format!("{home}: {step:?}: {field} was taken"))?;
            check_error(&home, step, &error, &ErrorKind::InvalidInput { field, problem });
            anyhow::Ok(())
        };
        let bytes = InputProblem::NulByte;

        let lock = lock_to_worker(from);
        let locks = [
            ("task_version", bytes, LockRunToWorker { task_version: nul(), ..lock.clone() }),
            ("sdk_version", bytes, LockRunToWorker { sdk_version: Some(nul()), ..lock.clone() }),
            ("cli_version", bytes, LockRunToWorker { cli_version: Some(nul()), ..lock.clone() }),
            ("machine_preset", bytes, LockRunToWorker { machine_preset: nul(), ..lock.clone() }),
            ("retry_config", bytes, LockRunToWorker { retry_config: Some(json!([nul()])), ..lock.clone() }),
            ("base_cost_in_cents", InputProblem::NotFinite, LockRunToWorker { base_cost_in_cents: f64::NAN, ..lock }),
        ];
        for (field, problem, input) in locks {
            check(Step::Lock, home.store().lock_run_to_worker(&run.id, input).await.err(), field, problem)?;
        }

        let infinite = Usage { duration_ms: 0, cost_in_cents: f64::NEG_INFINITY };
        let payload = |data: String, data_type: String| Some(Payload { data, data_type });
        let successes = [
            ("output", bytes, CompleteAttemptSuccess { output: payload(nul(), "t".to_owned()), ..complete_from(from) }),
            (
                "output",
                bytes,
                CompleteAttemptSuccess { output: payload("{}".to_owned(), nul()), ..complete_from(from) },
            ),
            (
                "usage.cost_in_cents",
                InputProblem::NotFinite,
                CompleteAttemptSuccess { usage: infinite, ..complete_from(from) },
            ),
        ];
        for (field, problem, input) in successes {
            let answer = home.store().complete_attempt_success(&run.id, input).await.err();
            check(Step::Succeed, answer, field, problem)?;
        }

        let error = json!({ "stack": nul() });
        let failures = [
            ("error", bytes, FailRunPermanently { error: error.clone(), ..fail_from(from) }),
            ("usage.cost_in_cents", InputProblem::NotFinite, FailRunPermanently { usage: infinite, ..fail_from(from) }),
        ];
        for (field, problem, input) in failures {
            check(Step::Fail, home.store().fail_run_permanently(&run.id, input).await.err(), field, problem)?;
        }

        let cancellations = [
            ("error", bytes, CancelRun { error: error.clone(), ..cancellation(false) }),
            ("bulk_action_id", bytes, CancelRun { bulk_action_id: Some(nul()), ..cancellation(false) }),
            ("usage.cost_in_cents", InputProblem::NotFinite, CancelRun { usage: infinite, ..cancellation(false) }),
        ];
        for (field, problem, input) in cancellations {
            check(Step::Cancel, home.store().cancel_run(&run.id, input).await.err(), field, problem)?;
        }

        let input = ExpireRun { error, ..expiry() };
        check(Step::Expire, home.store().expire_run(&run.id, input).await.err(), "error", bytes)?;

        for step in STEPS.into_iter().filter(|step| *step != Step::Expire) {
            let details = [
                ("snapshot.description", SnapshotDetails { description: Some(nul()), ..Default::default() }),
                ("snapshot.worker_id", SnapshotDetails { worker_id: Some(nul()), ..Default::default() }),
                ("snapshot.runner_id", SnapshotDetails { runner_id: Some(nul()), ..Default::default() }),
            ];
            for (field, details) in details {
                check(step, step.take_with(&home, &run, details).await.err(), field, bytes)?;
            }
        }
        ensure!(stored(&home, &run.id).await? == before, "{home}: refused input has changed something");
    }
    Ok(())
}
