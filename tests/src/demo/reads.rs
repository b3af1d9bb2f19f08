//! Reads everything back, in every way the store offers, and compares it with what the writes returned.

use std::{
    cmp::Ordering,
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    sync::Arc,
};

use anyhow::{Context, Result};
use store::{
    Direction, EnvironmentType, ExecutionStatus, FindRuns, Order, OrderKey, Read, Residency, Run, RunFilter, RunId,
    RunKey, RunStatus, RunSummary, Snapshot,
};
use tokio::task::JoinSet;

use super::{
    ledger::{Entry, Ledger, Rows},
    lives::{Work, fresh, key_filter, span_id, token_filter},
    progress::Progress,
};

/// Tasks that read at the same time.
const AT_ONCE: usize = 16;
/// Runs that one task reads, and that are asked for in one call by their ids.
const CHUNK: usize = 64;
/// Pages of a list over everything. A page reads all rows up to its end, so many small ones cost more than few.
const PAGES: usize = 8;
/// Families of which the children are listed.
const PARENTS: usize = 50;
/// Differences that are told.
const TOLD: usize = 100;

/// What did not read as it was written.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Differences {
    /// How many there are.
    pub count: usize,
    /// The first of them.
    pub first: Vec<String>,
}

impl Differences {
    fn add(&mut self, difference: String) {
        self.count += 1;
        if self.first.len() < TOLD {
            self.first.push(difference);
        }
    }

    fn expect(&mut self, as_expected: bool, difference: impl FnOnce() -> String) {
        if !as_expected {
            self.add(difference());
        }
    }
}

/// Reads every run back. What a write changed without returning it is taken from the first read and completes the
/// ledger.
///
/// # Errors
/// If the store fails.
pub(super) async fn read_back(work: &Arc<Work>, ledger: &mut Ledger, progress: &Progress) -> Result<Differences> {
    let mut differences = Differences::default();
    progress.start("reading every run back", ledger.len());
    let winners = Arc::new(Winners::of(work, ledger));
    let entries = std::mem::take(&mut ledger.entries);
    let mut chunks = entries.chunks(CHUNK);
    let mut reading = JoinSet::new();
    loop {
        while reading.len() < AT_ONCE
            && let Some(chunk) = chunks.next()
        {
            let (work, winners, chunk) = (Arc::clone(work), Arc::clone(&winners), chunk.to_vec());
            reading.spawn(async move { read_chunk(&work, &winners, chunk).await });
        }
        let Some(read) = reading.join_next().await else { break };
        let (read, found) = read??;
        progress.inc(read.len());
        ledger.entries.extend(read);
        found.first.into_iter().for_each(|difference| differences.add(difference));
    }

    progress.step("listing all runs, page by page");
    let lists = Lists { work, entries: ledger.entries.iter().map(|entry| (entry.id, entry)).collect() };
    lists.walk_runs(&mut differences).await?;
    lists.walk_summaries(&mut differences).await?;
    progress.step("listing runs by what they have in common");
    lists.by_ids(&mut differences).await?;
    lists.by_status(&mut differences).await?;
    lists.by_environment(&mut differences).await?;
    lists.by_tag(&mut differences).await?;
    lists.by_parent(&mut differences).await?;
    lists.of_nothing(&mut differences).await?;
    Ok(differences)
}

/// The runs that are found by a key or token: they are unique in each database, and the run-ops copy wins.
struct Winners {
    keys: HashMap<(EnvironmentType, String, String), RunId>,
    tokens: HashMap<String, RunId>,
}

impl Winners {
    fn of(work: &Work, ledger: &Ledger) -> Winners {
        let mut winners = Winners { keys: HashMap::new(), tokens: HashMap::new() };
        for entry in &ledger.entries {
            let request = &work.input.requests[entry.request];
            let wins = entry.home() == Residency::RunOps;
            if let Some(key) = &request.idempotency_key {
                let name = (request.environment, request.task.clone(), fresh(key, entry.copy));
                let winner = winners.keys.entry(name).or_insert(entry.id);
                *winner = if wins { entry.id } else { *winner };
            }
            if let Some(token) = &request.one_time_token {
                let winner = winners.tokens.entry(fresh(token, entry.copy)).or_insert(entry.id);
                *winner = if wins { entry.id } else { *winner };
            }
        }
        winners
    }
}

