//! Claims: one idempotency key, one live run, over several databases.
//!
//! One database keeps (environment, task, key) unique by itself. Two databases do not: a key that is triggered from parents
//! of both, or while the kind of an environment's new ids is being changed, would make a run in each. So a store over
//! several databases claims a key of [global scope](crate::KeyScope) before it creates a run with it. The methods here are
//! the steps of that protocol, each a single statement in one database; `create_run` and its like take them in the right
//! order, and applications have no need to.
//!
//! # What is kept
//!
//! A **claim** names the one run id with which a run of that key may be created. It lies in the [home](claim_home) of the
//! key, a pure function of environment, task and key, whichever database the run will live in. It has an owner and a
//! lease, and is resolved once its run is known to exist.
//!
//! A **fence** lies in the run's own database, under the run's id: `CREATED`, written by the very statement that creates
//! the run, or `TOMBSTONE`, written by whoever wants to be sure that no such run will ever be created. Its primary key lets
//! exactly one of both happen.
//!
//! # Why there is never a second live run
//!
//! A run is *live* for a key while its row has the key. Rows get their key at birth, and lose it when it is cleared.
//!
//! 1. A run is created under a claim only with the id that the claim named when its creator took it.
//! 2. A claim that names `r` is pointed at another id only if `r` can never be live again: `r` was fenced **and then** found
//!    without the key (it was never created and never will be, or it was created and has lost the key for good), or it was
//!    buried because a run from before claims has the key; or the claim was resolved, so that `r` had been created, and
//!    `r` has lost the key. A claim is deleted only after its run was created and cleared. All of it is compare-and-set.
//! 3. So whenever a claim names `r`, or there is no claim, every id that was named before is without the key and can never
//!    get it. At most `r` is live.
//! 4. Whoever holds the claim looks both databases up, on their primaries, before it creates: a run that has the key
//!    from the time before claims is found there, and the claim is pointed at it.
//!
//! **Leases and owners are in none of these steps.** They keep creators out of each other's way; a lease that is too short
//! or a clock that jumps costs time. An owner that was paused for an hour wakes up and finds that its id has been
//! created by somebody else (the statement fails on the primary key of run or fence, and the run that is there is the
//! winner), or buried (it fails on the fence), or it creates the run that everybody else still waits for.
//!
//! **A crash** leaves a claim whose lease runs out. Whoever comes next takes it over with its id, and finds the run
//! created (then it is the winner) or creates it. A caller that repeats its own call with the same run id need not wait for
//! that: the claim that names this id is its own.
//!
//! **A key that was cleared** may leave a resolved claim behind, if the clearing process died in between. A resolved
//! claim is never believed: its run is read, and if it has lost the key the claim is taken over by compare-and-set.
//!
//! What claims cannot see are creators that do not claim: processes that still run over a single database, or versions
//! from before claims. The unique key of their database still holds, and what they created earlier is found in step 4;
//! what they create at the same moment in the other database is not. Reads by key let run-ops win there.

use std::time::Duration;

use async_trait::async_trait;

use crate::create::{CreateRunOutcome, Creation};
use crate::error::Result;
use crate::ids::{EnvironmentId, RunId};
use crate::residency::Residency;

/// The key that is claimed. Unique over all databases.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct ClaimKey {
    /// The environment.
    pub environment: EnvironmentId,
    /// The task.
    pub task_identifier: String,
    /// The idempotency key.
    pub key: String,
}

/// The database that keeps the claim of a key: the same for every process and version, whatever the key's run is.
///
/// It is the parity of the bits of the 64-bit FNV-1a hash of the three texts, each followed by a zero byte (which none of
/// them can contain): even is the control plane, odd run-ops. A change would let two processes claim one key in two
/// places.
#[must_use]
pub fn claim_home(key: &ClaimKey) -> Residency {
    let texts = [key.environment.as_str(), &key.task_identifier, &key.key];
    let bytes = texts.into_iter().flat_map(|text| text.bytes().chain([0]));
    // Single bits of the hash follow a counter at the end of a key; all of them together do not.
    match fnv1a(bytes).count_ones() % 2 {
        0 => Residency::ControlPlane,
        _ => Residency::RunOps,
    }
}

