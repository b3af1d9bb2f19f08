//! `cargo xtask doctor`: whether the databases that the environment names are as the store needs them.
//!
//! The findings go to standard output, progress to standard error.

use std::{
    io::{self, Write},
    process::ExitCode,
};

use anyhow::{Context, Result};
use clap::Parser;
use store::topology::variables::environment;
use tests::doctor::{self, Installation, Report};

/// The configuration cannot be read.
const UNREADABLE: u8 = 2;

/// Examines the databases that the environment names, as an application would: CONTROL_PLANE_DATABASE_URL,
/// CONTROL_PLANE_REPLICA_URL, RUN_OPS_SPLIT, RUN_OPS_DATABASE_URL, RUN_OPS_REPLICA_URL and the others. It changes nothing,
/// and shows no address, no credential and no row.
///
/// Exit status: 0 if nothing failed (there may be warnings), 1 if something did, 2 if the configuration cannot be read.
#[derive(Parser)]
#[command(name = "cargo xtask doctor", bin_name = "cargo xtask doctor")]
struct Args {
    /// Tell what was found as JSON, not as a table.
    #[arg(long)]
    json: bool,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    examine(&Args::parse()).await.unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::FAILURE
    })
}

async fn examine(args: &Args) -> Result<ExitCode> {
    match environment().and_then(Installation::from_variables) {
        Ok(installation) => {
            let report = doctor::examine(&installation, |step| eprintln!("doctor: {step}")).await;
            tell(&report, args)?;
            Ok(if report.is_success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
        }
        Err(error) => {
            eprintln!("doctor: {error}");
            tell(&doctor::unreadable(&error), args)?;
            Ok(ExitCode::from(UNREADABLE))
        }
    }
}

fn tell(report: &Report, args: &Args) -> Result<()> {
    let text = if args.json { format!("{:#}", report.to_json()) } else { report.to_string() };
    writeln!(io::stdout(), "{text}").context("could not write to standard output")
}
