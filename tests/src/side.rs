//! The two databases, as the kit names them.

use std::fmt;

use migration::Schema;
use provision::Role;

/// One of the two databases, each of which is on a server of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Side {
    /// Organizations, projects, environments, workers, and the runs born there.
    ControlPlane,
    /// The runs that have moved out.
    RunOps,
}

impl Side {
    /// Both, in the order in which the kit lists them.
    pub const ALL: [Side; 2] = [Side::ControlPlane, Side::RunOps];

    /// The schema that belongs into this database.
    pub fn schema(self) -> Schema {
        match self {
            Side::ControlPlane => Schema::ControlPlane,
            Side::RunOps => Schema::RunOps,
        }
    }

    /// The server on which this database lives.
    pub fn role(self) -> Role {
        match self {
            Side::ControlPlane => Role::ControlPlane,
            Side::RunOps => Role::RunOps,
        }
    }

    /// The other one.
    pub fn other(self) -> Side {
        match self {
            Side::ControlPlane => Side::RunOps,
            Side::RunOps => Side::ControlPlane,
        }
    }

    /// As it appears in names of databases.
    pub(crate) fn key(self) -> &'static str {
        match self {
            Side::ControlPlane => "control_plane",
            Side::RunOps => "run_ops",
        }
    }
}

impl fmt::Display for Side {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Side::ControlPlane => "control plane",
            Side::RunOps => "run-ops",
        })
    }
}

/// One value for each of the two databases.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Both<T> {
    /// The control plane's.
    pub control_plane: T,
    /// The run-ops database's.
    pub run_ops: T,
}

impl<T> Both<T> {
    /// Makes one value per side.
    pub fn from_fn(mut make: impl FnMut(Side) -> T) -> Self {
        Both { control_plane: make(Side::ControlPlane), run_ops: make(Side::RunOps) }
    }

    /// The value of one side.
    pub fn get(&self, side: Side) -> &T {
        match side {
            Side::ControlPlane => &self.control_plane,
            Side::RunOps => &self.run_ops,
        }
    }
}
