//! The same by way of entities, as the ORM's own documentation does it.

use std::{collections::HashMap, fmt};

use anyhow::{Context, Result};
use sea_orm::{
    ActiveModelTrait, ColumnTrait, DatabaseConnection, EntityTrait, IntoActiveModel, PartialModelTrait, QueryFilter,
    QueryOrder, QuerySelect, Set, TransactionTrait,
};
use store::{Environment, RunId, RunSummary, SnapshotId, WaitpointId};
use tests::{Side, runs::Seeded};

use crate::bed::Bed;

mod resolver;
mod waiting;

pub(crate) use resolver::{resolve_authenticated_env, resolve_env, resolve_worker_version};
pub(crate) use waiting::complete_token;

/// The rows that new ones are made of.
pub(crate) enum Template {
    Control(Box<control::Rows>),
    RunOps(Box<runops::Rows>),
}

impl Template {
    pub(crate) async fn read(side: Side, connection: &DatabaseConnection, run: &Seeded) -> Result<Template> {
        Ok(match side {
            Side::ControlPlane => Template::Control(Box::new(control::Rows::read(connection, run).await?)),
            Side::RunOps => Template::RunOps(Box::new(runops::Rows::read(connection, run).await?)),
        })
    }
}

/// What a transition does, in words that both generations of entities understand.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Step {
    Lock,
    Start,
    Complete,
}

/// The answer of either generation of entities; it shows the answer alone, for the names of types and variants are the
/// same in both.
pub(crate) enum Either<A, B> {
    Control(A),
    RunOps(B),
}

impl<A: fmt::Debug, B: fmt::Debug> fmt::Debug for Either<A, B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Either::Control(answer) => answer.fmt(f),
            Either::RunOps(answer) => answer.fmt(f),
        }
    }
}

/// Asks the entities of the bed's database.
macro_rules! either {
    ($bed:expr, $call:ident($($argument:expr),*)) => {
        match $bed.side {
            tests::Side::ControlPlane => $crate::plain::Either::Control(
                $crate::plain::control::$call($bed.connection(), $($argument),*).await?
            ),
            tests::Side::RunOps => $crate::plain::Either::RunOps(
                $crate::plain::runops::$call($bed.connection(), $($argument),*).await?
            ),
        }
    };
}
pub(crate) use either;

