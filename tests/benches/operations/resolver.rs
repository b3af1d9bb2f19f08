//! Questions to the control plane.
//!
//! A cold one is asked of the database, and compared with the same work. A hit is told from what is kept, and compared with
//! the query that it saves: by hand and by a plain ORM nothing is kept.

use std::{fmt, sync::Arc};

use anyhow::{Context, Result, ensure};
use chrono::{DateTime, Utc};
use sea_orm::prelude::Json;
use store::{
    ControlPlaneResolver, EnvironmentId, EnvironmentType, WorkerVersionQuery,
    control_plane::{AuthenticatedMember, AuthenticatedOrganization, AuthenticatedProject, EnvironmentPauseSource},
};

use crate::{
    bed::Bed,
    by_hand,
    measure::{Answers, Homes, Operation, operation},
    plain,
};

pub(crate) fn list() -> Vec<Operation> {
    let operations = [
        operation(
            "resolve_env",
            Answers::Equal,
            some_environment,
            |_| None,
            async |bed, id| found(bed.control_plane.direct.resolve_env(&id).await?),
            async |bed, id| found(by_hand::resolve_env(bed.pool(), &id).await?),
            async |bed, id| found(plain::resolve_env(bed.connection(), &id).await?),
        ),
        operation(
            "resolve_env (hit)",
            Answers::Equal,
            some_kept_environment,
            |_| None,
            async |bed, id| found(bed.control_plane.cached.resolve_env(&id).await?),
            async |bed, id| found(by_hand::resolve_env(bed.pool(), &id).await?),
            async |bed, id| found(plain::resolve_env(bed.connection(), &id).await?),
        )
        .hit(),
        operation(
            "resolve_authenticated_env",
            Answers::Equal,
            some_environment,
            |_| None,
            async |bed, id| authenticated(bed.control_plane.direct.resolve_authenticated_env(&id).await?),
            async |bed, id| authenticated(by_hand::resolve_authenticated_env(bed.pool(), &id).await?),
            async |bed, id| authenticated(plain::resolve_authenticated_env(bed.connection(), &id).await?),
        ),
        operation(
            "resolve_authenticated_env (hit)",
            Answers::Equal,
            some_kept_environment,
            |_| None,
            async |bed, id| authenticated(bed.control_plane.cached.resolve_authenticated_env(&id).await?),
            async |bed, id| authenticated(by_hand::resolve_authenticated_env(bed.pool(), &id).await?),
            async |bed, id| authenticated(plain::resolve_authenticated_env(bed.connection(), &id).await?),
        )
        .hit(),
        operation(
            "resolve_worker_version",
            Answers::Equal,
            async |bed, count| {
                Ok(bed
                    .control_plane
                    .dispatches
                    .iter()
                    .cloned()
                    .cycle()
                    .take(count)
                    .collect::<Vec<WorkerVersionQuery>>())
            },
            |_| None,
            async |bed, query| found(bed.control_plane.direct.resolve_worker_version(&query).await?),
            async |bed, query| found(by_hand::resolve_worker_version(bed.pool(), &query).await?),
            async |bed, query| found(plain::resolve_worker_version(bed.connection(), &query).await?),
        ),
    ];
    operations.into_iter().map(|operation| operation.at(Homes::ControlPlane)).collect()
}

/// Another environment each time, and the same for all three ways.
async fn some_environment(bed: &Bed, count: usize) -> Result<Vec<EnvironmentId>> {
    Ok(bed.control_plane.environments.iter().cloned().cycle().take(count).collect())
}

/// The same of a resolver that keeps them all, and has asked for each once: what it answered so far were hits.
async fn some_kept_environment(bed: &Bed, count: usize) -> Result<Vec<EnvironmentId>> {
    let loads = bed.control_plane.loads();
    let all = 2 * bed.control_plane.environments.len() as u64;
    ensure!(loads == all, "a hit was to be measured, but {loads} answers were loaded instead of {all}");
    some_environment(bed, count).await
}

/// What was asked for is there.
fn found<T>(answer: Option<T>) -> Result<T> {
    answer.context("the control plane has nothing of the kind")
}

fn authenticated<E: Keys>(answer: Option<E>) -> Result<Revealed<E>> {
    found(answer).map(Revealed)
}

/// An environment as an execution needs it, as it is read by hand: the store's own holds a key that only the store makes.
#[derive(Clone, Debug)]
#[expect(dead_code, reason = "it is shown")]
pub(crate) struct AuthenticatedEnv {
    pub(crate) id: EnvironmentId,
    pub(crate) slug: String,
    pub(crate) kind: EnvironmentType,
    pub(crate) api_key: ApiKey,
    pub(crate) branch_name: Option<String>,
    pub(crate) shortcode: String,
    pub(crate) git: Option<Json>,
    pub(crate) archived_at: Option<DateTime<Utc>>,
    pub(crate) paused: bool,
    pub(crate) pause_source: Option<EnvironmentPauseSource>,
    pub(crate) maximum_concurrency_limit: i32,
    pub(crate) concurrency_limit_burst_factor: f64,
    pub(crate) built_in_environment_variable_overrides: Option<Json>,
    pub(crate) created_at: DateTime<Utc>,
    pub(crate) updated_at: DateTime<Utc>,
    pub(crate) project: AuthenticatedProject,
    pub(crate) organization: AuthenticatedOrganization,
    pub(crate) member: Option<AuthenticatedMember>,
    pub(crate) parent: Option<ParentEnv>,
}

/// The environment that a branch hangs under, as it is read by hand.
#[derive(Clone, Debug)]
#[expect(dead_code, reason = "it is shown")]
pub(crate) struct ParentEnv {
    pub(crate) id: EnvironmentId,
    pub(crate) api_key: ApiKey,
}

/// A key as it is read by hand. It is shown as the store shows its own.
#[derive(Clone)]
pub(crate) struct ApiKey(pub(crate) String);

impl fmt::Debug for ApiKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ApiKey(…)")
    }
}

/// An answer that is shown with the keys in it, so that they are compared too. They are keys of a bench.
struct Revealed<E>(E);

trait Keys {
    /// Its own key, and that of the environment it is a branch of.
    fn keys(&self) -> (&str, Option<&str>);
}

impl Keys for AuthenticatedEnv {
    fn keys(&self) -> (&str, Option<&str>) {
        (&self.api_key.0, self.parent.as_ref().map(|parent| parent.api_key.0.as_str()))
    }
}

impl Keys for Arc<store::AuthenticatedEnv> {
    fn keys(&self) -> (&str, Option<&str>) {
        (self.api_key.reveal(), self.parent.as_ref().map(|parent| parent.api_key.reveal()))
    }
}

impl<E: Keys + fmt::Debug> fmt::Debug for Revealed<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (&self.0, self.0.keys()).fmt(f)
    }
}
