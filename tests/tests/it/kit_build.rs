//! The kit's builders: rows that the database takes as they are, and gives back as they were.

use anyhow::Result;
use entities_control::{
    prelude::*,
    sea_orm_active_enums::{RuntimeEnvironmentType, WorkerDeploymentStatus},
};
use sea_orm::EntityTrait;
use serde_json::json;
use tests::{Databases, Side, build};

#[tokio::test]
async fn a_world_is_read_back_as_it_was_built() -> Result<()> {
    let databases = Databases::fresh().await?;
    let db = databases.connection(Side::ControlPlane).await?;
    let world = build::world(db).await?;
    assert_eq!(Organization::find().all(db).await?, [world.organization]);
    assert_eq!(Project::find().all(db).await?, [world.project]);
    assert_eq!(RuntimeEnvironment::find_by_id(&world.production.id).one(db).await?, Some(world.production));
    assert_eq!(RuntimeEnvironment::find_by_id(&world.development.id).one(db).await?, Some(world.development));
    assert_eq!(User::find().all(db).await?, [world.user]);
    assert_eq!(OrgMember::find().all(db).await?, [world.member]);
    assert_eq!(WorkerInstanceGroup::find().all(db).await?, [world.worker_group]);
    assert_eq!(BackgroundWorker::find().all(db).await?, [world.worker]);
    assert_eq!(BackgroundWorkerTask::find_by_id(&world.tasks[1].id).one(db).await?.as_ref(), Some(&world.tasks[1]));
    assert_eq!(TaskQueue::find_by_id(&world.queues[3].id).one(db).await?.as_ref(), Some(&world.queues[3]));
    assert_eq!(BackgroundWorkerToTaskQueue::find().all(db).await?.len(), world.queues.len());
    assert_eq!(WorkerDeployment::find().all(db).await?, [world.deployment]);
    assert_eq!(WorkerDeploymentPromotion::find().all(db).await?, [world.promotion]);
    Ok(())
}

#[tokio::test]
async fn worlds_do_not_get_in_each_others_way() -> Result<()> {
    let databases = Databases::fresh().await?;
    let db = databases.connection(Side::ControlPlane).await?;
    for _ in 0..3 {
        build::world(db).await?;
    }
    assert_eq!(databases.count(Side::ControlPlane, "worker_deployment").await?, 3);
    Ok(())
}

#[tokio::test]
async fn environments_of_every_type_fit_into_one_project() -> Result<()> {
    let databases = Databases::fresh().await?;
    let db = databases.connection(Side::ControlPlane).await?;
    let organization = build::organization().insert(db).await?;
    let project = build::project(&organization).insert(db).await?;
    let user = build::user().insert(db).await?;
    let member = build::member(&organization, &user).insert(db).await?;
    let environment = || build::environment(&organization, &project);

    environment().production().insert(db).await?;
    environment().staging().insert(db).await?;
    environment().development(&member).insert(db).await?;
    let preview = environment().preview().insert(db).await?;
    for branch in ["one", "two"] {
        environment().branch_of(&preview, branch).insert(db).await?;
    }
    environment().archived().insert(db).await?;
    let paused = environment().paused().insert(db).await?;
    assert!(paused.paused);

    let mut types: Vec<_> = RuntimeEnvironment::find().all(db).await?.into_iter().map(|row| row.r#type).collect();
    types.sort_by_key(|r#type| *r#type as u8);
    use RuntimeEnvironmentType::{Development, Preview, Production, Staging};
    assert_eq!(types, [Production, Production, Production, Staging, Development, Preview, Preview, Preview]);
    Ok(())
}

#[tokio::test]
async fn anything_of_a_row_can_be_changed_before_it_is_inserted() -> Result<()> {
    let databases = Databases::fresh().await?;
    let db = databases.connection(Side::ControlPlane).await?;
    let organization = build::organization().feature_flags(json!({ "a": 1 })).runs_disabled().insert(db).await?;
    assert_eq!(organization.feature_flags, Some(json!({ "a": 1 })));
    assert!(!organization.runs_enabled);
    let project = build::project(&organization).deleted().insert(db).await?;
    assert!(project.deleted_at.is_some());
    let group = build::worker_group().owned_by(&project).insert(db).await?;
    assert_eq!(group.project_id.as_ref(), Some(&project.id));
    let environment = build::environment(&organization, &project).insert(db).await?;
    let worker = build::worker(&environment).version("20260101.7").insert(db).await?;
    let task =
        build::task(&worker, "t").machine("small-1x").with(|row| row.ttl = Some("1h".to_owned())).insert(db).await?;
    assert_eq!(task.ttl.as_deref(), Some("1h"));
    let deployment = build::deployment(&worker).unmanaged().status(WorkerDeploymentStatus::Failed).insert(db).await?;
    assert_eq!((deployment.version.as_str(), deployment.deployed_at), ("20260101.7", None));
    assert!(build::queue(&environment, "q").paused().insert(db).await?.paused);

    let flag = build::feature_flag("someFlag", json!("on")).insert(db).await?;
    assert_eq!(FeatureFlag::find().all(db).await?, [flag]);
    Ok(())
}

#[tokio::test]
async fn a_row_that_is_refused_says_which_table() -> Result<()> {
    let databases = Databases::fresh().await?;
    let db = databases.connection(Side::ControlPlane).await?;
    let missing = build::organization().insert(db).await?;
    databases.sql(Side::ControlPlane, "DELETE FROM organization").await?;
    let error = build::project(&missing).insert(db).await.expect_err("its organization is gone");
    assert_eq!(error.to_string(), "could not insert into project");
    Ok(())
}