/// Reads runs one by one, and all of them by their ids.
async fn read_chunk(work: &Work, winners: &Winners, mut entries: Vec<Entry>) -> Result<(Vec<Entry>, Differences)> {
    let Work { store, world, input, routes } = work;
    let mut differences = Differences::default();
    let ids: Vec<RunId> = entries.iter().map(|entry| entry.id).collect();
    for (number, entry) in entries.iter_mut().enumerate() {
        let id = entry.id;
        let request = &input.requests[entry.request];
        let place = world.place(request.environment)?;
        let here = Some(&place.environment.id);

        let run = routes.find_run(store, id.into(), None, Read::Primary).await?;
        let snapshot = routes.find_latest_execution_snapshot(store, &id, here, Read::Primary).await?;
        let Some(run) = run else {
            differences.add(format!("{id}: find_run does not find it"));
            continue;
        };
        let rows = match entry.rows {
            Some(rows) => rows,
            None => {
                differences.expect(is_expired(entry, &run, snapshot.as_ref()), || {
                    format!("{id}: expire_runs_batch did something else to it than it said")
                });
                *entry.rows.insert(Rows::of(&run, snapshot.as_ref()))
            }
        };
        differences.expect(rows.is_run(&run), || format!("{id}: find_run reads another row than was written"));
        differences.expect(rows.is_snapshot(snapshot.as_ref()), || {
            format!("{id}: find_latest_execution_snapshot reads another row than was written")
        });

        let by_friendly_id = routes.get_run(store, id.friendly().into(), here, Read::Replica).await?;
        differences
            .expect(rows.is_run(&by_friendly_id), || format!("{id}: get_run reads another row than was written"));
        let span = RunFilter { span_id: Some(span_id(input, entry.copy, entry.request)), ..RunFilter::default() };
        let by_span = routes.find_run_where(store, &span, Read::Replica).await?;
        differences.expect(by_span.is_some_and(|run| rows.is_run(&run)), || {
            format!("{id}: find_run_where does not find it by its span")
        });
        if let Some(key) = &request.idempotency_key {
            let run = routes.get_run_where(store, &key_filter(request, entry.copy, place), Read::Primary).await?;
            let name = (request.environment, request.task.clone(), fresh(key, entry.copy));
            let winner = winners.keys.get(&name);
            differences.expect(winner.is_some_and(|winner| run.id == winner.as_str()), || {
                format!("{id}: get_run_where finds {} by its idempotency key", run.id)
            });
        }
        if let Some(token) = &request.one_time_token {
            let run = routes.get_run_where(store, &token_filter(request, entry.copy), Read::Primary).await?;
            let winner = winners.tokens.get(&fresh(token, entry.copy));
            differences.expect(winner.is_some_and(|winner| run.id == winner.as_str()), || {
                format!("{id}: get_run_where finds {} by its one-time token", run.id)
            });
        }
        if number == 0 {
            // No tenant sees another's run.
            let elsewhere = match request.environment {
                EnvironmentType::Production => EnvironmentType::Staging,
                EnvironmentType::Staging | EnvironmentType::Development | EnvironmentType::Preview => {
                    EnvironmentType::Production
                }
            };
            let elsewhere = Some(&world.place(elsewhere)?.environment.id);
            let run = routes.find_run(store, id.into(), elsewhere, Read::Primary).await?;
            differences.expect(run.is_none(), || format!("{id}: find_run finds it in another environment"));
        }
    }

    // The second list has one database alone to answer.
    let of_one: Vec<RunId> =
        entries.iter().filter(|entry| entry.home() == entries[0].home()).map(|entry| entry.id).collect();
    for ids in [ids, of_one] {
        let runs = routes.find_runs_by_ids(store, &ids, Read::Primary).await?;
        differences
            .expect(runs.len() == ids.len(), || format!("find_runs_by_ids finds {} runs of {}", runs.len(), ids.len()));
        for entry in &entries {
            if let (Some(run), Some(rows)) = (runs.get(&entry.id), entry.rows) {
                differences.expect(rows.is_run(run), || {
                    format!("{}: find_runs_by_ids reads another row than was written", entry.id)
                });
            }
        }
    }
    Ok((entries, differences))
}

