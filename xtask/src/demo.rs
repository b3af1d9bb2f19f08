//! `cargo xtask demo`: builds and runs the demo, a binary of `tests`.

use std::{ffi::OsString, process::ExitCode};

use crate::cargo;

/// What `demo` passes on.
#[derive(clap::Args)]
#[command(disable_help_flag = true)]
pub(crate) struct Args {
    /// Arguments for the demo; `--help` lists them.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<OsString>,
}

/// Runs the demo and returns its exit code.
///
/// Errors: cargo cannot be started.
pub(crate) async fn run(_: &Args) -> anyhow::Result<ExitCode> {
    let _interrupts = cargo::survive_interrupts()?;
    let mut demo = cargo::cargo();
    // Cargo reports its progress: the first build takes a while.
    demo.args(["run", "--locked", "--bin", "demo", "--"]).args(cargo::arguments());
    Ok(cargo::exit_code(cargo::run(demo).await?))
}
