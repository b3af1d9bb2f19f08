//! A split equals a single database: the same steps on both, and every answer and all contents compared.
//!
//! A [sequence of steps](steps) is drawn; it is done on a store over one database and on one over two, by clocks that
//! show the same time. After each step the answers have to be equal, and at the end what is stored. Ids differ by what a
//! split is, so both sides are given names first.
//!
//! # What is left out
//!
//! In these a split differs from one database, as the contracts say. No sequence does them:
//!
//! - **Uniqueness ends with a database.** Keys of runs that are made of their run ([`KeyScope::Run`]), one-time tokens,
//!   keys of batches, names of tags, and keys of waitpoints that are created or upserted, are not used by both kinds. Keys
//!   of runs of global scope are, for they are claimed; and so are keys of `get_or_create_waitpoint` without an owner,
//!   which looks everywhere first.
//! - **References within a database.** Parent, root and batch of a run, the run of a batch item, the batch a run waits
//!   for and the checkpoint of a snapshot are of the run's own kind; in a split anything else is refused.
//! - **Foreign keys of one schema.** Whatever a call names exists.
//! - **Where it is.** Tokens, the database that an error names, and that of a `CompletionPlace`.
//! - **Page boundaries.** A page may be shorter than asked for: lists are read to their end.
//! - **Relations to the control plane alone** (worker, queue, environment; the waitpoints and blocked runs of a batch).
//! - **What only a store over several databases asks**: claims, fences, copies, the halves of other methods; and units.
//! - **Stale copies where they are believed.** A copy that lies beside the run that is asked about counts
//!   (`run_edges_with_waitpoints` and whatever takes a `beside`); where a status is asked for, one is listed by what it
//!   says if the row of run-ops does not fit; and a call that changes rows everywhere counts it. So a copied waitpoint
//!   has an id of the run-ops shape and no key, and is not waited for by runs of the control plane.
//!
//! [`KeyScope::Run`]: store::KeyScope::Run

mod coverage;
mod dump;
pub mod fault;
mod play;
pub mod steps;
mod text;
mod world;

use std::cell::Cell;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use anyhow::{Context, Result, bail};
use proptest::test_runner::{Config as Cases, TestCaseError, TestError, TestRng, TestRunner};
use provision::{BouncerOptions, PgBouncer};
use store::{Config, ControlPlane, PgRunStore, Residency, RunOps, RunStore};
use tokio::runtime::Runtime;

pub use coverage::Coverage;
use fault::{Fault, FaultStore, LostLinks};
use play::{Answer, Player};
use steps::{Step, What};
use world::{Named, RunSlot, WaitpointSlot, Which, World};

use crate::clock::Hands;
use crate::pooled::pooled;
use crate::runs::{database_config, moment, split_config};
use crate::runtime::lock;
use crate::{Both, Databases, Side};

/// Steps of a sequence.
pub const STEPS: usize = 50;

/// How long a sequence that fails is shrunk.
const SHRINK_MILLISECONDS: u32 = 90_000;

/// The store over two databases that is compared.
#[derive(Clone, Copy, Debug)]
pub enum Subject {
    /// The one that [`store::connect`] gives.
    Connected,
    /// As [`Subject::Connected`], with both databases behind PgBouncer in transaction mode.
    Pooled,
    /// One whose calls go through a [`FaultStore`].
    Through(Option<Fault>),
}

async fn through(config: &Config, fault: Option<Fault>, links: LostLinks) -> Result<Arc<dyn RunStore>> {
    let run_ops = config.run_ops.as_ref().context("a split has two databases")?;
    let control_plane = PgRunStore::<ControlPlane>::connect(&config.control_plane).await?;
    let run_ops = PgRunStore::<RunOps>::connect(run_ops).await?;
    let control_plane: Arc<dyn RunStore> = Arc::new(control_plane.with_clock(Arc::clone(&config.clock)));
    let run_ops: Arc<dyn RunStore> = Arc::new(run_ops.with_clock(Arc::clone(&config.clock)));
    FaultStore::split(fault, links, [(Residency::ControlPlane, control_plane), (Residency::RunOps, run_ops)])
}

