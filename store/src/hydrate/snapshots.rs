//! Snapshots with their checkpoints and completed waitpoints.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasher, Hasher, RandomState};
use std::time::Duration;

use sea_orm::{EntityName, EntityTrait, FromQueryResult, QueryTrait};

use super::{ask, decode};
use crate::error::{Phase, Result, StoreError};
use crate::ids::{EnvironmentId, RunId, SnapshotId, WaitpointId};
use crate::model::{Checkpoint, Snapshot, Waitpoint, WaitpointEntity, WaitpointStatus};
use crate::postgres::{CHECKPOINT_PREFIX, LINKED};
use crate::read::Read;
use crate::relations::{Key, Links, Place, RelatedQuery, RelatedRow, Relations, Source};
use crate::residency::{Residency, Routable};
use crate::snapshots::{CompletedWaitpoint, HydratedSnapshot, SnapshotsSince};

/// Waitpoints in one statement: their outputs are large.
const WAITPOINTS: usize = 100;

/// Where the waitpoints of a snapshot are looked for, one after the other: beside it, and elsewhere.
const PLACES: [fn(Residency) -> Place; 2] = [Place::In, Place::NotIn];

/// Newer snapshots in one answer.
const NEWER: u32 = 50;

/// The run's current snapshot, whole.
pub(crate) async fn current<S: Relations + ?Sized>(
    store: &S,
    run: &RunId,
    environment: Option<&EnvironmentId>,
    read: Read,
) -> Result<Option<HydratedSnapshot>> {
    let operation = "current_snapshot";
    let source = Source::CurrentSnapshot { environment: environment.map(ToString::to_string) };
    let rows = ask(store, &of_run(operation, source, run), read).await?;
    let Some(row) = rows.first() else { return Ok(None) };
    let Some(mut current) = Stored::read(operation, row)? else { return Ok(None) };
    let links = std::mem::take(&mut current.links);
    let mut hydrated = current.bare();
    complete(store, operation, run.residency(), &mut hydrated, links, read).await?;
    Ok(Some(hydrated))
}

/// The run's snapshots after `since`, the newest one whole.
pub(crate) async fn since<S: Relations + ?Sized>(
    store: &S,
    run: &RunId,
    since: &SnapshotId,
    environment: Option<&EnvironmentId>,
    read: Read,
) -> Result<SnapshotsSince> {
    let operation = "snapshots_since";
    let environment = environment.map(ToString::to_string);
    let source = Source::SnapshotsSince { anchor: since.to_string(), environment, at_most: NEWER };
    let query = of_run(operation, source, run);

    let mut read = read;
    let mut rows = ask(store, &query, read).await?;
    if rows.is_empty() && read != Read::Primary && store.has_replica(run.residency()) {
        // The caller was told of this snapshot, so a replica without it is late.
        tokio::time::sleep(pause()).await;
        rows = ask(store, &query, read).await?;
        if rows.is_empty() {
            read = Read::Primary;
            rows = ask(store, &query, read).await?;
        }
    }
    if rows.is_empty() {
        return Ok(SnapshotsSince::NotFound);
    }

    // Newest first; a row without a snapshot says that there is none after the anchor.
    let mut newer = Vec::with_capacity(rows.len());
    for row in &rows {
        newer.extend(Stored::read(operation, row)?);
    }
    newer.reverse();
    let Some(newest) = newer.last_mut() else { return Ok(SnapshotsSince::Found(Vec::new())) };
    let mut links = std::mem::take(&mut newest.links);
    let ordered: HashSet<&str> = newest.snapshot.completed_waitpoint_order.iter().map(String::as_str).collect();
    if read != Read::Primary && store.has_replica(run.residency()) && ordered.len() > links.len() {
        // An id may stand in the order several times, but each has a link: some are not here yet.
        links = links_of(store, operation, run, &newest.snapshot.id).await?;
    }
    let mut snapshots: Vec<HydratedSnapshot> = newer.into_iter().map(Stored::bare).collect();
    if let Some(newest) = snapshots.last_mut() {
        complete(store, operation, run.residency(), newest, links, read).await?;
    }
    Ok(SnapshotsSince::Found(snapshots))
}

/// The links of a snapshot, as the primary has them.
async fn links_of<S: Relations + ?Sized>(
    store: &S,
    operation: &'static str,
    run: &RunId,
    snapshot: &str,
) -> Result<Vec<String>> {
    let key = Key { text: snapshot.to_owned(), place: Place::In(run.residency()) };
    let source = Source::Links(Links::CompletedWaitpoints);
    let query = RelatedQuery { operation, source, keys: vec![key], chunk: 1 };
    Ok(ask(store, &query, Read::Primary).await?.into_iter().map(|row| row.id).collect())
}

