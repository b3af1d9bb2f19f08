//! The enum types of the run tables. The order of the labels is the same in both databases.

use crate::ddl::Enumeration;

pub(crate) const ENUMS: &[Enumeration] = &[
    Enumeration { name: "runtime_environment_type", labels: &["PRODUCTION", "STAGING", "DEVELOPMENT", "PREVIEW"] },
    Enumeration {
        name: "task_run_status",
        labels: &[
            "DELAYED",
            "PENDING",
            "PENDING_VERSION",
            "WAITING_FOR_DEPLOY",
            "DEQUEUED",
            "EXECUTING",
            "WAITING_TO_RESUME",
            "RETRYING_AFTER_FAILURE",
            "PAUSED",
            "CANCELED",
            "INTERRUPTED",
            "COMPLETED_SUCCESSFULLY",
            "COMPLETED_WITH_ERRORS",
            "SYSTEM_FAILURE",
            "CRASHED",
            "EXPIRED",
            "TIMED_OUT",
        ],
    },
    Enumeration { name: "run_engine_version", labels: &["V1", "V2"] },
    Enumeration {
        name: "task_run_execution_status",
        labels: &[
            "RUN_CREATED",
            "DELAYED",
            "QUEUED",
            "QUEUED_EXECUTING",
            "PENDING_EXECUTING",
            "EXECUTING",
            "EXECUTING_WITH_WAITPOINTS",
            "SUSPENDED",
            "PENDING_CANCEL",
            "FINISHED",
        ],
    },
    Enumeration { name: "task_run_checkpoint_type", labels: &["DOCKER", "KUBERNETES", "COMPUTE"] },
    Enumeration { name: "waitpoint_type", labels: &["RUN", "DATETIME", "MANUAL", "BATCH"] },
    Enumeration { name: "waitpoint_status", labels: &["PENDING", "COMPLETED"] },
    Enumeration {
        name: "task_run_attempt_status",
        labels: &["PENDING", "EXECUTING", "PAUSED", "FAILED", "CANCELED", "COMPLETED"],
    },
    Enumeration {
        name: "batch_task_run_status",
        labels: &["PENDING", "PROCESSING", "COMPLETED", "PARTIAL_FAILED", "ABORTED"],
    },
    Enumeration { name: "batch_task_run_item_status", labels: &["PENDING", "FAILED", "CANCELED", "COMPLETED"] },
    Enumeration { name: "checkpoint_type", labels: &["DOCKER", "KUBERNETES"] },
    Enumeration { name: "checkpoint_restore_event_type", labels: &["CHECKPOINT", "RESTORE"] },
];