fn fnv1a(bytes: impl Iterator<Item = u8>) -> u64 {
    const OFFSET: u64 = 0xcbf2_9ce4_8422_2325;
    const PRIME: u64 = 0x0000_0100_0000_01b3;
    bytes.fold(OFFSET, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(PRIME))
}

/// Who holds a claim: one call of a create, by a random name.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct ClaimOwner(Box<str>);

impl ClaimOwner {
    /// A name that nobody else has.
    #[must_use]
    pub fn mint() -> Self {
        // 128 random bits.
        Self(RunId::mint(Residency::RunOps).as_str().into())
    }

    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// A name as a row holds it.
    pub(crate) fn stored(text: &str) -> Self {
        Self(text.into())
    }

    /// How long to wait before the `n`th look at somebody else's claim: between half and one and a half times `poll`, and
    /// not the same for everybody.
    pub(crate) fn jittered(&self, poll: Duration, n: u32) -> Duration {
        let hash = fnv1a(self.0.bytes().chain(n.to_le_bytes()));
        // Upper bits are mixed best.
        poll.mul_f64(0.5 + f64::from((hash >> 40) as u32 & 0xffff) / 65_536.0)
    }
}

/// How long a claim lasts, and how long others wait for it. None of it decides whether a second run can exist.
///
/// What is longer than an hour counts as an hour, and looking more often than each millisecond as that.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ClaimPolicy {
    /// A claim whose owner did nothing for so long may be taken over; told by the clock of the claim's database. 15
    /// seconds by default. It should be longer than a create takes.
    pub lease: Duration,
    /// A create waits so long for another one that holds the claim, then it fails with
    /// [`ClaimUnavailable`](crate::ErrorKind::ClaimUnavailable). 5 seconds by default.
    pub wait: Duration,
    /// A waiting create looks that often, give or take half. 25 milliseconds by default.
    pub poll: Duration,
    /// How often one create starts over because others changed the claim under its hands. 5 by default.
    pub attempts: u32,
}

impl ClaimPolicy {
    /// The same, with durations that clocks and databases can count with.
    pub(crate) fn bounded(self) -> Self {
        const LONGEST: Duration = Duration::from_secs(3_600);
        const SHORTEST: Duration = Duration::from_millis(1);
        let Self { lease, wait, poll, attempts } = self;
        Self { lease: lease.min(LONGEST), wait: wait.min(LONGEST), poll: poll.clamp(SHORTEST, LONGEST), attempts }
    }
}

impl Default for ClaimPolicy {
    fn default() -> Self {
        Self {
            lease: Duration::from_secs(15),
            wait: Duration::from_secs(5),
            poll: Duration::from_millis(25),
            attempts: 5,
        }
    }
}

/// What [`Claims::claim_idempotency_key`] found.
#[derive(Clone, PartialEq, Eq, Debug)]
#[must_use = "the claim may belong to somebody else"]
pub enum Claim {
    /// It belongs to the caller now, and names this run id: the caller's own, or that of an owner whose lease ran out.
    Held(RunId),
    /// Somebody else holds it for this run id. `None` if it appeared while the statement was running.
    Busy(Option<RunId>),
    /// The run was created.
    Resolved(ClaimMark),
}

/// Owner and run of a claim: what a compare-and-set compares.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ClaimMark {
    /// Who held it last.
    pub owner: ClaimOwner,
    /// The run id it names.
    pub run: RunId,
}

/// What a claim becomes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ClaimChange {
    /// Held for another lease.
    Held(Duration),
    /// Held by nobody: the lease ends now, and the next one takes it over.
    Released,
    /// Resolved: the run it names was created.
    Resolved,
}

/// What was decided about a run id.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Fence {
    /// A run was created with it.
    Created,
    /// No run will be created with it under a claim.
    Tombstone,
}

/// The operations on claims.
///
/// **Routing.** What names a key goes to the key's [home](claim_home), what names a run to the run's database. A store
/// over one database answers for itself.
///
/// **Copy.** Primaries only. **Transaction.** Each is one statement.
#[async_trait]
pub trait Claims: Send + Sync {
    /// Claims `key` for `run`, or takes over a claim that nobody holds any more, with the run id *it* names.
    ///
    /// A claim that names `run`, or that `owner` holds, is the caller's own and taken over at once.
    /// Statements: one. Errors: `InvalidInput` for a key that no run can have.
    async fn claim_idempotency_key(
        &self,
        key: &ClaimKey,
        run: &RunId,
        owner: &ClaimOwner,
        lease: Duration,
    ) -> Result<Claim>;

