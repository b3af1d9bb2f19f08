//! What the answers of several databases become: exactly what one database would have answered.

use std::collections::{HashMap, HashSet};

use crate::error::{Change, Result, StoreError};
use crate::find::Order;
use crate::ids::WaitpointId;
use crate::pages::{Copied, Cursor, Page};
use crate::projection::{Listed, compare};
use crate::snapshots::{CompletedLinks, Presence};
use crate::transitions::BatchExpiry;

/// The first answer that is there. Answers come in the order of precedence.
pub(super) fn first<T>(answers: Vec<Option<T>>) -> Option<T> {
    answers.into_iter().flatten().next()
}

/// What became of a write that several databases were told to make, each by itself.
pub(super) struct Written<T> {
    /// What those have answered that have made it.
    pub(super) done: Vec<T>,
    /// The first fault. It says that nothing was written only if that holds for all of them.
    pub(super) fault: Option<StoreError>,
}

/// What the answers to a write amount to. `has_changed` tells whether a database has written anything.
///
/// It takes answers, not futures: all databases have to be waited for, also when one has failed. A write that is dropped
/// half-way may be applied all the same, and nobody could say what it left.
pub(super) fn written<T>(answers: Vec<Result<T>>, has_changed: impl Fn(&T) -> bool) -> Written<T> {
    let has_left = |answer: &Result<T>| match answer {
        Ok(done) => has_changed(done),
        Err(error) => error.change() == Change::Unknown,
    };
    let anything = answers.iter().any(has_left);
    let (mut done, mut fault) = (Vec::with_capacity(answers.len()), None);
    for answer in answers {
        match answer {
            Ok(answer) => done.push(answer),
            Err(error) => fault = fault.or(Some(error)),
        }
    }
    Written { done, fault: fault.map(|error: StoreError| error.after_a_change_if(anything)) }
}

impl<T> Written<T> {
    /// What was answered, if all have answered.
    pub(super) fn by_all(self) -> Result<Vec<T>> {
        self.fault.map_or(Ok(self.done), Err)
    }
}

/// How many rows a write has changed, everywhere.
pub(super) fn changed(answers: Vec<Result<u64>>) -> Result<u64> {
    Ok(written(answers, |changed| *changed > 0).by_all()?.into_iter().sum())
}

/// A row, and the place of its database in the order of precedence.
struct Ranked<R> {
    rank: usize,
    row: R,
    /// Whether no row before it in precedence has its id or its name.
    counts: bool,
}

/// All rows in order, those that give way to others at hand among them.
///
/// Answers come in the order of precedence: of two rows with one id, or one name, the earlier one counts.
fn ranked<R: Listed>(order: &[Order<R::By>], answers: Vec<Vec<R>>) -> Vec<Ranked<R>> {
    let (mut ids, mut names) = (HashSet::new(), HashSet::new());
    let all = answers.into_iter().enumerate().flat_map(|(rank, rows)| rows.into_iter().map(move |row| (rank, row)));
    let ranked = all.map(|(rank, row)| {
        let counts = ids.insert(row.id().to_owned()) & names.insert(row.name().to_owned());
        Ranked { rank, row, counts }
    });
    let mut rows: Vec<Ranked<R>> = ranked.collect();
    rows.sort_by(|left, right| compare(order, &left.row, &right.row));
    rows
}

/// Rows of several databases, while they are being made one list.
///
/// What gives way is taken out after it was decided how far the list is known, never before: each database has given a
/// number of rows, and what it has not given comes after *these*, whether they count or not.
pub(super) struct Merged<R> {
    rows: Vec<Ranked<R>>,
    next: Option<Cursor>,
    /// The ranks of the databases that may have copies which are not at hand.
    unseen: Vec<usize>,
}

impl<R: Listed> Merged<R> {
    /// The first rows of all pages, which begin at one place and come in the order of precedence.
    ///
    /// What a page does not show comes after all that it shows, so no row that is not at hand belongs before one that
    /// is kept.
    pub(super) fn page(order: &[Order<R::By>], limit: usize, pages: Vec<Page<R>>) -> Self {
        let goes_on = pages.iter().any(|page| page.next.is_some());
        // A copy may be on an earlier page, or not match the filter.
        let unseen = (0..pages.len()).collect();
        let mut rows = ranked(order, pages.into_iter().map(|page| page.rows).collect());
        let goes_on = goes_on || rows.len() > limit;
        rows.truncate(limit);
        let next = rows.last().filter(|_| goes_on).map(|last| Cursor::at(order, &last.row));
        rows.retain(|ranked| ranked.counts);
        Self { rows, next, unseen }
    }