macro_rules! generation {
    ($module:ident, $entities:ident) => {
        pub(crate) mod $module {
            pub(crate) use super::waiting::$module::*;
            use super::*;
            use $entities::{
                sea_orm_active_enums::{TaskRunExecutionStatus, TaskRunStatus, WaitpointStatus},
                task_run, task_run_execution_snapshot as snapshot, waitpoint,
            };

            #[derive(Clone, Debug)]
            pub(crate) struct Rows {
                run: task_run::Model,
                snapshot: snapshot::Model,
                waitpoint: waitpoint::Model,
            }

            impl Rows {
                pub(crate) async fn read(connection: &DatabaseConnection, run: &Seeded) -> Result<Rows> {
                    let (id, expected) = (run.id.as_str(), "a row of the template is missing");
                    let waitpoint = waitpoint::Entity::find().filter(waitpoint::Column::CompletedByTaskRunId.eq(id));
                    Ok(Rows {
                        run: task_run::Entity::find_by_id(id).one(connection).await?.context(expected)?,
                        snapshot: snapshot::Entity::find_by_id(run.snapshot.as_str())
                            .one(connection)
                            .await?
                            .context(expected)?,
                        waitpoint: waitpoint.one(connection).await?.context(expected)?,
                    })
                }
            }

            pub(crate) async fn find_run(
                connection: &DatabaseConnection,
                id: RunId,
            ) -> Result<Option<task_run::Model>> {
                Ok(task_run::Entity::find_by_id(id.as_str()).one(connection).await?)
            }

            pub(crate) async fn find_runs(
                connection: &DatabaseConnection,
                ids: Vec<RunId>,
            ) -> Result<Vec<task_run::Model>> {
                let ids = ids.iter().map(|id| id.as_str());
                let mut found =
                    task_run::Entity::find().filter(task_run::Column::Id.is_in(ids)).all(connection).await?;
                found.sort_by(|one, other| one.id.cmp(&other.id));
                Ok(found)
            }

            pub(crate) async fn find_page(
                connection: &DatabaseConnection,
                environment: &Environment,
                limit: u64,
            ) -> Result<Vec<RunSummary>> {
                let rows = RunSummary::select_cols(task_run::Entity::find().select_only());
                let rows = rows
                    .filter(task_run::Column::RuntimeEnvironmentId.eq(environment.id.as_str()))
                    .order_by_desc(task_run::Column::CreatedAt)
                    .order_by_desc(task_run::Column::Id)
                    .limit(limit);
                Ok(rows.into_model::<RunSummary>().all(connection).await?)
            }

            pub(crate) async fn find_latest(
                connection: &impl sea_orm::ConnectionTrait,
                id: RunId,
            ) -> Result<Option<snapshot::Model>> {
                let rows = snapshot::Entity::find()
                    .filter(snapshot::Column::RunId.eq(id.as_str()))
                    .filter(snapshot::Column::IsValid.eq(true))
                    .order_by_desc(snapshot::Column::CreatedAt)
                    .order_by_desc(snapshot::Column::Id);
                Ok(rows.one(connection).await?)
            }

            pub(crate) async fn create(
                connection: &DatabaseConnection,
                rows: &Rows,
                id: RunId,
                waitpoint: Option<WaitpointId>,
            ) -> Result<(task_run::Model, snapshot::Model)> {
                let now = chrono::Utc::now().fixed_offset();
                let Rows { run, snapshot, waitpoint: template } = rows.clone();
                let run = task_run::Model {
                    id: id.to_string(),
                    friendly_id: id.friendly().to_string(),
                    created_at: now,
                    updated_at: now,
                    queued_at: Some(now),
                    queue_timestamp: Some(now),
                    ..run
                };
                let snapshot = snapshot::Model {
                    id: SnapshotId::mint().to_string(),
                    run_id: id.to_string(),
                    created_at: now,
                    updated_at: now,
                    ..snapshot
                };
                let waitpoint = waitpoint.map(|waitpoint| waitpoint::Model {
                    id: waitpoint.to_string(),
                    friendly_id: waitpoint.friendly(),
                    idempotency_key: waitpoint.to_string(),
                    completed_by_task_run_id: Some(id.to_string()),
                    created_at: now,
                    updated_at: now,
                    ..template
                });
                let transaction = connection.begin().await?;
                let run = run.into_active_model().insert(&transaction).await?;
                let snapshot = snapshot.into_active_model().insert(&transaction).await?;
                if let Some(waitpoint) = waitpoint {
                    waitpoint.into_active_model().insert(&transaction).await?;
                }
                transaction.commit().await?;
                Ok((run, snapshot))
            }

            pub(crate) async fn expire(
                connection: &DatabaseConnection,
                ids: Vec<RunId>,
                error: &serde_json::Value,
            ) -> Result<usize> {
                let texts = || ids.iter().map(|id| id.as_str());
                let now = chrono::Utc::now().fixed_offset();
                let at = tests::runs::moment(30).fixed_offset();
                let transaction = connection.begin().await?;
                let runs = task_run::Entity::find()
                    .filter(task_run::Column::Id.is_in(texts()))
                    .order_by_asc(task_run::Column::Id)
                    .lock_exclusive()
                    .all(&transaction)
                    .await?;
                // All valid snapshots: the newest of each run is not to be had from the ORM alone.
                let snapshots = snapshot::Entity::find()
                    .filter(snapshot::Column::RunId.is_in(texts()))
                    .filter(snapshot::Column::IsValid.eq(true))
                    .order_by_asc(snapshot::Column::CreatedAt)
                    .order_by_asc(snapshot::Column::Id)
                    .all(&transaction)
                    .await?;
                let waitpoints = waitpoint::Entity::find()
                    .filter(waitpoint::Column::CompletedByTaskRunId.is_in(texts()))
                    .filter(waitpoint::Column::Status.eq(WaitpointStatus::Pending))
                    .all(&transaction)
                    .await?;
                std::hint::black_box(waitpoints);
                let newest: HashMap<String, snapshot::Model> =
                    snapshots.into_iter().map(|snapshot| (snapshot.run_id.clone(), snapshot)).collect();
                let may_expire = |run: &task_run::Model| {
                    run.status == TaskRunStatus::Pending
                        && run.locked_by_id.is_none()
                        && newest
                            .get(&run.id)
                            .is_some_and(|snapshot| snapshot.execution_status == TaskRunExecutionStatus::Queued)
                };
                let expired: Vec<String> =
                    runs.iter().filter(|run| may_expire(run)).map(|run| run.id.clone()).collect();
                task_run::Entity::update_many()
                    .set(task_run::ActiveModel {
                        status: Set(TaskRunStatus::Expired),
                        error: Set(Some(error.clone())),
                        expired_at: Set(Some(at)),
                        completed_at: Set(Some(at)),
                        updated_at: Set(now),
                        ..Default::default()
                    })
                    .filter(task_run::Column::Id.is_in(expired.iter().map(String::as_str)))
                    .exec(&transaction)
                    .await?;
                let next = expired.iter().filter_map(|id| newest.get(id)).map(|previous| {
                    let next = snapshot::Model {
                        id: SnapshotId::mint().to_string(),
                        execution_status: TaskRunExecutionStatus::Finished,
                        run_status: TaskRunStatus::Expired,
                        description: "Run expired before it was started".to_owned(),
                        previous_snapshot_id: Some(previous.id.clone()),
                        created_at: Ord::max(now, previous.created_at + chrono::Duration::microseconds(1)),
                        updated_at: now,
                        ..previous.clone()
                    };
                    next.into_active_model()
                });
                snapshot::Entity::insert_many(next).exec(&transaction).await?;
                transaction.commit().await?;
                Ok(expired.len())
            }

            pub(crate) async fn transition(
                connection: &DatabaseConnection,
                seeded: &Seeded,
                step: Step,
            ) -> Result<(task_run::Model, snapshot::Model)> {
                let transaction = connection.begin().await?;
                let run = task_run::Entity::find_by_id(seeded.id.as_str()).lock_exclusive().one(&transaction).await?;
                let run = run.context("the run is not there")?;
                let previous = find_latest(&transaction, seeded.id).await?.context("the run has no snapshot")?;
                anyhow::ensure!(previous.id == seeded.snapshot.as_str(), "the snapshot is not the current one");
                let links = links::$module(&transaction, &previous.id).await?;
                let now = chrono::Utc::now().fixed_offset();
                let (attempt, started_at, executed_at) = (run.attempt_number, run.started_at, run.executed_at);
                let (used, cost) = (run.usage_duration_ms, run.cost_in_cents);
                let mut change = run.into_active_model();
                change.updated_at = Set(now);
                let mut next = previous.clone();
                match step {
                    Step::Lock => {
                        anyhow::ensure!(
                            previous.execution_status == TaskRunExecutionStatus::Queued,
                            "the run is not queued"
                        );
                        change.status = Set(TaskRunStatus::Dequeued);
                        change.locked_at = Set(Some(now));
                        change.locked_by_id = Set(Some("task_1".to_owned()));
                        change.locked_to_version_id = Set(Some("worker_1".to_owned()));
                        change.locked_queue_id = Set(Some("queue_1".to_owned()));
                        change.task_version = Set(Some("20260801.1".to_owned()));
                        change.started_at = Set(Some(started_at.unwrap_or(now)));
                        change.machine_preset = Set(Some("small-1x".to_owned()));
                        change.base_cost_in_cents = Set(0.5);
                        next.execution_status = TaskRunExecutionStatus::PendingExecuting;
                        next.run_status = TaskRunStatus::Pending;
                        next.description = "Run was dequeued for execution".to_owned();
                    }
                    Step::Start => {
                        anyhow::ensure!(
                            previous.execution_status == TaskRunExecutionStatus::PendingExecuting,
                            "the run is not locked"
                        );
                        let attempt = attempt.unwrap_or(0) + 1;
                        change.status = Set(TaskRunStatus::Executing);
                        change.attempt_number = Set(Some(attempt));
                        change.executed_at = Set(Some(executed_at.unwrap_or(now)));
                        next.execution_status = TaskRunExecutionStatus::Executing;
                        next.run_status = TaskRunStatus::Executing;
                        next.attempt_number = Some(attempt);
                        next.checkpoint_id = None;
                        next.description = "Attempt started".to_owned();
                    }
                    Step::Complete => {
                        anyhow::ensure!(
                            previous.execution_status == TaskRunExecutionStatus::Executing,
                            "the run is not executing"
                        );
                        // Whoever waits for the run has to be told.
                        let waiting = waitpoint::Entity::find()
                            .filter(waitpoint::Column::CompletedByTaskRunId.eq(seeded.id.as_str()))
                            .filter(waitpoint::Column::Status.eq(WaitpointStatus::Pending));
                        std::hint::black_box(waiting.one(&transaction).await?);
                        change.status = Set(TaskRunStatus::CompletedSuccessfully);
                        change.completed_at = Set(Some(tests::runs::moment(30).fixed_offset()));
                        change.usage_duration_ms = Set(used + 7);
                        change.cost_in_cents = Set(cost + 0.5);
                        change.error = Set(None);
                        change.output = Set(Some("{\"done\":true}".to_owned()));
                        change.output_type = Set("application/json".to_owned());
                        next.execution_status = TaskRunExecutionStatus::Finished;
                        next.run_status = TaskRunStatus::CompletedSuccessfully;
                        next.description = "Task completed successfully".to_owned();
                    }
                }
                next.id = SnapshotId::mint().to_string();
                next.previous_snapshot_id = Some(previous.id.clone());
                next.created_at = Ord::max(now, previous.created_at + chrono::Duration::microseconds(1));
                next.updated_at = now;
                let run = change.update(&transaction).await?;
                let snapshot = next.into_active_model().insert(&transaction).await?;
                anyhow::ensure!(links == 0, "the copied runs have no completed waitpoints");
                transaction.commit().await?;
                Ok((run, snapshot))
            }
        }
    };
}

