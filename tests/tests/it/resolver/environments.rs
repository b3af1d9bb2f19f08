//! Environments: found as their rows are, or not there.

use anyhow::{Context, Result};
use sea_orm::prelude::Decimal;
use serde_json::json;
use store::control_plane::{
    AuthenticatedEnv, AuthenticatedMember, AuthenticatedOrganization, AuthenticatedProject, EnvironmentPauseSource,
    ParentEnv, ResolvedEnv,
};
use store::{ControlPlaneResolver, EngineVersion, Environment, EnvironmentId, EnvironmentType};
use tests::build;
use tests::runs::moment;

use super::{About, Asked, Question};

#[tokio::test]
async fn an_environment_is_answered_as_its_rows_are() -> Result<()> {
    let asked = Asked::fresh().await?;
    let rows = asked.rows().await?;
    let organization = build::organization()
        .feature_flags(json!({ "runOpsMintKind": "cuid", "other": [1.5, null] }))
        .with(|row| {
            row.maximum_concurrency_limit = 11;
            row.maximum_dev_queue_size = Some(12);
            row.maximum_deployed_queue_size = Some(13);
            row.runs_enabled = false;
            row.api_rate_limiter_config = Some(json!({ "setting": "api" }));
            row.batch_rate_limit_config = Some(json!({ "setting": "rate" }));
            row.batch_queue_concurrency_config = Some(json!({ "setting": "concurrency" }));
            row.stream_basin_name = Some("basin".to_owned());
        })
        .insert(rows)
        .await?;
    let user = build::user().with(|row| row.display_name = Some("Known as".to_owned())).insert(rows).await?;
    let member = build::member(&organization, &user).insert(rows).await?;
    let group = build::worker_group().insert(rows).await?;
    let project = build::project(&organization)
        .default_worker_group(&group)
        .with(|row| row.builder_project_id = Some("builder".to_owned()))
        .insert(rows)
        .await?;
    let parent = build::environment(&organization, &project).preview().insert(rows).await?;
    let branch = build::environment(&organization, &project)
        .branch_of(&parent, "feature")
        .paused()
        .with(|row| {
            row.git = Some(json!({ "commitSha": "1234" }));
            row.pause_source = Some(EnvironmentPauseSource::BillingLimit);
            row.maximum_concurrency_limit = 14;
            row.concurrency_limit_burst_factor = Decimal::new(110, 2);
            row.org_member_id = Some(member.id.clone());
            row.built_in_environment_variable_overrides = Some(json!({ "NAME": "value" }));
            row.archived_at = Some(moment(1).fixed_offset());
            row.created_at = moment(2).fixed_offset();
            row.updated_at = moment(3).fixed_offset();
        })
        .insert(rows)
        .await?;
    let id: EnvironmentId = branch.id.parse()?;

    let env = asked.resolver.resolve_env(&id).await?.context("the environment is there")?;
    let expected = ResolvedEnv {
        id: id.clone(),
        kind: EnvironmentType::Preview,
        project: project.id.parse()?,
        organization: organization.id.parse()?,
        archived_at: Some(moment(1)),
        parent_kind: Some(EnvironmentType::Preview),
        maximum_concurrency_limit: 14,
        concurrency_limit_burst_factor: Decimal::new(110, 2),
    };
    assert_eq!(*env, expected);
    assert_eq!(env.concurrency_limit_burst_factor.to_string(), "1.10", "an exact decimal keeps its places");
    let identity = Environment {
        id: id.clone(),
        kind: EnvironmentType::Preview,
        project: project.id.parse()?,
        organization: organization.id.parse()?,
    };
    assert_eq!(env.identity(), identity);

    let env = asked.resolver.resolve_authenticated_env(&id).await?.context("the environment is there")?;
    assert_eq!(env.api_key.reveal(), branch.api_key);
    let own_parent = env.parent.as_ref().context("it is a branch")?;
    assert_eq!(own_parent.api_key.reveal(), parent.api_key);
    let expected = AuthenticatedEnv {
        id,
        slug: branch.slug,
        kind: EnvironmentType::Preview,
        api_key: env.api_key.clone(),
        branch_name: Some("feature".to_owned()),
        shortcode: branch.shortcode,
        git: Some(json!({ "commitSha": "1234" })),
        archived_at: Some(moment(1)),
        paused: true,
        pause_source: Some(EnvironmentPauseSource::BillingLimit),
        maximum_concurrency_limit: 14,
        concurrency_limit_burst_factor: 1.1,
        built_in_environment_variable_overrides: Some(json!({ "NAME": "value" })),
        created_at: moment(2),
        updated_at: moment(3),
        project: AuthenticatedProject {
            id: project.id.parse()?,
            slug: project.slug,
            name: project.name,
            external_ref: project.external_ref,
            engine: EngineVersion::V2,
            organization: organization.id.parse()?,
            default_worker_group_id: Some(group.id),
            builder_project_id: Some("builder".to_owned()),
            default_runtime: Some("node-22".to_owned()),
        },
        organization: AuthenticatedOrganization {
            id: organization.id.parse()?,
            slug: organization.slug,
            title: organization.title,
            maximum_concurrency_limit: 11,
            maximum_dev_queue_size: Some(12),
            maximum_deployed_queue_size: Some(13),
            runs_enabled: false,
            feature_flags: organization.feature_flags,
            api_rate_limiter_config: Some(json!({ "setting": "api" })),
            batch_rate_limit_config: Some(json!({ "setting": "rate" })),
            batch_queue_concurrency_config: Some(json!({ "setting": "concurrency" })),
            stream_basin_name: Some("basin".to_owned()),
        },
        member: Some(AuthenticatedMember {
            id: member.id,
            user_id: user.id,
            display_name: Some("Known as".to_owned()),
            name: user.name,
        }),
        parent: Some(ParentEnv { id: parent.id.parse()?, api_key: own_parent.api_key.clone() }),
    };
    assert_eq!(*env, expected);
    Ok(())
}

