//! `cargo xtask demo`: real run requests in two physically separate PostgreSQL servers.
//!
//! Results go to standard output, progress and complaints to standard error.

use std::{
    fs::File,
    io::{self, Write},
    path::PathBuf,
    process::ExitCode,
};

use anyhow::{Context, Result};
use clap::Parser;
use provision::{Durability, Options, Server, Source};
use sea_orm::{ConnectOptions, ConnectionTrait, Database};
use tests::{
    Both, Side,
    demo::{self, Config, Input, Progress, Report, Skipped},
};
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    try_join,
};

/// Creates runs from a file of requests in two PostgreSQL servers, works through their lives, reads them back, plays scenes
/// in which runs wait for each other, sleep and are listed, and checks with plain SQL that nothing is lost or misplaced.
#[derive(Parser)]
#[command(name = "cargo xtask demo", bin_name = "cargo xtask demo")]
struct Args {
    /// File with one run request per line, as tests/demo/README.md describes; the shipped sample if left out.
    #[arg(long, value_name = "FILE")]
    input: Option<PathBuf>,
    /// Make so many runs of the requests, repeating the file with new ids and keys; the scenes make theirs besides.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    runs: Option<u32>,
    /// Leave the servers up, and say how to connect and how to stop them.
    #[arg(long)]
    keep: bool,
    /// Write the results as JSON, too.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

#[tokio::main]
async fn main() -> ExitCode {
    demonstrate(&Args::parse()).await.unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::FAILURE
    })
}

async fn demonstrate(args: &Args) -> Result<ExitCode> {
    let input = match &args.input {
        Some(file) => Input::read(file)?,
        None => Input::shipped(),
    };
    for Skipped { line, reason } in &input.skipped {
        eprintln!("demo: line {line} is skipped: {reason}");
    }
    // What cannot do is found before anything is started.
    input.ensure_usable()?;
    let json = args.json.as_ref().map(|file| {
        File::create(file).with_context(|| format!("could not create {}: name a file for --json", file.display()))
    });
    let json = json.transpose()?;
    let mut stop = Stop::listen()?;

    let progress = Progress::on_standard_error();
    progress.step("getting two PostgreSQL servers");
    let options = Options { durability: Durability::Durable, keep: args.keep, ..Options::default() };
    let servers = tokio::select! {
        pair = provision::start_pair(options) => {
            let (control_plane, run_ops) = pair?;
            Both { control_plane, run_ops }
        }
        code = stop.asked_for() => return Ok(code),
    };
    for side in Side::ALL {
        progress.note(&format!("{side}: {}", servers.get(side).describe()));
    }

    let databases = Databases::named_for_this_process();
    let runs = args.runs.map(|runs| runs as usize);
    let outcome = tokio::select! {
        report = work(&databases, &servers, input, runs, progress) => report.and_then(|report| {
            show(&report, json)?;
            Ok(Ok(report))
        }),
        code = stop.asked_for() => Ok(Err(code)),
    };
    if args.keep {
        databases.tell(&servers)?;
    } else {
        databases.drop(&servers).await?;
    }
    Ok(match outcome? {
        Ok(report) => {
            tell(&report.last_line())?;
            if report.is_success() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
        }
        Err(code) => code,
    })
}

/// Makes the databases and runs the demo on them.
async fn work(
    databases: &Databases,
    servers: &Both<Server>,
    input: Input,
    runs: Option<usize>,
    progress: Progress,
) -> Result<Report> {
    progress.step("making and migrating a database on each");
    databases.create(servers).await?;
    demo::run(Config { urls: databases.urls(servers), input, runs, progress }).await
}

/// Somebody asks the process to end. It ends in order then: servers and databases go.
struct Stop {
    interrupt: Signal,
    terminate: Signal,
}

impl Stop {
    fn listen() -> Result<Stop> {
        Ok(Stop { interrupt: signal(SignalKind::interrupt())?, terminate: signal(SignalKind::terminate())? })
    }

    /// Waits for it, and gives the exit status that tells of it.
    async fn asked_for(&mut self) -> ExitCode {
        tokio::select! {
            _ = self.interrupt.recv() => ExitCode::from(130),
            _ = self.terminate.recv() => ExitCode::from(143),
        }
    }
}

/// The database of the demo on each server.
struct Databases {
    name: String,
}

impl Databases {
    /// Servers that the environment names can be anybody's, so the name is taken by nobody else.
    fn named_for_this_process() -> Databases {
        Databases { name: format!("runseam_demo_{}", cuid1::cuid()) }
    }

    fn urls(&self, servers: &Both<Server>) -> Both<String> {
        Both::from_fn(|side| servers.get(side).url(&self.name))
    }

    /// Makes and migrates both.
    async fn create(&self, servers: &Both<Server>) -> Result<()> {
        let urls = self.urls(servers);
        let create = async |side: Side| -> Result<()> {
            execute(servers.get(side), &format!("CREATE DATABASE {} TEMPLATE template0", self.name))
                .await
                .with_context(|| format!("could not make a database on the {side} server"))?;
            migration::up(side.schema(), urls.get(side), None).await?;
            Ok(())
        };
        try_join!(create(Side::ControlPlane), create(Side::RunOps))?;
        Ok(())
    }

    /// Says how to connect to what is kept and how to get rid of it. The password of a server of ours is told: it opens
    /// nothing else. That of a server of somebody's is not.
    fn tell(&self, servers: &Both<Server>) -> Result<()> {
        for side in Side::ALL {
            let server = servers.get(side);
            if server.source() == Source::Environment {
                tell(&format!("{side}: database {name}\ndrop:    DROP DATABASE {name}\n", name = self.name))?;
            } else {
                tell(&format!("{side}\n{}\n", server.describe_connection(&self.name)))?;
            }
        }
        Ok(())
    }

    /// Drops both where the servers stay. Servers of ours take them along.
    async fn drop(&self, servers: &Both<Server>) -> Result<()> {
        for side in Side::ALL {
            let server = servers.get(side);
            if server.source() == Source::Environment {
                execute(server, &format!("DROP DATABASE IF EXISTS {} WITH (FORCE)", self.name))
                    .await
                    .with_context(|| format!("could not drop {} from the {side} server: drop it by hand", self.name))?;
            }
        }
        Ok(())
    }
}

async fn execute(server: &Server, sql: &str) -> Result<()> {
    let mut options = ConnectOptions::new(server.url("postgres"));
    options.max_connections(1).test_before_acquire(false).sqlx_logging(false);
    let connection = Database::connect(options).await?;
    let done = connection.execute_unprepared(sql).await;
    connection.close().await?;
    done?;
    Ok(())
}

/// Writes a result.
fn tell(text: &str) -> Result<()> {
    writeln!(io::stdout(), "{text}").context("could not write to standard output")
}

/// Shows everything but the last line.
fn show(report: &Report, json: Option<File>) -> Result<()> {
    tell(&report.to_string())?;
    for finding in report.findings() {
        eprintln!("demo: {finding}");
    }
    if let Some(mut file) = json {
        let text = format!("{:#}\n", report.to_json());
        file.write_all(text.as_bytes()).context("could not write the results to the file of --json")?;
    }
    Ok(())
}
