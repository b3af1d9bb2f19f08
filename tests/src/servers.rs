//! The pair of servers that all tests of a process share.

use anyhow::{Result, anyhow};
use provision::{Options, Server};
use tokio::sync::OnceCell;

use crate::{runtime, side::Side};

/// Two servers, one per database.
pub struct Servers {
    control_plane: Server,
    run_ops: Server,
}

impl Servers {
    /// The servers of this process: those that the environment names, or two that are started now and die with the
    /// process.
    ///
    /// # Errors
    /// If there are none and none can be started. They are asked for once: later callers get the first answer.
    pub async fn shared() -> Result<&'static Servers> {
        static SHARED: OnceCell<Result<Servers, String>> = OnceCell::const_new();
        // Started on the kit's runtime, which outlives the runtime of the test that happens to come first.
        let servers = runtime::run(
            SHARED.get_or_init(async || Servers::start(Options::default()).await.map_err(|error| format!("{error:#}"))),
        )
        .await;
        servers.as_ref().map_err(|message| anyhow!("there are no PostgreSQL servers for the tests: {message}"))
    }

    /// Starts two servers.
    ///
    /// # Errors
    /// If they cannot be started.
    pub async fn start(options: Options) -> Result<Servers> {
        let (control_plane, run_ops) = provision::start_pair(options).await?;
        Ok(Servers::from_pair(control_plane, run_ops))
    }

    pub(crate) fn from_pair(control_plane: Server, run_ops: Server) -> Servers {
        Servers { control_plane, run_ops }
    }

    /// The server of one side.
    pub fn of(&self, side: Side) -> &Server {
        match side {
            Side::ControlPlane => &self.control_plane,
            Side::RunOps => &self.run_ops,
        }
    }
}
