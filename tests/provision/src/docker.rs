//! Servers in containers, through testcontainers.
//!
//! A container is removed when its handle is dropped, and by [`Keeper`] when the process ends in any other way. The
//! latter takes the `docker` command, or `curl` and an engine behind a socket on this machine; without either, a
//! container stays behind a process that is killed.

use std::net::{IpAddr, Ipv4Addr, ToSocketAddrs};
use std::process::Command;
use std::time::{Duration, Instant};

use testcontainers_modules::postgres::Postgres;
use testcontainers_modules::testcontainers::core::IntoContainerPort;
use testcontainers_modules::testcontainers::core::error::TestcontainersError;
use testcontainers_modules::testcontainers::runners::AsyncRunner;
use testcontainers_modules::testcontainers::{ContainerAsync, ImageExt};
use url::Url;

use crate::keeper::Keeper;
use crate::local::blocking;
use crate::probe::{ASK_AGAIN_AFTER, Probe, READY_WITHIN};
use crate::{Options, ProvisionError, Role, random, settings};

const SCRIPT: &str = include_str!("container-keeper.sh");

/// The image where `RUNSEAM_POSTGRES_IMAGE` names none.
const DEFAULT_IMAGE: &str = "postgres:17-alpine";

/// Pulling the image may be part of a start.
const STARTED_WITHIN: Duration = Duration::from_secs(300);

/// Parallel queries need more than the 64 MB that containers get.
const SHARED_MEMORY: u64 = 256 << 20;

/// A server in a container. Dropping it removes the container, unless it is to be kept.
#[derive(Debug)]
pub(crate) struct Container {
    name: String,
    container: Option<ContainerAsync<Postgres>>,
    keep: bool,
    keeper: Option<Keeper>,
}

impl Container {
    /// Starts a container and waits until the server in it answers.
    pub(crate) async fn start(role: Role, options: &Options) -> Result<(Self, Url, Probe), ProvisionError> {
        let image = std::env::var("RUNSEAM_POSTGRES_IMAGE").unwrap_or_else(|_| DEFAULT_IMAGE.to_owned());
        let (image_name, tag) = name_and_tag(&image)?;
        let name = format!("runseam-postgres-{}-{}", role.word(), random::hexadecimal(4)?);
        let password = random::hexadecimal(16)?;
        let mut arguments = Vec::new();
        for (name, value) in settings::settings(options)? {
            arguments.extend(["-c".to_owned(), format!("{name}={value}")]);
        }
        // Our own question says better whether the server is ready than lines in its log.
        let request = Postgres::default()
            .with_user("postgres")
            .with_password(&password)
            .with_db_name("postgres")
            .with_name(image_name)
            .with_tag(tag)
            .with_container_name(&name)
            .with_env_var("POSTGRES_INITDB_ARGS", "--encoding=UTF8 --locale-provider=icu --icu-locale=en-US")
            .with_env_var("POSTGRES_HOST_AUTH_METHOD", "password")
            .with_shm_size(SHARED_MEMORY)
            .with_cmd(arguments)
            .with_ready_conditions(Vec::new())
            .with_startup_timeout(STARTED_WITHIN);

        let keeper = Some(keeper(&name)?);
        let mut server = Self { name, container: None, keep: false, keeper };
        let container = tokio::time::timeout(STARTED_WITHIN, request.start())
            .await
            .map_err(|late| ProvisionError::Docker(late.into()))?
            .map_err(refused)?;
        let url = url(&container, &password).await?;
        server.container = Some(container);
        let probe = server.ready(&url).await?;
        // Not before: what does not start is not to be kept.
        if options.keep
            && let Some(mut keeper) = server.keeper.take()
        {
            blocking(move || keeper.keep().and_then(|()| keeper.finish())).await?;
            server.keep = true;
        }
        Ok((server, url, probe))
    }

    /// Removes the container, also where it was to be kept.
    pub(crate) async fn stop(mut self) -> Result<(), ProvisionError> {
        if let Some(container) = self.container.take() {
            container.rm().await.map_err(refused)?;
        }
        match self.keeper.take() {
            Some(mut keeper) => blocking(move || keeper.finish()).await,
            None => Ok(()),
        }
    }

