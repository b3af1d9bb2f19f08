//! A loopback proxy in front of one database: it records what is executed on the wire, holds statements at a gate and
//! cuts connections where a test needs it.
//!
//! It understands the message framing of PostgreSQL's protocol and those messages of the client that prepare, bind and
//! execute statements. All else passes through unseen. TLS is declined, so every message can be read.

use std::{
    collections::HashMap,
    fmt,
    net::{Ipv4Addr, SocketAddr},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, BufReader, BufWriter},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::watch,
    task::JoinHandle,
};
use url::Url;

use crate::runtime::{self, lock};

/// How long [`Gate::held`] waits for statements before it gives up.
const PATIENCE: Duration = Duration::from_secs(20);

/// Whether a statement is meant, from its SQL text.
type Matches = Box<dyn Fn(&str) -> bool + Send + Sync>;

/// Tells whether a statement ends a transaction successfully.
pub fn is_commit(sql: &str) -> bool {
    sql.trim_end_matches(';').eq_ignore_ascii_case("commit")
}

/// Tells whether a statement is what a store asks of each connection that it opens: who the database is. It belongs to
/// logging on.
pub fn is_identity(sql: &str) -> bool {
    sql.ends_with("pg_is_in_recovery() AS is_standby FROM store_identity")
}

/// A proxy in front of one database; dropping it cuts all of its connections.
pub struct Proxy {
    url: String,
    direct: String,
    shared: Arc<Shared>,
    accepting: JoinHandle<()>,
}

struct Shared {
    /// Where new connections lead.
    upstream: Mutex<Upstream>,
    recording: Recording,
    refusing: AtomicBool,
    /// Notifications get lost on their way.
    losing_notifications: AtomicBool,
    cuts: Mutex<Vec<Arc<CutState>>>,
    gates: Mutex<Vec<Arc<GateState>>>,
    /// Gates for replies.
    reply_gates: Mutex<Vec<Arc<GateState>>>,
    /// Every new value cuts the connections that are open.
    generation: watch::Sender<u64>,
    /// How many connections are open.
    open: watch::Sender<usize>,
}

#[derive(Clone)]
struct Upstream {
    address: (String, u16),
    /// The database there, in place of the one that the client names.
    database: Option<String>,
}

impl Proxy {
    /// Starts a proxy in front of the server that `url` names.
    ///
    /// # Errors
    /// If `url` names no TCP address, or no loopback port can be had.
    pub async fn start(url: &str) -> Result<Proxy> {
        let mut proxied =
            Url::parse(url).ok().context("a proxy needs a URL such as postgres://user@host:port/database")?;
        let upstream = Mutex::new(Upstream { address: address_of(&proxied)?, database: None });

        let shared = Arc::new(Shared {
            upstream,
            recording: Recording::default(),
            refusing: AtomicBool::new(false),
            losing_notifications: AtomicBool::new(false),
            cuts: Mutex::default(),
            gates: Mutex::default(),
            reply_gates: Mutex::default(),
            generation: watch::Sender::new(0),
            open: watch::Sender::new(0),
        });
        let serving = Arc::clone(&shared);
        let (address, accepting) = runtime::run(async move {
            let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
            let address = listener.local_addr()?;
            anyhow::Ok((address, runtime::spawn(accept(listener, serving))))
        })
        .await
        .context("the proxy found no free port on 127.0.0.1")?;

        point_to(&mut proxied, address)?;
        Ok(Proxy { url: proxied.into(), direct: url.to_owned(), shared, accepting })
    }

    /// The URL of the database, by way of this proxy. It carries the password: do not print it.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The URL of the database past this proxy. It carries the password: do not print it.
    pub fn direct_url(&self) -> &str {
        &self.direct
    }

    /// Lets new connections lead to the server and the database that `url` names, as where an address comes to stand for
    /// another server. User and password of the clients have to be good there. Connections that are open stay as they are.
    ///
    /// # Errors
    /// If `url` names no TCP address or no database.
    pub fn retarget(&self, url: &str) -> Result<()> {
        let url = Url::parse(url).ok().context("a proxy needs a URL such as postgres://user@host:port/database")?;
        let database = url.path().trim_start_matches('/').to_owned();
        ensure!(!database.is_empty(), "a proxy that is to lead elsewhere needs the name of a database");
        *lock(&self.shared.upstream) = Upstream { address: address_of(&url)?, database: Some(database) };
        Ok(())
    }

