//! The kit's own Tokio runtime.
//!
//! Every `#[tokio::test]` has a runtime of its own that ends with it. What tests share (servers, administrative
//! connections) and what must go on while a test's only thread is busy (proxies) runs here instead.

use std::{
    future::Future,
    sync::{LazyLock, PoisonError},
};

use tokio::{runtime::Runtime, task::JoinHandle};

static RUNTIME: LazyLock<Runtime> = LazyLock::new(|| {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .thread_name("test-kit")
        .enable_all()
        .build()
        .expect("the test kit needs two threads; raise the limit on threads (`ulimit -u`)")
});

/// Starts `work` on the kit's runtime, from any thread and any other runtime.
pub(crate) fn spawn<F>(work: F) -> JoinHandle<F::Output>
where
    F: Future<Output: Send> + Send + 'static,
{
    RUNTIME.spawn(work)
}

/// Runs `work` on the kit's runtime and hands its result back to the runtime of the caller.
///
/// # Panics
/// If `work` panics; the panic is passed on.
pub(crate) async fn run<F>(work: F) -> F::Output
where
    F: Future<Output: Send> + Send + 'static,
{
    match spawn(work).await {
        Ok(output) => output,
        Err(failure) => match failure.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            // The runtime is a static: it is never shut down, and nobody aborts this task.
            Err(cancelled) => unreachable!("the kit's runtime cancelled a task: {cancelled}"),
        },
    }
}

/// Locks `mutex`, whether or not a test that held it has panicked: what the kit keeps under a lock is valid after
/// every single statement.
pub(crate) fn lock<T>(mutex: &std::sync::Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