generation!(control, entities_control);
generation!(runops, entities_runops);

/// How many completed waitpoints a snapshot has.
mod links {
    use super::*;
    use sea_orm::{ConnectionTrait, PaginatorTrait};

    pub(super) async fn control(connection: &impl ConnectionTrait, snapshot: &str) -> Result<u64> {
        use entities_control::completed_waitpoints::{Column, Entity};
        Ok(Entity::find().filter(Column::A.eq(snapshot)).count(connection).await?)
    }

    pub(super) async fn runops(connection: &impl ConnectionTrait, snapshot: &str) -> Result<u64> {
        use entities_runops::completed_waitpoint::{Column, Entity};
        Ok(Entity::find().filter(Column::SnapshotId.eq(snapshot)).count(connection).await?)
    }
}

/// Creates a run in the bed's database.
pub(crate) async fn create(bed: &Bed, id: RunId, waitpoint: Option<WaitpointId>) -> Result<impl fmt::Debug + use<>> {
    Ok(match &bed.plain {
        Template::Control(rows) => Either::Control(control::create(bed.connection(), rows, id, waitpoint).await?),
        Template::RunOps(rows) => Either::RunOps(runops::create(bed.connection(), rows, id, waitpoint).await?),
    })
}

/// Finds a page in both databases.
pub(crate) async fn find_page(bed: &Bed, limit: u64) -> Result<Vec<RunSummary>> {
    let (environment, connections) = (&bed.environment, &bed.sea_orm);
    let (control_plane, run_ops) = tokio::try_join!(
        control::find_page(&connections.control_plane, environment, limit),
        runops::find_page(&connections.run_ops, environment, limit),
    )?;
    Ok(newest(control_plane, run_ops, limit))
}