    /// What was executed by way of this proxy.
    pub fn recording(&self) -> &Recording {
        &self.shared.recording
    }

    /// Closes new connections as soon as they are made (`true`), or serves them again (`false`). Those that are open
    /// stay open.
    pub fn refuse_connections(&self, refuse: bool) {
        self.shared.refusing.store(refuse, Ordering::SeqCst);
    }

    /// Loses every notification that the server sends (`true`), or lets them pass again (`false`). All else passes.
    pub fn lose_notifications(&self, lose: bool) {
        self.shared.losing_notifications.store(lose, Ordering::SeqCst);
    }

    /// Cuts every open connection now.
    pub fn cut_all(&self) {
        self.shared.generation.send_modify(|generation| *generation += 1);
    }

    /// As [`Proxy::cut_all`], and waits until none of them is open any more.
    pub async fn cut_all_and_wait(&self) {
        let mut open = self.shared.open.subscribe();
        self.cut_all();
        // The sender lives in `self`, so it ends only with the last of them.
        let _ = open.wait_for(|open| *open == 0).await;
    }

    /// Cuts the connection that is about to execute the `nth` statement (from 1, over all connections) that `matches`.
    /// The server never sees the statement.
    #[must_use = "a cut that is dropped is not made"]
    pub fn cut_before(&self, nth: usize, matches: impl Fn(&str) -> bool + Send + Sync + 'static) -> Cut {
        self.cut(Moment::Before, nth, Box::new(matches))
    }

    /// Cuts the connection that executes the `nth` statement (from 1, over all connections) that `matches`, once the
    /// server has executed it. The client never sees the reply.
    #[must_use = "a cut that is dropped is not made"]
    pub fn cut_after(&self, nth: usize, matches: impl Fn(&str) -> bool + Send + Sync + 'static) -> Cut {
        self.cut(Moment::After, nth, Box::new(matches))
    }

    fn cut(&self, moment: Moment, nth: usize, matches: Matches) -> Cut {
        assert!(nth > 0, "statements are counted from 1");
        let state = Arc::new(CutState { moment, matches, left: Mutex::new(nth), fired: AtomicBool::new(false) });
        lock(&self.shared.cuts).push(Arc::clone(&state));
        Cut { state }
    }

    /// Holds every statement that `matches` until the gate is released or dropped.
    #[must_use = "a gate that is dropped is open"]
    pub fn hold(&self, matches: impl Fn(&str) -> bool + Send + Sync + 'static) -> Gate {
        self.gate(&self.shared.gates, Box::new(matches))
    }

    /// Holds the reply to every statement that `matches`, once the server has executed it, until the gate is released or
    /// dropped.
    #[must_use = "a gate that is dropped is open"]
    pub fn hold_reply(&self, matches: impl Fn(&str) -> bool + Send + Sync + 'static) -> Gate {
        self.gate(&self.shared.reply_gates, Box::new(matches))
    }

    fn gate(&self, gates: &Mutex<Vec<Arc<GateState>>>, matches: Matches) -> Gate {
        let state = Arc::new(GateState { matches, held: watch::Sender::new(0), open: watch::Sender::new(false) });
        lock(gates).push(Arc::clone(&state));
        Gate { state, shared: Arc::clone(&self.shared) }
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.accepting.abort();
        self.shared.refusing.store(true, Ordering::SeqCst);
        self.cut_all();
    }
}

impl fmt::Debug for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Proxy").field("recording", &self.shared.recording).finish_non_exhaustive()
    }
}

/// What a proxy saw on the wire since it was started or last reset.
#[derive(Debug, Default)]
pub struct Recording {
    log: Mutex<Log>,
}

#[derive(Debug, Default)]
struct Log {
    statements: Vec<String>,
    round_trips: usize,
    pings: usize,
    connections: usize,
    identities: usize,
}

impl Recording {
    /// Every statement that was sent to the server for execution, in order, `BEGIN`, `COMMIT`, pings and look-ups of
    /// types included; not what a store asks of a connection as it opens it, for how many it opens is a matter of luck. A prepared statement appears each time it is executed. Several statements sent as one text
    /// appear as that text.
    pub fn statements(&self) -> Vec<String> {
        lock(&self.log).statements.clone()
    }

