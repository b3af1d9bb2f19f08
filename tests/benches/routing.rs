//! What it costs to tell where a call goes: classification, and parsing with the routing decision.
//!
//! ```sh
//! cargo bench -p tests --bench routing
//! ```
//!
//! The aim is 25 ns or less for each of them.

use std::{hint::black_box, str::FromStr};

use criterion::{Criterion, criterion_group, criterion_main};
use store::{Residency, Route, RunFriendlyId, RunId, RunKey, classify};

fn routing(criterion: &mut Criterion) {
    let cuid = RunId::mint(Residency::ControlPlane);
    let ksuid = RunId::mint(Residency::RunOps);
    let texts = [
        ("cuid", cuid.to_string(), cuid.friendly().to_string()),
        ("KSUID", ksuid.to_string(), ksuid.friendly().to_string()),
    ];

    let mut group = criterion.benchmark_group("classify");
    for (kind, plain, friendly) in &texts {
        group.bench_function(*kind, |bencher| bencher.iter(|| classify(black_box(plain))));
        group.bench_function(format!("friendly {kind}"), |bencher| bencher.iter(|| classify(black_box(friendly))));
    }
    group.finish();

    let mut group = criterion.benchmark_group("parse and route");
    for (kind, plain, friendly) in &texts {
        group.bench_function(*kind, |bencher| {
            bencher.iter(|| RunId::from_str(black_box(plain)).map(|id| Route::of(&id)));
        });
        group.bench_function(format!("friendly {kind}"), |bencher| {
            bencher.iter(|| RunFriendlyId::from_str(black_box(friendly)).map(|id| Route::of(&id)));
        });
        group.bench_function(format!("any form of {kind}"), |bencher| {
            bencher.iter(|| RunKey::from_str(black_box(friendly)).map(|key| key.home()));
        });
    }
    group.finish();

    let mut group = criterion.benchmark_group("route");
    for (kind, id) in [("cuid", cuid), ("KSUID", ksuid)] {
        group.bench_function(kind, |bencher| bencher.iter(|| Route::of(black_box(&id))));
    }
    group.finish();
}

criterion_group!(benches, routing);
criterion_main!(benches);
