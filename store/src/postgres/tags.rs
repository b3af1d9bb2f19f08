//! The operations on waitpoint tags.

use async_trait::async_trait;
use sea_orm::{DbBackend, DbErr, Statement};

use super::PgRunStore;
use super::input::{indexed, required, stamp};
use super::schema::Schema;
use crate::error::{ErrorKind, Result, StoreError};
use crate::generated::constraints::Constraint;
use crate::ids::WaitpointTagId;
use crate::model::WaitpointTag;
use crate::residency::Residency;
use crate::tags::{NewWaitpointTag, WaitpointTags};

/// A tag that exists is only read. One that somebody else makes at the same moment is not seen by the read; the insert
/// waits for it, and updates it to what it is so that it is returned. That is by its name: one with the same id, too,
/// can be met in the index of ids first, which is a violation.
static UPSERT: &str = "WITH existing AS (
    SELECT id, name, environment_id, project_id, created_at FROM waitpoint_tag WHERE environment_id = $3 AND name = $2
), made AS (
    INSERT INTO waitpoint_tag (id, name, environment_id, project_id, created_at)
    SELECT $1, $2, $3, $4, $5 WHERE NOT EXISTS (SELECT 1 FROM existing)
    ON CONFLICT (environment_id, name) DO UPDATE SET name = waitpoint_tag.name
    RETURNING id, name, environment_id, project_id, created_at
)
SELECT id, name, environment_id, project_id, created_at FROM existing
UNION ALL
SELECT id, name, environment_id, project_id, created_at FROM made";

#[async_trait]
impl<S: Schema> WaitpointTags for PgRunStore<S> {
    async fn upsert_waitpoint_tag(&self, tag: NewWaitpointTag, at: Residency) -> Result<WaitpointTag> {
        let operation = "upsert_waitpoint_tag";
        check::<S>(&tag, at).map_err(|kind| StoreError::new(operation, Some(S::RESIDENCY), kind))?;
        let NewWaitpointTag { id, name, environment, project } = tag;
        let id = id.unwrap_or_else(WaitpointTagId::mint);
        let values = [
            id.as_str().into(),
            name.into(),
            environment.as_str().into(),
            project.as_str().into(),
            stamp(self.clock.now()).into(),
        ];
        let statement = Statement::from_sql_and_values(DbBackend::Postgres, UPSERT, values);
        let mut written = self.database.write_raw::<WaitpointTag>(operation, statement.clone()).await;
        let pkey = ErrorKind::UniqueViolation(Some(Constraint::WaitpointTagPkey));
        if written.as_ref().is_err_and(|error| *error.kind() == pkey) {
            // If the row with this id is the same tag, made at the same moment, it is there to be read now.
            written = self.database.write_raw::<WaitpointTag>(operation, statement).await;
        }
        let mut rows = written?;
        // One of the two parts has the row.
        rows.pop().ok_or_else(|| self.database.decode_error(operation, &DbErr::Type("a tag".to_owned())))
    }
}

fn check<S: Schema>(tag: &NewWaitpointTag, at: Residency) -> Result<(), ErrorKind> {
    if at != S::RESIDENCY {
        return Err(ErrorKind::WrongStore { id: at, store: S::RESIDENCY });
    }
    required("name", &tag.name)?;
    indexed("name", &tag.name)
}
