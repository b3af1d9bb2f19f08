//! Environments, and whether they are there.

use std::sync::Arc;

use sea_orm::DbErr;

use crate::control_plane::{
    Answer, ApiKey, AuthenticatedEnv, AuthenticatedMember, AuthenticatedOrganization, AuthenticatedProject, ParentEnv,
    ResolvedEnv, Subject, SubjectKind,
};
use crate::error::Result;
use crate::ids::{EnvironmentId, OrganizationId, ProjectId};
use crate::postgres::{Columns, Database, Row};
use crate::read::Read;

const ENV: &str = "SELECT environment.project_id, project.deleted_at IS NOT NULL,
    environment.id, environment.type::text, environment.project_id, project.organization_id, environment.archived_at,
    parent.type::text, environment.maximum_concurrency_limit, environment.concurrency_limit_burst_factor,
    environment.parent_environment_id
FROM runtime_environment AS environment
JOIN project ON project.id = environment.project_id
LEFT JOIN runtime_environment AS parent ON parent.id = environment.parent_environment_id
WHERE environment.id = $1";

const AUTHENTICATED_ENV: &str = "SELECT environment.project_id, project.deleted_at IS NOT NULL,
    environment.id, environment.slug, environment.type::text, environment.api_key, environment.branch_name,
    environment.shortcode, environment.git, environment.archived_at, environment.paused,
    environment.pause_source::text, environment.maximum_concurrency_limit,
    environment.concurrency_limit_burst_factor::float8, environment.built_in_environment_variable_overrides,
    environment.created_at, environment.updated_at,
    project.id, project.slug, project.name, project.external_ref, project.engine::text, project.organization_id,
    project.default_worker_group_id, project.builder_project_id, project.default_runtime,
    organization.id, organization.slug, organization.title, organization.maximum_concurrency_limit,
    organization.maximum_dev_queue_size, organization.maximum_deployed_queue_size, organization.runs_enabled,
    organization.feature_flags, organization.api_rate_limiter_config, organization.batch_rate_limit_config,
    organization.batch_queue_concurrency_config, organization.stream_basin_name,
    member.id, member.user_id, person.display_name, person.name,
    parent.id, parent.api_key
FROM runtime_environment AS environment
JOIN project ON project.id = environment.project_id
JOIN organization ON organization.id = environment.organization_id
LEFT JOIN org_member AS member ON member.id = environment.org_member_id
LEFT JOIN \"user\" AS person ON person.id = member.user_id
LEFT JOIN runtime_environment AS parent ON parent.id = environment.parent_environment_id
WHERE environment.id = $1";

const ENV_EXISTS: &str = "SELECT environment.project_id, project.deleted_at IS NOT NULL
FROM runtime_environment AS environment
JOIN project ON project.id = environment.project_id
WHERE environment.id = $1";

pub(super) async fn env(database: &Database, read: Read, id: &EnvironmentId) -> Result<Answer<Arc<ResolvedEnv>>> {
    let answer = ask(database, "resolve_env", read, ENV, id, about_branch).await?;
    Ok(answer.map(|found| Arc::new(found.env)))
}

pub(super) async fn authenticated_env(
    database: &Database,
    read: Read,
    id: &EnvironmentId,
) -> Result<Answer<Arc<AuthenticatedEnv>>> {
    let operation = "resolve_authenticated_env";
    let answer = ask(database, operation, read, AUTHENTICATED_ENV, id, about_authenticated).await?;
    Ok(answer.map(Arc::new))
}

pub(super) async fn env_exists(database: &Database, read: Read, id: &EnvironmentId) -> Result<Answer<()>> {
    ask(database, "assert_env_exists", read, ENV_EXISTS, id, |()| Vec::new()).await
}

/// Asks about one environment. `others` says what an answer is about beside the environment and its project.
async fn ask<T: Row>(
    database: &Database,
    operation: &'static str,
    read: Read,
    text: &str,
    id: &EnvironmentId,
    others: impl FnOnce(&T) -> Vec<Subject>,
) -> Result<Answer<T>> {
    let found = database.ask(operation, read, text, [id.as_str().into()]).await?.pop();
    Ok(answer(id, found, others))
}

fn answer<T>(id: &EnvironmentId, found: Option<OfProject<T>>, others: impl FnOnce(&T) -> Vec<Subject>) -> Answer<T> {
    let mut about = vec![subject(SubjectKind::Environment, id)];
    let Some(OfProject { project, is_deleted, row }) = found else { return Answer { value: None, about } };
    about.push(subject(SubjectKind::Project, &project));
    if is_deleted {
        return Answer { value: None, about };
    }
    about.extend(others(&row));
    Answer { value: Some(row), about }
}

fn about_branch(Branch { env, parent }: &Branch) -> Vec<Subject> {
    // Nothing is read of the organization but its id. Whoever forgets an organization means its environments too.
    let mut about = vec![subject(SubjectKind::Organization, &env.organization)];
    about.extend(parent.iter().map(|parent| subject(SubjectKind::Environment, parent)));
    about
}

