//! The operations that take several steps, as a process is told to carry them out. The binary `protocol` does; tests kill
//! it in the middle.

use std::collections::BTreeSet;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use store::{
    BlockRun, BlockRunWithBatch, CreateRun, CreateRunOutcome, Effect, Environment, EnvironmentType, Idempotency,
    NewRun, ResumeRun, RunId, RunStore, SnapshotDetails,
};

use crate::runs::new_run;
use crate::waits::{carry_out_and_tell, completion};

/// One call of the store, and what it asks for. All ids are those of the caller, who says the same when it repeats it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Protocol {
    /// A run comes to wait. What that asks for is not carried out: it has a life of its own.
    Block {
        /// The run.
        run: String,
        /// What it waits for.
        waitpoints: Vec<String>,
        /// Their project.
        project: String,
    },
    /// A run comes to wait for a batch, whose waitpoint is made for it. What that asks for is not carried out.
    BlockByBatch {
        /// The run.
        run: String,
        /// The batch.
        batch: String,
        /// The id of its waitpoint, if there is none yet.
        waitpoint: String,
        /// The environment of both, and its project.
        environment: [String; 2],
    },
    /// The waitpoint of a run is asked for.
    RunWaitpoint {
        /// The run.
        run: String,
    },
    /// A waitpoint is completed, and the runs that wait for it go on.
    Complete {
        /// The waitpoint.
        waitpoint: String,
        /// How the run goes on.
        resume: Resume,
    },
    /// A run goes on.
    Resume {
        /// The run.
        run: String,
        /// How.
        resume: Resume,
    },
    /// A batch ends, and the run that waits for it goes on.
    EndBatch {
        /// The batch.
        batch: String,
        /// How the run goes on.
        resume: Resume,
    },
    /// A run is created under a claim of its key.
    Create {
        /// The run.
        run: String,
        /// The environment, its project and its organization.
        environment: [String; 3],
        /// The key.
        key: String,
    },
}

/// How a run goes on.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Resume {
    /// The snapshot with which it waits.
    pub from: String,
    /// The snapshot with which it goes on.
    pub to: String,
}

impl Resume {
    fn input(&self) -> Result<ResumeRun> {
        let snapshot = SnapshotDetails { id: Some(self.to.parse()?), ..SnapshotDetails::default() };
        Ok(ResumeRun { from: Some(self.from.parse()?), snapshot })
    }
}

/// The runs that somebody has taken on to continue: a list that outlives its callers, as a queue of jobs does. Whoever
/// repeats a call continues them once more, for the call itself does not name a run again that goes on already.
pub type TakenOn = BTreeSet<RunId>;

impl Protocol {
    /// Carries it out. Returns what is for others, as text, but for events: those are told once at most.
    ///
    /// `announce` is called for each run that is added to `taken_on`, before anything is done with it.
    ///
    /// # Errors
    /// If the store refuses, or an id is none.
    pub async fn carry_out(
        &self,
        store: &dyn RunStore,
        taken_on: &mut TakenOn,
        announce: impl Fn(RunId) + Send,
    ) -> Result<Vec<String>> {
        let (mut effects, resume) = match self {
            Protocol::Block { run, waitpoints, project } => {
                let waitpoints = waitpoints.iter().map(|id| Ok(id.parse()?)).collect::<Result<Vec<_>>>()?;
                let input = BlockRun::by(waitpoints, project.parse()?);
                let blocked = store.block_run(&run.parse()?, input, SnapshotDetails::default()).await?;
                return Ok(told(&blocked.transition.effects));
            }
            Protocol::BlockByBatch { run, batch, waitpoint, environment: [environment, project] } => {
                let input = BlockRunWithBatch {
                    batch: batch.parse()?,
                    waitpoint: waitpoint.parse()?,
                    environment: environment.parse()?,
                    project: project.parse()?,
                    snapshot: SnapshotDetails::default(),
                };
                let blocked = store.block_run_with_created_batch(&run.parse()?, input).await?;
                return Ok(told(&blocked.blocked.transition.effects));
            }
            Protocol::RunWaitpoint { run } => {
                return Ok(told(&store.get_or_create_run_waitpoint(&run.parse()?).await?.effects));
            }
            Protocol::Create { run, environment, key } => return create(store, run.parse()?, environment, key).await,
            Protocol::Complete { waitpoint, resume } => {
                (store.complete_waitpoint(&waitpoint.parse()?, completion("done")).await?.effects, resume)
            }
            Protocol::Resume { run, resume } => (vec![Effect::ContinueRun { run: run.parse()? }], resume),
            Protocol::EndBatch { batch, resume } => (vec![Effect::TryCompleteBatch { batch: batch.parse()? }], resume),
        };
        effects.extend(taken_on.iter().map(|run| Effect::ContinueRun { run: *run }));
        let takes_on = move |run| {
            if taken_on.insert(run) {
                announce(run);
            }
        };
        Ok(told(&carry_out_and_tell(store, effects, &resume.input()?, takes_on).await?))
    }
}

fn told(effects: &[Effect]) -> Vec<String> {
    let for_others = effects.iter().filter(|effect| !matches!(effect, Effect::Emit(_)));
    for_others.map(|effect| format!("{effect:?}")).collect()
}

/// Whoever is told that its own run has the key knows that it was created.
async fn create(store: &dyn RunStore, run: RunId, environment: &[String; 3], key: &str) -> Result<Vec<String>> {
    let [id, project, organization] = environment;
    let environment = Environment {
        id: id.parse()?,
        kind: EnvironmentType::Production,
        project: project.parse()?,
        organization: organization.parse()?,
    };
    let run = NewRun { idempotency: Some(Idempotency::new(key)), ..new_run(run, environment) };
    let made = match store.create_run(CreateRun::queued(run)).await? {
        CreateRunOutcome::Created(created) => created.value.run.id,
        CreateRunOutcome::IdempotencyKeyTaken { winner } => winner.context("the winner is not named")?.to_string(),
        CreateRunOutcome::OneTimeTokenUsed => anyhow::bail!("no token was given"),
    };
    Ok(vec![format!("the key has made {made}")])
}