    /// How often a client has asked the server for something and waited: once per simple query and once per
    /// synchronisation of the extended protocol, preparing included. Logging on, with what is asked then, and pings are not
    /// counted.
    pub fn round_trips(&self) -> usize {
        lock(&self.log).round_trips
    }

    /// How often a client has only asked whether the server is there: a synchronisation of nothing. The driver's pool
    /// does so whenever a connection comes back to it, after the caller has gone on; and before it hands one out, if
    /// it is configured to, and then the caller waits.
    pub fn pings(&self) -> usize {
        lock(&self.log).pings
    }

    /// How many connections were opened.
    pub fn connections(&self) -> usize {
        lock(&self.log).connections
    }

    /// How often a connection was asked who the database is, as it was opened.
    pub fn identities(&self) -> usize {
        lock(&self.log).identities
    }

    /// Forgets what was seen so far.
    pub fn reset(&self) {
        *lock(&self.log) = Log::default();
    }

    /// Checks how many statements were executed.
    ///
    /// # Panics
    /// If the number differs; the message lists the statements.
    #[track_caller]
    pub fn check_statements(&self, expected: usize) {
        let seen = self.statements();
        assert!(
            seen.len() == expected,
            "{expected} statements should have been executed, not {}:\n{}",
            seen.len(),
            listing(&seen)
        );
    }

    /// Checks how often a client has waited for the server.
    ///
    /// # Panics
    /// If the number differs; the message lists the statements.
    #[track_caller]
    pub fn check_round_trips(&self, expected: usize) {
        let seen = self.round_trips();
        assert!(
            seen == expected,
            "there should have been {expected} round trips, not {seen}; executed were:\n{}",
            listing(&self.statements())
        );
    }
}

fn listing(statements: &[String]) -> String {
    let lines: Vec<_> = statements.iter().enumerate().map(|(i, sql)| format!("  {}. {sql}", i + 1)).collect();
    lines.join("\n")
}

/// A cut that waits for its statement.
#[derive(Debug)]
pub struct Cut {
    state: Arc<CutState>,
}

impl Cut {
    /// Whether the statement has come and its connection is cut, or about to be.
    pub fn fired(&self) -> bool {
        self.state.fired.load(Ordering::SeqCst)
    }
}

impl Drop for Cut {
    /// A cut that nobody waits for any more is not made.
    fn drop(&mut self) {
        *lock(&self.state.left) = 0;
    }
}

struct CutState {
    moment: Moment,
    matches: Matches,
    /// How many matching statements there are still to come, the one to cut at included; 0 once it is over.
    left: Mutex<usize>,
    fired: AtomicBool,
}

impl fmt::Debug for CutState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CutState").field("moment", &self.moment).field("left", &self.left).finish_non_exhaustive()
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Moment {
    Before,
    After,
}

/// A place where statements wait.
pub struct Gate {
    state: Arc<GateState>,
    shared: Arc<Shared>,
}

struct GateState {
    matches: Matches,
    held: watch::Sender<usize>,
    open: watch::Sender<bool>,
}

impl Gate {
    /// Waits until at least `count` statements stand at the gate.
    ///
    /// # Errors
    /// If they do not arrive within 20 seconds; the message says what was executed instead.
    pub async fn held(&self, count: usize) -> Result<()> {
        self.held_within(count, PATIENCE).await
    }

    /// As [`Gate::held`], with another limit.
    ///
    /// # Errors
    /// If they do not arrive in time; the message says what was executed instead.
    pub async fn held_within(&self, count: usize, limit: Duration) -> Result<()> {
        let mut held = self.state.held.subscribe();
        let arrived = tokio::time::timeout(limit, held.wait_for(|now| *now >= count)).await;
        ensure!(
            arrived.is_ok(),
            "{count} statements should have reached the gate within {limit:?}, {} did; executed were:\n{}",
            *self.state.held.borrow(),
            listing(&self.shared.recording.statements())
        );
        Ok(())
    }