#[tokio::test]
async fn an_environment_that_is_no_branch_and_nobodys_own_says_so() -> Result<()> {
    let (asked, world) = Asked::with_world().await?;
    let id = world.production.id.parse()?;
    let env = asked.resolver.resolve_env(&id).await?.context("the environment is there")?;
    assert_eq!((env.kind, env.parent_kind, env.archived_at), (EnvironmentType::Production, None, None));
    let env = asked.resolver.resolve_authenticated_env(&id).await?.context("the environment is there")?;
    assert_eq!((&env.parent, &env.member, &env.branch_name), (&None, &None, &None));
    assert_eq!((&env.git, env.paused, env.pause_source), (&None, false, None));
    assert_eq!((&env.organization.feature_flags, env.organization.runs_enabled), (&None, true));

    let own = asked.resolver.resolve_authenticated_env(&world.development.id.parse()?).await?;
    let own = own.context("the environment is there")?;
    assert_eq!(own.member.as_ref().map(|member| &member.user_id), Some(&world.user.id));
    Ok(())
}

#[tokio::test]
async fn what_runs_are_charged_to_is_the_organization_of_the_project() -> Result<()> {
    let (asked, world) = Asked::with_world().await?;
    let other = build::organization().insert(asked.rows().await?).await?;
    asked.sql(&format!("UPDATE project SET organization_id = '{}'", other.id)).await?;
    let id = world.production.id.parse()?;
    let env = asked.resolver.resolve_env(&id).await?.context("the environment is there")?;
    assert_eq!(env.organization.as_str(), other.id);
    let env = asked.resolver.resolve_authenticated_env(&id).await?.context("the environment is there")?;
    let ids = (env.organization.id.as_str(), env.project.organization.as_str());
    assert_eq!(ids, (world.organization.id.as_str(), other.id.as_str()), "each row says its own");
    Ok(())
}

#[tokio::test]
async fn what_nobody_has_made_is_nothing_to_every_question() -> Result<()> {
    let (asked, world) = Asked::with_world().await?;
    for question in Question::ALL {
        assert!(question.ask(&asked.resolver, &About::production(&world)?).await?, "{question:?}: it is there");
        assert!(!question.ask(&asked.resolver, &About::nothing()?).await?, "{question:?}: there is no such thing");
    }
    Ok(())
}

#[tokio::test]
async fn an_environment_of_a_deleted_project_is_not_there_for_any_question() -> Result<()> {
    let (asked, world) = Asked::with_world().await?;
    let about = About::production(&world)?;
    asked.sql("UPDATE project SET deleted_at = now()").await?;
    for question in Question::ALL {
        let is_there = question.ask(&asked.resolver, &about).await?;
        assert_eq!(is_there, question.is_for_display(), "{question:?}: only what is shown of runs stays");
    }
    asked.sql("UPDATE project SET deleted_at = NULL").await?;
    for question in Question::ALL {
        assert!(question.ask(&asked.resolver, &about).await?, "{question:?}: the very next call sees it again");
    }
    Ok(())
}

#[tokio::test]
async fn an_archived_environment_is_there_for_every_question_and_says_when_it_was_archived() -> Result<()> {
    let (asked, world) = Asked::with_world().await?;
    let about = About::production(&world)?;
    asked.sql(&format!("UPDATE runtime_environment SET archived_at = '{}'", moment(5).to_rfc3339())).await?;
    for question in Question::ALL {
        assert!(question.ask(&asked.resolver, &about).await?, "{question:?}: what is archived is there");
    }
    let id = &about.environment;
    let env = asked.resolver.resolve_env(id).await?.context("it is there")?;
    let authenticated = asked.resolver.resolve_authenticated_env(id).await?.context("it is there")?;
    let pending = asked.resolver.resolve_pending_version(&about.worker).await?.context("it is there")?;
    assert_eq!([env.archived_at, authenticated.archived_at, pending.archived_at], [Some(moment(5)); 3]);
    Ok(())
}

#[tokio::test]
async fn a_key_shows_itself_only_to_whoever_asks_for_it() -> Result<()> {
    let asked = Asked::fresh().await?;
    let rows = asked.rows().await?;
    let organization = build::organization().insert(rows).await?;
    let project = build::project(&organization).insert(rows).await?;
    let parent = build::environment(&organization, &project).preview().insert(rows).await?;
    let branch = build::environment(&organization, &project).branch_of(&parent, "feature").insert(rows).await?;
    let env = asked.resolver.resolve_authenticated_env(&branch.id.parse()?).await?.context("it is there")?;
    for shown in [format!("{env:?}"), format!("{env:#?}"), format!("{:?}", asked.resolver)] {
        assert!(!shown.contains(&branch.api_key) && !shown.contains(&parent.api_key), "a key is shown: {shown}");
    }
    assert_eq!(env.api_key.reveal(), branch.api_key);
    Ok(())
}
