//! Drops what tests have left on servers that outlive them: those that the environment names.

use std::time::Duration;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let dropped = tests::databases::sweep(Duration::from_secs(3)).await?;
    if !dropped.is_empty() {
        eprintln!("sweep: dropped {} databases of tests", dropped.len());
    }
    Ok(())
}
