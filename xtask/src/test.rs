//! `cargo xtask test`: every test of the workspace, with servers for all of them.

use std::{
    ffi::OsString,
    process::{Command, ExitCode},
};

use provision::{Options, Server, Source};

use crate::cargo;

/// What `test` passes on.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Arguments for `cargo test`, such as a part of a test's name, or `-- --nocapture`.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<OsString>,
}

/// Provisions two servers, runs `cargo test` on the whole workspace with them, and stops them.
///
/// Out: the exit code of `cargo test`, whose summary comes last.
/// Errors: no servers to be had, or cargo cannot be started.
pub(crate) async fn run(_: &Args) -> anyhow::Result<ExitCode> {
    let mut interrupts = cargo::survive_interrupts()?;
    let (control_plane, run_ops) = tokio::select! {
        servers = provision::start_pair(Options::default()) => servers?,
        _ = interrupts.recv() => return Ok(ExitCode::from(130)),
    };
    eprintln!("test: two servers, {}", control_plane.describe());

    let mut tests = cargo::cargo();
    tests.args(["test", "--workspace", "--locked"]).args(cargo::arguments());
    let status = cargo::run(with(tests, &control_plane, &run_ops)).await?;

    if control_plane.source() == Source::Environment {
        // They go on after us. What an interrupted test has left there, and the templates, should not.
        let sweep = sweep()?;
        let swept = cargo::run(with(sweep, &control_plane, &run_ops)).await?;
        if !swept.success() {
            eprintln!("test: databases of the tests may be left on the servers; the next run sweeps them");
        }
    }
    tokio::try_join!(control_plane.stop(), run_ops.stop())?;
    Ok(cargo::exit_code(status))
}

/// The sweeper, a binary of `tests`: the one that `cargo test` has just built, or else another.
fn sweep() -> anyhow::Result<Command> {
    let built = std::env::current_exe()?.with_file_name("sweep");
    if built.exists() {
        return Ok(Command::new(built));
    }
    let mut sweep = cargo::cargo();
    sweep.args(["run", "--quiet", "--locked", "--bin", "sweep"]);
    Ok(sweep)
}

/// Names the two servers to `command`, in the variables that `provision` reads.
fn with(mut command: Command, control_plane: &Server, run_ops: &Server) -> Command {
    command
        .env("RUNSEAM_TEST_CONTROL_PLANE_URL", control_plane.url("postgres"))
        .env("RUNSEAM_TEST_RUN_OPS_URL", run_ops.url("postgres"))
        // The choice is made.
        .env_remove("RUNSEAM_POSTGRES");
    command
}
