//! Carries out one operation that takes several steps, over the databases that the environment names. It says `ready` once
//! it is connected, waits for a line before it begins, says which runs it takes on, and at last what is for others to do.
//! Tests kill it.

use std::io::{self, Write};

use anyhow::{Context, Result};
use clap::Parser;
use store::{Config, RunId};
use tests::{Mode, protocol::Protocol, wired::connections};

#[derive(Parser)]
struct Args {
    /// The operation, as JSON.
    operation: String,
    /// A run that somebody has taken on to continue.
    #[arg(long)]
    again: Vec<RunId>,
    /// With a hook in every transaction.
    #[arg(long)]
    hook: bool,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let args = Args::parse();
    let protocol: Protocol = serde_json::from_str(&args.operation).context("the operation is none")?;
    let mut config = Config::from_environment()?;
    // One after the other, so that every call has the same order of statements.
    connections(1)(&mut config);
    let mode = if args.hook { Mode::Hooked } else { Mode::Optimistic };
    mode.configure(&mut config);
    let store = store::connect(&config).await?;

    println!("ready");
    io::stdout().flush()?;
    io::stdin().read_line(&mut String::new())?;
    let mut taken_on = args.again.into_iter().collect();
    let announce = |run: RunId| println!("taken on: {run}");
    let for_others = protocol.carry_out(store.as_ref(), &mut taken_on, announce).await?;
    println!("{}", serde_json::to_string(&for_others)?);
    Ok(())
}