/// Whether a run is as a bulk expiry says it left it.
fn is_expired(entry: &Entry, run: &Run, snapshot: Option<&Snapshot>) -> bool {
    let as_said = |snapshot: &Snapshot| {
        let current = entry.current.as_ref().is_some_and(|(id, _)| id.as_str() == snapshot.id);
        current && snapshot.execution_status == ExecutionStatus::Finished && snapshot.run_id == run.id
    };
    run.id == entry.id.as_str()
        && run.status == RunStatus::Expired
        && run.expired_at.is_some()
        && run.expired_at == run.completed_at
        && run.error.is_some()
        && snapshot.is_some_and(as_said)
}

/// Reads of many runs at once.
struct Lists<'a> {
    work: &'a Work,
    entries: HashMap<RunId, &'a Entry>,
}

impl Lists<'_> {
    /// Every run, whole, newest first.
    async fn walk_runs(&self, differences: &mut Differences) -> Result<()> {
        let order = vec![Order { by: OrderKey::CreatedAt, direction: Direction::Descending }];
        let mut walk = Walk::new(self, &order);
        loop {
            let page = self.work.routes.find_runs(&self.work.store, &walk.next(), Read::Replica).await?;
            if page.is_empty() {
                break;
            }
            for run in page {
                let is_written = |rows: Rows| rows.is_run(&run);
                walk.row(&run.id, Keys::of_run(&run), is_written, differences);
            }
        }
        walk.end("find_runs", differences);
        Ok(())
    }

    /// Every run as lists show it, in several orders, NULLs among them.
    async fn walk_summaries(&self, differences: &mut Differences) -> Result<()> {
        let up = |by| Order { by, direction: Direction::Ascending };
        let down = |by| Order { by, direction: Direction::Descending };
        for order in [
            vec![up(OrderKey::CreatedAt)],
            vec![down(OrderKey::StartedAt)],
            vec![up(OrderKey::TaskIdentifier), down(OrderKey::Cost), down(OrderKey::Id)],
        ] {
            let mut walk = Walk::new(self, &order);
            loop {
                let page = self.summaries(&walk.next()).await?;
                if page.is_empty() {
                    break;
                }
                for summary in page {
                    let is_written = |rows: Rows| rows.is_summary(&summary);
                    walk.row(&summary.id, Keys::of_summary(&summary), is_written, differences);
                }
            }
            walk.end("find_run_summaries", differences);
        }
        Ok(())
    }

    /// Lists of chosen runs, from both databases and from one alone.
    async fn by_ids(&self, differences: &mut Differences) -> Result<()> {
        let mut mixed: Vec<RunId> = self.entries.keys().copied().collect();
        mixed.sort_unstable();
        let of = |home| {
            let ids = self.entries.values().filter(move |entry| entry.home() == home).map(|entry| entry.id);
            ids.take(CHUNK).collect::<Vec<RunId>>()
        };
        let middle = mixed.len() / 2;
        let mixed = mixed[middle.saturating_sub(CHUNK)..].iter().copied().take(2 * CHUNK).collect();
        for ids in [mixed, of(Residency::ControlPlane), of(Residency::RunOps)] {
            let expected: HashSet<RunId> = ids.iter().copied().collect();
            let friendly_ids = ids.iter().map(RunId::friendly).collect();
            let by_id = RunFilter { ids: Some(ids), ..RunFilter::default() };
            let by_friendly_id = RunFilter { friendly_ids: Some(friendly_ids), ..RunFilter::default() };
            self.list("a list of ids", by_id, &expected, differences).await?;
            self.list("a list of friendly ids", by_friendly_id, &expected, differences).await?;
        }
        Ok(())
    }

    async fn by_status(&self, differences: &mut Differences) -> Result<()> {
        let mut statuses: Vec<RunStatus> = Vec::new();
        for entry in self.entries.values() {
            if !statuses.contains(&entry.status) {
                statuses.push(entry.status);
            }
        }
        for status in statuses {
            let expected = self.those(|entry| entry.status == status);
            let filter = RunFilter { status: Some(vec![status]), ..RunFilter::default() };
            self.list(&format!("the status {status:?}"), filter, &expected, differences).await?;
        }
        Ok(())
    }

    async fn by_environment(&self, differences: &mut Differences) -> Result<()> {
        let requests = &self.work.input.requests;
        let environments: BTreeMap<String, EnvironmentType> =
            requests.iter().map(|request| (format!("{:?}", request.environment), request.environment)).collect();
        for (name, kind) in environments {
            let expected = self.those(|entry| requests[entry.request].environment == kind);
            let environment = Some(self.work.world.place(kind)?.environment.id.clone());
            let filter = RunFilter { environment, ..RunFilter::default() };
            self.list(&format!("the environment {name}"), filter, &expected, differences).await?;
        }
        Ok(())
    }

    /// The tag that most runs have.
    async fn by_tag(&self, differences: &mut Differences) -> Result<()> {
        let requests = &self.work.input.requests;
        let mut tags: BTreeMap<&str, usize> = BTreeMap::new();
        for tag in self.entries.values().flat_map(|entry| &requests[entry.request].tags) {
            *tags.entry(tag).or_default() += 1;
        }
        let Some((tag, _)) = tags.into_iter().max_by_key(|(_, count)| *count) else { return Ok(()) };
        let expected = self.those(|entry| requests[entry.request].tags.iter().any(|other| other == tag));
        let filter = RunFilter { any_tag: Some(vec![tag.to_owned()]), ..RunFilter::default() };
        self.list("a tag", filter, &expected, differences).await
    }

    async fn by_parent(&self, differences: &mut Differences) -> Result<()> {
        let parents: BTreeSet<RunId> = self.entries.values().filter_map(|entry| entry.parent).collect();
        for parent in parents.into_iter().take(PARENTS) {
            let expected = self.those(|entry| entry.parent == Some(parent));
            let filter = RunFilter { parent: Some(parent), ..RunFilter::default() };
            self.list("a parent", filter, &expected, differences).await?;
        }
        Ok(())
    }

    /// Runs that are not there.
    async fn of_nothing(&self, differences: &mut Differences) -> Result<()> {
        let Work { store, routes, .. } = self.work;
        let oldest = "run_000000000000000000000".parse().context("a friendly id of the oldest form")?;
        let missing = [
            RunKey::Id(RunId::mint(Residency::ControlPlane)),
            RunKey::Id(RunId::mint(Residency::RunOps)),
            RunKey::Unrouted(oldest),
        ];
        for key in missing {
            let found = routes.find_run(store, key, None, Read::Primary).await?;
            differences.expect(found.is_none(), || "find_run finds a run that was never created".to_owned());
        }
        Ok(())
    }

    fn those(&self, which: impl Fn(&Entry) -> bool) -> HashSet<RunId> {
        self.entries.values().filter(|entry| which(entry)).map(|entry| entry.id).collect()
    }

    /// Lists the runs of a filter and compares them with those that it should give.
    async fn list(
        &self,
        what: &str,
        filter: RunFilter,
        expected: &HashSet<RunId>,
        differences: &mut Differences,
    ) -> Result<()> {
        let query = FindRuns { filter, ..FindRuns::default() };
        let mut found = HashSet::new();
        for summary in self.summaries(&query).await? {
            let entry = summary.id.parse().ok().and_then(|id: RunId| self.entries.get(&id));
            let is_written = entry.and_then(|entry| entry.rows).is_some_and(|rows| rows.is_summary(&summary));
            differences.expect(is_written, || {
                format!("{}: find_run_summaries by {what} reads another row than was written", summary.id)
            });
            let is_new = entry.is_some_and(|entry| found.insert(entry.id));
            differences.expect(is_new, || format!("{}: find_run_summaries by {what} gives it twice", summary.id));
        }
        let (missing, more) = (expected.difference(&found).count(), found.difference(expected).count());
        differences.expect(missing + more == 0, || {
            format!("find_run_summaries by {what} misses {missing} runs and has {more} too many")
        });
        Ok(())
    }

    async fn summaries(&self, query: &FindRuns) -> Result<Vec<RunSummary>> {
        Ok(self.work.routes.find_run_summaries(&self.work.store, query, Read::Replica).await?)
    }
}