    /// What to type to get rid of the server.
    pub(crate) fn how_to_stop(&self) -> String {
        format!("docker rm --force --volumes {}", self.name)
    }

    async fn ready(&self, url: &Url) -> Result<Probe, ProvisionError> {
        let Some(container) = &self.container else {
            return Err(ProvisionError::ContainerStopped { log: String::new() });
        };
        let started = Instant::now();
        while started.elapsed() < READY_WITHIN {
            // The engine's proxy accepts connections before the server does, and cuts them.
            match tokio::time::timeout(Duration::from_secs(5), Probe::once(url)).await {
                Ok(Ok(probe)) => return probe.new_enough(),
                Ok(Err(_)) | Err(_) => tokio::time::sleep(ASK_AGAIN_AFTER).await,
            }
            if !container.is_running().await.map_err(refused)? {
                return Err(ProvisionError::ContainerStopped { log: log(container).await });
            }
        }
        Err(ProvisionError::NotReady { seconds: READY_WITHIN.as_secs(), log: log(container).await })
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        let Some(container) = self.container.take() else {
            return;
        };
        // Its destructor removes the container by way of the runtime it is dropped in, and panics where there is none;
        // there the keeper does it, which is dropped after this.
        if self.keep || tokio::runtime::Handle::try_current().is_err() {
            std::mem::forget(container);
        }
    }
}

/// Starts the script that removes the container of this name when we are gone.
fn keeper(name: &str) -> Result<Keeper, ProvisionError> {
    let engine = std::env::var("DOCKER_HOST").unwrap_or_default();
    let socket = engine.strip_prefix("unix://").unwrap_or("/var/run/docker.sock");
    Keeper::start(Command::new("sh").args(["-c", SCRIPT, "keeper", name, socket]))
}

/// Where the server is reached from here.
async fn url(container: &ContainerAsync<Postgres>, password: &str) -> Result<Url, ProvisionError> {
    let host = container.get_host().await.map_err(refused)?.to_string();
    let port = container.get_host_port_ipv4(5432.tcp()).await.map_err(refused)?;
    // The port is mapped for IPv4, and a name may lead to both.
    let address = (host.trim_matches(['[', ']']), port)
        .to_socket_addrs()
        .map_err(ProvisionError::io("resolve the address of the Docker engine"))?
        .map(|address| address.ip())
        .find(IpAddr::is_ipv4)
        .unwrap_or(Ipv4Addr::LOCALHOST.into());
    crate::loopback_url(address, port, password)
}

async fn log(container: &ContainerAsync<Postgres>) -> String {
    let errors = container.stderr_to_vec().await.unwrap_or_default();
    let output = container.stdout_to_vec().await.unwrap_or_default();
    crate::last_lines(if errors.is_empty() { &output } else { &errors })
}

/// Splits `name:tag`; the name may begin with a host and its port.
fn name_and_tag(image: &str) -> Result<(&str, &str), ProvisionError> {
    match image.rsplit_once(':') {
        Some((name, tag)) if !name.is_empty() && !tag.is_empty() && !tag.contains('/') && !image.contains('@') => {
            Ok((name, tag))
        }
        Some(_) | None => Err(ProvisionError::BadImage { value: image.to_owned() }),
    }
}

fn refused(error: TestcontainersError) -> ProvisionError {
    ProvisionError::Docker(error.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_are_names_with_tags() {
        assert_eq!(name_and_tag("postgres:17-alpine").ok(), Some(("postgres", "17-alpine")));
        assert_eq!(name_and_tag("localhost:5000/pg:15").ok(), Some(("localhost:5000/pg", "15")));
        for bad in ["", "postgres", ":17", "postgres:", "localhost:5000/pg", "postgres@sha256:abc"] {
            assert!(matches!(name_and_tag(bad), Err(ProvisionError::BadImage { .. })), "{bad:?}");
        }
    }
}
