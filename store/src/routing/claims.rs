//! Claims: each step goes to the database it is about, and a create takes the steps in order. Why that leaves one live
//! run is told in [`crate::claims`].

use std::time::Duration;

use async_trait::async_trait;
use futures_util::future::join_all;
use tokio::time::{Instant, sleep};

use super::{RoutingRunStore, merge};
use crate::claims::{Claim, ClaimChange, ClaimKey, ClaimMark, ClaimOwner, Claims, Fence, claim_home};
use crate::create::{CreateRunOutcome, Creation, KeyScope, NewRun};
use crate::error::{ErrorKind, Result, StoreError};
use crate::generated::constraints::Constraint;
use crate::ids::RunId;
use crate::keys::IdempotencyKeys;
use crate::postgres::check_creation;
use crate::read::Read;
use crate::residency::{Residency, Routable};

#[async_trait]
impl Claims for RoutingRunStore {
    async fn claim_idempotency_key(
        &self,
        key: &ClaimKey,
        run: &RunId,
        owner: &ClaimOwner,
        lease: Duration,
    ) -> Result<Claim> {
        self.owner(claim_home(key)).claim_idempotency_key(key, run, owner, lease).await
    }

    async fn change_claim(
        &self,
        key: &ClaimKey,
        from: &ClaimMark,
        to: &ClaimMark,
        change: ClaimChange,
    ) -> Result<bool> {
        self.owner(claim_home(key)).change_claim(key, from, to, change).await
    }

    async fn delete_claims(&self, cleared: &[(ClaimKey, RunId)]) -> Result<u64> {
        let at_home = |home| cleared.iter().filter(|(key, _)| claim_home(key) == home).cloned().collect::<Vec<_>>();
        let buckets = Residency::ALL.into_iter().map(|home| (home, at_home(home)));
        let asked = buckets.filter(|(_, cleared)| !cleared.is_empty());
        let asked = asked.map(|(home, cleared)| async move { self.owner(home).delete_claims(&cleared).await });
        merge::changed(join_all(asked).await)
    }

    async fn fence_run(&self, run: &RunId) -> Result<Fence> {
        self.owner_of(run).fence_run(run).await
    }

    async fn create_fenced_run(&self, creation: Creation) -> Result<CreateRunOutcome> {
        self.owner_of(&creation.run().id).create_fenced_run(creation).await
    }
}

/// The key that has to be claimed before the run is created. A key that is made of its run cannot come from two databases.
pub(super) fn key_of(run: &NewRun) -> Option<ClaimKey> {
    let given = run.idempotency.as_ref()?;
    match given.scope {
        KeyScope::Global => Some(ClaimKey {
            environment: run.environment.id.clone(),
            task_identifier: run.task_identifier.clone(),
            key: given.key.clone(),
        }),
        KeyScope::Run | KeyScope::Attempt => None,
    }
}

impl RoutingRunStore {
    /// Creates a run under a claim of its key.
    pub(super) async fn create_claimed(&self, key: ClaimKey, creation: Creation) -> Result<CreateRunOutcome> {
        let operation = creation.operation().name();
        let given = creation.run().id;
        let home = given.residency();
        check_creation(home, &creation).map_err(|kind| StoreError::new(operation, Some(home), kind))?;
        let mut claimant = Claimant {
            store: self,
            key,
            owner: ClaimOwner::mint(),
            given,
            own: given,
            held: None,
            deadline: Instant::now() + self.claims.wait,
        };
        let made = claimant.create(creation).await;
        if made.is_err() {
            claimant.release().await;
        }
        made.map_err(|error| error.in_operation(operation))
    }
}

/// One call of a create.
struct Claimant<'a> {
    store: &'a RoutingRunStore,
    key: ClaimKey,
    owner: ClaimOwner,
    /// The id that the caller has given the run.
    given: RunId,
    /// The id the claim is to name: the given one, or a new one once that is used up.
    own: RunId,
    /// The id that the claim names, while it is thought to be held.
    held: Option<RunId>,
    /// The end of the wait for others.
    deadline: Instant,
}

