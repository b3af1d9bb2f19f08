//! Which worker version executes a run, and which runs wait for one.

use anyhow::{Context, Result};
use entities_control::{background_worker, runtime_environment, worker_deployment};
use serde_json::json;
use store::control_plane::{
    PendingVersion, QueueQuery, Worker, WorkerDeployment, WorkerDeploymentType, WorkerQueue, WorkerTask, WorkerVersion,
};
use store::{ControlPlaneResolver, EngineVersion, Environment, EnvironmentType, QueueId, WorkerVersionQuery};
use tests::build::{self, World};
use tests::runs::moment;

use super::{About, Asked};

/// Workers of an environment, the first made being the oldest.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Made {
    /// With a deployment that the platform runs.
    Managed,
    /// With one that the user runs.
    Unmanaged,
    /// With one of the old engine.
    OldEngine,
    /// With one that the platform runs and that is newer.
    NewerManaged,
    /// Without a deployment; the newest worker of all.
    Local,
}

/// What the label `current` is on.
#[derive(Clone, Copy, Debug)]
enum Current {
    /// There is no such label.
    Nothing,
    /// A deployment that the user runs and that has no worker.
    Bare,
    /// The deployment of a worker.
    Of(Made),
}

/// The newest deployment that the platform runs.
#[derive(Clone, Copy, Debug)]
enum Newest {
    /// That of [`Made::NewerManaged`].
    HasWorker,
    /// One without a worker.
    Bare,
    /// There is none at all.
    Missing,
}

const DEVELOPMENT: &[Option<EnvironmentType>] = &[Some(EnvironmentType::Development)];
const DEPLOYED: &[Option<EnvironmentType>] =
    &[Some(EnvironmentType::Production), Some(EnvironmentType::Staging), Some(EnvironmentType::Preview)];
const UNKNOWN: &[Option<EnvironmentType>] = &[None];
const ANY: &[Option<EnvironmentType>] = &[
    Some(EnvironmentType::Development),
    Some(EnvironmentType::Production),
    Some(EnvironmentType::Staging),
    Some(EnvironmentType::Preview),
    None,
];

