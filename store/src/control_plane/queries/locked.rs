//! What runs were locked to.

use std::collections::HashMap;
use std::sync::Arc;

use sea_orm::DbErr;

use super::refuse;
use crate::control_plane::{
    Answer, LockedDeployment, LockedTask, LockedTaskWorker, LockedVersion, LockedWorker, LockedWorkerKey, Subject,
    SubjectKind,
};
use crate::error::Result;
use crate::ids::{WorkerId, WorkerTaskId};
use crate::postgres::{Columns, Database, Row, text_array, within};
use crate::read::Read;
use crate::runs::CHUNK;

/// One row for each pair of a task and a worker version. No id is empty, so an empty text finds nothing.
const LOCKED: &str = "SELECT asked.version,
    task.id, task.slug, task.file_path, task.export_name, task.machine_config,
    worker.id, worker.version, worker.sdk_version, worker.cli_version, worker.supports_lazy_attempts,
    deployment.friendly_id, deployment.short_code, deployment.version, deployment.runtime, deployment.runtime_version,
    deployment.git,
    version.version, version.sdk_version, version.runtime, version.runtime_version, version.supports_lazy_attempts
FROM unnest($1::text[], $2::text[]) AS asked (task, version)
LEFT JOIN background_worker_task AS task ON task.id = asked.task
LEFT JOIN background_worker AS worker ON worker.id = task.worker_id
LEFT JOIN worker_deployment AS deployment ON deployment.worker_id = worker.id
LEFT JOIN background_worker AS version ON version.id = asked.version";

pub(super) async fn locked_worker(
    database: &Database,
    read: Read,
    key: &LockedWorkerKey,
) -> Result<Answer<Arc<LockedWorker>>> {
    let task = key.locked_by.as_ref().map_or("", WorkerTaskId::as_str).to_owned();
    let version = key.locked_to_version.as_ref().map_or("", WorkerId::as_str).to_owned();
    let values = [text_array(vec![task]), text_array(vec![version])];
    let found = database.ask::<Found>("resolve_run_locked_worker", read, LOCKED, values).await?.pop();
    Ok(answer(key, found.map_or_else(LockedWorker::default, |found| found.locked)))
}

pub(super) async fn locked_versions(
    database: &Database,
    read: Read,
    versions: &[WorkerId],
) -> Result<HashMap<WorkerId, Answer<Arc<LockedWorker>>>> {
    let operation = "resolve_run_locked_workers";
    within("versions", versions.len()).map_err(refuse(operation))?;
    let mut versions: Vec<&WorkerId> = versions.iter().collect();
    versions.sort_unstable();
    versions.dedup();
    let mut answers = HashMap::with_capacity(versions.len());
    for chunk in versions.chunks(CHUNK) {
        let tasks = vec![String::new(); chunk.len()];
        let asked = chunk.iter().map(|version| version.as_str().to_owned()).collect();
        let found = database.ask::<Found>(operation, read, LOCKED, [text_array(tasks), text_array(asked)]).await?;
        answers.extend(found.into_iter().map(|Found { version, locked }| {
            let key = LockedWorkerKey { locked_by: None, locked_to_version: Some(version.clone()) };
            (version, answer(&key, locked))
        }));
    }
    Ok(answers)
}

/// The answer to a key, whichever way it was asked for: one that is kept for one way has to serve the other.
fn answer(key: &LockedWorkerKey, locked: LockedWorker) -> Answer<Arc<LockedWorker>> {
    let mut about = Vec::new();
    if let Some(task) = &key.locked_by {
        about.push(Subject::new(SubjectKind::WorkerTask, task.as_str()));
    }
    if let Some(task) = &locked.locked_by {
        about.push(Subject::new(SubjectKind::Worker, task.worker.id.as_str()));
        about.push(Subject::new(SubjectKind::Deployment, task.worker.id.as_str()));
    }
    if let Some(version) = &key.locked_to_version {
        let version = Subject::new(SubjectKind::Worker, version.as_str());
        if !about.contains(&version) {
            about.push(version);
        }
    }
    Answer { value: Some(Arc::new(locked)), about }
}

/// What there is of one pair.
struct Found {
    version: WorkerId,
    locked: LockedWorker,
}