/// Both stores, over databases of their own, in which one sequence after the other is done.
pub struct Arena {
    single: Arc<dyn RunStore>,
    split: Arc<dyn RunStore>,
    of_single: Databases,
    of_split: Arc<Databases>,
    /// What is between the split and its databases.
    _bouncers: Option<Both<PgBouncer>>,
    links: LostLinks,
    clock: Arc<Hands>,
    sequences: AtomicU32,
    shrinks: u32,
    coverage: Mutex<Coverage>,
}

impl std::fmt::Debug for Arena {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Arena")
    }
}

impl Arena {
    /// Fresh databases, with a store over one of them and a store over two.
    ///
    /// # Errors
    /// If there are no servers, or a store cannot be built.
    pub async fn fresh(subject: Subject) -> Result<Arena> {
        let (of_single, of_split) = tokio::try_join!(Databases::fresh(), Databases::fresh())?;
        let of_split = Arc::new(of_split);
        let links = LostLinks::of(Arc::clone(&of_split));
        let clock = Arc::new(Hands::at(moment(0)));
        let mut config = Config::single(database_config(of_single.control_plane_url())?);
        config.clock = Arc::<Hands>::clone(&clock);
        let single = store::connect(&config).await?;

        let bouncers = match subject {
            Subject::Pooled => Some(of_split.behind_poolers(BouncerOptions::default()).await?),
            Subject::Connected | Subject::Through(_) => None,
        };
        let urls = Both::from_fn(|side| match &bouncers {
            Some(bouncers) => bouncers.get(side).url(of_split.name(side)),
            None => of_split.url(side).to_owned(),
        });
        let mut config = split_config(|side| urls.get(side))?;
        if bouncers.is_some() {
            pooled(&mut config);
        }
        config.clock = Arc::<Hands>::clone(&clock);
        let split = match subject {
            Subject::Connected | Subject::Pooled => store::connect(&config).await?,
            Subject::Through(fault) => {
                // Its members are opened one by one, and begin no split.
                crate::pair(of_split.control_plane_url(), of_split.run_ops_url()).await?;
                through(&config, fault, links.clone()).await?
            }
        };
        Ok(Arena {
            single,
            split,
            of_single,
            of_split,
            _bouncers: bouncers,
            links,
            clock,
            sequences: AtomicU32::new(1),
            // What is broken on purpose need not be looked for.
            shrinks: if matches!(subject, Subject::Through(_)) { 0 } else { 1_000 },
            coverage: Mutex::default(),
        })
    }

    /// Draws so many sequences from `seed` and does them. The first that tells the stores apart is shrunk and told, and
    /// `stopped` is set. Once it is no other sequence is begun.
    ///
    /// # Errors
    /// If a sequence tells the stores apart.
    pub fn search(&self, runtime: &Runtime, seed: u64, sequences: u32, stopped: &AtomicBool) -> Result<()> {
        let cases = Cases {
            cases: sequences,
            failure_persistence: None,
            max_shrink_iters: self.shrinks,
            max_shrink_time: SHRINK_MILLISECONDS,
            ..Cases::default()
        };
        let mut bytes = [0; 32];
        bytes[..8].copy_from_slice(&seed.to_le_bytes());
        let random = TestRng::from_seed(cases.rng_algorithm, &bytes);
        let has_failed = Cell::new(false);
        let searched = TestRunner::new_with_rng(cases, random).run(&steps::sequence(STEPS), |steps| {
            if stopped.load(Ordering::Relaxed) && !has_failed.get() {
                return Ok(());
            }
            runtime.block_on(self.play(&steps)).map_err(|error| {
                has_failed.set(true);
                stopped.store(true, Ordering::Relaxed);
                TestCaseError::fail(format!("{error:#}"))
            })
        });
        match searched {
            Ok(()) => Ok(()),
            Err(TestError::Fail(reason, steps)) => bail!("seed {seed}: {reason}\nsteps: {steps:?}"),
            Err(TestError::Abort(reason)) => bail!("seed {seed}: the search was given up: {reason}"),
        }
    }

