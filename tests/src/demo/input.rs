//! Run requests from JSON lines: what a line may say, and what is checked before anything is created.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fs,
    path::Path,
};

use anyhow::{Context, Result, ensure};
use chrono::TimeDelta;
use serde::Deserialize;
use serde_json::Value as Json;
use store::{EnvironmentType, FailedStatus, Payload, Residency};

/// Longest name of a task or queue: they are index keys.
const LONGEST_NAME: usize = 200;
/// Longest delay or time to live.
const LONGEST_WAIT_DAYS: i64 = 3650;

/// The requests of a file, and the lines of it that are none.
#[derive(Clone, Debug, Default)]
pub struct Input {
    /// In the order of the file.
    pub requests: Vec<Request>,
    /// Lines that were passed over.
    pub skipped: Vec<Skipped>,
}

/// A line that was passed over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Skipped {
    /// Its number, from 1.
    pub line: usize,
    /// What is wrong with it.
    pub reason: String,
}

/// One run to be triggered, and what is to happen to it.
#[derive(Clone, Debug)]
pub struct Request {
    /// The number of its line, from 1.
    pub line: usize,
    /// The environment it runs in.
    pub environment: EnvironmentType,
    /// The database it is to live in; mixed if absent.
    pub residency: Option<Residency>,
    /// The task.
    pub task: String,
    /// Its queue.
    pub queue: String,
    /// Its worker queue, if it is not the default one.
    pub worker_queue: Option<String>,
    /// Its input.
    pub payload: Payload,
    /// Its metadata.
    pub metadata: Option<Payload>,
    /// Free context.
    pub context: Option<Json>,
    /// Its tags.
    pub tags: Vec<String>,
    /// When its life begins.
    pub begin: Begin,
    /// Expires if it was not started in that time.
    pub ttl: Option<String>,
    /// How far it is moved forward in the queue.
    pub priority_ms: i32,
    /// Machine preset.
    pub machine: String,
    /// Region.
    pub region: Option<String>,
    /// Splits the concurrency of its queue.
    pub concurrency_key: Option<String>,
    /// Attempts at most.
    pub max_attempts: Option<i32>,
    /// Compute time at most.
    pub max_duration_seconds: Option<i32>,
    /// Started from a test screen.
    pub test: bool,
    /// Makes repeated requests one.
    pub idempotency_key: Option<String>,
    /// How long that counts.
    pub idempotency_key_ttl: Option<TimeDelta>,
    /// May trigger one run only.
    pub one_time_token: Option<String>,
    /// The request, by its position, whose run triggers this one.
    pub parent: Option<usize>,
    /// The parent waits for it.
    pub resume_parent: bool,
    /// The request, by its position, whose run this one repeats.
    pub replay_of: Option<usize>,
    /// What happens to it.
    pub end: End,
    /// Compute time of its attempt.
    pub duration_ms: u32,
    /// Cost of its attempt.
    pub cost_in_cents: f64,
}

/// Where the life of a run begins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Begin {
    /// In the queue.
    Queued,
    /// That long after it was triggered.
    Delayed(TimeDelta),
    /// Once there is a worker version for it; the text says why not now.
    Parked(String),
}

/// What happens to a run.
#[derive(Clone, Debug, PartialEq)]
pub enum End {
    /// It stays as it was created.
    Leave,
    /// A worker takes it and has not started yet.
    LeaveDequeued,
    /// Its attempt goes on.
    LeaveExecuting,
    /// Its attempt goes on, although it was to be cancelled.
    LeaveCancelling,
    /// Its attempt ends well, with this output.
    Success(Option<Payload>),
    /// It fails for good.
    Failure(FailedStatus, Json),
    /// It is cancelled before a worker takes it.
    Cancel(Json),
    /// It is cancelled while its attempt goes on, and the worker obeys.
    CancelWhileRunning(Json),
    /// Nobody starts it in time.
    Expire(Json),
    /// The same, found out together with others.
    ExpireBatch,
    /// It was cancelled before it was created.
    BornCancelled(Json),
    /// It failed before it was created.
    BornFailed(Json),
}