fn about_authenticated(env: &AuthenticatedEnv) -> Vec<Subject> {
    let mut about = vec![subject(SubjectKind::Organization, &env.organization.id)];
    if env.project.organization != env.organization.id {
        about.push(subject(SubjectKind::Organization, &env.project.organization));
    }
    if let Some(member) = &env.member {
        about.push(subject(SubjectKind::Member, &member.id));
        about.push(subject(SubjectKind::User, &member.user_id));
    }
    about.extend(env.parent.iter().map(|parent| subject(SubjectKind::Environment, &parent.id)));
    about
}

fn subject(kind: SubjectKind, id: &(impl AsRef<str> + ?Sized)) -> Subject {
    Subject::new(kind, id.as_ref())
}

/// What was read of an environment, after what says whether it counts.
struct OfProject<T> {
    project: String,
    is_deleted: bool,
    row: T,
}

impl<T: Row> Row for OfProject<T> {
    const WIDTH: usize = 2 + T::WIDTH;

    fn read(columns: &mut Columns<'_>) -> Result<Self, DbErr> {
        Ok(Self { project: columns.value()?, is_deleted: columns.value()?, row: T::read(columns)? })
    }
}

/// Of an environment nothing is read but whether it is there.
impl Row for () {
    const WIDTH: usize = 0;

    fn read(_: &mut Columns<'_>) -> Result<Self, DbErr> {
        Ok(())
    }
}

/// An environment, and the one it is a branch of.
struct Branch {
    env: ResolvedEnv,
    parent: Option<String>,
}

impl Row for Branch {
    const WIDTH: usize = 9;

    fn read(columns: &mut Columns<'_>) -> Result<Self, DbErr> {
        let env = ResolvedEnv {
            id: EnvironmentId::stored(columns.value()?),
            kind: columns.label()?,
            project: ProjectId::stored(columns.value()?),
            organization: OrganizationId::stored(columns.value()?),
            archived_at: columns.value()?,
            parent_kind: columns.label()?,
            maximum_concurrency_limit: columns.value()?,
            concurrency_limit_burst_factor: columns.value()?,
        };
        Ok(Self { env, parent: columns.value()? })
    }
}

impl Row for AuthenticatedEnv {
    const WIDTH: usize = 15
        + AuthenticatedProject::WIDTH
        + AuthenticatedOrganization::WIDTH
        + AuthenticatedMember::WIDTH
        + ParentEnv::WIDTH;

    fn read(columns: &mut Columns<'_>) -> Result<Self, DbErr> {
        Ok(Self {
            id: EnvironmentId::stored(columns.value()?),
            slug: columns.value()?,
            kind: columns.label()?,
            api_key: ApiKey::stored(columns.value()?),
            branch_name: columns.value()?,
            shortcode: columns.value()?,
            git: columns.value()?,
            archived_at: columns.value()?,
            paused: columns.value()?,
            pause_source: columns.label()?,
            maximum_concurrency_limit: columns.value()?,
            concurrency_limit_burst_factor: columns.value()?,
            built_in_environment_variable_overrides: columns.value()?,
            created_at: columns.value()?,
            updated_at: columns.value()?,
            project: AuthenticatedProject::read(columns)?,
            organization: AuthenticatedOrganization::read(columns)?,
            member: columns.joined()?,
            parent: columns.joined()?,
        })
    }
}

impl Row for AuthenticatedProject {
    const WIDTH: usize = 9;

    fn read(columns: &mut Columns<'_>) -> Result<Self, DbErr> {
        Ok(Self {
            id: ProjectId::stored(columns.value()?),
            slug: columns.value()?,
            name: columns.value()?,
            external_ref: columns.value()?,
            engine: columns.label()?,
            organization: OrganizationId::stored(columns.value()?),
            default_worker_group_id: columns.value()?,
            builder_project_id: columns.value()?,
            default_runtime: columns.value()?,
        })
    }
}

impl Row for AuthenticatedOrganization {
    const WIDTH: usize = 12;

    fn read(columns: &mut Columns<'_>) -> Result<Self, DbErr> {
        Ok(Self {
            id: OrganizationId::stored(columns.value()?),
            slug: columns.value()?,
            title: columns.value()?,
            maximum_concurrency_limit: columns.value()?,
            maximum_dev_queue_size: columns.value()?,
            maximum_deployed_queue_size: columns.value()?,
            runs_enabled: columns.value()?,
            feature_flags: columns.value()?,
            api_rate_limiter_config: columns.value()?,
            batch_rate_limit_config: columns.value()?,
            batch_queue_concurrency_config: columns.value()?,
            stream_basin_name: columns.value()?,
        })
    }
}

impl Row for AuthenticatedMember {
    const WIDTH: usize = 4;

    fn read(columns: &mut Columns<'_>) -> Result<Self, DbErr> {
        Ok(Self {
            id: columns.value()?,
            user_id: columns.value()?,
            display_name: columns.value()?,
            name: columns.value()?,
        })
    }
}

impl Row for ParentEnv {
    const WIDTH: usize = 2;

