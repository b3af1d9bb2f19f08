//! What the test kit costs: a fresh copy of both databases, made and dropped. `cargo bench --bench kit`.

use criterion::{Criterion, criterion_group, criterion_main};
use tests::Databases;

fn fresh_copy(criterion: &mut Criterion) {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime must start");
    // Servers and templates are made once for a process.
    drop(runtime.block_on(Databases::fresh()).expect("the kit must find or start two servers"));

    let mut group = criterion.benchmark_group("kit");
    group.sample_size(20);
    group.bench_function("a fresh copy of both databases", |bencher| {
        bencher.iter_with_large_drop(|| runtime.block_on(Databases::fresh()).expect("a copy must be made"));
    });
    group.finish();
}

criterion_group!(benches, fresh_copy);
criterion_main!(benches);