/// The newest of two pages.
pub(crate) fn newest(mut one: Vec<RunSummary>, other: Vec<RunSummary>, limit: u64) -> Vec<RunSummary> {
    one.extend(other);
    one.sort_by(|one, other| (other.created_at, &other.id).cmp(&(one.created_at, &one.id)));
    one.truncate(usize::try_from(limit).unwrap_or(usize::MAX));
    one
}

/// The first page of a list, and whether there is more. Of two copies of a run, that of run-ops counts.
pub(crate) async fn list(bed: &Bed, limit: usize) -> Result<(Vec<RunSummary>, bool)> {
    let (environment, connections) = (&bed.environment, &bed.sea_orm);
    let one_more = u64::try_from(limit)? + 1;
    let (control_plane, run_ops) = tokio::try_join!(
        control::find_page(&connections.control_plane, environment, one_more),
        runops::find_page(&connections.run_ops, environment, one_more),
    )?;
    let page = first_page(control_plane, run_ops, limit);
    let copies = match page.doubtful.as_slice() {
        [] => Vec::new(),
        doubtful => there(&connections.run_ops, doubtful).await?,
    };
    Ok(page.without(&copies))
}

/// Those of some ids that are in run-ops.
async fn there(connection: &DatabaseConnection, ids: &[String]) -> Result<Vec<String>> {
    use entities_runops::task_run::{Column, Entity};
    let rows = Entity::find().select_only().column(Column::Id);
    let rows = rows.filter(Column::Id.is_in(ids.iter().map(String::as_str)));
    Ok(rows.into_tuple::<String>().all(connection).await?)
}

