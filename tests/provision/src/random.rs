//! Names, passwords and ports that nobody else has.

use std::fs::File;
use std::io::Read;
use std::net::{Ipv4Addr, TcpListener};

use crate::ProvisionError;

/// Below the ports that systems give to outgoing connections, so that a port is still free when a server is started
/// again on it.
const PORTS: std::ops::Range<u16> = 15_000..32_000;

/// `length` random bytes as hexadecimal digits.
pub(crate) fn hexadecimal(length: usize) -> Result<String, ProvisionError> {
    Ok(bytes(length)?.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// A port that nobody listened on a moment ago.
pub(crate) fn free_port() -> Result<u16, ProvisionError> {
    for _ in 0..200 {
        let drawn = bytes(2)?.iter().fold(0, |drawn, byte| drawn << 8 | u16::from(*byte));
        let port = PORTS.start + drawn % (PORTS.end - PORTS.start);
        if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            return Ok(port);
        }
    }
    Err(ProvisionError::NoPort)
}

fn bytes(length: usize) -> Result<Vec<u8>, ProvisionError> {
    let mut bytes = vec![0; length];
    File::open("/dev/urandom")
        .and_then(|mut source| source.read_exact(&mut bytes))
        .map_err(ProvisionError::io("read random bytes"))?;
    Ok(bytes)
}
