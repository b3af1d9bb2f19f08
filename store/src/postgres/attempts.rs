//! The reads of attempts.

use std::collections::HashMap;

use async_trait::async_trait;
use sea_orm::{ColumnTrait, Condition, DbErr, QueryFilter, QueryOrder, QuerySelect, QueryTrait};

use super::PgRunStore;
use super::finds::any_of;
use super::input::{invalid, within};
use super::schema::{Schema, Twin};
use crate::attempts::{AttemptFilter, Attempts};
use crate::error::{ErrorKind, InputProblem, Result, StoreError};
use crate::ids::RunId;
use crate::model::{Attempt, AttemptColumn};
use crate::read::Read;
use crate::residency::Routable;
use crate::runs::CHUNK;

#[async_trait]
impl<S: Schema> Attempts for PgRunStore<S> {
    async fn find_task_run_attempt(&self, filter: &AttemptFilter, read: Read) -> Result<Option<Attempt>> {
        let operation = "find_task_run_attempt";
        check_attempt(filter).map_err(|kind| StoreError::new(operation, Some(S::RESIDENCY), kind))?;
        let AttemptFilter { run, id, friendly_id, number, status } = filter;
        if run.is_some_and(|run| run.residency() != S::RESIDENCY) {
            return Ok(None);
        }
        let named = Condition::all()
            .add_option(run.as_ref().map(|run| AttemptColumn::TaskRunId.eq(run.as_str())))
            .add_option(id.as_ref().map(|id| AttemptColumn::Id.eq(id.as_str())))
            .add_option(friendly_id.as_ref().map(|id| AttemptColumn::FriendlyId.eq(id.as_str())))
            .add_option(number.map(|number| AttemptColumn::Number.eq(number)))
            .add_option(status.map(|status| AttemptColumn::Status.eq(status)));
        let rows = S::Attempt::rows().filter(named);
        let rows = rows.order_by_desc(AttemptColumn::Number).order_by_asc(AttemptColumn::Id).limit(1);
        self.database.one(operation, read, &rows.into_query()).await
    }

    async fn find_task_run_attempts(&self, runs: &[RunId], read: Read) -> Result<HashMap<RunId, Vec<Attempt>>> {
        let operation = "find_task_run_attempts";
        within("runs", runs.len()).map_err(|kind| StoreError::new(operation, Some(S::RESIDENCY), kind))?;
        let mut runs: Vec<RunId> = runs.iter().copied().filter(|run| run.residency() == S::RESIDENCY).collect();
        runs.sort_unstable();
        runs.dedup();
        let mut found: HashMap<RunId, Vec<Attempt>> = HashMap::new();
        for chunk in runs.chunks(CHUNK) {
            let texts = chunk.iter().map(RunId::to_string).collect();
            let rows = S::Attempt::rows().filter(any_of(AttemptColumn::TaskRunId, texts));
            let rows = rows.order_by_asc(AttemptColumn::TaskRunId).order_by_asc(AttemptColumn::Number);
            for attempt in self.database.all::<Attempt>(operation, read, &rows.into_query()).await? {
                // The row was found by this very text, so it parses.
                let run = attempt.task_run_id.parse();
                let run =
                    run.map_err(|_| self.database.decode_error(operation, &DbErr::Type("a run id".to_owned())))?;
                found.entry(run).or_default().push(attempt);
            }
        }
        Ok(found)
    }
}

/// What can be said against a filter before any SQL is sent.
pub(crate) fn check_attempt(filter: &AttemptFilter) -> Result<(), ErrorKind> {
    // Without an index to go by it would read the whole table.
    if filter.run.is_none() && filter.id.is_none() && filter.friendly_id.is_none() {
        return Err(invalid("filter", InputProblem::Empty));
    }
    Ok(())
}
