//! One operation in three ways, in turns.

use std::{
    cell::RefCell,
    fmt::Debug,
    hint::black_box,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use criterion::{BenchmarkId, Criterion, SamplingMode};
use tests::Side;
use tokio::runtime::Runtime;

use crate::bed::{Bed, Transport};

/// The three ways, in the order of the columns.
const WAYS: [&str; 3] = ["ours", "sqlx", "sea-orm"];

/// An operation to be measured: a line of the list.
pub(crate) struct Operation {
    pub(crate) name: &'static str,
    pub(crate) homes: Homes,
    pub(crate) compared: Compared,
    run: Box<Run>,
}

/// Where there is something to measure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Homes {
    /// In each database: it asks the one in which its run lives.
    Each,
    /// Over both, which it asks anyway, so that one bed will do.
    Both,
    /// In the control plane, which alone has an answer.
    ControlPlane,
}

impl Homes {
    /// Which database is asked on the bed of `side`; `None` if that bed has nothing to measure.
    pub(crate) fn on(self, side: Side) -> Option<&'static str> {
        match (self, side) {
            (Homes::Both, Side::ControlPlane) => Some("both"),
            (Homes::Each | Homes::ControlPlane, Side::ControlPlane) => Some("control plane"),
            (Homes::Each, Side::RunOps) => Some("run-ops"),
            (Homes::Both | Homes::ControlPlane, Side::RunOps) => None,
        }
    }
}

/// What ours is compared with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Compared {
    /// The same work.
    Work,
    /// An answer that is kept, with the query that it saves.
    HitWithQuery,
}

type Run = dyn Fn(&Runtime, &Bed, usize) -> Result<Vec<[Duration; 3]>>;

/// What has to be true of the three answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Answers {
    /// They are equal.
    Equal,
    /// Each is the run and the snapshot that are stored now, under the id that is said, and as much lies beside each.
    Stored,
}

/// Puts an operation together.
///
/// `setup` makes so many inputs, and is not measured; the others carry one out. Answers are shown and compared: what
/// answers something else is not the same operation. `id` tells which run an input is about, where answers are stored rows.
pub(crate) fn operation<I, A, B, C>(
    name: &'static str,
    answers: Answers,
    setup: impl AsyncFn(&Bed, usize) -> Result<Vec<I>> + 'static,
    id: impl Fn(&I) -> Option<store::RunId> + 'static,
    ours: impl AsyncFn(&Bed, I) -> Result<A> + 'static,
    sqlx: impl AsyncFn(&Bed, I) -> Result<B> + 'static,
    sea_orm: impl AsyncFn(&Bed, I) -> Result<C> + 'static,
) -> Operation
where
    I: 'static,
    A: Debug + 'static,
    B: Debug + 'static,
    C: Debug + 'static,
{
    let run = move |runtime: &Runtime, bed: &Bed, count: usize| {
        runtime.block_on(async {
            let inputs = [setup(bed, count).await?, setup(bed, count).await?, setup(bed, count).await?];
            let mut inputs = inputs.map(Vec::into_iter);
            let mut spent = Vec::with_capacity(count);
            for turn in 0..count {
                let is_last = turn + 1 == count;
                let mut took = [Duration::ZERO; 3];
                let mut shown: [String; 3] = Default::default();
                let mut beside: [String; 3] = Default::default();
                // Whoever comes first finds the caches as the others left them, so everybody comes first in turn.
                for way in (0..3).map(|way| (way + turn) % 3) {
                    let input = inputs[way].next().context("there are fewer inputs than were asked for")?;
                    let about = id(&input);
                    let begun = Instant::now();
                    shown[way] = match way {
                        0 => done(ours(bed, input).await, begun, &mut took[way], is_last),
                        1 => done(sqlx(bed, input).await, begun, &mut took[way], is_last),
                        _ => done(sea_orm(bed, input).await, begun, &mut took[way], is_last),
                    }
                    .with_context(|| format!("{name}, {}", WAYS[way]))?;
                    if let (true, Answers::Stored, Some(about)) = (is_last, answers, about) {
                        check_equal(name, WAYS[way], &shown[way], "what is stored", &bed.stored(&about).await?)?;
                        beside[way] = bed.beside(&about).await?;
                    }
                }
                let compared = match answers {
                    Answers::Equal => &shown,
                    Answers::Stored => &beside,
                };
                if is_last {
                    check_equal(name, WAYS[1], &compared[1], WAYS[0], &compared[0])?;
                    check_equal(name, WAYS[2], &compared[2], WAYS[0], &compared[0])?;
                }
                spent.push(took);
            }
            Ok(spent)
        })
    };
    Operation { name, homes: Homes::Each, compared: Compared::Work, run: Box::new(run) }
}

