//! The contract of every runtime, kept by Docker, and what only the real engine can show.

mod engine_support;

use engine_support::with_docker;
use flex_runtime::contract;

macro_rules! contract {
    ($($case:ident),* $(,)?) => {$(
        #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn $case() {
            with_docker(stringify!($case), async |d| contract::$case(d).await).await;
        }
    )*};
}

flex_runtime::contract_cases!(contract);

/// Prints how long things take: `cargo test -p flex-runtime --test engine_docker -- --ignored --nocapture measure`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a measurement, not a check"]
async fn measure() {
    with_docker("measure", async |d| engine_support::measure::all(d).await).await;
}
