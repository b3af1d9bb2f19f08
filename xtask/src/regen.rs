//! `cargo xtask regen`: everything that is derived from the two schemas, written anew.
//!
//! A throw-away PostgreSQL is migrated to both schemas, the tables that both have are proved equal, and
//! the entity crates, the store's schema facts and the catalogues that `doctor` expects are generated from
//! theirs. Nothing is written before all of it is known to be right. `--check` compares with the tree
//! instead of writing.
//!
//! In reading order: [`catalogue`] reads a database, [`parity`] compares two of them, [`entities`],
//! [`constraints`] and [`twins`] write Rust, [`files`] formats it and compares it with the tree.

use std::{
    future::Future,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context, bail, ensure};
use migration::Schema;
use provision::{Options, Role, Server, Source};
use sea_schema::{
    postgres::{def::TableDef, discovery::SchemaDiscovery},
    sqlx_types::{AssertSqlSafe, PgPool, Row, postgres::PgPoolOptions, query},
};

use self::{catalogue::Catalogue, files::Folder};

mod catalogue;
mod constraints;
mod entities;
mod files;
mod parity;
mod twins;

/// The command that mends whatever `--check` finds.
const COMMAND: &str = "cargo xtask regen";

/// The arguments of `regen`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Write nothing; compare with the tree, list what differs and exit with status 1 if anything does.
    #[arg(long)]
    check: bool,
}

/// One migrated database, as its catalogue and as the schema library see it.
struct Database {
    catalogue: Catalogue,
    tables: Vec<TableDef>,
    /// All of it, in PostgreSQL's words.
    lines: Vec<String>,
}

/// Regenerates, or with `--check` compares.
///
/// Out: success when the tree is (now) what the migrations say, failure when `--check` found a difference.
/// Errors: no server to be had, a migration that fails, or schemas that must not differ and do; then
/// nothing has been written.
pub(crate) async fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let (control_plane, run_ops) = migrated_databases().await?;
    let folders = generate(&control_plane, &run_ops)?;

    let root = root();
    let folders = files::format(&root, folders)?;
    let differences = files::compare(&root, &folders)?;
    if args.check && !differences.is_empty() {
        for difference in &differences {
            println!("{difference}");
        }
        println!("regen: {} not as the migrations have it; to mend: {COMMAND}", files_are(differences.len()));
        return Ok(ExitCode::FAILURE);
    }
    for path in files::write(&root, &folders, &differences)? {
        eprintln!("regen: {path}");
    }
    println!(
        "regen: up to date ({} tables control plane, {} tables run-ops)",
        control_plane.catalogue.tables.len(),
        run_ops.catalogue.tables.len(),
    );
    Ok(ExitCode::SUCCESS)
}

/// The root of the workspace in which cargo runs us; without cargo, of the one we were built in.
fn root() -> PathBuf {
    let package = std::env::var_os("CARGO_MANIFEST_DIR").unwrap_or_else(|| env!("CARGO_MANIFEST_DIR").into());
    Path::new(&package).join("..")
}

/// From two databases to the files of all folders. Pure: nothing is read or written.
fn generate(control_plane: &Database, run_ops: &Database) -> anyhow::Result<Vec<Folder>> {
    let differences = parity::compare(&control_plane.catalogue, &run_ops.catalogue);
    ensure!(
        differences.is_empty(),
        "what both databases have must be the same in both; nothing was written\n  {}\nmake the two migrators agree, \
         then: {COMMAND}",
        differences.join("\n  "),
    );

    let mut store = Folder::new("store/src/generated");
    store.add("constraints.rs", constraints::render(&control_plane.catalogue, &run_ops.catalogue)?);
    store.add("parity.rs", twins::render_parity(&control_plane.catalogue, &run_ops.catalogue)?);
    store.add("rows.rs", twins::render_rows(&control_plane.catalogue)?);
    store.add("schema_version.rs", twins::render_schema_versions());
    store.add("mod.rs", twins::render_module());

    let mut expected = Folder::new("tests/src/generated/catalogue");
    expected.add_lines("control_plane.txt", &control_plane.lines);
    expected.add_lines("run_ops.txt", &run_ops.lines);

    Ok(vec![
        entities::generate(Schema::ControlPlane, &control_plane.catalogue, &control_plane.tables)?,
        entities::generate(Schema::RunOps, &run_ops.catalogue, &run_ops.tables)?,
        store,
        expected,
    ])
}

