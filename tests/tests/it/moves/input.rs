//! Input that cannot be stored.

use anyhow::Result;
use serde_json::json;
use store::{
    CheckpointImage, CreateExecutionSnapshot, ErrorKind, ExpireParkedRun, FailedAttempt, FinalizeRun, InputProblem,
    ParkPendingVersion, Payload, PromotePendingVersionRun, RecordInvalidSnapshot, RequeueRun, RetryInPlace,
    RewriteDebouncedRun, SnapshotDetails, StoreError, SuspendForCheckpoint, Usage, Version,
};
use tests::moves::{parked_expiry, requeue_from, retry_from, rewrite, suspend_from};
use tests::runs::Stores;

use super::{raw::executing, stored};

#[tokio::test]
async fn input_that_cannot_be_stored_is_refused_by_the_name_of_its_field() -> Result<()> {
    let nul = || "a\0b".to_owned();
    let stores = Stores::fresh().await?;
    for home in stores.homes() {
        let run = home.create().await?;
        let (id, from, store) = (&run.id, &run.snapshot, home.store());
        let before = stored(&home, id).await?;
        let mut refused: Vec<(&'static str, InputProblem, Option<StoreError>)> = Vec::new();
        let bytes = InputProblem::NulByte;
        let infinite = Usage { duration_ms: 0, cost_in_cents: f64::INFINITY };
        let snapshot = SnapshotDetails::default;

        let input = RetryInPlace { machine_preset: Some(nul()), ..retry_from(from) };
        refused.push(("machine_preset", bytes, store.retry_in_place(id, input).await.err()));
        let input = RetryInPlace { usage: infinite, ..retry_from(from) };
        refused.push(("usage.cost_in_cents", InputProblem::NotFinite, store.retry_in_place(id, input).await.err()));

        let failed = |usage, machine_preset| Some(FailedAttempt { usage, machine_preset });
        let input = RequeueRun { failed_attempt: failed(Usage::default(), Some(nul())), ..requeue_from(from) };
        refused.push(("failed_attempt.machine_preset", bytes, store.requeue_run(id, input).await.err()));
        let input = RequeueRun { failed_attempt: failed(infinite, None), ..requeue_from(from) };
        let answer = store.requeue_run(id, input).await.err();
        refused.push(("failed_attempt.usage.cost_in_cents", InputProblem::NotFinite, answer));

        let input = ParkPendingVersion { from: from.clone(), reason: nul(), snapshot: snapshot() };
        refused.push(("reason", bytes, store.park_pending_version(id, input).await.err()));

        let version = |task_version: String, sdk_version, cli_version| -> Result<_> {
            Ok(Some(Version { worker: "worker_1".parse()?, task_version, sdk_version, cli_version }))
        };
        let pins = [
            ("pin.task_version", version(nul(), None, None)?),
            ("pin.sdk_version", version("1".to_owned(), Some(nul()), None)?),
            ("pin.cli_version", version("1".to_owned(), None, Some(nul()))?),
        ];
        for (field, pin) in pins {
            let input = PromotePendingVersionRun { pin, snapshot: snapshot() };
            refused.push((field, bytes, store.promote_pending_version_run(id, input).await.err()));
        }

        let image = suspend_from(from).checkpoint;
        let images = [
            ("checkpoint.location", CheckpointImage { location: nul(), ..image.clone() }),
            ("checkpoint.image_ref", CheckpointImage { image_ref: Some(nul()), ..image.clone() }),
            ("checkpoint.reason", CheckpointImage { reason: Some(nul()), ..image.clone() }),
            ("checkpoint.metadata", CheckpointImage { metadata: Some(nul()), ..image }),
        ];
        for (field, checkpoint) in images {
            let input = SuspendForCheckpoint { checkpoint, ..suspend_from(from) };
            refused.push((field, bytes, store.suspend_for_checkpoint(id, input).await.err()));
        }
        let input = SuspendForCheckpoint { metadata: Some(json!({ nul(): 1 })), ..suspend_from(from) };
        refused.push(("metadata", bytes, store.suspend_for_checkpoint(id, input).await.err()));

        let payload = |data: String| Payload { data, data_type: "application/json".to_owned() };
        let rewrites = [
            ("payload", bytes, RewriteDebouncedRun { payload: payload(nul()), ..rewrite() }),
            ("metadata", bytes, RewriteDebouncedRun { metadata: Some(payload(nul())), ..rewrite() }),
            ("machine_preset", bytes, RewriteDebouncedRun { machine_preset: Some(nul()), ..rewrite() }),
            ("tags", bytes, RewriteDebouncedRun { tags: Some(vec![nul()]), ..rewrite() }),
            (
                "tags",
                InputProblem::TooLarge { limit: store::MAX_INDEXED_TEXT },
                RewriteDebouncedRun { tags: Some(vec!["t".repeat(store::MAX_INDEXED_TEXT + 1)]), ..rewrite() },
            ),
        ];
        for (field, problem, input) in rewrites {
            refused.push((field, problem, store.rewrite_debounced_run(id, input).await.err()));
        }

        let input = ExpireParkedRun { status_reason: nul(), ..parked_expiry() };
        refused.push(("status_reason", bytes, store.expire_parked_run(id, input).await.err()));
        let input = ExpireParkedRun { error: json!([nul()]), ..parked_expiry() };
        refused.push(("error", bytes, store.expire_parked_run(id, input).await.err()));

        let input = FinalizeRun { error: Some(json!(nul())), ..FinalizeRun::default() };
        refused.push(("error", bytes, store.finalize_run(id, input).await.err()));
        let input = FinalizeRun { bulk_action_id: Some(nul()), ..FinalizeRun::default() };
        refused.push(("bulk_action_id", bytes, store.finalize_run(id, input).await.err()));

        let input = RecordInvalidSnapshot { error: nul(), snapshot: snapshot() };
        refused.push(("error", bytes, store.record_invalid_snapshot(id, input).await.err()));
        let details = SnapshotDetails { runner_id: Some(nul()), ..snapshot() };
        let input = RecordInvalidSnapshot { error: "no".to_owned(), snapshot: details.clone() };
        refused.push(("snapshot.runner_id", bytes, store.record_invalid_snapshot(id, input).await.err()));
        let raws = [
            ("error", CreateExecutionSnapshot { error: Some(nul()), ..executing(&home) }),
            ("metadata", CreateExecutionSnapshot { metadata: Some(json!(nul())), ..executing(&home) }),
            ("snapshot.runner_id", CreateExecutionSnapshot { snapshot: details, ..executing(&home) }),
        ];
        for (field, input) in raws {
            refused.push((field, bytes, store.create_execution_snapshot(id, input).await.err()));
        }

        for (field, problem, answer) in refused {
            let kind = answer.map(|error| error.kind().clone());
            assert_eq!(kind, Some(ErrorKind::InvalidInput { field, problem }), "{home}");
        }
        assert_eq!(stored(&home, id).await?, before, "{home}: refused input has changed something");
    }
    Ok(())
}