impl Input {
    /// Reads a file of requests.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn read(file: &Path) -> Result<Input> {
        let text = fs::read(file).with_context(|| {
            format!(
                "could not read {}: name a file with one run request per line, or leave --input out",
                file.display()
            )
        })?;
        Ok(Self::parse(&text))
    }

    /// The requests that come with the demo.
    pub fn shipped() -> Input {
        Self::parse(include_bytes!("../../demo/sample.jsonl"))
    }

    /// Reads requests, one per line. Empty lines are nothing; lines that are no request are kept with the reason.
    pub fn parse(text: &[u8]) -> Input {
        let text = text.strip_prefix(b"\xef\xbb\xbf").unwrap_or(text);
        let mut input = Input::default();
        let mut names = Names::default();
        for (line, bytes) in (1..).zip(text.split(|byte| *byte == b'\n')) {
            if bytes.trim_ascii().is_empty() {
                continue;
            }
            match request(line, bytes, &names) {
                Ok((request, name)) => {
                    if let Some(name) = name {
                        names.known.insert(name, input.requests.len());
                    }
                    input.requests.push(request);
                }
                Err(reason) => {
                    names.skip(line, bytes);
                    input.skipped.push(Skipped { line, reason });
                }
            }
        }
        input
    }

    /// Checks that there is something to do.
    ///
    /// # Errors
    /// If there is no request.
    pub fn ensure_usable(&self) -> Result<()> {
        ensure!(
            !self.requests.is_empty(),
            "there is no usable request: give at least one line such as {{\"task\": \"send-email\"}}"
        );
        Ok(())
    }

    /// Requests that have to be worked through in their order: children after parents, and those that share an
    /// idempotency key or a one-time token. The groups do not depend on each other.
    pub fn families(&self) -> Vec<Vec<usize>> {
        let mut families: Vec<Vec<usize>> = Vec::new();
        let mut family_of: Vec<usize> = Vec::new();
        let mut sharing: HashMap<(bool, EnvironmentType, &str, &str), usize> = HashMap::new();
        for (position, request) in self.requests.iter().enumerate() {
            let mut relatives: BTreeSet<usize> =
                [request.parent, request.replay_of].into_iter().flatten().map(|other| family_of[other]).collect();
            let key = request.idempotency_key.as_deref().map(|key| (true, request.environment, &*request.task, key));
            // A token is taken whatever the environment and the task.
            let token = request.one_time_token.as_deref().map(|token| (false, EnvironmentType::Production, "", token));
            for shared in [key, token].into_iter().flatten() {
                let first = *sharing.entry(shared).or_insert(position);
                if first != position {
                    relatives.insert(family_of[first]);
                }
            }
            let mut relatives = relatives.into_iter();
            let family = relatives.next().unwrap_or(families.len());
            if family == families.len() {
                families.push(Vec::new());
            }
            for merged in relatives {
                let members = std::mem::take(&mut families[merged]);
                members.iter().for_each(|member| family_of[*member] = family);
                families[family].extend(members);
            }
            families[family].push(position);
            family_of.push(family);
        }
        families.retain(|members| !members.is_empty());
        families.iter_mut().for_each(|members| members.sort_unstable());
        families
    }

    /// The tasks of an environment, each with the queues its runs go through.
    pub(super) fn tasks(&self, environment: EnvironmentType) -> BTreeMap<&str, BTreeSet<&str>> {
        let mut tasks: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
        for request in self.requests.iter().filter(|request| request.environment == environment) {
            tasks.entry(&request.task).or_default().insert(&request.queue);
        }
        tasks
    }
}

/// The `ref`s seen so far.
#[derive(Default)]
struct Names {
    /// To the position of their request.
    known: HashMap<String, usize>,
    /// To the number of the line that was skipped.
    skipped: HashMap<String, usize>,
}

impl Names {
    /// Remembers the `ref` of a line that is no request, if that much of it can be read.
    fn skip(&mut self, line: usize, bytes: &[u8]) {
        let name =
            serde_json::from_slice::<Json>(bytes).ok().and_then(|value| value.get("ref")?.as_str().map(str::to_owned));
        if let Some(name) = name {
            self.skipped.entry(name).or_insert(line);
        }
    }

