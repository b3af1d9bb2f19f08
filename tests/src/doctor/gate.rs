//! What the store finds out about its databases before it opens them.

use store::topology::{
    CONTROL_PLANE_CACHE_TTL_MS, CONTROL_PLANE_DIRECT_URL, Check, CheckName, GateReport, RUN_OPS_MINT_GRACE_MS,
    Verdict as Found,
};

use super::report::{Finding, Verdict};

/// One finding for each check of the gate.
pub(super) fn findings(report: &GateReport) -> Vec<Finding> {
    report.checks.iter().map(finding).collect()
}

fn finding(check: &Check) -> Finding {
    let about = match check.name {
        CheckName::DirectAddress => Some(CONTROL_PLANE_DIRECT_URL),
        _ => check.about.map(|endpoint| endpoint.key()),
    };
    let told = |verdict, evidence: &str| Finding::new(&check.name.to_string(), about, verdict, evidence);
    match &check.verdict {
        Found::Passed => told(Verdict::Passed, &check.evidence),
        Found::Warned => told(Verdict::Warned, &check.evidence).advising(remedy(check.name)),
        Found::Failed(error) => told(Verdict::Failed, &check.evidence).advising(error.to_string()),
        Found::NotDone(reason) => told(Verdict::NotDone, reason),
    }
}

/// What to do about a warning; a failure says it itself.
fn remedy(check: CheckName) -> String {
    match check {
        CheckName::Replica => "leave it at that, or name a replica to take those reads off the primary".to_owned(),
        CheckName::MintGrace => format!("raise {RUN_OPS_MINT_GRACE_MS}, or lower {CONTROL_PLANE_CACHE_TTL_MS}"),
        _ => String::new(),
    }
}
