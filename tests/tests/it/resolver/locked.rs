//! What runs were locked to, one by one and many at once.

use std::collections::HashSet;

use anyhow::Result;
use serde_json::json;
use store::control_plane::{
    LockedDeployment, LockedTask, LockedTaskWorker, LockedVersion, LockedWorker, LockedWorkerKey,
};
use store::{ControlPlaneResolver, ErrorKind, InputProblem, MAX_IDS, WorkerId};
use tests::build;

use super::Asked;

#[tokio::test]
async fn what_a_run_was_locked_to_is_shown_as_its_rows_are() -> Result<()> {
    let (asked, world) = Asked::with_world().await?;
    let rows = asked.rows().await?;
    // A version that is another one than the task's, with nothing in common.
    let version = build::worker(&world.development)
        .with(|row| {
            (row.sdk_version, row.cli_version) = ("5.0.0".to_owned(), "5.0.1".to_owned());
            (row.runtime, row.runtime_version) = (Some("bun".to_owned()), None);
            row.supports_lazy_attempts = false;
        })
        .insert(rows)
        .await?;
    asked
        .sql(
            "UPDATE background_worker_task SET machine_config = '{\"preset\": \"large-1x\"}';
             UPDATE worker_deployment SET git = '{\"commitSha\": \"1234\"}', version = '20260101.9'",
        )
        .await?;
    let (task, worker, deployment) = (&world.tasks[1], &world.worker, &world.deployment);

    let locked_by = LockedTask {
        id: task.id.parse()?,
        slug: task.slug.clone(),
        file_path: task.file_path.clone(),
        export_name: Some("task".to_owned()),
        machine_config: Some(json!({ "preset": "large-1x" })),
        worker: LockedTaskWorker {
            id: worker.id.parse()?,
            version: worker.version.clone(),
            sdk_version: "4.0.0".to_owned(),
            cli_version: "4.0.0".to_owned(),
            supports_lazy_attempts: true,
            deployment: Some(LockedDeployment {
                friendly_id: deployment.friendly_id.clone(),
                short_code: deployment.short_code.clone(),
                version: "20260101.9".to_owned(),
                runtime: Some("node-22".to_owned()),
                runtime_version: Some("22.12.0".to_owned()),
                git: Some(json!({ "commitSha": "1234" })),
            }),
        },
    };
    let locked_to_version = LockedVersion {
        version: version.version.clone(),
        sdk_version: "5.0.0".to_owned(),
        runtime: Some("bun".to_owned()),
        runtime_version: None,
        supports_lazy_attempts: false,
    };
    let (by, to) = (Some(task.id.parse()?), Some(version.id.parse()?));
    let (by_unknown, to_unknown) = (Some("nothing".parse()?), Some("nobody".parse()?));
    let cases = [
        ("both", (&by, &to), (true, true)),
        ("the task alone", (&by, &None), (true, false)),
        ("the version alone", (&None, &to), (false, true)),
        ("an unknown task", (&by_unknown, &to), (false, true)),
        ("an unknown version", (&by, &to_unknown), (true, false)),
        ("both unknown", (&by_unknown, &to_unknown), (false, false)),
        ("nothing at all", (&None, &None), (false, false)),
    ];
    for (name, (by, to), (has_task, has_version)) in cases {
        let key = LockedWorkerKey { locked_by: by.clone(), locked_to_version: to.clone() };
        let expected = LockedWorker {
            locked_by: has_task.then(|| locked_by.clone()),
            locked_to_version: has_version.then(|| locked_to_version.clone()),
        };
        assert_eq!(*asked.resolver.resolve_run_locked_worker(&key).await?, expected, "{name}");
    }
    Ok(())
}

#[tokio::test]
async fn a_task_of_a_worker_that_was_never_deployed_is_shown_without_a_deployment() -> Result<()> {
    let (asked, world) = Asked::with_world().await?;
    let rows = asked.rows().await?;
    let worker = build::worker(&world.development).insert(rows).await?;
    let task = build::task(&worker, "local").insert(rows).await?;
    let key = LockedWorkerKey { locked_by: Some(task.id.parse()?), locked_to_version: None };
    let locked = asked.resolver.resolve_run_locked_worker(&key).await?;
    let found = locked.locked_by.as_ref().map(|task| (task.worker.id.as_str(), &task.worker.deployment));
    assert_eq!(found, Some((worker.id.as_str(), &None)));
    Ok(())
}

#[tokio::test]
async fn many_versions_are_answered_as_each_by_itself_would_be() -> Result<()> {
    let (asked, world) = Asked::with_world().await?;
    let rows = asked.rows().await?;
    let mut versions: Vec<WorkerId> = vec![world.worker.id.parse()?, "nobody".parse()?];
    for _ in 0..3 {
        versions.push(build::worker(&world.development).insert(rows).await?.id.parse()?);
    }
    let twice = [versions.clone(), versions.clone()].concat();
    let locked = asked.resolver.resolve_run_locked_workers(&twice).await?;
    let answered: HashSet<&WorkerId> = locked.keys().collect();
    assert_eq!(answered, versions.iter().collect(), "every id is answered, and no other");
    for version in &versions {
        let key = LockedWorkerKey { locked_by: None, locked_to_version: Some(version.clone()) };
        assert_eq!(locked[version], asked.resolver.resolve_run_locked_worker(&key).await?, "{version}");
        assert_eq!(locked[version].locked_to_version.is_some(), version.as_str() != "nobody", "{version}");
    }
    assert!(asked.resolver.resolve_run_locked_workers(&[]).await?.is_empty(), "nothing was asked for");
    Ok(())
}

#[tokio::test]
async fn more_versions_than_one_call_takes_are_refused() -> Result<()> {
    let asked = Asked::fresh().await?;
    let versions = vec!["nobody".parse()?; MAX_IDS + 1];
    let error = asked.resolver.resolve_run_locked_workers(&versions).await.expect_err("they are too many");
    let problem = InputProblem::TooLarge { limit: MAX_IDS };
    assert_eq!(*error.kind(), ErrorKind::InvalidInput { field: "versions", problem });
    Ok(())
}
