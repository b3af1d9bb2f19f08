//! Writes that go to both databases, or go in thousands: what the caller is told when one part fails and another does
//! not, and that repeating the call makes up for it.

use std::sync::Arc;

use anyhow::{Context, Result};
use sea_orm::{ConnectionTrait, TransactionTrait};
use store::{
    BatchFilter, BatchId, BatchItemFilter, BatchItemStatus, BatchItemUpdate, BatchStatus, BatchUpdate, BlockRun,
    Change, ClaimKey, ClearIdempotencyKey, CreateBatchItemOutcome, CreateRun, EdgeFilter, EdgeId, ErrorKind,
    Idempotency, KeyScope, NewBatchItem, NewRun, Read, RunId, RunStore, StoreError, WaitpointId, WaitpointSelection,
    WaitpointUpdate,
};
use tests::runs::{Home, created, residency_of, split_config};
use tests::waits::{block_by, create_token, output};
use tests::{Databases, Mode, Side};
use tokio::{join, time::timeout};

use crate::faults::{PATIENCE, behind_proxies, check_error, wait_until_blocked};

/// A call that writes to both databases, and has one row to change in each.
struct FanOut {
    call: Call,
    /// Counts the rows of one database that the call has still to change.
    left: String,
}

#[derive(Debug)]
enum Call {
    DeleteEdges(EdgeFilter),
    UpdateWaitpoints(WaitpointSelection),
    UpdateBatches(BatchFilter),
    CompleteBatchWaitpoints(BatchId),
    UpdateItems(BatchItemFilter),
    ClearKeys(ClaimKey),
}

impl FanOut {
    async fn make(&self, store: &dyn RunStore) -> Result<(), StoreError> {
        match &self.call {
            Call::DeleteEdges(filter) => store.delete_many_task_run_waitpoints(filter).await.map(drop),
            Call::UpdateWaitpoints(selection) => {
                let update = WaitpointUpdate { tags: Some(vec!["done".to_owned()]), ..WaitpointUpdate::default() };
                store.update_many_waitpoints(selection, update).await.map(drop)
            }
            Call::UpdateBatches(filter) => {
                let update = BatchUpdate { status: Some(BatchStatus::Processing), ..BatchUpdate::default() };
                store.update_many_batch_task_run(filter, update).await.map(drop)
            }
            Call::CompleteBatchWaitpoints(batch) => {
                store.complete_batch_waitpoints(batch, output("done")).await.map(drop)
            }
            Call::UpdateItems(filter) => {
                let update = BatchItemUpdate { status: Some(BatchItemStatus::Completed), ..BatchItemUpdate::default() };
                store.update_many_batch_task_run_items(filter, update).await.map(drop)
            }
            Call::ClearKeys(key) => {
                store.clear_idempotency_key(ClearIdempotencyKey::ByPredicate(key.clone())).await.map(drop)
            }
        }
    }

    /// How many rows are still to be changed: in the control plane, in run-ops.
    async fn left(&self, databases: &Databases) -> Result<(i64, i64)> {
        let of = async |side| databases.value::<i64>(side, &self.left).await;
        Ok((of(Side::ControlPlane).await?, of(Side::RunOps).await?))
    }
}

