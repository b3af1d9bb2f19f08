//! The kit's proxy: records what is on the wire, holds it, cuts it.

use std::time::Duration;

use anyhow::Result;
use sea_orm::{
    AccessMode, ConnectOptions, ConnectionTrait, Database, DatabaseConnection, DbBackend, Statement, TransactionTrait,
};
use tests::{Both, Databases, Proxy, Side, proxy::is_commit};

/// One connection, as applications have them: prepared statements, no pings.
async fn connect(url: &str) -> Result<DatabaseConnection> {
    let mut options = ConnectOptions::new(url);
    options.max_connections(1).test_before_acquire(false).sqlx_logging(false);
    Ok(Database::connect(options).await?)
}

fn query(sql: &str, value: i32) -> Statement {
    Statement::from_sql_and_values(DbBackend::Postgres, sql, [value.into()])
}

struct Setup {
    databases: Databases,
    proxy: Proxy,
    through: DatabaseConnection,
}

/// The run-ops database with a table `t`, and a connection by way of a proxy with nothing recorded yet.
async fn setup() -> Result<Setup> {
    let databases = Databases::empty().await?;
    databases.sql(Side::RunOps, "CREATE TABLE t (n integer PRIMARY KEY)").await?;
    let Both { run_ops: proxy, .. } = databases.behind_proxies().await?;
    let through = connect(proxy.url()).await?;
    proxy.recording().reset();
    Ok(Setup { databases, proxy, through })
}

#[tokio::test]
async fn a_statement_is_recorded_each_time_it_is_executed() -> Result<()> {
    let Setup { databases: _databases, proxy, through } = setup().await?;
    let sql = "SELECT n FROM t WHERE n = $1";
    through.query_all_raw(query(sql, 1)).await?;
    assert_eq!(proxy.recording().statements(), [sql]);
    // To prepare it takes a round trip of its own, the first time.
    proxy.recording().check_round_trips(2);

    proxy.recording().reset();
    through.query_all_raw(query(sql, 2)).await?;
    through.query_all_raw(query(sql, 3)).await?;
    assert_eq!(proxy.recording().statements(), [sql, sql]);
    proxy.recording().check_statements(2);
    proxy.recording().check_round_trips(2);
    assert_eq!(proxy.recording().connections(), 0);
    Ok(())
}

#[tokio::test]
async fn pings_are_counted_apart() -> Result<()> {
    let Setup { databases: _databases, proxy, through } = setup().await?;
    through.ping().await?;
    // The pool pings as well, when the connection comes back to it, but nobody waits for that.
    assert!((1..=2).contains(&proxy.recording().pings()), "{:?}", proxy.recording());
    proxy.recording().check_round_trips(0);
    proxy.recording().check_statements(0);
    Ok(())
}

#[tokio::test]
async fn transactions_are_recorded() -> Result<()> {
    let Setup { databases: _databases, proxy, through } = setup().await?;
    let txn = through.begin().await?;
    txn.execute_raw(query("INSERT INTO t VALUES ($1)", 1)).await?;
    txn.commit().await?;
    assert_eq!(proxy.recording().statements(), ["BEGIN", "INSERT INTO t VALUES ($1)", "COMMIT"]);

    proxy.recording().reset();
    let txn = through.begin_with_config(None, Some(AccessMode::ReadOnly)).await?;
    txn.rollback().await?;
    assert_eq!(proxy.recording().statements().last().map(String::as_str), Some("ROLLBACK"));
    Ok(())
}

#[tokio::test]
async fn look_ups_of_types_are_recorded() -> Result<()> {
    let Setup { databases, proxy, through } = setup().await?;
    databases.sql(Side::RunOps, "CREATE TYPE mood AS ENUM ('fine'); ALTER TABLE t ADD m mood").await?;
    through.query_all_raw(query("SELECT m FROM t WHERE n = $1", 1)).await?;
    let seen = proxy.recording().statements();
    assert!(seen.iter().any(|sql| sql.contains("pg_catalog.pg_type")), "{seen:?}");
    Ok(())
}

#[tokio::test]
async fn several_connections_are_counted() -> Result<()> {
    let Setup { databases: _databases, proxy, .. } = setup().await?;
    let (_a, _b) = tokio::try_join!(connect(proxy.url()), connect(proxy.url()))?;
    assert_eq!(proxy.recording().connections(), 2);
    proxy.recording().check_statements(0);
    Ok(())
}

#[tokio::test]
async fn large_values_pass_both_ways() -> Result<()> {
    let Setup { databases: _databases, proxy: _proxy, through } = setup().await?;
    let text = "straße ".repeat(500_000);
    let echo = Statement::from_sql_and_values(DbBackend::Postgres, "SELECT $1::text", [text.clone().into()]);
    let row = through.query_one_raw(echo).await?.expect("one row");
    assert!(row.try_get_by_index::<String>(0)? == text);
    Ok(())
}

#[tokio::test]
async fn refused_connections_fail_and_open_ones_go_on() -> Result<()> {
    let Setup { databases: _databases, proxy, through } = setup().await?;
    proxy.refuse_connections(true);
    connect(proxy.url()).await.expect_err("the proxy refuses");
    through.query_all_raw(query("SELECT $1", 1)).await?;

    proxy.refuse_connections(false);
    connect(proxy.url()).await?;
    Ok(())
}

#[tokio::test]
async fn cutting_all_breaks_what_is_open_and_nothing_else() -> Result<()> {
    let Setup { databases: _databases, proxy, through } = setup().await?;
    proxy.cut_all();
    through.query_all_raw(query("SELECT $1", 1)).await.expect_err("the connection is cut");
    // The pool opens another one.
    through.query_all_raw(query("SELECT $1", 1)).await?;
    Ok(())
}