    /// Does the sequences in which a run [waits](steps::waits) and goes on.
    ///
    /// # Errors
    /// If a sequence tells the stores apart.
    pub async fn go_through_waits(&self) -> Result<()> {
        let executing = play::STATES.iter().position(|(state, _)| *state == store::ExecutionStatus::Executing);
        self.play_all(&steps::waits(executing.context("a run can be executing")?)).await
    }

    /// Does one in `of` of the sequences that begin in [every state](steps::from_every_state), from the `nth` on.
    ///
    /// # Errors
    /// If a sequence tells the stores apart.
    pub async fn go_through_states(&self, nth: usize, of: usize) -> Result<()> {
        let sequences = steps::from_every_state(play::STATES.len());
        self.play_all(sequences.iter().skip(nth).step_by(of)).await
    }

    async fn play_all(&self, sequences: impl IntoIterator<Item = &Vec<Step>>) -> Result<()> {
        for steps in sequences {
            self.play(steps).await.with_context(|| format!("steps: {steps:?}"))?;
        }
        Ok(())
    }

    /// What the sequences have reached so far.
    pub fn coverage(&self) -> Coverage {
        lock(&self.coverage).clone()
    }

    /// How many links of completed waitpoints [`Fault::LostLink`] has taken out of the split.
    pub fn lost_links(&self) -> u64 {
        self.links.count()
    }