/// Starts a server, migrates one database per schema on it, reads both and takes everything away again.
async fn migrated_databases() -> anyhow::Result<(Database, Database)> {
    let server =
        provision::start(Role::ControlPlane, Options::default()).await.context("no PostgreSQL to generate from")?;
    eprintln!("regen: {}", server.describe());

    let outcome = or_interrupted(async {
        tokio::try_join!(migrated_database(&server, Schema::ControlPlane), migrated_database(&server, Schema::RunOps),)
    })
    .await;

    // Cleaned up either way, but what went wrong first is what to tell.
    let cleaned_up = clean_up(server).await;
    let databases = outcome?;
    cleaned_up?;
    Ok(databases)
}

/// Stops the server. One of our own takes its databases along; one that was lent to us gets them dropped.
async fn clean_up(server: Server) -> anyhow::Result<()> {
    if matches!(server.source(), Source::Environment) {
        for schema in Schema::ALL {
            drop_database(&server, schema)
                .await
                .with_context(|| format!("the database {} is left over", database_name(schema)))?;
        }
    }
    server.stop().await.context("the throw-away server did not stop")
}

/// Waits for `work`, or gives up when the user presses Ctrl-C, so that the caller can clean up.
async fn or_interrupted<T>(work: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    tokio::select! {
        outcome = work => outcome,
        _ = tokio::signal::ctrl_c() => bail!("interrupted"),
    }
}

/// Creates a database, brings it to the newest version of `schema` and reads it.
async fn migrated_database(server: &Server, schema: Schema) -> anyhow::Result<Database> {
    let name = database_name(schema);
    let pool = connect(server, "postgres").await?;
    // Not template1: whatever somebody has put there would end up in the entities.
    query(AssertSqlSafe(format!("CREATE DATABASE {name} TEMPLATE template0")))
        .execute(&pool)
        .await
        .with_context(|| format!("could not create the database {name}"))?;
    pool.close().await;

    migration::up(schema, &server.url(&name), None)
        .await
        .with_context(|| format!("the {} migrations failed", schema.name()))?;

    let pool = connect(server, &name).await?;
    let catalogue =
        Catalogue::read(&pool).await.with_context(|| format!("could not read the {} catalogue", schema.name()))?;
    let tables = SchemaDiscovery::new(pool.clone(), "public")
        .discover()
        .await
        .with_context(|| format!("could not introspect the {} schema", schema.name()))?
        .tables;
    let lines = query(migration::CATALOGUE).fetch_all(&pool).await;
    let lines = lines.and_then(|rows| rows.iter().map(|row| row.try_get(0)).collect());
    let lines = lines.with_context(|| format!("could not list what the {} schema has", schema.name()))?;
    pool.close().await;
    Ok(Database { catalogue, tables, lines })
}

async fn drop_database(server: &Server, schema: Schema) -> anyhow::Result<()> {
    let pool = connect(server, "postgres").await?;
    let name = database_name(schema);
    query(AssertSqlSafe(format!("DROP DATABASE IF EXISTS {name} WITH (FORCE)"))).execute(&pool).await?;
    pool.close().await;
    Ok(())
}

async fn connect(server: &Server, database: &str) -> anyhow::Result<PgPool> {
    PgPoolOptions::new()
        .max_connections(1)
        .connect(&server.url(database))
        .await
        .with_context(|| format!("could not connect to the database {database}"))
}

/// A name that two runs at the same time do not share.
fn database_name(schema: Schema) -> String {
    format!("regen_{}_{}", std::process::id(), schema.key())
}

/// `1 file is`, `2 files are`.
fn files_are(number: usize) -> String {
    match number {
        1 => "1 file is".to_owned(),
        number => format!("{number} files are"),
    }
}