/// The kinds of environment that are asked about, the worker that is named, the label, the newest deployment; and the
/// worker that is found, with a deployment or without.
type Case = (&'static [Option<EnvironmentType>], Option<Made>, Current, Newest, Option<(Made, bool)>);

#[rustfmt::skip]
const CASES: &[Case] = &[
    // A worker that is named is taken, with its deployment if it has one, whatever is promoted.
    (ANY, Some(Made::Managed), Current::Of(Made::NewerManaged), Newest::HasWorker, Some((Made::Managed, true))),
    (ANY, Some(Made::Unmanaged), Current::Nothing, Newest::HasWorker, Some((Made::Unmanaged, true))),
    (ANY, Some(Made::Local), Current::Bare, Newest::HasWorker, Some((Made::Local, false))),
    // In development the newest worker is taken, and its deployment is no matter.
    (DEVELOPMENT, None, Current::Of(Made::Managed), Newest::HasWorker, Some((Made::Local, false))),
    (DEVELOPMENT, None, Current::Nothing, Newest::Missing, Some((Made::Local, false))),
    // Elsewhere the promoted one is taken, if the platform runs it.
    (DEPLOYED, None, Current::Nothing, Newest::HasWorker, None),
    (DEPLOYED, None, Current::Bare, Newest::HasWorker, None),
    (DEPLOYED, None, Current::Of(Made::Managed), Newest::HasWorker, Some((Made::Managed, true))),
    (DEPLOYED, None, Current::Of(Made::Managed), Newest::Bare, Some((Made::Managed, true))),
    // Otherwise the newest that the platform runs.
    (DEPLOYED, None, Current::Of(Made::Unmanaged), Newest::HasWorker, Some((Made::NewerManaged, true))),
    (DEPLOYED, None, Current::Of(Made::OldEngine), Newest::HasWorker, Some((Made::NewerManaged, true))),
    (DEPLOYED, None, Current::Of(Made::Unmanaged), Newest::Bare, None),
    (DEPLOYED, None, Current::Of(Made::Unmanaged), Newest::Missing, None),
    // Where the kind is not known, the promoted one is taken whoever runs it.
    (UNKNOWN, None, Current::Nothing, Newest::HasWorker, None),
    (UNKNOWN, None, Current::Bare, Newest::HasWorker, None),
    (UNKNOWN, None, Current::Of(Made::Managed), Newest::HasWorker, Some((Made::Managed, true))),
    (UNKNOWN, None, Current::Of(Made::Unmanaged), Newest::HasWorker, Some((Made::Unmanaged, true))),
    (UNKNOWN, None, Current::Of(Made::OldEngine), Newest::Missing, Some((Made::OldEngine, true))),
];

/// An environment as a case says, with its workers.
struct Scene {
    environment: runtime_environment::Model,
    workers: Vec<(Made, background_worker::Model, Option<worker_deployment::Model>)>,
}

impl Scene {
    async fn set(asked: &Asked, world: &World, current: Current, newest: Newest) -> Result<Scene> {
        let rows = asked.rows().await?;
        let environment = build::environment(&world.organization, &world.project).insert(rows).await?;
        let mut workers = Vec::new();
        let all = [Made::Managed, Made::Unmanaged, Made::OldEngine, Made::NewerManaged, Made::Local];
        for (made, at) in all.into_iter().zip(1..) {
            let at = moment(at).fixed_offset();
            let kind = match (made, newest) {
                (Made::Managed | Made::NewerManaged, Newest::Missing) | (Made::Unmanaged, _) => {
                    Some(WorkerDeploymentType::Unmanaged)
                }
                (Made::Managed | Made::NewerManaged, Newest::HasWorker | Newest::Bare) => {
                    Some(WorkerDeploymentType::Managed)
                }
                (Made::OldEngine, _) => Some(WorkerDeploymentType::V1),
                (Made::Local, _) => None,
            };
            let worker = build::worker(&environment).with(|row| row.created_at = at).insert(rows).await?;
            let deployment = match kind {
                None => None,
                Some(kind) => {
                    let deployment = build::deployment(&worker).with(|row| (row.r#type, row.created_at) = (kind, at));
                    Some(deployment.insert(rows).await?)
                }
            };
            workers.push((made, worker, deployment));
        }
        let bare = |kind, version: &str, at| {
            build::deployment(&workers[0].1).with(|row| {
                row.worker_id = None;
                version.clone_into(&mut row.version);
                (row.r#type, row.created_at) = (kind, moment(at).fixed_offset());
            })
        };
        if let Newest::Bare = newest {
            let _newest = bare(WorkerDeploymentType::Managed, "bare", 10).insert(rows).await?;
        }
        let promoted = match current {
            Current::Nothing => None,
            Current::Bare => Some(bare(WorkerDeploymentType::Unmanaged, "promoted", 11).insert(rows).await?),
            Current::Of(made) => workers.iter().find(|worker| worker.0 == made).and_then(|worker| worker.2.clone()),
        };
        if let Some(promoted) = promoted {
            let _current = build::promotion(&promoted).insert(rows).await?;
        }
        Ok(Scene { environment, workers })
    }

    fn id_of(&self, made: Made) -> &str {
        let worker = self.workers.iter().find(|worker| worker.0 == made);
        &worker.expect("every scene has every worker").1.id
    }
}

/// The ids of worker and deployment.
fn ids(version: &WorkerVersion) -> (&str, Option<&str>) {
    (version.worker.id.as_str(), version.deployment.as_ref().map(|deployment| deployment.id.as_str()))
}

#[tokio::test]
async fn the_version_that_executes_a_run_is_chosen_by_kind_worker_and_promotion() -> Result<()> {
    let (asked, world) = Asked::with_world().await?;
    for (kinds, named, current, newest, expected) in CASES {
        let scene = Scene::set(&asked, &world, *current, *newest).await?;
        for kind in *kinds {
            let query = WorkerVersionQuery {
                environment: scene.environment.id.parse()?,
                kind: *kind,
                worker: named.map(|made| scene.id_of(made).parse()).transpose()?,
                task_identifier: None,
                queue: None,
            };
            let found = asked.resolver.resolve_worker_version(&query).await?;
            let expected = expected.map(|(made, has_deployment)| {
                let (_, worker, deployment) =
                    scene.workers.iter().find(|worker| worker.0 == made).expect("every scene has every worker");
                (worker.id.as_str(), deployment.as_ref().filter(|_| has_deployment).map(|row| row.id.as_str()))
            });
            let case = (kind, named, current, newest);
            assert_eq!(found.as_ref().map(ids), expected, "{case:?}");
        }
    }
    Ok(())
}

#[tokio::test]
async fn the_newest_is_told_by_its_age_and_then_by_its_id() -> Result<()> {
    let (asked, world) = Asked::with_world().await?;
    let rows = asked.rows().await?;
    let environment = build::environment(&world.organization, &world.project).insert(rows).await?;
    let mut promoted = None;
    // Bytewise `a` comes after `Z`; a dictionary has it the other way round. The oldest has the greatest id of all.
    for (id, at) in [("zzz", 1), ("Zed", 2), ("abc", 2), ("Abc", 2)] {
        let at = moment(at).fixed_offset();
        let worker = build::worker(&environment).with(|row| (row.id, row.created_at) = (format!("worker_{id}"), at));
        let worker = worker.insert(rows).await?;
        let deployment =
            build::deployment(&worker).with(|row| (row.id, row.created_at) = (format!("deployed_{id}"), at));
        let deployment = deployment.insert(rows).await?;
        promoted.get_or_insert(deployment);
    }
    let query = |kind| WorkerVersionQuery {
        environment: environment.id.parse().expect("the id of a row is an id"),
        kind: Some(kind),
        worker: None,
        task_identifier: None,
        queue: None,
    };
    let found = asked.resolver.resolve_worker_version(&query(EnvironmentType::Development)).await?;
    assert_eq!(found.as_ref().map(ids), Some(("worker_abc", None)), "in development no deployment is shown");

    let _current = build::promotion(&promoted.context("there are deployments")?).insert(rows).await?;
    asked.sql("UPDATE worker_deployment SET type = 'UNMANAGED' WHERE id = 'deployed_zzz'").await?;
    let found = asked.resolver.resolve_worker_version(&query(EnvironmentType::Production)).await?;
    assert_eq!(found.as_ref().map(ids), Some(("worker_abc", Some("deployed_abc"))));
    Ok(())
}

#[tokio::test]
async fn a_version_is_answered_as_its_rows_are() -> Result<()> {
    let (asked, world) = Asked::with_world().await?;
    let World { worker, deployment, tasks, queues, worker_group, .. } = &world;
    asked
        .sql(&format!(
            "UPDATE background_worker SET worker_group_id = '{}', metadata = '{{\"large\": true}}';
             UPDATE background_worker_task SET machine_config = '{{\"preset\": \"large-1x\"}}', retry_config = NULL,
                 max_duration_in_seconds = 60 WHERE slug = 'resize-image'",
            worker_group.id
        ))
        .await?;
    let found = asked.resolver.resolve_worker_version(&About::production(&world)?.version(None, None)).await?;
    let task = |at: usize| -> Result<WorkerTask> {
        let is_special = tasks[at].slug == "resize-image";
        Ok(WorkerTask {
            id: tasks[at].id.parse()?,
            slug: tasks[at].slug.clone(),
            machine_config: is_special.then(|| json!({ "preset": "large-1x" })),
            retry_config: (!is_special).then(|| json!({ "maxAttempts": 3 })),
            max_duration_in_seconds: is_special.then_some(60),
        })
    };
    let queue = |at: usize| -> Result<WorkerQueue> {
        Ok(WorkerQueue { id: queues[at].id.parse()?, name: queues[at].name.clone() })
    };
    let expected = WorkerVersion {
        worker: Worker {
            id: worker.id.parse()?,
            friendly_id: worker.friendly_id.clone(),
            engine: EngineVersion::V2,
            content_hash: worker.content_hash.clone(),
            version: worker.version.clone(),
            sdk_version: worker.sdk_version.clone(),
            cli_version: worker.cli_version.clone(),
            runtime: worker.runtime.clone(),
            runtime_version: worker.runtime_version.clone(),
            project: worker.project_id.parse()?,
            environment: worker.runtime_environment_id.parse()?,
            worker_group_id: Some(worker_group.id.clone()),
            supports_lazy_attempts: true,
            created_at: worker.created_at.to_utc(),
            updated_at: worker.updated_at.to_utc(),
        },
        // In order, whatever the order in which they were made.
        tasks: vec![task(1)?, task(0)?, task(2)?],
        queues: vec![queue(3)?, queue(1)?, queue(0)?, queue(2)?],
        deployment: Some(WorkerDeployment {
            id: deployment.id.clone(),
            friendly_id: deployment.friendly_id.clone(),
            kind: WorkerDeploymentType::Managed,
            image_reference: deployment.image_reference.clone(),
            image_platform: "linux/amd64".to_owned(),
        }),
    };
    assert_eq!(found, Some(expected));
    Ok(())
}

#[tokio::test]
async fn of_tasks_and_queues_those_are_given_that_were_asked_for() -> Result<()> {
    let (asked, world) = Asked::with_world().await?;
    let rows = asked.rows().await?;
    // A queue of the environment that the worker does not serve, and one of the same name elsewhere.
    let unserved = build::queue(&world.production, "unserved").insert(rows).await?;
    let elsewhere = build::queue(&world.development, "shared").insert(rows).await?;
    let shared = &world.queues[3];
    let all_tasks: &[&str] = &["resize-image", "send-email", "sync-inventory"];
    let all_queues: &[&str] = &["shared", "task/resize-image", "task/send-email", "task/sync-inventory"];
    let named = |name: &str| Some(QueueQuery::Named(name.to_owned()));
    let locked = |id: &str| -> Result<Option<QueueQuery>> { Ok(Some(QueueQuery::Locked(id.parse::<QueueId>()?))) };
    type Slugs = &'static [&'static str];
    let cases: Vec<(Option<&str>, Option<QueueQuery>, Slugs, Slugs)> = vec![
        (None, None, all_tasks, all_queues),
        (Some("send-email"), None, &["send-email"], all_queues),
        (Some("send-email"), named("shared"), &["send-email"], &["shared"]),
        (Some("send-email"), locked(&shared.id)?, &["send-email"], &["shared"]),
        (None, named("task/send-email"), all_tasks, &["task/send-email"]),
        (None, locked(&world.queues[0].id)?, all_tasks, &["task/send-email"]),
        (Some("nothing"), named("nothing"), &[], &[]),
        (Some(""), named(""), &[], &[]),
        (None, named("unserved"), all_tasks, &[]),
        (None, locked(&unserved.id)?, all_tasks, &[]),
        (None, locked(&elsewhere.id)?, all_tasks, &[]),
        // Neither is taken for the other.
        (None, named(&shared.id), all_tasks, &[]),
        (None, locked("shared")?, all_tasks, &[]),
        // Text that is not a pattern, nor a piece of SQL.
        (Some("send%"), named("task/%"), &[], &[]),
        (Some("' OR TRUE --"), named("\\"), &[], &[]),
    ];
    let about = About::production(&world)?;
    let worker = Some(about.worker.clone());
    let ways = [
        about.version(None, worker),
        about.version(Some(EnvironmentType::Development), None),
        about.version(Some(EnvironmentType::Production), None),
        about.version(None, None),
    ];
    for (task, queue, tasks, queues) in cases {
        for way in &ways {
            let query =
                WorkerVersionQuery { task_identifier: task.map(str::to_owned), queue: queue.clone(), ..way.clone() };
            let found = asked.resolver.resolve_worker_version(&query).await?;
            let found = found.with_context(|| format!("there is a worker, whatever it has to offer: {query:?}"))?;
            assert_eq!(found.worker.id, about.worker, "{query:?}");
            assert_eq!(found.tasks.iter().map(|task| task.slug.as_str()).collect::<Vec<_>>(), tasks, "{query:?}");
            assert_eq!(found.queues.iter().map(|queue| queue.name.as_str()).collect::<Vec<_>>(), queues, "{query:?}");
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_worker_without_tasks_and_queues_is_a_version_all_the_same() -> Result<()> {
    let (asked, world) = Asked::with_world().await?;
    let worker = build::worker(&world.development).insert(asked.rows().await?).await?;
    let about = About { environment: world.development.id.parse()?, ..About::nothing()? };
    let found = asked.resolver.resolve_worker_version(&about.version(Some(EnvironmentType::Development), None)).await?;
    let found = found.context("there is a worker")?;
    assert_eq!((found.worker.id.as_str(), found.tasks.len(), found.queues.len()), (worker.id.as_str(), 0, 0));
    let pending = asked.resolver.resolve_pending_version(&worker.id.parse()?).await?.context("there is a worker")?;
    assert_eq!((pending.task_identifiers, pending.queues), (vec![], vec![]));
    assert_eq!(pending.external_deployment_id, None);
    Ok(())
}

#[tokio::test]
async fn a_worker_of_another_environment_is_nobody() -> Result<()> {
    let (asked, world) = Asked::with_world().await?;
    let foreign = build::world(asked.rows().await?).await?;
    let about = About::production(&world)?;
    for kind in ANY {
        for worker in [&foreign.worker, &build::worker(&world.development).insert(asked.rows().await?).await?] {
            let query = about.version(*kind, Some(worker.id.parse()?));
            assert_eq!(asked.resolver.resolve_worker_version(&query).await?, None, "{kind:?}");
        }
    }
    // A label of this environment on a deployment of another is of no use either.
    let foreign = &foreign.deployment.id;
    asked.sql(&format!("UPDATE worker_deployment_promotion SET deployment_id = '{foreign}'")).await?;
    let query = about.version(Some(EnvironmentType::Production), None);
    assert_eq!(asked.resolver.resolve_worker_version(&query).await?, None);
    Ok(())
}

/// The id of the worker that is promoted. Whether the kind of its environment is known makes no difference.
async fn promoted(resolver: &dyn ControlPlaneResolver, about: &About) -> Result<Option<String>> {
    let of_kind = resolver.resolve_worker_version(&about.version(Some(EnvironmentType::Production), None)).await?;
    let of_any = resolver.resolve_worker_version(&about.version(None, None)).await?;
    assert_eq!(of_kind, of_any);
    Ok(of_kind.map(|version| version.worker.id.to_string()))
}

#[tokio::test]
async fn a_promotion_and_a_rollback_are_seen_by_the_very_next_call() -> Result<()> {
    let (asked, world) = Asked::with_world().await?;
    let rows = asked.rows().await?;
    let about = About::production(&world)?;
    let next = build::worker(&world.production).insert(rows).await?;
    let deployed = build::deployment(&next).insert(rows).await?;
    let promote = async |deployment: &str| {
        asked.sql(&format!("UPDATE worker_deployment_promotion SET deployment_id = '{deployment}'")).await
    };
    for _ in 0..3 {
        assert_eq!(promoted(&asked.resolver, &about).await?.as_ref(), Some(&world.worker.id));
        promote(&deployed.id).await?;
        assert_eq!(promoted(&asked.resolver, &about).await?.as_ref(), Some(&next.id), "it was promoted");
        promote(&world.deployment.id).await?;
    }
    asked.sql("DELETE FROM worker_deployment_promotion").await?;
    assert_eq!(promoted(&asked.resolver, &about).await?, None, "nothing is promoted any more");
    Ok(())
}

#[tokio::test]
async fn what_runs_wait_for_is_answered_as_its_rows_are() -> Result<()> {
    let (asked, world) = Asked::with_world().await?;
    // What belongs to others is not the worker's.
    let other = build::world(asked.rows().await?).await?;
    asked
        .sql(&format!("UPDATE worker_deployment SET external_id = 'ours' WHERE id = '{}'", world.deployment.id))
        .await?;
    let texts = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>();
    let expected = |world: &World, external: Option<&str>| -> Result<PendingVersion> {
        Ok(PendingVersion {
            worker: world.worker.id.parse()?,
            environment: Environment {
                id: world.production.id.parse()?,
                kind: EnvironmentType::Production,
                project: world.project.id.parse()?,
                organization: world.organization.id.parse()?,
            },
            archived_at: None,
            task_identifiers: texts(&["resize-image", "send-email", "sync-inventory"]),
            queues: texts(&["shared", "task/resize-image", "task/send-email", "task/sync-inventory"]),
            external_deployment_id: external.map(str::to_owned),
        })
    };
    for (world, external) in [(&world, Some("ours")), (&other, None)] {
        let found = asked.resolver.resolve_pending_version(&world.worker.id.parse()?).await?;
        assert_eq!(found, Some(expected(world, external)?));
    }
    Ok(())
}