#[tokio::test]
async fn a_statement_cut_before_was_not_executed_and_one_cut_after_was() -> Result<()> {
    let Setup { databases, proxy, through } = setup().await?;
    let insert = "INSERT INTO t VALUES ($1)";

    let cut = proxy.cut_before(2, |sql| sql.starts_with("INSERT"));
    through.execute_raw(query(insert, 1)).await?;
    assert!(!cut.fired());
    through.execute_raw(query(insert, 2)).await.expect_err("cut");
    assert!(cut.fired());
    assert_eq!(databases.values::<i32>(Side::RunOps, "SELECT n FROM t ORDER BY n").await?, [1]);

    let cut = proxy.cut_after(1, |sql| sql.starts_with("INSERT"));
    through.execute_raw(query(insert, 3)).await.expect_err("cut");
    assert!(cut.fired());
    assert_eq!(databases.values::<i32>(Side::RunOps, "SELECT n FROM t ORDER BY n").await?, [1, 3]);

    // A cut is made once.
    through.execute_raw(query(insert, 4)).await?;
    Ok(())
}

#[tokio::test]
async fn a_commit_is_cut_before_or_after_it_happened() -> Result<()> {
    let Setup { databases, proxy, through } = setup().await?;
    for (number, expected) in [(1, 0_i64), (2, 1)] {
        let cut = match number {
            1 => proxy.cut_before(1, is_commit),
            _ => proxy.cut_after(1, is_commit),
        };
        let txn = through.begin().await?;
        txn.execute_raw(query("INSERT INTO t VALUES ($1)", number)).await?;
        txn.commit().await.expect_err("cut");
        assert!(cut.fired());
        assert_eq!(databases.count(Side::RunOps, "t").await?, expected, "cut {number}");
    }
    Ok(())
}

#[tokio::test]
async fn a_cut_that_is_dropped_is_not_made() -> Result<()> {
    let Setup { databases: _databases, proxy, through } = setup().await?;
    drop(proxy.cut_before(1, |_| true));
    through.query_all_raw(query("SELECT $1", 1)).await?;
    Ok(())
}

#[tokio::test]
async fn statements_stand_at_a_gate_until_it_is_released() -> Result<()> {
    let databases = Databases::empty().await?;
    let proxies = databases.behind_proxies().await?;
    let (control_plane, run_ops) =
        tokio::try_join!(connect(proxies.control_plane.url()), connect(proxies.run_ops.url()))?;
    let gates = Both::from_fn(|side| proxies.get(side).hold(|sql| sql.starts_with("SELECT")));

    let reading = tokio::spawn(async move {
        tokio::try_join!(
            control_plane.query_all_raw(query("SELECT $1", 1)),
            run_ops.query_all_raw(query("SELECT $1", 2))
        )
    });
    // Both stand there, so neither has waited for the other.
    tokio::try_join!(gates.control_plane.held(1), gates.run_ops.held(1))?;
    assert!(!reading.is_finished());
    proxies.run_ops.recording().check_statements(0);

    gates.control_plane.release();
    gates.run_ops.release();
    let (ones, twos) = reading.await??;
    assert_eq!((ones.len(), twos.len()), (1, 1));
    proxies.run_ops.recording().check_statements(1);
    Ok(())
}

#[tokio::test]
async fn a_gate_that_is_dropped_is_open() -> Result<()> {
    let Setup { databases: _databases, proxy, through } = setup().await?;
    let gate = proxy.hold(|_| true);
    let reading = tokio::spawn(async move { through.query_all_raw(query("SELECT $1", 1)).await });
    gate.held(1).await?;
    drop(gate);
    assert_eq!(reading.await??.len(), 1);
    Ok(())
}

#[tokio::test]
async fn a_gate_at_which_nothing_arrives_says_what_was_executed_instead() -> Result<()> {
    let Setup { databases: _databases, proxy, through } = setup().await?;
    let gate = proxy.hold(|sql| sql.contains("elsewhere"));
    through.query_all_raw(query("SELECT $1", 1)).await?;
    let error = gate.held_within(1, Duration::from_millis(20)).await.expect_err("nothing arrives");
    assert!(error.to_string().contains("1. SELECT $1"), "{error}");
    Ok(())
}

#[tokio::test]
async fn a_proxy_needs_an_address_it_can_reach() {
    for url in ["nonsense", "postgres:///database", "postgres://user@%2Fvar%2Frun/database"] {
        let error = Proxy::start(url).await.expect_err(url);
        assert!(error.to_string().starts_with("a proxy needs"), "{error}");
    }
}

#[tokio::test]
async fn a_held_reply_is_that_of_a_statement_that_was_executed() -> Result<()> {
    let Setup { databases, proxy, through } = setup().await?;
    let gate = proxy.hold_reply(|sql| sql.starts_with("INSERT"));
    let insert = tokio::spawn(async move {
        let done = through.execute_raw(query("INSERT INTO t VALUES ($1)", 1)).await?;
        let read = through.query_all_raw(query("SELECT n FROM t WHERE n = $1", 1)).await?;
        anyhow::Ok((done.rows_affected(), read.len()))
    });
    gate.held(1).await?;
    assert_eq!(databases.count(Side::RunOps, "t").await?, 1, "it is executed");
    assert!(!insert.is_finished(), "its reply has passed the gate");
    gate.release();
    assert_eq!(insert.await??, (1, 1), "the replies come one after the other");
    Ok(())
}
