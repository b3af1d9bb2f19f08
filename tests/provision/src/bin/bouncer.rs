//! Starts a server and a PgBouncer in front of it, prints the port, and holds both until its input ends.

use std::process::ExitCode;

use provision::{BouncerOptions, Options, PgBouncer, ProvisionError, Role};

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    match hold().await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bouncer: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn hold() -> Result<(), ProvisionError> {
    let server = provision::start_from_binaries(Role::ControlPlane, Options::default()).await?;
    let bouncer = PgBouncer::start(&server, BouncerOptions::default()).await?;
    println!("{}", bouncer.port());
    // Whether the input ends or cannot be read, there is nothing more to wait for.
    let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
    Ok(())
}