    fn player(&self, which: Which) -> Player<'_> {
        let (store, databases) = match which {
            Which::Single => (&self.single, &self.of_single),
            Which::Split => (&self.split, self.of_split.as_ref()),
        };
        Player { which, store, databases }
    }

    /// Does the steps on both stores.
    ///
    /// # Errors
    /// If an answer or what is stored in the end is another one, or a database is gone.
    pub async fn play(&self, steps: &[Step]) -> Result<()> {
        let sequence = self.sequences.fetch_add(1, Ordering::Relaxed);
        let mut world = World::new(sequence);
        let mut texts = [text::Text::default(), text::Text::default()];
        let players = Which::ALL.map(|which| self.player(which));
        for (number, step) in steps.iter().enumerate() {
            world.step += 1;
            self.clock.turn_to(world.now());
            self.step(&mut world, &players, &mut texts, step)
                .await
                .with_context(|| format!("step {number}, {step:?}"))?;
        }
        self.compare_contents(&world, &mut texts).await
    }

    async fn step(
        &self,
        world: &mut World,
        players: &[Player<'_>; 2],
        texts: &mut [text::Text; 2],
        step: &Step,
    ) -> Result<()> {
        if step.what == What::PlantStaleCopy {
            return self.plant_stale_copy(world, step).await;
        }
        let [single, split] = players;
        let step = &world.focused(step);
        // Before the step, and only if it is about one run.
        let before = match world.run_index(step.a) {
            Some(run) if step.what == What::Advance || step.what.operation().is_some() => {
                single.latest(&world.runs[run]).await?
            }
            _ => None,
        };
        let what = match (step.what, &before) {
            (What::Advance, Some(before)) => match What::legal_in(before.execution_status, step.how) {
                Some(what) => what,
                None => return Ok(()),
            },
            (what, _) => what,
        };
        world.take_touched();
        let Some(of_single) = single.play(world, step, what).await? else { return Ok(()) };
        let touched = world.take_touched();
        let of_split = split.play(world, step, what).await?;
        let of_split = of_split.with_context(|| "the two databases have nothing to do it with, the one has")?;
        let run = world.runs.len();
        absorb(world, step, what, &of_single, &of_split);
        let names = Which::ALL.map(|which| world.names(which));
        let mut named = |which: usize, answer: &Answer| texts[which].of_answer(&answer.text, &names[which]);
        let (left, right) = (named(0, &of_single), named(1, &of_split));
        if left != right {
            bail!("{what:?} is answered differently {}", text::difference(&left, &right));
        }
        lock(&self.coverage).count(what, touched, of_single.had_effect);
        self.rename_minted(world, players, step, what).await?;
        let is_creation = what.operation().is_some_and(|operation| What::of(operation).is_none());
        let subject = if is_creation {
            (world.runs.len() > run).then_some(run)
        } else {
            let touches_one = what.operation().is_some() || matches!(what, What::CreateSnapshot | What::RecordInvalid);
            if touches_one { world.run_index(step.a) } else { None }
        };
        if let Some(run) = subject {
            world.last_run = Some(run);
            let after = single.latest(&world.runs[run]).await?;
            let new = world.new_snapshot();
            if let Some(after) = &after
                && before.as_ref().is_none_or(|before| before.id != after.id)
            {
                if let Some(operation) = what.operation() {
                    let from = if is_creation { None } else { before.as_ref().map(|before| before.execution_status) };
                    lock(&self.coverage).moved(operation, from, after.execution_status, world.runs[run].kind);
                }
                if after.id == new.as_str() {
                    world.runs[run].snapshots.push(new);
                }
            }
        }
        Ok(())
    }

    /// Gives rows whose ids a store has minted the same ids in both, for lists stand in the order of them.
    async fn rename_minted(&self, world: &mut World, players: &[Player<'_>; 2], step: &Step, what: What) -> Result<()> {
        let Some(run) = world.run_index(step.a) else { return Ok(()) };
        match what {
            What::Block | What::BlockEdges | What::BlockByBatch => {
                for player in players {
                    let sql = format!(
                        "UPDATE task_run_waitpoint SET id = 'e{:04}_' || waitpoint_id
                         WHERE task_run_id = '{}' AND id NOT LIKE 'e____\\_%'",
                        world.step,
                        world.runs[run].ids.of(player.which),
                    );
                    player.databases.sql(player.side(world.runs[run].kind), &sql).await?;
                }
            }
            What::RunWaitpoint => {
                let is_minted = |waitpoint: &WaitpointSlot| waitpoint.ids.single != waitpoint.ids.split;
                let new = world.new_waitpoint(false);
                let Some(minted) = world.waitpoints.iter_mut().find(|waitpoint| is_minted(waitpoint)) else {
                    return Ok(());
                };
                for player in players {
                    let sql = format!(
                        "UPDATE waitpoint SET id = '{new}', friendly_id = '{}' WHERE id = '{}'",
                        new.friendly(),
                        minted.ids.of(player.which),
                    );
                    player.databases.sql(player.side(minted.kind), &sql).await?;
                }
                minted.ids = Named { single: new.clone(), split: new };
            }
            _ => {}
        }
        Ok(())
    }

    /// Leaves a copy of a waitpoint of run-ops in the control plane, as it was before.
    async fn plant_stale_copy(&self, world: &mut World, step: &Step) -> Result<()> {
        let is_waited_for = |world: &World, index: usize| {
            let beside = |run: &RunSlot| run.kind == Residency::ControlPlane && run.blocked_by.contains(&index);
            world.runs.iter().any(beside)
        };
        let fit: Vec<usize> = (0..world.waitpoints.len())
            .filter(|index| {
                let waitpoint = &world.waitpoints[*index];
                let is_plain = waitpoint.has_run_ops_shape && waitpoint.key.is_none() && !waitpoint.is_copied;
                is_plain && waitpoint.kind == Residency::RunOps && !is_waited_for(world, *index)
            })
            .collect();
        let Some(index) = usize::from(step.a).checked_rem(fit.len()).map(|place| fit[place]) else { return Ok(()) };
        let id = world.waitpoints[index].ids.of(Which::Split);
        let sql = format!(
            "INSERT INTO waitpoint (id, friendly_id, type, status, idempotency_key, user_provided_idempotency_key,
                project_id, environment_id, created_at, updated_at)
             VALUES ('{id}', '{}', 'MANUAL', 'PENDING', '{id}', FALSE, '{}', '{}', '{before}', '{before}')",
            id.friendly(),
            world.environment.project,
            world.environment.id,
            before = moment(-3_600),
        );
        self.of_split.sql(Side::ControlPlane, &sql).await?;
        world.waitpoints[index].is_copied = true;
        lock(&self.coverage).count(What::PlantStaleCopy, 2, true);
        Ok(())
    }

    async fn compare_contents(&self, world: &World, texts: &mut [text::Text; 2]) -> Result<()> {
        let [of_single, of_split] = texts;
        let single = dump::contents(&self.of_single, &[Side::ControlPlane], world, Which::Single, of_single).await?;
        let split = dump::contents(&self.of_split, &Side::ALL, world, Which::Split, of_split).await?;
        if single != split {
            bail!("what is stored differs {}", text::difference(&single, &split));
        }
        Ok(())
    }
}

