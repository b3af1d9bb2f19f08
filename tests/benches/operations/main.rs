//! What the hot operations cost beside the same work by hand, over a Unix socket and over TCP. `cargo xtask bench`.
//!
//! Each is done in three ways in turns, over one connection each: by the store, by hand with `sqlx` in the fewest
//! statements that do it correctly, and with plain `sea-orm`. All three give the same answer, which is compared. The list
//! is [`reads::list`], [`writes::list`] and [`resolver::list`]; of the last, some tell an answer that is kept, and are compared
//! with the query that this saves.

mod bed;
mod by_hand;
mod measure;
mod plain;
mod reads;
mod report;
mod resolver;
mod rows;
mod writes;

use std::{
    fs::{self, File},
    io::Write,
    path::PathBuf,
    process::ExitCode,
};

use anyhow::{Context, Result, ensure};
use clap::Parser;
use criterion::Criterion;
use tests::Side;
use tokio::runtime::Runtime;

use bed::{Bed, Servers, Transport};
use measure::{Effort, Operation};
use report::{Report, Row};

/// Measures the store's hot operations beside the same work by hand and by a plain ORM, over a Unix socket and over TCP.
#[derive(Parser)]
#[command(name = "cargo xtask bench", bin_name = "cargo xtask bench")]
struct Args {
    /// Measure only the rows whose "operation/database/transport" contains this, as in `find_run` or `/tcp`.
    #[arg(long, value_name = "TEXT", default_value = "")]
    filter: String,
    /// Measure for a shorter time; the ratios are good for a first look.
    #[arg(long)]
    quick: bool,
    /// Write the results as JSON, too.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Write the table to a file instead of standard output.
    #[arg(long, value_name = "FILE", hide = true)]
    table: Option<PathBuf>,
    /// Given by cargo.
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> ExitCode {
    let args = Args::parse();
    if !args.bench {
        eprintln!("operations: nothing is measured here; use `cargo xtask bench`");
        return ExitCode::SUCCESS;
    }
    match run(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> Result<()> {
    let create = |file: &PathBuf| File::create(file).with_context(|| format!("could not create {}", file.display()));
    // What cannot be written is found before anything is measured.
    let json = args.json.as_ref().map(create).transpose()?;
    let effort = if args.quick { Effort::QUICK } else { Effort::FULL };
    // All of a way on one thread: nothing is measured that wakes another one.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    eprintln!("bench: getting two PostgreSQL servers");
    let servers = runtime.block_on(Servers::start())?;
    let rows = measure_all(args, effort, &runtime, &servers);
    let report = Report { servers: servers.describe(), rows: rows? };
    runtime.block_on(servers.stop())?;

    if let Some(mut file) = json {
        let text = format!("{:#}\n", report.to_json());
        file.write_all(text.as_bytes()).context("could not write the results to the file of --json")?;
    }
    match &args.table {
        Some(file) => fs::write(file, format!("{report}\n")).context("could not write the table")?,
        None => println!("{report}"),
    }
    Ok(())
}

fn measure_all(args: &Args, effort: Effort, runtime: &Runtime, servers: &Servers) -> Result<Vec<Row>> {
    let operations: Vec<Operation> = [reads::list(), writes::list(), resolver::list()].into_iter().flatten().collect();
    let mut criterion = Criterion::default().without_plots();
    let mut rows = Vec::new();
    // The database that is asked, if that is to be measured.
    let asked = |operation: &Operation, side: Side, transport: Transport| {
        let database = operation.homes.on(side)?;
        format!("{}/{database}/{}", operation.name, transport.name()).contains(&args.filter).then_some(database)
    };
    for transport in Transport::ALL {
        let any = operations.iter().any(|one| Side::ALL.into_iter().any(|side| asked(one, side, transport).is_some()));
        if !any {
            continue;
        }
        eprintln!("bench: making runs, over {}", transport.name());
        let beds = runtime.block_on(Bed::make(servers, transport))?;
        for operation in &operations {
            for bed in &beds {
                let Some(database) = asked(operation, bed.side, transport) else { continue };
                let medians = measure::measure(&mut criterion, effort, runtime, bed, database, transport, operation)?;
                eprintln!(
                    "bench: {}, {database}, {}: {} of sqlx, {} of sea-orm",
                    operation.name,
                    transport.name(),
                    report::ratio(medians.to_sqlx),
                    report::ratio(medians.to_sea_orm),
                );
                let Operation { name, compared, .. } = *operation;
                rows.push(Row { operation: name, database, transport, compared, medians });
            }
        }
    }
    ensure!(!rows.is_empty(), "no row's name contains {:?}: leave --filter out to see them all", args.filter);
    // The two transports of an operation belong next to each other.
    let place = |name: &str| operations.iter().position(|operation| operation.name == name);
    rows.sort_by_key(|row| (place(row.operation), row.database));
    Ok(rows)
}
