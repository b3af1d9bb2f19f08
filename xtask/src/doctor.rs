//! `cargo xtask doctor`: builds and runs the doctor, a binary of `tests`.

use std::{ffi::OsString, process::ExitCode};

use crate::cargo;

/// What `doctor` passes on.
#[derive(clap::Args)]
#[command(disable_help_flag = true)]
pub(crate) struct Args {
    /// Arguments for the doctor; `--help` lists them.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<OsString>,
}

/// Runs the doctor, which reads the configuration from the environment, and returns its exit code.
///
/// Errors: cargo cannot be started.
pub(crate) async fn run(_: &Args) -> anyhow::Result<ExitCode> {
    cargo::run_binary("doctor").await
}