    /// Changes a claim that still is as in `from`: who holds it, which run it names, and what becomes of it. Returns whether
    /// it was.
    ///
    /// To name another run is right only if the one of `from` was [fenced](Claims::fence_run) and has not got the key.
    /// Statements: one.
    async fn change_claim(&self, key: &ClaimKey, from: &ClaimMark, to: &ClaimMark, change: ClaimChange)
    -> Result<bool>;

    /// Deletes the claims of keys that the named runs had and that were cleared. Returns how many there were.
    ///
    /// Statements: one in each home of a key.
    async fn delete_claims(&self, cleared: &[(ClaimKey, RunId)]) -> Result<u64>;

    /// Sees to it that no run will be created with this id under a claim, unless one was. Returns what was decided,
    /// now or earlier.
    ///
    /// Statements: one.
    async fn fence_run(&self, run: &RunId) -> Result<Fence>;

    /// Creates a run together with its fence. It fails with `UniqueViolation` of the primary key of the fence if the id is
    /// fenced.
    ///
    /// Otherwise as the operation that `creation` names. Statements: one; one more if the idempotency key is taken.
    async fn create_fenced_run(&self, creation: Creation) -> Result<CreateRunOutcome>;
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(environment: &str, task: &str, key: &str) -> ClaimKey {
        let environment = environment.parse().expect("an id");
        ClaimKey { environment, task_identifier: task.to_owned(), key: key.to_owned() }
    }

    #[test]
    fn no_policy_is_more_than_clocks_can_count() {
        let endless =
            ClaimPolicy { lease: Duration::MAX, wait: Duration::MAX, poll: Duration::ZERO, ..ClaimPolicy::default() };
        let ClaimPolicy { lease, wait, poll, .. } = endless.bounded();
        assert_eq!((lease.as_secs(), wait.as_secs(), poll.as_millis()), (3_600, 3_600, 1));
        assert_eq!(ClaimPolicy::default().bounded(), ClaimPolicy::default());
    }

    #[test]
    fn the_hash_is_fnv_1a() {
        // From the reference's table.
        assert_eq!(fnv1a(b"".iter().copied()), 0xcbf2_9ce4_8422_2325);
        assert_eq!(fnv1a(b"a".iter().copied()), 0xaf63_dc4c_8601_ec8c);
        assert_eq!(fnv1a(b"foobar".iter().copied()), 0x8594_4171_f739_67e8);
    }

    /// Processes of different versions must agree. If this test fails, mend the function, not the table.
    #[test]
    fn the_home_of_a_key_never_changes() {
        for (environment, task, text, home) in HOMES {
            assert_eq!(claim_home(&key(environment, task, text)), home, "{environment} {task} {text}");
        }
    }

    /// The last two differ only in where one text ends and the next begins.
    const HOMES: [(&str, &str, &str, Residency); 6] = [
        ("env", "send-invoice", "invoice-17", Residency::RunOps),
        ("env", "send-invoice", "invoice-18", Residency::RunOps),
        ("cm0a1b2c3d4e5f6g7h8i9j0k1", "hello-world", "k", Residency::ControlPlane),
        ("env", "Ünïcödé", "🦀", Residency::RunOps),
        ("env", "abc", "d", Residency::RunOps),
        ("env", "a", "bcd", Residency::ControlPlane),
    ];

    #[test]
    fn keys_are_spread_over_both_databases() {
        let homes = (0..1_000).map(|n| claim_home(&key("env", "task", &format!("key {n}"))));
        let control_plane = homes.filter(|home| *home == Residency::ControlPlane).count();
        assert!((400..600).contains(&control_plane), "{control_plane} of 1000 keys are at home in the control plane");
    }

    #[test]
    fn waiting_creators_do_not_look_in_step() {
        let poll = Duration::from_millis(25);
        let waits: Vec<Duration> = (0..100).map(|n| ClaimOwner::mint().jittered(poll, n)).collect();
        assert!(waits.iter().all(|wait| *wait >= poll / 2 && *wait <= poll * 3 / 2), "{waits:?}");
        assert!(waits.iter().any(|wait| *wait < poll) && waits.iter().any(|wait| *wait > poll), "{waits:?}");
    }
}