    fn find(&self, field: &str, name: &str) -> Result<usize, String> {
        match (self.known.get(name), self.skipped.get(name)) {
            (Some(position), _) => Ok(*position),
            (None, Some(line)) => Err(format!("{field}: {name:?} is on line {line}, which was skipped")),
            (None, None) => Err(format!("{field}: no earlier line has the ref {name:?}")),
        }
    }
}

/// What a line says. The fields are described in `tests/demo/README.md`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    r#ref: Option<String>,
    #[serde(default)]
    environment: EnvironmentName,
    residency: Option<ResidencyName>,
    task: String,
    queue: Option<String>,
    worker_queue: Option<String>,
    payload: Option<Json>,
    payload_type: Option<String>,
    metadata: Option<Json>,
    context: Option<Json>,
    #[serde(default)]
    tags: Vec<String>,
    delay: Option<String>,
    park: Option<String>,
    ttl: Option<String>,
    #[serde(default)]
    priority_ms: i32,
    machine: Option<String>,
    region: Option<String>,
    concurrency_key: Option<String>,
    max_attempts: Option<i32>,
    max_duration_seconds: Option<i32>,
    #[serde(default)]
    test: bool,
    idempotency_key: Option<String>,
    idempotency_key_ttl: Option<String>,
    one_time_token: Option<String>,
    parent: Option<String>,
    #[serde(default)]
    resume_parent: bool,
    replay_of: Option<String>,
    outcome: Option<Outcome>,
    failure: Option<FailureName>,
    output: Option<Json>,
    error: Option<Json>,
    duration_ms: Option<u32>,
    cost_in_cents: Option<f64>,
}

#[derive(Clone, Copy, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
enum EnvironmentName {
    #[default]
    Production,
    Staging,
    Development,
    Preview,
}

impl From<EnvironmentName> for EnvironmentType {
    fn from(name: EnvironmentName) -> Self {
        match name {
            EnvironmentName::Production => EnvironmentType::Production,
            EnvironmentName::Staging => EnvironmentType::Staging,
            EnvironmentName::Development => EnvironmentType::Development,
            EnvironmentName::Preview => EnvironmentType::Preview,
        }
    }
}

#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "snake_case")]
enum ResidencyName {
    ControlPlane,
    RunOps,
}