/// Rows in both databases for each kind of call that writes to both.
async fn seed(databases: &Databases, store: &Arc<dyn RunStore>) -> Result<Vec<FanOut>> {
    let home = Home::new("both", Arc::clone(store), Side::ControlPlane, databases);
    let environment = home.environment().id.clone();
    let (shared, key) = (WaitpointId::mint(), "both");
    // Only in the control plane is there a foreign key that leads from a waitpoint to its batch.
    let awaited = home.insert_batch().await?;
    let (mut tokens, mut batches, mut items, mut task) = (Vec::new(), Vec::new(), Vec::new(), String::new());
    for side in Side::ALL {
        let home = home.on(side);
        let keyed = NewRun {
            // A key that is not claimed, so that both databases can have it.
            idempotency: Some(Idempotency { scope: KeyScope::Run, ..Idempotency::new(key) }),
            ..home.new_run()
        };
        task.clone_from(&keyed.task_identifier);
        let run = keyed.id;
        let _made = created(store.create_run(CreateRun::queued(keyed)).await?)?;
        store.block_run_with_waitpoint_edges(&run, &block_by(&home, &[&shared])).await?;
        tokens.push(create_token(&home, residency_of(side)).await?);
        let batch = home.insert_batch().await?;
        let item = NewBatchItem { id: None, batch, run, attempt: None, status: BatchItemStatus::Pending };
        let CreateBatchItemOutcome::Created(item) = store.create_batch_task_run_item(item).await? else {
            anyhow::bail!("{side}: the item was to be created");
        };
        items.push(item.id);
        batches.push(batch);
        let waitpoint = WaitpointId::mint();
        home.sql(&format!(
            "INSERT INTO waitpoint (
                id, friendly_id, type, status, idempotency_key, user_provided_idempotency_key, completed_by_batch_id,
                project_id, environment_id, updated_at
             ) VALUES ('{waitpoint}', '{}', 'BATCH', 'PENDING', '{waitpoint}', FALSE, '{awaited}', 'p', '{environment}',
                now())",
            waitpoint.friendly()
        ))
        .await?;
    }
    let count = |of: String| format!("SELECT count(*) FROM {of}");
    let listed = |ids: Vec<String>| format!("id IN ('{}')", ids.join("', '"));
    let texts = |tokens: &[WaitpointId]| tokens.iter().map(ToString::to_string).collect::<Vec<_>>();
    let (of_tokens, of_items) = (listed(texts(&tokens)), listed(items.clone()));
    let of_batches = listed(batches.iter().map(ToString::to_string).collect());
    let items = items.iter().map(|id| id.parse()).collect::<Result<Vec<_>, _>>()?;
    Ok(vec![
        FanOut {
            left: count(format!("task_run_waitpoint WHERE waitpoint_id = '{shared}'")),
            call: Call::DeleteEdges(EdgeFilter { waitpoint: Some(shared), ..EdgeFilter::default() }),
        },
        FanOut {
            left: count(format!("waitpoint WHERE {of_tokens} AND NOT 'done' = ANY (tags)")),
            call: Call::UpdateWaitpoints(WaitpointSelection { ids: Some(tokens), ..WaitpointSelection::default() }),
        },
        FanOut {
            left: count(format!("batch_task_run WHERE {of_batches} AND status <> 'PROCESSING'")),
            call: Call::UpdateBatches(BatchFilter { ids: Some(batches), ..BatchFilter::default() }),
        },
        FanOut {
            left: count(format!("waitpoint WHERE completed_by_batch_id = '{awaited}' AND status = 'PENDING'")),
            call: Call::CompleteBatchWaitpoints(awaited),
        },
        FanOut {
            left: count(format!("batch_task_run_item WHERE {of_items} AND status <> 'COMPLETED'")),
            call: Call::UpdateItems(BatchItemFilter { items: Some(items), ..BatchItemFilter::default() }),
        },
        FanOut {
            left: count(format!(
                "task_run WHERE runtime_environment_id = '{environment}' AND idempotency_key = '{key}'"
            )),
            call: Call::ClearKeys(ClaimKey { environment, task_identifier: task, key: key.to_owned() }),
        },
    ])
}

