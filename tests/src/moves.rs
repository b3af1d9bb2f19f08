//! What the moves between birth and end take, with the least said about them.

use serde_json::json;
use store::{
    CheckpointImage, CheckpointType, CreatedRun, ExpireParkedRun, FailedAttempt, Payload, RequeueRun, RetryInPlace,
    RewriteDebouncedRun, Run, SnapshotDetails, SnapshotId, SuspendForCheckpoint, Transition, Usage,
};

use crate::runs::moment;

/// What it takes to try again in place. The failed attempt used 7 ms and half a cent.
pub fn retry_from(from: &SnapshotId) -> RetryInPlace {
    RetryInPlace {
        from: from.clone(),
        usage: Usage { duration_ms: 7, cost_in_cents: 0.5 },
        machine_preset: None,
        retry_at: moment(40),
        snapshot: SnapshotDetails::default(),
    }
}

/// What it takes to put a run back into the queue. The failed attempt used 7 ms and half a cent.
pub fn requeue_from(from: &SnapshotId) -> RequeueRun {
    let usage = Usage { duration_ms: 7, cost_in_cents: 0.5 };
    RequeueRun {
        from: from.clone(),
        failed_attempt: Some(FailedAttempt { usage, machine_preset: None }),
        not_before: None,
        snapshot: SnapshotDetails::default(),
    }
}

/// What it takes to suspend a run.
pub fn suspend_from(from: &SnapshotId) -> SuspendForCheckpoint {
    SuspendForCheckpoint {
        from: from.clone(),
        checkpoint: CheckpointImage {
            id: None,
            kind: CheckpointType::Docker,
            location: "registry/image@sha256:0".to_owned(),
            image_ref: None,
            reason: None,
            metadata: None,
        },
        metadata: None,
        snapshot: SnapshotDetails::default(),
    }
}

/// What it takes to give a delayed run other data.
pub fn rewrite() -> RewriteDebouncedRun {
    RewriteDebouncedRun {
        payload: Payload::json("{\"n\":2}"),
        metadata: None,
        max_attempts: None,
        max_duration_in_seconds: None,
        machine_preset: None,
        tags: None,
        delay_until: None,
        snapshot: SnapshotDetails::default(),
    }
}

/// What it takes to expire a parked run.
pub fn parked_expiry() -> ExpireParkedRun {
    ExpireParkedRun {
        error: json!({ "type": "STRING_ERROR", "raw": "there was no worker version in time" }),
        expired_at: moment(30),
        status_reason: "DEADLINE".to_owned(),
        snapshot: SnapshotDetails::default(),
    }
}

/// The transition of the run, without its waitpoint.
pub fn run_of(transition: Transition<CreatedRun>) -> Transition<Run> {
    let Transition { value, snapshot, effects, token } = transition;
    Transition { value: value.run, snapshot, effects, token }
}