    fn read(columns: &mut Columns<'_>) -> Result<Self, DbErr> {
        Ok(Self { id: EnvironmentId::stored(columns.value()?), api_key: ApiKey::stored(columns.value()?) })
    }
}

#[cfg(test)]
mod tests {
    use chrono::DateTime;
    use sea_orm::prelude::Decimal;

    use super::*;
    use crate::model::{EngineVersion, EnvironmentType};

    fn id<T: std::str::FromStr<Err: std::fmt::Debug>>(text: &str) -> T {
        text.parse().expect("it is an id")
    }

    fn found<T>(row: T, is_deleted: bool) -> Option<OfProject<T>> {
        Some(OfProject { project: "its project".to_owned(), is_deleted, row })
    }

    #[track_caller]
    fn check_about<T>(answer: &Answer<T>, is_there: bool, expected: &[(SubjectKind, &str)]) {
        let expected: Vec<Subject> = expected.iter().map(|(kind, id)| Subject::new(*kind, id)).collect();
        assert_eq!((answer.value.is_some(), &answer.about), (is_there, &expected));
    }

    const ITSELF: (SubjectKind, &str) = (SubjectKind::Environment, "itself");
    const PROJECT: (SubjectKind, &str) = (SubjectKind::Project, "its project");

    #[test]
    fn what_is_not_there_depends_on_what_would_have_to_be() {
        let itself = id("itself");
        check_about(&answer(&itself, None, |()| unreachable!("there is nothing")), false, &[ITSELF]);
        let of_deleted = answer(&itself, found((), true), |()| unreachable!("it does not count"));
        check_about(&of_deleted, false, &[ITSELF, PROJECT]);
        check_about(&answer(&itself, found((), false), |()| Vec::new()), true, &[ITSELF, PROJECT]);
    }

    #[test]
    fn an_environment_depends_on_its_organization_and_on_the_one_it_is_a_branch_of() {
        let env = ResolvedEnv {
            id: id("itself"),
            kind: EnvironmentType::Preview,
            project: id("project"),
            organization: id("organization"),
            archived_at: None,
            parent_kind: None,
            maximum_concurrency_limit: 1,
            concurrency_limit_burst_factor: Decimal::ONE,
        };
        let organization = (SubjectKind::Organization, "organization");
        let alone = found(Branch { env: env.clone(), parent: None }, false);
        check_about(&answer(&env.id, alone, about_branch), true, &[ITSELF, PROJECT, organization]);
        let branch = found(Branch { env: env.clone(), parent: Some("parent".to_owned()) }, false);
        let parent = (SubjectKind::Environment, "parent");
        check_about(&answer(&env.id, branch, about_branch), true, &[ITSELF, PROJECT, organization, parent]);
    }

    #[test]
    fn an_authenticated_environment_depends_on_every_row_it_is_made_of() {
        let env = AuthenticatedEnv {
            id: id("itself"),
            slug: String::new(),
            kind: EnvironmentType::Preview,
            api_key: ApiKey::stored("key"),
            branch_name: None,
            shortcode: String::new(),
            git: None,
            archived_at: None,
            paused: false,
            pause_source: None,
            maximum_concurrency_limit: 1,
            concurrency_limit_burst_factor: 1.0,
            built_in_environment_variable_overrides: None,
            created_at: DateTime::UNIX_EPOCH,
            updated_at: DateTime::UNIX_EPOCH,
            project: AuthenticatedProject {
                id: id("project"),
                slug: String::new(),
                name: String::new(),
                external_ref: String::new(),
                engine: EngineVersion::V2,
                organization: id("organization"),
                default_worker_group_id: None,
                builder_project_id: None,
                default_runtime: None,
            },
            organization: AuthenticatedOrganization {
                id: id("organization"),
                slug: String::new(),
                title: String::new(),
                maximum_concurrency_limit: 1,
                maximum_dev_queue_size: None,
                maximum_deployed_queue_size: None,
                runs_enabled: true,
                feature_flags: None,
                api_rate_limiter_config: None,
                batch_rate_limit_config: None,
                batch_queue_concurrency_config: None,
                stream_basin_name: None,
            },
            member: None,
            parent: None,
        };
        let organization = (SubjectKind::Organization, "organization");
        let alone = answer(&env.id, found(env.clone(), false), about_authenticated);
        check_about(&alone, true, &[ITSELF, PROJECT, organization]);

        let mut full = env.clone();
        full.project.organization = id("another");
        let member = ("member".to_owned(), "user".to_owned());
        full.member = Some(AuthenticatedMember { id: member.0, user_id: member.1, display_name: None, name: None });
        full.parent = Some(ParentEnv { id: id("parent"), api_key: ApiKey::stored("key") });
        let others = [
            (SubjectKind::Organization, "another"),
            (SubjectKind::Member, "member"),
            (SubjectKind::User, "user"),
            (SubjectKind::Environment, "parent"),
        ];
        let full = answer(&env.id, found(full, false), about_authenticated);
        check_about(&full, true, &[&[ITSELF, PROJECT, organization][..], &others].concat());
    }
}