#[tokio::test]
async fn what_one_database_refuses_and_the_other_has_written_is_not_told_as_nothing() -> Result<()> {
    for refusing in [&[Side::ControlPlane][..], &[Side::RunOps], &Side::ALL] {
        let databases = Databases::fresh().await?;
        let (_proxies, free) = behind_proxies(&databases, Mode::Optimistic).await?;
        let writes = seed(&databases, &free).await?;
        // Settings of a database count for new connections.
        for &side in refusing {
            let name = databases.name(side);
            let setting = format!(r#"ALTER DATABASE "{name}" SET default_transaction_read_only = on"#);
            databases.connection(side).await?.execute_unprepared(&setting).await?;
        }
        let bound = store::connect(&split_config(|side| databases.url(side))?).await?;
        let refuses = |side| i64::from(refusing.contains(&side));
        // Nobody has written anything, or somebody has.
        let change = if refusing.len() == Side::ALL.len() { Change::NotApplied } else { Change::Unknown };
        for write in &writes {
            let what = format!("{:?} with {refusing:?} read-only", write.call);
            assert_eq!(write.left(&databases).await?, (1, 1), "{what}: rows before the call");
            let error = write.make(bound.as_ref()).await.expect_err(&what);
            check_error(&what, &error, ErrorKind::ReadOnly, change);
            let expected = (refuses(Side::ControlPlane), refuses(Side::RunOps));
            assert_eq!(write.left(&databases).await?, expected, "{what}: rows that are left");

            write.make(free.as_ref()).await?;
            assert_eq!(write.left(&databases).await?, (0, 0), "{what}: the repetition has left something");
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_fault_of_one_database_is_told_when_the_other_is_through() -> Result<()> {
    fn is_write(sql: &str) -> bool {
        sql.contains("UPDATE ") || sql.contains("DELETE FROM")
    }
    for side in Side::ALL {
        let databases = Databases::fresh().await?;
        let (proxies, store) = behind_proxies(&databases, Mode::Optimistic).await?;
        for write in seed(&databases, &store).await? {
            let what = format!("{:?}, cut in {side}", write.call);
            let cut = proxies.get(side).cut_before(1, is_write);
            let gate = proxies.get(side.other()).hold(is_write);
            // The one that works is slower than the fault of the other.
            let let_go = async {
                gate.held(1).await?;
                let fired = async {
                    while !cut.fired() {
                        tokio::task::yield_now().await;
                    }
                };
                timeout(PATIENCE, fired).await.with_context(|| format!("{what}: the statement did not come"))?;
                gate.release();
                anyhow::Ok(())
            };
            let (answer, released) = join!(write.make(store.as_ref()), let_go);
            released?;
            check_error(&what, &answer.expect_err(&what), ErrorKind::Disconnected, Change::Unknown);
            let is_left = |other| i64::from(other == side);
            let expected = (is_left(Side::ControlPlane), is_left(Side::RunOps));
            assert_eq!(write.left(&databases).await?, expected, "{what}: rows that are left");

            write.make(store.as_ref()).await?;
            assert_eq!(write.left(&databases).await?, (0, 0), "{what}: the repetition has left something");
        }
    }
    Ok(())
}

/// A run with `count` edges, whose ids come back in order.
async fn run_with_edges(home: &Home<'_>, count: usize) -> Result<(RunId, Vec<EdgeId>)> {
    let run = home.create().await?.id;
    let waitpoints = (0..count).map(|_| WaitpointId::mint()).collect();
    let block = BlockRun::by(waitpoints, home.environment().project.clone());
    home.store().block_run_with_waitpoint_edges(&run, &block).await?;
    let edges = EdgeFilter { run: Some(run), ..EdgeFilter::default() };
    let edges = home.store().find_many_task_run_waitpoints(&edges, None, Read::Primary).await?;
    let mut ids: Vec<String> = edges.into_iter().map(|edge| edge.id).collect();
    ids.sort_unstable();
    Ok((run, ids.iter().map(|id| id.parse()).collect::<Result<_, _>>()?))
}

#[tokio::test]
async fn a_delete_of_several_thousands_says_nothing_was_written_only_if_its_first_one_fails() -> Result<()> {
    fn deletes(sql: &str) -> bool {
        sql.contains(r#"DELETE FROM "task_run_waitpoint""#)
    }
    let databases = Databases::fresh().await?;
    let (proxies, store) = behind_proxies(&databases, Mode::Optimistic).await?;
    for side in Side::ALL {
        let setting = format!(r#"ALTER DATABASE "{}" SET lock_timeout = '50ms'"#, databases.name(side));
        databases.connection(side).await?.execute_unprepared(&setting).await?;
    }
    let hasty = store::connect(&split_config(|side| databases.url(side))?).await?;
    for side in Side::ALL {
        let home = Home::new("behind a proxy", Arc::clone(&store), side, &databases);
        let left = async |run: &RunId| -> Result<i64> {
            home.value(&format!("SELECT count(*) FROM task_run_waitpoint WHERE task_run_id = '{run}'")).await
        };
        let of = |run: RunId, ids: &[EdgeId]| EdgeFilter {
            run: Some(run),
            ids: Some(ids.to_vec()),
            ..EdgeFilter::default()
        };

        // Somebody else has an edge of the first thousand, or of the second.
        for (locked, change, remain) in [(0, Change::NotApplied, 1_500), (1_499, Change::Unknown, 500)] {
            let what = format!("{side}, edge {locked} is locked");
            let (run, ids) = run_with_edges(&home, 1_500).await?;
            let other = databases.connection(side).await?.begin().await?;
            let lock = format!("SELECT 1 FROM task_run_waitpoint WHERE id = '{}' FOR UPDATE", ids[locked]);
            other.execute_unprepared(&lock).await?;
            let error = hasty.delete_many_task_run_waitpoints(&of(run, &ids)).await.expect_err(&what);
            check_error(&what, &error, ErrorKind::LockNotAvailable, change);
            assert_eq!(left(&run).await?, remain, "{what}: edges that are left");
            other.rollback().await?;
            assert_eq!(hasty.delete_many_task_run_waitpoints(&of(run, &ids)).await?, remain.unsigned_abs(), "{what}");
        }

        let what = format!("{side}, the second statement is cut");
        let (run, ids) = run_with_edges(&home, 1_500).await?;
        let cut = proxies.get(side).cut_before(2, deletes);
        let error = store.delete_many_task_run_waitpoints(&of(run, &ids)).await.expect_err(&what);
        assert!(cut.fired(), "{what}: the statement did not come");
        check_error(&what, &error, ErrorKind::Disconnected, Change::Unknown);
        assert_eq!(left(&run).await?, 500, "{what}: edges that are left");
        assert_eq!(store.delete_many_task_run_waitpoints(&of(run, &ids)).await?, 500, "{what}");
    }
    Ok(())
}

#[tokio::test]
async fn edges_are_locked_in_the_order_of_their_ids_before_they_are_removed() -> Result<()> {
    let databases = Databases::fresh().await?;
    let (_proxies, store) = behind_proxies(&databases, Mode::Optimistic).await?;
    for side in Side::ALL {
        let home = Home::new("behind a proxy", Arc::clone(&store), side, &databases);
        let run = home.create().await?.id;
        let (waitpoint, batch) = (WaitpointId::mint(), home.insert_batch().await?);
        let filters = [
            EdgeFilter { run: Some(run), ..EdgeFilter::default() },
            EdgeFilter { waitpoint: Some(waitpoint.clone()), ..EdgeFilter::default() },
            EdgeFilter { batch: Some(batch), ..EdgeFilter::default() },
        ];
        for filter in filters {
            let what = format!("{side}, {filter:?}");
            // They lie in the table in the opposite order.
            for (id, index) in [("edge_c", 2), ("edge_b", 1), ("edge_a", 0)] {
                home.sql(&format!(
                    "INSERT INTO task_run_waitpoint (
                        id, task_run_id, waitpoint_id, project_id, batch_id, batch_index, updated_at
                     ) VALUES ('{id}', '{run}', '{waitpoint}', 'p', '{batch}', {index}, now())"
                ))
                .await?;
            }
            let other = databases.connection(side).await?.begin().await?;
            other.execute_unprepared("SELECT 1 FROM task_run_waitpoint WHERE id = 'edge_b' FOR UPDATE").await?;
            let removing = tokio::spawn({
                let (store, filter) = (Arc::clone(&store), filter.clone());
                async move { store.delete_many_task_run_waitpoints(&filter).await }
            });
            wait_until_blocked(&databases, side).await?;
            let free = "SELECT id FROM task_run_waitpoint FOR UPDATE SKIP LOCKED";
            let free: Vec<String> = databases.values(side, free).await?;
            assert_eq!(free, ["edge_c"], "{what}: the first is locked, the second waited for, the third not asked for");
            other.rollback().await?;
            assert_eq!(removing.await??, 3, "{what}: edges that were removed");
        }
    }
    Ok(())
}
