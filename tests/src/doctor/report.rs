//! What the doctor found, for people and for programs.

use std::fmt;

use comfy_table::{ContentArrangement, Table, presets::UTF8_FULL_CONDENSED};
use serde_json::{Value as Json, json};

/// How wide the table is, in characters.
const WIDTH: u16 = 160;

/// Details that are told one by one in the table.
const TOLD: usize = 30;

/// How a check came out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verdict {
    /// As it should be.
    Passed,
    /// It works; with the setting that is advised it works better.
    Advised,
    /// It works now, and somebody should look at it.
    Warned,
    /// Not as it should be: the store must not run so, or cannot.
    Failed,
    /// There is nothing to look at, or another check has failed that it rests on.
    NotDone,
}

impl Verdict {
    const ALL: [Verdict; 5] = [Verdict::Passed, Verdict::Advised, Verdict::Warned, Verdict::Failed, Verdict::NotDone];

    fn word(self) -> &'static str {
        match self {
            Verdict::Passed => "passed",
            Verdict::Advised => "advised",
            Verdict::Warned => "warned",
            Verdict::Failed => "FAILED",
            Verdict::NotDone => "not done",
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.word())
    }
}

/// One check of one server, or of all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// What was looked at.
    pub check: String,
    /// The configuration key of the server; none if it is about several.
    pub about: Option<&'static str>,
    /// How it came out.
    pub verdict: Verdict,
    /// What was seen.
    pub evidence: String,
    /// What was seen one by one, where it is many things.
    pub details: Vec<String>,
    /// What to do; empty if nothing.
    pub advice: String,
}

impl Finding {
    /// A check that came out so, with nothing to do.
    pub(super) fn new(check: &str, about: Option<&'static str>, verdict: Verdict, evidence: impl Into<String>) -> Self {
        let (check, evidence) = (check.to_owned(), evidence.into());
        Finding { check, about, verdict, evidence, details: Vec::new(), advice: String::new() }
    }

    /// With what to do.
    pub(super) fn advising(self, advice: impl Into<String>) -> Self {
        Finding { advice: advice.into(), ..self }
    }

    /// With what was seen one by one.
    pub(super) fn listing(self, details: Vec<String>) -> Self {
        Finding { details, ..self }
    }

    fn shown_evidence(&self) -> String {
        let mut shown = self.evidence.clone();
        for detail in self.details.iter().take(TOLD) {
            shown.push_str("\n  ");
            shown.push_str(detail);
        }
        if self.details.len() > TOLD {
            shown.push_str(&format!("\n  … and {} more, which --json lists", self.details.len() - TOLD));
        }
        shown
    }

    fn to_json(&self) -> Json {
        json!({
            "check": self.check,
            "about": self.about,
            "verdict": self.verdict.word().to_lowercase(),
            "evidence": self.evidence,
            "details": self.details,
            "advice": (!self.advice.is_empty()).then_some(&self.advice),
        })
    }
}

/// All findings, in the order in which they are told.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Every check that there is.
    pub findings: Vec<Finding>,
}

impl Report {
    /// Whether no check has failed. Warnings are no failures.
    #[must_use]
    pub fn is_success(&self) -> bool {
        self.findings.iter().all(|finding| finding.verdict != Verdict::Failed)
    }

    /// Everything, for programs.
    #[must_use]
    pub fn to_json(&self) -> Json {
        let findings: Vec<Json> = self.findings.iter().map(Finding::to_json).collect();
        json!({ "checks": findings, "success": self.is_success() })
    }

    fn count(&self, verdict: Verdict) -> usize {
        self.findings.iter().filter(|finding| finding.verdict == verdict).count()
    }
}

/// A table of all findings, and how many came out how.
impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut table = Table::new();
        table
            .load_style(UTF8_FULL_CONDENSED)
            .set_content_arrangement(ContentArrangement::Dynamic)
            .set_width(WIDTH)
            .set_header(["check", "about", "verdict", "evidence", "what to do"]);
        for finding in &self.findings {
            table.add_row([
                finding.check.clone(),
                finding.about.unwrap_or("all").to_owned(),
                finding.verdict.to_string(),
                finding.shown_evidence(),
                finding.advice.clone(),
            ]);
        }
        let counts: Vec<String> = Verdict::ALL
            .iter()
            .map(|verdict| format!("{} {}", self.count(*verdict), verdict.word().to_lowercase()))
            .collect();
        write!(f, "{table}\ndoctor: {}", counts.join(", "))
    }
}