/// Stops the clock, and shows the answer if it is to be compared.
fn done<T: Debug>(answer: Result<T>, begun: Instant, took: &mut Duration, is_shown: bool) -> Result<String> {
    let answer = black_box(answer);
    *took = begun.elapsed();
    let answer = answer?;
    Ok(if is_shown { format!("{answer:?}") } else { String::new() })
}

fn check_equal(name: &str, who: &str, answer: &str, whose: &str, expected: &str) -> Result<()> {
    if answer == expected {
        return Ok(());
    }
    let at = answer.bytes().zip(expected.bytes()).take_while(|(one, other)| one == other).count();
    let near = |text: &str| {
        String::from_utf8_lossy(&text.as_bytes()[at.saturating_sub(60)..text.len().min(at + 60)]).into_owned()
    };
    bail!("{name}: {who} answers …{}…, but {whose} is …{}…", near(answer), near(expected))
}

impl Operation {
    /// The same, measured there.
    pub(crate) fn at(self, homes: Homes) -> Operation {
        Operation { homes, ..self }
    }

    /// The same, for answers that are kept.
    pub(crate) fn hit(self) -> Operation {
        Operation { compared: Compared::HitWithQuery, ..self }
    }
}

/// How thoroughly.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Effort {
    pub(crate) samples: usize,
    pub(crate) warm_up: Duration,
    pub(crate) measure: Duration,
}

impl Effort {
    pub(crate) const FULL: Effort =
        Effort { samples: 20, warm_up: Duration::from_millis(500), measure: Duration::from_secs(2) };
    pub(crate) const QUICK: Effort =
        Effort { samples: 10, warm_up: Duration::from_millis(100), measure: Duration::from_millis(400) };
}

/// What came out for one operation, database and transport, in nanoseconds.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Medians {
    pub(crate) ours: f64,
    pub(crate) sqlx: f64,
    pub(crate) sea_orm: f64,
    /// Medians of the ratios of measurements that were taken next to each other, which a busy machine disturbs least.
    pub(crate) to_sqlx: f64,
    pub(crate) to_sea_orm: f64,
    /// Measurements of each.
    pub(crate) count: usize,
}

/// Measures one operation. Criterion decides how often, and tells of ours; the ratios are made of all three.
pub(crate) fn measure(
    criterion: &mut Criterion,
    effort: Effort,
    runtime: &Runtime,
    bed: &Bed,
    database: &str,
    transport: Transport,
    operation: &Operation,
) -> Result<Medians> {
    let spent: RefCell<Result<Vec<[Duration; 3]>>> = RefCell::new(Ok(Vec::new()));
    // Statements are prepared and caches filled before anything counts.
    (operation.run)(runtime, bed, 5)?;

    let mut group = criterion.benchmark_group(operation.name);
    group.sample_size(effort.samples).warm_up_time(effort.warm_up).measurement_time(effort.measure);
    group.sampling_mode(SamplingMode::Flat);
    group.bench_function(BenchmarkId::new(database, transport.name()), |bencher| {
        bencher.iter_custom(|iterations| {
            let count = usize::try_from(iterations).unwrap_or(usize::MAX);
            let mut all = spent.borrow_mut();
            let Ok(before) = all.as_mut() else { return Duration::from_millis(1) };
            match (operation.run)(runtime, bed, count) {
                Ok(new) => {
                    let ours = new.iter().map(|[ours, ..]| *ours).sum();
                    before.extend(new);
                    ours
                }
                Err(error) => {
                    *all = Err(error);
                    Duration::from_millis(1)
                }
            }
        });
    });
    group.finish();

    let spent = spent.into_inner()?;
    let nanoseconds = |way: usize| move |took: &[Duration; 3]| took[way].as_secs_f64() * 1e9;
    let ratio = |way: usize| move |took: &[Duration; 3]| took[0].as_secs_f64() / took[way].as_secs_f64();
    Ok(Medians {
        ours: median(spent.iter().map(nanoseconds(0))),
        sqlx: median(spent.iter().map(nanoseconds(1))),
        sea_orm: median(spent.iter().map(nanoseconds(2))),
        to_sqlx: median(spent.iter().map(ratio(1))),
        to_sea_orm: median(spent.iter().map(ratio(2))),
        count: spent.len(),
    })
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}
