//! All runs of both databases, in one list, page by page.

use std::collections::HashSet;

use anyhow::{Context, Result, ensure};
use store::{Cursor, ListRuns, MAX_PAGE, Read, Residency, Routable, RunFilter, RunId};

use super::{same, stage::Stage};
use crate::{
    Both,
    demo::{ledger::Ledger, slot},
};

/// Pages, unless they would be too long.
const PAGES: usize = 6;
/// Pages that are told.
const TOLD: usize = 2;

/// Lists every run there is, newest first, and asserts that each comes once and in order.
pub(super) async fn turned(stage: &Stage<'_>, ledger: &Ledger) -> Result<Vec<String>> {
    let mut lines = Vec::new();
    let limit = u32::try_from(ledger.len().div_ceil(PAGES)).unwrap_or(MAX_PAGE).clamp(1, MAX_PAGE);
    let mut missing: HashSet<RunId> = ledger.runs().map(|(id, _)| id).collect();
    let mut listed = Both::<usize>::default();
    let mut last = None;
    let (mut pages, mut cursor) = (0, None);
    loop {
        let list = ListRuns::first(RunFilter::default(), limit).after(cursor);
        let page = stage.store.list_runs(&list, Read::Primary).await?;
        pages += 1;
        let mut here = Both::<usize>::default();
        for row in &page.rows {
            let id: RunId = row.id.parse()?;
            ensure!(missing.remove(&id), "{id} is on page {pages}, and was on an earlier one or never created");
            let keys = (row.created_at, row.id.clone());
            ensure!(last.as_ref().is_none_or(|last| *last > keys), "{id} is on page {pages}, and not in its place");
            last = Some(keys);
            *slot(&mut here, id.residency()) += 1;
        }
        if pages <= TOLD {
            let Both { control_plane, run_ops } = here;
            lines.push(format!(
                "page {pages}: {control_plane} of the control plane and {run_ops} of run-ops, newest first"
            ));
        }
        listed.control_plane += here.control_plane;
        listed.run_ops += here.run_ops;
        // The text is what goes through the world.
        let Some(next) = page.next else { break };
        ensure!(page.rows.len() == limit as usize, "page {pages} is not the last and has {} runs", page.rows.len());
        let text = next.to_string();
        cursor = Some(text.parse::<Cursor>().context("a cursor does not read its own text")?);
    }
    same("runs that no page has", missing.len(), 0)?;
    let all = listed.control_plane + listed.run_ops;
    same("runs on all pages", all, ledger.len())?;
    for home in Residency::ALL {
        let made = ledger.runs().filter(|(id, _)| id.residency() == home).count();
        same("runs of one database on all pages", *slot(&mut listed, home), made)?;
    }
    lines.push(format!(
        "{pages} pages: {} listed, each once, of {} made: {} control plane, {} run-ops",
        runs(all),
        ledger.len(),
        listed.control_plane,
        listed.run_ops
    ));
    Ok(lines)
}

fn runs(count: usize) -> String {
    format!("{count} run{}", if count == 1 { "" } else { "s" })
}
