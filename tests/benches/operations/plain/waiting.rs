//! Runs that wait and have waited, by way of entities.

use std::{collections::HashMap, fmt};

use anyhow::{Context, Result, ensure};
use sea_orm::{
    ActiveModelTrait, ColumnTrait, Condition, ConnectionTrait, DatabaseConnection, DatabaseTransaction, EntityTrait,
    IntoActiveModel, PaginatorTrait, QueryFilter, QueryOrder, QuerySelect, Set, TransactionTrait,
    sea_query::OnConflict,
};
use store::{Environment, RunId, SnapshotId, WaitpointId, WaitpointOutput};
use tests::runs::Seeded;

use super::either;
use crate::bed::{Bed, Waited, Waiting};

/// The id of a row that nobody asks for by it.
fn new_id() -> String {
    WaitpointId::mint().to_string()
}

fn now() -> chrono::DateTime<chrono::FixedOffset> {
    chrono::Utc::now().fixed_offset()
}

macro_rules! generation {
    ($module:ident, $entities:ident) => {
        pub(crate) mod $module {
            use super::*;
            use crate::plain::$module::find_latest;
            use $entities::{
                sea_orm_active_enums::{TaskRunExecutionStatus, WaitpointStatus},
                task_run, task_run_checkpoint as checkpoint, task_run_execution_snapshot as snapshot,
                task_run_waitpoint as edge, waitpoint,
            };

            /// A snapshot with its checkpoint and its completed waitpoints.
            pub(crate) type Whole = (snapshot::Model, Option<checkpoint::Model>, Vec<waitpoint::Model>);

            async fn lock(
                transaction: &DatabaseTransaction,
                run: &Seeded,
            ) -> Result<(task_run::Model, snapshot::Model)> {
                let row = task_run::Entity::find_by_id(run.id.as_str()).lock_exclusive().one(transaction).await?;
                let previous = find_latest(transaction, run.id).await?.context("the run has no snapshot")?;
                ensure!(previous.id == run.snapshot.as_str(), "the snapshot is not the current one");
                Ok((row.context("the run is not there")?, previous))
            }

            /// Writes the next snapshot, and the run's row.
            async fn go_on(
                transaction: &DatabaseTransaction,
                run: task_run::Model,
                previous: &snapshot::Model,
                state: TaskRunExecutionStatus,
                description: &str,
            ) -> Result<(task_run::Model, snapshot::Model)> {
                let now = now();
                let next = snapshot::Model {
                    id: SnapshotId::mint().to_string(),
                    execution_status: state,
                    description: description.to_owned(),
                    previous_snapshot_id: Some(previous.id.clone()),
                    checkpoint_id: None,
                    created_at: Ord::max(now, previous.created_at + chrono::Duration::microseconds(1)),
                    updated_at: now,
                    ..previous.clone()
                };
                let mut change = run.into_active_model();
                change.updated_at = Set(now);
                let run = change.update(transaction).await?;
                Ok((run, next.into_active_model().insert(transaction).await?))
            }

            pub(crate) async fn block(
                connection: &DatabaseConnection,
                Waiting { run, token }: &Waiting,
                environment: &Environment,
            ) -> Result<(task_run::Model, snapshot::Model)> {
                // The edge has to be there for others before what is pending is counted.
                let transaction = connection.begin().await?;
                let edge = edge::ActiveModel {
                    id: Set(new_id()),
                    task_run_id: Set(run.id.to_string()),
                    waitpoint_id: Set(token.to_string()),
                    project_id: Set(environment.project.to_string()),
                    created_at: Set(now()),
                    updated_at: Set(now()),
                    ..Default::default()
                };
                edge::Entity::insert(edge)
                    .on_conflict(OnConflict::new().do_nothing().to_owned())
                    .exec_without_returning(&transaction)
                    .await?;
                pairs::$module::connect(&transaction, run.id.as_str(), token.as_str()).await?;
                transaction.commit().await?;

                let transaction = connection.begin().await?;
                let (row, mut previous) = lock(&transaction, run).await?;
                ensure!(previous.execution_status == TaskRunExecutionStatus::Executing, "the run cannot wait");
                previous.batch_id = None;
                previous.completed_waitpoint_order = Vec::new();
                let (state, description) =
                    (TaskRunExecutionStatus::ExecutingWithWaitpoints, "Run was blocked by a waitpoint");
                let done = go_on(&transaction, row, &previous, state, description).await?;
                transaction.commit().await?;

                let pending = waitpoint::Entity::find()
                    .filter(waitpoint::Column::Id.is_in([token.as_str()]))
                    .filter(waitpoint::Column::Status.eq(WaitpointStatus::Pending))
                    .count(connection)
                    .await?;
                ensure!(pending == 1, "the token is not pending");
                Ok(done)
            }

            pub(crate) async fn complete_in(
                connection: &DatabaseConnection,
                token: &WaitpointId,
                output: &WaitpointOutput,
            ) -> Result<(WaitpointStatus, Option<String>, bool)> {
                let transaction = connection.begin().await?;
                let found = waitpoint::Entity::find_by_id(token.as_str()).lock_exclusive().one(&transaction).await?;
                let mut found = found.context("the token is not beside its run")?;
                if found.status == WaitpointStatus::Pending {
                    let mut change = found.into_active_model();
                    change.status = Set(WaitpointStatus::Completed);
                    change.completed_at = Set(Some(now()));
                    change.output = Set(output.output.clone());
                    change.output_type = Set(output.output_type.clone());
                    change.output_is_error = Set(output.is_error);
                    change.updated_at = Set(now());
                    found = change.update(&transaction).await?;
                }
                transaction.commit().await?;
                Ok((found.status, found.output, found.output_is_error))
            }

            /// The runs of the edges that name a token.
            pub(super) async fn waiting_runs(
                connection: &DatabaseConnection,
                token: &WaitpointId,
            ) -> Result<Vec<String>> {
                let edges = edge::Entity::find()
                    .filter(edge::Column::WaitpointId.eq(token.as_str()))
                    .order_by_asc(edge::Column::CreatedAt)
                    .order_by_asc(edge::Column::Id);
                Ok(edges.all(connection).await?.into_iter().map(|edge| edge.task_run_id).collect())
            }

            pub(crate) async fn resume(
                connection: &DatabaseConnection,
                run: &Seeded,
            ) -> Result<(task_run::Model, snapshot::Model)> {
                let transaction = connection.begin().await?;
                let (row, previous) = lock(&transaction, run).await?;
                ensure!(
                    previous.execution_status == TaskRunExecutionStatus::ExecutingWithWaitpoints,
                    "the run does not wait"
                );
                let edges =
                    edge::Entity::find().filter(edge::Column::TaskRunId.eq(run.id.as_str())).all(&transaction).await?;
                let tokens = waitpoint::Entity::find()
                    .filter(waitpoint::Column::Id.is_in(edges.iter().map(|edge| edge.waitpoint_id.as_str())))
                    .all(&transaction)
                    .await?;
                ensure!(tokens.len() == edges.len(), "a token is not beside its run");
                for token in &tokens {
                    ensure!(token.status == WaitpointStatus::Completed, "the run is held up");
                    ensure!(token.environment_id == row.runtime_environment_id, "a token is of another environment");
                }
                let (state, description) =
                    (TaskRunExecutionStatus::Executing, "Run goes on: all of its waitpoints are complete");
                let done = go_on(&transaction, row, &previous, state, description).await?;
                for token in &tokens {
                    pairs::$module::complete(&transaction, &done.1.id, &token.id).await?;
                }
                edge::Entity::delete_many()
                    .filter(edge::Column::Id.is_in(edges.iter().map(|edge| edge.id.as_str())))
                    .exec(&transaction)
                    .await?;
                transaction.commit().await?;
                Ok(done)
            }

            async fn whole(connection: &DatabaseConnection, snapshot: snapshot::Model) -> Result<Whole> {
                let checkpoint = match &snapshot.checkpoint_id {
                    Some(id) => checkpoint::Entity::find_by_id(id.as_str()).one(connection).await?,
                    None => None,
                };
                let ids = pairs::$module::completed(connection, &snapshot.id).await?;
                let waitpoints = waitpoint::Entity::find()
                    .filter(waitpoint::Column::Id.is_in(ids.iter().map(String::as_str)))
                    .order_by_asc(waitpoint::Column::Id)
                    .all(connection)
                    .await?;
                ensure!(waitpoints.len() == ids.len(), "a token is not beside its run");
                Ok((snapshot, checkpoint, waitpoints))
            }

            pub(crate) async fn current(connection: &DatabaseConnection, run: &Waited) -> Result<Whole> {
                let snapshot = find_latest(connection, run.id).await?.context("the run has no snapshot")?;
                whole(connection, snapshot).await
            }

            pub(crate) async fn since(connection: &DatabaseConnection, run: &Waited) -> Result<Vec<Whole>> {
                let anchor = snapshot::Entity::find_by_id(run.since.as_str())
                    .filter(snapshot::Column::RunId.eq(run.id.as_str()))
                    .one(connection)
                    .await?
                    .context("the run has no such snapshot")?;
                let same_moment = Condition::all()
                    .add(snapshot::Column::CreatedAt.eq(anchor.created_at))
                    .add(snapshot::Column::Id.gt(anchor.id.as_str()));
                let later = Condition::any().add(snapshot::Column::CreatedAt.gt(anchor.created_at)).add(same_moment);
                let mut newest = snapshot::Entity::find()
                    .filter(snapshot::Column::RunId.eq(run.id.as_str()))
                    .filter(snapshot::Column::IsValid.eq(true))
                    .filter(later)
                    .order_by_desc(snapshot::Column::CreatedAt)
                    .order_by_desc(snapshot::Column::Id)
                    .limit(50)
                    .all(connection)
                    .await?
                    .into_iter();
                let Some(last) = newest.next() else { return Ok(Vec::new()) };
                let last = whole(connection, last).await?;
                let earlier: Vec<snapshot::Model> = newest.rev().collect();
                let named: Vec<&str> = earlier.iter().filter_map(|one| one.checkpoint_id.as_deref()).collect();
                let mut checkpoints: HashMap<String, checkpoint::Model> = HashMap::new();
                if !named.is_empty() {
                    let found = checkpoint::Entity::find().filter(checkpoint::Column::Id.is_in(named));
                    let found = found.all(connection).await?;
                    checkpoints.extend(found.into_iter().map(|checkpoint| (checkpoint.id.clone(), checkpoint)));
                }
                let bare = earlier.into_iter().map(|one| {
                    let checkpoint = one.checkpoint_id.as_ref().and_then(|id| checkpoints.get(id).cloned());
                    (one, checkpoint, Vec::new())
                });
                Ok(bare.chain([last]).collect())
            }

            /// The snapshots of each of some runs, by id.
            pub(crate) async fn find_snapshots(
                connection: &DatabaseConnection,
                runs: &[RunId],
            ) -> Result<Vec<Vec<snapshot::Model>>> {
                let rows = snapshot::Entity::find()
                    .filter(snapshot::Column::RunId.is_in(runs.iter().map(|run| run.as_str())))
                    .order_by_asc(snapshot::Column::Id)
                    .all(connection)
                    .await?;
                let mut found: HashMap<String, Vec<snapshot::Model>> = HashMap::new();
                for row in rows {
                    found.entry(row.run_id.clone()).or_default().push(row);
                }
                Ok(runs.iter().map(|run| found.remove(run.as_str()).unwrap_or_default()).collect())
            }
        }
    };
}