/// A list of everything, page by page.
struct Walk<'a> {
    lists: &'a Lists<'a>,
    order: &'a [Order],
    offset: u32,
    seen: HashSet<RunId>,
    last: Option<Keys>,
}

impl<'a> Walk<'a> {
    fn new(lists: &'a Lists<'a>, order: &'a [Order]) -> Self {
        Walk { lists, order, offset: 0, seen: HashSet::new(), last: None }
    }

    /// The next page.
    fn next(&mut self) -> FindRuns {
        let limit = self.lists.entries.len().div_ceil(PAGES).max(1);
        let limit = u32::try_from(limit).unwrap_or(u32::MAX);
        let offset = self.offset;
        self.offset = offset.saturating_add(limit);
        FindRuns { order: self.order.to_vec(), limit: Some(limit), offset, ..FindRuns::default() }
    }

    /// Looks at a row of a page.
    fn row(&mut self, id: &str, keys: Keys, is_written: impl Fn(Rows) -> bool, differences: &mut Differences) {
        let Some((id, entry)) = id.parse().ok().and_then(|id: RunId| Some((id, self.lists.entries.get(&id)?))) else {
            return differences.add(format!("{id}: a page has it, and it was never created"));
        };
        differences
            .expect(entry.rows.is_some_and(is_written), || format!("{id}: a page has another row than was written"));
        differences.expect(self.seen.insert(id), || format!("{id}: two pages have it"));
        if let Some(last) = &self.last {
            let in_order = last.compare(&keys, self.order) == Ordering::Less;
            differences
                .expect(in_order, || format!("{id}: the pages have it in another place than {:?} says", self.order));
        }
        self.last = Some(keys);
    }

