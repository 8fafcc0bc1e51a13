//! How long the steps of a deploy take on this machine.

use super::{Docker, hardening, image_files};
use flex_runtime::{ObservedPhase, Runtime, contract::*};
use std::{
    future::Future,
    time::{Duration, Instant},
};

async fn times<T>(what: &str, n: usize, mut step: impl AsyncFnMut(usize) -> T) {
    let mut all = Vec::with_capacity(n);
    for i in 0..n {
        let start = Instant::now();
        step(i).await;
        all.push(start.elapsed());
    }
    all.sort();
    println!("{what:<44} p50 {:>7.1} ms   max {:>7.1} ms", ms(all[n / 2]), ms(all[n - 1]));
}

fn ms(d: Duration) -> f64 {
    d.as_secs_f64() * 1000.0
}

async fn timed<T>(what: &str, step: impl Future<Output = T>) -> T {
    let start = Instant::now();
    let value = step.await;
    println!("{what:<44}     {:>7.1} ms", ms(start.elapsed()));
    value
}

pub async fn all(docker: &mut Docker) {
    let runtime = docker.docker();
    let spec = |i: usize| hardening::sandbox_spec(docker, &format!("m{i}"));
    runtime.sandbox(spec(100)).await.unwrap().destroy().await.unwrap();
    let mut boxes = Vec::new();
    times("sandbox: make and start", 8, async |i| boxes.push(runtime.sandbox(spec(i)).await.unwrap())).await;
    times("sandbox: exec true, to its status", 20, async |_| {
        assert_eq!(finish(boxes[0].exec(hardening::shell("true")).await.unwrap()).await.2, Ok(0));
    })
    .await;
    times("sandbox: disk_used", 10, async |_| boxes[0].disk_used().await.unwrap()).await;
    times("sandbox: destroy", 8, async |i| boxes[i].destroy().await.unwrap()).await;

    let dir = tempfile::tempdir().unwrap();
    times("import: one new small layer on a known base", 8, async |i| {
        let files = image_files(dir.path(), &format!("flex-test/measure:{}-{i}", std::process::id()), &format!("{i}"));
        runtime.import(files.clone()).await.unwrap()
    })
    .await;
    for i in 0..8 {
        runtime.remove_image(&format!("flex-test/measure:{}-{i}", std::process::id())).await.unwrap();
    }

    let list: Vec<_> = (0..100).map(|i| desired(&docker.image(), &format!("web.{i}"), "sleep 1000")).collect();
    let count =
        |n: usize| move |s: &[flex_runtime::Observed]| s.iter().filter(|o| o.phase == ObservedPhase::Running).count() == n;
    times("one instance: converge to seen running", 5, async |i| {
        runtime.converge(list[..=i].to_vec()).await.unwrap();
        until(&*runtime, "runs", count(i + 1)).await;
    })
    .await;
    timed("100 instances: converge to all running", async {
        runtime.converge(list.clone()).await.unwrap();
        until(&*runtime, "run", count(100)).await;
    })
    .await;
    times("observe, 100 instances", 20, async |_| runtime.observe().await.unwrap()).await;
    times("converge with nothing to do, 100 instances", 20, async |_| runtime.converge(list.clone()).await.unwrap()).await;
    timed("100 instances: stop all", async {
        runtime.converge(Vec::new()).await.unwrap();
        until(&*runtime, "gone", |s| s.is_empty()).await;
    })
    .await;
}