impl Row for Found {
    const WIDTH: usize = 1 + LockedTask::WIDTH + LockedVersion::WIDTH;

    fn read(columns: &mut Columns<'_>) -> Result<Self, DbErr> {
        Ok(Self {
            version: WorkerId::stored(columns.value()?),
            locked: LockedWorker { locked_by: columns.joined()?, locked_to_version: columns.joined()? },
        })
    }
}

impl Row for LockedTask {
    const WIDTH: usize = 5 + LockedTaskWorker::WIDTH;

    fn read(columns: &mut Columns<'_>) -> Result<Self, DbErr> {
        Ok(Self {
            id: WorkerTaskId::stored(columns.value()?),
            slug: columns.value()?,
            file_path: columns.value()?,
            export_name: columns.value()?,
            machine_config: columns.value()?,
            worker: LockedTaskWorker::read(columns)?,
        })
    }
}

impl Row for LockedTaskWorker {
    const WIDTH: usize = 5 + LockedDeployment::WIDTH;

    fn read(columns: &mut Columns<'_>) -> Result<Self, DbErr> {
        Ok(Self {
            id: WorkerId::stored(columns.value()?),
            version: columns.value()?,
            sdk_version: columns.value()?,
            cli_version: columns.value()?,
            supports_lazy_attempts: columns.value()?,
            deployment: columns.joined()?,
        })
    }
}

impl Row for LockedDeployment {
    const WIDTH: usize = 6;

    fn read(columns: &mut Columns<'_>) -> Result<Self, DbErr> {
        Ok(Self {
            friendly_id: columns.value()?,
            short_code: columns.value()?,
            version: columns.value()?,
            runtime: columns.value()?,
            runtime_version: columns.value()?,
            git: columns.value()?,
        })
    }
}

impl Row for LockedVersion {
    const WIDTH: usize = 5;

    fn read(columns: &mut Columns<'_>) -> Result<Self, DbErr> {
        Ok(Self {
            version: columns.value()?,
            sdk_version: columns.value()?,
            runtime: columns.value()?,
            runtime_version: columns.value()?,
            supports_lazy_attempts: columns.value()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_run_was_locked_to_depends_on_what_it_names_and_on_what_that_leads_to() {
        let task = LockedTask {
            id: WorkerTaskId::stored("task"),
            slug: String::new(),
            file_path: String::new(),
            export_name: None,
            machine_config: None,
            worker: LockedTaskWorker {
                id: WorkerId::stored("worker"),
                version: String::new(),
                sdk_version: String::new(),
                cli_version: String::new(),
                supports_lazy_attempts: false,
                deployment: None,
            },
        };
        let (named, of_worker, of_deployment, other) = (
            (SubjectKind::WorkerTask, "task"),
            (SubjectKind::Worker, "worker"),
            (SubjectKind::Deployment, "worker"),
            (SubjectKind::Worker, "other"),
        );
        type Case<'a> = (Option<&'a str>, Option<&'a str>, Option<LockedTask>, Vec<(SubjectKind, &'a str)>);
        let cases: [Case<'_>; 6] = [
            (None, None, None, vec![]),
            (None, Some("other"), None, vec![other]),
            (Some("task"), None, None, vec![named]),
            (Some("task"), Some("other"), None, vec![named, other]),
            (Some("task"), Some("other"), Some(task.clone()), vec![named, of_worker, of_deployment, other]),
            // The worker of the task is the version that is named.
            (Some("task"), Some("worker"), Some(task), vec![named, of_worker, of_deployment]),
        ];
        for (by, to, locked_by, expected) in cases {
            let key = LockedWorkerKey {
                locked_by: by.map(WorkerTaskId::stored),
                locked_to_version: to.map(WorkerId::stored),
            };
            let answer = answer(&key, LockedWorker { locked_by, locked_to_version: None });
            let expected: Vec<Subject> = expected.iter().map(|(kind, id)| Subject::new(*kind, id)).collect();
            assert_eq!(answer.about, expected, "{key:?}");
            assert!(answer.value.is_some(), "{key:?}: an unknown id is an answer without parts");
        }
    }
}
