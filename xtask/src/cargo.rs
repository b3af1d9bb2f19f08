//! Runs cargo, and whatever it starts, to its end.

use std::{
    ffi::{OsStr, OsString},
    os::unix::process::ExitStatusExt,
    process::{Command, ExitCode, ExitStatus},
};

use anyhow::Context;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// The cargo that runs us, or the one on the path.
///
/// What it has told us about our own package it must not pass on: build scripts of some dependencies run again where those
/// variables differ, and everything above them is built anew at each change between `cargo xtask …` and plain cargo.
pub(crate) fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    for (name, _) in std::env::vars_os().filter(|(name, _)| is_about_our_package(name)) {
        command.env_remove(name);
    }
    command
}

fn is_about_our_package(variable: &OsStr) -> bool {
    const PREFIXES: [&str; 3] = ["CARGO_PKG_", "CARGO_MANIFEST_", "CARGO_BIN_"];
    const NAMES: [&str; 3] = ["CARGO_CRATE_NAME", "CARGO_PRIMARY_PACKAGE", "OUT_DIR"];
    let name = variable.to_string_lossy();
    PREFIXES.iter().any(|prefix| name.starts_with(prefix)) || NAMES.contains(&name.as_ref())
}

/// What stands behind the name of our command, as it was typed: `clap` would eat a leading `--`.
pub(crate) fn arguments() -> impl Iterator<Item = OsString> {
    std::env::args_os().skip(2)
}

/// From now on Ctrl-C does not end this process, which has to clean up. It does end the children: the terminal sends it
/// to all of us.
pub(crate) fn survive_interrupts() -> anyhow::Result<Signal> {
    signal(SignalKind::interrupt()).context("cannot listen for Ctrl-C")
}

/// Runs `command` and waits until it is done, whatever signals come meanwhile.
pub(crate) async fn run(mut command: Command) -> anyhow::Result<ExitStatus> {
    let waiting = tokio::task::spawn_blocking(move || command.status());
    waiting.await?.context("cannot start cargo")
}

/// The exit code that says the same as `status`, in the way of a shell where a signal ended the process.
pub(crate) fn exit_code(status: ExitStatus) -> ExitCode {
    let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal));
    // Both kinds are below 256 on Unix; anything else is a failure too.
    code.and_then(|code| u8::try_from(code).ok()).map_or(ExitCode::FAILURE, ExitCode::from)
}

/// Builds and runs a binary of `tests` with the arguments that were given to this command, and returns its exit code.
///
/// Errors: cargo cannot be started.
pub(crate) async fn run_binary(name: &str) -> anyhow::Result<ExitCode> {
    let _interrupts = survive_interrupts()?;
    let mut command = cargo();
    // Cargo reports its progress: the first build takes a while.
    command.args(["run", "--locked", "--bin", name, "--"]).args(arguments());
    Ok(exit_code(run(command).await?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cargo_says_about_our_package_is_not_passed_on() {
        for name in ["CARGO_PKG_NAME", "CARGO_MANIFEST_DIR", "CARGO_BIN_NAME", "OUT_DIR"] {
            assert!(is_about_our_package(OsStr::new(name)), "{name}");
        }
        for name in ["CARGO", "CARGO_HOME", "CARGO_TARGET_DIR", "CARGO_TERM_COLOR", "PATH"] {
            assert!(!is_about_our_package(OsStr::new(name)), "{name}");
        }
    }

    #[test]
    fn exit_codes_are_passed_on_and_signals_are_told_as_shells_do() {
        for (status, expected) in [(0, 0), (1 << 8, 1), (101 << 8, 101), (2, 130), (9, 137)] {
            let code = exit_code(ExitStatus::from_raw(status));
            assert_eq!(format!("{code:?}"), format!("{:?}", ExitCode::from(expected)), "status {status:#x}");
        }
    }
}
