//! `cargo xtask bench`: builds and runs the benchmark `operations` of `tests`.

use std::{ffi::OsString, io, process::ExitCode};

use anyhow::Context;

use crate::cargo;

/// What `bench` passes on.
#[derive(clap::Args)]
#[command(disable_help_flag = true)]
pub(crate) struct Args {
    /// Arguments for the benchmark; `--help` lists them.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<OsString>,
}

/// Runs the benchmark and returns its exit code.
///
/// Criterion reports on standard output, which is for the table: it goes where progress goes, and the table, which the
/// benchmark puts into a file, comes last.
/// Errors: cargo cannot be started.
pub(crate) async fn run(_: &Args) -> anyhow::Result<ExitCode> {
    let _interrupts = cargo::survive_interrupts()?;
    let table = tempfile::NamedTempFile::new().context("cannot make a temporary file")?;
    let mut bench = cargo::cargo();
    bench.args(["bench", "--locked", "--bench", "operations", "--"]);
    bench.arg("--table").arg(table.path()).args(cargo::arguments()).stdout(io::stderr());
    let status = cargo::run(bench).await?;
    print!("{}", std::fs::read_to_string(table.path()).context("cannot read the table")?);
    Ok(cargo::exit_code(status))
}