    /// Lets go what stands at the gate, and all that comes.
    pub fn release(&self) {
        self.state.open.send_replace(true);
        for gates in [&self.shared.gates, &self.shared.reply_gates] {
            lock(gates).retain(|gate| !Arc::ptr_eq(gate, &self.state));
        }
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        self.release();
    }
}

impl fmt::Debug for Gate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gate").field("held", &*self.state.held.borrow()).finish_non_exhaustive()
    }
}

impl GateState {
    async fn pass(&self) {
        let mut open = self.open.subscribe();
        if *open.borrow_and_update() {
            return;
        }
        let _waiting = Counted::new(&self.held);
        // The sender lives in `self`, so the only way out is the gate's opening.
        let _ = open.wait_for(|open| *open).await;
    }
}

/// Counts something for as long as it exists: a statement that is held, a connection that is open. Also when its connection
/// is cut.
struct Counted<'a>(&'a watch::Sender<usize>);

impl<'a> Counted<'a> {
    fn new(count: &'a watch::Sender<usize>) -> Self {
        count.send_modify(|count| *count += 1);
        Counted(count)
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.send_modify(|count| *count -= 1);
    }
}

/// Where a URL leads.
fn address_of(url: &Url) -> Result<(String, u16)> {
    let host = match url.host() {
        // A folder in place of a name is a socket, and its slashes are escaped.
        Some(url::Host::Domain(name)) if !name.is_empty() && !name.contains('%') => name.to_owned(),
        Some(url::Host::Ipv4(address)) => address.to_string(),
        Some(url::Host::Ipv6(address)) => address.to_string(),
        Some(url::Host::Domain(_)) | None => bail!("a proxy needs a server reached over TCP, not a unix socket"),
    };
    Ok((host, url.port().unwrap_or(5432)))
}

fn point_to(url: &mut Url, address: SocketAddr) -> Result<()> {
    url.set_ip_host(address.ip())
        .and_then(|()| url.set_port(Some(address.port())))
        .ok()
        .context("a proxy needs a URL such as postgres://user@host:port/database")?;
    let kept: Vec<(String, String)> = url
        .query_pairs()
        .filter(|(key, _)| !matches!(key.as_ref(), "sslmode" | "ssl-mode" | "host" | "hostaddr" | "port"))
        .map(|(key, value)| (key.into_owned(), value.into_owned()))
        .collect();
    url.query_pairs_mut().clear().extend_pairs(kept).append_pair("sslmode", "disable");
    Ok(())
}

async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    loop {
        match listener.accept().await {
            Ok((client, _)) if shared.refusing.load(Ordering::SeqCst) => drop(client),
            Ok((client, _)) => {
                let shared = Arc::clone(&shared);
                runtime::spawn(async move {
                    let _open = Counted::new(&shared.open);
                    let mut generation = shared.generation.subscribe();
                    generation.mark_unchanged();
                    tokio::select! {
                        // Either side may end or break the connection at any time: both see it closed, that is all.
                        _ = serve(client, &shared) => {}
                        _ = generation.changed() => {}
                    }
                });
            }
            // Out of file descriptors, or a client that has gone again: the next one may fare better.
            Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
        }
    }
}

/// Serves one connection until either end closes it or a cut is due.
async fn serve(client: TcpStream, shared: &Shared) -> std::io::Result<()> {
    client.set_nodelay(true)?;
    let (from_client, to_client) = client.into_split();
    let mut from_client = BufReader::new(from_client);
    let mut to_client = BufWriter::new(to_client);

    let first = loop {
        let packet = startup_packet(&mut from_client).await?;
        match packet.get(4..8) {
            Some(SSL_REQUEST | GSSENC_REQUEST) => {
                to_client.write_all(b"N").await?;
                to_client.flush().await?;
            }
            _ => break packet,
        }
    };

    let upstream = lock(&shared.upstream).clone();
    let server = TcpStream::connect((upstream.address.0.as_str(), upstream.address.1)).await?;
    server.set_nodelay(true)?;
    let (from_server, mut to_server) = server.into_split();
    match upstream.database {
        Some(database) if first.get(4..8) != Some(CANCEL_REQUEST) => {
            to_server.write_all(&with_database(&first, &database)).await?;
        }
        Some(_) | None => to_server.write_all(&first).await?,
    }
    if first.get(4..8) == Some(CANCEL_REQUEST) {
        return Ok(());
    }
    lock(&shared.recording.log).connections += 1;

    let connection = Connection {
        synced: AtomicU64::new(0),
        answers_to_pass: AtomicU64::new(u64::MAX),
        held_reply: Mutex::default(),
    };
    tokio::select! {
        ended = forward_requests(&mut from_client, BufWriter::new(to_server), &connection, shared) => ended,
        ended = forward_answers(BufReader::new(from_server), to_client, &connection, shared) => ended,
    }
}