generation!(control, entities_control);
generation!(runops, entities_runops);

/// Pairs of a run or a snapshot and a waitpoint, which the two generations keep in different tables.
mod pairs {
    use super::*;

    pub(super) mod control {
        use super::*;
        use entities_control::{completed_waitpoints as links, waitpoint_run_connections as connections};

        pub(crate) async fn completed(connection: &impl ConnectionTrait, snapshot: &str) -> Result<Vec<String>> {
            let found = links::Entity::find().filter(links::Column::A.eq(snapshot)).all(connection).await?;
            Ok(found.into_iter().map(|link| link.b).collect())
        }

        pub(crate) async fn complete(connection: &impl ConnectionTrait, snapshot: &str, waitpoint: &str) -> Result<()> {
            let link = links::ActiveModel { a: Set(snapshot.to_owned()), b: Set(waitpoint.to_owned()) };
            links::Entity::insert(link).exec_without_returning(connection).await?;
            Ok(())
        }

        pub(crate) async fn connect(connection: &impl ConnectionTrait, run: &str, waitpoint: &str) -> Result<()> {
            let pair = connections::ActiveModel { a: Set(run.to_owned()), b: Set(waitpoint.to_owned()) };
            let insert = connections::Entity::insert(pair).on_conflict(OnConflict::new().do_nothing().to_owned());
            insert.exec_without_returning(connection).await?;
            Ok(())
        }
    }

