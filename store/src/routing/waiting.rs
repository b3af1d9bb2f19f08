//! Runs that wait: each transition goes to the owner of its run, with the waitpoints of wherever they are.

use async_trait::async_trait;

use super::RoutingRunStore;
use crate::edges::EdgeWithWaitpoint;
use crate::error::Result;
use crate::ids::RunId;
use crate::lifecycle::Transition;
use crate::model::Run;
use crate::waiting::{MarkBlocked, ResumeOutcome, ResumeRun, Waiting};

#[async_trait]
impl Waiting for RoutingRunStore {
    async fn mark_blocked(&self, run: &RunId, input: MarkBlocked) -> Result<Transition<Run>> {
        self.owner_of(run).mark_blocked(run, input).await
    }

    async fn resume_run_with_edges(
        &self,
        run: &RunId,
        edges: Vec<EdgeWithWaitpoint>,
        input: ResumeRun,
    ) -> Result<ResumeOutcome> {
        self.owner_of(run).resume_run_with_edges(run, edges, input).await
    }
}
