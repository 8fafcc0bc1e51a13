//! The fake keeps the contract, and does what a test tells it.

use super::*;
use crate::contract::{self, World};

struct Fake(Arc<FakeRuntime>, ImageRef);

#[async_trait]
impl World for Fake {
    fn runtime(&self) -> Arc<dyn Runtime> {
        self.0.clone()
    }
    fn image(&self) -> ImageRef {
        self.1.clone()
    }
    async fn restart(&mut self) {
        self.0 = Arc::new(self.0.restarted());
    }
}

fn world() -> Fake {
    let runtime = FakeRuntime::new();
    let image = runtime.add_image("sha256:aa");
    Fake(Arc::new(runtime), image)
}

macro_rules! contract {
    ($($case:ident),* $(,)?) => {$(
        #[tokio::test(start_paused = true)]
        async fn $case() {
            contract::$case(&mut world()).await;
        }
    )*};
}
crate::contract_cases!(contract);

#[tokio::test(start_paused = true)]
#[should_panic(expected = "twice")]
async fn the_same_instance_twice_is_a_bug() {
    let world = world();
    let d = contract::desired(&world.1, "web.1", "sleep 1");
    let _ = world.0.converge(vec![d.clone(), d]).await;
}

#[tokio::test(start_paused = true)]
async fn it_does_what_the_test_says() {
    let world = world();
    let fake = &world.0;
    let dir = tempfile::tempdir().unwrap();
    fake.set_log_dir(dir.path().to_owned());
    let a = contract::desired(&world.1, "web.1", "echo hello; sleep 1000");
    let b = contract::desired(&world.1, "web.2", "sleep 1000");
    fake.refuse(b.instance, Some("no space"));
    fake.converge(vec![a.clone(), b.clone()]).await.unwrap();
    let seen = contract::until(&**fake, "one runs, one failed", |s| {
        s.iter().any(|o| o.phase == ObservedPhase::Running)
            && s.iter().any(|o| o.phase == ObservedPhase::Failed("no space".into()))
    });
    let seen = seen.await;
    let log = seen.iter().find_map(|o| o.log_file.clone()).unwrap();
    assert!(std::fs::read_to_string(log.path).unwrap().contains(r#""log":"hello\n""#));
    fake.crash(a.instance, 137, true);
    contract::until(&**fake, "it was killed for memory", |s| {
        s.iter().any(|o| matches!(&o.phase, ObservedPhase::Exited(e) if e.oom && e.status == 137))
    })
    .await;
    fake.set_down(true);
    assert!(matches!(fake.observe().await, Err(RuntimeError::Unavailable(_))));
    assert_eq!(fake.starts(a.instance), 1);
}