    pub(super) mod runops {
        use super::*;
        use entities_runops::{completed_waitpoint as links, waitpoint_run_connection as connections};

        pub(crate) async fn completed(connection: &impl ConnectionTrait, snapshot: &str) -> Result<Vec<String>> {
            let found = links::Entity::find().filter(links::Column::SnapshotId.eq(snapshot)).all(connection).await?;
            Ok(found.into_iter().map(|link| link.waitpoint_id).collect())
        }

        pub(crate) async fn complete(connection: &impl ConnectionTrait, snapshot: &str, waitpoint: &str) -> Result<()> {
            let link = links::ActiveModel {
                id: Set(new_id()),
                snapshot_id: Set(snapshot.to_owned()),
                waitpoint_id: Set(waitpoint.to_owned()),
            };
            links::Entity::insert(link).exec_without_returning(connection).await?;
            Ok(())
        }

        pub(crate) async fn connect(connection: &impl ConnectionTrait, run: &str, waitpoint: &str) -> Result<()> {
            let pair = connections::ActiveModel {
                id: Set(new_id()),
                task_run_id: Set(run.to_owned()),
                waitpoint_id: Set(waitpoint.to_owned()),
            };
            let insert = connections::Entity::insert(pair).on_conflict(OnConflict::new().do_nothing().to_owned());
            insert.exec_without_returning(connection).await?;
            Ok(())
        }
    }
}

/// Completes a token beside its run, and tells how often that run is found waiting.
pub(crate) async fn complete_token(
    bed: &Bed,
    Waiting { run, token }: &Waiting,
    output: &WaitpointOutput,
) -> Result<(impl fmt::Debug + use<>, usize)> {
    let done = either!(bed, complete_in(token, output));
    let (mut runs, others) = tokio::try_join!(
        runops::waiting_runs(&bed.sea_orm.run_ops, token),
        control::waiting_runs(&bed.sea_orm.control_plane, token),
    )?;
    runs.extend(others);
    Ok((done, runs.iter().filter(|found| found.as_str() == run.id.as_str()).count()))
}
