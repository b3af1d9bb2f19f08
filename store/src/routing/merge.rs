//! What the answers of several databases become: exactly what one database would have answered.

use std::collections::{HashMap, HashSet};

use crate::find::FindRuns;
use crate::ids::WaitpointId;
use crate::lifecycle::in_order;
use crate::model::Edge;
use crate::projection::{Projection, compare};
use crate::snapshots::{CompletedLinks, Presence};
use crate::transitions::BatchExpiry;

/// The first answer that is there. Answers come in the order of precedence.
pub(super) fn first<T>(answers: Vec<Option<T>>) -> Option<T> {
    answers.into_iter().flatten().next()
}

/// The page asked for, out of the leading rows of every database.
///
/// Answers come in the order of precedence: of two rows with one id the earlier one stays.
pub(super) fn page<P: Projection>(query: &FindRuns, answers: Vec<Vec<P>>) -> Vec<P> {
    let mut seen = HashSet::new();
    let mut rows: Vec<P> = answers.into_iter().flatten().filter(|row| seen.insert(row.id().to_owned())).collect();
    rows.sort_by(|left, right| compare(&query.order, left, right));
    let limit = query.limit.map_or(usize::MAX, |limit| limit as usize);
    rows.into_iter().skip(query.offset as usize).take(limit).collect()
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
