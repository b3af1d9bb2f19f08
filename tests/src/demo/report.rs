//! What a demo has to tell, for people and for programs.

use std::{collections::BTreeMap, fmt, time::Duration};

use comfy_table::{CellAlignment, Table, presets::UTF8_FULL_CONDENSED};
use serde_json::{Value as Json, json};

use super::{
    check::Check, input::Skipped, ledger::Ledger, lives::Lives, reads::Differences, routes::Count, scenes::Scenes,
};
use crate::{Both, Side, runs::side_of};

/// Findings of one kind that are told one by one.
const TOLD: usize = 20;

/// What a demo did and found.
#[derive(Clone, Debug)]
pub struct Report {
    /// Requests that were made.
    pub requests: usize,
    /// Lines that are no request.
    pub skipped: Vec<Skipped>,
    /// Lines that the store refused.
    pub refused: Vec<Skipped>,
    /// Requests that an earlier run with the same idempotency key answered.
    pub taken_keys: usize,
    /// Requests that an earlier run with the same one-time token answered.
    pub used_tokens: usize,
    /// What did not read as it was written.
    pub differences: Differences,
    /// What runs did together.
    pub scenes: Scenes,
    /// What is in the databases.
    pub check: Check,
    /// What the store said it did; [`check`](fn@super::check) takes it.
    pub ledger: Ledger,
    writes: BTreeMap<&'static str, Both<usize>>,
    effects: BTreeMap<&'static str, usize>,
    reads: BTreeMap<(&'static str, String), Count>,
    lived: Duration,
    read: Duration,
}

impl Report {
    #[expect(clippy::too_many_arguments, reason = "the parts of one report, put together in one place")]
    pub(super) fn new(
        lives: Lives,
        skipped: Vec<Skipped>,
        refused: Vec<Skipped>,
        reads: BTreeMap<(&'static str, String), Count>,
        differences: Differences,
        scenes: Scenes,
        check: Check,
        [lived, read]: [Duration; 2],
    ) -> Report {
        let Lives { ledger, requests, taken_keys, used_tokens, refused: _, writes, effects } = lives;
        Report {
            requests,
            skipped,
            refused,
            taken_keys,
            used_tokens,
            differences,
            scenes,
            check,
            ledger,
            writes,
            effects,
            reads,
            lived,
            read,
        }
    }

    /// Whether nothing is lost or misplaced, and everything reads as it was written.
    pub fn is_success(&self) -> bool {
        self.check.is_clean() && self.differences.count == 0
    }

    /// The last line: how many runs are where.
    pub fn last_line(&self) -> String {
        let Check { census, lost, misplaced, .. } = &self.check;
        format!(
            "demo: {} runs, {} control plane, {} run-ops, {} lost, {} misplaced",
            self.ledger.len(),
            census.control_plane.runs,
            census.run_ops.runs,
            lost.len(),
            misplaced.len()
        )
    }

    /// What is wrong, one finding per line, not more than can be read.
    pub fn findings(&self) -> Vec<String> {
        let Check { lost, misplaced, wrong, .. } = &self.check;
        let kinds = [
            ("lost", lost, lost.len()),
            ("misplaced", misplaced, misplaced.len()),
            ("wrong", wrong, wrong.len()),
            ("reads otherwise", &self.differences.first, self.differences.count),
        ];
        let mut findings = Vec::new();
        for (kind, all, count) in kinds {
            findings.extend(all.iter().take(TOLD).map(|finding| format!("{kind}: {finding}")));
            let told = all.len().min(TOLD);
            if count > told {
                findings.push(format!("{kind}: … and {} more", count - told));
            }
        }
        findings
    }

    /// Everything, for programs.
    pub fn to_json(&self) -> Json {
        let both = |both: &Both<usize>| json!({ "control_plane": both.control_plane, "run_ops": both.run_ops });
        let lines = |lines: &[Skipped]| -> Vec<Json> {
            lines.iter().map(|skipped| json!({ "line": skipped.line, "reason": skipped.reason })).collect()
        };
        let census = |side| {
            let census = self.check.census.get(side);
            let statuses: serde_json::Map<String, Json> =
                census.statuses.iter().map(|(status, count)| (status.clone(), json!(count))).collect();
            json!({
                "runs": census.runs,
                "snapshots": census.snapshots,
                "waitpoints": census.waitpoints,
                "statuses": statuses,
            })
        };
        let writes: Vec<Json> = self
            .writes
            .iter()
            .map(|(operation, counts)| json!({ "operation": operation, "runs": both(counts) }))
            .collect();
        let reads: Vec<Json> = self
            .reads
            .iter()
            .map(|((operation, route), count)| {
                json!({
                    "operation": operation,
                    "route": route,
                    "calls": count.calls,
                    "rows": both(&count.rows),
                    "misses": count.misses,
                })
            })
            .collect();
        json!({
            "requests": {
                "made": self.requests,
                "idempotency_key_taken": self.taken_keys,
                "one_time_token_used": self.used_tokens,
                "skipped_lines": lines(&self.skipped),
                "refused_lines": lines(&self.refused),
            },
            "runs": self.ledger.len(),
            "control_plane": census(Side::ControlPlane),
            "run_ops": census(Side::RunOps),
            "writes": writes,
            "effects": self.effects,
            "reads": reads,
            "scenes": self.scenes.to_json(),
            "differences": { "count": self.differences.count, "first": self.differences.first },
            "lost": self.check.lost,
            "misplaced": self.check.misplaced,
            "wrong": self.check.wrong,
            "seconds": { "creating_and_living": self.lived.as_secs_f64(), "reading_back": self.read.as_secs_f64() },
            "success": self.is_success(),
        })
    }

    fn requests(&self) -> String {
        let mut text =
            format!("{}, {} created", counted(self.requests, "request"), counted(self.ledger.of_requests(), "run"));
        let others = [
            (self.taken_keys, "request", "answered by an earlier run with the same idempotency key"),
            (self.used_tokens, "request", "answered by an earlier run with the same one-time token"),
            (self.refused.len(), "line", "refused"),
            (self.skipped.len(), "line", "skipped"),
        ];
        for (count, what, how) in others.into_iter().filter(|(count, ..)| *count > 0) {
            text.push_str(&format!("\n{} {how}", counted(count, what)));
        }
        text
    }

    fn plays(&self) -> String {
        let scenes = self.scenes.played.iter().map(|scene| {
            let lines: String = scene.lines.iter().map(|line| format!("\n  - {line}")).collect();
            format!("{}{lines}", scene.title)
        });
        scenes.collect::<Vec<String>>().join("\n")
    }

    fn cast(&self) -> Table {
        let mut table = Table::new();
        table.load_style(UTF8_FULL_CONDENSED).set_header(["run", "database", "states it went through"]);
        for role in &self.scenes.cast {
            table.add_row([role.name.clone(), side_of(role.home).to_string(), role.journey()]);
        }
        table
    }

    fn places(&self) -> Table {
        let mut table = table(["database", "runs", "snapshots", "waitpoints"]);
        for side in Side::ALL {
            let census = self.check.census.get(side);
            table.add_row([
                side.to_string(),
                census.runs.to_string(),
                census.snapshots.to_string(),
                census.waitpoints.to_string(),
            ]);
        }
        table
    }

    fn states(&self) -> Table {
        let mut table = table(["status", "control plane", "run-ops", "together"]);
        let mut rows: BTreeMap<&str, Both<usize>> = BTreeMap::new();
        for (status, count) in &self.check.census.control_plane.statuses {
            rows.entry(status).or_default().control_plane = *count;
        }
        for (status, count) in &self.check.census.run_ops.statuses {
            rows.entry(status).or_default().run_ops = *count;
        }
        for (status, Both { control_plane, run_ops }) in rows {
            table.add_row([
                status.to_owned(),
                control_plane.to_string(),
                run_ops.to_string(),
                (control_plane + run_ops).to_string(),
            ]);
        }
        table
    }

    fn writing(&self) -> Table {
        let mut table = table(["write", "control plane", "run-ops"]);
        for (operation, Both { control_plane, run_ops }) in &self.writes {
            table.add_row([(*operation).to_owned(), control_plane.to_string(), run_ops.to_string()]);
        }
        table
    }

    fn asking(&self) -> Table {
        let mut table = table(["effect to carry out", "times"]);
        for (effect, count) in &self.effects {
            table.add_row([(*effect).to_owned(), count.to_string()]);
        }
        table
    }

    fn reading(&self) -> Table {
        let mut table = Table::new();
        table.load_style(UTF8_FULL_CONDENSED).set_header([
            "read",
            "route",
            "calls",
            "rows from control plane",
            "rows from run-ops",
            "misses",
        ]);
        align(&mut table, 2);
        for ((operation, route), Count { calls, rows, misses }) in &self.reads {
            table.add_row([
                (*operation).to_owned(),
                route.clone(),
                calls.to_string(),
                rows.control_plane.to_string(),
                rows.run_ops.to_string(),
                misses.to_string(),
            ]);
        }
        table
    }
}

/// The tables, without the last line.
impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}\n", self.requests())?;
        writeln!(f, "What lives where\n{}\n", self.places())?;
        writeln!(f, "In which state\n{}\n", self.states())?;
        writeln!(f, "What was written\n{}\n", self.writing())?;
        writeln!(f, "What the writes asked for\n{}\n", self.asking())?;
        writeln!(f, "How reads were routed\n{}\n", self.reading())?;
        writeln!(f, "Scenes, {} created\n", counted(self.ledger.of_scenes(), "run"))?;
        writeln!(f, "{}\n", self.plays())?;
        writeln!(f, "What the runs of the scenes went through\n{}\n", self.cast())?;
        writeln!(
            f,
            "Creating and living took {:.1} s, reading back {:.1} s.",
            self.lived.as_secs_f64(),
            self.read.as_secs_f64()
        )
    }
}

fn table<const N: usize>(header: [&str; N]) -> Table {
    let mut table = Table::new();
    table.load_style(UTF8_FULL_CONDENSED).set_header(header);
    align(&mut table, 1);
    table
}

/// `1 line`, `2 lines`.
fn counted(count: usize, what: &str) -> String {
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}

/// Numbers stand on the right.
fn align(table: &mut Table, texts: usize) {
    for column in table.column_iter_mut().skip(texts) {
        column.set_cell_alignment(CellAlignment::Right);
    }
}
