//! What the answers of several databases become: exactly what one database would have answered.

use std::collections::{HashMap, HashSet};

use crate::find::Order;
use crate::ids::WaitpointId;
use crate::lifecycle::in_order;
use crate::model::Edge;
use crate::pages::{Copied, Cursor, Page};
use crate::projection::{Listed, compare};
use crate::snapshots::{CompletedLinks, Presence};
use crate::transitions::BatchExpiry;

/// The first answer that is there. Answers come in the order of precedence.
pub(super) fn first<T>(answers: Vec<Option<T>>) -> Option<T> {
    answers.into_iter().flatten().next()
}

/// The rows asked for, out of the leading rows of every database.
///
/// Answers come in the order of precedence: of two rows with one id, or one name, the earlier one stays.
pub(super) fn slice<R: Listed>(
    order: &[Order<R::By>],
    limit: Option<u32>,
    offset: u32,
    answers: Vec<Vec<R>>,
) -> Vec<R> {
    let limit = limit.map_or(usize::MAX, |limit| limit as usize);
    in_one(order, answers).into_iter().skip(offset as usize).take(limit).map(|ranked| ranked.row).collect()
}

/// A row, and the place of its database in the order of precedence.
struct Ranked<R> {
    rank: usize,
    row: R,
}

fn in_one<R: Listed>(order: &[Order<R::By>], answers: Vec<Vec<R>>) -> Vec<Ranked<R>> {
    let (mut ids, mut names) = (HashSet::new(), HashSet::new());
    let ranked =
        answers.into_iter().enumerate().flat_map(|(rank, rows)| rows.into_iter().map(move |row| Ranked { rank, row }));
    let mut rows: Vec<Ranked<R>> = ranked
        .filter(|Ranked { row, .. }| ids.insert(row.id().to_owned()) & names.insert(row.name().to_owned()))
        .collect();
    rows.sort_by(|left, right| compare(order, &left.row, &right.row));
    rows
}

/// A page out of the pages of several databases, while it is being made.
pub(super) struct Merged<R> {
    rows: Vec<Ranked<R>>,
    next: Option<Cursor>,
}

impl<R: Listed> Merged<R> {
    /// The first rows of all pages, which begin at one place and come in the order of precedence.
    ///
    /// What a page does not show comes after all that it shows, so no row that is not at hand belongs before one that
    /// is kept.
    pub(super) fn new(order: &[Order<R::By>], limit: usize, pages: Vec<Page<R>>) -> Self {
        let goes_on = pages.iter().any(|page| page.next.is_some());
        let mut rows = in_one(order, pages.into_iter().map(|page| page.rows).collect());
        let goes_on = goes_on || rows.len() > limit;
        rows.truncate(limit);
        let next = rows.last().filter(|_| goes_on).map(|last| Cursor::at(order, &last.row));
        Self { rows, next }
    }

    /// Ids and names of the rows that give way to copies in the database of this rank.
    pub(super) fn below(&self, rank: usize) -> (Vec<String>, Vec<String>) {
        let below = self.rows.iter().filter(|ranked| ranked.rank > rank);
        below.map(|Ranked { row, .. }| (row.id().to_owned(), row.name().to_owned())).unzip()
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
}

/// All that was expired, everywhere.
pub(super) fn expiries(answers: Vec<BatchExpiry>) -> BatchExpiry {
    let mut sum = BatchExpiry::default();
    answers.into_iter().for_each(|answer| sum.absorb(answer));
    in_order(&mut sum.effects);
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

/// The leading edges of every database, in order; of two with one id the earlier answer's stays.
pub(super) fn edges(limit: Option<u32>, answers: Vec<Vec<Edge>>) -> Vec<Edge> {
    let mut seen = HashSet::new();
    let mut edges: Vec<Edge> = answers.into_iter().flatten().filter(|edge| seen.insert(edge.id.clone())).collect();
    edges.sort_by(|left, right| (left.created_at, &left.id).cmp(&(right.created_at, &right.id)));
    edges.truncate(limit.map_or(usize::MAX, |limit| limit as usize));
    edges
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