    fn end(self, operation: &str, differences: &mut Differences) {
        let missing = self.lists.entries.len() - self.seen.len();
        differences.expect(missing == 0, || format!("the pages of {operation} miss {missing} runs"));
    }
}

/// What the lists of a demo are ordered by.
struct Keys {
    id: String,
    task: String,
    created_at: i64,
    started_at: Option<i64>,
    cost: f64,
}

impl Keys {
    fn of_run(run: &Run) -> Keys {
        Keys {
            id: run.id.clone(),
            task: run.task_identifier.clone(),
            created_at: run.created_at.timestamp_micros(),
            started_at: run.started_at.map(|at| at.timestamp_micros()),
            cost: run.cost_in_cents,
        }
    }

    fn of_summary(summary: &RunSummary) -> Keys {
        Keys {
            id: summary.id.clone(),
            task: summary.task_identifier.clone(),
            created_at: summary.created_at.timestamp_micros(),
            started_at: summary.started_at.map(|at| at.timestamp_micros()),
            cost: summary.cost_in_cents,
        }
    }

    fn compare(&self, other: &Keys, order: &[Order]) -> Ordering {
        // The id breaks the ties that are left, in the direction of the last key.
        let direction = order.last().map_or(Direction::Ascending, |last| last.direction);
        let tie_break = Order { by: OrderKey::Id, direction };
        let compared = order.iter().chain([&tie_break]).map(|Order { by, direction }| {
            let ordering = match by {
                OrderKey::Id => self.id.cmp(&other.id),
                OrderKey::TaskIdentifier => self.task.cmp(&other.task),
                OrderKey::CreatedAt => self.created_at.cmp(&other.created_at),
                OrderKey::Cost => self.cost.total_cmp(&other.cost),
                // NULL is greater than everything.
                OrderKey::StartedAt => {
                    let rank = |at: Option<i64>| (at.is_none(), at);
                    rank(self.started_at).cmp(&rank(other.started_at))
                }
                other => unreachable!("no list of the demo is ordered by {other:?}"),
            };
            match direction {
                Direction::Ascending => ordering,
                Direction::Descending => ordering.reverse(),
            }
        });
        compared.fold(Ordering::Equal, Ordering::then)
    }
}