    /// Out of the leading rows of every database, those of which it is known that none comes between them. Each was
    /// asked for at most `asked`.
    pub(super) fn leading(order: &[Order<R::By>], asked: Option<u32>, answers: Vec<Vec<R>>) -> Self {
        let is_full = |rows: &Vec<R>| asked.is_some_and(|asked| rows.len() >= asked as usize);
        let full = answers.iter().enumerate().filter(|(_, rows)| is_full(rows));
        let unseen: Vec<usize> = full.map(|(rank, _)| rank).collect();
        let mut rows = ranked(order, answers);
        let end = |rank: &usize| rows.iter().rposition(|ranked| ranked.rank == *rank).map_or(0, |last| last + 1);
        let known = unseen.iter().map(end).min().unwrap_or(rows.len());
        rows.truncate(known);
        rows.retain(|ranked| ranked.counts);
        Self { rows, next: None, unseen }
    }

    /// The ranks of the databases that may have copies of the rows, and the ids and names of those rows.
    pub(super) fn questions(&self) -> impl Iterator<Item = (usize, Vec<String>, Vec<String>)> {
        let questions = self.unseen.iter().map(|rank| {
            let below = self.rows.iter().filter(|ranked| ranked.rank > *rank);
            let (ids, names) = below.map(|Ranked { row, .. }| (row.id().to_owned(), row.name().to_owned())).unzip();
            (*rank, ids, names)
        });
        questions.filter(|(_, ids, _): &(usize, Vec<String>, Vec<String>)| !ids.is_empty())
    }

    /// Takes out the rows of which the database of this rank has copies.
    pub(super) fn give_way(&mut self, rank: usize, copies: &[Copied]) {
        let ids: HashSet<&str> = copies.iter().map(|copy| copy.id.as_str()).collect();
        let names: HashSet<&str> = copies.iter().map(|copy| copy.name.as_str()).collect();
        self.rows.retain(|ranked| {
            ranked.rank <= rank || !(ids.contains(ranked.row.id()) || names.contains(ranked.row.name()))
        });
    }

    pub(super) fn into_page(self) -> Page<R> {
        Page { rows: self.rows.into_iter().map(|ranked| ranked.row).collect(), next: self.next }
    }

    /// So many rows after so many; `None` if more have to be read for that.
    pub(super) fn into_rows(self, limit: Option<u32>, offset: u32) -> Option<Vec<R>> {
        let limit = limit.map_or(usize::MAX, |limit| limit as usize);
        let wanted = limit.saturating_add(offset as usize);
        let enough = self.unseen.is_empty() || self.rows.len() >= wanted;
        let rows = self.rows.into_iter().skip(offset as usize).take(limit).map(|ranked| ranked.row);
        enough.then(|| rows.collect())
    }
}

/// All that was expired, everywhere. Answers come in the order of the ids that they are about.
pub(super) fn expiries(answers: Vec<BatchExpiry>) -> BatchExpiry {
    let mut sum = BatchExpiry::default();
    answers.into_iter().for_each(|answer| sum.absorb(answer));
    sum
}

/// What was found by id. Answers come in the order of precedence: of two with one id the earlier one stays.
pub(super) fn by_id<T>(answers: Vec<HashMap<WaitpointId, T>>) -> HashMap<WaitpointId, T> {
    let mut found = HashMap::new();
    for (id, row) in answers.into_iter().flatten() {
        found.entry(id).or_insert(row);
    }
    found
}

/// All that is in any answer, each once, in order.
pub(super) fn distinct<T: Ord>(answers: Vec<Vec<T>>) -> Vec<T> {
    let mut all: Vec<T> = answers.into_iter().flatten().collect();
    all.sort_unstable();
    all.dedup();
    all
}

/// The links that any database has; the snapshot was seen if any has seen it.
pub(super) fn links(answers: Vec<CompletedLinks>) -> CompletedLinks {
    let seen = answers.iter().any(|answer| answer.presence == Presence::Seen);
    let presence = if seen { Presence::Seen } else { Presence::NotSeen };
    CompletedLinks { presence, waitpoints: distinct(answers.into_iter().map(|answer| answer.waitpoints).collect()) }
}
