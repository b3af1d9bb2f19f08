//! The demo: run requests from a file, created, worked through and read back over both databases, and then a check with
//! plain SQL that nothing is lost or misplaced.
//!
//! Reading order: [`input`] says what a request is, `world` makes the control-plane rows it needs, `lives` creates the
//! runs and takes each to its end, `reads` reads them back, [`scenes`] plays what runs do together, [`check`](mod@check) looks
//! into the databases without the store, [`report`] shows it all.

pub mod check;
pub mod input;
mod ledger;
mod lives;
pub mod progress;
mod reads;
pub mod report;
mod routes;
pub mod scenes;
mod world;

use std::{sync::Arc, time::Instant};

use anyhow::{Context, Result, ensure};
use sea_orm::{ConnectOptions, Database};
use store::Residency;

pub use check::{Census, Check, check};
pub use input::{Input, Skipped};
pub use ledger::Ledger;
pub use progress::Progress;
pub use reads::Differences;
pub use report::Report;
pub use scenes::Scenes;

use crate::{Both, Side, runs::split_config};
use lives::Work;
use routes::Routes;
use world::World;

/// What a demo is run on.
#[derive(Debug)]
pub struct Config {
    /// The databases, migrated and empty.
    pub urls: Both<String>,
    /// The requests.
    pub input: Input,
    /// How many runs are made of the requests, by repeating the input or cutting it off; each request is made once if
    /// absent. The scenes make theirs besides.
    pub runs: Option<usize>,
    /// Who is told how far it is.
    pub progress: Progress,
}

/// Runs the demo and checks what it left behind.
///
/// # Errors
/// If there is no request, the databases or the store fail, or a scene goes otherwise than it has to. That something is lost, misplaced or reads otherwise than
/// it was written is no error but in the report.
pub async fn run(config: Config) -> Result<Report> {
    let Config { urls, input, runs, progress } = config;
    input.ensure_usable()?;
    let expected = runs.unwrap_or(input.requests.len());
    let skipped = input.skipped.clone();

    progress.step("seeding the control plane");
    let mut options = ConnectOptions::new(&urls.control_plane);
    options.max_connections(1).test_before_acquire(false).sqlx_logging(false);
    let seeding = Database::connect(options).await.context("could not connect to the control plane")?;
    let world = World::insert(&seeding, &input).await.context("could not seed the control plane")?;
    seeding.close().await?;

    let store = store::connect(&split_config(|side| urls.get(side))?).await?;
    let work = Arc::new(Work { store, world, input, routes: Routes::default() });

    let began = Instant::now();
    progress.start("creating runs and working through their lives", expected);
    let mut lives = lives::live(&work, runs, &progress).await?;
    let refused = lives.refusals();
    for Skipped { line, reason } in &refused {
        progress.note(&format!("line {line} is refused: {reason}"));
    }
    ensure!(!lives.ledger.is_empty(), "the store refused every request: mend the lines that are named above");
    let lived = began.elapsed();

    let began = Instant::now();
    let differences = reads::read_back(&work, &mut lives.ledger, &progress).await?;
    let read = began.elapsed();

    let scenes = scenes::play(&urls, &work.world.scenes, &mut lives.ledger, &progress).await?;

    progress.step("checking both databases with plain SQL");
    let check = check(&urls, &lives.ledger).await?;
    Ok(Report::new(lives, skipped, refused, work.routes.counts(), differences, scenes, check, [lived, read]))
}

/// The value for a residency, to be changed.
fn slot<T>(both: &mut Both<T>, home: Residency) -> &mut T {
    match crate::runs::side_of(home) {
        Side::ControlPlane => &mut both.control_plane,
        Side::RunOps => &mut both.run_ops,
    }
}
