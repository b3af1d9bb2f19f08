//! The three ways in which a run comes into existence.

mod made;
mod refused;

use anyhow::{Context, Result};
use serde_json::json;
use store::{
    Change, CreateCancelledRun, CreateFailedRun, CreateRun, CreateRunOutcome, CreatedRun, ErrorKind, NewRun, RunId,
    SnapshotDetails, StoreError, Transition,
};
use tests::runs::{Home, moment};

/// The three operations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Triggered,
    Cancelled,
    Failed,
}

impl Way {
    fn operation(self) -> &'static str {
        match self {
            Way::Triggered => "create_run",
            Way::Cancelled => "create_cancelled_run",
            Way::Failed => "create_failed_run",
        }
    }

    /// Creates `run` with nothing else said; a run that failed at once is never a test.
    async fn create(self, home: &Home<'_>, run: NewRun) -> Result<CreateRunOutcome, StoreError> {
        match self {
            Way::Triggered => home.store().create_run(CreateRun::queued(run)).await,
            Way::Cancelled => home.store().create_cancelled_run(cancelled(run)).await,
            Way::Failed => home.store().create_failed_run(failed(run)).await,
        }
    }
}

const WAYS: [Way; 3] = [Way::Triggered, Way::Cancelled, Way::Failed];

fn cancelled(run: NewRun) -> CreateCancelledRun {
    let error = json!({ "type": "STRING_ERROR", "raw": "cancelled in the buffer" });
    CreateCancelledRun {
        run,
        error,
        completed_at: moment(5),
        updated_at: moment(6),
        snapshot: SnapshotDetails::default(),
    }
}

fn failed(run: NewRun) -> CreateFailedRun {
    let error = json!({ "type": "STRING_ERROR", "raw": "no such task" });
    CreateFailedRun { run: NewRun { is_test: false, ..run }, error, completed_at: moment(5), waitpoint: None }
}

/// Checks that exactly what was returned is stored, in the run's database only.
async fn check_stored(home: &Home<'_>, created: &Transition<CreatedRun>) -> Result<()> {
    let id: RunId = created.value.run.id.parse()?;
    assert_eq!(home.run(&id).await?, created.value.run, "{home}: the run");
    assert_eq!(home.latest(&id).await?, created.snapshot, "{home}: the snapshot");
    if let Some(waitpoint) = &created.value.associated_waitpoint {
        let stored = home.waitpoint(&waitpoint.id.parse()?).await?;
        assert_eq!(stored.as_ref(), Some(waitpoint), "{home}: the waitpoint");
    }
    home.check_token(&created.token);
    home.check_elsewhere_empty(&id).await
}

/// Checks that a create was refused with `expected` and has written nothing.
async fn check_refused(
    home: &Home<'_>,
    way: Way,
    id: &RunId,
    answer: Result<CreateRunOutcome, StoreError>,
    expected: &ErrorKind,
) -> Result<()> {
    let error = answer.err().with_context(|| format!("{home}, {way:?}: {expected:?} was expected, it was created"))?;
    assert_eq!(error.kind(), expected, "{home}, {way:?}");
    assert_eq!(error.operation(), way.operation(), "{home}");
    assert_eq!(error.store(), Some(home.residency()), "{home}, {way:?}");
    assert_eq!(error.change(), Change::NotApplied, "{home}, {way:?}");
    assert!(!error.is_retryable(), "{home}, {way:?}: {error}");
    home.check_nothing_written(id).await
}
