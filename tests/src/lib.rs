//! The test kit: real servers, a fresh copy of both databases per test, proxies that record and cut, standbys that lag,
//! and builders of control-plane rows.
//!
//! ```no_run
//! # async fn example() -> anyhow::Result<()> {
//! use tests::{Databases, LaggingPair, Side, build};
//!
//! // Both databases, this test's own, dropped at the end of the test.
//! let databases = Databases::fresh().await?;
//! let world = build::world(databases.connection(Side::ControlPlane).await?).await?;
//! assert_eq!(databases.count(Side::ControlPlane, "project").await?, 1);
//!
//! // The same databases by way of proxies, which record what is executed and can hold or cut it.
//! let proxies = databases.behind_proxies().await?;
//! let cut = proxies.run_ops.cut_after(1, tests::proxy::is_commit);
//! // … something that commits on `proxies.run_ops.url()` …
//! assert!(cut.fired());
//! proxies.control_plane.recording().check_statements(0);
//!
//! // Databases with a real hot standby each.
//! let pair = LaggingPair::acquire().await?;
//! pair.pause_replay(Side::RunOps).await?;
//! // … something that reads from `pair.replica_url(Side::RunOps)` …
//! assert_eq!(pair.asked_replica(Side::RunOps), 1);
//! # Ok(())
//! # }
//! ```

mod rounds;
mod runtime;

pub mod build;
pub mod catalogue;
pub mod clock;
pub mod databases;
pub mod demo;
pub mod doctor;
pub mod equality;
pub mod mode;
pub mod moves;
pub mod pooled;
pub mod protocol;
pub mod proxy;
pub mod related;
pub mod runs;
pub mod servers;
pub mod side;
pub mod standby;
pub mod waits;
pub mod wired;

pub use databases::{Databases, pair};
pub use mode::Mode;
pub use proxy::Proxy;
pub use rounds::{is_long, rounds};
pub use servers::Servers;
pub use side::{Both, Side};
pub use standby::LaggingPair;