const SSL_REQUEST: &[u8] = &80_877_103_u32.to_be_bytes();
const GSSENC_REQUEST: &[u8] = &80_877_104_u32.to_be_bytes();
const CANCEL_REQUEST: &[u8] = &80_877_102_u32.to_be_bytes();

/// What the two directions of a connection tell each other.
struct Connection {
    /// How many requests were sent that the server ends with "ready for query".
    synced: AtomicU64,
    /// How many "ready for query" the client is still to see; what follows the last of them is withheld, and the next
    /// one ends the connection.
    answers_to_pass: AtomicU64,
    /// The gate at which the next reply stands, and how many "ready for query" come before that reply.
    held_reply: Mutex<Option<(u64, Arc<GateState>)>>,
}

async fn forward_requests(
    from_client: &mut BufReader<OwnedReadHalf>,
    mut to_server: BufWriter<OwnedWriteHalf>,
    connection: &Connection,
    shared: &Shared,
) -> std::io::Result<()> {
    let mut statements: HashMap<Vec<u8>, String> = HashMap::new();
    let mut portals: HashMap<Vec<u8>, String> = HashMap::new();
    // Logging on ends without a synchronisation.
    let mut idle = true;
    loop {
        let Some(message) = message(from_client).await? else { return Ok(()) };
        let (kind, body) = (message[0], &message[5..]);
        let executed = match kind {
            b'P' => {
                let (name, rest) = text(body);
                statements.insert(name.to_vec(), sql(text(rest).0));
                None
            }
            b'B' => {
                let (portal, rest) = text(body);
                let statement = statements.get(text(rest).0).cloned().unwrap_or_default();
                portals.insert(portal.to_vec(), statement);
                None
            }
            b'C' => {
                match body.split_first() {
                    Some((b'S', name)) => statements.remove(text(name).0),
                    Some((_, name)) => portals.remove(text(name).0),
                    None => None,
                };
                None
            }
            b'E' => Some(portals.get(text(body).0).cloned().unwrap_or_default()),
            b'Q' => Some(sql(text(body).0)),
            _ => None,
        };

        let logs_on = executed.as_deref().is_some_and(is_identity);
        if let Some(sql) = executed {
            let gate = lock(&shared.gates).iter().find(|gate| (gate.matches)(&sql)).cloned();
            if let Some(gate) = gate {
                to_server.flush().await?;
                gate.pass().await;
            }
            match due_cut(shared, &sql) {
                Some(Moment::Before) => return Ok(()),
                Some(Moment::After) => {
                    // The first "ready for query" ends the log-on; one per request follows.
                    let passed = 1 + connection.synced.load(Ordering::SeqCst);
                    connection.answers_to_pass.store(passed, Ordering::SeqCst);
                }
                None => {}
            }
            let gate = lock(&shared.reply_gates).iter().find(|gate| (gate.matches)(&sql)).cloned();
            if let Some(gate) = gate {
                // As above.
                let passed = 1 + connection.synced.load(Ordering::SeqCst);
                *lock(&connection.held_reply) = Some((passed, gate));
            }
            let mut log = lock(&shared.recording.log);
            match logs_on {
                true => log.identities += 1,
                false => log.statements.push(sql),
            }
        }
        if matches!(kind, b'Q' | b'S') {
            connection.synced.fetch_add(1, Ordering::SeqCst);
            let mut log = lock(&shared.recording.log);
            match (kind == b'S' && idle, logs_on) {
                (true, _) => log.pings += 1,
                (false, true) => (),
                (false, false) => log.round_trips += 1,
            }
        }
        idle = matches!(kind, b'Q' | b'S' | b'p');

        to_server.write_all(&message).await?;
        if !matches!(kind, b'P' | b'B' | b'D' | b'E' | b'C') {
            to_server.flush().await?;
        }
    }
}

