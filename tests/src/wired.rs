//! Stores behind proxies: for whatever looks at the wire, or holds it up.

use std::{fmt, sync::Arc};

use anyhow::Result;
use store::{Config, RunStore};

use crate::{
    Both, Databases, Proxy, Side,
    runs::{Home, database_config, single_store, split_config},
};

/// A store that reaches its databases by way of proxies of its own.
pub struct Wired<'a> {
    databases: &'a Databases,
    proxies: Both<Proxy>,
    store: Arc<dyn RunStore>,
}

impl fmt::Debug for Wired<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Wired").field("proxies", &self.proxies).finish_non_exhaustive()
    }
}

impl<'a> Wired<'a> {
    /// A store over both databases.
    ///
    /// # Errors
    /// If a proxy cannot be started or the store cannot be built.
    pub async fn split(databases: &'a Databases, change: impl FnOnce(&mut Config)) -> Result<Self> {
        let proxies = databases.behind_proxies().await?;
        let mut config = split_config(|side| proxies.get(side).url())?;
        change(&mut config);
        // So that no create sends more than another.
        crate::pair(databases.control_plane_url(), databases.run_ops_url()).await?;
        Ok(Wired { databases, store: store::connect(&config).await?, proxies })
    }

    /// A store over the control plane's database alone. There is a proxy in front of the other, to see that nobody
    /// comes.
    ///
    /// # Errors
    /// As [`Wired::split`].
    pub async fn single(databases: &'a Databases, change: impl FnOnce(&mut Config)) -> Result<Self> {
        let proxies = databases.behind_proxies().await?;
        let mut config = Config::single(database_config(proxies.control_plane.url())?);
        change(&mut config);
        Ok(Wired { databases, store: single_store(&config).await?, proxies })
    }

    /// The store.
    pub fn store(&self) -> &Arc<dyn RunStore> {
        &self.store
    }

    /// What the store's statements to the primary of one of the databases pass.
    pub fn proxy(&self, side: Side) -> &Proxy {
        self.proxies.get(side)
    }

    /// Runs of one of the databases, in this store. What the home does by SQL no proxy sees.
    pub fn home(&self, name: &'static str, side: Side) -> Home<'a> {
        Home::new(name, Arc::clone(&self.store), side, self.databases)
    }
}

/// Sets how many connections a store has to each database.
pub fn connections(count: u32) -> impl Fn(&mut Config) {
    move |config| {
        config.control_plane.max_connections = count;
        config.run_ops.iter_mut().for_each(|database| database.max_connections = count);
    }
}

/// Both kinds of store over the same databases.
#[derive(Debug)]
pub struct WiredStores<'a> {
    /// Over both databases.
    pub split: Wired<'a>,
    /// Over the control plane's alone.
    pub single: Wired<'a>,
}

impl<'a> WiredStores<'a> {
    /// Stores whose configurations are changed alike.
    ///
    /// # Errors
    /// As [`Wired::split`].
    pub async fn over(databases: &'a Databases, change: impl Fn(&mut Config)) -> Result<Self> {
        Ok(WiredStores {
            split: Wired::split(databases, &change).await?,
            single: Wired::single(databases, &change).await?,
        })
    }

    /// The three ways in which a run can live, each with the store it lives in.
    pub fn homes(&self) -> [(&Wired<'a>, Home<'a>); 3] {
        [
            (&self.split, self.split.home("control plane of a split", Side::ControlPlane)),
            (&self.split, self.split.home("run-ops of a split", Side::RunOps)),
            (&self.single, self.single.home("single database", Side::ControlPlane)),
        ]
    }
}
