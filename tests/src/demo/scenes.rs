//! Scenes: what runs do together, over both databases. They wait for each other, go to sleep, wait for dates, and are
//! listed.
//!
//! Each line that a scene tells was asserted before: a scene that goes otherwise ends the demo with an error that says what
//! was expected. The clock is turned by hand, so nothing sleeps.

mod batch;
mod dates;
mod pages;
mod stage;
mod waiting;

use std::fmt::Debug;

use anyhow::{Context, Result, ensure};
use serde_json::{Value as Json, json};
use store::{ExecutionStatus, Residency, Routable};

use super::{ledger::Ledger, progress::Progress, world::Place};
use crate::{Both, runs::state_label};
use stage::{Actor, Stage};

/// A scene that went as it has to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scene {
    /// What it is about.
    pub title: &'static str,
    /// What happened.
    pub lines: Vec<String>,
}

/// A run of a scene.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Role {
    /// What it does.
    pub name: String,
    /// The database it lives in.
    pub home: Residency,
    /// The states it went through.
    pub states: Vec<ExecutionStatus>,
}

impl Role {
    /// Its states in one line.
    pub(super) fn journey(&self) -> String {
        let states: Vec<String> = self.states.iter().map(|state| state_label(*state)).collect();
        states.join(" → ")
    }
}

/// All scenes and their runs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Scenes {
    /// In the order in which they were played.
    pub played: Vec<Scene>,
    /// The runs, in the order in which they were created.
    pub cast: Vec<Role>,
}

impl Scenes {
    pub(super) fn to_json(&self) -> Json {
        let played = self.played.iter().map(|scene| json!({ "title": scene.title, "lines": scene.lines }));
        let cast = self.cast.iter().map(|role| {
            let states: Vec<String> = role.states.iter().map(|state| state_label(*state)).collect();
            json!({ "run": role.name, "database": role.home.key(), "states": states })
        });
        json!({ "played": played.collect::<Vec<_>>(), "runs": cast.collect::<Vec<_>>() })
    }
}

/// Plays all scenes, and puts their runs and tokens into the ledger.
///
/// # Errors
/// If the store fails, or a scene goes otherwise than it has to.
pub(super) async fn play(
    urls: &Both<String>,
    place: &Place,
    ledger: &mut Ledger,
    progress: &Progress,
) -> Result<Scenes> {
    let mut stage = Stage::set(urls, place).await?;
    let mut played = vec![
        scene("Waiting across the seam", progress, waiting::across_the_seam(&mut stage)).await?,
        scene("A batch", progress, batch::results_in_order(&mut stage)).await?,
        scene("A checkpoint", progress, waiting::asleep(&mut stage)).await?,
        scene("A delayed run", progress, dates::rescheduled(&mut stage)).await?,
        scene("A debounced run", progress, dates::debounced(&mut stage)).await?,
    ];
    stage.read_back().await.context("the runs of the scenes are not as they were written")?;
    ledger.scenes = stage.cast.iter().map(Actor::expected).collect::<Result<_>>()?;
    ledger.tokens = std::mem::take(&mut stage.tokens);
    played.push(scene("All runs, page by page", progress, pages::turned(&stage, ledger)).await?);

    let cast = stage.cast.into_iter().map(|Actor { id, name, states, .. }| Role { name, home: id.residency(), states });
    Ok(Scenes { played, cast: cast.collect() })
}

async fn scene(
    title: &'static str,
    progress: &Progress,
    act: impl Future<Output = Result<Vec<String>>>,
) -> Result<Scene> {
    progress.step(&format!("playing a scene: {title}"));
    let lines = act.await.with_context(|| format!("the scene {title:?} went wrong"))?;
    Ok(Scene { title, lines })
}

/// A database in a sentence.
fn the(home: Residency) -> &'static str {
    match home {
        Residency::ControlPlane => "the control plane",
        Residency::RunOps => "run-ops",
    }
}

/// Asserts.
fn same<T: PartialEq + Debug>(what: &str, found: T, expected: T) -> Result<()> {
    ensure!(found == expected, "{what}: expected {expected:?}, found {found:?}");
    Ok(())
}
