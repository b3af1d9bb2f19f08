//! An application in one file. It runs on one database or on two, by configuration alone:
//!
//! ```console
//! $ export CONTROL_PLANE_DATABASE_URL=postgres://…
//! $ cargo run --example application -- ENVIRONMENT TASK
//! $ export RUN_OPS_SPLIT=on RUN_OPS_MINT=on RUN_OPS_DATABASE_URL=postgres://…
//! $ cargo run --example application -- ENVIRONMENT TASK
//! ```
//!
//! It triggers a run of `TASK` in `ENVIRONMENT` and lists what is there. All that the README's table
//! of variables has can be set besides.

use std::env;
use std::error::Error;
use std::process::ExitCode;

use store::{
    Config, CreateRun, CreateRunOutcome, EnvironmentId, ListRuns, NewRun, Payload, Read, Routable, RunFilter, RunRow,
    Topology, Trace,
};

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    match run().await {
        Ok(()) => ExitCode::SUCCESS,
        // Every message is complete in itself, and shows no address.
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

async fn run() -> Result<(), Box<dyn Error>> {
    let (Some(environment), Some(task)) = (env::args().nth(1), env::args().nth(2)) else {
        return Err("usage: application ENVIRONMENT TASK".into());
    };
    let environment: EnvironmentId = environment.parse()?;

    // Everything an application needs, checked before anything is read.
    let topology = Topology::connect(&Config::from_environment()?).await?;
    let runs = topology.runs();
    let databases: Vec<String> = runs.residencies().iter().map(ToString::to_string).collect();
    println!("databases: {}", databases.join(", "));

    // "Not there" and "could not find out" are different answers: the second is an error.
    let Some(environment) = topology.control_plane().resolve_env(&environment).await? else {
        return Err("there is no such environment".into());
    };

    // Where the run is born is decided here, and shows in its id.
    let id = topology.mint().root_run(&environment.organization).await;
    let trace = Trace { trace_id: id.to_string(), span_id: id.to_string(), parent_span_id: None, context: None };
    let run = NewRun::new(id, environment.identity(), &task, Payload::json("{}"), format!("task/{task}"), trace);
    if let CreateRunOutcome::Created(created) = runs.create_run(CreateRun::queued(run)).await? {
        println!("{} is born in the {} database", created.value.run.friendly_id, id.residency());
    }

    let filter = RunFilter { environment: Some(environment.id.clone()), ..RunFilter::default() };
    let page = runs.list_runs(&ListRuns::first(filter, 20), Read::Primary).await?;
    for run in page.rows {
        println!("{}: {:?}, in the {} database", run.friendly_id, run.status, run.run_id()?.residency());
    }
    Ok(())
}
