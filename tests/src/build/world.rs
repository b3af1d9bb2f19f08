//! Everything on the control plane that a run needs, in one call.

use anyhow::Result;
use entities_control::{
    background_worker, background_worker_task, org_member, organization, project, runtime_environment, task_queue,
    user, worker_deployment, worker_deployment_promotion, worker_instance_group,
};
use sea_orm::ConnectionTrait;

use super::rows;

/// The tasks that [`world`] registers, each with a queue of its own.
const TASKS: [&str; 3] = ["send-email", "resize-image", "sync-inventory"];

/// One organization with a project, two environments, and a worker that is deployed to production.
#[derive(Clone, Debug)]
pub struct World {
    /// The organization.
    pub organization: organization::Model,
    /// A person in it.
    pub user: user::Model,
    /// That person's membership.
    pub member: org_member::Model,
    /// The platform's machines; the project's default group.
    pub worker_group: worker_instance_group::Model,
    /// The project.
    pub project: project::Model,
    /// Its production environment.
    pub production: runtime_environment::Model,
    /// The person's own environment.
    pub development: runtime_environment::Model,
    /// A worker of the production environment.
    pub worker: background_worker::Model,
    /// The worker's tasks: `send-email`, `resize-image` and `sync-inventory`.
    pub tasks: Vec<background_worker_task::Model>,
    /// The queues it serves: one per task, in the same order, and `shared`.
    pub queues: Vec<task_queue::Model>,
    /// The deployment of the worker.
    pub deployment: worker_deployment::Model,
    /// What makes it the current one.
    pub promotion: worker_deployment_promotion::Model,
}

/// Inserts a [`World`]. Every call makes another one; they do not get in each other's way.
///
/// # Errors
/// If the database refuses a row.
pub async fn world(db: &impl ConnectionTrait) -> Result<World> {
    let organization = rows::organization().insert(db).await?;
    let user = rows::user().insert(db).await?;
    let member = rows::member(&organization, &user).admin().insert(db).await?;
    let worker_group = rows::worker_group().insert(db).await?;
    let project = rows::project(&organization).default_worker_group(&worker_group).insert(db).await?;
    let production = rows::environment(&organization, &project).production().insert(db).await?;
    let development = rows::environment(&organization, &project).development(&member).insert(db).await?;

    let worker = rows::worker(&production).insert(db).await?;
    let (mut tasks, mut queues) = (Vec::new(), Vec::new());
    for slug in TASKS {
        let queue = rows::queue(&production, &format!("task/{slug}")).insert(db).await?;
        tasks.push(rows::task(&worker, slug).on(&queue).insert(db).await?);
        queues.push(queue);
    }
    queues.push(rows::queue(&production, "shared").limited_to(5).insert(db).await?);
    for queue in &queues {
        rows::serves(&worker, queue).insert(db).await?;
    }
    let deployment = rows::deployment(&worker).insert(db).await?;
    let promotion = rows::promotion(&deployment).insert(db).await?;

    Ok(World {
        organization,
        user,
        member,
        worker_group,
        project,
        production,
        development,
        worker,
        tasks,
        queues,
        deployment,
        promotion,
    })
}