/// Gives a snapshot the waitpoints it is linked with: those beside it first, and what is missing from elsewhere.
///
/// On a replica, a waitpoint that is missing or not completed is one that the replica does not know yet: a link is only
/// written to one that is. It is read again on the primary.
async fn complete<S: Relations + ?Sized>(
    store: &S,
    operation: &'static str,
    owner: Residency,
    hydrated: &mut HydratedSnapshot,
    links: Vec<String>,
    read: Read,
) -> Result<()> {
    let ids = in_completed_order(&hydrated.snapshot, links);
    let mut known: HashMap<String, Waitpoint> = HashMap::with_capacity(ids.len());
    // What is beside the snapshot is asked for nowhere else.
    for place in PLACES.map(|place| place(owner)) {
        let missing = ids.iter().filter(|id| !known.contains_key(*id));
        let keys = missing.map(|id| Key { text: id.clone(), place }).collect();
        known.extend(waitpoints(store, operation, keys, read).await?);
    }
    if store.may_lag(read) {
        let is_settled = |id| known.get(id).is_some_and(|known: &Waitpoint| known.status == WaitpointStatus::Completed);
        let late: Vec<&String> = ids.iter().filter(|id| !is_settled(*id)).collect();
        let mut found = HashMap::with_capacity(late.len());
        for place in PLACES.map(|place| place(owner)) {
            let missing = late.iter().filter(|id| !found.contains_key(**id));
            let keys = missing.map(|id| Key { text: String::clone(id), place }).collect();
            found.extend(waitpoints(store, operation, keys, Read::Primary).await?);
        }
        known.extend(found);
    }

    let HydratedSnapshot { snapshot, completed_waitpoints, dangling, .. } = hydrated;
    for (position, id) in (0..).zip(&snapshot.completed_waitpoint_order) {
        if let Some(waitpoint) = known.get(id) {
            completed_waitpoints.push(CompletedWaitpoint { waitpoint: waitpoint.clone(), index: Some(position) });
        }
    }
    let ordered: HashSet<&str> = snapshot.completed_waitpoint_order.iter().map(String::as_str).collect();
    for id in ids {
        match known.remove(&id) {
            None => dangling.push(WaitpointId::stored(&id)),
            Some(waitpoint) if !ordered.contains(id.as_str()) => {
                completed_waitpoints.push(CompletedWaitpoint { waitpoint, index: None });
            }
            Some(_) => (),
        }
    }
    Ok(())
}

/// The linked ids, each once: those in the snapshot's order first, then the others by id.
fn in_completed_order(snapshot: &Snapshot, mut links: Vec<String>) -> Vec<String> {
    links.sort_unstable();
    links.dedup();
    let mut left: HashSet<String> = links.iter().cloned().collect();
    let ordered = snapshot.completed_waitpoint_order.iter();
    let mut ids: Vec<String> = ordered.filter(|id| left.remove(*id)).cloned().collect();
    ids.extend(links.into_iter().filter(|id| left.contains(id)));
    ids
}

async fn waitpoints<S: Relations + ?Sized>(
    store: &S,
    operation: &'static str,
    keys: Vec<Key>,
    read: Read,
) -> Result<HashMap<String, Waitpoint>> {
    let rows = Box::new(WaitpointEntity::find().into_query());
    let source = Source::Rows { rows, table: WaitpointEntity::default().table_name(), column: "id" };
    let query = RelatedQuery { operation, source, keys, chunk: WAITPOINTS };
    let mut found = HashMap::new();
    for row in ask(store, &query, read).await? {
        // Of two copies the first one wins.
        if let Entry::Vacant(vacant) = found.entry(row.id.clone()) {
            vacant.insert(decode(operation, &row, "")?);
        }
    }
    Ok(found)
}

fn of_run(operation: &'static str, source: Source, run: &RunId) -> RelatedQuery {
    let key = Key { text: run.to_string(), place: Place::In(run.residency()) };
    RelatedQuery { operation, source, keys: vec![key], chunk: 1 }
}

/// A snapshot as one row holds it.
struct Stored {
    snapshot: Snapshot,
    checkpoint: Option<Checkpoint>,
    links: Vec<String>,
}

impl Stored {
    /// `None` if the row has no snapshot.
    fn read(operation: &'static str, row: &RelatedRow) -> Result<Option<Self>> {
        let failed = |error| StoreError::database(operation, row.residency, Phase::Uncommitted, &error);
        let has = |prefix: &str| row.row.try_get::<Option<String>>(prefix, "id").map_err(failed);
        if has("")?.is_none() {
            return Ok(None);
        }
        let checkpoint = match has(CHECKPOINT_PREFIX)? {
            Some(_) => Some(Checkpoint::from_query_result(&row.row, CHECKPOINT_PREFIX).map_err(failed)?),
            None => None,
        };
        let links: Option<Vec<String>> = row.row.try_get("", LINKED).map_err(failed)?;
        Ok(Some(Self { snapshot: decode(operation, row, "")?, checkpoint, links: links.unwrap_or_default() }))
    }

    fn bare(self) -> HydratedSnapshot {
        let Self { snapshot, checkpoint, links: _ } = self;
        HydratedSnapshot { snapshot, checkpoint, completed_waitpoints: Vec::new(), dangling: Vec::new() }
    }
}

/// 50 to 200 ms, so that pollers that missed together do not come back together.
fn pause() -> Duration {
    let random = RandomState::new().build_hasher().finish();
    Duration::from_millis(50 + random % 151)
}
