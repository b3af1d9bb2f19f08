//! The enum types that only control-plane tables use.

use crate::ddl::Enumeration;

pub(crate) const ENUMS: &[Enumeration] = &[
    Enumeration { name: "environment_pause_source", labels: &["BILLING_LIMIT"] },
    Enumeration { name: "org_member_role", labels: &["ADMIN", "MEMBER"] },
    Enumeration { name: "task_trigger_source", labels: &["STANDARD", "SCHEDULED", "AGENT", "WEBHOOK"] },
    Enumeration { name: "task_queue_type", labels: &["VIRTUAL", "NAMED"] },
    Enumeration { name: "task_queue_version", labels: &["V1", "V2"] },
    Enumeration { name: "worker_deployment_type", labels: &["MANAGED", "UNMANAGED", "V1"] },
    Enumeration {
        name: "worker_deployment_status",
        labels: &["PENDING", "INSTALLING", "BUILDING", "DEPLOYING", "DEPLOYED", "FAILED", "CANCELED", "TIMED_OUT"],
    },
    Enumeration { name: "worker_instance_group_type", labels: &["MANAGED", "UNMANAGED"] },
    Enumeration { name: "workload_type", labels: &["CONTAINER", "MICROVM"] },
];