/// How a wait for a claim ends.
enum Acquired {
    /// The claim is held and names this run.
    Held(RunId),
    /// A run has the key.
    Taken(RunId),
}

impl Claimant<'_> {
    async fn create(&mut self, creation: Creation) -> Result<CreateRunOutcome> {
        for _ in 0..=self.store.claims.attempts {
            let run = match self.acquire().await.map_err(StoreError::before_the_change)? {
                Acquired::Taken(winner) => return Ok(taken_by(winner)),
                Acquired::Held(run) => run,
            };
            self.held = Some(run);
            // A run from the time before claims, or one that the claim's previous owner has created.
            if let Some(winner) = self.holder_anywhere().await? {
                return Ok(self.settle(run, winner).await);
            }
            if run.residency() == self.own.residency() {
                match self.store.create_fenced_run(creation.clone().with_id(run)).await {
                    Ok(CreateRunOutcome::Created(created)) => {
                        self.resolve(run, run).await;
                        return Ok(CreateRunOutcome::Created(created));
                    }
                    Ok(CreateRunOutcome::IdempotencyKeyTaken { winner: Some(winner) }) => {
                        return Ok(self.settle(run, winner).await);
                    }
                    // It was cleared at this very moment: look again.
                    Ok(CreateRunOutcome::IdempotencyKeyTaken { winner: None }) => continue,
                    Ok(CreateRunOutcome::OneTimeTokenUsed) => {
                        self.release().await;
                        return Ok(CreateRunOutcome::OneTimeTokenUsed);
                    }
                    Err(error) => match clash(&error) {
                        Some(Clash::Fence) => (),
                        // The run that the caller wants to create exists, with another key.
                        Some(Clash::Run) if run == self.given => return Err(error),
                        Some(Clash::Run) => (),
                        None => return Err(error),
                    },
                }
            }
            if let Some(winner) = self.bury(run).await.map_err(StoreError::before_the_change)? {
                return Ok(self.settle(run, winner).await);
            }
        }
        Err(self.unavailable())
    }

    /// Waits until the claim is held, or the key is found taken.
    async fn acquire(&mut self) -> Result<Acquired> {
        let policy = self.store.claims;
        for look in 0.. {
            let busy = match self.store.claim_idempotency_key(&self.key, &self.own, &self.owner, policy.lease).await? {
                Claim::Held(run) => return Ok(Acquired::Held(run)),
                Claim::Resolved(mark) => {
                    if let Some(winner) = self.holder_beside(&mark.run).await? {
                        return Ok(Acquired::Taken(winner));
                    }
                    // Its key was cleared, and the claim has stayed.
                    let mine = self.mark(self.own);
                    if self.store.change_claim(&self.key, &mark, &mine, ClaimChange::Held(policy.lease)).await? {
                        return Ok(Acquired::Held(self.own));
                    }
                    None
                }
                Claim::Busy(run) => run,
            };
            if Instant::now() >= self.deadline {
                // Its owner may have created the run and died before it could say so.
                let winner = match busy {
                    Some(run) => self.holder_beside(&run).await?,
                    None => None,
                };
                return winner.map(Acquired::Taken).ok_or_else(|| self.unavailable());
            }
            sleep(self.owner.jittered(policy.poll, look)).await;
        }
        Err(self.unavailable())
    }

    /// Sees to it that `run` is not created any more and points the claim at the caller's own id. Returns the run that has
    /// the key after all, if there is one.
    async fn bury(&mut self, run: RunId) -> Result<Option<RunId>> {
        let fence = self.store.fence_run(&run).await?;
        // Only now: it may have been created until then.
        if let Some(winner) = self.holder_beside(&run).await? {
            return Ok(Some(winner));
        }
        // The run that the caller wants to create was created, and its key cleared. As in one database, that is no run to
        // make again.
        if fence == Fence::Created && run == self.given {
            let kind = ErrorKind::UniqueViolation(Some(Constraint::TaskRunPkey));
            return Err(StoreError::new("create_fenced_run", Some(run.residency()), kind));
        }
        if run == self.own {
            self.own = RunId::mint(self.own.residency());
        }
        let (from, to) = (self.mark(run), self.mark(self.own));
        // If somebody else has taken the claim, the next look at it will tell.
        if self.store.change_claim(&self.key, &from, &to, ClaimChange::Held(self.store.claims.lease)).await? {
            self.held = Some(self.own);
        }
        Ok(None)
    }

    /// Points the claim at the run that has the key, so that others find it at once.
    async fn settle(&mut self, run: RunId, winner: RunId) -> CreateRunOutcome {
        let is_dead = async || Ok(run == winner || self.store.fence_run(&run).await? == Fence::Tombstone);
        match is_dead().await {
            Ok(true) => self.resolve(run, winner).await,
            Ok(false) => self.release().await,
            Err(error) => log(&error),
        }
        taken_by(winner)
    }

    /// Marks the claim as resolved. That it fails does no harm: the next one finds the run.
    async fn resolve(&mut self, run: RunId, winner: RunId) {
        let (from, to) = (self.mark(run), self.mark(winner));
        if let Err(error) = self.store.change_claim(&self.key, &from, &to, ClaimChange::Resolved).await {
            log(&error);
        }
        self.held = None;
    }

    /// Lets others have the claim at once. That it fails costs them the rest of the lease.
    async fn release(&mut self) {
        let Some(run) = self.held.take() else { return };
        let mark = self.mark(run);
        if let Err(error) = self.store.change_claim(&self.key, &mark, &mark, ClaimChange::Released).await {
            log(&error);
        }
    }

    /// The run that has the key, in whichever database.
    async fn holder_anywhere(&self) -> Result<Option<RunId>> {
        self.holder_in(self.store).await
    }

    /// The run that has the key in the database of `run`.
    async fn holder_beside(&self, run: &RunId) -> Result<Option<RunId>> {
        self.holder_in(self.store.owner_of(run)).await
    }

    async fn holder_in<K: IdempotencyKeys + ?Sized>(&self, store: &K) -> Result<Option<RunId>> {
        let ClaimKey { environment, task_identifier, key } = &self.key;
        let keys = std::slice::from_ref(key);
        let found = store.find_runs_by_idempotency_keys(environment, task_identifier, keys, Read::Primary).await?;
        Ok(found.first().map(|found| found.run))
    }

    fn mark(&self, run: RunId) -> ClaimMark {
        ClaimMark { owner: self.owner.clone(), run }
    }

    fn unavailable(&self) -> StoreError {
        StoreError::new("claim_idempotency_key", Some(claim_home(&self.key)), ErrorKind::ClaimUnavailable)
    }
}

/// Why a run cannot be created with its id.
enum Clash {
    /// It was buried.
    Fence,
    /// There is a run.
    Run,
}

#[expect(clippy::wildcard_enum_match_arm, reason = "every other constraint is another fault")]
fn clash(error: &StoreError) -> Option<Clash> {
    match error.kind() {
        ErrorKind::UniqueViolation(Some(Constraint::RunFencePkey)) => Some(Clash::Fence),
        ErrorKind::UniqueViolation(Some(Constraint::TaskRunPkey | Constraint::UqTaskRunFriendlyId)) => Some(Clash::Run),
        _ => None,
    }
}

fn taken_by(winner: RunId) -> CreateRunOutcome {
    CreateRunOutcome::IdempotencyKeyTaken { winner: Some(winner) }
}

/// A step that only makes things easier for those who come later.
fn log(error: &StoreError) {
    tracing::debug!(%error, "a claim was left as it is; its lease will run out");
}