/// A page of a list over both databases.
pub(crate) struct FirstPage {
    /// Each with whether it comes from run-ops.
    rows: Vec<(bool, RunSummary)>,
    has_more: bool,
    /// Rows of the control plane on it, of which run-ops may have copies.
    pub(crate) doubtful: Vec<String>,
}

/// Merges what each database has, one row more than the page takes.
pub(crate) fn first_page(control_plane: Vec<RunSummary>, run_ops: Vec<RunSummary>, limit: usize) -> FirstPage {
    let control_plane = control_plane.into_iter().map(|row| (false, row));
    let mut rows: Vec<_> = run_ops.into_iter().map(|row| (true, row)).chain(control_plane).collect();
    rows.sort_by(|(_, one), (_, other)| (other.created_at, &other.id).cmp(&(one.created_at, &one.id)));
    let has_more = rows.len() > limit;
    rows.truncate(limit);
    let of_control_plane = rows.iter().filter(|(is_run_ops, _)| !is_run_ops);
    let doubtful = of_control_plane.map(|(_, row)| row.id.clone()).collect();
    FirstPage { rows, has_more, doubtful }
}

impl FirstPage {
    /// The page, without those rows of the control plane of which there are copies.
    pub(crate) fn without(self, copies: &[String]) -> (Vec<RunSummary>, bool) {
        let counts = |is_run_ops: bool, row: &RunSummary| is_run_ops || !copies.contains(&row.id);
        let rows = self.rows.into_iter().filter(|(is_run_ops, row)| counts(*is_run_ops, row));
        (rows.map(|(_, row)| row).collect(), self.has_more)
    }
}
