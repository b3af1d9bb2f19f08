//! `cargo xtask …`: the chores of this workspace, one file per command.

use std::process::ExitCode;

use clap::{Parser, Subcommand};

mod bench;
mod cargo;
mod demo;
mod doctor;
mod regen;
mod test;

/// The chores of this workspace.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Regenerate the entity crates and the store's schema facts from the migrations.
    Regen(regen::Args),
    /// Run every test of the workspace against two PostgreSQL servers.
    Test(test::Args),
    /// Run the demo: runs through two PostgreSQL servers.
    Demo(demo::Args),
    /// Examine the databases that the environment names, and say what to do about what is not as it should be.
    Doctor(doctor::Args),
    /// Measure the store beside hand-written SQL and a plain ORM.
    Bench(bench::Args),
}

#[tokio::main]
async fn main() -> ExitCode {
    let outcome = match Cli::parse().command {
        Command::Regen(args) => regen::run(&args).await,
        Command::Test(args) => test::run(&args).await,
        Command::Demo(args) => demo::run(&args).await,
        Command::Doctor(args) => doctor::run(&args).await,
        Command::Bench(args) => bench::run(&args).await,
    };
    outcome.unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::FAILURE
    })
}