/// What later steps can pick because of this one.
fn absorb(world: &mut World, step: &Step, what: What, single: &Answer, split: &Answer) {
    let kind = world.kind(step.a);
    let new_waitpoint = |world: &mut World, kind, key, has_run_ops_shape| {
        let (Some(single), Some(split)) = (single.waitpoint.clone(), split.waitpoint.clone()) else { return None };
        let known = world.waitpoints.iter().position(|known| known.ids.single == single);
        Some(known.unwrap_or_else(|| {
            let ids = Named { single, split };
            world.waitpoints.push(WaitpointSlot { kind, ids, key, is_copied: false, has_run_ops_shape });
            world.waitpoints.len() - 1
        }))
    };
    match what {
        What::CreateQueued | What::CreateDelayed | What::CreateParked | What::CreateCancelled | What::CreateFailed
            if single.made && split.made =>
        {
            let parent = matches!(step.how % 8, 3 | 4).then(|| world.run_index_of(kind, step.b)).flatten();
            let root =
                parent.map(|parent| world.runs[parent].root.map_or((parent, 1), |(root, depth)| (root, depth + 1)));
            let snapshots = Vec::new();
            world.runs.push(RunSlot {
                kind,
                ids: world.new_run(kind),
                snapshots,
                key: play::run_key(kind, step),
                root,
                blocked_by: std::collections::BTreeSet::new(),
            });
            if step.c.is_multiple_of(3) && what != What::CreateCancelled {
                let id = world.new_waitpoint(false);
                let ids = Named { single: id.clone(), split: id };
                world.waitpoints.push(WaitpointSlot {
                    kind,
                    ids,
                    key: None,
                    is_copied: false,
                    has_run_ops_shape: false,
                });
            }
        }
        What::CreateBatch if single.made && split.made => {
            let ids = world.new_batch(kind);
            world.batches.push(world::BatchSlot { kind, ids });
        }
        What::CreateWaitpoint | What::UpsertWaitpoint | What::GetOrCreateWaitpoint if single.made && split.made => {
            let has_run_ops_shape = kind == Residency::RunOps && step.how.is_multiple_of(2);
            let id = world.new_waitpoint(has_run_ops_shape);
            let is_anywhere = match step.b % 6 {
                2 | 4 => false,
                3 => what != What::CreateWaitpoint,
                _ => true,
            };
            let key = play::waitpoint_key(kind, step, what, is_anywhere);
            let ids = Named { single: id.clone(), split: id };
            world.waitpoints.push(WaitpointSlot { kind, ids, key, is_copied: false, has_run_ops_shape });
        }
        What::RunWaitpoint => {
            if let Some(run) = world.run_index(step.a) {
                let kind = world.runs[run].kind;
                new_waitpoint(world, kind, None, false);
            }
        }
        What::BlockByBatch => {
            if let Some(run) = world.run_index(step.a) {
                let kind = world.runs[run].kind;
                if let Some(waitpoint) = new_waitpoint(world, kind, None, false) {
                    world.runs[run].blocked_by.insert(waitpoint);
                }
            }
        }
        What::Block | What::BlockEdges | What::CreateSnapshot => {
            if let Some(run) = world.run_index(step.a) {
                let how_many = if what == What::CreateSnapshot { step.how } else { step.c };
                let waitpoints = world.waitpoints_for(world.runs[run].kind, step.b, how_many);
                world.runs[run].blocked_by.extend(waitpoints);
            }
        }
        What::CreateCheckpoint if single.made => {
            if let Some(run) = world.run_index(step.a) {
                let checkpoint = world.new_checkpoint();
                world.checkpoints.push((run, checkpoint));
            }
        }
        _ => {}
    }
}