impl From<ResidencyName> for Residency {
    fn from(name: ResidencyName) -> Self {
        match name {
            ResidencyName::ControlPlane => Residency::ControlPlane,
            ResidencyName::RunOps => Residency::RunOps,
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Outcome {
    Success,
    Failure,
    Cancel,
    CancelWhileRunning,
    Expire,
    ExpireBatch,
    Leave,
    LeaveDequeued,
    LeaveExecuting,
    LeaveCancelling,
    BornCancelled,
    BornFailed,
}

#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "snake_case")]
enum FailureName {
    CompletedWithErrors,
    SystemFailure,
    Crashed,
    TimedOut,
    Interrupted,
}

impl From<FailureName> for FailedStatus {
    fn from(name: FailureName) -> Self {
        match name {
            FailureName::CompletedWithErrors => FailedStatus::CompletedWithErrors,
            FailureName::SystemFailure => FailedStatus::SystemFailure,
            FailureName::Crashed => FailedStatus::Crashed,
            FailureName::TimedOut => FailedStatus::TimedOut,
            FailureName::Interrupted => FailedStatus::Interrupted,
        }
    }
}

/// Reads one line: the request, and its `ref`.
fn request(number: usize, bytes: &[u8], names: &Names) -> Result<(Request, Option<String>), String> {
    let text = str::from_utf8(bytes).map_err(|error| format!("not UTF-8 after byte {}", error.valid_up_to()))?;
    let line: Line = serde_json::from_str(text).map_err(|error| without_line(&error))?;
    let outcome = line.outcome;
    check_together(&line)?;
    name("task", &line.task)?;
    let queue = line.queue.unwrap_or_else(|| format!("task/{}", line.task));
    name("queue", &queue)?;
    if let Some(taken) = line.r#ref.as_ref().filter(|name| names.known.contains_key(*name)) {
        return Err(format!("ref: an earlier line has the ref {taken:?}"));
    }
    let begin = match (line.delay, line.park) {
        (None, None) => Begin::Queued,
        (Some(delay), _) => Begin::Delayed(duration("delay", &delay)?),
        (None, Some(reason)) => Begin::Parked(reason),
    };
    let outcome = outcome.unwrap_or(if begin == Begin::Queued { Outcome::Success } else { Outcome::Leave });
    if let Some(ttl) = &line.ttl {
        duration("ttl", ttl)?;
    }
    let wait = |key_ttl: String| duration("idempotency_key_ttl", &key_ttl);
    let find = |field: &str, name: Option<String>| name.map(|name| names.find(field, &name)).transpose();
    let error = |default: &str| line.error.clone().unwrap_or_else(|| Json::from(default));

    let end = match outcome {
        Outcome::Success => End::Success(line.output.map(|output| Payload::json(output.to_string()))),
        Outcome::Failure => {
            let status = line.failure.unwrap_or(FailureName::CompletedWithErrors);
            End::Failure(status.into(), error("the task failed"))
        }
        Outcome::Cancel => End::Cancel(error("cancelled by a user")),
        Outcome::CancelWhileRunning => End::CancelWhileRunning(error("cancelled by a user")),
        Outcome::Expire => End::Expire(error("not started in time")),
        Outcome::ExpireBatch => End::ExpireBatch,
        Outcome::Leave => End::Leave,
        Outcome::LeaveDequeued => End::LeaveDequeued,
        Outcome::LeaveExecuting => End::LeaveExecuting,
        Outcome::LeaveCancelling => End::LeaveCancelling,
        Outcome::BornCancelled => End::BornCancelled(error("cancelled while it was buffered")),
        Outcome::BornFailed => End::BornFailed(error("could not be triggered")),
    };
    let request = Request {
        line: number,
        environment: line.environment.into(),
        residency: line.residency.map(Residency::from),
        task: line.task,
        queue,
        worker_queue: line.worker_queue,
        payload: payload(line.payload, line.payload_type)?,
        metadata: line.metadata.map(|metadata| Payload::json(metadata.to_string())),
        context: line.context,
        tags: line.tags,
        begin,
        ttl: line.ttl,
        priority_ms: line.priority_ms,
        machine: line.machine.unwrap_or_else(|| "small-1x".to_owned()),
        region: line.region,
        concurrency_key: line.concurrency_key,
        max_attempts: line.max_attempts,
        max_duration_seconds: line.max_duration_seconds,
        test: line.test,
        idempotency_key: line.idempotency_key,
        idempotency_key_ttl: line.idempotency_key_ttl.map(wait).transpose()?,
        one_time_token: line.one_time_token,
        parent: find("parent", line.parent)?,
        resume_parent: line.resume_parent,
        replay_of: find("replay_of", line.replay_of)?,
        end,
        duration_ms: line.duration_ms.unwrap_or(1_000),
        cost_in_cents: line.cost_in_cents.unwrap_or(0.01),
    };
    Ok((request, line.r#ref))
}

/// Fields that do not go together.
fn check_together(line: &Line) -> Result<(), String> {
    let not_queued = if line.delay.is_some() { "delay" } else { "park" };
    let waits = line.delay.is_some() || line.park.is_some();
    let reaches_a_worker = !matches!(line.outcome, None | Some(Outcome::Cancel | Outcome::Leave));
    let attempt_ends =
        matches!(line.outcome, None | Some(Outcome::Success | Outcome::Failure | Outcome::CancelWhileRunning));
    let born = matches!(line.outcome, Some(Outcome::BornCancelled | Outcome::BornFailed));
    let has_error = matches!(
        line.outcome,
        Some(Outcome::Failure | Outcome::Cancel | Outcome::CancelWhileRunning | Outcome::Expire)
    ) || born;
    let rules = [
        (line.delay.is_some() && line.park.is_some(), "delay and park: a run waits for one of them".to_owned()),
        (waits && reaches_a_worker, format!("{not_queued}: such a run stays as it is: outcome can be leave or cancel")),
        (
            line.parent.is_some() && line.residency.is_some(),
            "residency: a child lives where its parent does".to_owned(),
        ),
        (line.parent.is_none() && line.resume_parent, "resume_parent: there is no parent".to_owned()),
        (
            line.idempotency_key.is_none() && line.idempotency_key_ttl.is_some(),
            "idempotency_key_ttl: there is no key".to_owned(),
        ),
        (
            line.failure.is_some() && line.outcome != Some(Outcome::Failure),
            "failure: outcome is not failure".to_owned(),
        ),
        (
            line.output.is_some() && !matches!(line.outcome, None | Some(Outcome::Success)),
            "output: outcome is not success".to_owned(),
        ),
        (line.output.is_some() && waits, format!("output: a run with {not_queued} has none yet")),
        (line.error.is_some() && !has_error, "error: no error belongs to this outcome".to_owned()),
        (
            (line.duration_ms.is_some() || line.cost_in_cents.is_some()) && (!attempt_ends || waits),
            "duration_ms and cost_in_cents: no attempt ends with this outcome".to_owned(),
        ),
        (line.cost_in_cents.is_some_and(|cost| cost < 0.0), "cost_in_cents: is negative".to_owned()),
    ];
    rules.into_iter().find(|(broken, _)| *broken).map_or(Ok(()), |(_, reason)| Err(reason))
}

/// A payload of another type than JSON is a text that is kept as it is.
fn payload(value: Option<Json>, data_type: Option<String>) -> Result<Payload, String> {
    match (data_type, value) {
        (None, value) => Ok(Payload::json(value.unwrap_or_else(|| Json::Object(Default::default())).to_string())),
        (Some(data_type), Some(Json::String(data))) if data_type != "application/json" => {
            Ok(Payload { data, data_type })
        }
        (Some(data_type), Some(value)) if data_type == "application/json" => Ok(Payload::json(value.to_string())),
        (Some(data_type), _) => Err(format!("payload: has to be a text, its payload_type is {data_type:?}")),
    }
}

fn name(field: &str, text: &str) -> Result<(), String> {
    match text {
        "" => Err(format!("{field}: is empty")),
        text if text.len() > LONGEST_NAME => Err(format!("{field}: is longer than {LONGEST_NAME} bytes")),
        text if text.contains('\0') => Err(format!("{field}: contains a NUL byte")),
        _ => Ok(()),
    }
}

/// Reads `90s`, `1h30m` and the like.
fn duration(field: &str, text: &str) -> Result<TimeDelta, String> {
    let bad = || format!("{field}: {text:?} is no duration such as 90s, 10m, 1h30m or 7d");
    let mut total = TimeDelta::zero();
    let mut rest = text;
    while !rest.is_empty() {
        let digits = rest.find(|character: char| !character.is_ascii_digit()).ok_or_else(bad)?;
        let number: i64 = rest[..digits].parse().map_err(|_| bad())?;
        let unit = rest[digits..].chars().next().ok_or_else(bad)?;
        let seconds = match unit {
            's' => 1,
            'm' => 60,
            'h' => 3_600,
            'd' => 86_400,
            _ => return Err(bad()),
        };
        let part = number.checked_mul(seconds).and_then(TimeDelta::try_seconds).ok_or_else(bad)?;
        total = total.checked_add(&part).ok_or_else(bad)?;
        rest = &rest[digits + unit.len_utf8()..];
    }
    match total {
        total if total.is_zero() => Err(bad()),
        total if total > TimeDelta::days(LONGEST_WAIT_DAYS) => {
            Err(format!("{field}: is longer than {LONGEST_WAIT_DAYS} days"))
        }
        total => Ok(total),
    }
}

/// The parser's words; the line it speaks of is always the first of its one.
fn without_line(error: &serde_json::Error) -> String {
    let text = error.to_string();
    match text.rsplit_once(" at line ") {
        Some((reason, _)) if error.column() > 0 => format!("{reason} (column {})", error.column()),
        Some((reason, _)) => reason.to_owned(),
        None => text,
    }
}