/// Counts `sql` against every cut that waits, and says which of them is due, if any.
fn due_cut(shared: &Shared, sql: &str) -> Option<Moment> {
    let mut due = None;
    lock(&shared.cuts).retain(|cut| {
        let mut left = lock(&cut.left);
        if *left > 0 && (cut.matches)(sql) {
            *left -= 1;
            if *left == 0 {
                cut.fired.store(true, Ordering::SeqCst);
                due = Some(cut.moment);
            }
        }
        *left > 0
    });
    due
}

async fn forward_answers(
    mut from_server: BufReader<OwnedReadHalf>,
    mut to_client: BufWriter<OwnedWriteHalf>,
    connection: &Connection,
    shared: &Shared,
) -> std::io::Result<()> {
    let mut answered = 0;
    let mut kept = Vec::new();
    loop {
        let Some(message) = message(&mut from_server).await? else { return Ok(()) };
        if message[0] == b'A' && shared.losing_notifications.load(Ordering::SeqCst) {
            continue;
        }
        let gate = lock(&connection.held_reply).as_ref().filter(|held| answered >= held.0).map(|held| held.1.clone());
        if let Some(gate) = gate {
            kept.extend_from_slice(&message);
            if message[0] == b'Z' {
                to_client.flush().await?;
                gate.pass().await;
                *lock(&connection.held_reply) = None;
                to_client.write_all(&kept).await?;
                to_client.flush().await?;
                kept.clear();
                answered += 1;
            }
            continue;
        }
        let withheld = answered >= connection.answers_to_pass.load(Ordering::SeqCst);
        if message[0] == b'Z' {
            if withheld {
                return Ok(());
            }
            answered += 1;
        }
        if !withheld {
            to_client.write_all(&message).await?;
            if from_server.buffer().is_empty() {
                to_client.flush().await?;
            }
        }
    }
}

/// The packet that opens a session, with another database: pairs of names and values after length and version.
fn with_database(packet: &[u8], database: &str) -> Vec<u8> {
    let mut changed = packet[..8].to_vec();
    let mut rest = &packet[8..];
    while let (name @ [_, ..], after) = text(rest) {
        let (value, after) = text(after);
        let value = if name == b"database" { database.as_bytes() } else { value };
        for part in [name, value] {
            changed.extend_from_slice(part);
            changed.push(0);
        }
        rest = after;
    }
    changed.push(0);
    let length = u32::try_from(changed.len()).unwrap_or(u32::MAX).to_be_bytes();
    changed[..4].copy_from_slice(&length);
    changed
}

/// Reads a packet without a type: length, code, contents.
async fn startup_packet(from: &mut BufReader<OwnedReadHalf>) -> std::io::Result<Vec<u8>> {
    let mut packet = vec![0; 4];
    from.read_exact(&mut packet).await?;
    read_body(from, &mut packet, 0).await?;
    Ok(packet)
}

/// Reads one whole message: type, length, contents. `None` at the end of the stream.
async fn message(from: &mut BufReader<OwnedReadHalf>) -> std::io::Result<Option<Vec<u8>>> {
    let mut message = vec![0; 5];
    match from.read_exact(&mut message).await {
        Ok(_) => {}
        Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => return Ok(None),
        Err(error) => return Err(error),
    }
    read_body(from, &mut message, 1).await?;
    Ok(Some(message))
}

/// Completes a message of which everything up to its length, at `length_at`, was read.
async fn read_body(
    from: &mut BufReader<OwnedReadHalf>,
    message: &mut Vec<u8>,
    length_at: usize,
) -> std::io::Result<()> {
    let mut length = [0; 4];
    length.copy_from_slice(&message[length_at..length_at + 4]);
    let end = length_at + (u32::from_be_bytes(length) as usize).max(4);
    let start = message.len();
    message.resize(end, 0);
    from.read_exact(&mut message[start..]).await.map(|_| ())
}

/// Splits `bytes` at the first NUL.
fn text(bytes: &[u8]) -> (&[u8], &[u8]) {
    match bytes.iter().position(|byte| *byte == 0) {
        Some(end) => (&bytes[..end], &bytes[end + 1..]),
        None => (bytes, &[]),
    }
}

fn sql(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
