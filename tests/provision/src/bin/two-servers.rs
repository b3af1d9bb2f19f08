//! Starts the two servers, prints how to connect, and holds them until it is interrupted or its input ends.

use std::error::Error;
use std::process::ExitCode;

use provision::{Options, ProvisionError};

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let Err(error) = hold().await else {
        return ExitCode::SUCCESS;
    };
    eprintln!("two-servers: {error}");
    let mut cause = error.source();
    while let Some(error) = cause {
        eprintln!("  because: {error}");
        cause = error.source();
    }
    ExitCode::FAILURE
}

async fn hold() -> Result<(), ProvisionError> {
    let (control_plane, run_ops) = provision::start_pair(Options::default()).await?;
    for (name, server) in [("control plane", &control_plane), ("run-ops", &run_ops)] {
        println!("{name}: {}", server.describe());
        println!("{}", server.describe_connection("postgres"));
    }
    // Whether the input ends or cannot be read, there is nothing more to wait for.
    let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
    control_plane.stop().await?;
    run_ops.stop().await
}
