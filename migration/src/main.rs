//! `migration <up|down|status> <control-plane|run-ops>`: migrates one database from the command line.

use std::env;
use std::process::ExitCode;

use anyhow::{Context as _, bail};
use clap::{Args, Parser, Subcommand, ValueEnum};
use migration::Schema;

/// Builds, takes back and inspects the schemas of the two databases.
#[derive(Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Apply the migrations that are missing
    Up {
        #[command(flatten)]
        target: Target,
        /// Apply at most this many
        #[arg(long, value_name = "N")]
        steps: Option<u32>,
    },
    /// Take migrations back; the data in their tables is lost
    Down {
        #[command(flatten)]
        target: Target,
        /// Take back this many
        #[arg(long, value_name = "N", conflicts_with = "all")]
        steps: Option<u32>,
        /// Take back all of them
        #[arg(long)]
        all: bool,
    },
    /// List the migrations and say which are applied
    Status {
        #[command(flatten)]
        target: Target,
    },
}

#[derive(Args)]
struct Target {
    /// Which database
    #[arg(value_enum)]
    database: Database,
    /// The database's URL [default: the environment variable CONTROL_PLANE_DATABASE_URL or RUN_OPS_DATABASE_URL]
    #[arg(long)]
    url: Option<String>,
}

#[derive(Clone, Copy, ValueEnum)]
enum Database {
    ControlPlane,
    RunOps,
}

impl Target {
    fn schema(&self) -> Schema {
        match self.database {
            Database::ControlPlane => Schema::ControlPlane,
            Database::RunOps => Schema::RunOps,
        }
    }

    fn url(&self) -> anyhow::Result<String> {
        if let Some(url) = &self.url {
            return Ok(url.clone());
        }
        let variable = self.schema().url_variable();
        let url = env::var(variable).ok().filter(|url| !url.is_empty());
        url.with_context(|| format!("no database URL: give --url or set {variable}"))
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    match run(Cli::parse().command).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Up { target, steps } => {
            let names = migration::up(target.schema(), &target.url()?, steps).await?;
            report("applied", &names, target.schema());
        }
        Command::Down { target, steps, all } => {
            if steps.is_none() && !all {
                bail!("down loses data: say how far with --steps N, or --all to empty the database");
            }
            let names = migration::down(target.schema(), &target.url()?, steps).await?;
            report("taken back", &names, target.schema());
        }
        Command::Status { target } => {
            let list = migration::status(target.schema(), &target.url()?).await?;
            for migration in &list {
                println!("{:<8} {}", if migration.applied { "applied" } else { "pending" }, migration.name);
            }
            let applied = list.iter().filter(|migration| migration.applied).count();
            println!("{}: {applied} of {} migrations applied", target.schema().name(), list.len());
        }
    }
    Ok(())
}

fn report(verb: &str, names: &[String], schema: Schema) {
    for name in names {
        println!("{verb} {name}");
    }
    println!("{}: {} migrations {verb}", schema.name(), names.len());
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }
}
